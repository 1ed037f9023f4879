//! Runs of the tiny recipe through the public command, and what must be equal at their end.

use equipoise_testkit::{Process, TempRun};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A run of the tiny recipe takes seconds; a loaded machine may need much more.
pub const PATIENCE: Duration = Duration::from_secs(480);

/// The front end with `arguments`, as a user types it.
pub fn equipoise(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_equipoise"));
    command.args(arguments).env("EQUIPOISE_HOME", env!("CARGO_MANIFEST_DIR")).env_remove("EQUIPOISE_SITE");
    command
}

/// `equipoise run` of the tiny recipe in `run`.
#[allow(dead_code, reason = "each suite uses its part of this file")]
pub fn run(run: &Path, ranks: usize, sets: &[&str]) -> Command {
    run_recipe("tiny", run, ranks, sets)
}

/// `equipoise run` of a recipe of the tests in `run`.
pub fn run_recipe(recipe: &str, run: &Path, ranks: usize, sets: &[&str]) -> Command {
    let mut command = equipoise(&["run", &format!("tests/recipes/{recipe}.toml"), "--run"]);
    command.current_dir(env!("CARGO_MANIFEST_DIR")).arg(run).args(["--set", &format!("run.ranks={ranks}")]);
    for set in sets {
        command.args(["--set", set]);
    }
    command
}

/// Runs to the end.
pub fn finish(command: Command) {
    let mut process = Process::spawn(command);
    let status = process.wait(PATIENCE);
    assert!(status.success(), "{status}:\n{}", process.output());
}

/// Everything that must not depend on ranks, restarts or order: shards, features, weights, measured numbers.
pub fn results(run: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    collect(run, run, &mut found);
    assert!(found.keys().any(|path| path.starts_with("sets")), "no shards in {}", run.display());
    found
}

fn collect(root: &Path, dir: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if path.is_dir() {
            if !["lock", "logs", "ckpt"].contains(&name.as_str()) {
                assert_ne!(name, ".parts", "unfinished batches were left in {}", dir.display());
                collect(root, &path, found);
            }
        } else if name.ends_with(".h5")
            || ["model.safetensors", "results.json", "index.json"].contains(&&*name)
        {
            found.insert(path.strip_prefix(root).unwrap().to_owned(), std::fs::read(&path).unwrap());
        }
    }
}

/// Fails naming the files that differ.
pub fn assert_same(reference: &BTreeMap<PathBuf, Vec<u8>>, other: &BTreeMap<PathBuf, Vec<u8>>, what: &str) {
    let names = |files: &BTreeMap<PathBuf, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(reference), names(other), "{what}: other files");
    let differing: Vec<&PathBuf> =
        reference.iter().filter(|(p, bytes)| other[*p] != **bytes).map(|(p, _)| p).collect();
    assert!(differing.is_empty(), "{what}: these differ: {differing:?}");
}

/// A copy of a finished run without the stages that `redo` accepts, and without the sets if one of them generates.
#[allow(dead_code, reason = "each suite uses its part of this file")]
pub fn copy_without(finished: &TempRun, redo: impl Fn(&str) -> bool) -> TempRun {
    let copy = TempRun::default();
    let status = Command::new("cp").arg("-a").arg(finished.join("run")).arg(copy.path()).status().unwrap();
    assert!(status.success());
    for entry in std::fs::read_dir(copy.join("run/stages")).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if redo(&name) {
            std::fs::remove_dir_all(entry.path()).unwrap();
            if let Some(set) = name.strip_prefix("generate.") {
                std::fs::remove_dir_all(copy.join("run/sets").join(set)).unwrap();
            }
        }
    }
    copy
}
