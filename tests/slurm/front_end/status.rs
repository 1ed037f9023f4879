//! `equipoise status`, `cancel` and `resume` of a submitted run: from files first, then from one call of squeue.

use crate::site::{STAGES, Site};
use crate::util::Ran;
use serde_json::{Value, json};

fn rows(site: &Site) -> Vec<Value> {
    site.json(&["status", "run"])["stages"].as_array().unwrap().clone()
}

fn row(site: &Site, stage: &str) -> Value {
    rows(site).into_iter().find(|row| row["stage"] == stage).unwrap()
}

fn submitted(keys: &str) -> Site {
    let site = Site::with(keys);
    site.submit().ok();
    site
}

fn running(site: &Site, stage: &str, done: u64, total: u64, rate: f64) {
    site.slurm.set(&site.job(stage), "state", "RUNNING");
    let status = json!({
        "stage": stage, "state": "running", "unit": "steps", "done": done, "total": total, "rate": rate,
        "attempt": 1, "ranks": 2, "host": "n1", "pid": 1, "wall": 0.0,
    });
    site.dir.write(&format!("run/stages/{stage}/status.json"), &status.to_string());
}

#[test]
fn progress_jobs_and_the_attempt_that_finishes() {
    let site = submitted("time = '0:10:00'\nsignal_lead = 60");
    // The fake says that ten minutes are left.
    running(&site, "prepare.train", 30, 120, 1.0);
    let seen = row(&site, "prepare.train");
    assert_eq!(
        (&seen["state"], &seen["job"]["nodes"], &seen["eta"]),
        (&"running".into(), &"n1".into(), &90.0.into())
    );
    assert_eq!(seen["finishes"], json!({ "attempt": 1, "of": 1 }));
    // 2000 s of work: 540 in this attempt, then 480 in each.
    running(&site, "prepare.train", 0, 2000, 1.0);
    assert_eq!(row(&site, "prepare.train")["finishes"], json!({ "attempt": 1, "of": 5 }));
    let queued = row(&site, "train.g");
    assert_eq!((&queued["state"], &queued["job"]["state"]), (&"queued".into(), &"PENDING".into()));
    let text = site.equipoise(&["status", "run"]).ok();
    assert!(text.starts_with("run  1 running, 9 queued\n"), "{text}");
    assert!(text.contains("0/2000 steps") && text.contains("1 of about 5"), "{text}");
}

#[test]
fn reasons_restarts_and_jobs_that_are_held() {
    let site = submitted("");
    let job = site.job("train.g");
    site.attempt("train.g", Some(("requeue", 1)), 75);
    site.attempt("train.g", Some(("requeue", 1)), 75);
    site.slurm.set(&job, "reason", "JobHeldAdmin");
    let seen = row(&site, "train.g");
    assert_eq!((&seen["state"], &seen["job"]["restarts"]), (&"held".into(), &1.into()));
    assert!(site.equipoise(&["status", "run"]).ok().contains(&format!("scontrol release {job}")));
}

#[test]
fn every_state_and_unknown_ones_are_shown() {
    let site = submitted("");
    let job = site.job("train.g");
    for (state, expected) in [
        ("PENDING", "queued"),
        ("RUNNING", "starting"),
        ("COMPLETING", "starting"),
        ("FOO", "starting"),
        ("REQUEUE_HOLD", "queued"),
        ("TIMEOUT", "interrupted"),
        ("NODE_FAIL", "interrupted"),
        ("PREEMPTED", "interrupted"),
    ] {
        site.slurm.set(&job, "state", state);
        let seen = row(&site, "train.g");
        assert_eq!((&seen["state"], &seen["job"]["state"]), (&expected.into(), &state.into()));
    }
}

/// F27: what Slurm cannot be asked is told from files.
#[test]
fn trouble_with_slurm_is_told_and_no_error() {
    let site = submitted("");
    running(&site, "prepare.train", 1, 2, 1.0);
    let text = "slurm_load_jobs error: Unexpected message received";
    site.slurm.fail("squeue", 1, text, false);
    let shown = site.equipoise(&["status", "run"]).ok();
    assert!(shown.contains("Slurm gives no answer, this is from files alone"), "{shown}");
    assert!(shown.contains(text) && shown.contains("1/2 steps"), "{shown}");
    // No squeue at all.
    let mut command = site.dir.command(&["status", "run"]);
    command.env("PATH", "/nowhere");
    assert!(Ran::of(&mut command).ok().contains("1/2 steps"));
    // Garbage, and nothing: the jobs are over, and accounting is disabled.
    for answer in ["", "\0\u{fffd}|||\nfoo\n"] {
        site.slurm.answer("squeue", answer);
        assert_eq!(row(&site, "train.g")["state"], "interrupted", "{answer:?}");
        assert!(site.equipoise(&["status", "run"]).ok().contains("equipoise resume run"));
    }
    site.slurm.answer("sacct", &format!("{}|OUT_OF_MEMORY|0:125\n", site.job("train.g")));
    assert_eq!(row(&site, "train.g")["job"]["state"], "OUT_OF_MEMORY");
}

