//! NCCL's part of the product at 1 to 4 processes without a GPU, against the test kit's library over host memory.
//!
//! The ranks are this binary again, as the test `rank`. Buffers are host memory here and device memory in earnest.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use equipoise_base::ExitCode;
use equipoise_comm_nccl::{Monitor, NcclGroup, Stream, UniqueId};
use equipoise_testkit::{Process, TempRun, nccl_double, wait_until};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

const BOUND: Duration = Duration::from_secs(10);
const NONCE: u64 = 42;

/// What the ranks do. Unset in a normal test run, where `rank` then passes at once.
const SCENE: &str = "NCCL_TEST_SCENE";
const RANK: &str = "NCCL_TEST_RANK";
const SIZE: &str = "NCCL_TEST_SIZE";

/// Starts `size` ranks that share a folder holding the library; every one has to succeed.
fn play(scene: &str, size: usize, variables: &[(&str, &str)]) {
    let folder = TempRun::default();
    let library = nccl_double::build(folder.path());
    let start = |rank: usize| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "rank", "--nocapture", "--test-threads=1"]);
        command.env("NCCL_DOUBLE_DIR", folder.path()).env("EQUIPOISE_NCCL_LIB", &library);
        command.env(SCENE, scene).env(RANK, rank.to_string()).env(SIZE, size.to_string());
        command.envs(variables.iter().copied());
        Process::spawn(command)
    };
    let ranks: Vec<Process> = (0..size).map(start).collect();
    for (rank, mut process) in ranks.into_iter().enumerate() {
        let status = process.wait(BOUND);
        assert!(status.success(), "{scene}: rank {rank} of {size}: {status}\n{}", process.output());
    }
}

#[test]
fn rank() {
    let Ok(scene) = std::env::var(SCENE) else { return };
    let number = |name: &str| std::env::var(name).unwrap().parse::<usize>().unwrap();
    let (rank, size) = (number(RANK), number(SIZE));
    match scene.as_str() {
        "operations" => {
            let group = join(rank, size);
            operations(&group, rank, size);
            group.close().unwrap();
        }
        "mismatch" => mismatch(&join(rank, size), rank),
        "broken" => broken(join(rank, size)),
        "hanging" => hanging(join(rank, size)),
        "stale" => stale(rank, size),
        "missing" => missing(),
        "incomplete" => incomplete(),
        other => panic!("no scene {other}"),
    }
}

/// Carries the id as MPI would: rank 0 makes it, the others get its bytes.
fn share_id(rank: usize) -> UniqueId {
    let folder = std::env::var("NCCL_DOUBLE_DIR").unwrap();
    let file = Path::new(&folder).join("id");
    if rank == 0 {
        let id = UniqueId::new(NONCE).unwrap();
        std::fs::write(file.with_extension("tmp"), id.to_bytes()).unwrap();
        std::fs::rename(file.with_extension("tmp"), &file).unwrap();
        return id;
    }
    wait_until("id", BOUND, || file.exists());
    UniqueId::from_bytes(&std::fs::read(file).unwrap(), NONCE).unwrap()
}

fn join(rank: usize, size: usize) -> NcclGroup {
    NcclGroup::new(rank, size, &share_id(rank), rank).unwrap()
}

fn all_reduce(group: &NcclGroup, values: &mut [f32]) -> equipoise_base::Result<()> {
    // SAFETY: the double has finished when it returns.
    unsafe { group.all_reduce_sum_f32(values.as_mut_ptr(), values.len(), Stream::default()) }
}

fn operations(group: &NcclGroup, rank: usize, size: usize) {
    assert_eq!((group.rank(), group.size()), (rank, size));
    let total: usize = (1..=size).sum();
    for len in [0, 1, 1000, 200_000] {
        let mut values: Vec<f32> = (0..len).map(|i| ((rank + 1) * (i % 7)) as f32).collect();
        all_reduce(group, &mut values).unwrap();
        assert!(values.iter().enumerate().all(|(i, &value)| value == (total * (i % 7)) as f32));
    }
    let send: Vec<f32> = (0..3 * size).map(|i| i as f32).collect();
    let mut own = [0.0; 3];
    // SAFETY: as in `all_reduce`.
    unsafe { group.reduce_scatter_sum_f32(send.as_ptr(), own.as_mut_ptr(), 3, Stream::default()) }.unwrap();
    assert_eq!(own, [0, 1, 2].map(|i| (size * (3 * rank + i)) as f32));
    let mut gathered = vec![0.0; 3 * size];
    // SAFETY: as in `all_reduce`.
    unsafe { group.all_gather_f32(own.as_ptr(), gathered.as_mut_ptr(), 3, Stream::default()) }.unwrap();
    assert!(gathered.iter().enumerate().all(|(i, &value)| value == (size * i) as f32));
    group.check().unwrap();
}

