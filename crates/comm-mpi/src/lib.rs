//! [`Comm`] and [`Messages`] over MPI: OpenMPI or MPICH, whichever the crate `mpi` was built against.
//!
//! No MPI type is public. Collectives and messages have a communicator each, so neither sees the other's traffic. MPI
//! runs with full thread support: the claim server and the watchdog talk while the main thread waits in a collective.
//!
//! MPI's own error handler stays in place: an MPI error ends all ranks, with MPI's message.

mod outbox;
mod world_size;

use equipoise_base::{Error, Result, bail, ensure};
use equipoise_comm::Comm;
use equipoise_comm::local::{exit_now, same_length};
use equipoise_comm::messages::{MAX_MESSAGE, Messages, Tag};
use mpi::collective::SystemOperation;
use mpi::datatype::PartitionMut;
use mpi::point_to_point::{Source as _, Status, send_receive_into};
use mpi::topology::{Communicator as _, SimpleCommunicator};
use mpi::traits::{CommunicatorCollectives as _, Equivalence as _, Root as _};
use mpi::{Count, Rank, Threading};
use outbox::Outbox;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ThreadId;

/// MPI counts are 32-bit: larger buffers travel in pieces of at most this many bytes.
const CHUNK: usize = 1 << 30;

/// All ranks that this process was started with.
pub struct MpiComm {
    collectives: Channel,
    messages: Channel,
    outbox: Outbox,
    rank: usize,
    size: usize,
    /// MPI has to be finalized by the thread that initialized it.
    thread: ThreadId,
    finished: AtomicBool,
    chunk: usize,
}

/// A communicator of its own. Never freed: freeing is collective, and a process that unwinds must not wait for others.
struct Channel(ManuallyDrop<SimpleCommunicator>);

// SAFETY: the handle is a plain value and, with MPI_THREAD_MULTIPLE (checked before any Channel exists), every thread
// may use it.
unsafe impl Send for Channel {}
// SAFETY: as above.
unsafe impl Sync for Channel {}

impl Channel {
    fn rank(rank: usize) -> Rank {
        rank as Rank
    }
}

impl MpiComm {
    /// Initializes MPI, once per process; a collective over the whole job.
    ///
    /// Call [`MpiComm::finish`] at the end. A process that ends without it, by error or panic, takes the job down with
    /// it (as mpirun and `srun -K1` do for a rank that has not finalized), which is what an unfinished job should do.
    ///
    /// # Errors
    /// Configuration: the launcher started another number of ranks than this MPI sees (mostly N worlds of one, from an
    /// srun or mpirun of another MPI), or this MPI cannot be used by several threads.
    /// Bug: MPI is initialized already.
    pub fn init() -> Result<Self> {
        let Some((universe, threading)) = mpi::initialize_with_threading(Threading::Multiple) else {
            bail!(Bug, "MPI is initialized already");
        };
        let world = universe.world();
        // Dropped, it would finalize, even while unwinding, and wait there for ranks that wait for this one.
        std::mem::forget(universe);
        let (rank, size) = (world.rank() as usize, world.size() as usize);
        world_size::check(size, |name| std::env::var(name).ok())?;
        if threading < Threading::Multiple {
            let library = mpi::environment::library_version().unwrap_or_default();
            return Err(Error::config(format!(
                "MPI grants only {threading:?} thread support ({}): use an MPI built with MPI_THREAD_MULTIPLE",
                library.lines().next().unwrap_or("unknown library")
            ))
            .next("equipoise doctor"));
        }
        let channel = || Channel(ManuallyDrop::new(world.duplicate()));
        let (collectives, messages) = (channel(), channel());
        Ok(Self {
            collectives,
            messages,
            outbox: Outbox::default(),
            rank,
            size,
            thread: std::thread::current().id(),
            finished: AtomicBool::new(false),
            chunk: CHUNK,
        })
    }

    /// Sets the size of the pieces in which large buffers travel, the same on all ranks: small ones let a test reach
    /// what otherwise takes gigabytes.
    #[must_use]
    pub fn with_chunk(mut self, bytes: usize) -> Self {
        self.chunk = bytes.clamp(size_of::<i64>(), CHUNK);
        self
    }

    /// Waits for all ranks, then finalizes MPI; a collective. Stop the watchdog and close all claims before; nothing
    /// but [`Comm::abort`] works afterwards.
    ///
    /// No rank may exit before all have committed: mpirun kills the others as soon as one ends with a status other
    /// than 0.
    ///
    /// # Errors
    /// Bug: called twice, or from another thread than [`MpiComm::init`].
    pub fn finish(&self) -> Result<()> {
        ensure!(std::thread::current().id() == self.thread, Bug, "MPI was initialized by another thread");
        ensure!(!self.finished.load(Ordering::SeqCst), Bug, "MPI is finalized already");
        self.barrier()?;
        // Late heartbeats of ranks that stopped their watchdog after this one.
        while self.try_receive(Tag::Heartbeat)?.is_some() || self.try_receive(Tag::StopNotice)?.is_some() {}
        self.outbox.drain();
        self.finished.store(true, Ordering::SeqCst);
        // SAFETY: initialized in `init`, by this thread, and not finalized before.
        unsafe { mpi::ffi::MPI_Finalize() };
        Ok(())
    }

