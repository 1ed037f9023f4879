//! Synthetic sets out of a Hugging Face folder, through the public command.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod broken;
mod embeddings;
mod full_disk;
#[path = "../support/mod.rs"]
mod support;

use equipoise_testkit::{Process, TempRun};
use std::path::{Path, PathBuf};
use std::process::Command;
use support::{PATIENCE, assert_same, equipoise, finish, results, run_recipe};

const FOLDER: &str = "tests/oracle/unclip_pipeline/cfg10_v/model";

fn run(path: &Path, ranks: usize, sets: &[&str]) -> Command {
    run_recipe("tiny-unclip", path, ranks, sets)
}

/// A copy of the folder that may be damaged.
fn copy(of: &TempRun) -> PathBuf {
    let folder = of.join("model");
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join(FOLDER);
    assert!(Command::new("cp").arg("-r").arg(from).arg(&folder).status().unwrap().success());
    folder
}

/// Exit code and output of a run that fails.
fn failure(command: Command) -> (Option<i32>, String) {
    let mut process = Process::spawn(command);
    let status = process.wait(PATIENCE);
    (status.code(), process.output())
}

#[test]
fn one_and_two_ranks_give_the_same_files_and_any_image_can_be_made_again() {
    let runs = [1, 2].map(|ranks| {
        let temp = TempRun::default();
        finish(run(&temp.join("run"), ranks, &[]));
        temp
    });
    let [one, two] = runs.each_ref().map(|temp| results(&temp.join("run")));
    assert_same(&one, &two, "2 ranks");
    let sheet = |set: &str| {
        std::fs::read(runs[0].join(format!("run/stages/metrics/real-beside-{set}-set-0.png"))).unwrap()
    };
    assert!(sheet("unguided") != sheet("published") && sheet("published") != sheet("paper"));
    let path = runs[0].join("run");
    finish(equipoise(&["shards", "regenerate", path.to_str().unwrap(), "--sample", "2"]));
}

/// A folder that diffusers wrote, of another configuration: levels, layers, heads, prediction, half precision.
#[test]
fn another_folder_of_diffusers_is_sampled_on_any_number_of_ranks() {
    const OTHER: &str = "tests/oracle/unclip_pipeline/cfg4_epsilon/model";
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(OTHER);
    let key = format!("diffusion.folder={}", folder.display());
    let runs = [1, 2].map(|ranks| {
        let temp = TempRun::default();
        finish(run(&temp.join("run"), ranks, &[&key]));
        temp
    });
    let [one, two] = runs.each_ref().map(|temp| results(&temp.join("run")));
    assert_same(&one, &two, "2 ranks");
    let path = runs[1].join("run");
    finish(equipoise(&["shards", "regenerate", path.to_str().unwrap(), "--sample", "2"]));
}

/// What `weights make-tiny` writes is a folder like any other.
#[test]
fn a_tiny_folder_can_be_made_locked_and_sampled() {
    let temp = TempRun::default();
    let folder = temp.join("tiny");
    let folder = folder.to_str().unwrap();
    finish(equipoise(&["weights", "make-tiny", folder]));
    finish(equipoise(&["weights", "lock", folder]));
    let again = failure(equipoise(&["weights", "make-tiny", folder]));
    assert_eq!(again.0, Some(64), "{}", again.1);
    let key = format!("diffusion.folder={folder}");
    finish(run(&temp.join("run"), 2, &[&key, "generate.plan.n=8"]));
    assert!(temp.join("run/sets/published.k0/index.json").is_file());
}

/// A finished run is not made again, unless a byte of the folder changes.
#[test]
fn the_folder_is_part_of_the_identity() {
    let temp = TempRun::default();
    let folder = copy(&temp);
    let key = format!("diffusion.folder={}", folder.display());
    finish(run(&temp.join("run"), 1, &[&key]));
    let made =
        || std::fs::metadata(temp.join("run/sets/unguided.k0/index.json")).unwrap().modified().unwrap();
    let first = made();
    finish(run(&temp.join("run"), 1, &[&key]));
    assert_eq!(made(), first);
    let scheduler = folder.join("scheduler/scheduler_config.json");
    let text = std::fs::read_to_string(&scheduler).unwrap();
    std::fs::write(&scheduler, text.replace("0.012", "0.013")).unwrap();
    let (code, output) = failure(run(&temp.join("run"), 1, &[&key]));
    assert_eq!(code, Some(78), "{output}");
}
/// Guidance scale against strength, and rows of the dropout probability (seed 002 Fig. 9 and 12-14), on any ranks.
#[test]
fn sweeps_over_a_latent_folder_are_the_same_on_one_and_two_ranks() {
    let sweeps = [
        "grid.set=published",
        "grid.cfg_scale=[1.0, 5.0]",
        "grid.omega=[0.0, 0.1]",
        "grid.images=2",
        "grid.classes=['Shirt', 'Coat']",
        "dropout.set=unguided",
        "dropout.p=[0.0, 0.5, 1.0]",
        "dropout.images=3",
        "dropout.classes=['Shirt']",
    ];
    let runs = [1, 2].map(|ranks| {
        let temp = TempRun::default();
        finish(run(&temp.join("run"), ranks, &sweeps));
        temp
    });
    let [one, two] = runs.each_ref().map(|temp| results(&temp.join("run")));
    assert_same(&one, &two, "2 ranks");
    for picture in
        ["grid/grid-of-Shirt-omega-left-to-right.png", "dropout/dropout-of-Shirt-beside-the-real-image.png"]
    {
        let [one, two] =
            runs.each_ref().map(|temp| std::fs::read(temp.join("run/stages").join(picture)).unwrap());
        assert!(one == two && one.len() > 200, "{picture}");
    }
    let read = |stage: &str| -> serde_json::Value {
        serde_json::from_slice(&one[Path::new(&format!("stages/{stage}/results.json"))]).unwrap()
    };
    let (grid, dropout) = (read("grid"), read("dropout"));
    assert_eq!((&grid["class"], &grid["images"]), (&"Shirt".into(), &4.into()));
    // Without strength the scale alone decides; with it the criterion moves.
    assert_ne!(grid["value"][0][0], grid["value"][0][1]);
    let diversity = |row: usize| dropout["rows"][row]["diversity"].as_f64().unwrap();
    assert!(diversity(0) >= 0.0 && diversity(0) != diversity(1), "{dropout}");
    let page = std::fs::read_to_string(runs[0].join("run/report.html")).unwrap();
    assert!(page.contains("Dropout of the image condition") && page.contains("dropout of Shirt"));
    let (code, output) = failure(run(
        &runs[0].join("other"),
        1,
        &[
            "grid.set=paper",
            "grid.cfg_scale=[1.0]",
            "grid.omega=[0.1]",
            "grid.images=1",
            "grid.classes=['Hat']",
        ],
    ));
    assert!(code == Some(78) && output.contains("there is no class 'Hat'"), "{output}");
}
