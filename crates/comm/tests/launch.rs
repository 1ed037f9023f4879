//! The launcher with real processes and the real mpirun: stops, aborts, death, nothing left behind.
//!
//! The launcher under test is this binary again, as the test `launcher`, so that it can be signalled and killed; its
//! ranks are this binary as the test `rank`.

#![allow(clippy::unwrap_used)]

use equipoise_comm::launch::{Launch, Launcher, Output};
use equipoise_comm::{StopFlag, environment, parent};
use equipoise_testkit::Process;
use std::ffi::OsString;
use std::process::Command;
use std::time::Duration;

const BOUND: Duration = Duration::from_secs(20);

/// How a rank behaves. Unset in a normal test run, where `rank` and `launcher` then pass at once.
const BEHAVIOUR: &str = "LAUNCH_TEST_BEHAVIOUR";
const RANKS: &str = "LAUNCH_TEST_RANKS";

/// Arguments that make this binary run one of its tests.
fn only(test: &str) -> Vec<OsString> {
    ["--exact", test, "--nocapture", "--test-threads=1"].map(Into::into).into()
}

/// Starts a launcher of ranks with this behaviour.
fn start(ranks: usize, behaviour: &str) -> Process {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(only("launcher")).env(BEHAVIOUR, behaviour).env(RANKS, ranks.to_string());
    Process::spawn(command)
}

fn wait_for_ranks(process: &mut Process, ranks: usize) {
    for rank in 0..ranks {
        process.wait_for_output(&format!("rank {rank} is ready, 3 threads"), BOUND);
    }
}

#[test]
fn launcher() {
    let Ok(ranks) = std::env::var(RANKS).map(|text| text.parse().unwrap()) else { return };
    let launch = Launch {
        program: std::env::current_exe().unwrap(),
        args: only("rank"),
        ranks,
        mpirun: (ranks > 1).then(|| "mpirun".into()),
        environment: environment::pinned(3, None),
        output: Output::Inherit,
    };
    let ended = Launcher::new().unwrap().run(launch).unwrap();
    println!("ended: {ended:?}");
}

#[test]
fn rank() {
    let Ok(behaviour) = std::env::var(BEHAVIOUR) else { return };
    let stop = StopFlag::default();
    stop.on_signals().unwrap();
    parent::die_with_parent().unwrap();
    let rank = std::env::var("OMPI_COMM_WORLD_RANK").unwrap_or("0".into());
    println!("rank {rank} is ready, {} threads", std::env::var("OMP_NUM_THREADS").unwrap());
    if behaviour == "quick" {
        std::process::exit(3);
    }
    while behaviour == "deaf" || !stop.is_raised() {
        std::thread::sleep(Duration::from_millis(5));
    }
    // A commit that takes longer than the 2 s that mpirun leaves its ranks after TERM.
    std::thread::sleep(Duration::from_secs(3));
    println!("rank {rank} has committed");
    std::process::exit(75);
}

#[test]
fn the_status_of_a_single_rank_comes_back() {
    let mut process = start(1, "quick");
    process.wait_for_output("ended: Ended { status: Some(3), signal: None, asked: Nothing }", BOUND);
    process.wait_for_no_orphans(BOUND);
}

#[test]
fn a_stop_lets_a_slow_commit_finish() {
    for (ranks, signal) in [(1, libc::SIGTERM), (2, libc::SIGINT)] {
        let mut process = start(ranks, "obedient");
        wait_for_ranks(&mut process, ranks);
        process.signal(signal);
        // Slurm repeats TERM: that is not a second request.
        process.signal(libc::SIGTERM);
        process.wait_for_output("asked: Stop }", BOUND);
        let output = process.output();
        assert_eq!(output.matches("has committed").count(), ranks, "{output}");
        assert!(output.contains("status: Some(75)"), "{output}");
        process.wait_for_no_orphans(BOUND);
    }
}

#[test]
fn a_second_interrupt_kills_ranks_that_do_not_listen() {
    let mut process = start(2, "deaf");
    wait_for_ranks(&mut process, 2);
    process.signal(libc::SIGINT);
    std::thread::sleep(Duration::from_millis(300));
    assert!(process.try_wait().is_none());
    process.signal(libc::SIGINT);
    process.wait_for_output("signal: Some(9), asked: Abort }", BOUND);
    process.wait_for_no_orphans(BOUND);
}

#[test]
fn a_killed_launcher_leaves_no_orphans() {
    for ranks in [1, 4] {
        let mut process = start(ranks, "deaf");
        wait_for_ranks(&mut process, ranks);
        assert!(process.live().len() > ranks);
        process.signal(libc::SIGKILL);
        process.wait_for_no_orphans(Duration::from_secs(30));
    }
}

#[test]
fn several_ranks_without_mpirun_are_refused() {
    let launch = |ranks, mpirun: Option<&str>, program: &str| Launch {
        program: program.into(),
        args: vec![],
        ranks,
        mpirun: mpirun.map(Into::into),
        environment: vec![],
        output: Output::Inherit,
    };
    let cases = [
        (launch(2, None, "/bin/true"), "2 ranks need an mpirun"),
        (launch(2, Some("/nonexistent/mpirun"), "/bin/true"), "/nonexistent/mpirun"),
        (launch(1, None, "/nonexistent/train"), "/nonexistent/train"),
    ];
    let mut launcher = Launcher::new().unwrap();
    for (launch, expected) in cases {
        let error = launcher.run(launch).unwrap_err();
        assert_eq!(error.code(), equipoise_base::ExitCode::Config);
        assert!(error.message().contains(expected), "{error}");
    }
}
