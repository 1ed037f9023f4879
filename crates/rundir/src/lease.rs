//! One owner per stage, and no commit by an owner that was replaced.
//!
//! A lock directory holds numbered generations `000001/`, `000002/`, ...; the highest is the owner's. To take the lease
//! is to rename a finished directory to the next number, which the file system grants to one process only. Numbers
//! never go down, so a slow contender cannot mistake a new owner for the dead one it judged: its number is taken.
//! The number is also the attempt and the fencing token: [`LeaseGuard::check`] asks whether it is still the highest.
//!
//! ```text
//! lock/000007/owner.json        who, synced before the rename
//! lock/000007/beat-<nonce>.json rewritten every period by each participant; none left = released
//! lock/chunks/<chunk>/000002/   sub-lease of an array task, the same again
//! ```

use crate::commit::{commit_json, read_json};
use crate::process::Process;
use crate::scratch;
use crate::signals;
use crate::vfs::Vfs;
use equipoise_base::{Error, ExitCode, Result, ResultExt as _};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

pub use crate::acquire::{LeaseRequest, Released};

/// `owner.json`: who holds a generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Slurm job id; the id of the whole array for an array job; none outside Slurm.
    pub job: Option<String>,
    /// How often Slurm had restarted the job.
    pub restart: u32,
    /// The process that took the lease.
    pub process: Process,
    /// Unlike that of any other lease.
    pub nonce: String,
    /// The generation.
    pub attempt: u64,
    /// Heartbeat period in milliseconds.
    pub period_ms: u64,
    /// Left by its process for `job`, which is queued: no heartbeat is to be expected.
    pub handed_over: bool,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.job {
            Some(job) => write!(f, "job {job} (restart {}), ", self.restart)?,
            None => write!(f, "a process outside Slurm, ")?,
        }
        write!(f, "host {}, process {}, attempt {}", self.process.host, self.process.pid, self.attempt)
    }
}

/// What a commit must still find: this generation, with this nonce, as the highest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fence {
    /// Lock directory.
    pub dir: PathBuf,
    /// Generation.
    pub generation: u64,
    /// Nonce of its `owner.json`.
    pub nonce: String,
}

/// Proof of ownership that every commit checks; cheap to clone and, as [`Fence`]s, to send to other ranks.
#[derive(Clone)]
pub struct LeaseGuard {
    vfs: Arc<dyn Vfs>,
    /// Innermost first: the chunk's, then the stage's.
    fences: Vec<Fence>,
}

impl fmt::Debug for LeaseGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LeaseGuard").field(&self.fences).finish()
    }
}

impl LeaseGuard {
    /// The guard of a lease that another rank of this job holds.
    ///
    /// # Panics
    /// If there is no fence.
    pub fn from_fences(vfs: Arc<dyn Vfs>, fences: Vec<Fence>) -> Self {
        assert!(!fences.is_empty(), "a guard without a fence guards nothing");
        Self { vfs, fences }
    }

    /// The fences, to send to other ranks.
    pub fn fences(&self) -> &[Fence] {
        &self.fences
    }

    /// Tag of the stage's lease in scratch names: the same for all chunks of a stage.
    pub(crate) fn tag(&self) -> &str {
        self.fences.last().and_then(|fence| fence.nonce.get(..8)).unwrap_or("ffffffff")
    }

    /// Succeeds while the lease is held: one directory listing and one small read per fence.
    ///
    /// Between this check and the rename that follows it an owner may still be replaced. The window is microseconds,
    /// and harmless: shards are functions of identity, and a directory rename never replaces a checkpoint.
    ///
    /// # Errors
    /// 69 naming the new owner, 74 if the lock cannot be read.
    pub fn check(&self) -> Result<()> {
        self.fences.iter().try_for_each(|fence| self.check_one(fence))
    }

