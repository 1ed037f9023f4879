//! Which images of a split are used: the class order, the profile, and the members of each class.

use crate::{Profile, counts};
use equipoise_base::rng::Key;
use equipoise_base::{Result, bail, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the members of a class are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Members {
    /// In file order.
    #[default]
    First,
    /// In the order of a permutation keyed by (seed, class): the same choice on every machine.
    Keyed,
}

/// A part of a split, made long-tailed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Selection {
    /// The class with rank r; the classes in their own order if empty.
    pub class_order: Vec<u32>,
    /// Images per rank.
    pub profile: Profile,
    /// How members are chosen.
    pub members: Members,
    /// Members of each class passed over first, so that two selections of one split can be disjoint.
    pub skip: u64,
}

impl Selection {
    /// Images to keep per class (not per rank), `None` where all after `skip` are kept.
    ///
    /// # Errors
    /// 78 when the class order or the profile does not fit.
    pub fn class_counts(&self, classes: usize) -> Result<Option<Vec<u64>>> {
        let order = self.ranks(classes)?;
        let Some(by_rank) = self.profile.counts(classes)? else { return Ok(None) };
        let mut by_class = vec![0; classes];
        for (&class, count) in order.iter().zip(by_rank) {
            by_class[class as usize] = count;
        }
        Ok(Some(by_class))
    }

    /// Indices of the selected images, ascending. Labels are left as they are.
    ///
    /// # Errors
    /// 78 when the selection does not fit the classes, 65 when a class has too few images or a label is too large.
    pub fn select(&self, labels: &[u32], classes: usize, seed: u64) -> Result<Vec<usize>> {
        let wanted = self.class_counts(classes)?;
        let mut selected = Vec::new();
        for (class, mut members) in counts::members(labels, classes)?.into_iter().enumerate() {
            if self.members == Members::Keyed {
                Key::new(seed, "members").class(class as u64).stream().shuffle(&mut members);
            }
            let rest = members.get(self.skip.min(members.len() as u64) as usize..).unwrap_or_default();
            let take = wanted.as_ref().map_or(rest.len() as u64, |wanted| wanted[class]);
            if take > rest.len() as u64 {
                let (has, skip) = (members.len(), self.skip);
                bail!(
                    BadData,
                    "class {class} has {has} images, but {take} are asked for after skipping {skip}"
                );
            }
            selected.extend_from_slice(&rest[..take as usize]);
        }
        selected.sort_unstable();
        Ok(selected)
    }

    /// The class order, checked to be a permutation.
    fn ranks(&self, classes: usize) -> Result<Vec<u32>> {
        if self.class_order.is_empty() {
            return Ok((0..classes as u32).collect());
        }
        let given = self.class_order.len();
        ensure!(given == classes, Config, "class_order names {given} of {classes} classes");
        let mut sorted = self.class_order.clone();
        sorted.sort_unstable();
        if let Some(missing) = (0..classes as u32).find(|&class| sorted[class as usize] != class) {
            bail!(
                Config,
                "class_order must name every class once; class {missing} is missing or named twice"
            );
        }
        Ok(self.class_order.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LABELS: [u32; 9] = [0, 1, 2, 0, 1, 2, 0, 1, 2];

    fn counts(counts: &[u64]) -> Selection {
        Selection { profile: Profile::Counts { counts: counts.to_vec() }, ..Selection::default() }
    }

    #[test]
    fn first_members_by_rank() {
        let selection = Selection { class_order: vec![2, 0, 1], ..counts(&[3, 2, 1]) };
        assert_eq!(selection.class_counts(3).unwrap(), Some(vec![2, 1, 3]));
        assert_eq!(selection.select(&LABELS, 3, 0).unwrap(), [0, 1, 2, 3, 5, 8]);
        let rest = Selection { skip: 2, ..Selection::default() };
        assert_eq!(rest.select(&LABELS, 3, 0).unwrap(), [6, 7, 8]);
    }

    #[test]
    fn too_few_images_names_the_class() {
        let error = Selection { skip: 1, ..counts(&[1, 3, 1]) }.select(&LABELS, 3, 0).unwrap_err();
        assert!(error.to_string().starts_with("class 1 has 3 images"), "{error}");
        assert!(Selection { skip: u64::MAX, ..counts(&[1, 1, 1]) }.select(&LABELS, 3, 0).is_err());
    }

    #[test]
    fn class_order_must_be_a_permutation() {
        for order in [vec![0, 1], vec![0, 1, 1], vec![0, 1, 3]] {
            let error = Selection { class_order: order, ..Selection::default() }.select(&LABELS, 3, 0);
            assert_eq!(error.unwrap_err().code(), equipoise_base::ExitCode::Config);
        }
    }

    proptest! {
        /// Two keyed selections that share a seed and meet at `skip` cover a class without overlap.
        #[test]
        fn keyed_selections_with_skip_are_disjoint(seed: u64, per_class in 2usize..20, cut in 1usize..20) {
            let cut = cut.min(per_class - 1);
            let labels: Vec<u32> = (0..3 * per_class).map(|index| (index % 3) as u32).collect();
            let keyed = Selection { members: Members::Keyed, ..Selection::default() };
            let head = Selection { profile: Profile::PerClass { n: cut as u64 }, ..keyed.clone() };
            let tail = Selection { skip: cut as u64, ..keyed };
            let mut all = head.select(&labels, 3, seed).unwrap();
            all.extend(tail.select(&labels, 3, seed).unwrap());
            all.sort_unstable();
            prop_assert!(all.into_iter().eq(0..3 * per_class));
        }
    }
}
