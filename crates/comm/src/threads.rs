//! Ranks as threads of one process, for tests.
//!
//! Everything that would hang a real run is an error here, on every rank and at once: collectives called in different
//! orders or with different roots or lengths, a rank that leaves while others wait for it, a panic, an abort.

use crate::Comm;
use crate::local::same_length;
use crate::messages::{Messages, Tag};
use equipoise_base::{Error, ExitCode, Result, bail, ensure};
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

/// One rank of a world of threads. Dropping it is leaving the world.
#[derive(Debug)]
pub struct ThreadComm {
    rank: usize,
    world: Arc<World>,
}

/// Payload of the unwinding that [`Comm::abort`] starts in the calling thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aborted {
    /// The status given to `abort`.
    pub status: i32,
}

/// What a rank is in; two ranks can meet in a collective only if these are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Barrier,
    Broadcast { root: usize },
    AllGather,
    AllReduceMax { len: usize },
    Exchange { peer: usize },
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Call::Barrier => f.write_str("barrier"),
            Call::Broadcast { root } => write!(f, "broadcast from rank {root}"),
            Call::AllGather => f.write_str("all_gather"),
            Call::AllReduceMax { len } => write!(f, "all_reduce_max of {len} values"),
            Call::Exchange { peer } => write!(f, "exchange with rank {peer}"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Working,
    Waiting(Call),
    Left,
}

#[derive(Debug)]
struct World {
    state: Mutex<State>,
    changed: Condvar,
}

/// Messages of one tag to one rank, with their senders.
type Mailbox = VecDeque<(usize, Vec<u8>)>;

#[derive(Debug)]
struct State {
    status: Vec<Status>,
    /// What each rank has brought to the collective in progress.
    brought: Vec<Option<(Call, Vec<u8>)>>,
    /// Number of finished collectives, and the result of the last one.
    round: u64,
    result: Arc<Vec<Vec<u8>>>,
    exchanged: HashMap<(usize, usize), VecDeque<Vec<u8>>>,
    mail: HashMap<(usize, Tag), Mailbox>,
    /// Set once; every later call fails with it.
    fault: Option<(ExitCode, String)>,
}

/// A world of `size` ranks, by rank.
pub fn world(size: usize) -> Vec<ThreadComm> {
    let state = State {
        status: vec![Status::Working; size],
        brought: vec![None; size],
        round: 0,
        result: Arc::default(),
        exchanged: HashMap::new(),
        mail: HashMap::new(),
        fault: None,
    };
    let world = Arc::new(World { state: Mutex::new(state), changed: Condvar::new() });
    (0..size).map(|rank| ThreadComm { rank, world: Arc::clone(&world) }).collect()
}

/// Runs `body` once per rank, each on a thread of its own, and returns the results by rank.
///
/// # Panics
/// With the panic of the lowest rank that panicked or aborted.
pub fn run<T: Send>(size: usize, body: impl Fn(ThreadComm) -> T + Sync) -> Vec<T> {
    let body = &body;
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let handles: Vec<_> = world(size).into_iter().map(|comm| scope.spawn(move || body(comm))).collect();
        handles.into_iter().map(|handle| handle.join()).collect()
    });
    let unwrap =
        |outcome: std::thread::Result<T>| outcome.unwrap_or_else(|why| std::panic::resume_unwind(why));
    outcomes.into_iter().map(unwrap).collect()
}

impl World {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Meets the other ranks; returns what each brought, by rank.
    fn meet(&self, rank: usize, call: Call, bytes: &[u8]) -> Result<Arc<Vec<Vec<u8>>>> {
        let mut state = self.lock();
        state.check()?;
        let round = state.round;
        state.brought[rank] = Some((call, bytes.to_vec()));
        state.status[rank] = Status::Waiting(call);
        if state.brought.iter().all(Option::is_some) {
            state.complete();
            self.changed.notify_all();
        } else if state.detect_deadlock() {
            self.changed.notify_all();
        }
        while state.round == round {
            state.check()?;
            state = self.wait(state);
        }
        Ok(Arc::clone(&state.result))
    }

    fn exchange(&self, rank: usize, peer: usize, send: &[u8]) -> Result<Vec<u8>> {
        let mut state = self.lock();
        state.check()?;
        state.exchanged.entry((rank, peer)).or_default().push_back(send.to_vec());
        if state.status[peer] == Status::Waiting(Call::Exchange { peer: rank }) {
            state.status[peer] = Status::Working;
        }
        self.changed.notify_all();
        loop {
            if let Some(bytes) = state.exchanged.get_mut(&(peer, rank)).and_then(VecDeque::pop_front) {
                state.status[rank] = Status::Working;
                return Ok(bytes);
            }
            state.check()?;
            state.status[rank] = Status::Waiting(Call::Exchange { peer });
            if state.detect_deadlock() {
                self.changed.notify_all();
                continue;
            }
            state = self.wait(state);
        }
    }
}

