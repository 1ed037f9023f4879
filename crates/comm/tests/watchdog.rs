//! The watchdog over ranks that are threads, with bounds of milliseconds.

#![allow(clippy::unwrap_used)]

use equipoise_comm::messages::Messages;
use equipoise_comm::threads::ThreadComm;
use equipoise_comm::watchdog::{Bounds, Pulse, Report, Watchdog, Watched};
use equipoise_comm::{Comm as _, LocalComm};
use equipoise_testkit::ranks;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// Generous against a loaded machine: a heartbeat may be 100 periods late.
const BOUNDS: Bounds = Bounds {
    period: Duration::from_millis(10),
    lost: Duration::from_millis(1000),
    stuck: Duration::from_millis(2500),
};

struct Rank {
    comm: Watched,
    pulse: Arc<Pulse>,
    reasons: mpsc::Receiver<String>,
    watchdog: Watchdog,
}

fn watched(comm: ThreadComm, bounds: Bounds) -> Rank {
    let comm: Arc<dyn Messages> = Arc::new(comm);
    let pulse = Arc::new(Pulse::default());
    let (report, reasons) = mpsc::channel();
    let report: Report = Box::new(move |reason| report.send(reason.to_string()).unwrap());
    let watchdog = Watchdog::start(Arc::clone(&comm), Arc::clone(&pulse), bounds, report).unwrap();
    Rank { comm: Watched::new(comm, Arc::clone(&pulse)), pulse, reasons, watchdog }
}

#[test]
fn a_silent_rank_is_found_by_its_neighbour_and_named() {
    let reasons = ranks(3, |comm| {
        if comm.rank() == 1 {
            // A process that has died: no heartbeat and no collective. It is kept alive to stay silent.
            while comm.try_receive(equipoise_comm::messages::Tag::ClaimReply).is_ok() {
                std::thread::sleep(Duration::from_millis(5));
            }
            return None;
        }
        let rank = watched(comm, BOUNDS);
        let error = rank.comm.barrier().unwrap_err();
        assert!(error.message().contains("aborted with status 74"), "{error}");
        rank.reasons.try_recv().ok()
    });
    let reason = reasons[2].as_ref().unwrap();
    assert!(reason.contains("rank 1 was not heard") && reason.contains("waits in barrier"), "{reason}");
}

#[test]
fn a_slow_rank_is_waited_for() {
    let ended = ranks(4, |comm| {
        let slow = comm.rank() == 2;
        let rank = watched(comm, BOUNDS);
        let start = Instant::now();
        // Twice the bound in all, a tenth of it between beats; the others wait in a collective all the time.
        while slow && start.elapsed() < 2 * BOUNDS.stuck {
            std::thread::sleep(BOUNDS.stuck / 10);
            rank.pulse.beat();
        }
        rank.comm.barrier().unwrap();
        drop(rank.watchdog);
        rank.reasons.try_recv().ok()
    });
    assert_eq!(ended, [None, None, None, None]);
}

#[test]
fn a_stuck_rank_ends_the_step() {
    let reasons = ranks(4, |comm| {
        let stuck = comm.rank() == 3;
        let rank = watched(comm, BOUNDS);
        if stuck {
            // As in a read that never returns: heartbeats go on, work does not.
            return rank.reasons.recv_timeout(Duration::from_secs(20)).ok();
        }
        rank.comm.barrier().unwrap_err();
        rank.reasons.try_recv().ok()
    });
    // The others may hear of the abort before they find out themselves.
    let told: Vec<String> = reasons.into_iter().flatten().collect();
    assert!(told.iter().any(|reason| reason.contains("no rank has made progress")), "{told:?}");
}

#[test]
fn a_world_of_one_that_works_is_left_alone() {
    let pulse = Arc::new(Pulse::default());
    let report: Report = Box::new(|reason| panic!("{reason}"));
    let watchdog =
        Watchdog::start(Arc::new(LocalComm::default()), Arc::clone(&pulse), BOUNDS, report).unwrap();
    let start = Instant::now();
    while start.elapsed() < BOUNDS.stuck * 3 / 2 {
        pulse.beat();
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(watchdog);
}
