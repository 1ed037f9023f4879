//! When a stage ends before it is done: signals, the end of the job, and how ranks agree on it.

use super::{Step, lock};
use equipoise_base::{Result, bail};
use equipoise_comm::agree::Verdict;
use std::sync::atomic::Ordering;
use std::time::Duration;

impl Step {
    /// What this rank brings to the agreement at a step boundary.
    pub fn stop_verdict(&self) -> Verdict {
        if self.stop.is_raised() {
            Verdict::Stop
        } else if lock(&self.deadline).look(&*self.clock) {
            Verdict::Deadline
        } else {
            Verdict::Go
        }
    }

    /// Raises the stop flag once the wall time is nearly over; for loops without agreement.
    pub fn poll_deadline(&self) {
        if lock(&self.deadline).look(&*self.clock) && !self.stop.is_raised() {
            equipoise_telemetry::info!("the job is about to end");
            self.stop.raise();
        }
    }

    /// Counts finished units, whether they are committed already or will be on a stop.
    pub fn count_made(&self, units: u64) {
        self.made.fetch_add(units, Ordering::Relaxed);
    }

    /// Takes the time that a commit has taken into account for the last one before the job ends.
    pub fn measured_commit(&self, took: Duration) {
        lock(&self.deadline).measured(took);
    }

    /// Whether this rank was asked to stop, or the job is about to end: loops without claims or agreement end early,
    /// and [`agree_to_go_on`](Self::agree_to_go_on) afterwards.
    pub fn should_stop(&self) -> bool {
        self.poll_deadline();
        self.stop.is_raised()
    }

    /// After a loop that any rank may have left early; a collective.
    ///
    /// # Errors
    /// 75 on all ranks if one was asked to stop.
    pub fn agree_to_go_on(&self) -> Result<()> {
        match self.all_done(!self.stop.is_raised())? {
            true => Ok(()),
            false => bail!(Requeue, "stopped on request"),
        }
    }

    /// Whether all ranks are done.
    ///
    /// # Errors
    /// Those of the transport.
    pub fn all_done(&self, done: bool) -> Result<bool> {
        let mut open = [i64::from(!done)];
        self.comm().all_reduce_max(&mut open)?;
        Ok(open[0] == 0)
    }
}
