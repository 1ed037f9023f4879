//! How many units the slowest rank of a stage does one after the other: what its time follows from.

use crate::Layout;
use crate::simulate::simulate;

/// Images that go through a network at once when features are computed, whatever the rank.
pub const FEATURE_BATCH: u64 = 64;

/// Batches of the slowest of `ranks` that send `images` through a network: each takes a consecutive part.
pub fn pass(images: u64, ranks: usize) -> u64 {
    images.div_ceil(FEATURE_BATCH).div_ceil(ranks.max(1) as u64)
}

/// Batches from the first claim to the last commit of a set on equal ranks, which claim whole shards. The last batch of a
/// class is computed in full.
pub fn generation(layout: &Layout, ranks: usize) -> f64 {
    /// More shards are as good as evenly shared.
    const SIMULATED: u64 = 1 << 20;
    if layout.len() > SIMULATED {
        return layout.images() as f64 / layout.batch() as f64 / ranks.max(1) as f64;
    }
    let batches = |id| layout.shard(id).map_or(0, |shard| shard.batches().count() as u64);
    let sizes: Vec<u64> = layout.claim_order().into_iter().map(batches).collect();
    simulate(&sizes, &vec![1.0; ranks.max(1)], None).makespan
}

/// How many times as long a training step takes on `ranks` as on `measured` ranks: each does its micro-batches one after
/// the other.
pub fn step_ratio(micro_batches: u64, measured: usize, ranks: usize) -> f64 {
    let each = |ranks: usize| micro_batches.div_ceil(ranks.max(1) as u64).max(1) as f64;
    each(ranks) / each(measured)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LayoutConfig;

    #[test]
    fn ranks_share_batches_and_shards() {
        assert_eq!((pass(0, 2), pass(1, 2), pass(129, 2), pass(129, 1)), (0, 1, 2, 3));
        let config = LayoutConfig { batch: 4, batches_per_shard: 2 };
        // Three batches in two shards, and one batch.
        let layout = Layout::new(config, &["a".into(), "b".into()], &[9, 1]).unwrap();
        assert_eq!((generation(&layout, 1), generation(&layout, 2), generation(&layout, 9)), (4.0, 2.0, 2.0));
        assert_eq!((step_ratio(4, 2, 2), step_ratio(4, 2, 4), step_ratio(4, 4, 1)), (1.0, 0.5, 4.0));
    }
}
