//! How what the ranks hold becomes one: gradient sums, and batch statistics in micro-batch order.

use crate::reduce::{Ownership, add, halves};
use crate::weights::raw_bytes;
use equipoise_base::{Result, ensure};
use equipoise_comm::Comm;
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// What carries tensors between the ranks of a training. All ranks make the same calls in the same order.
///
/// Results may still be in the making on the device: they count only once [`Transport::check`] was passed after the
/// device was waited for.
pub trait Transport {
    /// The sum over all ranks of `own`, the sum over this rank's subtree of micro-batches; on every rank.
    ///
    /// # Errors
    /// Those of the transport.
    fn sum(&self, ownership: &Ownership, own: Tensor) -> Result<Tensor>;

    /// The rows of all micro-batches [M, n], in order, from those of this rank's [owned, n].
    ///
    /// # Errors
    /// Those of the transport; 101 if ranks bring rows of different lengths.
    fn gather(&self, ownership: &Ownership, own: Tensor) -> Result<Tensor>;

    /// Errors of operations queued before, such as a lost link.
    ///
    /// # Errors
    /// 74 if there was one.
    fn check(&self) -> Result<()>;

    /// Leaves the group; a collective.
    ///
    /// # Errors
    /// Those of the transport.
    fn close(self: Box<Self>) -> Result<()>;
}

/// Host memory over the general transport (MPI), adding along the tree: the same bits on every world size.
pub struct HostTree<'a>(pub &'a dyn Comm);

impl std::fmt::Debug for HostTree<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("HostTree").field(&self.0.rank()).field(&self.0.size()).finish()
    }
}

impl Transport for HostTree<'_> {
    fn sum(&self, ownership: &Ownership, own: Tensor) -> Result<Tensor> {
        if self.0.size() == 1 || own.numel() == 0 {
            return Ok(own);
        }
        butterfly(self.0, ownership, &own)
    }

    fn gather(&self, ownership: &Ownership, own: Tensor) -> Result<Tensor> {
        if self.0.size() == 1 {
            return Ok(own);
        }
        let (kind, device, columns) = (own.kind(), own.device(), own.size()[1]);
        let width = columns as usize * kind.elt_size_in_bytes();
        let all = self.0.all_gather(&raw_bytes(&own))?;
        for (rank, bytes) in all.iter().enumerate() {
            let (count, got) = (ownership.of_rank(rank).len(), bytes.len());
            ensure!(
                got == count * width,
                Bug,
                "rank {rank} sent {got} bytes, expected {count} rows of {width}"
            );
        }
        let rows = ownership.micro_batches() as i64;
        Ok(Tensor::from_data_size(&all.concat(), &[rows, columns], kind).to_device(device))
    }

    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

/// Sums over ranks by recursive halving, then spreads the parts by recursive doubling.
fn butterfly(comm: &dyn Comm, ownership: &Ownership, sum: &Tensor) -> Result<Tensor> {
    let (rank, size, device) = (comm.rank(), comm.size(), sum.device());
    let length = sum.numel();
    let padded = length.next_multiple_of(size);
    let mut buffer = HostBuffer::zeros(padded, sum.kind());
    buffer.tensor(0..length).copy_(sum);
    let mut part = 0..padded;
    let mut distance = 1;
    while distance < size {
        let peer = rank ^ distance;
        let (lower, upper) = halves(&part);
        let (kept, sent) = if rank & distance == 0 { (lower, upper) } else { (upper, lower) };
        let mut received = HostBuffer::zeros(kept.len(), sum.kind());
        comm.exchange(peer, buffer.bytes(sent), received.bytes_mut(0..kept.len()))?;
        // A block without micro-batches is a missing subtree: its zeros must not be added, -0 + 0 is not -0.
        let is_missing = |rank: usize| ownership.of_ranks(block(rank, distance)).is_empty();
        let mut mine = buffer.tensor(kept.clone());
        match (is_missing(rank), is_missing(peer)) {
            (false, false) => drop(add(mine, &received.tensor(0..kept.len()))),
            (true, false) => mine.copy_(&received.tensor(0..kept.len())),
            (_, true) => {}
        }
        part = kept;
        distance *= 2;
    }
    while distance > 1 {
        distance /= 2;
        let peer = rank ^ distance;
        let other = if rank & distance == 0 {
            part.end..part.end + part.len()
        } else {
            part.start - part.len()..part.start
        };
        let (send, receive) = buffer.split(&part, &other);
        comm.exchange(peer, send, receive)?;
        part = part.start.min(other.start)..part.end.max(other.end);
    }
    Ok(buffer.tensor(0..length).to_device(device).copy())
}

/// The aligned block of `length` ranks that `rank` is in.
fn block(rank: usize, length: usize) -> Range<usize> {
    let start = rank / length * length;
    start..start + length
}

/// Floats on the host that are a tensor to libtorch and bytes to the network.
struct HostBuffer {
    tensor: Tensor,
    width: usize,
}

impl HostBuffer {
    fn zeros(length: usize, kind: Kind) -> Self {
        Self { tensor: Tensor::zeros([length as i64], (kind, Device::Cpu)), width: kind.elt_size_in_bytes() }
    }

    fn tensor(&self, range: Range<usize>) -> Tensor {
        self.tensor.narrow(0, range.start as i64, range.len() as i64)
    }

    fn all_bytes_mut(&mut self) -> &mut [u8] {
        let length = self.tensor.numel() * self.width;
        // SAFETY: a contiguous CPU tensor of this many bytes that nothing else writes while it is borrowed here:
        // views leave this module only as copies.
        unsafe { std::slice::from_raw_parts_mut(self.tensor.data_ptr().cast::<u8>(), length) }
    }

    fn bytes(&self, range: Range<usize>) -> &[u8] {
        let length = self.tensor.numel() * self.width;
        // SAFETY: as above, for reading.
        let all = unsafe { std::slice::from_raw_parts(self.tensor.data_ptr().cast::<u8>(), length) };
        &all[range.start * self.width..range.end * self.width]
    }

    fn bytes_mut(&mut self, range: Range<usize>) -> &mut [u8] {
        let width = self.width;
        &mut self.all_bytes_mut()[range.start * width..range.end * width]
    }

    /// One of two neighbouring ranges to read and the other to write.
    fn split(&mut self, read: &Range<usize>, write: &Range<usize>) -> (&[u8], &mut [u8]) {
        let width = self.width;
        let middle = read.start.max(write.start);
        let first = read.start.min(write.start);
        let last = read.end.max(write.end);
        let (low, high) =
            self.all_bytes_mut()[first * width..last * width].split_at_mut((middle - first) * width);
        if read.start < write.start { (low, high) } else { (high, low) }
    }
}
