//! Collectives and claims: the traits, their local and in-process implementations, and the watchdog.
//!
//! Buffers are plain slices: no tensor, MPI or CUDA type appears here. One file per thing:
//!
//! | file | owns |
//! |---|---|
//! | `local`, `threads` | a world of one, and a world of threads for tests |
//! | `messages` | small non-blocking messages beside the collectives |
//! | `claims`, `server`, `claim_files` | who works on which unit |
//! | `stop`, `agree` | the stop flag, and how training ranks decide together |
//! | `watchdog`, `guard`, `parent` | no rank outlives a lost peer, a panic or its launcher |
//! | `environment`, `mpirun`, `launch`, `session` | starting the ranks of one step on this machine |

use equipoise_base::Result;

pub mod agree;
pub mod claim_files;
pub mod claims;
pub mod environment;
pub mod guard;
pub mod launch;
pub mod local;
pub mod messages;
pub mod mpirun;
pub mod parent;
pub mod server;
pub mod session;
pub mod stop;
pub mod threads;
pub mod watchdog;

pub use claims::{Claim, Claims};
pub use local::LocalComm;
pub use messages::Messages;
pub use stop::StopFlag;

/// A group of ranks that call every collective in the same order.
///
/// Methods return errors only for what the caller can act on; a lost peer ends the process through the watchdog.
pub trait Comm: Send + Sync {
    /// This rank, from 0.
    fn rank(&self) -> usize;

    /// Number of ranks.
    fn size(&self) -> usize;

    /// Waits for all ranks.
    fn barrier(&self) -> Result<()>;

    /// Replaces `bytes` on every rank by those of `root`; lengths may differ before the call.
    fn broadcast(&self, bytes: &mut Vec<u8>, root: usize) -> Result<()>;

    /// Every rank's bytes, by rank, on every rank.
    fn all_gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>>;

    /// Element-wise maximum over ranks, on every rank.
    fn all_reduce_max(&self, values: &mut [i64]) -> Result<()>;

    /// Sends `send` to `peer` and receives as many bytes from it; the two ranks call it together.
    fn exchange(&self, peer: usize, send: &[u8], receive: &mut [u8]) -> Result<()>;

    /// Ends all ranks at once with this exit status. Never returns.
    fn abort(&self, status: i32) -> !;
}
