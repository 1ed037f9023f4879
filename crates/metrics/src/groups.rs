//! Accuracy by group: class times context, as in NICO++ and Waterbirds.

use crate::accuracy::ratio;
use equipoise_base::{Result, ensure};
use serde::{Deserialize, Serialize};

/// Accuracy of each group and the usual summaries, in [0, 1].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupAccuracy {
    /// Accuracy by group; null for a group without samples.
    pub groups: Vec<Option<f64>>,
    /// Smallest accuracy of a group with samples; null if there is none.
    pub worst: Option<f64>,
    /// The first group that has it.
    pub worst_group: Option<usize>,
    /// Fraction of all samples that are right; 0 without samples.
    pub average: f64,
    /// Mean over the groups with samples; 0 if there is none.
    pub group_mean: f64,
}

impl GroupAccuracy {
    /// Accuracy of `predictions` for `labels`, by `groups` of 0..`count`.
    ///
    /// # Errors
    /// 65 when the numbers differ or a group does not exist.
    pub fn of(count: usize, predictions: &[i64], labels: &[i64], groups: &[i64]) -> Result<Self> {
        let sizes = (predictions.len(), labels.len(), groups.len());
        let fits = sizes.0 == sizes.1 && sizes.1 == sizes.2;
        ensure!(fits, BadData, "predictions, labels and groups differ in number: {sizes:?}");
        let (mut correct, mut total) = (vec![0u64; count], vec![0u64; count]);
        for ((prediction, label), &group) in predictions.iter().zip(labels).zip(groups) {
            let Some(group) = usize::try_from(group).ok().filter(|&group| group < count) else {
                equipoise_base::bail!(BadData, "group {group} is not in 0..{count}")
            };
            correct[group] += u64::from(prediction == label);
            total[group] += 1;
        }
        let of = |(&right, &all): (&u64, &u64)| (all > 0).then(|| ratio(right, all));
        let groups: Vec<Option<f64>> = correct.iter().zip(&total).map(of).collect();
        let present: Vec<(usize, f64)> =
            groups.iter().enumerate().filter_map(|(g, a)| Some((g, (*a)?))).collect();
        let worst = present.iter().copied().reduce(|best, next| if next.1 < best.1 { next } else { best });
        let sum: f64 = present.iter().map(|(_, accuracy)| accuracy).sum();
        Ok(Self {
            worst: worst.map(|(_, accuracy)| accuracy),
            worst_group: worst.map(|(group, _)| group),
            average: ratio(correct.iter().sum(), total.iter().sum()),
            group_mean: sum / present.len().max(1) as f64,
            groups,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_groups_do_not_count() -> Result<()> {
        let got = GroupAccuracy::of(4, &[1, 1, 0, 0, 0], &[1, 0, 0, 0, 1], &[0, 0, 3, 3, 1])?;
        assert_eq!(got.groups, [Some(0.5), Some(0.), None, Some(1.)]);
        assert_eq!((got.worst, got.worst_group, got.average), (Some(0.), Some(1), 0.6));
        assert_eq!(got.group_mean, 0.5);
        Ok(())
    }

    #[test]
    fn no_samples_and_ties() -> Result<()> {
        let none = GroupAccuracy::of(2, &[], &[], &[])?;
        assert_eq!((none.worst, none.worst_group, none.average, none.group_mean), (None, None, 0., 0.));
        assert_eq!(GroupAccuracy::of(2, &[0, 0], &[0, 0], &[1, 0])?.worst_group, Some(0));
        assert!(GroupAccuracy::of(2, &[0], &[0], &[2]).is_err());
        assert!(GroupAccuracy::of(2, &[0], &[0], &[]).is_err());
        Ok(())
    }
}
