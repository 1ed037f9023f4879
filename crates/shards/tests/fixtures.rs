//! The golden files under `shards/fixtures`: every release must go on reading them.
//!
//! `EQUIPOISE_WRITE_FIXTURES=1 cargo test -p equipoise-shards --test fixtures` writes them anew; do that only together
//! with a new format version, and keep the old files beside the new ones.
#![allow(clippy::disallowed_methods, clippy::expect_used, clippy::unwrap_used, missing_docs)]

mod common;

use common::{features, shard};
use equipoise_shards::{Codec, Depth, Expect, Features, ImageShard, verify};
use std::path::PathBuf;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shards/fixtures").join(name)
}

/// Reads a fixture, after writing it if asked to.
fn golden(name: &str, bytes: &[u8]) -> Vec<u8> {
    let path = fixture(name);
    if std::env::var_os("EQUIPOISE_WRITE_FIXTURES").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
    }
    let golden = std::fs::read(&path).unwrap();
    assert!(golden.len() < 64 << 10);
    assert!(verify(&path, Depth::Deep, &Expect::default()).is_ok());
    golden
}

/// The HDF5 release that wrote the fixtures: others may lay out the same content differently.
fn same_library() -> bool {
    equipoise_shards::hdf5_version() == (1, 10, 8)
}

#[test]
fn the_image_shard_reads_and_is_still_written_bit_for_bit() {
    for (name, codec) in [("image-raw-v1.h5", Codec::Raw), ("image-png-v1.h5", Codec::Png)] {
        let bytes = shard(codec).write().unwrap();
        let golden = golden(name, &bytes);
        let read = ImageShard::from_bytes(name, &golden).unwrap();
        assert_eq!((read.meta(), read.rows()), (shard(codec).meta(), shard(codec).rows()));
        for i in 0..read.len() {
            assert_eq!(read.images().decode(i).unwrap(), common::image(read.rows()[i].index));
        }
        assert!(*golden == *bytes || !same_library(), "{name}: the same content is now written differently");
    }
}

#[test]
fn the_feature_file_reads_and_is_still_written_bit_for_bit() {
    let name = "features-v1.h5";
    let bytes = features("float32").write().unwrap();
    let golden = golden(name, &bytes);
    assert_eq!(Features::from_bytes(name, &golden).unwrap(), features("float32"));
    assert!(*golden == *bytes || !same_library(), "{name}: the same content is now written differently");
}
