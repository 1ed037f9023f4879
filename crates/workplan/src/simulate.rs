//! How long generation takes on ranks that differ in speed and fail: what `equipoise plan --simulate` shows.

use equipoise_base::rng::{Key, Stream};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Outcome of a simulated generation.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Simulation {
    /// Seconds from the first claim to the last commit.
    pub makespan: f64,
    /// Seconds that ranks computed, summed; with what failures destroyed.
    pub busy: f64,
    /// Part of ranks x makespan in which a rank was there and had nothing left to claim, in [0, 1].
    pub idle_tail: f64,
    /// Seconds of computing that failures destroyed, summed.
    pub lost: f64,
    /// Failures.
    pub failures: u64,
}

/// Ranks that fail at random moments and come back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Failures {
    /// Mean seconds between two failures of one rank: exponential, without memory.
    pub mean: f64,
    /// Seconds until it is back.
    pub downtime: f64,
    /// Seed of the moments.
    pub seed: u64,
}

/// Assigns shards in claim order, each to the rank that is free first, as the claim server does.
///
/// `sizes` are images per shard in claim order; `speeds` are images per second of each rank, positive.
/// Of two ranks free at the same moment the lower one claims first. A shard whose rank fails is made again from its
/// beginning, by the rank that is free first: on a stop with notice less is lost.
pub fn simulate(sizes: &[u64], speeds: &[f64], failures: Option<Failures>) -> Simulation {
    let ranks = speeds.iter().enumerate().map(|(rank, &speed)| Rank::new(rank as u64, speed, failures));
    let mut run = Run {
        ranks: ranks.collect(),
        sizes,
        unclaimed: (0..sizes.len()).rev().collect(),
        events: (0..speeds.len()).map(|rank| Reverse((Seconds(0.0), rank, Event::Free))).collect(),
        waiting: BinaryHeap::new(),
        downtime: failures.map_or(0.0, |failures| failures.downtime),
        outcome: Simulation::default(),
    };
    while let Some(Reverse((Seconds(now), rank, event))) = run.events.pop() {
        run.handle(now, rank, event);
    }
    let available = run.outcome.makespan * speeds.len() as f64;
    let idle: f64 =
        run.waiting.iter().map(|Reverse((_, Seconds(since)))| (run.outcome.makespan - since).max(0.0)).sum();
    run.outcome.idle_tail += idle;
    run.outcome.idle_tail = if available > 0.0 { (run.outcome.idle_tail / available).max(0.0) } else { 0.0 };
    run.outcome
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// It has committed its shard, or is back.
    Free,
    /// It has lost this shard.
    Failed(usize),
}

struct Rank {
    speed: f64,
    /// When it fails next, and what the moments after that are drawn from.
    fails: f64,
    moments: Option<(Stream, f64)>,
}

impl Rank {
    fn new(rank: u64, speed: f64, failures: Option<Failures>) -> Self {
        let stream = |failures: Failures| Key::new(failures.seed, "simulate.failures").index(rank).stream();
        let moments = failures.filter(|it| it.mean > 0.0).map(|failures| (stream(failures), failures.mean));
        let mut rank = Self { speed, fails: f64::INFINITY, moments };
        rank.draw(0.0);
        rank
    }

    /// Draws the first failure after `now`.
    fn draw(&mut self, now: f64) {
        if let Some((stream, mean)) = &mut self.moments {
            self.fails = now - (1.0 - stream.uniform()).ln() * *mean;
        }
    }
}

struct Run<'a> {
    ranks: Vec<Rank>,
    sizes: &'a [u64],
    /// Shards to claim, the next one last.
    unclaimed: Vec<usize>,
    events: BinaryHeap<Reverse<(Seconds, usize, Event)>>,
    /// Ranks without work, and since when.
    waiting: BinaryHeap<Reverse<(usize, Seconds)>>,
    downtime: f64,
    outcome: Simulation,
}

