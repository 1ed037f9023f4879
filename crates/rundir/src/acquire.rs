//! Taking a lease: is the owner alive, and if not, who comes next.
//!
//! | the owner | verdict |
//! |---|---|
//! | left no heartbeat file | released: take it |
//! | handed it over to this very job | take it |
//! | is an earlier start of this very job | take it: Slurm starts a job again only when it has given up the one before |
//! | is another job, and Slurm knows it / does not know it | owned / take it |
//! | ran on this boot of this host, and its process is gone | take it |
//! | changes a heartbeat file while we watch | owned |
//! | does not for two of its periods | take it; if it only slept, fencing stops its next commit |
//!
//! No wall clock takes part, so clocks may be wrong by days: waiting is counted on the reader's monotonic clock.

use crate::commit::{create_dirs, failed, read_json, sync_parent, write_verified};
use crate::lease::{
    Beat, BeatRecord, Lease, LeaseGuard, OWNER, Owner, Takeover, beat_name, generation_dir, generations,
    highest_generation, is_beat,
};
use crate::nonce::nonce;
use crate::process::Process;
use crate::scratch;
use crate::vfs::Vfs;
use equipoise_base::clock::Clock;
use equipoise_base::{Error, ExitCode, Result, ResultExt as _};
use serde::Serialize;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Heartbeat period unless asked otherwise. Twice this must exceed the stalls of a busy shared file system.
pub const PERIOD: Duration = Duration::from_secs(15);

/// Asks Slurm about an owner's job: known (queued or running), unknown, or no answer.
pub type IsJobKnown<'a> = &'a dyn Fn(&Owner) -> Option<bool>;

/// What is to be leased, by whom, and how to find out about the owner.
pub struct LeaseRequest<'a> {
    /// Lock directory.
    pub dir: PathBuf,
    /// Slurm job id; the id of the whole array for an array job.
    pub job: Option<String>,
    /// How often Slurm has restarted this job.
    pub restart: u32,
    /// Who asks.
    pub process: Process,
    /// How often to beat. Others take over after two periods without a beat.
    pub period: Duration,
    /// Beat in a thread of its own; otherwise the caller beats.
    pub background: bool,
    /// Join the owner if it is a task of the same job.
    pub shared: bool,
    /// The highest attempt that the caller knows of: the new one is higher even if the lock directory was deleted.
    pub attempts_so_far: u64,
    /// The clock to wait by.
    pub clock: &'a dyn Clock,
    /// Asked about owners that are other jobs.
    pub is_job_known: Option<IsJobKnown<'a>>,
    /// The stage's guard for the sub-lease of a chunk: every commit checks both.
    pub parent: Option<&'a LeaseGuard>,
}

impl<'a> LeaseRequest<'a> {
    /// A lease of `dir` for this process, outside Slurm.
    pub fn new(dir: impl Into<PathBuf>, clock: &'a dyn Clock) -> Self {
        Self {
            dir: dir.into(),
            job: None,
            restart: 0,
            process: Process::current(),
            period: PERIOD,
            background: true,
            shared: false,
            attempts_so_far: 0,
            clock,
            is_job_known: None,
            parent: None,
        }
    }
}

/// What showed that an owner is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Released {
    /// It released the lease.
    Released,
    /// It left the lease to this job.
    HandedOver,
    /// It is an earlier start of this job: Slurm has ended it, or has lost its node and cannot reach it.
    Restarted,
    /// Slurm does not know its job any more.
    JobGone,
    /// Its process on this host is gone.
    ProcessGone,
    /// No heartbeat for two periods.
    Silent,
}

enum Verdict {
    Free(Released),
    Owned,
    /// The lock changed while it was read: look again.
    Changed,
}

/// One look at a generation.
struct Look {
    generation: u64,
    /// None if the file is damaged.
    owner: Option<Owner>,
    beats: Vec<(String, Vec<u8>)>,
}

/// Every lost race means that another contender went ahead, so a few rounds settle it.
const MAX_ROUNDS: usize = 100;

pub(crate) fn acquire(vfs: Arc<dyn Vfs>, request: &LeaseRequest) -> Result<Lease> {
    create_dirs(&*vfs, &request.dir)?;
    let contender = Contender { vfs, request };
    for _ in 0..MAX_ROUNDS {
        let Some(generation) = highest_generation(&*contender.vfs, &request.dir)? else {
            match contender.install(1, None)? {
                Some(lease) => return Ok(lease),
                None => continue,
            }
        };
        let Some(look) = contender.look(generation)? else { continue };
        if contender.may_join(&look) {
            match contender.join(&look)? {
                Some(lease) => return Ok(lease),
                None => continue,
            }
        }
        match contender.judge(&look)? {
            Verdict::Changed => {}
            Verdict::Owned => return Err(owned(&request.dir, look.owner.as_ref())),
            Verdict::Free(because) => {
                let orderly = matches!(because, Released::Released | Released::HandedOver);
                let takeover = (!orderly).then_some(Takeover { from: look.owner, because });
                if let Some(lease) = contender.install(generation + 1, takeover)? {
                    return Ok(lease);
                }
            }
        }
    }
    Err(owned(&request.dir, None))
}

