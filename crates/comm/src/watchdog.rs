//! Ends a step whose ranks can no longer go on: a peer is lost, or nothing moves anywhere.
//!
//! Every rank runs one thread, which once per period sends a heartbeat to the next rank. A rank whose *process* dies
//! or whose node vanishes falls silent, and its one neighbour aborts everybody after [`Bounds::lost`].
//!
//! Slow is told apart from stuck by work, not by silence. A rank counts beats: each batch or step it finishes, each
//! collective it enters or leaves ([`Pulse`]). Heartbeats carry the age of the youngest beat known to the sender, from
//! any rank, and gossip takes it to all ranks in about log2(size) periods. While one slow rank still works, that age
//! stays small and all others wait as long as it takes. Once no rank has moved for [`Bounds::stuck`] (one rank hangs
//! in I/O and the others wait for it; a network hangs all) the step ends. So `stuck` has to exceed the longest time
//! between two beats of the slowest rank; a 10 times slower node needs nothing else.
//!
//! Ages count this thread's own ticks, each bounded, and not the clock: a job that was suspended as a whole does not
//! kill itself when it wakes.

use crate::Comm;
use crate::messages::{Messages, Tag};
use equipoise_base::{Error, ExitCode, Result};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Exit code of a step ended by the watchdog. Only the launcher or Slurm can know whether to try again.
pub const LOST_PEER: ExitCode = ExitCode::Io;

/// How long the report of the reason may take: the file system may be what hangs.
const REPORT_BOUND: Duration = Duration::from_secs(5);

/// How long to wait for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Between two heartbeats.
    pub period: Duration,
    /// A rank unheard for so long is lost.
    pub lost: Duration,
    /// No beat of any rank for so long: the step hangs.
    pub stuck: Duration,
}

impl Default for Bounds {
    /// Everything is over 30 s after the loss of a rank, the report included.
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { period: seconds(1), lost: seconds(20), stuck: seconds(600) }
    }
}

/// Signs of life of this rank's working threads.
#[derive(Debug, Default)]
pub struct Pulse {
    beats: AtomicU64,
    waiting: Mutex<Option<&'static str>>,
}

impl Pulse {
    /// Something was finished: a batch, a step, a file.
    pub fn beat(&self) {
        self.beats.fetch_add(1, Ordering::Relaxed);
    }

    /// Marks the time until the guard is dropped as waiting for others, named in the watchdog's report.
    pub fn enter(&self, what: &'static str) -> Waiting<'_> {
        self.set_waiting(Some(what));
        Waiting(self)
    }

    fn set_waiting(&self, what: Option<&'static str>) {
        *self.waiting.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = what;
        self.beat();
    }

    fn describe(&self) -> String {
        match *self.waiting.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) {
            Some(what) => format!("waits in {what}"),
            None => "works".into(),
        }
    }
}

/// A rank in a collective; see [`Pulse::enter`].
#[derive(Debug)]
pub struct Waiting<'a>(&'a Pulse);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.set_waiting(None);
    }
}

/// Told the reason before the step ends; it should write `outcome.json`.
pub type Report = Box<dyn FnOnce(&str) + Send>;

/// The watching thread. Dropping it stops the watch: do so after the last collective, on all ranks.
#[derive(Debug)]
pub struct Watchdog {
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Starts watching. `report` runs at most once, for at most 5 s, right before [`Comm::abort`] with [`LOST_PEER`].
    ///
    /// # Errors
    /// I/O if the thread cannot start.
    pub fn start(
        messages: Arc<dyn Messages>,
        pulse: Arc<Pulse>,
        bounds: Bounds,
        report: Report,
    ) -> Result<Self> {
        let done = Arc::new(AtomicBool::new(false));
        let watch = Watch::new(messages, pulse, bounds);
        let flag = Arc::clone(&done);
        let thread = std::thread::Builder::new()
            .name("watchdog".into())
            .spawn(move || watch.run(&flag, report))
            .map_err(|error| {
                Error::new(ExitCode::Io, format!("cannot start the watchdog thread: {error}"))
            })?;
        Ok(Self { done, thread: Some(thread) })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.done.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A watchdog that fired over `ThreadComm` has unwound; there is nothing to add to that.
            let _ = thread.join();
        }
    }
}

/// The thread's state.
struct Watch {
    messages: Arc<dyn Messages>,
    pulse: Arc<Pulse>,
    bounds: Bounds,
    seen_beats: u64,
    /// Age of this rank's last beat.
    own_age: Duration,
    /// Age of the youngest beat heard of from others.
    heard_age: Duration,
    /// Time since the last heartbeat of the rank before this one.
    silence: Duration,
    ticks: u32,
}

impl Watch {
    fn new(messages: Arc<dyn Messages>, pulse: Arc<Pulse>, bounds: Bounds) -> Self {
        let zero = Duration::ZERO;
        Self {
            messages,
            pulse,
            bounds,
            seen_beats: 0,
            own_age: zero,
            heard_age: zero,
            silence: zero,
            ticks: 0,
        }
    }

    fn run(mut self, done: &AtomicBool, report: Report) {
        let mut last = Instant::now();
        while !done.load(Ordering::SeqCst) {
            // Bounded, so that the time of a suspended job does not count.
            let elapsed = last.elapsed().min(4 * self.bounds.period);
            last = Instant::now();
            match self.tick(elapsed) {
                Ok(None) => std::thread::park_timeout(self.bounds.period),
                Ok(Some(reason)) => return self.fire(reason, report),
                Err(error) => {
                    return self.fire(format!("the watchdog cannot send or receive: {error}"), report);
                }
            }
        }
    }

