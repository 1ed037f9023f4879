//! Many, medium and few-shot classes, and the rarest classes.

use serde::{Deserialize, Serialize};

/// The usual three groups of classes by number of training images (OLTR, and all five papers).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShotGroup {
    /// More than 100 images.
    Many,
    /// 20 to 100 images.
    Medium,
    /// Fewer than 20 images.
    Few,
}

impl ShotGroup {
    /// All groups, from the head.
    pub const ALL: [Self; 3] = [Self::Many, Self::Medium, Self::Few];

    /// The group of a class with `count` training images.
    pub fn of(count: u64) -> Self {
        match count {
            101.. => Self::Many,
            20..=100 => Self::Medium,
            0..=19 => Self::Few,
        }
    }

    /// Name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Many => "many",
            Self::Medium => "medium",
            Self::Few => "few",
        }
    }
}

/// The `k` classes with the fewest images, rarest first; of equal counts the later class comes first.
///
/// `rarest(counts, 3)` is the group "rare3" of small data sets, where no class is few-shot.
pub fn rarest(counts: &[u64], k: usize) -> Vec<usize> {
    let mut classes: Vec<usize> = (0..counts.len()).collect();
    classes.sort_by_key(|&class| (counts[class], std::cmp::Reverse(class)));
    classes.truncate(k);
    classes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn borders() {
        let groups = [0, 19, 20, 100, 101].map(ShotGroup::of);
        use ShotGroup::*;
        assert_eq!(groups, [Few, Few, Medium, Medium, Many]);
    }

    #[test]
    fn rare3() {
        assert_eq!(rarest(&[9, 2, 5, 2, 7], 3), [3, 1, 2]);
        assert_eq!(rarest(&[1], 3), [0]);
    }
}
