//! F29: the golden checkpoint in `tests/files`, which every later release must go on reading.
//!
//! `EQUIPOISE_WRITE_FIXTURES=1 cargo test -p equipoise-rundir --test fixtures` writes it; do that only together with a new
//! version, and keep the old one beside the new one.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod common;

use common::{checkpoints, snapshot};
use equipoise_base::ExitCode;
use equipoise_rundir::checkpoint::{MANIFEST, VERSION};
use equipoise_rundir::fault::FaultFs;
use equipoise_rundir::vfs::Vfs as _;
use equipoise_rundir::{Checkpoints, RealFs};
use equipoise_testkit::figure;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/files/ckpt-v1")
}

fn golden() -> Checkpoints {
    Checkpoints::new(Arc::new(RealFs), folder(), None)
}

#[test]
fn the_checkpoint_of_version_1_is_read_and_a_newer_one_is_not() {
    assert_eq!(VERSION, 1, "keep the golden checkpoint and add one of the new version");
    if std::env::var_os("EQUIPOISE_WRITE_FIXTURES").is_some() {
        golden().save(&snapshot(7, 65)).unwrap();
    }
    let mut found =
        golden().latest_valid(&mut |path, reason| panic!("{}: {reason}", path.display())).unwrap().unwrap();
    assert_eq!((found.manifest.step, found.manifest.world), (7, 2));
    for (name, bytes) in snapshot(7, 65).files {
        assert_eq!(found.take(&name).unwrap(), bytes, "{name}");
    }
    // The same snapshot is still written in the same way.
    let fs = FaultFs::new();
    let path = checkpoints(&fs).save(&snapshot(7, 65)).unwrap();
    let manifest = fs.read(&path.join(MANIFEST)).unwrap();
    assert_eq!(manifest, std::fs::read(folder().join("step-00000007").join(MANIFEST)).unwrap());

    let text = String::from_utf8(manifest).unwrap();
    let hash =
        text.split('"').find(|word| word.len() == 16 && word.bytes().all(|b| b.is_ascii_hexdigit())).unwrap();
    let newer = text.replace("\"version\": 1", "\"version\": 2").replacen(hash, "0000000000000000", 1);
    let newer_hash = format!("{:016x}", equipoise_base::hash::xxh3(newer.as_bytes()));
    let newer = newer.replacen("0000000000000000", &newer_hash, 1);
    fs.remove_file(&path.join(MANIFEST)).unwrap();
    fs.create_new(&path.join(MANIFEST)).unwrap().write_all(newer.as_bytes()).unwrap();
    let error = checkpoints(&fs).latest_valid(&mut |_, reason| panic!("set aside: {reason}")).err().unwrap();
    assert_eq!(error.code(), ExitCode::Config);
    assert!(error.message().contains("a later release") && error.message().contains("version 2"), "{error}");
    assert!(fs.exists(&path).unwrap(), "it is no damage, so it stays");
    figure("F29", "released formats read", "3 HDF5 files, 1 checkpoint");
}