    /// Name and version of the MPI library, for identity and `doctor`.
    pub fn library() -> String {
        mpi::environment::library_version().unwrap_or_default().trim_end_matches('\0').trim().to_string()
    }

    fn check_rank(&self, rank: usize) -> Result<()> {
        ensure!(rank < self.size, Bug, "rank {rank} does not exist in a world of {}", self.size);
        Ok(())
    }

    fn broadcast_slice(&self, bytes: &mut [u8], root: usize) {
        let root = self.collectives.0.process_at_rank(Channel::rank(root));
        for chunk in bytes.chunks_mut(self.chunk) {
            root.broadcast_into(chunk);
        }
    }
}

fn bytes_in(status: &Status) -> usize {
    status.count(u8::equivalent_datatype()) as usize
}

impl Comm for MpiComm {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn barrier(&self) -> Result<()> {
        self.collectives.0.barrier();
        Ok(())
    }

    fn broadcast(&self, bytes: &mut Vec<u8>, root: usize) -> Result<()> {
        self.check_rank(root)?;
        let mut len = bytes.len() as u64;
        self.collectives.0.process_at_rank(Channel::rank(root)).broadcast_into(&mut len);
        bytes.resize(len as usize, 0);
        self.broadcast_slice(bytes, root);
        Ok(())
    }

    fn all_gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        let mut lengths = vec![0u64; self.size];
        self.collectives.0.all_gather_into(&(bytes.len() as u64), &mut lengths[..]);
        let total: u64 = lengths.iter().sum();
        if total > self.chunk as u64 {
            // Too much for 32-bit displacements: one broadcast per rank.
            let gather_from = |root: usize| {
                let mut theirs =
                    if root == self.rank { bytes.to_vec() } else { vec![0; lengths[root] as usize] };
                self.broadcast_slice(&mut theirs, root);
                theirs
            };
            return Ok((0..self.size).map(gather_from).collect());
        }
        if total == 0 {
            return Ok(vec![vec![]; self.size]);
        }
        // The address of an empty vector is that of OpenMPI's MPI_IN_PLACE, 1.
        static NOTHING: [u8; 1] = [0];
        let bytes = if bytes.is_empty() { &NOTHING[..0] } else { bytes };
        let counts: Vec<Count> = lengths.iter().map(|&len| len as Count).collect();
        let ends = counts.iter().scan(0, |end, &count| {
            *end += count;
            Some(*end)
        });
        let displacements: Vec<Count> = ends.zip(&counts).map(|(end, count)| end - count).collect();
        let mut joined = vec![0u8; total as usize];
        let mut partition = PartitionMut::new(&mut joined[..], &counts[..], &displacements[..]);
        self.collectives.0.all_gather_varcount_into(bytes, &mut partition);
        let piece =
            |(&start, &len): (&Count, &Count)| joined[start as usize..(start + len) as usize].to_vec();
        Ok(displacements.iter().zip(&counts).map(piece).collect())
    }

    fn all_reduce_max(&self, values: &mut [i64]) -> Result<()> {
        let own = values.to_vec();
        let chunk = self.chunk / size_of::<i64>();
        for (own, result) in own.chunks(chunk).zip(values.chunks_mut(chunk)) {
            self.collectives.0.all_reduce_into(own, result, SystemOperation::max());
        }
        Ok(())
    }

    fn exchange(&self, peer: usize, send: &[u8], receive: &mut [u8]) -> Result<()> {
        self.check_rank(peer)?;
        same_length(peer, send, receive)?;
        let process = self.collectives.0.process_at_rank(Channel::rank(peer));
        for (send, receive) in send.chunks(self.chunk).zip(receive.chunks_mut(self.chunk)) {
            let status = send_receive_into(send, &process, receive, &process);
            let received = bytes_in(&status);
            ensure!(
                received == receive.len(),
                Bug,
                "exchange: rank {peer} sent {received} bytes, expected {}",
                receive.len()
            );
        }
        Ok(())
    }

    /// After [`MpiComm::finish`] it ends this process alone.
    fn abort(&self, status: i32) -> ! {
        if self.finished.load(Ordering::SeqCst) {
            exit_now(status);
        }
        self.collectives.0.abort(status)
    }
}

impl Messages for MpiComm {
    fn send(&self, to: usize, tag: Tag, bytes: &[u8]) -> Result<()> {
        self.check_rank(to)?;
        ensure!(bytes.len() <= MAX_MESSAGE, Bug, "message of {} bytes, at most {MAX_MESSAGE}", bytes.len());
        self.outbox.send(&self.messages.0, Channel::rank(to), tag as i32, bytes);
        Ok(())
    }

    fn try_receive(&self, tag: Tag) -> Result<Option<(usize, Vec<u8>)>> {
        let probe = self.messages.0.any_process().immediate_matched_probe_with_tag(tag as i32);
        Ok(probe.map(|(message, status)| {
            let mut bytes = vec![0; bytes_in(&status)];
            message.matched_receive_into(&mut bytes[..]);
            (status.source_rank() as usize, bytes)
        }))
    }
}
