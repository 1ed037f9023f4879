//! Top-1 accuracy by class and by many, medium and few shots.

use equipoise_base::{Result, ensure};
use equipoise_catalog::shots::ShotGroup;
use equipoise_numerics::check;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// How often each class was taken for each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confusion {
    /// `counts[label][prediction]`.
    pub counts: Vec<Vec<u64>>,
}

impl Confusion {
    /// No samples yet.
    pub fn new(classes: usize) -> Self {
        Self { counts: vec![vec![0; classes]; classes] }
    }

    /// Counts pairs of prediction and label.
    ///
    /// # Errors
    /// 65 when their numbers differ or one is not a class.
    pub fn of(classes: usize, predictions: &[i64], labels: &[i64]) -> Result<Self> {
        let (have, want) = (predictions.len(), labels.len());
        ensure!(have == want, BadData, "{have} predictions for {want} labels");
        let mut this = Self::new(classes);
        for (&prediction, &label) in predictions.iter().zip(labels) {
            let cell = usize::try_from(label).ok().and_then(|label| this.counts.get_mut(label));
            let cell = cell.and_then(|row| row.get_mut(usize::try_from(prediction).ok()?));
            let Some(cell) = cell else {
                equipoise_base::bail!(
                    BadData,
                    "prediction {prediction} for label {label}: classes are 0..{classes}"
                )
            };
            *cell += 1;
        }
        Ok(this)
    }

    /// Counts the first maximum of each row of `logits` [n, C] against `labels` [n].
    ///
    /// # Errors
    /// 65 when shapes do not fit, a logit is not finite or a label is not a class.
    pub fn of_logits(logits: &Tensor, labels: &Tensor) -> Result<Self> {
        let (rows, classes) = check::features("logits", logits)?;
        check::labels("logits", labels, rows, classes as usize)?;
        let predictions = if rows == 0 { Vec::new() } else { check::to_i64(&logits.argmax(1, false)) };
        Self::of(classes as usize, &predictions, &check::to_i64(labels))
    }

    /// Adds another count of the same classes, such as another rank's.
    ///
    /// # Errors
    /// 65 when the numbers of classes differ.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        let (have, got) = (self.counts.len(), other.counts.len());
        ensure!(have == got, BadData, "confusions of {have} and {got} classes cannot be added");
        for (row, others) in self.counts.iter_mut().zip(&other.counts) {
            for (cell, other) in row.iter_mut().zip(others) {
                *cell += other;
            }
        }
        Ok(())
    }

    /// Samples of a class.
    pub fn samples(&self, class: usize) -> u64 {
        self.counts[class].iter().sum()
    }

    /// Samples in all.
    pub fn total(&self) -> u64 {
        (0..self.counts.len()).map(|class| self.samples(class)).sum()
    }

    /// Fraction of all samples that are right; 0 without samples.
    pub fn accuracy(&self) -> f64 {
        let correct: u64 = (0..self.counts.len()).map(|class| self.counts[class][class]).sum();
        ratio(correct, self.total())
    }

    /// Fraction right by class; `None` for a class without samples.
    pub fn per_class(&self) -> Vec<Option<f64>> {
        let of = |class: usize| match self.samples(class) {
            0 => None,
            samples => Some(ratio(self.counts[class][class], samples)),
        };
        (0..self.counts.len()).map(of).collect()
    }

    /// Rows divided by their sums; zeros for a class without samples.
    pub fn normalized(&self) -> Vec<Vec<f64>> {
        let row = |counts: &Vec<u64>| {
            let sum = counts.iter().sum();
            counts.iter().map(|&count| ratio(count, sum)).collect()
        };
        self.counts.iter().map(row).collect()
    }

    /// Accuracy by shots, classes grouped by their numbers of training images.
    ///
    /// # Errors
    /// 65 when there is not one count per class.
    pub fn splits(&self, train_counts: &[u64]) -> Result<Splits> {
        let (have, want) = (train_counts.len(), self.counts.len());
        ensure!(have == want, BadData, "{have} training counts for {want} classes");
        let per_class = self.per_class();
        let [many, medium, few] = ShotGroup::ALL.map(|group| self.split(group, train_counts, &per_class));
        let imbalance_std = imbalance_std([many.macro_average, medium.macro_average, few.macro_average]);
        Ok(Splits { accuracy: self.accuracy(), many, medium, few, imbalance_std, per_class })
    }

    fn split(&self, group: ShotGroup, train_counts: &[u64], per_class: &[Option<f64>]) -> Split {
        let members = || (0..train_counts.len()).filter(|&class| ShotGroup::of(train_counts[class]) == group);
        let accuracies: Vec<f64> = members().filter_map(|class| per_class[class]).collect();
        let correct = members().map(|class| self.counts[class][class]).sum();
        Split {
            classes: accuracies.len() as u64,
            macro_average: accuracies.iter().sum::<f64>() / (accuracies.len().max(1) as f64),
            micro_average: ratio(correct, members().map(|class| self.samples(class)).sum()),
        }
    }
}

