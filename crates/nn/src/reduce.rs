//! Gradient sums that have the same bits on every world size (DESIGN "Elastic training").
//!
//! A step has M micro-batches. Their gradients are summed along one fixed binary tree over the indices 0..M, padded
//! to a power of two with leaves that are skipped, not added as zeros. A rank holds a whole subtree: it sums that by
//! itself, and the levels above by a butterfly in which every element still meets the same partners in the same
//! order. Addition of two floats commutes, so only this association decides the bits.

use equipoise_base::Result;
use equipoise_comm::Comm;
pub use equipoise_workplan::ranks::Ownership;
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// Sums one step's flat gradients over all micro-batches of all ranks.
pub struct GradientTree<'a> {
    comm: &'a dyn Comm,
    ownership: Ownership,
    next: usize,
    /// Sums of complete subtrees, of falling height; heights are those of a binary counter.
    partial: Vec<(u32, Tensor)>,
}

impl std::fmt::Debug for GradientTree<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GradientTree").field("ownership", &self.ownership).field("next", &self.next).finish()
    }
}

impl<'a> GradientTree<'a> {
    /// A tree for steps of `micro_batches`, to be used for one step after another.
    ///
    /// # Errors
    /// 78 naming the allowed world sizes, if this one is not.
    pub fn new(comm: &'a dyn Comm, micro_batches: usize) -> Result<Self> {
        let ownership = Ownership::new(micro_batches, comm.size())?;
        let next = ownership.of_rank(comm.rank()).start;
        Ok(Self { comm, ownership, next, partial: Vec::new() })
    }

    /// The micro-batches that this rank computes, ascending; maybe none.
    pub fn owned(&self) -> Range<usize> {
        self.ownership.of_rank(self.comm.rank())
    }

    /// Takes the gradient of the next owned micro-batch. At most log2 of them are alive at a time.
    ///
    /// # Panics
    /// If `index` is not the next one.
    pub fn push(&mut self, index: usize, gradient: Tensor) {
        assert!(
            index == self.next && self.owned().contains(&index),
            "micro-batch {index}, expected {}",
            self.next
        );
        self.next += 1;
        let (mut height, mut sum) = (0, gradient);
        while let Some((_, left)) = self.partial.pop_if(|(left_height, _)| *left_height == height) {
            sum = add(left, &sum);
            height += 1;
        }
        self.partial.push((height, sum));
    }

    /// The sum over all micro-batches, on every rank, and makes ready for the next step. Collective.
    ///
    /// `like` is any tensor with a gradient's length, kind and device, such as the flat parameters: a rank may own
    /// no micro-batch.
    ///
    /// # Errors
    /// Those of the exchange between ranks.
    ///
    /// # Panics
    /// If an owned micro-batch was not pushed.
    pub fn finish(&mut self, like: &Tensor) -> Result<Tensor> {
        let owned = self.owned();
        assert_eq!(self.next, owned.end, "all owned micro-batches are pushed before the sum is taken");
        self.next = owned.start;
        // Missing leaves are all to the right, so incomplete subtrees join from the right.
        let mut sum: Option<Tensor> = None;
        while let Some((_, left)) = self.partial.pop() {
            sum = Some(match sum {
                Some(right) => add(left, &right),
                None => left,
            });
        }
        let sum = sum.unwrap_or_else(|| like.zeros_like());
        if self.comm.size() == 1 || sum.numel() == 0 {
            return Ok(sum);
        }
        butterfly(self.comm, &self.ownership, &sum)
    }
}

