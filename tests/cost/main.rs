//! What a run takes, told before and measured after, with the real step binaries.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "../support/mod.rs"]
mod support;

use equipoise_testkit::TempRun;
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use support::{assert_same, equipoise, finish, results, run};

fn calibrate(run: &Path, recipe: &str, ranks: usize, seconds: &str) -> Command {
    let mut command = equipoise(&["calibrate", &format!("tests/recipes/{recipe}.toml"), "--run"]);
    command.current_dir(env!("CARGO_MANIFEST_DIR")).arg(run);
    command.args(["--seconds", seconds, "--batches", "2,8", "--set", &format!("run.ranks={ranks}")]);
    command
}

fn plan(run: &Path) -> Value {
    let output = equipoise(&["plan", run.to_str().unwrap(), "--output", "json"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_calibration_leaves_a_file_and_no_trace_in_what_is_made() {
    let temp = TempRun::default();
    let (calibrated, plain) = (temp.join("calibrated"), temp.join("plain"));
    // So long that what is so small is rehearsed to its end.
    finish(calibrate(&calibrated, "tiny", 2, "2"));
    let names: Vec<_> = std::fs::read_dir(&calibrated).unwrap().flatten().map(|it| it.file_name()).collect();
    assert_eq!(names, ["calibration.json"]);
    let text = std::fs::read_to_string(calibrated.join("calibration.json")).unwrap();
    let found: Value = serde_json::from_str(&text).unwrap();
    for entry in found["work"].as_array().unwrap() {
        let pace = &entry["rehearsal"]["pace"];
        assert!(pace["seconds"].as_f64().unwrap() > 0.0 && pace["units"].as_u64().unwrap() > 0, "{entry}");
        assert!(entry["rehearsal"]["peak_memory"].as_u64().unwrap() > 10 << 20, "{entry}");
        assert_eq!(entry["rehearsal"]["ranks"], 2, "{entry}");
    }
    let tried = found["batches"].as_array().unwrap();
    // How far the ladder goes depends on the machine; every rung tells its speed or why it has none.
    assert_eq!(tried.len(), 6, "{tried:?}");
    for size in tried {
        assert!(size["images_per_second"].is_f64() != size["why"].is_string(), "{size}");
        assert!(size["images_per_second"].is_f64() || size["current"] == false, "{size}");
    }

    finish(run(&calibrated, 2, &[]));
    finish(run(&plain, 2, &[]));
    assert_same(&results(&plain), &results(&calibrated), "a calibration before");

    let plan = plan(&calibrated);
    for stage in plan["stages"].as_array().unwrap() {
        let time = &stage["time"];
        assert!(time["seconds"].is_f64() && time["took"].is_f64(), "{stage}");
    }
    assert_eq!(plan["time"]["unknown"], 0);
    for key in ["bytes", "files"] {
        let (expected, there) = (plan[key].as_f64().unwrap(), plan["on_disk"][key].as_f64().unwrap());
        assert!((0.85..1.15).contains(&(there / expected)), "{key}: {expected} expected, {there} there");
    }
}

/// Finished stages tell what others of their kind will take.
#[test]
fn without_a_calibration_finished_stages_are_believed() {
    let temp = TempRun::default();
    let path = temp.join("run");
    finish(run(&path, 1, &[]));
    let output = equipoise(&["plan", path.to_str().unwrap(), "--output", "json"])
        .args(["--set", "arms.ce.seeds=[0, 7]"])
        .output()
        .unwrap();
    let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
    let stage =
        plan["stages"].as_array().unwrap().iter().find(|stage| stage["name"] == "train.ce.s7").unwrap();
    let by = stage["time"]["measured_by"].as_str().unwrap();
    assert!(by.starts_with("train.") && stage["time"]["seconds"].as_f64().unwrap() > 0.0, "{stage}");
    assert!(stage["time"]["took"].is_null(), "{stage}");
}

/// A latent generator, with hardness whose statistics are not there yet.
#[test]
fn a_latent_folder_can_be_calibrated() {
    let temp = TempRun::default();
    finish(calibrate(&temp.join("run"), "tiny-unclip", 1, "0.1"));
    let text = std::fs::read_to_string(temp.join("run/calibration.json")).unwrap();
    let found: Value = serde_json::from_str(&text).unwrap();
    let stages: Vec<&str> =
        found["work"].as_array().unwrap().iter().map(|entry| entry["stage"].as_str().unwrap()).collect();
    for stage in
        ["generate.unguided.k0", "generate.published.k0", "generate.paper.k0", "features.g", "metrics"]
    {
        assert!(stages.contains(&stage), "{stage}: {stages:?}");
    }
}
