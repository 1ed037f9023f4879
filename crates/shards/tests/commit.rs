//! F3, F7 and F9 for HDF5 files: a shard goes through `rundir` as bytes, and what is found after any fault is the shard
//! before or the shard after, to the last byte.
#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs)]

mod common;

use common::shard_of;
use equipoise_base::ExitCode;
use equipoise_base::rng::Key;
use equipoise_rundir::fault::{Call, FaultFs, Survivors};
use equipoise_rundir::{Vfs as _, commit_bytes};
use equipoise_shards::{Codec, ImageShard};
use equipoise_testkit::figure;
use std::collections::BTreeSet;
use std::path::Path;

const PATH: &str = "/set/coat/coat-00000016-of-8.h5";
/// Random subsets of what was not synced, per power cut, besides all and nothing.
const SUBSETS: u64 = 40;

/// Two shards of one plan, as a part and the whole are.
fn before_and_after() -> (Vec<u8>, Vec<u8>) {
    [16..20, 16..24].map(|rows| shard_of(Codec::Raw, rows).write().unwrap().to_vec()).into()
}

/// A disk that holds the shard before, synced.
fn disk(before: &[u8]) -> FaultFs {
    let fs = FaultFs::new();
    equipoise_rundir::create_dirs(&fs, Path::new(PATH).parent().unwrap()).unwrap();
    commit_bytes(&fs, Path::new(PATH), before, None).unwrap();
    fs.settle();
    fs
}

#[test]
fn a_power_loss_leaves_one_shard_or_the_other() {
    let (before, after) = before_and_after();
    let count = disk(&before);
    let first = count.calls().len();
    commit_bytes(&count, Path::new(PATH), &after, None).unwrap();
    let calls = count.calls().len() - first;
    let mut found = BTreeSet::new();
    for call in 0..=calls {
        let fs = disk(&before);
        fs.power_off_at(first + call);
        let acknowledged = commit_bytes(&fs, Path::new(PATH), &after, None).is_ok();
        let subsets = (0..SUBSETS).map(|n| Survivors::Subset(Key::new(n, "shard").index(call as u64)));
        for survivors in [Survivors::All, Survivors::None].into_iter().chain(subsets) {
            let bytes = fs.recover(survivors).read(Path::new(PATH)).unwrap();
            assert!(bytes == after || bytes == before && !acknowledged, "cut before call {call}");
            let images = ImageShard::from_bytes(PATH, &bytes).unwrap().len();
            found.insert(images);
        }
    }
    assert_eq!(found, BTreeSet::from([4, 7]), "both states were seen");
    figure("F3", "power cuts in the commit of an HDF5 file", (calls + 1) as u64 * (SUBSETS + 2));
}

#[test]
fn a_disk_full_after_any_byte_keeps_the_shard_before() {
    let (before, after) = before_and_after();
    let fs = disk(&before);
    for room in 0..after.len() as u64 {
        fs.limit_bytes(Some(before.len() as u64 + room));
        let error = commit_bytes(&fs, Path::new(PATH), &after, None).unwrap_err();
        assert_eq!(error.code(), ExitCode::Io);
        assert!(error.message().contains("coat-00000016-of-8.h5"), "{error}");
        assert!(error.message().contains(&format!("needed {} bytes", after.len())), "{error}");
        assert_eq!(fs.read(Path::new(PATH)).unwrap(), before);
    }
    fs.limit_bytes(None);
    commit_bytes(&fs, Path::new(PATH), &after, None).unwrap();
    assert_eq!(fs.read(Path::new(PATH)).unwrap(), after);
    figure("F7", "byte counts of a full disk, HDF5", after.len());
}

#[test]
fn a_failing_device_keeps_the_shard_before() {
    let (before, after) = before_and_after();
    let count = disk(&before);
    let first = count.calls().len();
    commit_bytes(&count, Path::new(PATH), &after, None).unwrap();
    let calls = count.calls().split_off(first);
    let mut failures = 0;
    for (index, (call, _)) in calls.iter().enumerate() {
        for errno in [libc::EIO, libc::ENOSPC, libc::EDQUOT, libc::EMFILE] {
            let fs = disk(&before);
            fs.fail_at(fs.calls().len() + index, errno);
            let error = commit_bytes(&fs, Path::new(PATH), &after, None).unwrap_err();
            assert_eq!(error.code(), ExitCode::Io, "{call:?}: {error}");
            let bytes = fs.read(Path::new(PATH)).unwrap();
            // Only after the rename is the new one there.
            assert!(bytes == before || bytes == after && *call == Call::SyncDir, "{call:?}");
            commit_bytes(&fs, Path::new(PATH), &after, None).unwrap();
            assert_eq!(fs.recover(Survivors::None).read(Path::new(PATH)).unwrap(), after, "{call:?}");
            failures += 1;
        }
    }
    figure("F7", "failed calls of a commit, HDF5", failures);
}
