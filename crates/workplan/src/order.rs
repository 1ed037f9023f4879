//! The order in which training sees samples: a function of (seed, step, slot) alone.
//!
//! A step has `batch` slots in micro-batches of fixed size. Sampling without replacement walks one endless stream:
//! slot `s` of step `t` has position `t * batch + s`, and position `p` of a pool of `n` belongs to epoch `p / n`, whose
//! permutation is keyed by the epoch. So every sample comes once per epoch, no step is short, and a step that crosses
//! the end of an epoch takes the rest of the old one first. Nothing here knows a rank.

use equipoise_base::rng::Key;
use equipoise_base::{Result, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How samples are drawn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum OrderConfig {
    /// Every sample, real or synthetic, once per epoch.
    Shuffle {},
    /// Every class as often as any other; within a class, every sample once before any comes again.
    ClassBalanced {},
    /// Each micro-batch in two parts: real samples first, then synthetic ones, which are walked without replacement
    /// (an epoch is one pass over them), as in the public code for FG (LT-classification).
    Mix {
        /// How the real samples are drawn.
        #[serde(default)]
        real: RealDraw,
        /// Part of each micro-batch that is real.
        #[serde(default = "half")]
        real_fraction: f64,
    },
}

/// How the real part of a mixed batch is drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RealDraw {
    /// Uniform, with replacement.
    #[default]
    Uniform,
    /// As [`OrderConfig::ClassBalanced`].
    ClassBalanced,
}

fn half() -> f64 {
    0.5
}

/// Samples to draw from. An image may stand in a pool several times (extra real draws do).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pool {
    /// (set, index within the set) of each sample.
    pub items: Vec<(u32, u64)>,
    /// Class of each sample.
    pub labels: Vec<u32>,
}

impl Pool {
    /// All images of one set.
    pub fn of_set(set: u32, labels: &[u32]) -> Self {
        Self { items: (0..labels.len() as u64).map(|index| (set, index)).collect(), labels: labels.to_vec() }
    }

    /// Appends the samples of another pool.
    pub fn extend(&mut self, other: &Pool) {
        self.items.extend_from_slice(&other.items);
        self.labels.extend_from_slice(&other.labels);
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }
}

/// One slot of one step, filled: what the sample log records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Sample {
    /// Which image set.
    pub set: u32,
    /// Index within the set.
    pub index: u64,
    /// Class.
    pub label: u32,
    /// Keys the augmentation of this visit.
    pub key: u64,
}

/// The order of one run. Methods take `&mut self` only to keep the permutations in use; answers never depend on
/// what was asked before.
#[derive(Clone, Debug)]
pub struct TrainingOrder {
    seed: u64,
    batch: u64,
    micro_batch: u64,
    draw: Draw,
}

#[derive(Clone, Debug)]
enum Draw {
    Shuffle(Stream),
    ClassBalanced(Balanced),
    Mix { real: Real, real_slots: u64, synthetic: Stream },
}

#[derive(Clone, Debug)]
enum Real {
    Uniform(Pool),
    ClassBalanced(Balanced),
}

impl TrainingOrder {
    /// An order over `real` and `synthetic` samples; only [`OrderConfig::Mix`] tells them apart.
    ///
    /// # Errors
    /// 78 when the sizes or the fraction do not fit, 65 when there is nothing to draw.
    pub fn new(
        seed: u64,
        config: &OrderConfig,
        batch: u64,
        micro_batch: u64,
        real: Pool,
        synthetic: Pool,
    ) -> Result<Self> {
        ensure!(micro_batch > 0, Config, "micro_batch must be at least 1");
        ensure!(
            batch > 0 && batch.is_multiple_of(micro_batch),
            Config,
            "batch {batch} must be a positive multiple of micro_batch {micro_batch}"
        );
        let joined = |mut real: Pool| {
            real.extend(&synthetic);
            ensure!(!real.is_empty(), BadData, "there are no training samples");
            Ok(real)
        };
        let draw = match config {
            OrderConfig::Shuffle {} => Draw::Shuffle(Stream::new(seed, "shuffle", joined(real)?)),
            OrderConfig::ClassBalanced {} => Draw::ClassBalanced(Balanced::new(seed, &joined(real)?)),
            OrderConfig::Mix { real: kind, real_fraction } => {
                let real_slots = real_slots(micro_batch, *real_fraction)?;
                ensure!(!real.is_empty(), BadData, "a real/synthetic mix needs real samples");
                ensure!(!synthetic.is_empty(), BadData, "a real/synthetic mix needs synthetic samples");
                let real = match kind {
                    RealDraw::Uniform => Real::Uniform(real),
                    RealDraw::ClassBalanced => Real::ClassBalanced(Balanced::new(seed, &real)),
                };
                Draw::Mix { real, real_slots, synthetic: Stream::new(seed, "synthetic", synthetic) }
            }
        };
        Ok(Self { seed, batch, micro_batch, draw })
    }

