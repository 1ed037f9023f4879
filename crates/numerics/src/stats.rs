//! Streaming mean and covariance, of one set and by class.
//!
//! Chunks are merged by Chan, Golub and LeVeque's update (1979), which subtracts means before anything is squared:
//! a large common offset costs no digits. A sum depends on its order in the last bits, so where the result must not
//! depend on ranks, make one accumulator per shard and join them with [`merge_tree`] in shard order.

use crate::{check, linalg};
use equipoise_base::{Result, ensure};
use tch::{Device, IndexOp, Kind, Tensor};

/// Rows that are centred at a time: bounds the float64 copy of a large set.
const CHUNK: i64 = 4096;

/// Count, mean and scatter of a stream of feature rows.
#[derive(Debug)]
pub struct Moments {
    count: u64,
    mean: Tensor,
    scatter: Tensor,
}

impl Moments {
    /// No rows yet, of dimension `dim`.
    pub fn new(dim: i64, device: Device) -> Self {
        let options = (Kind::Double, device);
        Self { count: 0, mean: Tensor::zeros([dim], options), scatter: Tensor::zeros([dim, dim], options) }
    }

    /// The moments of `rows` [n, d].
    ///
    /// # Errors
    /// 65 unless `rows` is a matrix of finite numbers.
    pub fn of(rows: &Tensor) -> Result<Self> {
        let (count, dim) = check::features("features", rows)?;
        let mut this = Self::new(dim, rows.device());
        for start in (0..count).step_by(CHUNK as usize) {
            this.merge(&Self::of_chunk(&rows.narrow(0, start, CHUNK.min(count - start))))?;
        }
        Ok(this)
    }

    /// The moments of a few rows, at least one, in one go.
    fn of_chunk(rows: &Tensor) -> Self {
        let rows = rows.detach().to_kind(Kind::Double);
        let rough = mean_of(&rows);
        let mut centred = rows - &rough;
        // The mean of what is left corrects the rounding of the first: offsets of 1e6 keep ten digits.
        let rest = mean_of(&centred);
        let _ = centred.g_sub_(&rest);
        Self { count: centred.size()[0] as u64, mean: rough + rest, scatter: linalg::gram(&centred) }
    }

    /// Adds a chunk `rows` [n, d]; n may be 0.
    ///
    /// # Errors
    /// 65 unless `rows` is a matrix of finite numbers with d columns.
    pub fn update(&mut self, rows: &Tensor) -> Result<()> {
        self.merge(&Self::of(&rows.to_device(self.mean.device()))?)
    }

    /// Adds the rows that another accumulator has seen.
    ///
    /// # Errors
    /// 65 when the dimensions differ.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        let (have, got) = (self.dim(), other.dim());
        ensure!(
            have == got,
            BadData,
            "features of dimension {got} cannot join statistics of dimension {have}"
        );
        if other.count == 0 {
            return Ok(());
        }
        let (n, m) = (self.count as f64, other.count as f64);
        let delta = &other.mean - &self.mean;
        let weight = n * m / (n + m);
        if self.count == 0 {
            self.scatter = other.scatter.shallow_clone();
        } else {
            self.scatter = &self.scatter + &other.scatter + delta.outer(&delta) * weight;
        }
        self.mean = &self.mean + delta * (m / (n + m));
        self.count += other.count;
        Ok(())
    }

    /// Puts stored parts together again: `mean` [d], `scatter` [d, d].
    ///
    /// # Errors
    /// 65 when the shapes do not fit.
    pub fn from_parts(count: u64, mean: Tensor, scatter: Tensor) -> Result<Self> {
        let (mean_size, size) = (mean.size(), scatter.size());
        ensure!(mean_size.len() == 1, BadData, "stored mean has shape {mean_size:?}, expected [d]");
        let dim = mean_size[0];
        ensure!(size == [dim, dim], BadData, "stored scatter has shape {size:?}, expected [{dim}, {dim}]");
        Ok(Self { count, mean: mean.to_kind(Kind::Double), scatter: scatter.to_kind(Kind::Double) })
    }

    /// Number of features.
    pub fn dim(&self) -> i64 {
        self.mean.size()[0]
    }

    /// Number of rows seen.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Mean [d]; zeros before the first row.
    pub fn mean(&self) -> &Tensor {
        &self.mean
    }

    /// Sum of outer products of centred rows [d, d]: what to store, with count and mean.
    pub fn scatter(&self) -> &Tensor {
        &self.scatter
    }

    /// Sample covariance [d, d] with n - 1, exactly symmetric; zeros below two rows.
    pub fn covariance(&self) -> Tensor {
        covariance(&self.scatter, self.count as f64 - 1.)
    }
}

