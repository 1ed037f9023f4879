//! A world of one: what a binary without MPI, or run without a launcher, uses.

use crate::Comm;
use crate::messages::{Messages, Tag};
use equipoise_base::{Result, ensure};
use std::collections::VecDeque;
use std::io::Write as _;
use std::sync::Mutex;

/// The only rank.
#[derive(Debug, Default)]
pub struct LocalComm {
    to_self: Mutex<VecDeque<(Tag, Vec<u8>)>>,
}

impl LocalComm {
    fn only_rank(rank: usize) -> Result<()> {
        ensure!(rank == 0, Bug, "rank {rank} does not exist in a world of one");
        Ok(())
    }
}

impl Comm for LocalComm {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn barrier(&self) -> Result<()> {
        Ok(())
    }

    fn broadcast(&self, _bytes: &mut Vec<u8>, root: usize) -> Result<()> {
        Self::only_rank(root)
    }

    fn all_gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(vec![bytes.to_vec()])
    }

    fn all_reduce_max(&self, _values: &mut [i64]) -> Result<()> {
        Ok(())
    }

    fn exchange(&self, peer: usize, send: &[u8], receive: &mut [u8]) -> Result<()> {
        Self::only_rank(peer)?;
        same_length(peer, send, receive)?;
        receive.copy_from_slice(send);
        Ok(())
    }

    fn abort(&self, status: i32) -> ! {
        exit_now(status)
    }
}

impl Messages for LocalComm {
    fn send(&self, to: usize, tag: Tag, bytes: &[u8]) -> Result<()> {
        Self::only_rank(to)?;
        self.to_self.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push_back((tag, bytes.to_vec()));
        Ok(())
    }

    fn try_receive(&self, tag: Tag) -> Result<Option<(usize, Vec<u8>)>> {
        let mut queue = self.to_self.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let position = queue.iter().position(|(queued, _)| *queued == tag);
        Ok(position.and_then(|at| queue.remove(at)).map(|(_, bytes)| (0, bytes)))
    }
}

/// Checks the lengths given to [`Comm::exchange`].
pub fn same_length(peer: usize, send: &[u8], receive: &[u8]) -> Result<()> {
    let (out, into) = (send.len(), receive.len());
    ensure!(out == into, Bug, "exchange with rank {peer}: {out} bytes to send but room for {into}");
    Ok(())
}

/// Ends this process without running exit handlers: those of libtorch and CUDA can hang or crash in a process that
/// is already in trouble.
pub fn exit_now(status: i32) -> ! {
    // Nothing can be done about a closed pipe here.
    let _ = std::io::stdout().flush();
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(status) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collectives_of_one() {
        let comm = LocalComm::default();
        let mut values = [3, -1];
        comm.all_reduce_max(&mut values).unwrap();
        assert_eq!((values, comm.all_gather(b"x").unwrap()), ([3, -1], vec![b"x".to_vec()]));
        let mut received = [0; 2];
        comm.exchange(0, &[1, 2], &mut received).unwrap();
        assert_eq!(received, [1, 2]);
        assert!(comm.exchange(1, &[1], &mut [0]).is_err());
        assert!(comm.exchange(0, &[1], &mut [0, 0]).is_err());
        assert!(comm.broadcast(&mut vec![], 1).is_err());
    }

    #[test]
    fn messages_to_oneself_are_kept_apart_by_tag() {
        let comm = LocalComm::default();
        comm.send(0, Tag::ClaimRequest, b"a").unwrap();
        comm.send(0, Tag::ClaimReply, b"b").unwrap();
        assert_eq!(comm.try_receive(Tag::ClaimReply).unwrap(), Some((0, b"b".to_vec())));
        assert_eq!(comm.try_receive(Tag::ClaimReply).unwrap(), None);
        assert_eq!(comm.try_receive(Tag::ClaimRequest).unwrap(), Some((0, b"a".to_vec())));
    }
}
