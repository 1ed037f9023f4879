//! A group of ranks with one GPU each.

use crate::UniqueId;
use crate::library::{FLOAT32, Library, RawComm, SUM};
use equipoise_base::{Error, ExitCode, Result, bail, ensure};
use std::ffi::{c_int, c_void};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long `abort` lets a call that has just begun get into NCCL, from where NCCL itself releases it.
const ENTRY_BOUND: Duration = Duration::from_millis(100);

/// A CUDA stream; null is the legacy default stream, libtorch's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream(pub *mut c_void);

impl Default for Stream {
    fn default() -> Self {
        Self(std::ptr::null_mut())
    }
}

/// Ranks that reduce together. All call the same operations with the same counts in the same order.
///
/// Operations return once they are queued on the stream; their errors may come later, from [`NcclGroup::check`].
/// Any thread may call; operations of one rank are queued one at a time, so that their order is defined.
///
/// Leave it by [`NcclGroup::close`] on all ranks. A group that is merely dropped, as on the way out of an error, is left
/// as it is: NCCL's calls that free one wait for the other ranks of the node, which wait for this rank elsewhere. Its
/// process is about to end, and takes it along.
pub struct NcclGroup {
    library: &'static Library,
    comm: AtomicPtr<c_void>,
    rank: usize,
    size: usize,
    device: usize,
    order: Mutex<()>,
    aborted: AtomicBool,
    /// Calls between the look at `aborted` and the return from NCCL.
    inside: AtomicUsize,
}

impl NcclGroup {
    /// Joins the group; a collective, which waits for all ranks.
    ///
    /// # Errors
    /// Configuration: NCCL cannot be loaded, or there is no such device. I/O: NCCL fails, as with an id that was used
    /// before or one device given to two ranks.
    pub fn new(rank: usize, size: usize, id: &UniqueId, device: usize) -> Result<Self> {
        ensure!(rank < size, Bug, "rank {rank} does not exist in a group of {size}");
        let library = Library::get()?;
        set_device(library, device)?;
        let mut comm: RawComm = std::ptr::null_mut();
        // SAFETY: the pointer is valid for the call, and the id has NCCL's layout.
        let code = unsafe { (library.comm_init_rank)(&mut comm, size as c_int, id.raw(), rank as c_int) };
        library
            .check("ncclCommInitRank", code)
            .map_err(|error| error.context(format_args!("rank {rank}")))?;
        Ok(Self {
            library,
            comm: AtomicPtr::new(comm),
            rank,
            size,
            device,
            order: Mutex::new(()),
            aborted: AtomicBool::new(false),
            inside: AtomicUsize::new(0),
        })
    }

    /// This rank, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Number of ranks.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Replaces `count` floats by their sums over all ranks.
    ///
    /// # Safety
    /// `values` points to `count` floats on the group's device that stay allocated, and are touched only by work that
    /// the stream orders against this, until the operation has ended.
    ///
    /// # Errors
    /// I/O: the group is aborted or broken.
    pub unsafe fn all_reduce_sum_f32(&self, values: *mut f32, count: usize, stream: Stream) -> Result<()> {
        self.call("ncclAllReduce", |comm| {
            // SAFETY: as the caller promises.
            unsafe {
                (self.library.all_reduce)(values.cast(), values.cast(), count, FLOAT32, SUM, comm, stream.0)
            }
        })
    }

    /// Sums `size * count` floats over all ranks; this rank receives the `rank`-th `count` of them.
    ///
    /// # Safety
    /// As for [`NcclGroup::all_reduce_sum_f32`], for `send` of `size * count` and `receive` of `count` floats.
    ///
    /// # Errors
    /// I/O: the group is aborted or broken.
    pub unsafe fn reduce_scatter_sum_f32(
        &self,
        send: *const f32,
        receive: *mut f32,
        count: usize,
        stream: Stream,
    ) -> Result<()> {
        self.call("ncclReduceScatter", |comm| {
            // SAFETY: as the caller promises.
            unsafe {
                (self.library.reduce_scatter)(
                    send.cast(),
                    receive.cast(),
                    count,
                    FLOAT32,
                    SUM,
                    comm,
                    stream.0,
                )
            }
        })
    }

