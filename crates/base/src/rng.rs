//! Identity-keyed random numbers: who asks decides the numbers, not when or where.
//!
//! A [`Key`] is (run seed, purpose, class or group, index, step). Its 64-bit hash keys ChaCha8, so no generator
//! state exists and none is saved. `shards/README.md` specifies the algorithm and lists test vectors; a change needs
//! a new [`VERSION`], which is part of every identity.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};

/// Version of the algorithm on this page.
pub const VERSION: u32 = 1;

/// What a random number is for.
///
/// ```
/// use equipoise_base::rng::Key;
/// let mut noise = Key::new(7, "noise").class(3).index(41).stream();
/// assert_eq!(noise.normal(), Key::new(7, "noise").class(3).index(41).stream().normal());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key<'a> {
    seed: u64,
    purpose: &'a str,
    class: u64,
    index: u64,
    step: u64,
}

impl<'a> Key<'a> {
    /// A key with class, index and step 0.
    pub fn new(seed: u64, purpose: &'a str) -> Self {
        Self { seed, purpose, class: 0, index: 0, step: 0 }
    }

    /// Sets the class or group.
    #[must_use]
    pub fn class(mut self, class: u64) -> Self {
        self.class = class;
        self
    }

    /// Sets the index within the class, or the sample.
    #[must_use]
    pub fn index(mut self, index: u64) -> Self {
        self.index = index;
        self
    }

    /// Sets the step: a denoising step, an epoch, a training step.
    #[must_use]
    pub fn step(mut self, step: u64) -> Self {
        self.step = step;
        self
    }

    /// xxh3-64 of version (u32), seed, class, index, step (u64 each), then the purpose; all little-endian.
    pub fn hash(self) -> u64 {
        let mut bytes = Vec::with_capacity(36 + self.purpose.len());
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        for field in [self.seed, self.class, self.index, self.step] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        bytes.extend_from_slice(self.purpose.as_bytes());
        crate::hash::xxh3(&bytes)
    }

    /// The numbers of this key, from the first.
    pub fn stream(self) -> Stream {
        Stream::from_hash(self.hash())
    }
}

/// An endless sequence of random numbers.
#[derive(Clone, Debug)]
pub struct Stream {
    chacha: ChaCha8Rng,
    /// Box-Muller makes two normals at a time; the second waits here.
    spare: Option<f64>,
}

impl Stream {
    /// ChaCha8 with the hash in the first 8 key bytes (little-endian) and zeros elsewhere.
    pub fn from_hash(hash: u64) -> Self {
        let mut key = [0u8; 32];
        key[..8].copy_from_slice(&hash.to_le_bytes());
        Self { chacha: ChaCha8Rng::from_seed(key), spare: None }
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.chacha.next_u64()
    }

    /// Uniform in [0, 1), with 53 bits.
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform in [low, high).
    pub fn range(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform()
    }

    /// Uniform in 0..n by rejection, so without bias.
    ///
    /// # Panics
    /// If `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        assert!(n > 0, "below(0)");
        // 2^64 mod n values at the low end would be drawn once too often.
        let reject = n.wrapping_neg() % n;
        loop {
            let bits = self.bits();
            if bits >= reject {
                return bits % n;
            }
        }
    }

    /// True with probability `p`.
    pub fn bernoulli(&mut self, p: f64) -> bool {
        self.uniform() < p
    }

    /// Standard normal: Box-Muller through `libm`, whose results do not depend on the platform.
    pub fn normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        let radius = (-2.0 * libm::log(1.0 - self.uniform())).sqrt();
        let angle = std::f64::consts::TAU * self.uniform();
        self.spare = Some(radius * libm::sin(angle));
        radius * libm::cos(angle)
    }

    /// Fills with standard normals.
    pub fn fill_normal(&mut self, out: &mut [f32]) {
        for value in out {
            *value = self.normal() as f32;
        }
    }

    /// Fisher-Yates.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }

    /// A random order of 0..n.
    pub fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        self.shuffle(&mut order);
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors printed in `shards/README.md`: a change here breaks every identity ever stored.
    #[test]
    fn vectors() {
        let key = Key::new(1, "noise").class(2).index(3).step(4);
        let mut stream = key.stream();
        let bits: Vec<String> = (0..3).map(|_| format!("{:016x}", stream.bits())).collect();
        let mut stream = key.stream();
        let normals: Vec<String> = (0..4).map(|_| format!("{:.17e}", stream.normal())).collect();
        let got = format!("{:016x} | {} | {}", key.hash(), bits.join(" "), normals.join(" "));
        assert_eq!(got, VECTORS);
    }

    const VECTORS: &str = "e360b91e17bc6d1b | 42ad1e860eb5afdc 0e90264fb7227c16 68364d571ede97d8 | \
        7.27716827861462412e-1 2.71783094780587320e-1 9.61261435156193222e-1 3.48372316812866789e-1";

    #[test]
    fn every_field_of_the_key_matters() {
        let base = Key::new(1, "a");
        let keys = [base, Key::new(2, "a"), Key::new(1, "b"), base.class(1), base.index(1), base.step(1)];
        let hashes: std::collections::BTreeSet<u64> = keys.iter().map(|key| key.hash()).collect();
        assert_eq!(hashes.len(), keys.len());
    }

    #[test]
    fn normals_have_unit_moments() {
        let mut values = vec![0f32; 200_000];
        Key::new(0, "moments").stream().fill_normal(&mut values);
        let n = values.len() as f64;
        let mean = values.iter().map(|&v| v as f64).sum::<f64>() / n;
        let variance = values.iter().map(|&v| (v as f64 - mean).powi(2)).sum::<f64>() / n;
        assert!(mean.abs() < 0.01 && (variance - 1.0).abs() < 0.01, "{mean} {variance}");
    }

    #[test]
    fn below_is_in_range_and_hits_all() {
        let mut stream = Key::new(0, "below").stream();
        let mut seen = [false; 7];
        for _ in 0..500 {
            seen[stream.below(7) as usize] = true;
        }
        assert_eq!(seen, [true; 7]);
    }

    #[test]
    fn permutation_is_one() {
        let mut order = Key::new(0, "order").stream().permutation(100);
        assert_ne!(order[..5], [0, 1, 2, 3, 4]);
        order.sort_unstable();
        assert!(order.iter().copied().eq(0..100));
    }
}
