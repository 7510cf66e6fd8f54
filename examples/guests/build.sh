#!/bin/sh
# Builds the committed guests: everything that plain `go build` cannot make. Usage: build.sh [OUT [NAME…]]
#
# The bytes depend on the compilers, so these are pinned; guests_test.go rebuilds and compares where it finds them. SHA256SUMS
# is written when all guests are built in place.
#   clang 14.0.6 with lld 14, wasi-libc 0.0~git20220510.9886d3d-2  (Debian 12: clang lld wasi-libc libclang-rt-14-dev-wasm32)
#   rustc 1.63.0                                                  (Debian 12: rustc libstd-rust-dev-wasm32)
#   wat2wasm 1.0.32                                               (Debian 12: wabt)
#   asc 0.28.20                                                   (npm i assemblyscript@0.28.20; ASC names it, else from PATH)
set -eu
cd "$(dirname "$0")"
out=${1:-.}
[ $# -gt 0 ] && shift
all=
[ $# -gt 0 ] || { all=yes; set -- */; }

for name; do
	name=${name%/}
	to=$out/$name.wasm
	if [ -f "$name/$name.c" ] && grep -q '^int main' "$name/$name.c"; then
		clang --target=wasm32-wasi --sysroot=/usr -Os -flto -s -o "$to" "$name/$name.c"
	elif [ -f "$name/$name.c" ]; then
		clang --target=wasm32 -Os -ffreestanding -fno-builtin -nostdlib -Iinclude -Wall -Wl,--no-entry -Wl,-s -Wl,-z,stack-size=16384 -o "$to" "$name/$name.c"
	elif [ -f "$name/$name.rs" ]; then
		"${RUSTC:-/usr/bin/rustc}" --target wasm32-unknown-unknown --crate-type cdylib -C opt-level=s -C lto -C panic=abort \
			-C codegen-units=1 -C strip=symbols -C link-arg=-zstack-size=16384 -o "$to" "$name/$name.rs"
	elif [ -f "$name/$name.wat" ]; then
		wat2wasm -o "$to" "$name/$name.wat"
	elif [ -f "$name/$name.ts" ]; then
		"${ASC:-asc}" "$name/$name.ts" -o "$to" -Osize --converge --noAssert --runtime stub --use abort=
	else
		continue # a Go program, or no guest
	fi
	chmod 644 "$to"
done

[ "$all" = yes ] && [ "$out" = . ] && sha256sum -- *.wasm >SHA256SUMS
true
