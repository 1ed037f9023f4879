//! Messages on their way: MPI reads a send buffer until the send has completed, so each is kept until then.

use mpi::ffi;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{AsRaw as _, Equivalence as _};
use mpi::{Rank, Tag};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// How long the last sends may take at the end. They are small and eager, so they complete without a receiver.
const DRAIN_BOUND: Duration = Duration::from_secs(1);

/// Sends in progress.
#[derive(Default)]
pub(crate) struct Outbox(Mutex<Vec<Pending>>);

struct Pending {
    request: ffi::MPI_Request,
    /// Read by MPI until `request` has completed; boxed, so it never moves.
    _bytes: Box<[u8]>,
}

// SAFETY: a request may be tested by any thread under MPI_THREAD_MULTIPLE, one at a time, which the mutex sees to.
unsafe impl Send for Pending {}

impl Outbox {
    /// Starts a send and returns at once.
    pub(crate) fn send(&self, comm: &SimpleCommunicator, to: Rank, tag: Tag, bytes: &[u8]) {
        let bytes: Box<[u8]> = bytes.into();
        // SAFETY: the buffer lives in the outbox, unmoved, until the request has completed.
        let request = unsafe {
            let mut request = ffi::RSMPI_REQUEST_NULL;
            let kind = u8::equivalent_datatype().as_raw();
            ffi::MPI_Isend(
                bytes.as_ptr().cast(),
                bytes.len() as i32,
                kind,
                to,
                tag,
                comm.as_raw(),
                &mut request,
            );
            request
        };
        let mut pending = self.lock();
        pending.push(Pending { request, _bytes: bytes });
        forget_completed(&mut pending);
    }

    /// Waits a little for the last sends.
    pub(crate) fn drain(&self) {
        let start = Instant::now();
        let mut pending = self.lock();
        while !pending.is_empty() && start.elapsed() < DRAIN_BOUND {
            forget_completed(&mut pending);
        }
        // MPI may still read what is left: it is never freed.
        std::mem::take(&mut *pending).into_iter().for_each(std::mem::forget);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Pending>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Drop for Outbox {
    /// A process that ends without `finish` leaves its buffers to MPI.
    fn drop(&mut self) {
        std::mem::take(&mut *self.lock()).into_iter().for_each(std::mem::forget);
    }
}

fn forget_completed(pending: &mut Vec<Pending>) {
    pending.retain_mut(|send| {
        let mut done = 0;
        // SAFETY: the request is active, and is not used again once MPI says it is done.
        unsafe { ffi::MPI_Test(&mut send.request, &mut done, ffi::RSMPI_STATUS_IGNORE) };
        done == 0
    });
}
