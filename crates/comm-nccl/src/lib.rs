//! Gradient reduction over NCCL, loaded at run time.
//!
//! Nothing here is linked to CUDA: the ten functions needed are looked up when the first group is made, so one binary
//! serves machines with and without GPUs. Buffers are raw device pointers and streams, and every operation is
//! asynchronous on its stream. libtorch works on the legacy default stream, so a null stream orders an operation after
//! the kernels that made its input and before those that use its output.
//!
//! The unique id is made by one rank and carried to the others by the caller (an MPI broadcast). It is sealed with the
//! nonce of the attempt: an id left over from a previous one is refused at once, where NCCL would wait for ever.
//!
//! NCCL reports a lost peer or link asynchronously only, and an operation that waits for a lost peer never ends by
//! itself. [`Monitor`] polls the error state, reports and aborts the group; a hang without an error is the business of
//! the process's watchdog, which ends it.

mod group;
mod library;
mod monitor;
mod unique_id;

pub use group::{NcclGroup, Stream};
pub use library::{available, version};
pub use monitor::Monitor;
pub use unique_id::UniqueId;
