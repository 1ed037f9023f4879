//! How long generation takes on ranks of different speed: what `equipoise plan --simulate` shows.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Outcome of a simulated generation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Simulation {
    /// Seconds from the first claim to the last commit.
    pub makespan: f64,
    /// Seconds that ranks computed, summed.
    pub busy: f64,
    /// Part of ranks x makespan in which a rank had nothing left to claim, in [0, 1].
    pub idle_tail: f64,
}

/// Assigns shards in claim order, each to the rank that is free first, as the claim server does.
///
/// `sizes` are images per shard in claim order; `speeds` are images per second of each rank, positive.
/// Of two ranks free at the same moment the lower one claims first.
pub fn simulate(sizes: &[u64], speeds: &[f64]) -> Simulation {
    let mut free: BinaryHeap<Reverse<(Seconds, usize)>> =
        (0..speeds.len()).map(|rank| Reverse((Seconds(0.0), rank))).collect();
    let mut busy = 0.0;
    for &size in sizes {
        let Some(Reverse((Seconds(now), rank))) = free.pop() else { break };
        let work = size as f64 / speeds[rank];
        busy += work;
        free.push(Reverse((Seconds(now + work), rank)));
    }
    let makespan = free.iter().map(|Reverse((Seconds(end), _))| *end).fold(0.0, f64::max);
    let available = makespan * speeds.len() as f64;
    let idle_tail = if available > 0.0 { 1.0 - busy / available } else { 0.0 };
    Simulation { makespan, busy, idle_tail }
}

/// A time that a heap can order.
#[derive(Clone, Copy, Debug)]
struct Seconds(f64);

impl PartialEq for Seconds {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Seconds {}

impl PartialOrd for Seconds {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Seconds {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Layout, LayoutConfig};

    #[test]
    fn greedy_assignment() {
        let result = simulate(&[4, 2, 2], &[1.0, 1.0]);
        assert_eq!((result.makespan, result.busy, result.idle_tail), (4.0, 8.0, 0.0));
        let slow = simulate(&[4, 4, 4], &[2.0, 1.0]);
        assert_eq!((slow.makespan, slow.busy), (4.0, 8.0));
        assert_eq!(simulate(&[], &[1.0]).idle_tail, 0.0);
        assert_eq!(simulate(&[5], &[]).makespan, 0.0);
    }

    /// The bar of the design: 1.3M images on 1,024 ranks of unequal speed, idle tail at most 1 %.
    #[test]
    fn million_images_on_1024_ranks() {
        let names: Vec<String> = (0..1000).map(|class| format!("c{class}")).collect();
        let config = LayoutConfig { batch: 4, batches_per_shard: 2 };
        let layout = Layout::new(config, &names, &[1300; 1000]).unwrap();
        let sizes: Vec<u64> = layout
            .claim_order()
            .into_iter()
            .map(|id| layout.shard(id).map_or(0, |shard| shard.images.end - shard.images.start))
            .collect();
        let speeds: Vec<f64> = (0..1024).map(|rank| 1.0 + (rank % 7) as f64 * 0.05).collect();
        let result = simulate(&sizes, &speeds);
        assert!(result.idle_tail < 0.01, "{result:?}");
    }
}
