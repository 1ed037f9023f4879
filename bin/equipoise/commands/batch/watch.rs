//! `equipoise batch watch`: ends a launcher that hangs.
//!
//! Where a node is lost while the ranks are still finding each other and is back before Slurm has missed it, neither srun
//! nor the other ranks ever hear of it. From the attempt on record on, the ranks watch each other.

use super::Job;
use equipoise_base::clock::Clock as _;
use equipoise_base::{ExitCode, Result};
use equipoise_config::load_resolved;
use equipoise_rundir::Process;
use equipoise_slurm::record::{Attempt, History};
use std::time::{Duration, Instant};

/// What a launcher may take to end when its ranks have said how they ended: long beyond Slurm's own timers.
const LEAVE: Duration = Duration::from_secs(120);
/// What it may take to end when it is told to: srun waits for its tasks for KillWait, 30 s by default, and a little more.
const OBEY: Duration = Duration::from_secs(60);
/// Between two looks, once it has run for a while.
const INTERVAL: Duration = Duration::from_secs(2);

/// Returns when the launcher has ended, which is ended if need be.
pub(super) fn watch(job: &Job, launcher: u32) -> Result<ExitCode> {
    let Some(launcher) = Process::running(launcher) else { return Ok(ExitCode::Done) };
    let patience = load_resolved(&job.run.config(), &[])?.recipe.slurm.start_timeout;
    let mut progress = Progress::new(job, Duration::from_secs(patience.into()))?;
    while !gone(&launcher) {
        if let Some(reason) = progress.hangs(job) {
            eprintln!("{}: {reason}", job.stage);
            let (id, restart, wall) = (job.id.clone(), job.restart, job.clock.wall());
            // Not noted, it is queued again all the same: it ends by the TERM that it is sent.
            if let Err(error) = job.note(&Attempt::Hung { job: id, restart, reason, wall }) {
                eprintln!("{}: {error}", job.stage);
            }
            end(&launcher);
            break;
        }
        // A quick step is not waited for.
        std::thread::sleep(INTERVAL.min(Duration::from_millis(50) + progress.start.elapsed() / 10));
    }
    Ok(ExitCode::Done)
}

/// How far the ranks have come.
struct Progress {
    start: Instant,
    /// What they may take to begin; zero is for ever.
    patience: Duration,
    /// Attempts and outcome that were there before.
    attempts: u64,
    outcome: Option<String>,
    /// Since when there is an outcome of this attempt.
    ended: Option<Instant>,
}

impl Progress {
    fn new(job: &Job, patience: Duration) -> Result<Self> {
        let found = History::of(&job.earlier()?, &job.id).found;
        let (attempts, outcome) = (found.attempts, found.outcome);
        Ok(Self { start: Instant::now(), patience, attempts, outcome, ended: None })
    }

    /// Why the launcher is not waited for any longer.
    fn hangs(&mut self, job: &Job) -> Option<String> {
        if self.ended.is_none() && job.outcome_hash() != self.outcome {
            self.ended = Some(Instant::now());
        }
        if let Some(ended) = self.ended {
            return (ended.elapsed() > LEAVE)
                .then(|| format!("the ranks ended {} s ago, what started them did not", LEAVE.as_secs()));
        }
        let late = !self.patience.is_zero() && self.start.elapsed() > self.patience;
        (late && job.attempts() == self.attempts).then(|| {
            format!("the ranks had not begun after {} s (slurm.start_timeout)", self.patience.as_secs())
        })
    }
}

fn gone(launcher: &Process) -> bool {
    Process::current().sees_gone(launcher)
}

/// Ends it. srun hands a TERM on to its tasks and waits for them, mpirun takes its ranks along.
fn end(launcher: &Process) {
    for signal in [libc::SIGTERM, libc::SIGKILL] {
        let told = Instant::now();
        // SAFETY: a signal to a process that this job has started, and that was there a moment ago.
        unsafe { libc::kill(launcher.pid as libc::pid_t, signal) };
        while told.elapsed() < OBEY {
            if gone(launcher) {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}
