//! Opening a stage: lease, identity, journal and attempt, in the one order that is safe.

use crate::commit::{commit_json, create_dirs, read_json};
use crate::identity::IdentityRecord;
use crate::journal::{self, Journal};
use crate::layout::StageDir;
use crate::lease::{Lease, LeaseGuard, LeaseRequest, Owner, Takeover};
use crate::product::Products;
use crate::scratch;
use crate::vfs::Vfs;
use equipoise_base::{Error, ExitCode, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;

/// What every journal begins an attempt with; stages append events of their own with other names.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Event<'a> {
    /// An attempt has begun.
    Attempt { attempt: u64, owner: &'a Owner, wall: f64 },
    /// It took over from an owner that had not released its lease.
    Takeover { attempt: u64, takeover: &'a Takeover, wall: f64 },
}

/// A stage that this process owns.
pub struct Stage {
    vfs: Arc<dyn Vfs>,
    dir: StageDir,
    records: StageDir,
    lease: Lease,
    /// Its journal.
    pub journal: Journal,
}

impl Stage {
    /// Opens a stage, creating it the first time: takes the lease, requires the identity, repairs the journal and
    /// notes the attempt in it. `request` says who asks and how; its directory and attempt counter are set here.
    ///
    /// # Errors
    /// 69 if a live process owns the stage; 78 if it was begun with another identity, naming what differs; 74 if
    /// something cannot be read or written. The lease is released on every error.
    pub fn open(
        vfs: Arc<dyn Vfs>,
        dir: StageDir,
        identity: &IdentityRecord,
        request: LeaseRequest,
    ) -> Result<Self> {
        Self::open_in(vfs, dir.clone(), dir, identity, request)
    }

    /// Opens a stage as one task of an array job: all its tasks hold one lease, and each keeps records of its own in
    /// [`StageDir::task`].
    ///
    /// # Errors
    /// As [`Stage::open`].
    pub fn open_task(
        vfs: Arc<dyn Vfs>,
        dir: &StageDir,
        task: u64,
        identity: &IdentityRecord,
        mut request: LeaseRequest,
    ) -> Result<Self> {
        request.shared = true;
        Self::open_in(vfs, dir.clone(), dir.task(task), identity, request)
    }

    /// `dir` is the stage's, `records` what this process writes about itself.
    fn open_in(
        vfs: Arc<dyn Vfs>,
        dir: StageDir,
        records: StageDir,
        identity: &IdentityRecord,
        mut request: LeaseRequest,
    ) -> Result<Self> {
        create_dirs(&*vfs, records.root())?;
        request.dir = dir.lock();
        request.attempts_so_far = last_attempt(&*vfs, &dir)?;
        let lease = Lease::acquire(vfs.clone(), &request)?;
        let guard = lease.guard();
        identity.require(&*vfs, &dir.identity(), Some(guard))?;
        let mut journal = Journal::open(vfs.clone(), &records.journal(), Some(guard.clone()))?;
        let (attempt, wall) = (lease.attempt(), request.clock.wall());
        if let Some(takeover) = lease.takeover() {
            journal.append(&Event::Takeover { attempt, takeover, wall })?;
        }
        journal.append(&Event::Attempt { attempt, owner: lease.owner(), wall })?;
        Ok(Self { vfs, dir, records, lease, journal })
    }

    /// Its directory, shared by all tasks of an array job.
    pub fn dir(&self) -> &StageDir {
        &self.dir
    }

    /// The proof to commit with.
    pub fn guard(&self) -> &LeaseGuard {
        self.lease.guard()
    }

    /// Which attempt this is, from 1; grows with every opening and is never used twice.
    pub fn attempt(&self) -> u64 {
        self.lease.attempt()
    }

    /// The lease.
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Gives up the stage but leaves the lease to a queued job; see [`Lease::hand_over`].
    ///
    /// # Errors
    /// 69 if the lease is lost, 74 if it cannot be written.
    pub fn hand_over(self, job: &str) -> Result<()> {
        self.lease.hand_over(job)
    }

    /// Removes what earlier attempts left unfinished in the stage and in `others`, directories that only this stage
    /// writes; returns how many.
    ///
    /// # Errors
    /// 69 if the lease is lost, 74 if something cannot be removed.
    pub fn gc(&self, others: &[&Path]) -> Result<usize> {
        let dirs = std::iter::once(self.dir.root()).chain(others.iter().copied());
        dirs.map(|dir| scratch::remove_abandoned(&*self.vfs, dir, self.guard())).sum()
    }

    /// Replaces `status.json`.
    ///
    /// # Errors
    /// 69 if the lease is lost, 74 if it cannot be written.
    pub fn write_status(&self, status: &Status) -> Result<()> {
        status.write(&*self.vfs, &self.records, Some(self.guard()))
    }

    /// Replaces `outcome.json`.
    ///
    /// # Errors
    /// 69 if the lease is lost, 74 if it cannot be written.
    pub fn write_outcome(&self, outcome: &Outcome) -> Result<()> {
        outcome.write(&*self.vfs, &self.records, Some(self.guard()))
    }
}

/// The highest attempt in the journals of the stage and of its tasks; 0 for a new stage.
///
/// # Errors
/// 74 if a journal cannot be read.
pub fn last_attempt(vfs: &dyn Vfs, dir: &StageDir) -> Result<u64> {
    let tasks = dir.tasks();
    let tasks = vfs.list_if_exists(&tasks).map_err(|error| Error::io("list", &tasks, error))?;
    let tasks = tasks.iter().filter_map(|entry| Some(dir.task(entry.name.parse().ok()?)));
    let mut last = 0;
    for records in std::iter::once(dir.clone()).chain(tasks) {
        let records = journal::read::<Value>(vfs, &records.journal())?.records;
        let attempts = records.iter().filter_map(|record| record.get("attempt")?.as_u64());
        last = attempts.fold(last, u64::max);
    }
    Ok(last)
}

/// Attempts that began here: in the stage's own journal, or in that of the task whose folder this is.
///
/// # Errors
/// 74 if the journal cannot be read.
pub fn attempts_on_record(vfs: &dyn Vfs, records: &StageDir) -> Result<u64> {
    let events = journal::read::<Value>(vfs, &records.journal())?.records;
    Ok(events.iter().filter(|event| event["event"] == "attempt").count() as u64)
}

/// What a stage is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// At work.
    Running,
    /// Complete.
    Done,
    /// Stopped on request with everything committed.
    Stopped,
    /// Ended by an error: `outcome.json` says which.
    Failed,
}

/// `status.json`: how far a stage is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Stage, as its directory is named.
    pub stage: String,
    /// What it is doing.
    pub state: State,
    /// What is counted: images, steps, ...
    pub unit: String,
    /// Units done, over all attempts.
    pub done: u64,
    /// Units in all.
    pub total: u64,
    /// Units per second of this attempt; none while unknown.
    pub rate: Option<f64>,
    /// Attempt.
    pub attempt: u64,
    /// World size.
    pub ranks: usize,
    /// Host of rank 0.
    pub host: String,
    /// Process of rank 0.
    pub pid: u32,
    /// When it was written, in seconds since 1970: for people.
    pub wall: f64,
}

