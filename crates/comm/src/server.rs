//! Claims over messages: rank 0 serves all ranks from a thread of its own.
//!
//! A rank asks rank 0 for its next unit and waits for the answer, at most the millisecond that the service thread
//! sleeps. A rank that was asked to stop tells rank 0 once; rank 0 tells everybody, and everybody learns it at the
//! next poll between batches. Nobody waits for a slow rank before closing.

use crate::messages::{Messages, Tag};
use crate::{Claim, Claims, StopFlag};
use equipoise_base::{Error, Result, bail};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long the service thread and a waiting client sleep between looks.
const POLL: Duration = Duration::from_millis(1);

/// What a rank tells the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    Claim,
    Finished(usize),
    Stop,
    Leave,
}

impl Request {
    fn encode(self) -> Vec<u8> {
        match self {
            Request::Claim => message(0, 0),
            Request::Finished(unit) => message(1, unit),
            Request::Stop => message(2, 0),
            Request::Leave => message(3, 0),
        }
    }

    fn decode(from: usize, bytes: &[u8]) -> Result<Self> {
        match parse(bytes) {
            Some((0, _)) => Ok(Request::Claim),
            Some((1, unit)) => Ok(Request::Finished(unit)),
            Some((2, _)) => Ok(Request::Stop),
            Some((3, _)) => Ok(Request::Leave),
            _ => bail!(Bug, "claim server: rank {from} sent {bytes:?}: do all ranks run the same build?"),
        }
    }
}

fn encode_claim(claim: Claim) -> Vec<u8> {
    match claim {
        Claim::Unit(unit) => message(0, unit),
        Claim::Done => message(1, 0),
        Claim::Stop => message(2, 0),
    }
}

fn decode_claim(bytes: &[u8]) -> Result<Claim> {
    match parse(bytes) {
        Some((0, unit)) => Ok(Claim::Unit(unit)),
        Some((1, _)) => Ok(Claim::Done),
        Some((2, _)) => Ok(Claim::Stop),
        _ => bail!(Bug, "claims: rank 0 answered {bytes:?}: do all ranks run the same build?"),
    }
}

/// One byte of kind, then the unit as 8 bytes, little-endian.
fn message(kind: u8, unit: usize) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend_from_slice(&(unit as u64).to_le_bytes());
    bytes
}

fn parse(bytes: &[u8]) -> Option<(u8, usize)> {
    let (&kind, unit) = bytes.split_first()?;
    Some((kind, usize::try_from(u64::from_le_bytes(unit.try_into().ok()?)).ok()?))
}

/// What the units of an attempt have come to, so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Reported as committed.
    pub finished: usize,
    /// Claimed and not reported, with the rank that holds each.
    pub held: BTreeMap<usize, usize>,
    /// Never handed out.
    pub unclaimed: usize,
}

/// The server's state: no messages, no time.
#[derive(Debug)]
struct Ledger {
    left: VecDeque<usize>,
    held: BTreeMap<usize, usize>,
    finished: usize,
    stopped: bool,
    present: Vec<bool>,
}

impl Ledger {
    fn new(units: Vec<usize>, ranks: usize) -> Self {
        let left = units.into();
        Self { left, held: BTreeMap::new(), finished: 0, stopped: false, present: vec![true; ranks] }
    }

    /// Takes in a request; the answer if one is due.
    fn handle(&mut self, from: usize, request: Request) -> Option<Claim> {
        match request {
            Request::Claim if self.stopped => return Some(Claim::Stop),
            Request::Claim => {
                let Some(unit) = self.left.pop_front() else { return Some(Claim::Done) };
                self.held.insert(unit, from);
                return Some(Claim::Unit(unit));
            }
            Request::Finished(unit) => {
                self.finished += usize::from(self.held.remove(&unit).is_some());
            }
            Request::Stop => self.stopped = true,
            Request::Leave => self.present[from] = false,
        }
        None
    }

    fn tally(&self) -> Tally {
        Tally { finished: self.finished, held: self.held.clone(), unclaimed: self.left.len() }
    }
}

/// Rank 0's side.
struct Server {
    messages: Arc<dyn Messages>,
    ledger: Mutex<Ledger>,
    stop: StopFlag,
    abandoned: AtomicBool,
}

impl Server {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Handles a request of any rank, this one included; spreads a stop the moment it is known.
    fn handle(&self, from: usize, request: Request) -> Result<Option<Claim>> {
        let (answer, ranks_to_tell) = {
            let mut ledger = self.ledger();
            let before = ledger.stopped;
            let answer = ledger.handle(from, request);
            let spread = ledger.stopped && !before;
            (answer, if spread { ledger.present.len() } else { 0 })
        };
        if ranks_to_tell > 0 {
            self.stop.raise();
        }
        for rank in (1..ranks_to_tell).filter(|&rank| rank != from) {
            self.messages.send(rank, Tag::StopNotice, &[])?;
        }
        Ok(answer)
    }

