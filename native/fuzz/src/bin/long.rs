//! libFuzzer on the target that FUZZ_TARGET names.

#![no_main]

use std::sync::OnceLock;

use fgclip_rt_fuzz::{attempt, Target, TARGETS};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    static TARGET: OnceLock<Target> = OnceLock::new();
    let target = TARGET.get_or_init(|| {
        let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
        TARGETS.iter().find(|(known, _)| *known == name).map(|(_, target)| *target).unwrap_or_else(|| {
            eprintln!("FUZZ_TARGET is {name:?}; name one of {:?}.", TARGETS.map(|(name, _)| name));
            std::process::exit(2);
        })
    });
    if let Err(fault) = attempt(*target, data) {
        eprintln!("{fault}");
        std::process::abort();
    }
});