impl Status {
    /// Replaces `status.json`.
    ///
    /// # Errors
    /// 69 if the lease is lost, 74 if it cannot be written.
    pub fn write(&self, vfs: &dyn Vfs, dir: &StageDir, guard: Option<&LeaseGuard>) -> Result<()> {
        commit_json(vfs, &dir.status(), self, guard)
    }

    /// Reads `status.json`; none before the stage has begun.
    ///
    /// # Errors
    /// 65 if it is damaged, 74 if it cannot be read.
    pub fn read(vfs: &dyn Vfs, dir: &StageDir) -> Result<Option<Self>> {
        read_json(vfs, &dir.status())
    }
}

/// `outcome.json`: how an attempt ended. The failing rank writes it before any rank exits, and launcher and batch
/// script trust it before the exit status.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Exit status.
    pub code: i32,
    /// Its name, such as `requeue`.
    pub name: ExitCode,
    /// One line for people.
    pub message: String,
    /// The command to type next.
    pub next: Option<String>,
    /// The rank that wrote it.
    pub rank: usize,
    /// Attempt.
    pub attempt: u64,
    /// Host of that rank.
    pub host: String,
    /// When, in seconds since 1970: for people.
    pub wall: f64,
    /// Units that this attempt finished (images, steps), those of unfinished shards included: whether it was of use.
    #[serde(default)]
    pub made: u64,
    /// Of a stage that is done: what it has made for others. Shards have records of their own.
    #[serde(default, skip_serializing_if = "Products::is_empty")]
    pub files: Products,
}

