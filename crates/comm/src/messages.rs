//! Small messages beside the collectives: claims, the spreading stop, heartbeats.

use crate::Comm;
use equipoise_base::Result;

/// What a message is about; messages of one tag between two ranks arrive in the order sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u16)]
pub enum Tag {
    /// A rank to the claim server.
    ClaimRequest = 1,
    /// The claim server's answer.
    ClaimReply = 2,
    /// The claim server to everyone: some rank was asked to stop.
    StopNotice = 3,
    /// Watchdog to watchdog.
    Heartbeat = 4,
}

/// Non-blocking messages of at most [`MAX_MESSAGE`] bytes, separate from the collectives, from any thread.
pub trait Messages: Comm {
    /// Sends and returns at once: it never waits for the receiver. Sending to oneself works.
    fn send(&self, to: usize, tag: Tag, bytes: &[u8]) -> Result<()>;

    /// Takes one message of this tag that has arrived, with its sender, if there is one.
    fn try_receive(&self, tag: Tag) -> Result<Option<(usize, Vec<u8>)>>;
}

/// Largest message: far below the eager limit of every MPI, so that a send completes without a receiver.
pub const MAX_MESSAGE: usize = 256;