/// The error of a contender that finds a live owner.
fn owned(dir: &Path, owner: Option<&Owner>) -> Error {
    let Some(owner) = owner else {
        let message = format!("{}: owned by a live process that left no readable record", dir.display());
        return Error::new(ExitCode::Owned, message).next("wait, then run the same command again");
    };
    let next = match &owner.job {
        Some(job) => format!("wait for it, or: scancel {job}"),
        None => format!("wait for it, or on host {}: kill {}", owner.process.host, owner.process.pid),
    };
    Error::new(ExitCode::Owned, format!("{}: owned by {owner}", dir.display())).next(next)
}

struct Contender<'a> {
    vfs: Arc<dyn Vfs>,
    request: &'a LeaseRequest<'a>,
}

impl Contender<'_> {
    /// Reads a generation; none if it disappeared meanwhile.
    fn look(&self, generation: u64) -> Result<Option<Look>> {
        let dir = generation_dir(&self.request.dir, generation);
        // Listing first makes an NFS client ask the server for the names again.
        let entries = match self.vfs.list(&dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            entries => entries.map_err(|error| Error::io("list", &dir, error))?,
        };
        let mut beats = Vec::new();
        for entry in entries.into_iter().filter(|entry| is_beat(&entry.name)) {
            let path = dir.join(&entry.name);
            match self.vfs.read(&path) {
                Ok(bytes) => beats.push((entry.name, bytes)),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(Error::io("read", &path, error)),
            }
        }
        let owner = match read_json::<Owner>(&*self.vfs, &dir.join(OWNER)) {
            Err(error) if error.code() == ExitCode::BadData => None,
            owner => owner?,
        };
        Ok(Some(Look { generation, owner, beats }))
    }

    fn is_own_job(&self, owner: &Owner) -> bool {
        owner.job.is_some() && owner.job == self.request.job
    }

    /// Tasks of an array restart one by one, so there the count says nothing about the others.
    fn is_earlier_start(&self, owner: &Owner) -> bool {
        !self.request.shared && self.is_own_job(owner) && owner.restart < self.request.restart
    }

    fn may_join(&self, look: &Look) -> bool {
        let joinable = |owner: &Owner| self.is_own_job(owner) && !owner.handed_over;
        self.request.shared && !look.beats.is_empty() && look.owner.as_ref().is_some_and(joinable)
    }

    fn judge(&self, look: &Look) -> Result<Verdict> {
        if look.beats.is_empty() {
            return Ok(Verdict::Free(Released::Released));
        }
        let handed_over = look.owner.as_ref().is_some_and(|owner| owner.handed_over);
        if let Some(owner) = &look.owner {
            if handed_over && self.is_own_job(owner) {
                return Ok(Verdict::Free(Released::HandedOver));
            }
            if self.is_earlier_start(owner) {
                return Ok(Verdict::Free(Released::Restarted));
            }
            // Of its own job Slurm would say that it is known: that says nothing about its earlier processes.
            if let (Some(is_job_known), Some(_), false) =
                (self.request.is_job_known, &owner.job, self.is_own_job(owner))
            {
                match is_job_known(owner) {
                    Some(true) => return Ok(Verdict::Owned),
                    Some(false) => return Ok(Verdict::Free(Released::JobGone)),
                    // A queued job has no heartbeat: without an answer it must be taken for alive.
                    None if handed_over => return Ok(Verdict::Owned),
                    None => {}
                }
            }
        }
        if !handed_over && look.beats.iter().all(|(_, bytes)| self.sees_gone(bytes)) {
            return Ok(Verdict::Free(Released::ProcessGone));
        }
        self.watch(look)
    }

    fn sees_gone(&self, beat: &[u8]) -> bool {
        serde_json::from_slice::<BeatRecord>(beat)
            .is_ok_and(|record| self.request.process.sees_gone(&record.process))
    }

    /// Waits for a heartbeat, for two of the owner's periods.
    fn watch(&self, first: &Look) -> Result<Verdict> {
        let period = first.owner.as_ref().map_or(PERIOD, |owner| Duration::from_millis(owner.period_ms));
        let period = period.clamp(Duration::from_millis(10), Duration::from_secs(600));
        let interval = period / 8;
        let mut silence = Duration::ZERO;
        while silence < period * 2 {
            let before = self.request.clock.monotonic();
            self.request.clock.sleep(interval);
            // Capped: if this process slept too, the owner may not have had its chance to beat.
            silence += self.request.clock.monotonic().saturating_sub(before).clamp(interval, interval * 2);
            if highest_generation(&*self.vfs, &self.request.dir)? != Some(first.generation) {
                return Ok(Verdict::Changed);
            }
            let Some(now) = self.look(first.generation)? else { return Ok(Verdict::Changed) };
            if now.beats.iter().any(|beat| !first.beats.contains(beat)) {
                return Ok(Verdict::Owned);
            }
            if now.beats.len() != first.beats.len() || now.owner != first.owner {
                return Ok(Verdict::Changed);
            }
        }
        Ok(Verdict::Free(Released::Silent))
    }

    /// Claims a generation; none if another contender was faster.
    fn install(&self, generation: u64, takeover: Option<Takeover>) -> Result<Option<Lease>> {
        let generation = generation.max(self.request.attempts_so_far + 1);
        let dir = generation_dir(&self.request.dir, generation);
        let owner = Owner {
            job: self.request.job.clone(),
            restart: self.request.restart,
            process: self.request.process.clone(),
            nonce: nonce(),
            attempt: generation,
            period_ms: self.request.period.as_millis() as u64,
            handed_over: false,
        };
        let beat = Beat::new(self.vfs.clone(), &dir, &owner.nonce, owner.process.clone());
        let scratch = scratch::sibling(&dir, None)?;
        let claimed = self.build(&scratch, &owner, &beat).and_then(|()| self.claim(&scratch, &dir, &owner));
        if !matches!(claimed, Ok(true)) {
            // Best effort: the owner of the stage removes what is left.
            let _ = self.vfs.remove_dir_all(&scratch);
        }
        match claimed {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            // The scratch was taken for abandoned and removed by a new owner: the race is lost.
            Err(_) if self.is_taken(generation)? => return Ok(None),
            Err(error) => return Err(error),
        }
        // From here on an error drops the lease, which releases it.
        let lease = Lease::start(self.vfs.clone(), self.request, owner, takeover, beat)?;
        sync_parent(&*self.vfs, &dir)?;
        if highest_generation(&*self.vfs, &self.request.dir)? != Some(generation) {
            // We judged an owner so long ago that its successors' generations were removed already.
            drop(lease);
            let _ = self.vfs.remove_dir_all(&dir);
            return Ok(None);
        }
        for older in
            generations(&*self.vfs, &self.request.dir)?.into_iter().filter(|&older| older < generation)
        {
            // Best effort: only the highest counts.
            let _ = self.vfs.remove_dir_all(&generation_dir(&self.request.dir, older));
        }
        Ok(Some(lease))
    }

    fn is_taken(&self, generation: u64) -> Result<bool> {
        Ok(highest_generation(&*self.vfs, &self.request.dir)?.is_some_and(|highest| highest >= generation))
    }

    /// Makes a complete generation under a scratch name.
    fn build(&self, scratch: &Path, owner: &Owner, beat: &Beat) -> Result<()> {
        let fail = |error| failed(&*self.vfs, "create the directory", scratch, 0, error);
        self.vfs.create_dir(scratch).map_err(fail)?;
        let record = serde_json::to_vec_pretty(owner).or_exit(ExitCode::Bug, "an owner as JSON")?;
        write_verified(&*self.vfs, &scratch.join(OWNER), &record)?;
        let path = scratch.join(beat_name(&owner.nonce));
        beat.write_first(&path).map_err(|error| failed(&*self.vfs, "write", &path, 0, error))?;
        let fail = |error| failed(&*self.vfs, "sync the directory", scratch, 0, error);
        self.vfs.sync_dir(scratch).map_err(fail)
    }

    /// The one step that only one contender can do.
    fn claim(&self, scratch: &Path, dir: &Path, owner: &Owner) -> Result<bool> {
        match self.vfs.rename(scratch, dir) {
            Ok(()) => Ok(true),
            Err(error) => {
                // An NFS server that answers a repeated request reports a failure of what it had done before.
                let winner = read_json::<Owner>(&*self.vfs, &dir.join(OWNER)).ok().flatten();
                match winner {
                    Some(winner) => Ok(winner.nonce == owner.nonce),
                    None => Err(failed(&*self.vfs, "rename to", dir, 0, error)),
                }
            }
        }
    }

    /// Becomes a further participant of a generation of this array job; none if it ended meanwhile.
    fn join(&self, look: &Look) -> Result<Option<Lease>> {
        let Some(owner) = look.owner.clone() else { return Ok(None) };
        let dir = generation_dir(&self.request.dir, look.generation);
        let beat = Beat::new(self.vfs.clone(), &dir, &nonce(), self.request.process.clone());
        match beat.write() {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(&*self.vfs, "write a heartbeat in", &dir, 0, error)),
        }
        let lease = Lease::start(self.vfs.clone(), self.request, owner, None, beat)?;
        match lease.guard().check() {
            Ok(()) => Ok(Some(lease)),
            Err(error) if error.code() == ExitCode::Owned => Ok(None),
            Err(error) => Err(error),
        }
    }
}