/// What is kept of the spread around the class means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// One covariance per class: 8 C d^2 bytes, so for few classes or small d only.
    PerClass,
    /// One covariance around the class means, common to all classes, with n - (number of classes seen).
    Pooled,
}

/// Counts, means and scatter by class.
///
/// With [`Spread::PerClass`] every class in a chunk costs one d x d update: feed rows grouped by class.
#[derive(Debug)]
pub struct ClassMoments {
    spread: Spread,
    count: Vec<u64>,
    mean: Tensor,
    scatter: Tensor,
}

impl ClassMoments {
    /// No rows yet.
    pub fn new(classes: usize, dim: i64, spread: Spread, device: Device) -> Self {
        let options = (Kind::Double, device);
        let slots = if spread == Spread::PerClass { classes as i64 } else { 1 };
        Self {
            spread,
            count: vec![0; classes],
            mean: Tensor::zeros([classes as i64, dim], options),
            scatter: Tensor::zeros([slots, dim, dim], options),
        }
    }

    /// Adds a chunk `rows` [n, d] with `labels` [n].
    ///
    /// # Errors
    /// 65 when shapes do not fit, a label is out of range or a feature is not finite.
    pub fn update(&mut self, rows: &Tensor, labels: &Tensor) -> Result<()> {
        let (n, dim) = check::features("features", rows)?;
        let (want, classes) = (self.dim(), self.classes());
        ensure!(
            dim == want,
            BadData,
            "features of dimension {dim} cannot join statistics of dimension {want}"
        );
        let labels = check::labels("features", labels, n, classes)?;
        let mut by_class: Vec<Vec<i64>> = vec![Vec::new(); classes];
        for (row, &label) in labels.iter().enumerate() {
            by_class[label].push(row as i64);
        }
        let rows = rows.detach().to_device(self.mean.device()).to_kind(Kind::Double);
        let present: Vec<usize> = (0..classes).filter(|&class| !by_class[class].is_empty()).collect();
        match self.spread {
            Spread::PerClass => {
                for class in present {
                    let index = Tensor::from_slice(&by_class[class]).to_device(rows.device());
                    let chunk = Moments::of(&rows.index_select(0, &index))?;
                    self.join(
                        &[class],
                        &[chunk.count],
                        &chunk.mean.unsqueeze(0),
                        &chunk.scatter.unsqueeze(0),
                    );
                }
            }
            Spread::Pooled if !present.is_empty() => {
                let counts: Vec<u64> = present.iter().map(|&class| by_class[class].len() as u64).collect();
                let (mean, scatter) = within_scatter(&rows, &labels, &present, &counts);
                self.join(&present, &counts, &mean, &scatter.unsqueeze(0));
            }
            Spread::Pooled => (),
        }
        Ok(())
    }