#[test]
fn a_failure_before_the_stage_opened_is_told_from_the_batch_script() {
    let site = submitted("");
    site.attempt("train.g", None, 127);
    let shown = site.equipoise(&["status", "run"]).ok();
    assert!(shown.contains("train.g: the step ended with status 127"), "{shown}");
}

#[test]
fn cancel_ends_all_jobs_and_resume_submits_what_is_missing() {
    let site = submitted("");
    site.attempt("prepare.train", Some(("done", 1)), 0);
    site.slurm.set(&site.job("train.g"), "state", "RUNNING");
    let said = site.equipoise(&["cancel", "run"]).ok();
    assert!(said.contains("9 jobs") && said.contains("equipoise resume run"), "{said}");
    assert_eq!(site.slurm.calls_of("scancel").len(), 1);
    for job in site.slurm.jobs() {
        assert!(["CANCELLED", "COMPLETED"].contains(&&*site.slurm.get(&job, "state")));
    }
    assert_eq!(row(&site, "train.g")["state"], "cancelled");
    assert_eq!(site.equipoise(&["cancel", "run"]).ok(), "nothing is running there\n");
    site.equipoise(&["resume", "run", "--set", "slurm.partition=long"]).ok();
    let script = std::fs::read_to_string(site.dir.path().join("run/slurm/train.g.sh")).unwrap();
    assert!(script.contains("#SBATCH --partition=long"));
    assert_eq!(site.slurm.jobs().len(), 2 * STAGES);
    // All are queued: there is nothing to do.
    let said = site.equipoise(&["resume", "run"]).ok();
    assert!(said.contains("nothing is missing"), "{said}");
}

#[test]
fn an_id_that_was_given_to_another_job_is_not_ours() {
    let site = submitted("");
    for job in site.slurm.jobs() {
        site.slurm.set(&job, "name", "somebody.elses");
    }
    assert_eq!(row(&site, "train.g")["state"], "interrupted");
    assert_eq!(site.equipoise(&["cancel", "run"]).ok(), "nothing is running there\n");
}

#[test]
fn resume_lets_jobs_go_that_only_wait_for_their_begin_time() {
    let site = submitted("");
    let job = site.job("train.g");
    site.slurm.set(&job, "reason", "BeginTime");
    let said = site.equipoise(&["resume", "run"]).ok();
    assert!(said.contains("1 requeued jobs may start now"), "{said}");
    assert_eq!(site.slurm.get(&job, "start"), "StartTime=now");
}

/// The bar: 1,000 recorded jobs in less than half a second, with one call.
#[test]
fn a_thousand_jobs_take_one_call_and_no_time() {
    let site = Site::new();
    let seeds: Vec<String> = (0..1000).map(|seed| seed.to_string()).collect();
    let set = format!("arms.ce.seeds=[{}]", seeds.join(","));
    let config = site.equipoise(&["config", "show", "my.toml", "--set", &set]).ok();
    site.dir.write("run/config.toml", &config);
    let (mut journal, mut queue) = (String::new(), String::new());
    for seed in 0..1000 {
        let (stage, job) = (format!("train.ce.s{seed}"), 1000 + seed);
        let name = format!("small.{stage}-0");
        let submitted = json!({
            "event": "submitted", "stage": stage, "name": name, "job": job.to_string(), "array": null, "after": [], "wall": 0.0
        });
        journal += &format!("{submitted}\n");
        queue += &format!("{job}|N/A|RUNNING|10:00|N/A|n1|{name}|None\n");
        let begin = json!({
            "event": "begin", "job": job.to_string(), "restart": 2, "nodes": "n1", "outcome": null, "done": 0, "wall": 0.0
        });
        site.dir.write(&format!("run/slurm/{stage}.jsonl"), &format!("{begin}\n"));
        running_file(&site, &stage);
    }
    site.dir.write("run/slurm/journal.jsonl", &journal);
    site.slurm.answer("squeue", &queue);
    let shown = site.equipoise(&["status", "run"]).ok();
    assert!(shown.starts_with("run  1000 running"), "{}", &shown[..200]);
    assert_eq!(site.slurm.calls().len(), 1, "one call for all jobs");
}

fn running_file(site: &Site, stage: &str) {
    let status = json!({
        "stage": stage, "state": "running", "unit": "steps", "done": 1, "total": 9, "rate": 1.0,
        "attempt": 1, "ranks": 2, "host": "n1", "pid": 1, "wall": 0.0,
    });
    site.dir.write(&format!("run/stages/{stage}/status.json"), &status.to_string());
}
