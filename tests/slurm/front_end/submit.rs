//! `equipoise submit`: once, whole or not at all.

use crate::site::{STAGES, Site};
use std::collections::BTreeSet;

#[test]
fn a_chain_of_jobs_that_wait_for_each_other() {
    let site = Site::new();
    let shown = site.submit().ok();
    assert!(shown.contains("train.g") && shown.contains("equipoise status"), "{shown}");
    assert_eq!(site.slurm.jobs().len(), STAGES);
    let args = site.slurm.get(&site.job("train.g"), "args");
    let wanted = format!("--dependency=afterok:{} --kill-on-invalid-dep=yes", site.job("prepare.train"));
    assert!(args.contains(&wanted) && args.ends_with("slurm/train.g.sh"), "{args}");
    assert!(!site.slurm.get(&site.job("prepare.train"), "args").contains("dependency"));
    // Names are the token of the submission: no two alike.
    let names: BTreeSet<String> = site.slurm.jobs().iter().map(|job| site.slurm.get(job, "name")).collect();
    assert_eq!(names.len(), STAGES);
}

#[test]
fn what_is_done_is_left_out_and_what_is_queued_is_owned() {
    let site = Site::new();
    site.submit().ok();
    let refused = site.submit().fails(69);
    let job = site.slurm.jobs()[0].clone();
    assert!(
        refused.contains(&format!("owned by job {job} (stage prepare.train, pending) and 9 more")),
        "{refused}"
    );
    assert_eq!(site.slurm.jobs().len(), STAGES);
    assert!(site.equipoise(&["run", "my.toml", "--run", "run"]).fails(69).contains("owned by job"));
    // All jobs are over, one by one cancelled: everything is submitted again.
    for job in site.slurm.jobs() {
        site.slurm.set(&job, "state", "CANCELLED");
    }
    site.submit().ok();
    assert_eq!(site.slurm.jobs().len(), 2 * STAGES);
}

/// F27: the request was carried out, but its answer got lost.
#[test]
fn a_timeout_after_accepting_makes_no_second_job() {
    for text in [
        "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
        "sbatch: error: Batch job submission failed: Unexpected message received",
        "sbatch: error: Batch job submission failed: Zero Bytes were transmitted or received",
    ] {
        let site = Site::new();
        site.slurm.fail("sbatch", 3, text, true);
        site.submit().ok();
        assert_eq!(site.slurm.jobs().len(), STAGES, "{text}");
        assert_eq!(site.slurm.calls_of("sbatch").len(), STAGES, "{text}");
    }
}

#[test]
fn a_timeout_before_accepting_is_tried_again() {
    let site = Site::new();
    let text =
        "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)";
    site.slurm.fail("sbatch", 1, text, false);
    let ran = site.submit();
    assert!(ran.err.contains("trying again in 1 s"), "{}", ran.err);
    ran.ok();
    assert_eq!(site.slurm.jobs().len(), STAGES);
    assert_eq!(site.slurm.calls_of("sbatch").len(), STAGES + 1);
}

/// `submit` was killed between sbatch and its journal.
#[test]
fn a_submission_that_was_cut_off_is_found_by_its_name() {
    let site = Site::new();
    site.submit().ok();
    let journal = site.dir.path().join("run/slurm/journal.jsonl");
    let text = std::fs::read_to_string(&journal).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    // All but the last word: the report was submitted, and that was not noted.
    std::fs::write(&journal, lines[..lines.len() - 1].join("\n") + "\n").unwrap();
    site.equipoise(&["resume", "run"]).ok();
    assert_eq!(site.slurm.jobs().len(), STAGES);
    let text = std::fs::read_to_string(&journal).unwrap();
    assert!(text.lines().last().unwrap().contains("submitted"), "{text}");
}

#[test]
fn a_refusal_takes_the_chain_back() {
    let site = Site::with("[slurm.stages.'train.ce*']\npartition = 'none'");
    let refused = site.submit().fails(78);
    assert!(
        refused.contains("stage train.ce.s0: sbatch: error: invalid partition specified: none"),
        "{refused}"
    );
    assert!(!site.slurm.jobs().is_empty());
    for job in site.slurm.jobs() {
        assert_eq!(site.slurm.get(&job, "state"), "CANCELLED");
    }
}

#[test]
fn what_cannot_be_submitted_reaches_no_sbatch() {
    for (keys, expected) in [
        ("mem = '4G'\nmem_per_cpu = '1G'", "Slurm takes one form of memory"),
        ("time = 'soon'", "'soon' is no time"),
        ("time = '4'", "slurm.signal_lead stops it 300 s before the end"),
        ("partitoin = 'x'", "did you mean 'partition'?"),
    ] {
        let site = Site::with(keys);
        let refused = site.submit().fails(78);
        assert!(refused.contains(expected), "{refused}");
        assert!(site.slurm.calls_of("sbatch").is_empty());
    }
}

