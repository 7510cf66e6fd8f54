// adder is a DRASM guest: it answers {"a": 1, "b": 2} with {"sum": 3}, under the type name "Sum". What it cannot read it
// answers with DRASM's Error message.

export function alloc(n: i32): usize {
  return heap.alloc(n);
}

export function dealloc(ptr: usize, n: i32): void {
  heap.free(ptr);
}

export function handle(ptr: usize, n: i32): u64 {
  const envelope = String.UTF8.decodeUnsafe(ptr, n);
  const at = after(envelope, "payload");
  if (at < 0 || envelope.charCodeAt(at) != 0x5b) return answer("Error", '{"error":"bad envelope: no payload"}');

  let payload = "";
  let value = 0, digits = 0;
  for (let i = at + 1; i < envelope.length; i++) {
    const c = envelope.charCodeAt(i);
    if (c >= 0x30 && c <= 0x39) {
      value = value * 10 + (c - 0x30);
      digits++;
      continue;
    }
    if (digits > 0) payload += String.fromCharCode(value);
    value = digits = 0;
    if (c == 0x5d) break;
  }

  const a = after(payload, "a"), b = after(payload, "b");
  if (a < 0 || b < 0 || !numeric(payload, a) || !numeric(payload, b)) {
    return answer("Error", '{"error":"bad payload: want {\\"a\\": number, \\"b\\": number}"}');
  }
  return answer("Sum", '{"sum":' + (integer(payload, a) + integer(payload, b)).toString() + "}");
}

// after returns where the value of a member begins, or -1.
function after(json: string, name: string): i32 {
  let i = json.indexOf('"' + name + '"');
  if (i < 0) return -1;
  i = skip(json, i + name.length + 2);
  return i < json.length && json.charCodeAt(i) == 0x3a ? skip(json, i + 1) : -1;
}

function skip(s: string, i: i32): i32 {
  while (i < s.length && s.charCodeAt(i) <= 0x20) i++;
  return i;
}

function numeric(s: string, i: i32): bool {
  if (i < s.length && s.charCodeAt(i) == 0x2d) i++;
  return i < s.length && s.charCodeAt(i) >= 0x30 && s.charCodeAt(i) <= 0x39;
}

function integer(s: string, i: i32): i64 {
  const negative = s.charCodeAt(i) == 0x2d;
  if (negative) i++;
  let v: i64 = 0;
  for (; i < s.length && s.charCodeAt(i) >= 0x30 && s.charCodeAt(i) <= 0x39; i++) v = v * 10 + (s.charCodeAt(i) - 0x30);
  return negative ? -v : v;
}

// answer makes an envelope and returns it as length << 32 | pointer.
function answer(type: string, payload: string): u64 {
  let out = '{"type_name":"' + type + '","payload":[';
  for (let i = 0; i < payload.length; i++) {
    if (i > 0) out += ",";
    out += payload.charCodeAt(i).toString();
  }
  const bytes = String.UTF8.encode(out + "]}");
  return ((<u64>bytes.byteLength) << 32) | (<u64>changetype<usize>(bytes));
}
