;; traps ends as the first byte of its input says: in each way that WebAssembly has to end badly, and in some that end well.
(module
  (import "wasmsidecar" "input_read" (func $input_read (param i32 i32 i32) (result i32)))
  (import "wasmsidecar" "output" (func $output (param i32 i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
  (memory (export "memory") 2)
  (data (i32.const 16) "fine")
  (table 3 funcref)
  (elem (i32.const 1) $handle)
  (type $other (func (param i64)))
  (global $stack (mut i32) (i32.const 65536)) ;; as C keeps it: in memory, and growing down

  (func $shadow
    (global.set $stack (i32.sub (global.get $stack) (i32.const 512)))
    (i32.store (global.get $stack) (i32.const 1))
    (call $shadow)
    (global.set $stack (i32.add (global.get $stack) (i32.const 512))))

  (func $pure (param i32) (result i32) (i32.add (i32.const 1) (call $pure (local.get 0))))

  (func $more (param $pages i32) (result i32) (i32.ne (memory.grow (local.get $pages)) (i32.const -1)))

  (func $end (param $how i32)
    (if (i32.eq (local.get $how) (i32.const 1)) (then unreachable))
    (if (i32.eq (local.get $how) (i32.const 2)) (then (drop (i32.load (i32.const 131069)))))
    (if (i32.eq (local.get $how) (i32.const 3)) (then (drop (i32.div_u (i32.const 1) (i32.load (i32.const 32))))))
    (if (i32.eq (local.get $how) (i32.const 4))
      (then (drop (i32.div_s (i32.sub (i32.const 0x80000000) (i32.load (i32.const 32))) (i32.const -1)))))
    (if (i32.eq (local.get $how) (i32.const 5)) (then (drop (i32.trunc_f64_s (f64.const nan)))))
    (if (i32.eq (local.get $how) (i32.const 6)) (then (call_indirect (type $other) (i64.const 0) (i32.const 3)))) ;; beyond the table
    (if (i32.eq (local.get $how) (i32.const 7)) (then (call_indirect (type $other) (i64.const 0) (i32.const 0)))) ;; nothing there
    (if (i32.eq (local.get $how) (i32.const 8)) (then (call_indirect (type $other) (i64.const 0) (i32.const 1)))) ;; of another type
    (if (i32.eq (local.get $how) (i32.const 9)) (then (call $shadow)))
    (if (i32.eq (local.get $how) (i32.const 10)) (then (drop (call $pure (i32.const 0)))))
    (if (i32.eq (local.get $how) (i32.const 11)) (then (call $proc_exit (i32.const 3))))
    ;; memory: refused, as it asks for all there can be; refused but not minded; refused, had after all, and then something else
    (if (i32.eq (local.get $how) (i32.const 12)) (then (if (i32.eqz (call $more (i32.const 65534))) (then unreachable))))
    (if (i32.eq (local.get $how) (i32.const 13)) (then (drop (call $more (i32.const 65534)))))
    (if (i32.eq (local.get $how) (i32.const 14))
      (then (drop (call $more (i32.const 65534))) (drop (call $more (i32.const 1))) unreachable))
    (if (i32.eq (local.get $how) (i32.const 15))
      (then (loop $again (br_if $again (call $more (i32.const 1)))) (call $proc_exit (i32.const 2)))))

  (func $handle (export "handle")
    (drop (call $input_read (i32.const 0) (i32.const 0) (i32.const 1)))
    (call $end (i32.load8_u (i32.const 0)))
    (call $output (i32.const 16) (i32.const 4))))