    /// One period: the reason to end the step, if there is one.
    fn tick(&mut self, elapsed: Duration) -> Result<Option<String>> {
        self.age(elapsed);
        self.listen()?;
        self.speak()?;
        let (rank, size) = (self.messages.rank(), self.messages.size());
        if size > 1 && self.silence > self.bounds.lost {
            let before = (rank + size - 1) % size;
            return Ok(Some(format!(
                "rank {before} was not heard for {:.0} s: its process or node is lost (rank {rank} {})",
                self.silence.as_secs_f64(),
                self.pulse.describe()
            )));
        }
        let age = self.youngest_beat();
        if age > self.bounds.stuck {
            return Ok(Some(format!(
                "no rank has made progress for {:.0} s (rank {rank} {}); raise the bound if a batch can take longer",
                age.as_secs_f64(),
                self.pulse.describe()
            )));
        }
        Ok(None)
    }

    fn age(&mut self, elapsed: Duration) {
        let beats = self.pulse.beats.load(Ordering::Relaxed);
        self.own_age = if beats == self.seen_beats { self.own_age + elapsed } else { Duration::ZERO };
        self.seen_beats = beats;
        self.heard_age += elapsed;
        self.silence += elapsed;
    }

    fn listen(&mut self) -> Result<()> {
        let (rank, size) = (self.messages.rank(), self.messages.size());
        while let Some((from, bytes)) = self.messages.try_receive(Tag::Heartbeat)? {
            if from == (rank + size - 1) % size {
                self.silence = Duration::ZERO;
            }
            let age = bytes.try_into().map_or(0, u64::from_le_bytes);
            // A message may have waited for one period. Without this, an age that goes round in a circle never grows.
            self.heard_age = self.heard_age.min(Duration::from_millis(age) + self.bounds.period);
        }
        Ok(())
    }

    /// To the next rank always, and to one at a growing distance, so that gossip spreads in log2(size) periods.
    fn speak(&mut self) -> Result<()> {
        let (rank, size) = (self.messages.rank(), self.messages.size());
        if size == 1 {
            return Ok(());
        }
        let age = (self.youngest_beat().as_millis() as u64).to_le_bytes();
        self.messages.send((rank + 1) % size, Tag::Heartbeat, &age)?;
        let distances = usize::BITS - (size - 1).leading_zeros();
        let stride = 1usize << (self.ticks % distances);
        self.ticks = self.ticks.wrapping_add(1);
        if stride > 1 {
            self.messages.send((rank + stride) % size, Tag::Heartbeat, &age)?;
        }
        Ok(())
    }

    fn youngest_beat(&self) -> Duration {
        if self.messages.size() == 1 { self.own_age } else { self.own_age.min(self.heard_age) }
    }

    fn fire(self, reason: String, report: Report) {
        eprintln!("rank {}: {reason}", self.messages.rank());
        let (finished, wait) = mpsc::channel();
        let reporter = std::thread::Builder::new().name("report".into()).spawn(move || {
            report(&reason);
            // The receiver is gone only after the bound.
            let _ = finished.send(());
        });
        if reporter.is_ok() {
            // Late or not, the step ends now.
            let _ = wait.recv_timeout(REPORT_BOUND);
        }
        self.messages.abort(LOST_PEER.status())
    }
}

/// A transport whose collectives count as beats and are named in the watchdog's report.
pub struct Watched {
    inner: Arc<dyn Messages>,
    pulse: Arc<Pulse>,
}

impl Watched {
    /// Wraps a transport.
    pub fn new(inner: Arc<dyn Messages>, pulse: Arc<Pulse>) -> Self {
        Self { inner, pulse }
    }
}

impl Comm for Watched {
    fn rank(&self) -> usize {
        self.inner.rank()
    }

    fn size(&self) -> usize {
        self.inner.size()
    }

    fn barrier(&self) -> Result<()> {
        let _waiting = self.pulse.enter("barrier");
        self.inner.barrier()
    }

    fn broadcast(&self, bytes: &mut Vec<u8>, root: usize) -> Result<()> {
        let _waiting = self.pulse.enter("broadcast");
        self.inner.broadcast(bytes, root)
    }

    fn all_gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        let _waiting = self.pulse.enter("all_gather");
        self.inner.all_gather(bytes)
    }

    fn all_reduce_max(&self, values: &mut [i64]) -> Result<()> {
        let _waiting = self.pulse.enter("all_reduce_max");
        self.inner.all_reduce_max(values)
    }

    fn exchange(&self, peer: usize, send: &[u8], receive: &mut [u8]) -> Result<()> {
        let _waiting = self.pulse.enter("exchange");
        self.inner.exchange(peer, send, receive)
    }

    fn abort(&self, status: i32) -> ! {
        self.inner.abort(status)
    }
}

impl Messages for Watched {
    fn send(&self, to: usize, tag: Tag, bytes: &[u8]) -> Result<()> {
        self.inner.send(to, tag, bytes)
    }

    fn try_receive(&self, tag: Tag) -> Result<Option<(usize, Vec<u8>)>> {
        self.inner.try_receive(tag)
    }
}
