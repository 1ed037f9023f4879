//! F12 to F15: stale locks, races, fencing and wrong clocks, without waiting for real time.

#![allow(clippy::unwrap_used, clippy::expect_used)] // In the helpers; the tests themselves may.

mod common;

use common::{checkpoints, elsewhere, kill, shared, snapshot, tree};
use equipoise_base::clock::{Clock, FakeClock};
use equipoise_base::{ExitCode, Result};
use equipoise_rundir::fault::FaultFs;
use equipoise_rundir::lease::{Lease, LeaseGuard, LeaseRequest, Owner, Released, recorded_owner};
use equipoise_rundir::vfs::Vfs as _;
use equipoise_rundir::{Checkpoints, Journal, Process, RealFs, commit_bytes};
use equipoise_testkit::figure;
use serde_json::json;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const LOCK: &str = "/run/lock";
const PERIOD: Duration = Duration::from_secs(15);

/// A clock during whose sleep something happens, such as another machine's heartbeat.
struct Meanwhile<F: Fn() + Send + Sync>(FakeClock, F);

impl<F: Fn() + Send + Sync> Clock for Meanwhile<F> {
    fn monotonic(&self) -> Duration {
        self.0.monotonic()
    }

    fn wall(&self) -> f64 {
        self.0.wall()
    }

    fn sleep(&self, duration: Duration) {
        self.0.sleep(duration);
        (self.1)();
    }
}

fn request<'a>(job: &str, clock: &'a dyn Clock) -> LeaseRequest<'a> {
    LeaseRequest {
        job: Some(job.into()),
        process: elsewhere(job),
        background: false,
        ..LeaseRequest::new(LOCK, clock)
    }
}

fn take(fs: &FaultFs, request: &LeaseRequest) -> Result<Lease> {
    Lease::acquire(shared(fs), request)
}

fn because(lease: &Lease) -> Option<Released> {
    lease.takeover().map(|takeover| takeover.because)
}

/// F12: an owner that died on another host is replaced after two periods, not before.
#[test]
fn a_silent_owner_on_another_host_is_replaced_after_two_periods() {
    let (fs, clock) = (FaultFs::new(), FakeClock::default());
    kill(take(&fs, &request("1", &clock)).unwrap());
    let lease = take(&fs, &request("2", &clock)).unwrap();
    assert_eq!(because(&lease), Some(Released::Silent));
    assert_eq!(clock.monotonic(), PERIOD * 2);
    let from = lease.takeover().unwrap().from.clone().unwrap();
    assert_eq!((from.job.as_deref(), from.attempt, lease.attempt()), (Some("1"), 1, 2));
    figure("F12", "heartbeats until a silent owner is replaced", clock.monotonic().div_duration_f64(PERIOD));
}

#[test]
fn a_dead_process_on_this_host_is_replaced_at_once() {
    let (fs, clock) = (FaultFs::new(), FakeClock::default());
    let me = Process::current();
    let dead = Process { start: me.start + 1, ..me.clone() };
    kill(take(&fs, &LeaseRequest { process: dead, ..request("1", &clock) }).unwrap());
    let lease = take(&fs, &LeaseRequest { process: me, ..request("2", &clock) }).unwrap();
    assert_eq!((because(&lease), clock.monotonic()), (Some(Released::ProcessGone), Duration::ZERO));
}

#[test]
fn slurm_decides_about_other_jobs_at_once() {
    let (fs, clock) = (FaultFs::new(), FakeClock::default());
    kill(take(&fs, &request("1", &clock)).unwrap());
    let known = |owner: &Owner| (owner.job.as_deref() == Some("1")).then_some(true);
    let error =
        take(&fs, &LeaseRequest { is_job_known: Some(&known), ..request("2", &clock) }).err().unwrap();
    assert_eq!(error.code(), ExitCode::Owned);
    let text = error.to_string();
    assert!(
        text.contains("job 1") && text.contains("host 1, process 7") && text.contains("scancel 1"),
        "{text}"
    );
    let gone = |_: &Owner| Some(false);
    let lease = take(&fs, &LeaseRequest { is_job_known: Some(&gone), ..request("2", &clock) }).unwrap();
    assert_eq!((because(&lease), clock.monotonic()), (Some(Released::JobGone), Duration::ZERO));
}

