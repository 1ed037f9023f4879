//! Every place in the sources that changes a disk is passed by a case of the fault tests. A write that is added without a
//! case fails here, so that F3 and F7 are exhaustive and stay so.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)] // In the helpers; the tests themselves may.

mod common;

use common::{cases, checkpoints, damage, kill, snapshot};
use equipoise_rundir::fault::{Call, FaultFs};
use equipoise_rundir::vfs::Vfs as _;
use equipoise_testkit::figure;
use std::backtrace::Backtrace;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// The calls of [`Vfs`](equipoise_rundir::Vfs) that change a disk.
const WRITES: [&str; 11] = [
    ".create_new(",
    ".append(",
    ".rename(",
    ".remove_file(",
    ".remove_dir_all(",
    ".create_dir(",
    ".sync_dir(",
    ".write_all(",
    ".sync_data(",
    ".close()",
    ".set_len(",
];

/// File systems themselves, and what only decides whether to write.
const NOT_CALLERS: [&str; 5] = ["disk.rs", "fault.rs", "real.rs", "vfs.rs", "failpoint.rs"];

/// File and line, such as `commit.rs:108`.
type Site = (String, u32);

fn sources() -> Vec<(String, String)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        if !NOT_CALLERS.contains(&name.as_str()) {
            sources.push((name, std::fs::read_to_string(entry.path()).unwrap()));
        }
    }
    sources
}

/// The places in the sources, unit tests and comments left out.
fn written_sites() -> BTreeSet<Site> {
    let mut sites = BTreeSet::new();
    for (name, text) in sources() {
        let tests = text.find("#[cfg(test)]").unwrap_or(text.len());
        for (line, code) in text[..tests].lines().enumerate() {
            // Of a journal, not of a file.
            let journal = code.contains("journal.append(") || code.contains("self.append(");
            let comment = code.trim_start().starts_with("//");
            if !journal && !comment && WRITES.iter().any(|call| code.contains(call)) {
                sites.insert((name.clone(), line as u32 + 1));
            }
        }
    }
    sites
}

/// The lines of this crate's sources on the stack, innermost first.
fn own_lines(backtrace: &str) -> Vec<Site> {
    let of_line = |line: &str| -> Option<Site> {
        // Paths below the working directory, which is this crate's under cargo, are shortened.
        let (before, place) = line.trim().strip_prefix("at ")?.rsplit_once("src/")?;
        if before != "./" && !before.ends_with("/rundir/") {
            return None;
        }
        let mut parts = place.split(':');
        Some((parts.next()?.to_string(), parts.next()?.parse().ok()?))
    };
    backtrace.lines().filter_map(of_line).collect()
}

/// Remembers from where a disk was changed.
#[derive(Clone, Default)]
struct Passed(Arc<Mutex<BTreeSet<Site>>>);

impl Passed {
    fn watch(&self, fs: &FaultFs) {
        let passed = self.clone();
        fs.observe(Arc::new(move |call| passed.note(call)));
    }

    fn note(&self, call: Call) {
        if !matches!(call, Call::Open | Call::List | Call::Metadata) {
            let backtrace = Backtrace::force_capture().to_string();
            let caller =
                own_lines(&backtrace).into_iter().find(|(file, _)| !NOT_CALLERS.contains(&file.as_str()));
            self.0.lock().unwrap().extend(caller);
        }
    }
}

/// What F7 passes when calls fail, and two removals that are tested in `damage.rs` and `stage.rs`.
fn clean_ups(passed: &Passed) {
    let watched = || {
        let fs = FaultFs::new();
        passed.watch(&fs);
        fs
    };
    // A commit, a journal and a checkpoint whose second write fails.
    let path = Path::new("/run/a");
    for call in [1, 2] {
        let fs = watched();
        fs.create_dir(Path::new("/run")).unwrap();
        fs.fail_at(fs.calls().len() + call, libc::EIO);
        equipoise_rundir::commit_bytes(&fs, path, b"x", None).unwrap_err();
    }
    let fs = watched();
    fs.create_dir(Path::new("/run")).unwrap();
    let mut journal = equipoise_rundir::Journal::open(common::shared(&fs), path, None).unwrap();
    fs.fail_at(fs.calls().len(), libc::EIO);
    journal.append(&serde_json::json!(1)).unwrap_err();
    let fs = watched();
    let first = fs.fork();
    passed.watch(&first);
    checkpoints(&first).save(&snapshot(1, 1)).unwrap();
    fs.fail_at(first.calls().len() - 2, libc::EIO);
    checkpoints(&fs).save(&snapshot(1, 1)).unwrap_err();
    // A damaged checkpoint of the same step is set aside.
    checkpoints(&fs).save(&snapshot(1, 1)).unwrap();
    damage(&fs, "/run/ckpt/step-00000001/model");
    checkpoints(&fs).save(&snapshot(1, 1)).unwrap();
    // A lease: its calls fail one after the other, which passes what gives up a claim.
    let fs = watched();
    kill(common::acquire(&fs, "1").unwrap());
    let calls = fs.calls().len();
    for call in 0..calls {
        let fs = watched();
        fs.fail_at(call, libc::EIO);
        let _ = common::acquire(&fs, "1").map(kill);
    }
    // A claim of a number whose successors have come and gone.
    let fs = FaultFs::new();
    kill(common::acquire(&fs, "1").unwrap());
    let (passed, disk, late) = (passed.clone(), fs.clone(), AtomicBool::new(false));
    fs.observe(Arc::new(move |call| {
        passed.note(call);
        if call == Call::Rename && !late.swap(true, Ordering::Relaxed) {
            disk.create_dir(Path::new("/run/lock/000009")).unwrap();
        }
    }));
    kill(common::acquire(&fs, "2").unwrap());
    let fs = watched();
    kill(common::acquire(&fs, "1").unwrap());
    let lease = common::acquire(&fs, "2").unwrap();
    for call in 0..4 {
        fs.fail_at(fs.calls().len() + call, libc::EIO);
        let _ = lease.beat();
    }
    fs.create_dir(Path::new("/run/.x.00000000-0123456789abcdef.tmp")).unwrap();
    equipoise_rundir::scratch::remove_abandoned(&fs, Path::new("/run"), lease.guard()).unwrap();
}

#[test]
fn every_write_in_the_sources_is_passed_by_a_case() {
    let passed = Passed::default();
    for case in cases() {
        let (fs, act) = case.start();
        passed.watch(&fs);
        act(&fs).unwrap();
    }
    clean_ups(&passed);
    let (written, passed) = (written_sites(), passed.0.lock().unwrap().clone());
    assert!(written.len() > 25, "the sources are not where they were: {written:?}");
    let missed: Vec<&Site> = written.difference(&passed).collect();
    assert!(missed.is_empty(), "no case of tests/common/mod.rs passes {missed:?}");
    figure("F3", "writing places of rundir passed", format!("{} of {}", written.len(), written.len()));
}
