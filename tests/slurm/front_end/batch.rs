//! What a batch script does when its step has ended.

use crate::site::Site;
use serde_json::Value;

fn events(site: &Site, stage: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(site.dir.path().join(format!("run/slurm/{stage}.jsonl"))).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn requeues(site: &Site) -> usize {
    site.slurm.calls().iter().filter(|call| call.starts_with("scontrol requeue")).count()
}

fn submitted(keys: &str) -> Site {
    let site = Site::with(keys);
    site.submit().ok();
    site
}

#[test]
fn a_stage_that_is_done_ends_well() {
    let site = submitted("");
    let output = site.attempt("train.g", Some(("done", 7)), 0);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(requeues(&site), 0);
    let events = events(&site, "train.g");
    assert_eq!((&events[0]["event"], &events[0]["nodes"]), (&"begin".into(), &"n1".into()));
    assert_eq!((&events[1]["event"], &events[1]["code"]), (&"end".into(), &"done".into()));
}

#[test]
fn a_stopped_stage_is_queued_again_and_soon() {
    let site = submitted("");
    let job = site.job("train.g");
    let output = site.attempt("train.g", Some(("requeue", 3)), 75);
    assert_eq!(output.status.code(), Some(75));
    assert_eq!(
        (site.slurm.get(&job, "state"), site.slurm.get(&job, "restarts")),
        ("PENDING".into(), "1".into())
    );
    assert_eq!(site.slurm.get(&job, "start"), "StartTime=now+10");
    // The outcome of the first attempt is not taken for that of the next, which srun could not even start.
    let output = site.attempt("train.g", None, 0);
    assert_eq!(output.status.code(), Some(75));
    assert_eq!(site.slurm.get(&job, "restarts"), "2");
    let site = submitted("requeue_delay = 0");
    site.attempt("train.g", Some(("requeue", 3)), 75);
    assert_eq!(site.slurm.get(&site.job("train.g"), "start"), "");
}

#[test]
fn the_outcome_is_believed_before_the_status() {
    let site = submitted("");
    // mpirun says 137, but all ranks had committed.
    assert_eq!(site.attempt("train.g", Some(("requeue", 1)), 137).status.code(), Some(75));
    assert_eq!(requeues(&site), 1);
    assert_eq!(site.attempt("prepare.train", Some(("bad_data", 0)), 0).status.code(), Some(65));
    assert_eq!(requeues(&site), 1);
}

/// Only 75 is requeued: above all no failing configuration.
#[test]
fn failures_are_final() {
    let site = submitted("");
    for (name, status) in [
        ("config", 78),
        ("owned", 69),
        ("non_finite", 71),
        ("no_space", 73),
        ("io", 74),
        ("bug", 101),
        ("check_failed", 1),
    ] {
        let output = site.attempt("train.g", Some((name, 0)), status);
        assert_eq!(output.status.code(), Some(status), "{name}");
    }
    assert_eq!(site.attempt_that("train.g", None, 137, &site.begins("train.g")).status.code(), Some(74));
    assert_eq!(requeues(&site), 0);
}

/// F20.
#[test]
fn a_storm_stops_with_70() {
    let site = submitted("");
    let codes: Vec<_> =
        (0..3).map(|_| site.attempt("train.g", Some(("requeue", 0)), 75).status.code().unwrap()).collect();
    assert_eq!(codes, [75, 75, 70]);
    assert_eq!(requeues(&site), 2);
    let last = events(&site, "train.g").pop().unwrap();
    assert!(last["reason"].as_str().unwrap().contains("without finishing a single batch or step"), "{last}");
    // One batch in between forgives.
    let site = submitted("");
    let codes: Vec<_> = [0, 0, 1, 0, 0, 0]
        .map(|made| site.attempt("train.g", Some(("requeue", made)), 75).status.code().unwrap())
        .into();
    assert_eq!(codes, [75, 75, 75, 75, 75, 70]);
}

/// The ranks wait for each other, and Slurm does not know that they will for ever.
#[test]
fn a_launcher_that_hangs_is_ended_and_the_job_queued_again() {
    let site = submitted("start_timeout = 1");
    let hangs = || site.attempt_that("train.g", None, 0, "exec sleep 600").status.code();
    assert_eq!(hangs(), Some(75));
    assert_eq!(requeues(&site), 1);
    let start = site.slurm.get(&site.job("train.g"), "start");
    assert_eq!(start, "StartTime=now+20", "what hung takes a while to go away");
    let noted: Vec<Value> = events(&site, "train.g").iter().map(|event| event["event"].clone()).collect();
    assert_eq!(noted, ["begin", "hung", "end"]);
    assert_eq!((hangs(), hangs()), (Some(75), Some(70)));
    let last = events(&site, "train.g").pop().unwrap();
    assert!(last["reason"].as_str().unwrap().contains("slurm.start_timeout"), "{last}");
}

/// However long a step takes that has begun.
#[test]
fn a_launcher_whose_ranks_have_begun_is_waited_for() {
    let site = submitted("start_timeout = 1");
    let begins = site.begins("train.g") + "; sleep 4";
    let output = site.attempt_that("train.g", Some(("done", 7)), 0, &begins);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let noted: Vec<Value> = events(&site, "train.g").iter().map(|event| event["event"].clone()).collect();
    assert_eq!(noted, ["begin", "end"]);
}

/// A crash of MPI's start-up is tried again, one of the step's own work is not.
#[test]
fn a_crash_counts_once_the_step_has_begun() {
    let site = submitted("");
    assert_eq!(site.attempt("train.g", None, 139).status.code(), Some(75));
    assert_eq!(requeues(&site), 1);
    assert_eq!(site.attempt_that("train.g", None, 139, &site.begins("train.g")).status.code(), Some(74));
    assert_eq!(requeues(&site), 1);
    let last = events(&site, "train.g").pop().unwrap();
    assert!(last["reason"].as_str().unwrap().contains("killed by signal 11"), "{last}");
    let site = submitted("");
    let codes: Vec<_> = (0..3).map(|_| site.attempt("train.g", None, 139).status.code().unwrap()).collect();
    assert_eq!(codes, [75, 75, 70]);
    let last = events(&site, "train.g").pop().unwrap();
    assert!(last["reason"].as_str().unwrap().contains("before it had begun (status 139;"), "{last}");
}

#[test]
fn a_spent_budget_leaves_the_rest_to_resume() {
    let site = submitted("requeue_budget = 1");
    assert_eq!(site.attempt("train.g", Some(("requeue", 1)), 75).status.code(), Some(75));
    let output = site.attempt("train.g", Some(("requeue", 1)), 75);
    assert_eq!((output.status.code(), requeues(&site)), (Some(75), 1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("slurm.requeue_budget"));
    assert_eq!(site.slurm.get(&site.job("train.g"), "state"), "FAILED");
}

/// F28: PreemptMode=REQUEUE was faster.
#[test]
fn what_slurm_has_requeued_is_not_requeued_again() {
    let site = submitted("");
    let meanwhile = r#"echo PENDING > "$JOB/state"; echo 1 > "$JOB/restarts""#;
    let output = site.attempt_that("train.g", Some(("requeue", 1)), 75, meanwhile);
    assert_eq!((output.status.code(), requeues(&site)), (Some(75), 0));
    let job = site.job("train.g");
    assert_eq!(
        (site.slurm.get(&job, "restarts"), site.slurm.get(&job, "start")),
        ("1".into(), "StartTime=now+10".into())
    );
}

/// F28: the request was carried out, but its answer got lost.
#[test]
fn a_requeue_that_timed_out_is_not_repeated() {
    let site = submitted("");
    let text = "slurm_requeue error: Socket timed out on send/recv operation";
    site.slurm.fail("scontrol-requeue", 1, text, true);
    let output = site.attempt("train.g", Some(("requeue", 1)), 75);
    assert_eq!((output.status.code(), requeues(&site)), (Some(75), 1));
    assert_eq!(site.slurm.get(&site.job("train.g"), "restarts"), "1");
}

#[test]
fn a_cancelled_job_does_not_rise_again() {
    let site = submitted("");
    let output = site.attempt_that("train.g", Some(("requeue", 1)), 75, r#"echo COMPLETING > "$JOB/state""#);
    assert_eq!((output.status.code(), requeues(&site)), (Some(75), 0));
    assert!(String::from_utf8_lossy(&output.stderr).contains("it was ended on purpose"));
}

#[test]
fn a_site_that_does_not_requeue_leaves_the_rest_to_resume() {
    let site = submitted("");
    let text = "slurm_requeue error: Requested operation is presently disabled";
    site.slurm.fail("scontrol-requeue", 1, text, false);
    let output = site.attempt("train.g", Some(("requeue", 1)), 75);
    assert_eq!(output.status.code(), Some(75));
    assert!(String::from_utf8_lossy(&output.stderr).contains("presently disabled"));
    // Nothing is queued for it any more; resume submits it again, and what waited for it with it.
    site.equipoise(&["resume", "run"]).ok();
    assert!(site.slurm.jobs().len() > crate::site::STAGES);
}

/// F16: a second loss counts against the node, unless the job could not start without it.
#[test]
fn a_node_that_is_lost_again_and_again_is_left_out() {
    let attempt = |site: &Site| site.attempt("train.g", Some(("requeue", 1)), 75);
    let site = submitted("");
    let job = site.job("train.g");
    site.slurm.set(&job, "excluded", "n[7-9]");
    site.slurm.answer("sinfo", "n1|down*\nn2|idle\n");
    attempt(&site);
    assert!(site.slurm.calls_of("sinfo").is_empty(), "there was no attempt before");
    attempt(&site);
    assert_eq!(site.slurm.get(&job, "excluded"), "n[7-9]", "a single loss is bad luck");
    let output = attempt(&site);
    assert_eq!(output.status.code(), Some(75));
    assert!(String::from_utf8_lossy(&output.stderr).contains("to keep away from n1, lost again and again"));
    assert_eq!(site.slurm.get(&job, "excluded"), "n[7-9],n1", "the user's own nodes stay excluded");
    let steps = || site.slurm.calls_of("srun").len();
    assert_eq!((steps(), requeues(&site)), (2, 3), "it left before the step");
    let said = site.equipoise(&["status", "run"]).ok();
    assert!(said.contains("keep away from n1") && said.contains("rm -r run/slurm/lost/NODE"), "{said}");
    assert_eq!(site.json(&["status", "run"])["excluded_nodes"], serde_json::json!(["n1"]));

    for (keys, nodes) in [("", "n1|down*\n"), ("exclude_after = 0", "n1|down*\nn2|idle\n")] {
        let site = submitted(keys);
        site.slurm.answer("sinfo", nodes);
        (0..4).for_each(|_| drop(attempt(&site)));
        assert_eq!(site.slurm.get(&site.job("train.g"), "excluded"), "", "{keys} {nodes}");
        assert_eq!(site.slurm.calls_of("srun").len(), 4, "{keys} {nodes}");
    }
}

#[test]
fn the_batch_command_is_for_jobs() {
    let site = Site::new();
    let said = site.equipoise(&["batch", "begin", "--run", "run", "--stage", "train.g"]).fails(64);
    assert!(said.contains("SLURM_JOB_ID is not set"), "{said}");
}
