//! Which micro-batches a rank computes.

use equipoise_base::{Result, bail, ensure};
use std::ops::Range;

/// The micro-batches of `rank` out of `micro_batches` per step: consecutive, and a whole subtree of the gradient tree.
///
/// The tree pairs neighbours level by level, `(0 1) (2 3) ..`; a last one without a partner goes up as it is. So a
/// rank holds whole subtrees when every rank has the same power of two of micro-batches, or when there is one rank.
/// Only then do all world sizes give the same bits.
///
/// # Errors
/// 78 for a world size that cannot match, naming those that can.
pub fn micro_batches_of(micro_batches: usize, world: usize, rank: usize) -> Result<Range<usize>> {
    ensure!(
        micro_batches > 0 && rank < world,
        Config,
        "rank {rank} of {world} has no part of {micro_batches} micro-batches"
    );
    if !holds_subtrees(micro_batches, world) {
        let possible: Vec<String> = world_sizes(micro_batches).iter().map(usize::to_string).collect();
        let possible = possible.join(", ");
        bail!(
            Config,
            "{world} ranks cannot share {micro_batches} micro-batches with the same bits; use {possible} ranks"
        );
    }
    let each = micro_batches / world;
    Ok(rank * each..(rank + 1) * each)
}

/// World sizes that give the same bits, ascending.
pub fn world_sizes(micro_batches: usize) -> Vec<usize> {
    (1..=micro_batches).filter(|&world| holds_subtrees(micro_batches, world)).collect()
}

fn holds_subtrees(micro_batches: usize, world: usize) -> bool {
    world == 1 || (micro_batches.is_multiple_of(world) && (micro_batches / world).is_power_of_two())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_subtrees_only() {
        assert_eq!(world_sizes(8), [1, 2, 4, 8]);
        assert_eq!(world_sizes(6), [1, 3, 6]);
        assert_eq!(world_sizes(12), [1, 3, 6, 12]);
        assert_eq!(micro_batches_of(8, 4, 3).unwrap(), 6..8);
        let error = micro_batches_of(8, 3, 0).unwrap_err();
        assert_eq!(error.code(), equipoise_base::ExitCode::Config);
        assert!(error.to_string().ends_with("use 1, 2, 4, 8 ranks"), "{error}");
        assert!(micro_batches_of(8, 4, 4).is_err() && micro_batches_of(0, 1, 0).is_err());
    }
}
