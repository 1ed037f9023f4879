//! Every collective, message and way to end, under the real mpirun.
//!
//! The ranks are this binary again, as the test `rank`; without mpirun these tests fail.

#![allow(clippy::unwrap_used)]

use equipoise_comm::agree::{Agreed, Verdict, agree};
use equipoise_comm::messages::{Messages, Tag};
use equipoise_comm::server::ServedClaims;
use equipoise_comm::watchdog::{Bounds, Pulse, Watchdog, Watched};
use equipoise_comm::{Claim, Claims as _, Comm, StopFlag, environment, guard, parent};
use equipoise_comm_mpi::MpiComm;
use equipoise_testkit::Process;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

const BOUND: Duration = Duration::from_secs(30);

/// What the ranks do. Unset in a normal test run, where `rank` then passes at once.
const SCENE: &str = "MPI_TEST_SCENE";

fn mpirun(ranks: usize, scene: &str, extra: &[&str]) -> Process {
    let mut command = Command::new("mpirun");
    command.args(["-n", &ranks.to_string(), "--oversubscribe", "--bind-to", "none"]).args(extra);
    command.arg(std::env::current_exe().unwrap()).args([
        "--exact",
        "rank",
        "--nocapture",
        "--test-threads=1",
    ]);
    command.envs(environment::pinned(1, None)).env(SCENE, scene);
    Process::spawn(command)
}

#[test]
fn rank() {
    let Ok(scene) = std::env::var(SCENE) else { return };
    parent::die_with_parent().unwrap();
    let comm = match MpiComm::init() {
        Ok(comm) => comm,
        Err(error) => {
            eprintln!("refused: {error}");
            // As MPI is up, a plain exit would look like a crash to mpirun.
            equipoise_comm::local::exit_now(error.code().status())
        }
    };
    let comm = Arc::new(if scene == "pieces" { comm.with_chunk(16) } else { comm });
    match scene.as_str() {
        "collectives" | "pieces" => collectives(&comm),
        "claims" => claims(&comm),
        "stop" => stop(&comm),
        "panic" => panic_on_one(&comm),
        "abort" if comm.rank() == 1 => comm.abort(70),
        "lost" => lost(&comm),
        _ => comm.barrier().unwrap(),
    }
    println!("rank {} of {} has finished", comm.rank(), comm.size());
    comm.finish().unwrap();
    assert!(comm.finish().is_err());
    if scene == "late" {
        comm.abort(75);
    }
    std::process::exit(0);
}

fn collectives(comm: &MpiComm) {
    let (rank, size) = (comm.rank(), comm.size());
    comm.barrier().unwrap();
    for root in 0..size {
        let mut bytes = vec![rank as u8; 1 + rank];
        comm.broadcast(&mut bytes, root).unwrap();
        assert_eq!(bytes, vec![root as u8; 1 + root]);
    }
    let mut many: Vec<i64> = (0..100).map(|i| i * (rank as i64 + 1)).collect();
    comm.all_reduce_max(&mut many).unwrap();
    assert!(many.iter().enumerate().all(|(i, &value)| value == (i * size) as i64));
    let mut empty = vec![1; rank];
    comm.broadcast(&mut empty, 0).unwrap();
    assert!(empty.is_empty());
    let gathered = comm.all_gather(&vec![rank as u8; 3 * rank]).unwrap();
    assert!(gathered.iter().enumerate().all(|(r, bytes)| *bytes == vec![r as u8; 3 * r]), "{gathered:?}");
    for lone in 0..size {
        let own: &[u8] = if rank == lone { &[5] } else { &[] };
        assert_eq!(comm.all_gather(own).unwrap().concat(), [5]);
    }
    assert_eq!(comm.all_gather(&[]).unwrap(), vec![Vec::<u8>::new(); size]);
    let mut values = [rank as i64, -(rank as i64), i64::MIN + rank as i64];
    comm.all_reduce_max(&mut values).unwrap();
    assert_eq!(values, [size as i64 - 1, 0, i64::MIN + size as i64 - 1]);
    // Recursive doubling where there is a partner, as the gradient tree does; more than any eager limit.
    let peer = rank ^ 1;
    if peer < size {
        let own: Vec<u8> = (0..300_000).map(|i| (i + rank) as u8).collect();
        let mut theirs = vec![0; own.len()];
        comm.exchange(peer, &own, &mut theirs).unwrap();
        assert!(theirs.iter().enumerate().all(|(i, &byte)| byte == (i + peer) as u8));
        assert!(comm.exchange(peer, &[1], &mut [0; 2]).is_err());
    }
    let own = if rank == size - 1 { Verdict::Stop } else { Verdict::Go };
    assert_eq!(agree(comm, own).unwrap(), Agreed { verdict: Verdict::Stop, rank: size - 1 });
    assert!(comm.broadcast(&mut vec![], size).is_err());
    comm.send(rank, Tag::ClaimReply, b"self").unwrap();
    comm.send((rank + 1) % size, Tag::ClaimRequest, &[rank as u8]).unwrap();
    let receive = |tag| loop {
        if let Some(message) = comm.try_receive(tag).unwrap() {
            break message;
        }
    };
    let before = (rank + size - 1) % size;
    assert_eq!(receive(Tag::ClaimRequest), (before, vec![before as u8]));
    assert_eq!(receive(Tag::ClaimReply), (rank, b"self".to_vec()));
}