/// left + right, in the storage of `left`.
fn add(mut left: Tensor, right: &Tensor) -> Tensor {
    tch::no_grad(|| left.g_add_(right))
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
            (false, false) => drop(mine.g_add_(&received.tensor(0..kept.len()))),
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

fn halves(part: &Range<usize>) -> (Range<usize>, Range<usize>) {
    let middle = part.start + part.len() / 2;
    (part.start..middle, middle..part.end)
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

#[cfg(test)]
mod tests {
    use super::*;
    use equipoise_base::{ExitCode, rng::Key};
    use equipoise_comm::threads;

    const LENGTH: usize = 37;

    /// Magnitudes spread over eight decades, so that association shows, and negative zeros.
    fn gradient(index: usize) -> Tensor {
        let mut random = Key::new(1, "gradient").index(index as u64).stream();
        let mut value = || random.normal() * 10f64.powf(random.range(-4., 4.));
        let mut values: Vec<f32> = (0..LENGTH).map(|_| value() as f32).collect();
        values[0] = -0.0;
        Tensor::from_slice(&values)
    }

    fn bits(tensor: &Tensor) -> Vec<u32> {
        Vec::<f32>::try_from(tensor).unwrap().into_iter().map(f32::to_bits).collect()
    }

    /// The definition: the sum over a subtree is the sum of its halves, missing ones left out.
    fn tree_sum(range: Range<usize>, micro_batches: usize) -> Option<Tensor> {
        if range.len() == 1 {
            return (range.start < micro_batches).then(|| gradient(range.start));
        }
        let (left, right) = halves(&range);
        match (tree_sum(left, micro_batches), tree_sum(right, micro_batches)) {
            (Some(left), Some(right)) => Some(left + right),
            (left, right) => left.or(right),
        }
    }

    #[test]
    fn every_world_size_gives_the_bits_of_the_tree() {
        for micro_batches in [1usize, 2, 3, 4, 5, 6, 7, 8, 13] {
            let expected = bits(&tree_sum(0..micro_batches.next_power_of_two(), micro_batches).unwrap());
            for world in Ownership::world_sizes(micro_batches) {
                let sums = threads::run(world, |comm| {
                    let like = Tensor::zeros([LENGTH as i64], (Kind::Float, Device::Cpu));
                    let mut tree = GradientTree::new(&comm, micro_batches).unwrap();
                    // A tree serves one step after another.
                    let mut step = || {
                        tree.owned().for_each(|index| tree.push(index, gradient(index)));
                        bits(&tree.finish(&like).unwrap())
                    };
                    (step(), step())
                });
                for (rank, (first, second)) in sums.into_iter().enumerate() {
                    assert_eq!(first, expected, "{micro_batches} micro-batches, rank {rank} of {world}");
                    assert_eq!(second, expected, "second step");
                }
            }
        }
    }

    #[test]
    fn the_order_of_summation_matters_here() {
        let running = (1..8).fold(gradient(0), |sum, index| sum + gradient(index));
        assert_ne!(bits(&running), bits(&tree_sum(0..8, 8).unwrap()));
    }

    #[test]
    fn few_gradients_are_alive() {
        let tallest = threads::run(1, |comm| {
            let mut tree = GradientTree::new(&comm, 64).unwrap();
            let pushed = (0..64).map(|index| {
                tree.push(index, gradient(index));
                tree.partial.len()
            });
            pushed.max().unwrap()
        });
        assert_eq!(tallest, [6]);
    }

    #[test]
    fn ownership_covers_each_micro_batch_once() {
        for micro_batches in 1..20 {
            for world in Ownership::world_sizes(micro_batches) {
                let ownership = Ownership::new(micro_batches, world).unwrap();
                assert!((0..world).flat_map(|rank| ownership.of_rank(rank)).eq(0..micro_batches));
            }
        }
    }

    #[test]
    fn other_world_sizes_are_refused_by_name() {
        for (micro_batches, world) in [(6, 3), (4, 8), (5, 16)] {
            let error = Ownership::new(micro_batches, world).unwrap_err();
            assert_eq!(error.code(), ExitCode::Config);
        }
        let error = Ownership::new(4, 3).unwrap_err();
        assert!(error.message().ends_with("run on 1, 2 or 4 ranks"), "{error}");
        assert!(Ownership::new(1, 2).unwrap_err().message().ends_with("run on 1 ranks"));
    }
}