fn mismatch(group: &NcclGroup, rank: usize) {
    let error = all_reduce(group, &mut vec![1.0; 4 + rank]).unwrap_err();
    assert!(error.message().contains(&format!("rank {rank}: ncclAllReduce: invalid usage")), "{error}");
}

/// A link that goes down is not an error of any call: only the monitor sees it.
fn broken(group: NcclGroup) {
    let group = Arc::new(group);
    let (report, errors) = mpsc::channel();
    let monitor = Monitor::start(Arc::clone(&group), move |error| report.send(error).unwrap()).unwrap();
    for _ in 0..4 {
        if all_reduce(&group, &mut [1.0; 8]).is_err() {
            break;
        }
    }
    let error = errors.recv_timeout(BOUND).unwrap();
    assert_eq!(error.code(), ExitCode::Io);
    // The rank that looks second may find that the first has aborted already.
    assert!(error.message().contains("asynchronous error: remote process exited"), "{error}");
    wait_until("abort", BOUND, || group.is_aborted());
    assert!(all_reduce(&group, &mut [1.0]).unwrap_err().message().contains("was aborted"));
    drop(monitor);
    let group = Arc::into_inner(group).unwrap();
    assert!(group.close().unwrap_err().message().contains("was aborted"));
}

/// A peer that never comes: the call returns only because another thread aborts.
fn hanging(group: NcclGroup) {
    let group = Arc::new(group);
    let aborter = Arc::clone(&group);
    let start = Instant::now();
    let thread = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        aborter.abort();
    });
    // Its own result does not matter: NCCL may call it a success.
    let _ = all_reduce(&group, &mut [1.0; 8]);
    assert!(start.elapsed() > Duration::from_millis(150));
    thread.join().unwrap();
    assert!(all_reduce(&group, &mut [1.0; 8]).is_err() && group.check().is_err());
}

fn stale(rank: usize, size: usize) {
    let id = share_id(rank);
    let group = NcclGroup::new(rank, size, &id, rank).unwrap();
    let error = UniqueId::from_bytes(&id.to_bytes(), NONCE + 1).err().unwrap();
    assert_eq!(error.code(), ExitCode::Config);
    assert!(error.message().contains("stale NCCL id"), "{error}");
    // An id serves once; NCCL itself refuses it then.
    let error = NcclGroup::new(rank, size, &id, rank).err().unwrap();
    assert!(error.message().contains(&format!("rank {rank}: ncclCommInitRank")), "{error}");
    assert!(NcclGroup::new(size, size, &id, rank).is_err());
    all_reduce(&group, &mut [1.0]).unwrap();
}

fn missing() {
    assert!(!equipoise_comm_nccl::available());
    let error = UniqueId::new(NONCE).err().unwrap();
    assert_eq!(error.code(), ExitCode::Config);
    let message = error.message();
    assert!(
        message.contains("NCCL cannot be loaded") && message.contains("/nonexistent/libnccl.so"),
        "{error}"
    );
}

fn incomplete() {
    let error = equipoise_comm_nccl::version().unwrap_err();
    assert!(error.message().contains("EQUIPOISE_NCCL_LIB=libm.so.6: it lacks ncclGetVersion"), "{error}");
}

#[test]
fn operations_are_right_on_every_rank() {
    for size in [1, 2, 4] {
        play("operations", size, &[]);
    }
}

#[test]
fn different_operations_are_an_error() {
    play("mismatch", 2, &[]);
}

#[test]
fn an_asynchronous_error_ends_all_ranks() {
    play("broken", 3, &[("NCCL_DOUBLE_FAIL", "1:2")]);
}

#[test]
fn an_abort_releases_ranks_that_wait() {
    play("hanging", 3, &[("NCCL_DOUBLE_HANG", "2:0")]);
}

#[test]
fn a_stale_id_is_refused() {
    play("stale", 2, &[]);
}

#[test]
fn a_missing_or_foreign_library_is_a_configuration_error() {
    play("missing", 1, &[("EQUIPOISE_NCCL_LIB", "/nonexistent/libnccl.so")]);
    play("incomplete", 1, &[("EQUIPOISE_NCCL_LIB", "libm.so.6")]);
}