    fn check_one(&self, fence: &Fence) -> Result<()> {
        let highest = highest_generation(&*self.vfs, &fence.dir)?;
        let path = highest.map(|generation| generation_dir(&fence.dir, generation).join(OWNER));
        let owner = match path.map(|path| read_json::<Owner>(&*self.vfs, &path)).transpose() {
            Err(error) if error.code() == ExitCode::BadData => None,
            owner => owner?.flatten(),
        };
        if highest == Some(fence.generation) && owner.as_ref().is_some_and(|owner| owner.nonce == fence.nonce)
        {
            return Ok(());
        }
        let now = owner.map_or_else(|| "nobody".to_string(), |owner| owner.to_string());
        let message = format!(
            "{}: attempt {} has lost its lease, which now belongs to {now}; nothing was written",
            fence.dir.display(),
            fence.generation
        );
        Err(Error::new(ExitCode::Owned, message).next("leave the stage to its new owner"))
    }
}

/// A held lease. Dropping it releases it.
pub struct Lease {
    guard: LeaseGuard,
    owner: Owner,
    takeover: Option<Takeover>,
    beat: Arc<Beat>,
    beating: Option<Beating>,
    kept: bool,
}

/// That a lease was taken from an owner who had not released it: a line for the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Takeover {
    /// The owner before; unknown if its file was damaged.
    pub from: Option<Owner>,
    /// What showed that it is gone.
    pub because: Released,
}

impl Lease {
    /// Takes the lease, or finds out who holds it; see [`LeaseRequest`].
    ///
    /// # Errors
    /// 69 naming the live owner's job, host and process and the command to type; 74 if the lock cannot be read or
    /// written.
    pub fn acquire(vfs: Arc<dyn Vfs>, request: &LeaseRequest) -> Result<Self> {
        crate::acquire::acquire(vfs, request)
    }

    pub(crate) fn start(
        vfs: Arc<dyn Vfs>,
        request: &LeaseRequest,
        owner: Owner,
        takeover: Option<Takeover>,
        beat: Beat,
    ) -> Result<Self> {
        let fence = Fence { dir: request.dir.clone(), generation: owner.attempt, nonce: owner.nonce.clone() };
        let parents = request.parent.iter().flat_map(|parent| parent.fences.iter().cloned());
        let guard = LeaseGuard { vfs, fences: std::iter::once(fence).chain(parents).collect() };
        let beat = Arc::new(beat);
        let mut lease = Self { guard, owner, takeover, beat, beating: None, kept: false };
        if request.background {
            lease.beating = Some(Beating::start(lease.beat.clone(), request.period)?);
        }
        Ok(lease)
    }

    /// The proof to commit with.
    pub fn guard(&self) -> &LeaseGuard {
        &self.guard
    }

    /// The owner on record: this process, or the task of this array job that came first.
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// The attempt: the generation.
    pub fn attempt(&self) -> u64 {
        self.owner.attempt
    }

    /// Set if an owner was replaced that had not released the lease.
    pub fn takeover(&self) -> Option<&Takeover> {
        self.takeover.as_ref()
    }

    /// One heartbeat; a thread does this unless the request said otherwise.
    ///
    /// # Errors
    /// 74 if it cannot be written, also once the lease was taken over.
    pub fn beat(&self) -> Result<()> {
        self.beat.write().map_err(|error| Error::io("write the heartbeat", &self.beat.path, error))
    }

    /// Leaves the lease to `job`, which is queued: it stays owned while Slurm knows that job, and the job's next
    /// start takes it at once. Used by `submit`, and by a job that asks to be requeued.
    ///
    /// # Errors
    /// 69 if the lease is lost, 74 if `owner.json` cannot be written; the lease is released then.
    pub fn hand_over(mut self, job: &str) -> Result<()> {
        self.beating = None;
        let owner = Owner { job: Some(job.to_string()), handed_over: true, ..self.owner.clone() };
        let fence = &self.guard.fences[0];
        let path = generation_dir(&fence.dir, fence.generation).join(OWNER);
        commit_json(&*self.guard.vfs, &path, &owner, Some(&self.guard))?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Joined first, so that no late heartbeat undoes the release.
        self.beating = None;
        if !self.kept {
            // Best effort: a lease that cannot be released is taken over after two periods.
            let _ = self.guard.vfs.remove_file(&self.beat.path);
        }
    }
}

/// The heartbeat file of one participant.
pub(crate) struct Beat {
    vfs: Arc<dyn Vfs>,
    path: PathBuf,
    process: Process,
    count: AtomicU64,
}

