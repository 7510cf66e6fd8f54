// Package rewrite turns a WebAssembly module into one that can be metered, stopped and reset, and that otherwise does what it
// did. It is a pure function from bytes to bytes and knows no engine.
//
// # What is added
//
//   - Fuel: an exported mutable i64. Every basic block subtracts the number of its instructions when it is entered; block, loop,
//     else, end and nop are free. Where code could otherwise run on - at function entries, loop heads and in very long
//     functions - and where a cost is in an operand, fuel below zero calls the host function refuel.
//   - Functions that fill, copy or initialize more than a megabyte of memory piece by piece, and ask refuel before each. All of it is
//     paid for beforehand.
//   - Depth: an exported mutable i64. A function that calls others subtracts one, and one more for every 16 values its frame can
//     hold, and gives it back however it returns. Below zero it calls refuel too.
//   - An export for every mutable global, so that the host can put it back.
//   - The start function, which is exported instead of run by the instantiation, so that it is metered and stoppable.
//
// # What it costs
//
// memory.copy, memory.fill and memory.init cost one more per eight bytes, operations on table elements one more per element,
// memory.grow [GrowCost] per page and table.grow one per element where the growth is within the limits, and a call of an
// imported function [HostCallCost]. Host functions whose work depends on their arguments subtract what they cost from the fuel
// global. A run without a trap pays for exactly what it executed, and the same module with the same input burns the same fuel on
// every engine and machine. Functions keep fuel in a local between calls: whatever is called, refuel included, sees what is
// left, but after a trap the global may lack what the function that trapped burnt since it was entered, called another one or
// was refuelled. That is at most what was granted last.
//
// # What is kept
//
// Results, traps, memory and table contents. Custom sections survive, with function indexes in the name section adjusted:
// the imported refuel takes the place after the guest's imported functions and moves the others up by one. Debugging
// information (.debug_*, source maps, branch hints) describes code offsets that are no longer true and is left out. Modules
// that use more than WebAssembly 2.0 (threads, tail calls, exceptions, garbage collection, several or 64-bit memories, relaxed
// SIMD, extended constant expressions) are refused with an [Error].
//
// What the package relies on it validates: section order, all index spaces, labels and the nesting of blocks, so that no
// module can reach the globals, locals, functions and labels that were added. Types are left to the engine, which must validate
// the result; a module that was invalid stays invalid.
package rewrite