    /// Adds the rows that another accumulator has seen.
    ///
    /// # Errors
    /// 65 when the two keep different things.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        let same = self.spread == other.spread && self.mean.size() == other.mean.size();
        ensure!(same, BadData, "statistics of different classes, dimensions or spread cannot be joined");
        let present: Vec<usize> = (0..self.classes()).filter(|&class| other.count[class] > 0).collect();
        match self.spread {
            Spread::PerClass => {
                for class in present {
                    let slot = class as i64..class as i64 + 1;
                    let (mean, scatter) = (other.mean.i(slot.clone()), other.scatter.i(slot));
                    self.join(&[class], &[other.count[class]], &mean, &scatter);
                }
            }
            Spread::Pooled if !present.is_empty() => {
                let counts: Vec<u64> = present.iter().map(|&class| other.count[class]).collect();
                let mean = other.mean.index_select(0, &index_of(&present, other.mean.device()));
                self.join(&present, &counts, &mean, &other.scatter);
            }
            Spread::Pooled => (),
        }
        Ok(())
    }

    /// Chan's update of the named classes: `mean` [p, d]; `scatter` [1, d, d] goes to the slot of the (one) class,
    /// or to the common slot.
    fn join(&mut self, classes: &[usize], counts: &[u64], mean: &Tensor, scatter: &Tensor) {
        let device = self.mean.device();
        let index = index_of(classes, device);
        let have: Vec<f64> = classes.iter().map(|&class| self.count[class] as f64).collect();
        let pairs = || have.iter().zip(counts).map(|(&n, &m)| (n, m as f64));
        let shift: Vec<f64> = pairs().map(|(n, m)| m / (n + m)).collect();
        let weight: Vec<f64> = pairs().map(|(n, m)| (n * m / (n + m)).sqrt()).collect();
        let column = |values: &[f64]| Tensor::from_slice(values).to_device(device).unsqueeze(1);
        let old = self.mean.index_select(0, &index);
        let delta = mean.to_device(device) - &old;
        let weighted = &delta * column(&weight);
        let slot = if self.spread == Spread::PerClass { classes[0] as i64 } else { 0 };
        let mut target = self.scatter.get(slot);
        let _ = target.g_add_(&scatter.to_device(device).get(0)).g_add_(&linalg::gram(&weighted));
        let _ = self.mean.index_copy_(0, &index, &(old + delta * column(&shift)));
        for (&class, &count) in classes.iter().zip(counts) {
            self.count[class] += count;
        }
    }

    /// Number of classes, seen or not.
    pub fn classes(&self) -> usize {
        self.count.len()
    }

    /// Number of features.
    pub fn dim(&self) -> i64 {
        self.mean.size()[1]
    }

    /// What is kept of the spread.
    pub fn spread(&self) -> Spread {
        self.spread
    }

    /// Rows seen, by class.
    pub fn count(&self) -> &[u64] {
        &self.count
    }

    /// Class means [C, d]; zeros for a class without rows.
    pub fn mean(&self) -> &Tensor {
        &self.mean
    }

    /// Number of covariances: C, or 1 when pooled.
    pub fn slots(&self) -> usize {
        self.scatter.size()[0] as usize
    }

    /// Covariance [d, d] of a slot: of a class with n - 1, or pooled; zeros where there are too few rows.
    pub fn covariance(&self, slot: usize) -> Tensor {
        let freedom = match self.spread {
            Spread::PerClass => self.count[slot] as f64 - 1.,
            Spread::Pooled => {
                let seen = self.count.iter().filter(|&&count| count > 0).count();
                self.count.iter().sum::<u64>() as f64 - seen as f64
            }
        };
        covariance(&self.scatter.get(slot as i64), freedom)
    }

    /// Everything to store: count [C] int64, mean [C, d], scatter [C or 1, d, d].
    pub fn to_parts(&self) -> (Tensor, Tensor, Tensor) {
        let count: Vec<i64> = self.count.iter().map(|&count| count as i64).collect();
        (Tensor::from_slice(&count), self.mean.shallow_clone(), self.scatter.shallow_clone())
    }

    /// The reverse of [`ClassMoments::to_parts`].
    ///
    /// # Errors
    /// 65 when shapes do not fit or a count is negative.
    pub fn from_parts(spread: Spread, count: &Tensor, mean: &Tensor, scatter: &Tensor) -> Result<Self> {
        let (classes, dim) = mean.size2().map_or((-1, -1), |size| size);
        let slots = if spread == Spread::PerClass { classes } else { 1 };
        let fits = count.size() == [classes] && scatter.size() == [slots, dim, dim];
        let sizes = (count.size(), mean.size(), scatter.size());
        ensure!(
            fits,
            BadData,
            "stored class statistics do not fit each other: count, mean, scatter are {sizes:?}"
        );
        let count = check::to_i64(count);
        ensure!(count.iter().all(|&n| n >= 0), BadData, "stored class statistics have a negative count");
        Ok(Self {
            spread,
            count: count.into_iter().map(|n| n as u64).collect(),
            mean: mean.to_kind(Kind::Double),
            scatter: scatter.to_kind(Kind::Double),
        })
    }
}

/// Joins accumulators along a binary tree over their positions: neighbours first, then neighbours of those.
///
/// A rank that holds an aligned block of 2^k parts may join it beforehand without changing a bit of the result.
/// `None` if there are no parts.
///
/// # Errors
/// The first error of `merge`.
pub fn merge_tree<T>(mut parts: Vec<T>, merge: impl Fn(&mut T, &T) -> Result<()>) -> Result<Option<T>> {
    while parts.len() > 1 {
        let mut pairs = std::mem::take(&mut parts).into_iter();
        while let Some(mut first) = pairs.next() {
            if let Some(second) = pairs.next() {
                merge(&mut first, &second)?;
            }
            parts.push(first);
        }
    }
    Ok(parts.pop())
}

