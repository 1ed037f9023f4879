//! Checkpoints off the critical path: training goes on while a thread writes.

use crate::checkpoint::{Checkpoints, Snapshot};
use crate::signals;
use equipoise_base::clock::Clock;
use equipoise_base::{Error, ExitCode, Result, ResultExt as _, trace};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// A thread that saves snapshots, one at a time.
///
/// At most one is in flight: [`submit`](Self::submit) waits for the one before, which bounds memory to one snapshot
/// more and lets an error surface at the next call at the latest. Dropping it waits for the one in flight; whoever
/// needs to know how that ended calls [`wait`](Self::wait) first.
pub struct CheckpointWriter {
    /// None once dropped, which ends the thread.
    snapshots: Option<Sender<Snapshot>>,
    results: Receiver<Result<Duration>>,
    thread: Option<JoinHandle<()>>,
    in_flight: bool,
    longest: Duration,
}

impl CheckpointWriter {
    /// Starts the thread. After each save all but the newest `keep` checkpoints are removed; 0 keeps all.
    ///
    /// # Errors
    /// 74 if no thread can be started.
    pub fn start(checkpoints: Checkpoints, keep: usize, clock: Arc<dyn Clock>) -> Result<Self> {
        let (snapshots, inbox) = channel::<Snapshot>();
        let (outbox, results) = channel();
        let thread = std::thread::Builder::new().name("checkpoint".into()).spawn(move || {
            signals::block_in_this_thread();
            for snapshot in inbox {
                let _span = trace::numbered("checkpoint", snapshot.step);
                let start = clock.monotonic();
                let saved = checkpoints.save(&snapshot);
                let took = clock.monotonic().saturating_sub(start);
                let result = saved.and_then(|_| match keep {
                    0 => Ok(took),
                    keep => checkpoints.keep_last(keep).map(|()| took),
                });
                if outbox.send(result).is_err() {
                    return;
                }
            }
        });
        let thread = Some(thread.or_exit(ExitCode::Io, "cannot start the checkpoint thread")?);
        Ok(Self { snapshots: Some(snapshots), results, thread, in_flight: false, longest: Duration::ZERO })
    }

    /// Hands over a snapshot, waiting for the one before.
    ///
    /// # Errors
    /// Those of the save before; this snapshot is not written then.
    pub fn submit(&mut self, snapshot: Snapshot) -> Result<()> {
        self.wait()?;
        let sent = self.snapshots.as_ref().is_some_and(|snapshots| snapshots.send(snapshot).is_ok());
        self.in_flight = sent;
        if sent { Ok(()) } else { Err(ended()) }
    }

    /// Returns once nothing is in flight.
    ///
    /// # Errors
    /// Those of [`Checkpoints::save`] and [`Checkpoints::keep_last`].
    pub fn wait(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.in_flight) {
            return Ok(());
        }
        let took = self.results.recv().map_err(|_| ended())??;
        self.longest = self.longest.max(took);
        Ok(())
    }

    /// Looks whether the snapshot in flight has been written, without waiting for it.
    ///
    /// # Errors
    /// As [`wait`](Self::wait), once.
    pub fn poll(&mut self) -> Result<()> {
        if !self.in_flight {
            return Ok(());
        }
        let result = match self.results.try_recv() {
            Err(TryRecvError::Empty) => return Ok(()),
            Err(TryRecvError::Disconnected) => Err(ended()),
            Ok(result) => result,
        };
        self.in_flight = false;
        self.longest = self.longest.max(result?);
        Ok(())
    }

    /// Whether a snapshot may still be being written: a rank that fails waits for it to end.
    pub fn is_in_flight(&self) -> bool {
        self.in_flight
    }

    /// The longest save so far: what [`Deadline::measured`](crate::Deadline::measured) wants to know.
    pub fn longest_save(&self) -> Duration {
        self.longest
    }
}

/// The thread panicked: its message is on standard error already.
fn ended() -> Error {
    Error::new(ExitCode::Bug, "the checkpoint thread has ended")
}

impl Drop for CheckpointWriter {
    fn drop(&mut self) {
        self.snapshots = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::FaultFs;
    use equipoise_base::Identity;
    use equipoise_base::clock::SystemClock;
    use std::collections::BTreeMap;

    fn snapshot(step: u64) -> Snapshot {
        let files = BTreeMap::from([("model".to_string(), vec![step as u8; 100])]);
        Snapshot { step, world: 1, identity: Identity::of("x"), files, user: serde_json::Value::Null }
    }

    #[test]
    fn writes_in_the_background_and_keeps_the_newest() {
        let fs = FaultFs::new();
        let checkpoints = Checkpoints::new(Arc::new(fs), "/ckpt", None);
        let mut writer =
            CheckpointWriter::start(checkpoints.clone(), 2, Arc::new(SystemClock::default())).unwrap();
        for step in 1..=5 {
            writer.submit(snapshot(step)).unwrap();
        }
        assert!(writer.is_in_flight());
        writer.wait().unwrap();
        assert!(writer.longest_save() > Duration::ZERO);
        assert_eq!(checkpoints.steps().unwrap(), [4, 5]);
        writer.submit(snapshot(6)).unwrap();
        drop(writer);
        assert_eq!(checkpoints.steps().unwrap(), [5, 6], "dropping finishes what was submitted");
    }

    #[test]
    fn an_error_surfaces_without_another_snapshot() {
        let fs = FaultFs::new();
        let checkpoints = Checkpoints::new(Arc::new(fs.clone()), "/ckpt", None);
        let mut writer = CheckpointWriter::start(checkpoints, 2, Arc::new(SystemClock::default())).unwrap();
        writer.poll().unwrap();
        fs.limit_bytes(Some(50));
        writer.submit(snapshot(1)).unwrap();
        let error = loop {
            if let Err(error) = writer.poll() {
                break error;
            }
            std::thread::yield_now();
        };
        assert_eq!(error.code(), ExitCode::Io);
        assert!(!writer.is_in_flight());
        writer.poll().unwrap();
    }

    #[test]
    fn an_error_surfaces_at_the_next_call_and_writing_goes_on_after_it() {
        let fs = FaultFs::new();
        let checkpoints = Checkpoints::new(Arc::new(fs.clone()), "/ckpt", None);
        let mut writer =
            CheckpointWriter::start(checkpoints.clone(), 2, Arc::new(SystemClock::default())).unwrap();
        fs.limit_bytes(Some(50));
        writer.submit(snapshot(1)).unwrap();
        let error = writer.submit(snapshot(2)).unwrap_err();
        assert_eq!(error.code(), ExitCode::Io);
        fs.limit_bytes(None);
        writer.submit(snapshot(3)).unwrap();
        writer.wait().unwrap();
        assert_eq!(checkpoints.steps().unwrap(), [3]);
    }
}