    /// The service thread. Without it every other rank would wait for ever, so its errors end the step.
    fn run(&self) {
        if let Err(error) = self.serve() {
            eprintln!("rank 0: claim server: {error}");
            self.messages.abort(error.code().status());
        }
    }

    /// Serves until every rank has left, or rank 0 gave up.
    fn serve(&self) -> Result<()> {
        while self.ledger().present.contains(&true) && !self.abandoned.load(Ordering::SeqCst) {
            if self.stop.is_raised() && !self.ledger().stopped {
                self.handle(0, Request::Stop)?;
            }
            match self.messages.try_receive(Tag::ClaimRequest)? {
                Some((from, bytes)) => {
                    if let Some(claim) = self.handle(from, Request::decode(from, &bytes)?)? {
                        self.messages.send(from, Tag::ClaimReply, &encode_claim(claim))?;
                    }
                }
                None => std::thread::sleep(POLL),
            }
        }
        Ok(())
    }
}

/// The server and its thread, until joined.
type Service = (Arc<Server>, Mutex<Option<JoinHandle<()>>>);

/// [`Claims`] served by rank 0.
pub struct ServedClaims {
    messages: Arc<dyn Messages>,
    stop: StopFlag,
    /// The stop was passed on, or came from rank 0.
    stop_known: AtomicBool,
    /// One question at a time; holds the final answer once there is one.
    last: Mutex<Option<Claim>>,
    closed: AtomicBool,
    server: Option<Service>,
}

impl ServedClaims {
    /// Starts the service; a collective. `units` are handed out in this order (give the largest first); only those
    /// of rank 0 count. Services of one process follow each other: close one on all ranks before starting the next.
    ///
    /// # Errors
    /// Those of the transport; I/O if the service thread cannot start.
    pub fn start(messages: Arc<dyn Messages>, units: Vec<usize>, stop: StopFlag) -> Result<Self> {
        // A rank must not ask this service before rank 0 has left the previous one.
        messages.barrier()?;
        let mut server = None;
        if messages.rank() == 0 {
            let shared = Arc::new(Server {
                messages: Arc::clone(&messages),
                ledger: Mutex::new(Ledger::new(units, messages.size())),
                stop: stop.clone(),
                abandoned: AtomicBool::new(false),
            });
            let service = Arc::clone(&shared);
            let thread =
                std::thread::Builder::new().name("claims".into()).spawn(move || service.run()).map_err(
                    |error| Error::new(equipoise_base::ExitCode::Io, format!("claims thread: {error}")),
                )?;
            server = Some((shared, Mutex::new(Some(thread))));
        }
        let stop_known = AtomicBool::new(false);
        Ok(Self {
            messages,
            stop,
            stop_known,
            last: Mutex::new(None),
            closed: AtomicBool::new(false),
            server,
        })
    }

    /// The state of all units, on rank 0; none elsewhere.
    pub fn tally(&self) -> Option<Tally> {
        self.server.as_ref().map(|(server, _)| server.ledger().tally())
    }

    fn tell(&self, request: Request) -> Result<Option<Claim>> {
        match &self.server {
            Some((server, _)) => server.handle(0, request),
            None => self.messages.send(0, Tag::ClaimRequest, &request.encode()).map(|()| None),
        }
    }

    fn ask(&self) -> Result<Claim> {
        if let Some(claim) = self.tell(Request::Claim)? {
            return Ok(claim);
        }
        loop {
            match self.messages.try_receive(Tag::ClaimReply)? {
                Some((_, bytes)) => return decode_claim(&bytes),
                None => std::thread::sleep(POLL),
            }
        }
    }
}

impl Claims for ServedClaims {
    fn next(&self) -> Result<Claim> {
        let mut last = self.last.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(claim) = *last {
            return Ok(claim);
        }
        let claim = if self.should_stop()? { Claim::Stop } else { self.ask()? };
        if !matches!(claim, Claim::Unit(_)) {
            *last = Some(claim);
        }
        Ok(claim)
    }

    fn finished(&self, unit: usize) -> Result<()> {
        self.tell(Request::Finished(unit)).map(drop)
    }

    fn should_stop(&self) -> Result<bool> {
        if self.server.is_none() && self.messages.try_receive(Tag::StopNotice)?.is_some() {
            self.stop_known.store(true, Ordering::SeqCst);
            self.stop.raise();
        }
        let raised = self.stop.is_raised();
        if raised && !self.stop_known.swap(true, Ordering::SeqCst) {
            self.tell(Request::Stop)?;
        }
        Ok(raised)
    }

