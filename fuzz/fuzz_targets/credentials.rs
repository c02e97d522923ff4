//! See `onair::fuzz_targets::credentials`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| onair::fuzz_targets::credentials(bytes));