/// Content of a heartbeat file. Only whether it changes matters, and that a gone process never changes it.
#[derive(Serialize, Deserialize)]
pub(crate) struct BeatRecord {
    pub(crate) count: u64,
    pub(crate) process: Process,
}

impl Beat {
    pub(crate) fn new(vfs: Arc<dyn Vfs>, generation: &Path, nonce: &str, process: Process) -> Self {
        Self { vfs, path: generation.join(beat_name(nonce)), process, count: AtomicU64::new(0) }
    }

    /// Replaces the file in one step, without a sync: a heartbeat lost to a power failure is a heartbeat missed.
    pub(crate) fn write(&self) -> io::Result<()> {
        let scratch = scratch::sibling(&self.path, None).map_err(io::Error::other)?;
        let write = || {
            self.write_first(&scratch)?;
            self.vfs.rename(&scratch, &self.path)
        };
        write().inspect_err(|_| {
            let _ = self.vfs.remove_file(&scratch);
        })
    }

    /// Writes a heartbeat to a file that does not exist.
    pub(crate) fn write_first(&self, path: &Path) -> io::Result<()> {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let record = serde_json::to_vec(&BeatRecord { count, process: self.process.clone() })?;
        let mut file = self.vfs.create_new(path)?;
        file.write_all(&record)?;
        file.close()
    }
}

/// The thread that beats; dropping it stops and joins the thread.
struct Beating {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Beating {
    fn start(beat: Arc<Beat>, period: Duration) -> Result<Self> {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let shared = stop.clone();
        let thread = std::thread::Builder::new().name("heartbeat".into()).spawn(move || {
            signals::block_in_this_thread();
            let (stopped, changed) = &*shared;
            let mut guard = stopped.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            while !*guard {
                guard = changed
                    .wait_timeout_while(guard, period, |stopped| !*stopped)
                    .map_or_else(|poisoned| poisoned.into_inner().0, |(guard, _)| guard);
                if !*guard {
                    // A missed beat is made up by the next; a lost lease is found by the next commit's check.
                    let _ = beat.write();
                }
            }
        });
        let thread = thread.or_exit(ExitCode::Io, "cannot start the heartbeat thread")?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Beating {
    fn drop(&mut self) {
        *self.stop.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = true;
        self.stop.1.notify_all();
        if let Some(thread) = self.thread.take() {
            // The thread does not panic; if it did, there is no beat left to stop.
            let _ = thread.join();
        }
    }
}

/// Who holds the lease of `dir` on record, live or not; none if it is free or was never taken.
///
/// # Errors
/// 74 if the lock cannot be read, 65 if `owner.json` is damaged.
pub fn recorded_owner(vfs: &dyn Vfs, dir: &Path) -> Result<Option<Owner>> {
    let Some(generation) = highest_generation(vfs, dir)? else { return Ok(None) };
    let path = generation_dir(dir, generation);
    let entries = vfs.list_if_exists(&path).map_err(|error| Error::io("list", &path, error))?;
    if entries.iter().any(|entry| is_beat(&entry.name)) {
        read_json(vfs, &path.join(OWNER))
    } else {
        Ok(None)
    }
}

pub(crate) const OWNER: &str = "owner.json";

pub(crate) fn generation_dir(dir: &Path, generation: u64) -> PathBuf {
    dir.join(format!("{generation:06}"))
}

pub(crate) fn beat_name(nonce: &str) -> String {
    format!("beat-{nonce}.json")
}

pub(crate) fn is_beat(name: &str) -> bool {
    name.starts_with("beat-") && name.ends_with(".json")
}

/// The generations in a lock directory, lowest first.
pub(crate) fn generations(vfs: &dyn Vfs, dir: &Path) -> Result<Vec<u64>> {
    let entries = vfs.list_if_exists(dir).map_err(|error| Error::io("list", dir, error))?;
    let number = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit()).then(|| name.parse().ok())?;
    let mut numbers: Vec<u64> =
        entries.iter().filter(|entry| entry.is_dir).filter_map(|entry| number(&entry.name)).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

pub(crate) fn highest_generation(vfs: &dyn Vfs, dir: &Path) -> Result<Option<u64>> {
    Ok(generations(vfs, dir)?.pop())
}
