//! In a process of its own: a handled signal stays handled for all tests of a binary.

use equipoise_comm::stop::{STOP_SIGNALS, StopFlag};

#[test]
fn a_signal_raises_every_clone() {
    for signal in STOP_SIGNALS {
        let flag = StopFlag::default();
        let clone = flag.clone();
        flag.on_signals().unwrap();
        assert!(!clone.is_raised());
        // SAFETY: the signal is handled.
        unsafe { libc::raise(signal) };
        assert!(clone.is_raised());
    }
}