    /// Slots per step.
    pub fn batch(&self) -> u64 {
        self.batch
    }

    /// Micro-batches per step.
    pub fn micro_batches(&self) -> u64 {
        self.batch / self.micro_batch
    }

    /// Samples of an epoch: the pool; for a mix one pass over the synthetic part.
    pub fn epoch_samples(&self) -> u64 {
        match &self.draw {
            Draw::Shuffle(stream) => stream.len(),
            Draw::ClassBalanced(balanced) => balanced.samples,
            Draw::Mix { synthetic, .. } => synthetic.len(),
        }
    }

    /// Slots of a step that count towards the epoch.
    fn epoch_slots(&self) -> u64 {
        match &self.draw {
            Draw::Mix { real_slots, .. } => self.micro_batches() * (self.micro_batch - real_slots),
            _ => self.batch,
        }
    }

    /// Steps until `epochs` epochs are complete; the last step may reach into the next epoch.
    pub fn steps(&self, epochs: u64) -> u64 {
        (epochs * self.epoch_samples()).div_ceil(self.epoch_slots())
    }

    /// The epoch in which a step begins.
    pub fn epoch(&self, step: u64) -> u64 {
        step * self.epoch_slots() / self.epoch_samples()
    }

    /// The samples of one micro-batch of a step, by slot.
    pub fn micro_batch(&mut self, step: u64, micro: u64) -> Vec<Sample> {
        let first = micro * self.micro_batch;
        (first..first + self.micro_batch).map(|slot| self.slot(step, slot)).collect()
    }

    /// The sample in one slot of a step.
    pub fn slot(&mut self, step: u64, slot: u64) -> Sample {
        let position = step * self.batch + slot;
        let ((set, index), label) = match &mut self.draw {
            Draw::Shuffle(stream) => stream.at(position),
            Draw::ClassBalanced(balanced) => balanced.at(position),
            Draw::Mix { real, real_slots, synthetic } => {
                let (micro, within) = (position / self.micro_batch, position % self.micro_batch);
                if within < *real_slots {
                    real.at(self.seed, micro * *real_slots + within)
                } else {
                    synthetic.at(micro * (self.micro_batch - *real_slots) + within - *real_slots)
                }
            }
        };
        // The position is part of the key: with replacement, an image may come twice in one epoch.
        let key = Key::new(self.seed, "augment").class(set.into()).index(index).step(position).hash();
        Sample { set, index, label, key }
    }
}

/// Real slots of a micro-batch, at least one and not all.
fn real_slots(micro_batch: u64, fraction: f64) -> Result<u64> {
    ensure!(
        fraction > 0.0 && fraction < 1.0,
        Config,
        "real_fraction is {fraction}: it must lie between 0 and 1"
    );
    ensure!(micro_batch >= 2, Config, "micro_batch must be at least 2 for a real/synthetic mix");
    Ok(((micro_batch as f64 * fraction).round() as u64).clamp(1, micro_batch - 1))
}

impl Real {
    fn at(&mut self, seed: u64, position: u64) -> ((u32, u64), u32) {
        match self {
            Self::Uniform(pool) => {
                let index = Key::new(seed, "real").step(position).stream().below(pool.len() as u64) as usize;
                (pool.items[index], pool.labels[index])
            }
            Self::ClassBalanced(balanced) => balanced.at(position),
        }
    }
}

/// An endless walk over a pool, each epoch in its own keyed permutation.
#[derive(Clone, Debug)]
struct Stream {
    seed: u64,
    purpose: &'static str,
    class: u64,
    pool: Pool,
    /// Permutation of the epoch asked for last.
    epoch: Option<(u64, Vec<u32>)>,
}