    /// Gathers `count` floats of every rank, by rank.
    ///
    /// # Safety
    /// As for [`NcclGroup::all_reduce_sum_f32`], for `send` of `count` and `receive` of `size * count` floats.
    ///
    /// # Errors
    /// I/O: the group is aborted or broken.
    pub unsafe fn all_gather_f32(
        &self,
        send: *const f32,
        receive: *mut f32,
        count: usize,
        stream: Stream,
    ) -> Result<()> {
        self.call("ncclAllGather", |comm| {
            // SAFETY: as the caller promises.
            unsafe { (self.library.all_gather)(send.cast(), receive.cast(), count, FLOAT32, comm, stream.0) }
        })
    }

    /// The error of an operation queued before, such as a lost peer. Results are valid only if this is `Ok` after the
    /// stream was synchronized.
    ///
    /// # Errors
    /// I/O: the group is aborted or broken.
    pub fn check(&self) -> Result<()> {
        let _inside = Inside::enter(self)?;
        let mut error = 0;
        // SAFETY: the group is not aborted, and the pointer is valid for the call.
        let code =
            unsafe { (self.library.comm_get_async_error)(self.comm.load(Ordering::SeqCst), &mut error) };
        self.named(self.library.check("ncclCommGetAsyncError", code))?;
        self.named(self.library.check("asynchronous error", error))
    }

    /// Waits for what is queued and frees the group; a collective.
    ///
    /// # Errors
    /// I/O: the group is aborted or broken.
    pub fn close(self) -> Result<()> {
        ensure!(!self.is_aborted(), Io, "rank {}: the NCCL group was aborted", self.rank);
        set_device(self.library, self.device)?;
        // SAFETY: by value, so nobody uses the group any more, and it was not freed by an abort.
        let code = unsafe { (self.library.comm_destroy)(self.comm.load(Ordering::SeqCst)) };
        self.named(self.library.check("ncclCommDestroy", code))
    }

    /// Ends all operations of this rank, also those that wait for a lost peer, from any thread; later ones fail.
    pub fn abort(&self) {
        if self.aborted.swap(true, Ordering::SeqCst) {
            return;
        }
        let start = Instant::now();
        while self.inside.load(Ordering::SeqCst) > 0 && start.elapsed() < ENTRY_BOUND {
            std::thread::sleep(Duration::from_millis(1));
        }
        // SAFETY: called once, on a group that is not destroyed. The result would change nothing.
        unsafe { (self.library.comm_abort)(self.comm.load(Ordering::SeqCst)) };
    }

    /// True after [`NcclGroup::abort`].
    pub fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::SeqCst)
    }

    fn call(&self, name: &str, operation: impl FnOnce(RawComm) -> c_int) -> Result<()> {
        let _one_at_a_time = self.order.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let _inside = Inside::enter(self)?;
        // The device is a property of the calling thread.
        set_device(self.library, self.device)?;
        let code = operation(self.comm.load(Ordering::SeqCst));
        self.named(self.library.check(name, code))
    }

    fn named(&self, outcome: Result<()>) -> Result<()> {
        outcome.map_err(|error| error.context(format_args!("rank {}", self.rank)))
    }
}

/// A call that is on its way into NCCL.
struct Inside<'a>(&'a NcclGroup);

impl<'a> Inside<'a> {
    fn enter(group: &'a NcclGroup) -> Result<Self> {
        // Counted first: an abort that does not see the count has set its flag before the look at it.
        group.inside.fetch_add(1, Ordering::SeqCst);
        let inside = Self(group);
        if group.is_aborted() {
            bail!(Io, "rank {}: the NCCL group was aborted", group.rank);
        }
        Ok(inside)
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Ordering::SeqCst);
    }
}

fn set_device(library: &Library, device: usize) -> Result<()> {
    // SAFETY: any number is allowed.
    match unsafe { (library.set_device)(device as c_int) } {
        0 => Ok(()),
        code => {
            Err(Error::new(ExitCode::Config, format!("cannot use CUDA device {device} (CUDA error {code})"))
                .next("nvidia-smi -L"))
        }
    }
}