impl State {
    fn check(&self) -> Result<()> {
        match &self.fault {
            Some((code, message)) => Err(Error::new(*code, message.clone())),
            None => Ok(()),
        }
    }

    /// Ends the collective that all ranks have reached.
    fn complete(&mut self) {
        let calls: Vec<Call> = self.brought.iter().flatten().map(|(call, _)| *call).collect();
        if calls.iter().any(|call| *call != calls[0]) {
            self.fault = Some((ExitCode::Bug, self.describe("collectives called in different orders")));
            return;
        }
        self.result =
            Arc::new(self.brought.iter_mut().filter_map(Option::take).map(|(_, bytes)| bytes).collect());
        self.status.fill(Status::Working);
        self.round += 1;
    }

    /// Sets the fault if somebody waits and nobody is left who could end the wait.
    fn detect_deadlock(&mut self) -> bool {
        let nobody_works = !self.status.contains(&Status::Working);
        let somebody_waits = self.status.iter().any(|status| matches!(status, Status::Waiting(_)));
        if nobody_works && somebody_waits && self.fault.is_none() {
            self.fault = Some((ExitCode::Bug, self.describe("ranks wait for each other for ever")));
        }
        self.fault.is_some()
    }

    fn describe(&self, what: &str) -> String {
        let ranks = self.status.iter().enumerate().map(|(rank, status)| match status {
            Status::Working => format!("rank {rank} works"),
            Status::Waiting(call) => format!("rank {rank} is in {call}"),
            Status::Left => format!("rank {rank} has left"),
        });
        format!("{what}: {}", ranks.collect::<Vec<_>>().join(", "))
    }
}

impl ThreadComm {
    fn check_rank(&self, rank: usize) -> Result<()> {
        ensure!(rank < self.size(), Bug, "rank {rank} does not exist in a world of {}", self.size());
        Ok(())
    }
}

impl Drop for ThreadComm {
    fn drop(&mut self) {
        let mut state = self.world.lock();
        state.status[self.rank] = Status::Left;
        if std::thread::panicking() {
            state.fault.get_or_insert((ExitCode::Bug, format!("rank {} panicked", self.rank)));
        }
        state.detect_deadlock();
        self.world.changed.notify_all();
    }
}

impl Comm for ThreadComm {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.world.lock().status.len()
    }

    fn barrier(&self) -> Result<()> {
        self.world.meet(self.rank, Call::Barrier, &[]).map(drop)
    }

    fn broadcast(&self, bytes: &mut Vec<u8>, root: usize) -> Result<()> {
        self.check_rank(root)?;
        let own: &[u8] = if root == self.rank { bytes } else { &[] };
        let all = self.world.meet(self.rank, Call::Broadcast { root }, own)?;
        bytes.clone_from(&all[root]);
        Ok(())
    }

    fn all_gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.world.meet(self.rank, Call::AllGather, bytes).map(|all| all.to_vec())
    }

    fn all_reduce_max(&self, values: &mut [i64]) -> Result<()> {
        let own: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let all = self.world.meet(self.rank, Call::AllReduceMax { len: values.len() }, &own)?;
        for theirs in all.iter() {
            for (value, bytes) in values.iter_mut().zip(theirs.as_chunks::<8>().0) {
                *value = (*value).max(i64::from_le_bytes(*bytes));
            }
        }
        Ok(())
    }

    fn exchange(&self, peer: usize, send: &[u8], receive: &mut [u8]) -> Result<()> {
        self.check_rank(peer)?;
        same_length(peer, send, receive)?;
        let bytes = self.world.exchange(self.rank, peer, send)?;
        if bytes.len() != receive.len() {
            bail!(Bug, "exchange: rank {peer} sent {} bytes, expected {}", bytes.len(), receive.len());
        }
        receive.copy_from_slice(&bytes);
        Ok(())
    }

    /// Fails all calls of all ranks from now on and unwinds the calling thread with [`Aborted`].
    fn abort(&self, status: i32) -> ! {
        let code = ExitCode::from_status(status).unwrap_or(ExitCode::Bug);
        let message = format!("rank {} aborted with status {status}", self.rank);
        self.world.lock().fault.get_or_insert((code, message));
        self.world.changed.notify_all();
        std::panic::resume_unwind(Box::new(Aborted { status }))
    }
}