impl Stream {
    fn new(seed: u64, purpose: &'static str, pool: Pool) -> Self {
        Self { seed, purpose, class: 0, pool, epoch: None }
    }

    fn len(&self) -> u64 {
        self.pool.len() as u64
    }

    fn at(&mut self, position: u64) -> ((u32, u64), u32) {
        let (epoch, within) = (position / self.len(), (position % self.len()) as usize);
        if self.epoch.as_ref().is_none_or(|(current, _)| *current != epoch) {
            let mut order: Vec<u32> = (0..self.pool.len() as u32).collect();
            Key::new(self.seed, self.purpose).class(self.class).step(epoch).stream().shuffle(&mut order);
            self.epoch = Some((epoch, order));
        }
        let index = self.epoch.as_ref().map_or(0, |(_, order)| order[within] as usize);
        (self.pool.items[index], self.pool.labels[index])
    }
}

/// Rounds of all classes, each round in its own keyed order; the r-th visit to a class takes the r-th of its stream.
///
/// This is "draw a class uniformly, then the next of its samples" without the fluctuation, and it can be entered at
/// any position, which independent draws cannot: the number of earlier visits to a class is the number of rounds.
#[derive(Clone, Debug)]
struct Balanced {
    /// One position per class that has samples.
    rounds: Stream,
    classes: Vec<Stream>,
    samples: u64,
}

impl Balanced {
    fn new(seed: u64, pool: &Pool) -> Self {
        let mut by_class = std::collections::BTreeMap::<u32, Pool>::new();
        for (&item, &label) in pool.items.iter().zip(&pool.labels) {
            let class = by_class.entry(label).or_default();
            class.items.push(item);
            class.labels.push(label);
        }
        let classes: Vec<Stream> = by_class
            .into_iter()
            .map(|(label, pool)| Stream { class: label.into(), ..Stream::new(seed, "class", pool) })
            .collect();
        let rounds = Pool::of_set(0, &vec![0; classes.len()]);
        Self { rounds: Stream::new(seed, "rounds", rounds), classes, samples: pool.len() as u64 }
    }

