//! What images and checkpoints take on disk, before any is made.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How the images of a set or a split are stored; `shards` has the encoders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum CodecConfig {
    /// Samples as they are: the fastest to read.
    #[default]
    Raw,
    /// Lossless.
    Png,
    /// Lossy: whoever reads the images sees what is left of them.
    Jpeg {
        /// 1 to 100.
        #[schemars(range(min = 1, max = 100))]
        quality: u8,
    },
}

impl fmt::Display for CodecConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Raw => f.write_str("raw"),
            Self::Png => f.write_str("png"),
            Self::Jpeg { quality } => write!(f, "jpeg:{quality}"),
        }
    }
}

impl CodecConfig {
    /// Bytes of an image of `samples` (height x width x channels): exact if raw, else more than most images take.
    pub fn image_bytes(self, samples: u64) -> u64 {
        /// Signatures, checksums and the smallest tables of a PNG file.
        const PNG: u64 = 128;
        /// Quantisation and Huffman tables of a JPEG file.
        const JPEG: u64 = 640;
        match self {
            Self::Raw => samples,
            Self::Png => samples * 3 / 4 + PNG,
            Self::Jpeg { quality: 96.. } => samples + JPEG,
            Self::Jpeg { quality: 0..=95 } => samples / 2 + JPEG,
        }
    }
}

/// What a training keeps to go on from.
#[derive(Clone, Copy, Debug)]
pub struct Checkpoints {
    /// Parameters of the network.
    pub parameters: u64,
    /// Values that the optimizer keeps for each.
    pub optimizer_states: u64,
    /// Whether an average of the weights is kept too.
    pub averaged: bool,
    /// Checkpoints kept.
    pub keep: u64,
}

impl Checkpoints {
    /// Most bytes and files at any time, the weights that the stage ends with included: while a checkpoint is written,
    /// the oldest of the others is still there.
    pub fn space(&self) -> (u64, u64) {
        /// Manifest, tensor names and running statistics.
        const BESIDE: u64 = 1 << 16;
        let weights = 4 * self.parameters;
        let each = weights * (1 + self.optimizer_states + u64::from(self.averaged)) + BESIDE;
        // Weights, optimizer, manifest, folder.
        let files = 4 + u64::from(self.averaged);
        ((self.keep + 1) * each + weights + BESIDE, (self.keep + 1) * files + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn estimates_grow_with_what_is_kept() {
        let of = |codec: CodecConfig| codec.image_bytes(256 * 256 * 3);
        assert_eq!(of(CodecConfig::Raw), 196_608);
        let jpeg = |quality| CodecConfig::Jpeg { quality };
        assert!(of(jpeg(75)) < of(CodecConfig::Png) && of(CodecConfig::Png) < of(CodecConfig::Raw));
        assert!(of(jpeg(75)) < of(jpeg(100)));
    }

    #[test]
    fn one_more_checkpoint_than_are_kept_fits() {
        let checkpoints = Checkpoints { parameters: 1_000_000, optimizer_states: 2, averaged: true, keep: 2 };
        let (bytes, files) = checkpoints.space();
        assert!((3 * 16_000_000 + 4_000_000..54_000_000).contains(&bytes), "{bytes}");
        assert_eq!(files, 16);
    }

    #[test]
    fn names_are_those_of_the_file_format() {
        let names =
            [CodecConfig::Raw, CodecConfig::Png, CodecConfig::Jpeg { quality: 90 }].map(|c| c.to_string());
        assert_eq!(names, ["raw", "png", "jpeg:90"]);
    }
}