/// Slurm starts a job again only once it has given up the start before. If that still runs, on a node that Slurm cannot
/// reach, it is fenced.
#[test]
fn a_restarted_job_takes_over_from_its_earlier_start_at_once() {
    let (fs, clock) = (FaultFs::new(), FakeClock::default());
    let earlier = take(&fs, &request("1", &clock)).unwrap();
    let asked = |_: &Owner| panic!("Slurm was asked about this very job");
    let request = LeaseRequest {
        restart: 1,
        is_job_known: Some(&asked),
        process: elsewhere("n9"),
        ..request("1", &clock)
    };
    let lease = take(&fs, &request).unwrap();
    assert_eq!((because(&lease), clock.monotonic()), (Some(Released::Restarted), Duration::ZERO));
    assert_eq!(earlier.guard().check().unwrap_err().code(), ExitCode::Owned);
}

/// Another step of the same start of the job: only heartbeats tell whether it still runs.
#[test]
fn the_same_start_of_a_job_waits_for_heartbeats() {
    let (fs, clock) = (FaultFs::new(), FakeClock::default());
    kill(take(&fs, &request("1", &clock)).unwrap());
    let lease = take(&fs, &LeaseRequest { process: elsewhere("n9"), ..request("1", &clock) }).unwrap();
    assert_eq!((because(&lease), clock.monotonic()), (Some(Released::Silent), PERIOD * 2));
}

#[test]
fn a_released_lease_is_free_at_once_and_leaves_no_audit_line() {
    let (fs, clock) = (FaultFs::new(), FakeClock::default());
    for attempt in 1..=3 {
        let lease = take(&fs, &request("1", &clock)).unwrap();
        assert_eq!((lease.attempt(), because(&lease)), (attempt, None));
        assert!(recorded_owner(&fs, Path::new(LOCK)).unwrap().is_some());
        drop(lease);
        assert!(recorded_owner(&fs, Path::new(LOCK)).unwrap().is_none());
    }
    assert_eq!(clock.monotonic(), Duration::ZERO);
    assert_eq!(fs.list(Path::new(LOCK)).unwrap().len(), 1, "earlier generations are removed");
}

#[test]
fn a_lease_handed_to_a_queued_job_waits_for_it() {
    let (fs, clock) = (FaultFs::new(), FakeClock::default());
    take(&fs, &request("", &clock)).unwrap().hand_over("9").unwrap();
    for answer in [Some(true), None] {
        let slurm = |_: &Owner| answer;
        let other = LeaseRequest { is_job_known: Some(&slurm), ..request("2", &clock) };
        assert_eq!(take(&fs, &other).err().unwrap().code(), ExitCode::Owned, "{answer:?}");
    }
    let lease = take(&fs, &request("9", &clock)).unwrap();
    assert_eq!((lease.attempt(), because(&lease), clock.monotonic()), (2, None, Duration::ZERO));
    lease.hand_over("9").unwrap();
    let gone = |_: &Owner| Some(false);
    let lease = take(&fs, &LeaseRequest { is_job_known: Some(&gone), ..request("2", &clock) }).unwrap();
    assert_eq!(because(&lease), Some(Released::JobGone), "cancelled while it was queued");
}

/// The process that handed it over is gone by design; its host must not take that for a death.
#[test]
fn a_lease_handed_over_on_this_host_is_not_stolen_from_a_queue() {
    let (fs, clock) = (FaultFs::new(), FakeClock::default());
    let me = Process::current();
    let submit = Process { start: me.start + 1, ..me.clone() };
    take(&fs, &LeaseRequest { process: submit, ..request("", &clock) }).unwrap().hand_over("9").unwrap();
    let silent = |_: &Owner| None;
    let other = LeaseRequest { process: me, is_job_known: Some(&silent), ..request("2", &clock) };
    assert_eq!(take(&fs, &other).err().unwrap().code(), ExitCode::Owned);
}

#[test]
fn a_damaged_record_is_judged_by_its_heartbeats() {
    for record in ["owner.json", "beat"] {
        let (fs, clock) = (FaultFs::new(), FakeClock::default());
        kill(take(&fs, &request("1", &clock)).unwrap());
        let dir = Path::new("/run/lock/000001");
        let names = fs.list(dir).unwrap();
        let name = &names.iter().find(|entry| entry.name.starts_with(record)).unwrap().name;
        common::damage(&fs, dir.join(name).to_str().unwrap());
        let lease = take(&fs, &request("2", &clock)).unwrap();
        assert_eq!((because(&lease), clock.monotonic()), (Some(Released::Silent), PERIOD * 2), "{record}");
    }
}