impl Run<'_> {
    fn handle(&mut self, now: f64, rank: usize, event: Event) {
        match event {
            Event::Free => match self.unclaimed.pop() {
                Some(shard) => self.start(now, rank, shard),
                None => self.waiting.push(Reverse((rank, Seconds(now)))),
            },
            Event::Failed(shard) => {
                self.ranks[rank].draw(now + self.downtime);
                self.events.push(Reverse((Seconds(now + self.downtime), rank, Event::Free)));
                match self.waiting.pop() {
                    Some(Reverse((idle, Seconds(since)))) => {
                        self.outcome.idle_tail += now - since;
                        self.start(now, idle, shard);
                    }
                    None => self.unclaimed.push(shard),
                }
            }
        }
    }

    fn start(&mut self, now: f64, rank: usize, shard: usize) {
        let work = self.sizes[shard] as f64 / self.ranks[rank].speed;
        // A rank that failed while it had nothing to do lost nothing.
        if self.ranks[rank].fails < now {
            self.ranks[rank].draw(now);
        }
        let fails = self.ranks[rank].fails;
        if fails < now + work {
            self.outcome.busy += fails - now;
            self.outcome.lost += fails - now;
            self.outcome.failures += 1;
            self.events.push(Reverse((Seconds(fails), rank, Event::Failed(shard))));
        } else {
            self.outcome.busy += work;
            self.outcome.makespan = self.outcome.makespan.max(now + work);
            self.events.push(Reverse((Seconds(now + work), rank, Event::Free)));
        }
    }
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
        let result = simulate(&[4, 2, 2], &[1.0, 1.0], None);
        assert_eq!((result.makespan, result.busy, result.idle_tail), (4.0, 8.0, 0.0));
        let slow = simulate(&[4, 4, 4], &[2.0, 1.0], None);
        assert_eq!((slow.makespan, slow.busy, slow.idle_tail), (4.0, 8.0, 0.0));
        assert_eq!(simulate(&[4, 1], &[1.0, 1.0], None).idle_tail, 3.0 / 8.0);
        assert_eq!(simulate(&[], &[1.0], None).idle_tail, 0.0);
        assert_eq!(simulate(&[5], &[], None).makespan, 0.0);
    }

    #[test]
    fn failures_lose_shards_and_nothing_is_forgotten() {
        let failures = Failures { mean: 20.0, downtime: 5.0, seed: 3 };
        let result = simulate(&[10; 100], &[1.0; 4], Some(failures));
        assert!(result.failures > 10 && result.lost > 0.0, "{result:?}");
        assert!((result.busy - result.lost - 1000.0).abs() < 1e-6, "{result:?}");
        assert!(result.makespan > 250.0, "{result:?}");
        assert_eq!(result, simulate(&[10; 100], &[1.0; 4], Some(failures)), "the same every time");
        let calm = Failures { mean: 1e12, ..failures };
        assert_eq!(simulate(&[10; 100], &[1.0; 4], Some(calm)), simulate(&[10; 100], &[1.0; 4], None));
    }

    /// The bar of the design: ImageNet-LT completed to 1,300 images per class, on 1,024 ranks of unequal speed that fail:
    /// idle tail at most 1 %.
    #[test]
    fn imagenet_lt_on_1024_ranks() {
        let counts = include_str!("../../../configs/classes/imagenet-lt-counts.txt");
        let counts = counts.lines().filter_map(|line| line.parse::<u64>().ok());
        let planned: Vec<u64> = counts.map(|count| 1300_u64.saturating_sub(count)).collect();
        let names: Vec<String> = (0..planned.len()).map(|class| format!("c{class}")).collect();
        let config = LayoutConfig { batch: 4, batches_per_shard: 2 };
        let layout = Layout::new(config, &names, &planned).unwrap();
        assert_eq!(layout.images(), 1_184_154);
        let size = |id| layout.shard(id).map_or(0, |shard| shard.images.end - shard.images.start);
        let sizes: Vec<u64> = layout.claim_order().into_iter().map(size).collect();
        let speeds: Vec<f64> = (0..1024).map(|rank| 1.0 + (rank % 7) as f64 * 0.05).collect();
        let calm = simulate(&sizes, &speeds, None);
        // A failure of every rank in four hours; the whole takes 1,000 s on each.
        let failures = Failures { mean: 4.0 * 3600.0, downtime: 130.0, seed: 0 };
        let rough = simulate(&sizes, &speeds, Some(failures));
        assert!(calm.idle_tail < 0.01 && rough.idle_tail < 0.01, "{calm:?} {rough:?}");
        assert!(rough.failures > 20 && rough.lost / rough.busy < 0.01, "{rough:?}");
    }
}
