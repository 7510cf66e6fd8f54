;; tables grows a table for as long as it can, then traps: tables are memory too.
(module
  (table $t 0 funcref)
  (func (export "handle")
    (loop $more
      (br_if $more (i32.ne (table.grow $t (ref.null func) (i32.const 4096)) (i32.const -1))))
    (unreachable)))
