// Package runtime runs WebAssembly modules: one sandboxed instance for each job.
//
// An Engine compiles each distinct module once and keeps the machine code in a private directory; a Module is a job.Runner
// that any number of goroutines may use. Memory, time, output, log and host calls are limited, and a guest is given nothing
// but what its ModuleConfig grants. Whatever a guest does - trap, loop, exhaust its memory, pass pointers that lead nowhere -
// ends its job with an error whose job.Kind says what happened; it ends neither the process nor another job.
//
// Three guest ABIs are known, one file each: pull (the native one), WASI command and DRASM. Which one a module speaks is read
// from its imports and exports. How an instance is had is apart from that, in instance.go.
//
// The package reads no files but its cache; package module turns references into bytes.
package runtime
