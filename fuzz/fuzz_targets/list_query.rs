//! See `onair::fuzz_targets::list_query`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| onair::fuzz_targets::list_query(bytes));
