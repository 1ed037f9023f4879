//! HDF5 image, feature and statistics files, built in memory.
//!
//! `shards/README.md` specifies every file; a change there and here go together. All writers return the bytes of a
//! complete file, which the caller commits through `rundir`; equal content gives equal bytes. All readers take a path
//! or bytes and never trust them: damage of any kind is an error that names the file and what is wrong with it.

pub mod codec;
pub mod contact;
mod features;
mod flags;
mod font;
mod guard;
mod h5;
mod image_shard;
mod images;
mod kind;
mod lookup3;
mod packed;
mod statistics;
mod verify;

pub use codec::{Codec, ENCODER_VERSION, Image};
pub use features::{FeatureMeta, FeatureReader, Features, Matrix};
pub use flags::Flags;
pub use guard::{FORMAT_VERSION, GUARD_LEN, Guard, NEEDS, READER_VERSION, read_guard};
pub use h5::FileImage;
pub use image_shard::{ImageShard, Row, ShardMeta, ShardReader};
pub use images::Images;
pub use kind::Kind;
pub use packed::{Packed, PackedMeta, PackedReader, PackedRow};
pub use statistics::{Spread, Statistics, StatisticsMeta};
pub use verify::{Depth, Expect, Verified, verify, verify_shard_bytes};

/// The release of this build, for the `tool_version` of new files.
pub fn tool_version() -> String {
    env!("CARGO_PKG_VERSION").to_string()
}

/// Release of the HDF5 library in use.
pub fn hdf5_version() -> (u8, u8, u8) {
    hdf5::library_version()
}

/// Serializes a value as its display form.
fn serialize_display<T: std::fmt::Display, S: serde::Serializer>(
    value: &T,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}
