//! Real signals; alone in its process, because handlers are for all of it.

#![allow(clippy::unwrap_used, clippy::expect_used)] // In the helpers; the tests themselves may.

use equipoise_rundir::StopFlag;
use equipoise_rundir::signals::{StopReason, block_in_this_thread};

#[test]
fn stop_signals_set_the_flag_once_and_for_all_and_others_are_left_alone() {
    let flag = StopFlag::install().unwrap();
    let deaf = StopFlag::new();
    assert!(!flag.is_set());
    for signal in [libc::SIGUSR1, libc::SIGINT] {
        // SAFETY: reads the current action into plain data.
        let action = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            libc::sigaction(signal, std::ptr::null(), &mut action);
            action
        };
        assert_eq!(action.sa_sigaction, libc::SIG_DFL, "signal {signal}");
    }
    // A helper that blocks them neither receives nor loses a signal to the process.
    std::thread::spawn(block_in_this_thread).join().unwrap();
    for signal in [libc::SIGUSR2, libc::SIGTERM, libc::SIGTERM] {
        // SAFETY: both signals are handled.
        assert_eq!(unsafe { libc::raise(signal) }, 0);
        assert_eq!(flag.reason(), Some(StopReason::Signal(signal)));
        assert!(flag.clone().is_set());
    }
    flag.ask();
    assert_eq!(flag.reason(), Some(StopReason::Signal(libc::SIGTERM)));
    assert!(!deaf.is_set());
}