/// F30.
#[test]
fn variables_of_a_surrounding_job_do_not_leak() {
    let site = Site::new();
    let mut command = site.command(&["submit", "my.toml", "--run", "run"]);
    for name in
        ["SLURM_JOB_ID", "SLURM_CPU_BIND", "SBATCH_QOS", "PMIX_RANK", "OMPI_COMM_WORLD_SIZE", "SLURM_CONF"]
    {
        command.env(name, "leaked");
    }
    crate::util::Ran::of(&mut command).ok();
    let env = site.slurm.get(&site.job("train.g"), "env");
    let leaked: Vec<&str> = env.lines().filter(|line| line.ends_with("=leaked")).collect();
    assert_eq!(leaked, ["SLURM_CONF=leaked"]);
}

/// F13.
#[test]
fn of_a_hundred_racing_submits_one_runs() {
    let site = Site::new();
    let mut racing: Vec<std::process::Child> = Vec::new();
    for _ in 0..100 {
        let mut command = site.command(&["submit", "my.toml", "--run", "run"]);
        racing.push(
            command
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::piped())
                .spawn()
                .unwrap(),
        );
    }
    let ended: Vec<_> = racing.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    let codes: Vec<i32> = ended.iter().map(|output| output.status.code().unwrap()).collect();
    assert_eq!(codes.iter().filter(|code| **code == 0).count(), 1, "{codes:?}");
    assert_eq!(site.slurm.jobs().len(), STAGES);
    for output in ended.iter().filter(|output| output.status.code() != Some(0)) {
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(69), "{said}");
        assert!(said.contains("owned by job") || said.contains("process"), "{said}");
    }
}

#[test]
fn scripts_can_be_printed_and_tested_without_a_trace() {
    let site = Site::with("time = '1:00:00'");
    let all = site.equipoise(&["submit", "my.toml", "--run", "run", "--print-sbatch"]).ok();
    assert_eq!(all.matches("#!/bin/bash").count(), STAGES);
    let one =
        site.equipoise(&["submit", "my.toml", "--run", "run", "--print-sbatch", "--stage", "train.g"]).ok();
    assert!(one.starts_with("#!/bin/bash\n#SBATCH --job-name=small.train.g\n"), "{one}");
    let args = ["submit", "my.toml", "--run", "run", "--print-sbatch", "--stage", "train.h"];
    assert!(site.equipoise(&args).fails(64).contains("did you mean 'train.g'?"));
    let tested = site.equipoise(&["submit", "my.toml", "--run", "run", "--test-only"]).ok();
    assert!(tested.contains("train.g: Job 1 to start at"), "{tested}");
    assert!(!site.dir.path().join("run").exists() && site.slurm.jobs().is_empty());
    let site = Site::with("partition = 'none'");
    let tested = site.equipoise(&["submit", "my.toml", "--run", "run", "--test-only"]);
    assert_eq!(tested.code, 1);
    assert!(
        tested.out.contains("train.g: sbatch: allocation failure: Invalid partition name specified"),
        "{}",
        tested.out
    );
}

#[test]
fn without_slurm_it_says_so() {
    let site = Site::new();
    let mut command = site.dir.command(&["submit", "my.toml", "--run", "run"]);
    command.env("PATH", "/nowhere");
    let said = crate::util::Ran::of(&mut command).fails(78);
    assert!(said.contains("there is no such command here"), "{said}");
}

#[test]
fn a_dry_run_tells_hours_and_attempts_from_measured_speed() {
    let site = Site::with("time = '0:10:00'\nsignal_lead = 60\ngpus_per_task = '2'");
    let text = site.equipoise(&["submit", "my.toml", "--run", "run", "--dry-run"]).ok();
    let line =
        |text: &str, stage: &str| text.lines().find(|line| line.starts_with(stage)).unwrap().to_string();
    assert!(line(&text, "generate.plain.k0").contains("91  not measured"), "{text}");
    assert!(!site.dir.path().join("run").exists() && site.slurm.calls_of("sbatch").is_empty());
    // One image in ten seconds on two ranks: 91 take 1820 s on one, at 480 s of work in each attempt.
    let status = serde_json::json!({
        "stage": "generate.plain.k0", "state": "done", "unit": "images", "done": 91, "total": 91, "rate": 0.1,
        "attempt": 1, "ranks": 2, "host": "n1", "pid": 1, "wall": 0.0,
    });
    site.dir.write("earlier/stages/generate.plain.k0/status.json", &status.to_string());
    let args = ["submit", "my.toml", "--run", "run", "--dry-run", "--measured", "earlier"];
    let text = site.equipoise(&args).ok();
    let words: Vec<String> =
        line(&text, "generate.plain.k0").split_whitespace().map(str::to_string).collect();
    assert_eq!(words[1..], ["-", "1", "1", "91", "30", "min", "20", "s", "4", "generate.plain.k0"], "{text}");
    assert!(text.contains("takes  1.0 GPU-hours, 0.5 CPU-hours, and "), "{text}");
}

#[test]
fn a_simulation_of_many_ranks() {
    let site = Site::new();
    let args = ["plan", "my.toml", "--simulate", "1024", "--mtbf", "100000"];
    let text = site.equipoise(&args).ok();
    assert!(text.contains("idle tail") && text.contains("1024 ranks, planned and simulated in"), "{text}");
    site.equipoise(&["plan", "my.toml", "--simulate", "0"]).fails(64);
}