/// Claims with the watchdog on and the main threads in collectives at the same time.
fn claims(comm: &Arc<MpiComm>) {
    let messages: Arc<dyn Messages> = Arc::clone(comm) as _;
    let pulse = Arc::new(Pulse::default());
    let bounds = Bounds { period: Duration::from_millis(5), ..Bounds::default() };
    let watchdog =
        Watchdog::start(Arc::clone(&messages), Arc::clone(&pulse), bounds, Box::new(|why| panic!("{why}")))
            .unwrap();
    let watched: Arc<dyn Messages> = Arc::new(Watched::new(messages, pulse));
    for round in 0..3 {
        let units = (0..40).collect();
        let claims = ServedClaims::start(Arc::clone(&watched), units, StopFlag::default()).unwrap();
        let mut done = vec![];
        while let Claim::Unit(unit) = claims.next().unwrap() {
            std::thread::sleep(Duration::from_micros(200));
            claims.finished(unit).unwrap();
            done.push(unit as u8);
        }
        claims.close().unwrap();
        let mut all = watched.all_gather(&done).unwrap().concat();
        all.sort_unstable();
        assert!(all.iter().copied().eq(0..40), "round {round}: {all:?}");
    }
    watched.barrier().unwrap();
    drop(watchdog);
}

/// One rank sees the stop; everybody leaves in the middle of a unit.
fn stop(comm: &Arc<MpiComm>) {
    let flag = StopFlag::default();
    let claims = ServedClaims::start(Arc::clone(comm) as _, (0..1000).collect(), flag.clone()).unwrap();
    assert!(matches!(claims.next().unwrap(), Claim::Unit(_)));
    comm.barrier().unwrap();
    if comm.rank() == comm.size() - 1 {
        flag.raise();
    }
    while !claims.should_stop().unwrap() {
        std::thread::sleep(Duration::from_millis(1));
    }
    claims.close().unwrap();
}

fn panic_on_one(comm: &Arc<MpiComm>) {
    let rank = comm.rank();
    guard::abort_on_panic(Arc::clone(comm) as _, move |why| println!("reported by {rank}: {why}"));
    if rank == 1 {
        panic!("injected");
    }
    comm.barrier().unwrap();
}

/// Rank 1 freezes as a lost node does: no heartbeat, but mpirun sees a live process.
fn lost(comm: &Arc<MpiComm>) {
    let messages: Arc<dyn Messages> = Arc::clone(comm) as _;
    let bounds =
        Bounds { period: Duration::from_millis(20), lost: Duration::from_millis(1500), ..Bounds::default() };
    let report = Box::new(|why: &str| println!("reported: {why}"));
    let _watchdog = Watchdog::start(messages, Arc::default(), bounds, report).unwrap();
    comm.barrier().unwrap();
    if comm.rank() == 1 {
        // SAFETY: stops this process.
        unsafe { libc::raise(libc::SIGSTOP) };
    }
    comm.barrier().unwrap();
    comm.barrier().unwrap();
}

#[test]
fn collectives_claims_and_stops_at_every_size() {
    for ranks in [1, 2, 3, 4] {
        for scene in ["collectives", "pieces", "claims", "stop"] {
            let mut process = mpirun(ranks, scene, &[]);
            let status = process.wait(BOUND);
            let output = process.output();
            assert!(status.success(), "{scene} at {ranks}: {status}\n{output}");
            assert_eq!(output.matches(&format!("of {ranks} has finished")).count(), ranks, "{output}");
            process.wait_for_no_orphans(BOUND);
        }
    }
}

#[test]
fn a_panic_ends_all_ranks_and_is_reported_first() {
    let mut process = mpirun(3, "panic", &[]);
    let status = process.wait(BOUND);
    let output = process.output();
    assert_eq!(status.code(), Some(101), "{output}");
    assert!(output.contains("reported by 1: rank 1: panicked at") && output.contains("injected"), "{output}");
    assert!(!output.contains("has finished"), "{output}");
    process.wait_for_no_orphans(BOUND);
}

#[test]
fn an_abort_ends_all_ranks_with_its_status() {
    let mut process = mpirun(3, "abort", &[]);
    assert_eq!(process.wait(BOUND).code(), Some(70), "{}", process.output());
    process.wait_for_no_orphans(BOUND);
}

#[test]
fn an_abort_after_the_end_is_a_plain_exit() {
    let mut process = mpirun(2, "late", &[]);
    assert_eq!(process.wait(BOUND).code(), Some(75), "{}", process.output());
    assert!(!process.output().contains("MPI_ABORT"), "{}", process.output());
}

#[test]
fn a_frozen_rank_is_found_by_the_watchdog() {
    let mut process = mpirun(3, "lost", &[]);
    assert_eq!(process.wait(BOUND).code(), Some(74), "{}", process.output());
    assert!(process.output().contains("reported: rank 1 was not heard"), "{}", process.output());
    process.wait_for_no_orphans(BOUND);
}

#[test]
fn worlds_of_one_are_refused() {
    // The world of one that a rank sees when it was built with another MPI than its launcher's.
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "rank", "--nocapture", "--test-threads=1"]);
    command.env(SCENE, "collectives").env("SLURM_STEP_NUM_TASKS", "4").envs(environment::pinned(1, None));
    let mut process = Process::spawn(command);
    assert_eq!(process.wait(BOUND).code(), Some(78), "{}", process.output());
    assert!(process.output().contains("4 worlds of one"), "{}", process.output());
}

#[test]
fn a_killed_mpirun_takes_its_ranks_along() {
    let mut process = mpirun(4, "lost", &[]);
    equipoise_testkit::wait_until("four ranks", BOUND, || {
        process.live().iter().filter(|found| found.command.contains("--exact rank")).count() >= 5
    });
    process.signal(libc::SIGKILL);
    process.wait_for_no_orphans(Duration::from_secs(30));
}
