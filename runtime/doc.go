// Package runtime runs WebAssembly modules: each job in a sandbox that no job has used, as far as any guest can tell.
//
// An Engine compiles each distinct module once and keeps the machine code in a private directory; a Module is a job.Runner
// that any number of goroutines may use. Memory, time, output, log and host calls are limited, and a guest is given nothing
// but what its ModuleConfig grants. Whatever a guest does - trap, loop, exhaust its memory, pass pointers that lead nowhere -
// ends its job with an error whose job.Kind says what happened; it ends neither the process nor another job.
//
// Five guest ABIs are known, one file each: pull (the native one), WASI command, DRASM, Extism and Shallabuf. Which one a
// module speaks is read from its imports and exports.
//
// How an instance is had is apart from that. Modules are rewritten before they are compiled (package rewrite), so that they burn
// fuel and count how deep their calls are, and so that their instances can be put back to what they were before a job. The pool
// does that, with memories that are the system's affair (memory.go and what begins with it); programs go on from where they
// were frozen (freeze.go). What has no such means, or may not use them, runs in an instance that is made for each job.
//
// The package reads no files but its cache; package module turns references into bytes.
package runtime
