//! Training whose gradients travel over NCCL: two real MPI ranks, and the test kit's NCCL over host memory.
//!
//! What a GPU adds is checked by `benches/gpu/run.sh` on one.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "../support/mod.rs"]
mod support;

use equipoise_testkit::{Process, TempRun, nccl_double};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use support::{PATIENCE, assert_same, copy_without, finish, results, run};

/// Enough steps that a signal lands in the middle.
const SETS: [&str; 1] = ["classifiers.g.steps=1000"];
const STAGE: &str = "train.g";
const SURVIVORS_GONE: Duration = Duration::from_secs(30);

/// The library that stands in for NCCL, with its folder for communicators.
struct Double {
    folder: TempRun,
    library: PathBuf,
}

impl Double {
    fn new() -> Self {
        let folder = TempRun::default();
        let library = nccl_double::build(folder.path());
        Self { folder, library }
    }

    /// The tiny recipe on `ranks` ranks, gradients over this library.
    fn run(&self, path: &Path, ranks: usize) -> Command {
        let mut command = run(path, ranks, &SETS);
        command.env("EQUIPOISE_GRADIENTS", "nccl").env("EQUIPOISE_NCCL_LIB", &self.library);
        command.env("NCCL_DOUBLE_DIR", self.folder.path());
        command
    }
}

/// Exit code and output of a command that fails, with nothing left behind.
fn failure(command: Command) -> (Option<i32>, String) {
    let mut process = Process::spawn(command);
    let status = process.wait(PATIENCE);
    process.wait_for_no_orphans(SURVIVORS_GONE);
    (status.code(), process.output())
}

fn again(finished: &TempRun) -> TempRun {
    let downstream = [STAGE, "evaluate", "metrics", "report"];
    copy_without(finished, |name| downstream.contains(&name))
}

#[test]
fn stopped_and_resumed_or_broken_and_repeated_it_gives_the_same_weights() {
    let double = Double::new();
    let finished = TempRun::default();
    finish(double.run(&finished.join("run"), 2));
    let log = std::fs::read_to_string(finished.join(&format!("run/stages/{STAGE}/logs/1/rank-0000.log")));
    assert!(log.unwrap().contains("gradients over NCCL 2.28.9"), "the gradients did not travel over NCCL");

    let copy = again(&finished);
    let path = copy.join("run");
    let mut process = Process::spawn(double.run(&path, 2));
    process.wait_for_output(&format!("{STAGE}: attempt"), PATIENCE);
    std::thread::sleep(Duration::from_millis(700));
    process.signal(libc::SIGINT);
    assert_eq!(process.wait(PATIENCE).code(), Some(75), "{}", process.output());
    process.wait_for_no_orphans(SURVIVORS_GONE);

    // NCCL adds in an order of its own, so another number of ranks, or MPI, would give other bits.
    let (code, output) = failure(double.run(&path, 1));
    assert_eq!(code, Some(78), "{output}");
    assert!(
        output.contains("was NCCL 2.28.9 over 2 ranks on 1 nodes, is NCCL 2.28.9 over 1 ranks"),
        "{output}"
    );
    let (code, output) = failure(run(&path, 2, &SETS));
    assert_eq!(code, Some(78), "{output}");
    assert!(output.contains("machine.gradients was NCCL"), "{output}");

    finish(double.run(&path, 2));
    assert_same(&results(&finished.join("run")), &results(&path), "stopped and resumed");

    let broken = again(&finished);
    let path = broken.join("run");
    let mut command = double.run(&path, 2);
    command.env("NCCL_DOUBLE_FAIL", "1:20");
    let (code, output) = failure(command);
    assert_eq!(code, Some(74), "{output}");
    let outcome = std::fs::read_to_string(path.join(format!("stages/{STAGE}/outcome.json"))).unwrap();
    assert!(
        outcome.contains("asynchronous error") || outcome.contains("NCCL group was aborted"),
        "{outcome}"
    );
    finish(double.run(&path, 2));
    assert_same(&results(&finished.join("run")), &results(&path), "broken and repeated");
}

#[test]
fn a_missing_library_is_named() {
    let folder = TempRun::default();
    let mut command = run(&folder.join("run"), 2, &SETS);
    command.env("EQUIPOISE_GRADIENTS", "nccl").env("EQUIPOISE_NCCL_LIB", "/nonexistent/libnccl.so");
    let (code, output) = failure(command);
    assert_eq!(code, Some(78), "{output}");
    assert!(output.contains("/nonexistent/libnccl.so"), "{output}");
}
