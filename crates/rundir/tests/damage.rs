//! F10 and F11: damaged checkpoints and the remains of earlier attempts.

#![allow(clippy::unwrap_used, clippy::expect_used)] // In the helpers; the tests themselves may.

mod common;

use common::{checkpoints, damage, shared, snapshot};
use equipoise_base::ExitCode;
use equipoise_rundir::fault::FaultFs;
use equipoise_rundir::vfs::Vfs as _;
use equipoise_rundir::{Checkpoints, create_dirs};
use equipoise_testkit::figure;
use std::path::{Path, PathBuf};

const FILES: [&str; 4] = ["MANIFEST.json", "averages", "model", "optimizer"];

fn two_checkpoints() -> FaultFs {
    let fs = FaultFs::new();
    for step in 1..=2 {
        checkpoints(&fs).save(&snapshot(step, step as u8)).unwrap();
    }
    fs
}

fn newest(file: &str) -> PathBuf {
    Path::new("/run/ckpt/step-00000002").join(file)
}

fn replace(fs: &FaultFs, path: &Path, bytes: &[u8]) {
    fs.remove_file(path).unwrap();
    fs.create_new(path).unwrap().write_all(bytes).unwrap();
}

/// Falls back to step 1, warns once, keeps the damaged one; further readers agree.
fn assert_falls_back(fs: &FaultFs, context: &str) {
    let mut warnings = Vec::new();
    let found = checkpoints(fs).latest_valid(&mut |path, reason| {
        warnings.push((path.to_path_buf(), reason.to_string()));
    });
    let mut found = found.unwrap().unwrap();
    assert_eq!(found.manifest.step, 1, "{context}");
    assert_eq!(found.take("model").unwrap(), [1; 40], "{context}");
    assert_eq!(warnings.len(), 1, "{context}: {warnings:?}");
    assert_eq!(warnings[0].0, Path::new("/run/ckpt/step-00000002.corrupt"), "{context}");
    let kept = fs.list(&warnings[0].0).unwrap().len();
    assert!(kept >= FILES.len() - 1, "{context}: nothing of it is deleted");
    let again = checkpoints(fs).latest_valid(&mut |_, reason| panic!("{context}: {reason}")).unwrap();
    assert_eq!(again.unwrap().manifest.step, 1, "{context}");
}

#[test]
fn any_damage_to_any_file_falls_back_to_the_checkpoint_before() {
    let mut damages = 0;
    for file in FILES {
        let path = newest(file);
        let fs = two_checkpoints();
        fs.remove_file(&path).unwrap();
        assert_falls_back(&fs, &format!("{file} removed"));
        let whole = two_checkpoints().read(&path).unwrap();
        for len in 0..whole.len() {
            let fs = two_checkpoints();
            replace(&fs, &path, &whole[..len]);
            assert_falls_back(&fs, &format!("{file} cut to {len} bytes"));
        }
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let fs = two_checkpoints();
            replace(&fs, &path, &flipped);
            assert_falls_back(&fs, &format!("{file} with bit {bit} flipped"));
        }
        let fs = two_checkpoints();
        replace(&fs, &path, &[&whole[..], b"\n"].concat());
        assert_falls_back(&fs, &format!("{file} with a byte more"));
        damages += 2 + 9 * whole.len();
    }
    figure("F10", "damages fallen back from", damages);
}

#[test]
fn a_manifest_edited_by_hand_is_noticed_even_if_it_is_consistent() {
    let fs = two_checkpoints();
    let text = String::from_utf8(fs.read(&newest("MANIFEST.json")).unwrap()).unwrap();
    let edited = text.replace("\"world\": 2", "\"world\": 4");
    assert_ne!(text, edited);
    replace(&fs, &newest("MANIFEST.json"), edited.as_bytes());
    assert_falls_back(&fs, "edited");
}

#[test]
fn with_nothing_whole_there_is_no_checkpoint_and_nothing_is_deleted() {
    let fs = two_checkpoints();
    for step in 1..=2 {
        damage(&fs, &format!("/run/ckpt/step-{step:08}/model"));
    }
    let mut warnings = 0;
    assert!(checkpoints(&fs).latest_valid(&mut |_, _| warnings += 1).unwrap().is_none());
    assert_eq!(warnings, 2);
    assert_eq!(common::tree(&fs, Path::new("/run/ckpt")).len(), 2 * FILES.len());
}