    fn close(&self) -> Result<()> {
        if self.closed.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        self.tell(Request::Leave)?;
        let Some((_, thread)) = &self.server else { return Ok(()) };
        let thread = thread.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            bail!(Bug, "the claim server panicked");
        }
        Ok(())
    }
}

impl Drop for ServedClaims {
    /// Without `close` (an error is on its way up) the service ends without waiting for anybody.
    fn drop(&mut self) {
        if let Some((server, _)) = &self.server {
            server.abandoned.store(true, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Comm as _;
    use crate::threads::{ThreadComm, run};

    fn start(comm: ThreadComm, units: usize, stop: &StopFlag) -> ServedClaims {
        let units = if comm.rank() == 0 { (0..units).collect() } else { vec![] };
        ServedClaims::start(Arc::new(comm), units, stop.clone()).unwrap()
    }

    fn work(claims: &ServedClaims, pause: Duration) -> Vec<usize> {
        let mut units = vec![];
        while let Claim::Unit(unit) = claims.next().unwrap() {
            std::thread::sleep(pause);
            claims.finished(unit).unwrap();
            units.push(unit);
        }
        claims.close().unwrap();
        units
    }

    #[test]
    fn every_unit_exactly_once_and_a_slow_rank_takes_fewer() {
        let outcomes = run(4, |comm| {
            let pause = Duration::from_millis(if comm.rank() == 3 { 60 } else { 2 });
            let claims = start(comm, 60, &StopFlag::default());
            (work(&claims, pause), claims.tally())
        });
        let mut all: Vec<usize> = outcomes.iter().flat_map(|(units, _)| units.clone()).collect();
        all.sort_unstable();
        assert!(all.iter().copied().eq(0..60));
        assert!(outcomes[3].0.len() < 10, "{:?}", outcomes[3].0);
        assert_eq!(outcomes[0].1, Some(Tally { finished: 60, ..Tally::default() }));
    }

    #[test]
    fn a_stop_seen_by_one_rank_reaches_all_and_units_stay_accounted() {
        for stopped in 0..3 {
            let tallies = run(3, |comm| {
                let (comm, stop) = (Arc::new(comm), StopFlag::default());
                let units = (0..1000).collect();
                let claims = ServedClaims::start(Arc::clone(&comm) as _, units, stop.clone()).unwrap();
                let Claim::Unit(unit) = claims.next().unwrap() else { panic!("no unit") };
                comm.barrier().unwrap();
                if comm.rank() == stopped {
                    stop.raise();
                }
                // Batches of a unit that is never finished.
                while !claims.should_stop().unwrap() {
                    std::thread::sleep(Duration::from_millis(1));
                }
                assert_eq!(claims.next().unwrap(), Claim::Stop, "after unit {unit}");
                claims.close().unwrap();
                claims.tally()
            });
            let tally = tallies[0].clone().unwrap();
            assert_eq!((tally.held.len(), tally.unclaimed, tally.finished), (3, 997, 0));
        }
    }

    #[test]
    fn services_follow_each_other() {
        let counts = run(3, |comm| {
            let comm: Arc<dyn Messages> = Arc::new(comm);
            let mut total = 0;
            for round in 0..20 {
                let claims =
                    ServedClaims::start(Arc::clone(&comm), vec![round; 5], StopFlag::default()).unwrap();
                let units = work(&claims, Duration::ZERO);
                assert!(units.iter().all(|&unit| unit == round));
                total += units.len();
            }
            total
        });
        assert_eq!(counts.iter().sum::<usize>(), 100);
    }

    #[test]
    fn foreign_bytes_are_refused() {
        assert!(Request::decode(1, &[9; 9]).is_err());
        assert!(Request::decode(1, &[]).is_err());
        assert!(decode_claim(&[0; 3]).is_err());
        for request in [Request::Claim, Request::Finished(7), Request::Stop, Request::Leave] {
            assert_eq!(Request::decode(1, &request.encode()).unwrap(), request);
        }
    }

    #[test]
    fn a_server_that_fails_releases_everyone() {
        let released = run(2, |comm| {
            if comm.rank() == 1 {
                let comm = Arc::new(comm);
                let claims =
                    ServedClaims::start(Arc::clone(&comm) as _, vec![], StopFlag::default()).unwrap();
                comm.send(0, Tag::ClaimRequest, b"nonsense").unwrap();
                return claims.ask().is_err();
            }
            start(comm, 10, &StopFlag::default()).close().is_err()
        });
        assert_eq!(released, [true, true]);
    }

    #[test]
    fn an_error_on_rank_0_does_not_hang() {
        run(2, |comm| drop(start(comm, 10, &StopFlag::default())));
    }
}
