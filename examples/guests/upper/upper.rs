//! upper answers with its input in upper case (ASCII). It needs no standard library and no allocator.
#![no_std]

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    core::arch::wasm32::unreachable()
}

#[link(wasm_import_module = "wasmsidecar")]
extern "C" {
    fn input_read(dst: *mut u8, offset: usize, len: usize) -> usize;
    fn output(src: *const u8, len: usize);
}

#[no_mangle]
pub extern "C" fn handle() -> i32 {
    let mut buffer = [0u8; 4096];
    let mut at = 0;
    loop {
        let got = unsafe { input_read(buffer.as_mut_ptr(), at, buffer.len()) };
        if got == 0 {
            return 0;
        }
        buffer[..got].make_ascii_uppercase();
        unsafe { output(buffer.as_ptr(), got) };
        at += got;
    }
}
