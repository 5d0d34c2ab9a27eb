#![no_main]

use doorward_fuzz::targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::chunked_body(data));
