//! Races, pauses and kills of real processes: this test binary starts itself in another role.

#![allow(clippy::unwrap_used, clippy::expect_used)] // In the helpers; the tests themselves may.

use equipoise_base::ExitCode;
use equipoise_base::clock::SystemClock;
use equipoise_base::rng::Key;
use equipoise_rundir::lease::{Lease, LeaseRequest, Released};
use equipoise_rundir::vfs::Vfs as _;
use equipoise_rundir::{RealFs, commit_bytes};
use equipoise_testkit::figure;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const ROLE: &str = "RUNDIR_TEST_ROLE";
const DIR: &str = "RUNDIR_TEST_DIR";
/// Bytes of the file that is committed again and again.
const SIZE: usize = 20_000;

fn start(role: &str, dir: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "role", "--nocapture"]).env(ROLE, role).env(DIR, dir);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}

fn wait_for_line(output: &mut BufReader<ChildStdout>, line: &str) {
    let mut text = String::new();
    while !text.contains(line) {
        text.clear();
        assert_ne!(output.read_line(&mut text).unwrap(), 0, "the child ended before it said {line:?}");
    }
}

fn acquire(dir: &Path, period: u64) -> equipoise_base::Result<Lease> {
    let clock = SystemClock::default();
    let period = Duration::from_millis(period);
    Lease::acquire(Arc::new(RealFs), &LeaseRequest { period, ..LeaseRequest::new(dir.join("lock"), &clock) })
}

/// What the children do; nothing when run as a test.
#[test]
fn role() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let dir = PathBuf::from(std::env::var_os(DIR).unwrap());
    let code = match role.as_str() {
        "contend" => contend(&dir),
        "commit when told" => commit_when_told(&dir),
        _ => commit_forever(&dir),
    };
    std::process::exit(code.status());
}

fn contend(dir: &Path) -> ExitCode {
    match acquire(dir, 2000) {
        Ok(lease) => {
            std::io::stdin().lines().for_each(drop);
            lease.guard().check().map_or_else(|error| error.code(), |()| ExitCode::Done)
        }
        Err(error) => error.code(),
    }
}

fn commit_when_told(dir: &Path) -> ExitCode {
    let lease = acquire(dir, 100).unwrap();
    println!("held");
    std::io::stdin().lines().next();
    commit_bytes(&RealFs, &dir.join("a"), b"old owner", Some(lease.guard()))
        .map_or_else(|error| error.code(), |()| ExitCode::Done)
}

fn commit_forever(dir: &Path) -> ExitCode {
    let lease = acquire(dir, 1000).unwrap();
    println!("held");
    for fill in (0..=u8::MAX).cycle() {
        commit_bytes(&RealFs, &dir.join("a"), &vec![fill; SIZE], Some(lease.guard())).unwrap();
    }
    ExitCode::Bug
}

#[test]
fn of_several_processes_exactly_one_wins() {
    let dir = tempfile::tempdir().unwrap();
    let mut children: Vec<Child> = (0..5).map(|_| start("contend", dir.path())).collect();
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut lost = 0;
    while lost < 4 && Instant::now() < deadline {
        children.retain_mut(|child| match child.try_wait().unwrap() {
            Some(status) => {
                assert_eq!(status.code(), Some(ExitCode::Owned.status()));
                lost += 1;
                false
            }
            None => true,
        });
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!((lost, children.len()), (4, 1));
    let mut winner = children.remove(0);
    drop(winner.stdin.take());
    assert_eq!(winner.wait().unwrap().code(), Some(0));
}

/// F14 with a real pause.
#[test]
fn an_owner_paused_through_a_takeover_is_refused_when_it_wakes() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = start("commit when told", dir.path());
    wait_for_line(&mut BufReader::new(child.stdout.take().unwrap()), "held");
    let signal = |signal| {
        // SAFETY: the child was not waited for, so its id is its own.
        assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
    };
    signal(libc::SIGSTOP);
    let lease = acquire(dir.path(), 100).unwrap();
    assert_eq!(lease.takeover().unwrap().because, Released::Silent);
    let path = dir.path().join("a");
    commit_bytes(&RealFs, &path, b"new owner", Some(lease.guard())).unwrap();
    signal(libc::SIGCONT);
    child.stdin.take().unwrap().write_all(b"go on\n").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(ExitCode::Owned.status()));
    assert_eq!(RealFs.read(&path).unwrap(), b"new owner");
    lease.guard().check().unwrap();
    figure("F14", "commits of a process stopped through a takeover", 0);
}

#[test]
fn a_killed_process_leaves_whole_files_and_a_lease_that_is_taken_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut stream = Key::new(0, "kill").stream();
    for _ in 0..15 {
        let mut child = start("commit forever", dir.path());
        wait_for_line(&mut BufReader::new(child.stdout.take().unwrap()), "held");
        std::thread::sleep(Duration::from_micros(stream.below(15_000)));
        child.kill().unwrap();
        child.wait().unwrap();
        if let Ok(bytes) = RealFs.read(&dir.path().join("a")) {
            assert_eq!(bytes.len(), SIZE);
            assert!(bytes.iter().all(|&byte| byte == bytes[0]), "a mixture of two commits");
        }
    }
    let lease = acquire(dir.path(), 1000).unwrap();
    assert_eq!(lease.takeover().unwrap().because, Released::ProcessGone);
    equipoise_rundir::scratch::remove_abandoned(&RealFs, dir.path(), lease.guard()).unwrap();
    let names: Vec<String> = RealFs.list(dir.path()).unwrap().into_iter().map(|entry| entry.name).collect();
    assert_eq!(names, ["a", "lock"], "nothing unfinished is left");
}
