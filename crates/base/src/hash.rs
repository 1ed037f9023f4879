//! Two hashes with two jobs: xxh3 finds damaged bytes fast, blake3 names an identity.

use serde::{Deserialize, Serialize};
use std::fmt;

/// xxh3-64 of `bytes`: the checksum of images, rows and files.
pub fn xxh3(bytes: &[u8]) -> u64 {
    // This implementation asks the processor for its widest vectors when it runs, not when it is built.
    twox_hash::XxHash3_64::oneshot(bytes)
}

/// Everything that decides the bits of a result, as 32 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Identity(String);

impl Identity {
    /// Hash of a canonical text: the caller orders the fields.
    pub fn of(text: &str) -> Self {
        Self(blake3::hash(text.as_bytes()).to_hex()[..32].to_string())
    }

    /// Hash of raw bytes, such as a weight file.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        Self(blake3::hash(bytes).to_hex()[..32].to_string())
    }

    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first 64 bits, to key random numbers.
    pub fn as_u64(&self) -> u64 {
        u64::from_str_radix(&self.0[..16], 16).unwrap_or(0)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
