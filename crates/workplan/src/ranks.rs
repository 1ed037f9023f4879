//! Which micro-batches a rank computes.
//!
//! Gradients are summed along one binary tree over micro-batch indices, padded to the next power of two. A rank holds a
//! whole subtree, so world sizes are powers of two up to the padded number; any other would add in another order.

use equipoise_base::{Result, ensure};
use std::ops::Range;

/// Who owns which micro-batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ownership {
    micro_batches: usize,
    leaves_per_rank: usize,
}

impl Ownership {
    /// Spreads the micro-batches of a step over `world` ranks.
    ///
    /// # Errors
    /// 78 naming the allowed world sizes, if the ranks would not hold whole subtrees.
    pub fn new(micro_batches: usize, world: usize) -> Result<Self> {
        ensure!(micro_batches > 0, Config, "a training step needs at least one micro-batch");
        let allowed = Self::world_sizes(micro_batches);
        ensure!(
            allowed.contains(&world),
            Config,
            "{world} ranks cannot share the {micro_batches} micro-batches of a training step with the same bits; \
             run on {} ranks",
            one_of(&allowed)
        );
        Ok(Self { micro_batches, leaves_per_rank: micro_batches.next_power_of_two() / world })
    }

    /// World sizes on which a step of so many micro-batches gives the same bits, ascending.
    pub fn world_sizes(micro_batches: usize) -> Vec<usize> {
        let padded = micro_batches.next_power_of_two();
        std::iter::successors(Some(1usize), |size| size.checked_mul(2))
            .take_while(|&size| size <= padded)
            .collect()
    }

    /// Number of micro-batches of a step.
    pub fn micro_batches(&self) -> usize {
        self.micro_batches
    }

    /// Leaves of a rank's subtree, those beyond the last micro-batch included.
    pub fn leaves_per_rank(&self) -> usize {
        self.leaves_per_rank
    }

    /// The micro-batches of `rank`, ascending; maybe none.
    pub fn of_rank(&self, rank: usize) -> Range<usize> {
        self.of_ranks(rank..rank + 1)
    }

    /// The micro-batches of a range of ranks, ascending.
    pub fn of_ranks(&self, ranks: Range<usize>) -> Range<usize> {
        let clip = |rank: usize| (rank * self.leaves_per_rank).min(self.micro_batches);
        clip(ranks.start)..clip(ranks.end)
    }
}

fn one_of(sizes: &[usize]) -> String {
    let texts: Vec<String> = sizes.iter().map(usize::to_string).collect();
    match texts.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => texts.concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_partition_the_micro_batches_for_every_allowed_world() {
        for micro_batches in 1..40 {
            for world in Ownership::world_sizes(micro_batches) {
                let ownership = Ownership::new(micro_batches, world).unwrap();
                let all: Vec<usize> = (0..world).flat_map(|rank| ownership.of_rank(rank)).collect();
                assert!(all.iter().copied().eq(0..micro_batches), "{micro_batches} over {world}");
            }
        }
    }

    #[test]
    fn other_worlds_are_refused_with_the_possible_ones() {
        assert_eq!(Ownership::world_sizes(6), [1, 2, 4, 8]);
        let error = Ownership::new(2, 3).unwrap_err();
        assert_eq!(error.code(), equipoise_base::ExitCode::Config);
        assert!(error.message().contains("1 or 2 ranks"), "{error}");
    }
}
