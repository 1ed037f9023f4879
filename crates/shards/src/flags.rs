//! What happened to an image while it was generated.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Bits of the column `flags`. Unknown bits are kept: a newer writer may set them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Flags(pub u32);

impl Flags {
    /// Nothing happened.
    pub const NONE: Flags = Flags(0);
    /// The image as first made had a sample that is not finite.
    pub const NON_FINITE: Flags = Flags(1 << 0);
    /// The image as first made was black.
    pub const BLACK: Flags = Flags(1 << 1);
    /// The image as first made had one constant value.
    pub const CONSTANT: Flags = Flags(1 << 2);
    /// Made again in fp32 with the same seed, and that is what is stored.
    pub const RETRIED_FP32: Flags = Flags(1 << 3);

    /// First bit and mask of the sub-seed field.
    const SUB_SEED: (u32, u32) = (8, 0xff);

    /// Names of the single bits, for people.
    const NAMES: [(Flags, &'static str); 4] = [
        (Flags::NON_FINITE, "non-finite"),
        (Flags::BLACK, "black"),
        (Flags::CONSTANT, "constant"),
        (Flags::RETRIED_FP32, "retried-fp32"),
    ];

    /// Both.
    #[must_use]
    pub fn with(self, other: Flags) -> Self {
        Flags(self.0 | other.0)
    }

    /// Records that the stored image was made from a sub-seed, 1 to 255; 0 means the seed itself.
    ///
    /// # Panics
    /// If `sub_seed` is above 255.
    #[must_use]
    pub fn with_sub_seed(self, sub_seed: u32) -> Self {
        let (shift, mask) = Self::SUB_SEED;
        assert!(sub_seed <= mask, "sub-seeds are 1 to {mask}");
        Flags(self.0 & !(mask << shift) | sub_seed << shift)
    }

    /// Whether all bits of `other` are set.
    pub fn has(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }

    /// The sub-seed that the stored image was made from, 0 for the seed itself.
    pub fn sub_seed(self) -> u32 {
        let (shift, mask) = Self::SUB_SEED;
        self.0 >> shift & mask
    }
}

impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words: Vec<String> = Self::NAMES
            .iter()
            .filter(|(flag, _)| self.has(*flag))
            .map(|(_, name)| (*name).to_string())
            .collect();
        if self.sub_seed() > 0 {
            words.push(format!("sub-seed-{}", self.sub_seed()));
        }
        f.write_str(if words.is_empty() { "none" } else { "" })?;
        f.write_str(&words.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bit table of `shards/README.md`.
    #[test]
    fn bits_never_change() {
        let all = Flags::NON_FINITE.with(Flags::BLACK).with(Flags::CONSTANT).with(Flags::RETRIED_FP32);
        assert_eq!(all.0, 0b1111);
        assert_eq!(Flags::NONE.with_sub_seed(4).0, 0x400);
        assert_eq!(Flags(0x1_0400).sub_seed(), 4);
        assert_eq!(Flags::NONE.with_sub_seed(64).0, 0x4000);
    }

    #[test]
    fn sub_seed_replaces_and_prints() {
        let flags = Flags::BLACK.with_sub_seed(3).with_sub_seed(2);
        assert_eq!((flags.sub_seed(), flags.to_string().as_str()), (2, "black,sub-seed-2"));
        assert_eq!(Flags::NONE.to_string(), "none");
    }
}
