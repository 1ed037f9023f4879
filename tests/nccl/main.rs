//! Training whose gradients travel over NCCL: two real MPI ranks, and the test kit's NCCL over host memory.
//!
//! What a GPU adds is checked by `benches/gpu/run.sh` on one.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "each suite uses its part of this file")]
mod support;

use equipoise_testkit::{Process, TempRun, nccl_double};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use support::{PATIENCE, equipoise, finish};

const STAGE: &str = "train.ce.s0";
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
        let mut command = run(path, ranks);
        command.env("EQUIPOISE_GRADIENTS", "nccl").env("EQUIPOISE_NCCL_LIB", &self.library);
        command.env("NCCL_DOUBLE_DIR", self.folder.path());
        command
    }
}

/// The training on `ranks` ranks, for which 400 steps are enough that a signal lands in the middle.
fn run(path: &Path, ranks: usize) -> Command {
    let ranks = format!("run.ranks={ranks}");
    let mut command = equipoise(&["run", "tests/recipes/train.toml", "--set", &ranks, "--run"]);
    command.arg(path).current_dir(env!("CARGO_MANIFEST_DIR"));
    command
}

fn weights(path: &Path) -> Vec<u8> {
    std::fs::read(path.join("stages").join(STAGE).join("model.safetensors")).unwrap()
}

/// Exit code and output of a command that fails, with nothing left behind.
fn failure(command: Command) -> (Option<i32>, String) {
    let mut process = Process::spawn(command);
    let status = process.wait(PATIENCE);
    process.wait_for_no_orphans(SURVIVORS_GONE);
    (status.code(), process.output())
}

#[test]
fn stopped_and_resumed_it_gives_the_same_weights() {
    let (double, whole, parts) = (Double::new(), TempRun::default(), TempRun::default());
    let (whole, path) = (whole.join("run"), parts.join("run"));
    finish(double.run(&whole, 2));
    let log = std::fs::read_to_string(whole.join(format!("stages/{STAGE}/logs/1/rank-0000.log"))).unwrap();
    assert!(log.contains("gradients over NCCL 2.28.9"), "the gradients did not travel over NCCL:\n{log}");
    // Two numbers can be added in one way only, so with two ranks NCCL's sums are those of MPI's tree.
    let plain = TempRun::default();
    finish(run(&plain.join("run"), 2));
    assert!(weights(&whole) == weights(&plain.join("run")), "NCCL summed something else");

    let mut process = Process::spawn(double.run(&path, 2));
    process.wait_for_output(&format!("{STAGE}: attempt"), PATIENCE);
    std::thread::sleep(Duration::from_millis(700));
    process.signal(libc::SIGINT);
    assert_eq!(process.wait(PATIENCE).code(), Some(75), "{}", process.output());
    process.wait_for_no_orphans(SURVIVORS_GONE);

    // NCCL adds in an order of its own, so another number of ranks, or MPI, would give other bits.
    let (code, output) = failure(double.run(&path, 1));
    assert_eq!(code, Some(78), "{output}");
    let differs = "was NCCL 2.28.9 over 2 ranks on 1 nodes, is NCCL 2.28.9 over 1 ranks";
    assert!(output.contains(differs), "{output}");
    let (code, output) = failure(run(&path, 2));
    assert_eq!(code, Some(78), "{output}");
    assert!(output.contains("machine.gradients was NCCL"), "{output}");

    finish(double.run(&path, 2));
    assert!(weights(&whole) == weights(&path), "other weights after a stop");
}

#[test]
fn an_asynchronous_error_ends_all_ranks_and_costs_no_bits() {
    let (double, whole, broken) = (Double::new(), TempRun::default(), TempRun::default());
    let (whole, path) = (whole.join("run"), broken.join("run"));
    let mut command = double.run(&path, 2);
    command.env("NCCL_DOUBLE_FAIL", "1:300");
    let (code, output) = failure(command);
    assert_eq!(code, Some(74), "{output}");
    let outcome = std::fs::read_to_string(path.join(format!("stages/{STAGE}/outcome.json"))).unwrap();
    assert!(outcome.contains("asynchronous error: remote process exited"), "{outcome}");
    finish(double.run(&path, 2));
    finish(double.run(&whole, 2));
    assert!(weights(&whole) == weights(&path), "other weights after a broken link");
}

#[test]
fn a_missing_library_is_named() {
    let folder = TempRun::default();
    let mut command = run(&folder.join("run"), 2);
    command.env("EQUIPOISE_GRADIENTS", "nccl").env("EQUIPOISE_NCCL_LIB", "/nonexistent/libnccl.so");
    let (code, output) = failure(command);
    assert_eq!(code, Some(78), "{output}");
    assert!(output.contains("/nonexistent/libnccl.so"), "{output}");
}