/// Class means [p, d] of the `present` classes in a chunk, and the scatter [d, d] around them.
fn within_scatter(rows: &Tensor, labels: &[usize], present: &[usize], counts: &[u64]) -> (Tensor, Tensor) {
    let position: Vec<i64> =
        labels.iter().map(|label| present.binary_search(label).map_or(0, |at| at as i64)).collect();
    let position = Tensor::from_slice(&position).to_device(rows.device());
    // A product with indicator rows sums in a fixed order on every device; index_add does not.
    let member = position.one_hot(present.len() as i64).to_kind(Kind::Double);
    let counts: Vec<f64> = counts.iter().map(|&count| count as f64).collect();
    let average = (member / Tensor::from_slice(&counts).to_device(rows.device())).tr();
    let rough = average.matmul(rows);
    let mean = &rough + average.matmul(&(rows - rough.index_select(0, &position)));
    let centred = rows - mean.index_select(0, &position);
    (mean, linalg::gram(&centred))
}

fn covariance(scatter: &Tensor, freedom: f64) -> Tensor {
    if freedom <= 0. {
        return scatter.zeros_like();
    }
    scatter / freedom
}

fn mean_of(rows: &Tensor) -> Tensor {
    rows.mean_dim(0, false, Kind::Double)
}

fn index_of(classes: &[usize], device: Device) -> Tensor {
    let classes: Vec<i64> = classes.iter().map(|&class| class as i64).collect();
    Tensor::from_slice(&classes).to_device(device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use equipoise_base::rng::Key;
    use proptest::prelude::*;

    fn normal(seed: u64, rows: i64, dim: i64) -> Tensor {
        let mut random = Key::new(seed, "stats-test").stream();
        let values: Vec<f64> = (0..rows * dim).map(|_| random.normal()).collect();
        Tensor::from_slice(&values).view([rows, dim])
    }

    fn labels(seed: u64, rows: i64, classes: u64) -> Tensor {
        let mut random = Key::new(seed, "labels").stream();
        // The last class stays empty.
        let labels: Vec<i64> = (0..rows).map(|_| random.below(classes - 1) as i64).collect();
        Tensor::from_slice(&labels)
    }

    fn largest_difference(a: &Tensor, b: &Tensor) -> f64 {
        (a - b).abs().max().double_value(&[])
    }

    fn bytes_equal(a: &Tensor, b: &Tensor) -> bool {
        a.eq_tensor(b).all().int64_value(&[]) == 1
    }

    #[test]
    fn closed_form_of_two_rows() -> Result<()> {
        let moments = Moments::of(&Tensor::from_slice(&[1., 2., 3., 6.]).view([2, 2]))?;
        assert_eq!(check::to_f64(moments.mean()), [2., 4.]);
        assert_eq!(check::to_f64(&moments.covariance()), [2., 4., 4., 8.]);
        Ok(())
    }

    #[test]
    fn none_or_one_row_has_no_spread() -> Result<()> {
        let mut moments = Moments::new(2, Device::Cpu);
        moments.update(&Tensor::zeros([0, 2], (Kind::Float, Device::Cpu)))?;
        assert_eq!((moments.count(), check::to_f64(moments.mean())), (0, vec![0., 0.]));
        moments.update(&Tensor::from_slice(&[3f32, 4.]).view([1, 2]))?;
        assert_eq!(check::to_f64(&moments.covariance()), [0.; 4]);
        assert_eq!(check::to_f64(moments.mean()), [3., 4.]);
        Ok(())
    }

    #[test]
    fn a_large_offset_keeps_the_digits() -> Result<()> {
        let rows = normal(1, 400, 3);
        let plain = Moments::of(&rows)?.covariance();
        let mut shifted = Moments::new(3, Device::Cpu);
        for start in (0..400).step_by(57) {
            shifted.update(&(rows.narrow(0, start, 57.min(400 - start)) + 1e6))?;
        }
        assert!(largest_difference(&shifted.covariance(), &plain) < 1e-8);
        Ok(())
    }

    #[test]
    fn pooled_is_the_mean_of_class_covariances_by_freedom() -> Result<()> {
        let (rows, labels) = (normal(2, 90, 4), labels(2, 90, 4));
        let mut per_class = ClassMoments::new(4, 4, Spread::PerClass, Device::Cpu);
        let mut pooled = ClassMoments::new(4, 4, Spread::Pooled, Device::Cpu);
        per_class.update(&rows, &labels)?;
        for start in (0..90).step_by(40) {
            let length = 40.min(90 - start);
            pooled.update(&rows.narrow(0, start, length), &labels.narrow(0, start, length))?;
        }
        let scatter: Tensor =
            (0..3).map(|c| per_class.covariance(c) * (per_class.count()[c] as f64 - 1.)).sum();
        assert!(largest_difference(&pooled.covariance(0), &(scatter / (90. - 3.))) < 1e-12);
        assert!(largest_difference(pooled.mean(), per_class.mean()) < 1e-13);
        Ok(())
    }

    #[test]
    fn parts_round_trip() -> Result<()> {
        let mut stats = ClassMoments::new(3, 4, Spread::PerClass, Device::Cpu);
        stats.update(&normal(3, 20, 4), &labels(3, 20, 3))?;
        let (count, mean, scatter) = stats.to_parts();
        let again = ClassMoments::from_parts(Spread::PerClass, &count, &mean, &scatter)?;
        assert_eq!(again.count(), stats.count());
        assert!(bytes_equal(&again.covariance(0), &stats.covariance(0)));
        assert!(ClassMoments::from_parts(Spread::Pooled, &count, &mean, &scatter).is_err());
        Ok(())
    }

    #[test]
    fn a_tree_of_aligned_blocks_has_the_same_bits() -> Result<()> {
        let part = |seed| Moments::of(&normal(seed, 10 + seed as i64, 5));
        let merge = |a: &mut Moments, b: &Moments| a.merge(b);
        let join = |range: std::ops::Range<u64>| -> Result<Option<Moments>> {
            merge_tree(range.map(part).collect::<Result<Vec<_>>>()?, merge)
        };
        let whole = join(0..7)?.unwrap();
        let blocks = [join(0..4)?.unwrap(), join(4..7)?.unwrap()];
        let ranks = merge_tree(blocks.into(), merge)?.unwrap();
        assert!(bytes_equal(whole.scatter(), ranks.scatter()) && bytes_equal(whole.mean(), ranks.mean()));
        assert!(join(0..0)?.is_none());
        Ok(())
    }

    #[test]
    fn wrong_input_is_an_error() {
        let mut stats = ClassMoments::new(2, 3, Spread::PerClass, Device::Cpu);
        let rows = normal(4, 2, 3);
        for bad in [[0, 2], [-1, 0]] {
            assert!(stats.update(&rows, &Tensor::from_slice(&bad)).is_err());
        }
        assert!(stats.update(&rows, &Tensor::from_slice(&[0i64])).is_err());
        assert!(stats.update(&(&rows / 0.), &Tensor::from_slice(&[0i64, 1])).is_err());
        assert!(stats.update(&normal(4, 2, 4), &Tensor::from_slice(&[0i64, 1])).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn any_chunking_gives_the_batch_result(seed in 0u64..1000, cuts in prop::collection::vec(0i64..120, 0..8)) {
            let (rows, labels) = (normal(seed, 120, 5) * 3. + 40., labels(seed, 120, 4));
            let mut cuts: Vec<i64> = cuts.into_iter().chain([0, 120]).collect();
            cuts.sort_unstable();
            for spread in [Spread::PerClass, Spread::Pooled] {
                let mut batch = ClassMoments::new(4, 5, spread, Device::Cpu);
                batch.update(&rows, &labels).unwrap();
                let mut stream = ClassMoments::new(4, 5, spread, Device::Cpu);
                let mut merged = ClassMoments::new(4, 5, spread, Device::Cpu);
                for cut in cuts.windows(2) {
                    let span = |tensor: &Tensor| tensor.narrow(0, cut[0], cut[1] - cut[0]);
                    stream.update(&span(&rows), &span(&labels)).unwrap();
                    let mut part = ClassMoments::new(4, 5, spread, Device::Cpu);
                    part.update(&span(&rows), &span(&labels)).unwrap();
                    merged.merge(&part).unwrap();
                }
                for other in [stream, merged] {
                    prop_assert_eq!(other.count(), batch.count());
                    prop_assert!(largest_difference(other.mean(), batch.mean()) < 1e-10);
                    for slot in 0..batch.slots() {
                        prop_assert!(largest_difference(&other.covariance(slot), &batch.covariance(slot)) < 1e-10);
                    }
                }
            }
        }
    }
}
