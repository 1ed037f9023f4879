//! F26: the watchdog tells a slow rank from a stuck one.

use crate::support::{PATIENCE, run};
use equipoise_testkit::tree::{Found, send};
use equipoise_testkit::{Process, TempRun, figure};
use std::time::{Duration, Instant};

/// Longer than a silent rank is waited for (20 s).
const SLOW: Duration = Duration::from_secs(25);
/// Everything is over so long after a rank fell silent, the report included.
const BOUND: Duration = Duration::from_secs(30);

/// The process of rank 1, as mpirun has numbered it.
fn second_rank(process: &Process) -> Found {
    let is_second = |found: &Found| {
        let environment = std::fs::read(format!("/proc/{}/environ", found.pid)).unwrap_or_default();
        environment
            .split(|&byte| byte == 0)
            .any(|entry| entry == b"OMPI_COMM_WORLD_RANK=1" || entry == b"PMI_RANK=1")
    };
    process.live().into_iter().find(is_second).expect("rank 1 is alive")
}

#[test]
#[ignore = "a minute of waiting for the watchdog"]
fn a_slow_rank_is_waited_for_and_a_stuck_one_is_not() {
    let folder = TempRun::default();
    let mut process = Process::spawn(run(&folder.join("run"), 2, &["sets.feedback.plan.n=4000"]));
    process.wait_for_output("generate.feedback.k0: attempt", PATIENCE);
    let rank = second_rank(&process);
    // One tenth of its speed.
    let start = Instant::now();
    while start.elapsed() < SLOW {
        send(rank.pid, libc::SIGSTOP);
        std::thread::sleep(Duration::from_millis(90));
        send(rank.pid, libc::SIGCONT);
        std::thread::sleep(Duration::from_millis(10));
        assert!(process.try_wait().is_none(), "a slow rank was taken for lost:\n{}", process.output());
    }

    send(rank.pid, libc::SIGSTOP);
    let stuck = Instant::now();
    let status = process.wait(PATIENCE);
    process.wait_for_no_orphans(BOUND);
    let took = stuck.elapsed();
    assert!(took < BOUND, "over {took:?} after a rank was stuck");
    assert!(
        !status.success() && process.output().contains("was not heard"),
        "{status}:\n{}",
        process.output()
    );
    figure("F26", "seconds at a tenth of its speed, waited for", SLOW.as_secs());
    figure("F26", "seconds from stuck to everything over", format!("{:.1}", took.as_secs_f64()));
}
