;; seed answers with what _initialize drew: eight random bytes, and how often wasmsidecar_reseed has drawn others since.
(module
  (import "wasi_snapshot_preview1" "random_get" (func $random_get (param i32 i32) (result i32)))
  (import "wasmsidecar" "config_get" (func $config_get (param i32 i32 i32 i32) (result i32)))
  (import "wasmsidecar" "output" (func $output (param i32 i32)))
  (memory (export "memory") 1)
  (data (i32.const 64) "reseed")
  (func $draw (drop (call $random_get (i32.const 0) (i32.const 8))))
  (func (export "_initialize") (call $draw))
  (func (export "wasmsidecar_reseed")
    ;; only where the setting "reseed" is there, so that tests see both
    (if (i32.ge_s (call $config_get (i32.const 64) (i32.const 6) (i32.const 128) (i32.const 0)) (i32.const 0))
      (then
        (i32.store8 (i32.const 8) (i32.add (i32.load8_u (i32.const 8)) (i32.const 1)))
        (call $draw))))
  (func (export "handle") (call $output (i32.const 0) (i32.const 9))))
