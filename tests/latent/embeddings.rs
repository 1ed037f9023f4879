//! What the generator is told is computed once, by any ranks, and read by all.

use crate::support::{assert_same, copy_without, equipoise, finish, results};
use crate::{failure, run};
use equipoise_testkit::{Process, TempRun};
use std::path::Path;

const IMAGES: &str = "features/clip-images/train.h5";
const TEXTS: &str = "features/clip-texts/prompts.h5";

fn finished() -> TempRun {
    let temp = TempRun::default();
    finish(run(&temp.join("run"), 1, &[]));
    temp
}

/// Names of stages that were begun again in `run` since `reference` was copied.
fn attempts(run: &Path, stage: &str) -> usize {
    let journal = std::fs::read_to_string(run.join(format!("stages/{stage}/journal.jsonl"))).unwrap();
    journal.lines().filter(|line| line.contains("\"attempt\"")).count()
}

/// Whatever is lost is made again, on another number of ranks, to the same bytes; and nothing else is.
#[test]
fn embeddings_are_made_once_and_again_when_they_are_lost() {
    let reference = finished();
    let copy =
        copy_without(&reference, |stage| stage.starts_with("embed-") || stage.starts_with("generate."));
    let path = copy.join("run");
    let before = attempts(&path, "train.g");
    for file in [IMAGES, TEXTS] {
        std::fs::remove_file(path.join(file)).unwrap();
    }
    finish(run(&path, 3, &[]));
    assert_same(&results(&reference.join("run")), &results(&path), "3 ranks");
    assert_eq!(attempts(&path, "train.g"), before);
    finish(equipoise(&["shards", "verify", "--deep", path.to_str().unwrap()]));
}

/// A kill while images are embedded leaves nothing; the same command starts that stage again.
#[test]
fn a_kill_while_embedding_changes_nothing() {
    let reference = finished();
    let copy = copy_without(&reference, |stage| stage.starts_with("embed-"));
    let path = copy.join("run");
    std::fs::remove_file(path.join(IMAGES)).unwrap();
    let mut process = Process::spawn(run(&path, 2, &[]));
    process.wait_for_output("embed-images.train: attempt", crate::PATIENCE);
    let ranks = process.live().into_iter().filter(|found| found.command.contains("stage=embed-images.train"));
    ranks.for_each(|found| equipoise_testkit::tree::send(found.pid, libc::SIGKILL));
    process.wait(crate::PATIENCE);
    process.wait_for_no_orphans(crate::PATIENCE);
    finish(equipoise(&["resume", path.to_str().unwrap()]));
    assert_same(&results(&reference.join("run")), &results(&path), "killed");
}

/// Sampling does without what only embeds. Embeddings that are damaged are refused; those that are not the files that were
/// made, to look at, are made again.
#[test]
fn embeddings_are_checked_when_they_are_read() {
    let reference = finished();
    let expected = results(&reference.join("run"));
    for (file, change) in [(IMAGES, "damage"), (TEXTS, "swap"), (IMAGES, "remove")] {
        let copy = copy_without(&reference, |stage| stage.starts_with("generate."));
        let path = copy.join("run");
        let target = path.join(file);
        let mut bytes = std::fs::read(&target).unwrap();
        match change {
            "damage" => {
                *bytes.last_mut().unwrap() ^= 1;
                std::fs::write(&target, bytes).unwrap();
                let (code, output) = failure(run(&path, 1, &[]));
                let name = target.file_name().unwrap().to_str().unwrap();
                assert!(code == Some(65) && output.contains(name), "{code:?} {output}");
                continue;
            }
            "swap" => {
                std::fs::write(&target, std::fs::read(path.join("features/g/test.h5")).unwrap()).unwrap()
            }
            _ => std::fs::remove_file(&target).unwrap(),
        }
        finish(run(&path, 1, &[]));
        assert_same(&expected, &results(&path), change);
    }
}