/// F13 and F15: whatever the wall clocks of either host do, a beating owner stays.
#[test]
fn a_live_owner_stays_however_wrong_the_clocks_are() {
    for skew in [0.0, 3600.0, -3600.0, 86_400.0, -86_400.0, 2_147_483_648.0, -1e12] {
        let fs = FaultFs::new();
        let owner = take(&fs, &request("1", &FakeClock::default())).unwrap();
        let before = tree(&fs, Path::new("/run"));
        let clock = Meanwhile(FakeClock::default(), || {});
        clock.0.set_wall(1.7e9 + skew);
        let beating = Meanwhile(FakeClock::default(), || {
            clock.0.set_wall(-skew);
            owner.beat().unwrap();
        });
        let error = take(&fs, &request("2", &beating)).err().unwrap();
        assert_eq!(error.code(), ExitCode::Owned, "skew {skew}");
        assert!(beating.monotonic() <= PERIOD, "seen within a period");
        let mut after = tree(&fs, Path::new("/run"));
        after.retain(|path, _| !path.to_string_lossy().contains("beat-"));
        assert!(
            after.iter().all(|(path, bytes)| before.get(path) == Some(bytes)),
            "nothing else was touched"
        );
        owner.guard().check().unwrap();
    }
    figure("F15", "wrong clocks, none of which stole a lock", 7);
}

/// A contender that was itself asleep has not watched for two periods just because its clock says so.
#[test]
fn a_contender_that_slept_does_not_count_its_sleep_as_silence() {
    let fs = FaultFs::new();
    let owner = take(&fs, &request("1", &FakeClock::default())).unwrap();
    let looks = Mutex::new(0);
    struct Sleepy<'a>(FakeClock, &'a Mutex<u32>, &'a Lease);
    impl Clock for Sleepy<'_> {
        fn monotonic(&self) -> Duration {
            self.0.monotonic()
        }
        fn wall(&self) -> f64 {
            self.0.wall()
        }
        fn sleep(&self, _: Duration) {
            self.0.advance(Duration::from_secs(3600));
            let mut looks = self.1.lock().unwrap();
            *looks += 1;
            if *looks == 4 {
                self.2.beat().unwrap();
            }
        }
    }
    let clock = Sleepy(FakeClock::default(), &looks, &owner);
    assert_eq!(take(&fs, &request("2", &clock)).err().unwrap().code(), ExitCode::Owned);
}

#[test]
fn an_owner_that_releases_while_watched_is_succeeded_without_a_takeover() {
    let fs = FaultFs::new();
    let owner = Mutex::new(Some(take(&fs, &request("1", &FakeClock::default())).unwrap()));
    let clock = Meanwhile(FakeClock::default(), || drop(owner.lock().unwrap().take()));
    let lease = take(&fs, &request("2", &clock)).unwrap();
    assert_eq!((because(&lease), lease.attempt()), (None, 2));
}

/// F14: after a takeover every door is closed to the owner before, and nothing of the new owner changes.
#[test]
fn a_replaced_owner_can_no_longer_write_anything() {
    let (fs, clock) = (FaultFs::new(), FakeClock::default());
    let paused = take(&fs, &request("1", &clock)).unwrap();
    let guard = paused.guard().clone();
    let old_checkpoints = Checkpoints::new(shared(&fs), "/run/ckpt", Some(guard.clone()));
    old_checkpoints.save(&snapshot(1, 1)).unwrap();
    let staged = old_checkpoints.begin(2).unwrap();
    let mut old_journal = Journal::open(shared(&fs), Path::new("/run/journal"), Some(guard.clone())).unwrap();
    let lease = take(&fs, &request("2", &clock)).unwrap();
    let new = Some(lease.guard());
    commit_bytes(&fs, Path::new("/run/a"), b"new owner", new).unwrap();
    let new_checkpoints = Checkpoints::new(shared(&fs), "/run/ckpt", new.cloned());
    new_checkpoints.save(&snapshot(2, 2)).unwrap();

    let before = tree(&fs, Path::new("/run"));
    let identity = equipoise_base::Identity::of("x");
    let refused = [
        commit_bytes(&fs, Path::new("/run/a"), b"old owner", Some(&guard)),
        old_journal.append(&json!({"n": 1})),
        Journal::open(shared(&fs), Path::new("/run/journal"), Some(guard.clone())).map(|_| ()),
        old_checkpoints.save(&snapshot(3, 3)).map(|_| ()),
        old_checkpoints.keep_last(1),
        staged.finish(1, &identity, Vec::new(), json!(null)).inspect_err(|_| staged.abandon()).map(|_| ()),
        equipoise_rundir::scratch::remove_abandoned(&fs, Path::new("/run"), &guard).map(|_| ()),
        LeaseGuard::from_fences(shared(&fs), guard.fences().to_vec()).check(),
    ];
    for (index, result) in refused.into_iter().enumerate() {
        let error = result.expect_err("refused");
        assert_eq!(error.code(), ExitCode::Owned, "{index}: {error}");
        assert!(error.message().contains("job 2"), "{index}: {error}");
    }
    assert!(paused.beat().is_err(), "its heartbeat does not reach the new generation");
    assert!(paused.hand_over("1").is_err());
    assert_eq!(tree(&fs, Path::new("/run")), before);
    figure("F14", "ways to write, all closed to a replaced owner", 10);
    lease.guard().check().unwrap();
    assert_eq!(checkpoints(&fs).steps().unwrap(), [1, 2]);
}