    fn at(&mut self, position: u64) -> ((u32, u64), u32) {
        let ((_, class), _) = self.rounds.at(position);
        self.classes[class as usize].at(position / self.rounds.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// Sets of long-tailed labels: class c has `counts[c]` images.
    fn pool(set: u32, counts: &[usize]) -> Pool {
        let labels: Vec<u32> = counts.iter().enumerate().flat_map(|(c, &n)| vec![c as u32; n]).collect();
        Pool::of_set(set, &labels)
    }

    fn order(config: &OrderConfig, batch: u64, micro: u64) -> TrainingOrder {
        TrainingOrder::new(5, config, batch, micro, pool(0, &[20, 7, 2]), pool(1, &[3, 5, 9])).unwrap()
    }

    fn mix(real: RealDraw) -> OrderConfig {
        OrderConfig::Mix { real, real_fraction: 0.5 }
    }

    fn samples(order: &mut TrainingOrder, steps: u64) -> Vec<Sample> {
        let slots = steps * order.batch();
        (0..slots).map(|position| order.slot(position / order.batch(), position % order.batch())).collect()
    }

    #[test]
    fn shuffle_takes_each_sample_once_per_epoch() {
        let mut order = order(&OrderConfig::Shuffle {}, 8, 4);
        let n = order.epoch_samples() as usize;
        assert_eq!((n, order.steps(3)), (46, 18));
        let all = samples(&mut order, 18);
        let mut epochs = Vec::new();
        for epoch in all.chunks_exact(n) {
            let mut items: Vec<(u32, u64)> = epoch.iter().map(|sample| (sample.set, sample.index)).collect();
            epochs.push(items.clone());
            items.sort_unstable();
            items.dedup();
            assert_eq!(items.len(), n);
        }
        assert_eq!(epochs.len(), 3);
        assert_ne!(epochs[0], epochs[1]);
        assert_eq!((order.epoch(5), order.epoch(6)), (0, 1));
    }

    #[test]
    fn class_balanced_visits_classes_equally() {
        let mut order = order(&OrderConfig::ClassBalanced {}, 6, 3);
        let all = samples(&mut order, 50);
        for round in all.chunks_exact(3) {
            let mut labels: Vec<u32> = round.iter().map(|sample| sample.label).collect();
            labels.sort_unstable();
            assert_eq!(labels, [0, 1, 2]);
        }
        // Within a class nothing repeats before all have come.
        let tail: Vec<(u32, u64)> =
            all.iter().filter(|sample| sample.label == 2).take(11).map(|s| (s.set, s.index)).collect();
        let unique: std::collections::BTreeSet<_> = tail.iter().collect();
        assert_eq!(unique.len(), 11);
    }

    #[test]
    fn mix_is_half_real_in_every_micro_batch() {
        for real in [RealDraw::Uniform, RealDraw::ClassBalanced] {
            let mut order = order(&mix(real), 8, 4);
            assert_eq!((order.epoch_samples(), order.steps(2)), (17, 9));
            let all = samples(&mut order, 9);
            let sets: Vec<u32> = all.iter().map(|sample| sample.set).collect();
            assert!(sets.chunks(4).all(|micro| micro == [0, 0, 1, 1]));
            let first_pass: std::collections::BTreeSet<u64> =
                all.iter().filter(|sample| sample.set == 1).take(17).map(|sample| sample.index).collect();
            assert_eq!(first_pass.len(), 17);
        }
    }

    #[test]
    fn mix_draws_real_classes_by_frequency_or_equally() {
        let count = |real| {
            let mut counts = BTreeMap::new();
            for sample in samples(&mut order(&mix(real), 8, 4), 300) {
                if sample.set == 0 {
                    *counts.entry(sample.label).or_insert(0) += 1;
                }
            }
            counts
        };
        assert_eq!(count(RealDraw::ClassBalanced), BTreeMap::from([(0, 400), (1, 400), (2, 400)]));
        let uniform = count(RealDraw::Uniform);
        assert!((700..950).contains(&uniform[&0]) && (40..130).contains(&uniform[&2]), "{uniform:?}");
    }

    #[test]
    fn augmentation_keys_never_repeat() {
        let keys: Vec<u64> =
            samples(&mut order(&mix(RealDraw::Uniform), 8, 4), 200).iter().map(|s| s.key).collect();
        let unique: std::collections::BTreeSet<u64> = keys.iter().copied().collect();
        assert_eq!(unique.len(), keys.len());
    }

    #[test]
    fn misfits_are_errors() {
        let new = |config: &OrderConfig, batch, micro, synthetic: &[usize]| {
            TrainingOrder::new(0, config, batch, micro, pool(0, &[2]), pool(1, synthetic))
        };
        assert!(new(&OrderConfig::Shuffle {}, 8, 3, &[]).is_err());
        assert!(new(&OrderConfig::Shuffle {}, 8, 0, &[]).is_err());
        assert!(new(&OrderConfig::Shuffle {}, 8, 4, &[]).is_ok());
        assert!(new(&mix(RealDraw::Uniform), 8, 4, &[]).is_err());
        assert!(new(&mix(RealDraw::Uniform), 8, 1, &[2]).is_err());
        assert!(
            new(&OrderConfig::Mix { real: RealDraw::Uniform, real_fraction: f64::NAN }, 8, 4, &[2]).is_err()
        );
        let empty = TrainingOrder::new(0, &OrderConfig::Shuffle {}, 1, 1, Pool::default(), Pool::default());
        assert_eq!(empty.unwrap_err().code(), equipoise_base::ExitCode::BadData);
    }

    proptest! {
        /// Whoever asks, in whatever order, gets the same sample: the sequence does not depend on ranks or restarts.
        #[test]
        fn any_split_gives_the_same_sequence(which in 0usize..4, world in 1usize..5, start in 0u64..30) {
            let config = [
                OrderConfig::Shuffle {},
                OrderConfig::ClassBalanced {},
                mix(RealDraw::Uniform),
                mix(RealDraw::ClassBalanced),
            ][which].clone();
            let whole = samples(&mut order(&config, 8, 2), 40);
            for rank in 0..world {
                let mut order = order(&config, 8, 2);
                for step in start..40 {
                    for micro in (rank as u64..4).step_by(world) {
                        let first = (step * 8 + micro * 2) as usize;
                        prop_assert_eq!(&order.micro_batch(step, micro)[..], &whole[first..first + 2]);
                    }
                }
            }
        }
    }
}