impl Outcome {
    /// The outcome of an attempt that ended with `code`.
    pub fn new(code: ExitCode, rank: usize, attempt: u64, host: &str, wall: f64) -> Self {
        let (message, host) = (code.meaning().to_string(), host.to_string());
        let files = Products::new();
        Self {
            code: code.status(),
            name: code,
            message,
            next: None,
            rank,
            attempt,
            host,
            wall,
            made: 0,
            files,
        }
    }

    /// The outcome of an attempt that an error ended.
    pub fn of_error(error: &Error, rank: usize, attempt: u64, host: &str, wall: f64) -> Self {
        let next = error.next_command().map(str::to_string);
        Self {
            message: error.message().to_string(),
            next,
            ..Self::new(error.code(), rank, attempt, host, wall)
        }
    }

    /// Replaces `outcome.json`.
    ///
    /// # Errors
    /// 69 if the lease is lost, 74 if it cannot be written.
    pub fn write(&self, vfs: &dyn Vfs, dir: &StageDir, guard: Option<&LeaseGuard>) -> Result<()> {
        commit_json(vfs, &dir.outcome(), self, guard)
    }

    /// Reads `outcome.json`; none if no attempt has ended.
    ///
    /// # Errors
    /// 65 if it is damaged, 74 if it cannot be read.
    pub fn read(vfs: &dyn Vfs, dir: &StageDir) -> Result<Option<Self>> {
        read_json(vfs, &dir.outcome())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commit::commit_bytes;
    use crate::fault::FaultFs;
    use crate::layout::{RunDir, StageKey};
    use equipoise_base::clock::FakeClock;
    use std::collections::BTreeMap;

    fn dir() -> StageDir {
        RunDir::new("/run").stage(&StageKey::new("generate").unwrap())
    }

    fn open(fs: &FaultFs, lr: &str) -> Result<Stage> {
        let identity = IdentityRecord::of(BTreeMap::from([("lr".to_string(), lr.to_string())]));
        let clock = FakeClock::default();
        let request = LeaseRequest { background: false, ..LeaseRequest::new("", &clock) };
        Stage::open(Arc::new(fs.clone()), dir(), &identity, request)
    }

    #[test]
    fn attempts_grow_even_if_the_lock_is_deleted() {
        let fs = FaultFs::new();
        assert_eq!(open(&fs, "0.1").unwrap().attempt(), 1);
        assert_eq!(open(&fs, "0.1").unwrap().attempt(), 2);
        fs.remove_dir_all(&dir().lock()).unwrap();
        assert_eq!(open(&fs, "0.1").unwrap().attempt(), 3);
        let events = journal::read::<Value>(&fs, &dir().journal()).unwrap().records;
        assert_eq!(events.len(), 3);
        assert!(events.iter().all(|event| event["event"] == "attempt"), "{events:?}");
    }

    #[test]
    fn another_identity_is_refused_and_the_lease_released() {
        let fs = FaultFs::new();
        drop(open(&fs, "0.1").unwrap());
        let error = open(&fs, "0.2").err().unwrap();
        assert_eq!(error.code(), ExitCode::Config);
        assert!(error.message().contains("lr was 0.1, is 0.2"), "{error}");
        drop(open(&fs, "0.1").unwrap());
    }

    #[test]
    fn a_takeover_leaves_an_audit_line() {
        let fs = FaultFs::new();
        std::mem::forget(open(&fs, "0.1").unwrap()); // Killed: it never releases.
        assert_eq!(open(&fs, "0.1").unwrap().attempt(), 2);
        let events = journal::read::<Value>(&fs, &dir().journal()).unwrap().records;
        let takeover = events.iter().find(|event| event["event"] == "takeover").unwrap();
        assert_eq!(takeover["takeover"]["because"], "silent");
        assert_eq!(takeover["takeover"]["from"]["attempt"], 1);
    }

    #[test]
    fn tasks_of_an_array_share_the_lease_and_keep_their_own_records() {
        let fs = FaultFs::new();
        let identity = IdentityRecord::of(BTreeMap::from([("lr".to_string(), "0.1".to_string())]));
        let clock = FakeClock::default();
        let task = |job: &str, restart, task| {
            let job = Some(job.to_string());
            let request = LeaseRequest { background: false, job, restart, ..LeaseRequest::new("", &clock) };
            Stage::open_task(Arc::new(fs.clone()), &dir(), task, &identity, request)
        };
        let (first, second) = (task("7", 0, 0).unwrap(), task("7", 0, 1).unwrap());
        assert_eq!((first.attempt(), second.attempt()), (1, 1));
        std::mem::forget(second); // Killed, and started again by Slurm.
        assert_eq!(task("7", 1, 1).unwrap().attempt(), 1);
        first.guard().check().unwrap();
        let journal = |task| journal::read::<Value>(&fs, &dir().task(task).journal()).unwrap().records.len();
        assert_eq!((journal(0), journal(1)), (1, 2));
        assert_eq!(attempts_on_record(&fs, &dir().task(1)).unwrap(), 2, "both begun, under one number");
        assert_eq!(task("8", 0, 0).unwrap().attempt(), 2, "another job takes over from silent owners");
        assert_eq!(last_attempt(&fs, &dir()).unwrap(), 2);
        assert_eq!(first.guard().check().unwrap_err().code(), ExitCode::Owned);
    }

    #[test]
    fn outcome_and_status_come_back() {
        let fs = FaultFs::new();
        let stage = open(&fs, "0.1").unwrap();
        let error = Error::data("a.h5: truncated").next("equipoise resume RUN");
        let outcome = Outcome::of_error(&error, 3, stage.attempt(), "n1", 1.5);
        stage.write_outcome(&outcome).unwrap();
        assert_eq!(Outcome::read(&fs, &dir()).unwrap(), Some(outcome.clone()));
        assert_eq!((outcome.code, outcome.next.as_deref()), (65, Some("equipoise resume RUN")));
        let status = Status {
            stage: dir().key().to_string(),
            state: State::Running,
            unit: "images".into(),
            done: 3,
            total: 9,
            rate: Some(f64::NAN),
            attempt: stage.attempt(),
            ranks: 4,
            host: "n1".into(),
            pid: 1,
            wall: 2.0,
        };
        stage.write_status(&status).unwrap();
        assert_eq!(Status::read(&fs, &dir()).unwrap(), Some(Status { rate: None, ..status }));
    }

    #[test]
    fn gc_removes_what_earlier_attempts_left_and_nothing_else() {
        let fs = FaultFs::new();
        let parts = Path::new("/run/sets/a/0");
        create_dirs(&fs, parts).unwrap();
        let old = open(&fs, "0.1").unwrap();
        let left = [
            scratch::sibling(&dir().status(), Some(old.guard())).unwrap(),
            scratch::sibling(&parts.join("x.h5"), Some(old.guard())).unwrap(),
            scratch::sibling(&parts.join("y.h5"), None).unwrap(),
        ];
        for path in &left {
            commit_bytes(&fs, path, b"half", None).unwrap();
        }
        let left_dir = scratch::sibling(&dir().root().join("step"), Some(old.guard())).unwrap();
        fs.create_dir(&left_dir).unwrap();
        commit_bytes(&fs, &parts.join(".not-ours"), b"x", None).unwrap();
        drop(old);
        let stage = open(&fs, "0.1").unwrap();
        let own = scratch::sibling(&parts.join("x.h5"), Some(stage.guard())).unwrap();
        commit_bytes(&fs, &own, b"being written", None).unwrap();
        assert_eq!(stage.gc(&[parts]).unwrap(), 4);
        assert_eq!(stage.gc(&[parts]).unwrap(), 0);
        assert!(fs.exists(&own).unwrap() && fs.exists(&parts.join(".not-ours")).unwrap());
        assert!(left.iter().all(|path| !fs.exists(path).unwrap()) && !fs.exists(&left_dir).unwrap());
    }
}
