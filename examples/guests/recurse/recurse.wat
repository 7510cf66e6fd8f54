;; recurse calls itself without end and without a loop, so only the depth of the stack can stop it.
(module
  (func $f (param i32) (result i32)
    (i32.add (i32.const 1) (call $f (i32.add (local.get 0) (i32.const 1)))))
  (func (export "handle") (result i32) (call $f (i32.const 0))))
