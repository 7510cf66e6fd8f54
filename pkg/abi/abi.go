// Package abi holds the names and numbers that host and guests share. It imports nothing, so that a guest can import it.
package abi

// Names of the host modules that a guest may import; an import is a request for that capability.
const (
	Module     = "wasmsidecar"
	ModuleHTTP = "wasmsidecar_http"
	WASI       = "wasi_snapshot_preview1"
)

// Names that a guest exports.
const (
	Handle     = "handle"
	Initialize = "_initialize"
	Start      = "_start"
	Reseed     = "wasmsidecar_reseed"
)

// Levels of the host function log.
const (
	LogDebug = iota
	LogInfo
	LogWarn
	LogError
)

// Exit codes of a WASI command, after sysexits.h. Any other code is a crash, which the route's retry policy handles.
const (
	ExitOK     = 0
	ExitFailed = 65 // EX_DATAERR: do not try again
	ExitRetry  = 75 // EX_TEMPFAIL: try again
)

// Missing is what functions that return a length answer where there is no such value.
const Missing = -1

// What request of the http module answers where there is no status.
const (
	HTTPDenied      = -1 // not granted
	HTTPInvalid     = -2 // not a request that can be sent
	HTTPLimit       = -3 // too many requests, or one or its response too large
	HTTPUnreachable = -4 // no response
	HTTPTimeout     = -5 // no response in time
)

// Parts of a response of the http module.
const (
	HTTPBody = iota
	HTTPHeaders
	HTTPError
)