#[test]
fn a_step_damaged_twice_keeps_both_copies() {
    let fs = two_checkpoints();
    for expected in ["step-00000002.corrupt", "step-00000002.corrupt-2"] {
        damage(&fs, "/run/ckpt/step-00000002/model");
        let mut moved = PathBuf::new();
        checkpoints(&fs).latest_valid(&mut |path, _| moved = path.to_path_buf()).unwrap();
        assert_eq!(moved, Path::new("/run/ckpt").join(expected));
        checkpoints(&fs).save(&snapshot(2, 2)).unwrap();
    }
}

#[test]
fn a_file_system_that_is_briefly_away_costs_no_checkpoint() {
    let count = two_checkpoints();
    let first = count.calls().len();
    checkpoints(&count).latest_valid(&mut |_, _| {}).unwrap();
    for call in first..count.calls().len() {
        let fs = two_checkpoints();
        fs.fail_at(call, libc::EIO);
        let error = checkpoints(&fs).latest_valid(&mut |_, reason| panic!("{reason}")).err().unwrap();
        assert_eq!(error.code(), ExitCode::Io);
        let found = checkpoints(&fs).latest_valid(&mut |_, reason| panic!("{reason}")).unwrap();
        assert_eq!(found.unwrap().manifest.step, 2);
    }
}

#[test]
fn remains_of_an_earlier_attempt_never_disturb() {
    let fs = FaultFs::new();
    create_dirs(&fs, Path::new("/run/ckpt")).unwrap();
    let killed = checkpoints(&fs);
    let staging = killed.begin(1).unwrap();
    staging.add("model", b"half").unwrap();
    for odd in [".tmp-step-00000001", "step-", "step-x", "step-00000001.tmp", "0"] {
        fs.create_dir(&Path::new("/run/ckpt").join(odd)).unwrap();
    }
    let path = checkpoints(&fs).save(&snapshot(1, 1)).unwrap();
    assert_eq!(path, Path::new("/run/ckpt/step-00000001"));
    let mut found = checkpoints(&fs).latest_valid(&mut |_, reason| panic!("{reason}")).unwrap().unwrap();
    assert_eq!(found.take("model").unwrap(), [1; 40]);
    figure("F11", "kinds of remains passed over", 6);
}

#[test]
fn a_step_saved_again_must_be_equal_or_the_one_before_damaged() {
    let fs = two_checkpoints();
    checkpoints(&fs).save(&snapshot(2, 2)).unwrap();
    // Who wrote it may differ: a run resumed on another world size reaches the same bits.
    let mut elsewhere = snapshot(2, 2);
    elsewhere.world = 8;
    checkpoints(&fs).save(&elsewhere).unwrap();
    let error = checkpoints(&fs).save(&snapshot(2, 3)).unwrap_err();
    assert_eq!(error.code(), ExitCode::Owned);
    assert!(error.message().contains("step-00000002"), "{error}");
    assert_eq!(fs.list(Path::new("/run/ckpt")).unwrap().len(), 2, "no scratch is left");
    damage(&fs, "/run/ckpt/step-00000002/model");
    checkpoints(&fs).save(&snapshot(2, 3)).unwrap();
    let mut found = checkpoints(&fs).latest_valid(&mut |_, reason| panic!("{reason}")).unwrap().unwrap();
    assert_eq!(found.take("model").unwrap(), [3; 40]);
}

#[test]
fn several_ranks_write_one_checkpoint() {
    let fs = FaultFs::new();
    let rank0 = checkpoints(&fs);
    let staging = rank0.begin(5).unwrap();
    let rank1 = Checkpoints::new(shared(&fs), "/run/ckpt", None);
    let joined = rank1.join(staging.path().to_path_buf(), 5);
    let entries = vec![joined.add("rank-1", b"b").unwrap(), staging.add("rank-0", b"a").unwrap()];
    let identity = equipoise_base::Identity::of("run");
    staging.finish(2, &identity, entries, serde_json::json!({"seen": 7})).unwrap();
    let mut found = rank1.latest_valid(&mut |_, reason| panic!("{reason}")).unwrap().unwrap();
    assert_eq!(
        (found.take("rank-0").unwrap(), found.take("rank-1").unwrap()),
        (b"a".to_vec(), b"b".to_vec())
    );
    assert_eq!(found.manifest.user["seen"], 7);
    assert_eq!(found.take("rank-2").unwrap_err().code(), ExitCode::BadData);
}

#[test]
fn names_in_a_checkpoint_stay_in_it() {
    let fs = FaultFs::new();
    for name in ["../x", "a/b", "", "..", "MANIFEST.json"] {
        assert!(checkpoints(&fs).begin(1).unwrap().add(name, b"x").is_err(), "{name:?}");
    }
}
