//! Commands on a run directory, made by hand here: what they read is part of the contract.

use crate::util::{Dir, RECIPE, images};
use serde_json::{Value, json};

fn run_dir(dir: &Dir) {
    images(dir);
    dir.write("my.toml", RECIPE);
    dir.write("run/config.toml", &dir.equipoise(&["config", "show", "my.toml"]).ok());
}

fn status(state: &str, attempt: u64) -> String {
    json!({
        "stage": "train.g", "state": state, "unit": "steps", "done": 30, "total": 120, "rate": 2.0,
        "attempt": attempt, "ranks": 2, "host": "n1", "pid": 1, "wall": 0.0,
    })
    .to_string()
}

fn outcome(code: i32, name: &str, attempt: u64) -> String {
    json!({
        "code": code, "name": name, "message": "x.h5: truncated", "next": "equipoise resume run", "rank": 0,
        "attempt": attempt, "host": "n1", "wall": 0.0,
    })
    .to_string()
}

fn stages(dir: &Dir) -> Vec<Value> {
    let report: Value =
        serde_json::from_str(&dir.equipoise(&["status", "run", "--output", "json"]).ok()).unwrap();
    report["stages"].as_array().unwrap().clone()
}

fn state_of(dir: &Dir, name: &str) -> String {
    let stages = stages(dir);
    let stage = stages.iter().find(|stage| stage["stage"] == name).unwrap();
    stage["state"].as_str().unwrap().to_string()
}

#[test]
fn status_comes_from_the_files_alone() {
    let dir = Dir::new();
    run_dir(&dir);
    assert_eq!(state_of(&dir, "train.g"), "waiting");
    dir.write("run/stages/train.g/status.json", &status("running", 1));
    assert_eq!(state_of(&dir, "train.g"), "interrupted", "no launcher is alive");
    for (code, name, state) in [(75, "requeue", "stopped"), (65, "bad_data", "failed"), (0, "done", "done")] {
        dir.write("run/stages/train.g/outcome.json", &outcome(code, name, 1));
        assert_eq!(state_of(&dir, "train.g"), state);
    }
    dir.write("run/stages/train.g/status.json", &status("running", 2));
    assert_eq!(state_of(&dir, "train.g"), "interrupted", "an old outcome says nothing about a new attempt");
    let text = dir.equipoise(&["status", "run"]).ok();
    assert!(text.starts_with("run  not running\n") && text.contains("30/120 steps"), "{text}");
}

#[test]
fn a_failure_is_shown_with_the_next_command() {
    let dir = Dir::new();
    run_dir(&dir);
    dir.write("run/stages/train.g/status.json", &status("failed", 1));
    dir.write("run/stages/train.g/outcome.json", &outcome(65, "bad_data", 1));
    let text = dir.equipoise(&["status", "run"]).ok();
    assert!(text.contains("train.g: x.h5: truncated (next: equipoise resume run)"), "{text}");
}

#[test]
fn logs_show_the_newest_attempt() {
    let dir = Dir::new();
    run_dir(&dir);
    assert!(dir.equipoise(&["logs", "run"]).fails(65).contains("there is no such log yet"));
    for (attempt, text) in [(9, "old\n"), (10, "new\n")] {
        dir.write(&format!("run/stages/train.g/logs/{attempt}/rank-0000.log"), text);
    }
    let text = dir.equipoise(&["logs", "run", "--stage", "train.g"]).ok();
    assert_eq!(text, "==> stages/train.g/logs/10/rank-0000.log <==\nnew\n");
    assert_eq!(dir.equipoise(&["logs", "run"]).ok(), text);
    assert!(
        dir.equipoise(&["logs", "run", "--stage", "train.f"]).fails(64).contains("did you mean 'train.g'?")
    );
}

