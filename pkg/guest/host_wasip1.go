package guest

import (
	"runtime"
	"unsafe"
)

//go:wasmexport handle
func exportedHandle() int32 { return serve() }

//go:wasmimport wasmsidecar input_len
func inputLen() uint32

//go:wasmimport wasmsidecar input_read
func importedInputRead(dst unsafe.Pointer, offset, length uint32) uint32

//go:wasmimport wasmsidecar output
func importedOutput(src unsafe.Pointer, length uint32)

//go:wasmimport wasmsidecar header_get
func importedHeaderGet(name unsafe.Pointer, nlen uint32, dst unsafe.Pointer, capacity uint32) int32

//go:wasmimport wasmsidecar header_set
func importedHeaderSet(name unsafe.Pointer, nlen uint32, value unsafe.Pointer, vlen uint32)

//go:wasmimport wasmsidecar fail
func importedFail(src unsafe.Pointer, length uint32)

//go:wasmimport wasmsidecar retry
func importedRetry(afterMS int64, src unsafe.Pointer, length uint32)

//go:wasmimport wasmsidecar log
func importedLog(level int32, src unsafe.Pointer, length uint32)

//go:wasmimport wasmsidecar config_get
func importedConfigGet(name unsafe.Pointer, nlen uint32, dst unsafe.Pointer, capacity uint32) int32

//go:wasmimport wasmsidecar_http request
func importedRequest(method unsafe.Pointer, mlen uint32, url unsafe.Pointer, ulen uint32, headers unsafe.Pointer, hlen uint32, body unsafe.Pointer, blen uint32) int32

//go:wasmimport wasmsidecar_http response_len
func importedResponseLen(part int32) uint32

//go:wasmimport wasmsidecar_http response_read
func importedResponseRead(part int32, dst unsafe.Pointer, offset, length uint32) uint32

func of(s string) (unsafe.Pointer, uint32) {
	return unsafe.Pointer(unsafe.StringData(s)), uint32(len(s))
}
func ofBytes(b []byte) (unsafe.Pointer, uint32) {
	return unsafe.Pointer(unsafe.SliceData(b)), uint32(len(b))
}

func inputRead(dst []byte, offset uint32) uint32 {
	p, n := ofBytes(dst)
	got := importedInputRead(p, offset, n)
	runtime.KeepAlive(dst)
	return got
}

func output(b []byte) {
	p, n := ofBytes(b)
	importedOutput(p, n)
	runtime.KeepAlive(b)
}

func headerGet(name string, dst []byte) int32 {
	p, n := of(name)
	d, c := ofBytes(dst)
	got := importedHeaderGet(p, n, d, c)
	runtime.KeepAlive(dst)
	return got
}

func headerSet(name, value string) {
	p, n := of(name)
	v, l := of(value)
	importedHeaderSet(p, n, v, l)
}

func fail(text string) {
	p, n := of(text)
	importedFail(p, n)
}

func retry(afterMS int64, text string) {
	p, n := of(text)
	importedRetry(afterMS, p, n)
}

func log(level int32, text string) {
	p, n := of(text)
	importedLog(level, p, n)
}

func configGet(name string, dst []byte) int32 {
	p, n := of(name)
	d, c := ofBytes(dst)
	got := importedConfigGet(p, n, d, c)
	runtime.KeepAlive(dst)
	return got
}

func httpRequest(method, url, headers string, body []byte) int32 {
	m, ml := of(method)
	u, ul := of(url)
	h, hl := of(headers)
	b, bl := ofBytes(body)
	got := importedRequest(m, ml, u, ul, h, hl, b, bl)
	runtime.KeepAlive(body)
	return got
}

func responseLen(part int32) uint32 { return importedResponseLen(part) }

func responseRead(part int32, dst []byte, offset uint32) uint32 {
	p, n := ofBytes(dst)
	got := importedResponseRead(part, p, offset, n)
	runtime.KeepAlive(dst)
	return got
}