/// Accuracy of one group of classes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Split {
    /// Classes of the group that have test samples.
    pub classes: u64,
    /// Mean over those classes of the class accuracy; 0 if there are none.
    pub macro_average: f64,
    /// Fraction of the group's samples that are right; 0 if there are none.
    pub micro_average: f64,
}

/// Top-1 accuracy as long-tail papers report it; all fractions in [0, 1].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Splits {
    /// Fraction of all samples that are right.
    pub accuracy: f64,
    /// Classes with more than 100 training images.
    pub many: Split,
    /// Classes with 20 to 100.
    pub medium: Split,
    /// Classes with fewer than 20.
    pub few: Split,
    /// Population standard deviation of the three macro averages (seed paper 003, column Std).
    pub imbalance_std: f64,
    /// Accuracy by class; null for a class without test samples.
    pub per_class: Vec<Option<f64>>,
}

/// Population standard deviation (ddof 0) of many, medium and few accuracy (seed paper 003, Table 3).
pub fn imbalance_std(accuracies: [f64; 3]) -> f64 {
    let mean = accuracies.iter().sum::<f64>() / 3.;
    (accuracies.iter().map(|accuracy| (accuracy - mean).powi(2)).sum::<f64>() / 3.).sqrt()
}

/// 0/0 is 0: nothing was right.
pub(crate) fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0. } else { part as f64 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_with_absent_classes() -> Result<()> {
        // Class 3 (few) has no samples; class 1 is medium and half right.
        let confusion = Confusion::of(4, &[0, 0, 1, 0, 2], &[0, 0, 1, 1, 2])?;
        let splits = confusion.splits(&[500, 50, 5, 3])?;
        assert_eq!(splits.accuracy, 0.8);
        assert_eq!(splits.per_class, [Some(1.), Some(0.5), Some(1.), None]);
        assert_eq!(splits.few, Split { classes: 1, macro_average: 1., micro_average: 1. });
        assert!((splits.imbalance_std - (1f64 / 18.).sqrt()).abs() < 1e-15);
        Ok(())
    }

    #[test]
    fn a_group_or_a_set_without_samples_is_zero() -> Result<()> {
        let splits = Confusion::new(2).splits(&[5, 5])?;
        assert_eq!((splits.accuracy, splits.many.macro_average, splits.few.micro_average), (0., 0., 0.));
        Ok(())
    }

    #[test]
    fn the_first_maximum_wins() -> Result<()> {
        let logits = Tensor::from_slice(&[1., 1., 0., 0., 2., 2.]).view([2, 3]);
        let confusion = Confusion::of_logits(&logits, &Tensor::from_slice(&[0i64, 1]))?;
        assert_eq!(confusion.accuracy(), 1.);
        Ok(())
    }

    #[test]
    fn parts_add_up() -> Result<()> {
        let mut sum = Confusion::of(2, &[0], &[1])?;
        sum.merge(&Confusion::of(2, &[1, 1], &[1, 0])?)?;
        assert_eq!(sum, Confusion::of(2, &[0, 1, 1], &[1, 1, 0])?);
        assert!(sum.merge(&Confusion::new(3)).is_err());
        assert_eq!(Confusion::of(3, &[0, 2], &[0, 0])?.normalized(), [[0.5, 0., 0.5], [0.; 3], [0.; 3]]);
        Ok(())
    }

    #[test]
    fn wrong_input_is_an_error() {
        assert!(Confusion::of(2, &[0], &[2]).is_err());
        assert!(Confusion::of(2, &[-1], &[0]).is_err());
        assert!(Confusion::of(2, &[0], &[]).is_err());
        assert!(Confusion::new(2).splits(&[1]).is_err());
        let logits = Tensor::from_slice(&[f64::NAN, 0.]).view([1, 2]);
        assert!(Confusion::of_logits(&logits, &Tensor::from_slice(&[0i64])).is_err());
    }
}
