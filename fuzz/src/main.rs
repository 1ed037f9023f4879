//! libFuzzer on the target that `EQUIPOISE_FUZZ_TARGET` names.
#![no_main]

use equipoise_fuzz::{TARGETS, Target};
use std::sync::LazyLock;

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("EQUIPOISE_FUZZ_TARGET").unwrap_or_default();
    let known = TARGETS.iter().find(|(known, _)| *known == name);
    known.unwrap_or_else(|| panic!("EQUIPOISE_FUZZ_TARGET={name:?} is no target")).1
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| TARGET(bytes));
