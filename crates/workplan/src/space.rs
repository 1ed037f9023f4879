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
    /// Bytes of a file of `images` images: with their checksums, seeds and labels, and `values` float32 of each.
    pub fn file_bytes(self, images: u64, samples: u64, values: u64) -> u64 {
        /// Attributes and tables of HDF5, and what its rows take beside the samples; measured on files of 1 to 5,000.
        const FILE: u64 = 9_300;
        const ROW: u64 = 34;
        FILE + images * (self.image_bytes(samples) + ROW + 4 * values)
    }

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
    /// Checkpoints that the training takes altogether.
    pub taken: u64,
    /// Bytes of a parameter in the weights that the stage ends with.
    pub stored_bytes: u64,
}

impl Checkpoints {
    /// Bytes and inodes at the end, the weights included.
    pub fn space(&self) -> (u64, u64) {
        self.with(self.keep.min(self.taken))
    }

    /// Most bytes and inodes at any time: while a checkpoint is written, the oldest of the others is still there.
    pub fn peak(&self) -> (u64, u64) {
        self.with((self.keep + 1).min(self.taken))
    }

    fn with(&self, checkpoints: u64) -> (u64, u64) {
        /// Manifest, tensor names and running statistics: the more, the larger the network.
        const BESIDE: u64 = 4 << 10;
        let beside = BESIDE + self.parameters / 64;
        let each = 4 * self.parameters * (1 + self.optimizer_states + u64::from(self.averaged)) + 2 * beside;
        // Weights, optimizer, manifest, folder.
        let files = 4 + u64::from(self.averaged);
        let weights = self.stored_bytes * self.parameters + beside;
        // The folder of them all, and the weights.
        (checkpoints * each + weights, checkpoints * files + 2)
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
        let checkpoints = Checkpoints {
            parameters: 1_000_000,
            optimizer_states: 2,
            averaged: true,
            keep: 2,
            taken: 9,
            stored_bytes: 4,
        };
        let (bytes, files) = checkpoints.peak();
        assert!((3 * 16_000_000 + 4_000_000..54_000_000).contains(&bytes), "{bytes}");
        assert_eq!((files, checkpoints.space().1), (17, 12));
        let few = Checkpoints { taken: 1, ..checkpoints };
        assert_eq!((few.space(), few.peak().1), (few.peak(), 7));
    }

    #[test]
    fn names_are_those_of_the_file_format() {
        let names =
            [CodecConfig::Raw, CodecConfig::Png, CodecConfig::Jpeg { quality: 90 }].map(|c| c.to_string());
        assert_eq!(names, ["raw", "png", "jpeg:90"]);
    }
}
