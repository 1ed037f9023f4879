//! Gradient sums that have the same bits on every world size (DESIGN "Elastic training").
//!
//! A step has M micro-batches. Their gradients are summed along one fixed binary tree over the indices 0..M, padded
//! to a power of two with leaves that are skipped, not added as zeros. A rank holds a whole subtree: it sums that by
//! itself, on its device, and [`HostTree`](crate::transport::HostTree) adds the levels above by a butterfly in which
//! every element still meets the same partners in the same order. Addition of two floats commutes, so only this
//! association decides the bits. Other transports add the levels above in an order of their own.

use crate::transport::Transport;
use equipoise_base::Result;
pub use equipoise_workplan::ranks::Ownership;
use std::ops::Range;
use tch::Tensor;

/// Sums one step's flat gradients over all micro-batches of all ranks.
#[derive(Debug)]
pub struct GradientTree {
    ownership: Ownership,
    owned: Range<usize>,
    next: usize,
    /// Sums of complete subtrees, of falling height; heights are those of a binary counter.
    partial: Vec<(u32, Tensor)>,
}

impl GradientTree {
    /// The part of `rank`, to be used for one step after another.
    pub fn new(ownership: Ownership, rank: usize) -> Self {
        let owned = ownership.of_rank(rank);
        Self { ownership, next: owned.start, owned, partial: Vec::new() }
    }

    /// The micro-batches that this rank computes, ascending; maybe none.
    pub fn owned(&self) -> Range<usize> {
        self.owned.clone()
    }

    /// Who computes which micro-batch.
    pub fn ownership(&self) -> &Ownership {
        &self.ownership
    }

    /// Takes the gradient of the next owned micro-batch. At most log2 of them are alive at a time.
    ///
    /// # Panics
    /// If `index` is not the next one.
    pub fn push(&mut self, index: usize, gradient: Tensor) {
        assert!(
            index == self.next && self.owned.contains(&index),
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
    /// Those of the transport.
    ///
    /// # Panics
    /// If an owned micro-batch was not pushed.
    pub fn finish(&mut self, transport: &dyn Transport, like: &Tensor) -> Result<Tensor> {
        let sum = self.own_sum();
        self.next_step();
        transport.sum(&self.ownership, sum.unwrap_or_else(|| like.zeros_like()))
    }

    /// The sum over the owned micro-batches, once all are pushed; `None` if there are none.
    pub(crate) fn own_sum(&mut self) -> Option<Tensor> {
        assert_eq!(self.next, self.owned.end, "all owned micro-batches are pushed before the sum is taken");
        // Missing leaves are all to the right, so incomplete subtrees join from the right.
        let mut sum: Option<Tensor> = None;
        while let Some((_, left)) = self.partial.pop() {
            sum = Some(match sum {
                Some(right) => add(left, &right),
                None => left,
            });
        }
        sum
    }

    /// Makes ready for the next step, once the sum was taken.
    pub(crate) fn next_step(&mut self) {
        self.next = self.owned.start;
    }
}

/// left + right, in the storage of `left`.
pub(crate) fn add(mut left: Tensor, right: &Tensor) -> Tensor {
    tch::no_grad(|| left.g_add_(right))
}

/// The two halves of a range of even length.
pub(crate) fn halves(part: &Range<usize>) -> (Range<usize>, Range<usize>) {
    let middle = part.start + part.len() / 2;
    (part.start..middle, middle..part.end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::HostTree;
    use equipoise_base::{ExitCode, rng::Key};
    use equipoise_comm::{Comm as _, threads};
    use tch::{Device, Kind};

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
                    let ownership = Ownership::new(micro_batches, world).unwrap();
                    let (transport, mut tree) = (HostTree(&comm), GradientTree::new(ownership, comm.rank()));
                    // A tree serves one step after another.
                    let mut step = || {
                        tree.owned().for_each(|index| tree.push(index, gradient(index)));
                        bits(&tree.finish(&transport, &like).unwrap())
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
        let mut tree = GradientTree::new(Ownership::new(64, 1).unwrap(), 0);
        let pushed = (0..64).map(|index| {
            tree.push(index, gradient(index));
            tree.partial.len()
        });
        assert_eq!(pushed.max(), Some(6));
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