impl Messages for ThreadComm {
    fn send(&self, to: usize, tag: Tag, bytes: &[u8]) -> Result<()> {
        self.check_rank(to)?;
        let mut state = self.world.lock();
        state.check()?;
        state.mail.entry((to, tag)).or_default().push_back((self.rank, bytes.to_vec()));
        Ok(())
    }

    fn try_receive(&self, tag: Tag) -> Result<Option<(usize, Vec<u8>)>> {
        let mut state = self.world.lock();
        state.check()?;
        Ok(state.mail.get_mut(&(self.rank, tag)).and_then(VecDeque::pop_front))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collectives_meet_by_rank() {
        let outcomes = run(3, |comm| {
            let rank = comm.rank();
            comm.barrier().unwrap();
            let mut bytes = vec![rank as u8; rank];
            comm.broadcast(&mut bytes, 2).unwrap();
            let gathered = comm.all_gather(&vec![7; rank]).unwrap();
            let mut values = [rank as i64, -(rank as i64)];
            comm.all_reduce_max(&mut values).unwrap();
            (bytes, gathered.iter().map(Vec::len).collect::<Vec<_>>(), values)
        });
        assert_eq!(outcomes, vec![(vec![2, 2], vec![0, 1, 2], [2, 0]); 3]);
    }

    #[test]
    fn many_rounds_do_not_mix() {
        run(4, |comm| {
            for round in 0..200u8 {
                assert_eq!(comm.all_gather(&[round]).unwrap(), vec![vec![round]; 4]);
            }
        });
    }

    #[test]
    fn pairs_exchange() {
        let received = run(4, |comm| {
            let mut receive = [0];
            comm.exchange(comm.rank() ^ 1, &[comm.rank() as u8], &mut receive).unwrap();
            receive[0]
        });
        assert_eq!(received, [1, 0, 3, 2]);
    }

    fn faults(size: usize, body: impl Fn(&ThreadComm) -> Result<()> + Sync) -> Vec<String> {
        run(size, |comm| body(&comm).err().map_or(String::new(), |error| error.to_string()))
    }

    #[test]
    fn different_orders_are_an_error_on_every_rank() {
        let messages = faults(2, |comm| match comm.rank() {
            0 => comm.barrier(),
            _ => comm.all_gather(b"x").map(drop),
        });
        assert_eq!(messages[0], messages[1]);
        assert!(messages[0].contains("rank 0 is in barrier, rank 1 is in all_gather"), "{messages:?}");
        let roots = faults(2, |comm| comm.broadcast(&mut vec![1], comm.rank()));
        assert!(roots[1].contains("rank 1 is in broadcast from rank 1"), "{roots:?}");
        let lengths = faults(2, |comm| comm.all_reduce_max(&mut vec![0; comm.rank() + 1]));
        assert!(lengths[0].contains("all_reduce_max of 2 values"), "{lengths:?}");
    }

    #[test]
    fn an_exchange_nobody_answers_is_an_error() {
        let messages = faults(2, |comm| match comm.rank() {
            0 => comm.barrier(),
            _ => comm.exchange(0, &[1], &mut [0]),
        });
        assert!(messages[0].contains("rank 1 is in exchange with rank 0"), "{messages:?}");
        let left = run(2, |comm| (comm.rank() == 0).then(|| comm.barrier().unwrap_err().to_string()));
        assert!(left[0].as_ref().unwrap().contains("rank 1 has left"), "{left:?}");
    }

    #[test]
    fn a_panic_reaches_everyone() {
        run(2, |comm| {
            if comm.rank() == 1 {
                let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    let _owned = comm;
                    std::panic::resume_unwind(Box::new("injected"));
                }));
                assert!(unwound.is_err());
                return;
            }
            while comm.try_receive(Tag::Heartbeat).is_ok() {
                std::thread::yield_now();
            }
            assert!(comm.barrier().unwrap_err().to_string().contains("rank 1 panicked"));
        });
    }

    #[test]
    fn an_abort_reaches_everyone() {
        let codes = run(3, |comm| {
            if comm.rank() == 2 {
                let abort = std::panic::AssertUnwindSafe(|| comm.abort(74));
                let payload = std::panic::catch_unwind(abort).unwrap_err();
                assert_eq!(payload.downcast_ref(), Some(&Aborted { status: 74 }));
                return ExitCode::Done;
            }
            comm.barrier().unwrap_err().code()
        });
        assert_eq!(codes[..2], [ExitCode::Io; 2]);
    }
}