#[test]
fn logs_of_all_attempts_and_ranks_and_of_the_batch_job() {
    let dir = Dir::new();
    run_dir(&dir);
    for (attempt, rank) in [(1, 0), (1, 1), (2, 0), (2, 1)] {
        let path = format!("run/stages/train.g/logs/{attempt}/rank-000{rank}.log");
        dir.write(&path, &format!("attempt {attempt} rank {rank}\n"));
    }
    let lines = |args: &[&str]| {
        let text = dir.equipoise(&[&["logs", "run"], args].concat()).ok();
        text.lines().filter(|line| !line.starts_with("==>")).map(str::to_string).collect::<Vec<_>>()
    };
    assert_eq!(lines(&["--rank", "all"]), ["attempt 2 rank 0", "attempt 2 rank 1"]);
    assert_eq!(lines(&["--rank", "1", "--attempt", "all"]), ["attempt 1 rank 1", "attempt 2 rank 1"]);
    assert_eq!(lines(&["--attempt", "1"]), ["attempt 1 rank 0"]);
    dir.write("run/slurm/train.g.log", "module not found\n");
    dir.write("run/slurm/train.gg.log", "other\n");
    dir.write("run/slurm/train.g.7.log", "task\n");
    assert_eq!(lines(&["--stage", "train.g", "--job"]), ["task", "module not found"]);
}

#[test]
fn shards_are_listed_without_opening_them() {
    let dir = Dir::new();
    run_dir(&dir);
    let first = "run/sets/plain.k0/dog/dog-00000-of-00048.h5";
    dir.write(first, "12345");
    let list = || -> Vec<Value> {
        serde_json::from_str(&dir.equipoise(&["shards", "ls", "run", "--output", "json"]).ok()).unwrap()
    };
    let row = &list()[0];
    assert_eq!((&row["set"], &row["class"], &row["images"]), (&"plain.k0".into(), &"dog".into(), &48.into()));
    assert_eq!((&row["bytes"], &row["failed"]), (&5.into(), &Value::Null));
    let index = json!({ "shards": [{ "path": "dog/dog-00000-of-00048.h5", "images": 47, "failed": [3] }] });
    dir.write("run/sets/plain.k0/index.json", &index.to_string());
    assert_eq!((&list()[0]["images"], &list()[0]["failed"]), (&47.into(), &1.into()));
}

#[test]
fn another_configuration_of_a_begun_stage_is_refused_by_key() {
    let dir = Dir::new();
    run_dir(&dir);
    let fields = json!({ "configuration": "0", "params.size": "[5,5]" });
    let record = json!({ "identity": "00000000000000000000000000000000", "fields": fields });
    dir.write("run/stages/prepare.train/identity.json", &record.to_string());
    let message = dir.equipoise(&["resume", "run"]).fails(78);
    assert!(message.contains("stage prepare.train was begun under another configuration"), "{message}");
    assert!(message.contains("params") || message.contains("kind was absent"), "{message}");
}

#[test]
fn cancelling_what_does_not_run_is_no_error() {
    let dir = Dir::new();
    run_dir(&dir);
    assert_eq!(dir.equipoise(&["cancel", "run"]).ok(), "nothing is running there\n");
}

#[test]
fn a_report_can_be_written_at_any_time() {
    let dir = Dir::new();
    run_dir(&dir);
    dir.equipoise(&["report", "run"]).ok();
    let page = std::fs::read_to_string(dir.path().join("run/report.html")).unwrap();
    assert!(page.contains("small"));
}

#[test]
fn the_doctor_answers_in_json() {
    let ran = Dir::new().equipoise(&["doctor", "--output", "json"]);
    let findings: Vec<Value> = serde_json::from_str(&ran.out).unwrap();
    let passed = findings.iter().all(|finding| finding["passed"] == true);
    assert_eq!(ran.code, if passed { 0 } else { 1 });
    for check in ["mpirun", "GPU", "NCCL"] {
        assert!(findings.iter().any(|finding| finding["check"] == check), "{check}");
    }
}
