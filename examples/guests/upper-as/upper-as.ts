// upper-as answers with its input in upper case (ASCII), through the native ABI from AssemblyScript.

@external("wasmsidecar", "input_len")
declare function input_len(): u32;
@external("wasmsidecar", "input_read")
declare function input_read(dst: usize, offset: u32, len: u32): u32;
@external("wasmsidecar", "output")
declare function output(src: usize, len: u32): void;

export function handle(): i32 {
  const n = input_len();
  const buffer = heap.alloc(n);
  input_read(buffer, 0, n);
  for (let p = buffer; p < buffer + n; p++) {
    const c = load<u8>(p);
    if (c >= 0x61 && c <= 0x7a) store<u8>(p, c - 0x20);
  }
  output(buffer, n);
  return 0;
}
