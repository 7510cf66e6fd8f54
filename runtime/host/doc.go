// Package host holds the functions that guests may import, one file per capability.
//
// A Call is what one run of a guest may see and do: the job, the limits and grants of its module, and the result as it comes
// to be. It travels in the context of the wazero call, so one set of host modules serves every instance. Pointers and lengths
// that a guest passes are read as unsigned and checked against its memory; one that does not fit stops the guest with a Fault,
// never the host. Guest memory is copied, never kept.
//
// The package instantiates no guest and knows no ABI beyond the functions' signatures; package runtime does that.
package host
