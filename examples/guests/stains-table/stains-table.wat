;; stains-table answers with how many of the two elements of its table are null, then makes one more null: it cannot be reset.
(module
  (import "wasmsidecar" "output" (func $output (param i32 i32)))
  (memory (export "memory") 1)
  (table $t 2 funcref)
  (elem (i32.const 0) $f $f)
  (func $f)
  (func (export "handle")
    (i32.store (i32.const 0) (i32.add (ref.is_null (table.get $t (i32.const 0))) (ref.is_null (table.get $t (i32.const 1)))))
    (call $output (i32.const 0) (i32.const 4))
    (table.set $t (i32.const 0) (ref.null func))))
