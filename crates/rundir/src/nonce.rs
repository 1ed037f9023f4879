//! Names that no other process uses. They never reach a result, so they need not be reproducible.

use crate::process::Process;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// 16 hexadecimal digits: unlike any other of this process, and of any process on any host but for chance.
pub(crate) fn nonce() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    static HERE: OnceLock<String> = OnceLock::new();
    let here = HERE.get_or_init(|| {
        let process = Process::current();
        format!("{}/{}/{}/{}", process.host, process.boot, process.pid, process.start)
    });
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    // `RandomState` takes its keys from the operating system: two containers with equal pids still differ.
    let entropy = RandomState::new().build_hasher().finish();
    format!("{:016x}", equipoise_base::hash::xxh3(format!("{here}/{count}/{entropy}").as_bytes()))
}

#[cfg(test)]
mod tests {
    #[test]
    fn differ() {
        let seen: std::collections::BTreeSet<String> = (0..1000).map(|_| super::nonce()).collect();
        assert_eq!(seen.len(), 1000);
        assert!(seen.iter().all(|nonce| nonce.len() == 16));
    }
}
