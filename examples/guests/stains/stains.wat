;; stains reports what it finds of earlier jobs, leaves as much behind as it can, and ends as the first byte of its input says.
;; The report is six numbers: a counter in memory, one in a global, one in a float's global, the pages of memory, how many words
;; hold the secret that each job writes everywhere, and 1 where what _initialize and the data segment left is as it was.
(module
  (import "wasmsidecar" "input_read" (func $input_read (param i32 i32 i32) (result i32)))
  (import "wasmsidecar" "output" (func $output (param i32 i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
  (memory (export "memory") 3)
  (data (i32.const 1024) "\07")
  (global $jobs (mut i32) (i32.const 0))
  (global $half (mut f64) (f64.const 0))
  (global $ready (mut i64) (i64.const 0))

  (func (export "_initialize")
    (drop (memory.grow (i32.const 1)))
    (i32.store8 (i32.const 200000) (i32.const 9))
    (global.set $ready (i64.const 1)))

  (func $secret (result i64) (i64.mul (i64.const 0x0123456789abcdf) (i64.const 31)))

  (func $end (result i32) (i32.shl (memory.size) (i32.const 16)))

  ;; how many of the words that jobs write to hold the secret
  (func $found (result i32) (local $at i32) (local $n i32)
    (loop $next
      (local.set $n (i32.add (local.get $n) (i64.eq (i64.load (local.get $at)) (call $secret))))
      (br_if $next (i32.lt_u (local.tee $at (i32.add (local.get $at) (i32.const 256))) (call $end))))
    (local.get $n))

  ;; write the secret to each 1024 bytes from an address on
  (func $stain (param $at i32)
    (loop $next
      (i64.store (local.get $at) (call $secret))
      (br_if $next (i32.lt_u (local.tee $at (i32.add (local.get $at) (i32.const 1024))) (call $end)))))

  (func $recurse (param i32) (result i32) (i32.add (i32.const 1) (call $recurse (local.get 0))))

  (func (export "handle") (local $mode i32)
    (i32.store (i32.const 64) (i32.load (i32.const 16)))
    (i32.store (i32.const 68) (global.get $jobs))
    (i32.store (i32.const 72) (i32.trunc_sat_f64_u (global.get $half)))
    (i32.store (i32.const 76) (memory.size))
    (i32.store (i32.const 80) (call $found))
    (i32.store (i32.const 84) (i32.and
      (i32.and (i32.eq (i32.load8_u (i32.const 1024)) (i32.const 7)) (i32.eq (i32.load8_u (i32.const 200000)) (i32.const 9)))
      (i64.eq (global.get $ready) (i64.const 1))))
    (call $output (i32.const 64) (i32.const 24))
    (drop (call $input_read (i32.const 128) (i32.const 0) (i32.const 1)))
    (local.set $mode (i32.load8_u (i32.const 128)))

    (i32.store (i32.const 16) (i32.add (i32.load (i32.const 16)) (i32.const 1)))
    (global.set $jobs (i32.add (global.get $jobs) (i32.const 1)))
    (global.set $half (f64.add (global.get $half) (f64.const 1)))
    (global.set $ready (i64.const 5))
    (call $stain (i32.const 256))

    (if (i32.eq (local.get $mode) (i32.const 1)) (then unreachable))
    (if (i32.eq (local.get $mode) (i32.const 2)) (then (loop $ever (br $ever))))
    (if (i32.eq (local.get $mode) (i32.const 3)) (then (call $proc_exit (i32.const 0))))
    (if (i32.eq (local.get $mode) (i32.const 4)) (then (call $proc_exit (i32.const 65))))
    (if (i32.eq (local.get $mode) (i32.const 5)) (then (drop (call $recurse (i32.const 1)))))
    (if (i32.eq (local.get $mode) (i32.const 6)) (then (drop (i32.load (i32.const -4)))))
    (if (i32.eq (local.get $mode) (i32.const 7)) (then ;; grow a little
      (drop (memory.grow (i32.const 2)))
      (call $stain (i32.const 262144))))
    (if (i32.eq (local.get $mode) (i32.const 8)) (then ;; grow as far as it goes
      (loop $more (br_if $more (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
      (call $stain (i32.const 262144))))
    (if (i32.eq (local.get $mode) (i32.const 9)) (then ;; answer too much
      (loop $ever (call $output (i32.const 0) (i32.const 131072)) (br $ever))))))
