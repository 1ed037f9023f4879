//! How a step ends: done, stopped, failed, in a panic, without a peer. The reason is on disk before anything else happens.

use super::{Step, lock};
use crate::training::Ended;
use equipoise_base::{Error, ExitCode, Result};
use equipoise_config::BUILD_ID;
use equipoise_nn::runtime;
use equipoise_report::results::Provenance;
use equipoise_rundir::commit_json;
use equipoise_rundir::stage::{Outcome, State};
use equipoise_telemetry::Host;
use std::sync::atomic::Ordering;

impl Step {
    pub(super) fn guard_against_panics(&self) {
        let report = self.reporter();
        self.world.abort_on_panic(move |message| report(ExitCode::Bug, message));
    }

    /// Writes `outcome.json` from any thread, for the panic hook and the watchdog.
    fn reporter(&self) -> impl Fn(ExitCode, &str) + Send + Sync + Clone + 'static {
        let (vfs, dir, guard) = (self.vfs.clone(), self.records.clone(), self.guard.clone());
        let (rank, attempt, host, clock) = (self.rank(), self.attempt, self.host.clone(), self.clock.clone());
        move |code: ExitCode, message: &str| {
            let mut outcome = Outcome::new(code, rank, attempt, &host, clock.wall());
            outcome.message = message.to_string();
            let _ = outcome.write(&*vfs, &dir, Some(&guard));
        }
    }

    /// Ends all ranks from another thread of this one, once: the reason is on disk before.
    #[cfg(feature = "nccl")]
    pub(super) fn ender(&self) -> impl FnOnce(Error) + Send + 'static {
        let (report, comm) = (self.reporter(), self.world.shared());
        move |error: Error| {
            eprintln!("error: rank {}: {error}", comm.rank());
            report(error.code(), error.message());
            comm.abort(error.code().status())
        }
    }

    /// As [`Step::reporter`], for a rank that is not heard any more. In a Slurm job that is a node that was lost: were one
    /// rank killed alone, srun would end the others before anybody missed it. What was committed is kept, so the job may
    /// go on elsewhere: 75. Slurm itself notices much later (`SlurmdTimeout`, mostly five minutes).
    pub(super) fn lost_peer_reporter(&self) -> impl Fn(ExitCode, &str) + Send + 'static {
        let (report, in_job) = (self.reporter(), self.job.id.is_some());
        move |code, message| report(if in_job { ExitCode::Requeue } else { code }, message)
    }

    /// All ranks have done their part: outcome, provenance, exit code.
    pub(super) fn end(&self, ended: Ended) -> Result<ExitCode> {
        self.comm().barrier()?;
        self.write_trace()?;
        let (code, state) = match ended {
            Ended::Done | Ended::Part => (ExitCode::Done, State::Done),
            Ended::Stopped => (ExitCode::Requeue, State::Stopped),
        };
        if ended == Ended::Done {
            self.note_stage();
        }
        let made = self.comm().all_gather(&self.made.load(Ordering::Relaxed).to_le_bytes())?;
        if let Some(root) = &self.root {
            if ended == Ended::Done {
                // About the result, no part of it.
                let path = self.dir().join("provenance.json");
                commit_json(&*self.vfs, &path, &self.provenance()?, Some(&self.guard))?;
            }
            self.write_status(state, None)?;
            let mut outcome = Outcome::new(code, 0, self.attempt, &self.host, self.clock.wall());
            let counts = made.iter().filter_map(|word| Some(u64::from_le_bytes(word[..].try_into().ok()?)));
            outcome.made = counts.sum();
            let root = lock(root);
            if ended == Ended::Done {
                outcome.files = root.products.clone();
            }
            root.stage.write_outcome(&outcome)?;
            if ended == Ended::Done && self.job.task.is_some() {
                outcome.write(&*self.vfs, &self.dir, Some(&self.guard))?;
            }
            equipoise_telemetry::info!("{}: {}", self.stage.name, code.meaning());
        }
        self.comm().barrier()?;
        Ok(code)
    }

    /// The lease is released before MPI ends, so that the next stage never waits for it.
    pub(super) fn leave(mut self) -> Result<()> {
        self.root = None;
        self.world.finish()
    }

    /// This rank cannot go on: it says why before anything else, then ends the others.
    pub(super) fn fail(self, error: Error) -> Error {
        let error = match self.repair(&error) {
            Some(next) if error.next_command().is_none() => error.next(next),
            _ => error,
        };
        let mut outcome = Outcome::of_error(&error, self.rank(), self.attempt, &self.host, self.clock.wall());
        outcome.made = self.made.load(Ordering::Relaxed);
        let _ = outcome.write(&*self.vfs, &self.records, Some(&self.guard));
        if self.root.is_some() {
            let _ = self.write_status(State::Failed, None);
        }
        equipoise_telemetry::error!("{error}");
        if self.world() > 1 {
            eprintln!("error: rank {}: {error}", self.rank());
            drop(self.root);
            self.world.comm().abort(error.code().status());
        }
        error
    }

    fn provenance(&self) -> Result<Provenance> {
        let host = Host::here();
        Ok(Provenance {
            fingerprint: runtime::fingerprint()?,
            ranks: self.world(),
            threads: self.recipe.run.threads as usize,
            host: host.name,
            cpu: host.cpu,
            seconds: self.started.elapsed().as_secs_f64(),
            process_seconds: equipoise_telemetry::process_seconds(),
            pace: self.pacer.pace(equipoise_telemetry::process_seconds()),
            peak_memory: equipoise_telemetry::peak_memory_bytes(),
            version: BUILD_ID.to_string(),
        })
    }
}
