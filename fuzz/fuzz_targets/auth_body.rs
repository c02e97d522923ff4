//! See `onair::fuzz_targets::auth_body`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| onair::fuzz_targets::auth_body(bytes));