#[test]
fn a_lock_deleted_by_hand_fences_its_owner_off() {
    let (fs, clock) = (FaultFs::new(), FakeClock::default());
    let lease = take(&fs, &request("1", &clock)).unwrap();
    fs.remove_dir_all(Path::new(LOCK)).unwrap();
    assert_eq!(lease.guard().check().unwrap_err().code(), ExitCode::Owned);
    let _other = take(&fs, &request("2", &clock)).unwrap();
    let error = lease.guard().check().unwrap_err();
    assert!(error.message().contains("job 2"), "same generation, other nonce: {error}");
}

#[test]
fn tasks_of_an_array_share_the_stage_and_lease_chunks() {
    let (fs, clock) = (FaultFs::new(), FakeClock::default());
    let task = |host: &str| LeaseRequest { shared: true, process: elsewhere(host), ..request("7", &clock) };
    let first = take(&fs, &task("n1")).unwrap();
    let second = take(&fs, &task("n2")).unwrap();
    assert_eq!((first.attempt(), second.attempt(), clock.monotonic()), (1, 1, Duration::ZERO));
    let chunk = |parent: &Lease| {
        let dir = Path::new(LOCK).join("chunks/0003");
        Lease::acquire(
            shared(&fs),
            &LeaseRequest { dir, parent: Some(parent.guard()), ..request("7", &clock) },
        )
    };
    let held = chunk(&second).unwrap();
    drop(first);
    second.guard().check().unwrap();
    held.guard().check().unwrap();
    let known = |_: &Owner| Some(true);
    let other = LeaseRequest { is_job_known: Some(&known), ..request("8", &clock) };
    assert_eq!(take(&fs, &other).err().unwrap().code(), ExitCode::Owned, "one task is left");
    drop(second);
    let _other = take(&fs, &other).unwrap();
    let error = commit_bytes(&fs, Path::new("/run/x"), b"x", Some(held.guard())).unwrap_err();
    assert_eq!(error.code(), ExitCode::Owned, "the stage is lost, and its chunks with it");
}

/// F13: a hundred contenders, one owner.
#[test]
fn of_a_hundred_contenders_exactly_one_wins() {
    let dir = tempfile::tempdir().unwrap();
    let lock = dir.path().join("lock");
    let clock = equipoise_base::clock::SystemClock::default();
    let results: Vec<Result<Lease>> = std::thread::scope(|scope| {
        let contend = |n: u32| {
            let (lock, clock) = (&lock, &clock);
            scope.spawn(move || {
                let period = Duration::from_secs(2);
                let request =
                    LeaseRequest { job: Some(n.to_string()), period, ..LeaseRequest::new(lock, clock) };
                Lease::acquire(Arc::new(RealFs), &request)
            })
        };
        let threads: Vec<_> = (0..100).map(contend).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let (won, lost): (Vec<_>, Vec<_>) = results.into_iter().partition(|result| result.is_ok());
    assert_eq!((won.len(), lost.len()), (1, 99));
    figure("F13", "winners of 100 contenders", won.len());
    let winner = won.into_iter().next().unwrap().unwrap();
    winner.guard().check().unwrap();
    for error in lost.into_iter().filter_map(Result::err) {
        assert_eq!(error.code(), ExitCode::Owned, "{error}");
        assert!(error.message().contains(&winner.owner().to_string()), "{error}");
    }
}
