//! Real Slurm, real MPI, several nodes: whatever the cluster does to a stage, it ends with the bytes of the uninterrupted
//! run. Each event is asserted to have hit the stage while it ran.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod acceptance;
mod campaign;
mod latent;
#[path = "../../support/mod.rs"]
mod support;

use campaign::{Campaign, Work};
use equipoise_testkit::slurm::Options;
use equipoise_testkit::{TempRun, tree};
use std::time::Duration;
use support::{finish, run};

const GENERATE: &str = "generate.feedback.k0";
const TRAIN: &str = "train.ce.s0";
/// Enough in these two stages that every event lands in the middle: on an idle machine of today training takes 27 s, twice
/// what its time limit leaves.
const WORK: Work = Work {
    recipe: "tests/recipes/tiny.toml",
    settings: &[
        "sets.feedback.plan.n=48",
        "sets.feedback.sampler.steps=24",
        "arms.ce.steps=4000",
        "checkpoint.every_steps=50",
    ],
    shard: 8,
};
/// What a rank may take from the signal to its exit, on a machine that is busy with other tests.
const LEAVE: Duration = Duration::from_secs(15);

fn reference() -> TempRun {
    let reference = TempRun::default();
    finish(run(&reference.join("run"), 2, WORK.settings));
    reference
}

/// One cluster for all: booting is quick, but the reference run is not.
#[test]
fn whatever_the_cluster_does_the_bytes_are_the_same() {
    let reference = reference();
    let mut campaign = Campaign::new(WORK, reference, Options { grace: 10, ..Options::default() });
    orderly_stops_redo_nothing(&mut campaign);
    sudden_ends_cost_a_shard_per_rank(&mut campaign);
    training_is_preempted_and_runs_out_of_time(&mut campaign);
    a_paused_owner_is_fenced(&mut campaign);
    array_tasks_share_a_stage(&mut campaign);
    the_wrong_mpi_is_named(&mut campaign);
}

/// Preemption with grace, requeue, scancel; then the rest on another number of ranks.
fn orderly_stops_redo_nothing(campaign: &mut Campaign) {
    campaign.begin("orderly stops", GENERATE);
    let job = campaign.submit(GENERATE, "low", &[]);
    let mut made = 0;

    campaign.wait_until_at_work(GENERATE, 1);
    let signalled = std::time::Instant::now();
    let urgent = campaign.cluster.preempt(2, 1);
    let outcome = campaign.wait_for_outcome(GENERATE, 1);
    assert_eq!(outcome["name"], "requeue", "preempted: {outcome}");
    println!("preemption: submitted to outcome {:.1} s", signalled.elapsed().as_secs_f64());
    made += outcome["made"].as_u64().unwrap();
    campaign.requeued(job, 1);
    campaign.wait_until_over(urgent);

    campaign.wait_until_at_work(GENERATE, 2);
    let asked = std::time::Instant::now();
    campaign.cluster.requeue(job);
    let outcome = campaign.wait_for_outcome(GENERATE, 2);
    assert!(asked.elapsed() < LEAVE, "{:?} from the request to the outcome", asked.elapsed());
    assert_eq!(outcome["name"], "requeue", "requeued: {outcome}");
    made += outcome["made"].as_u64().unwrap();
    campaign.requeued(job, 2);

    campaign.wait_until_at_work(GENERATE, 3);
    campaign.cancel(job);
    let outcome = campaign.wait_for_outcome(GENERATE, 3);
    assert_eq!(outcome["name"], "requeue", "cancelled: {outcome}");
    made += outcome["made"].as_u64().unwrap();

    let job = campaign.submit(GENERATE, "low", &["run.ranks=3"]);
    campaign.wait_until_over(job);
    let outcome = campaign.wait_for_outcome(GENERATE, 4);
    made += outcome["made"].as_u64().unwrap();
    assert_eq!(made, campaign.images(GENERATE), "finished batches were made again");
    campaign.finish_and_compare(GENERATE);
}

/// Preemption without grace, and the loss of a node: at most one shard per rank is made again.
fn sudden_ends_cost_a_shard_per_rank(campaign: &mut Campaign) {
    campaign.begin("sudden ends", GENERATE);
    let job = campaign.submit(GENERATE, "low0", &[]);
    campaign.wait_until_at_work(GENERATE, 1);
    // Slurm sends TERM all the same, and waits for KillWait (5 s) before it kills.
    let urgent = campaign.cluster.preempt(2, 1);
    campaign.requeued(job, 1);
    campaign.wait_until_over(urgent);
    campaign.start_again(job);

    let before = campaign.wait_until_at_work(GENERATE, 2);
    campaign.cluster.kill_node(2);
    campaign.requeued(job, 2);
    let lost = before.saturating_sub(campaign.committed_images(GENERATE));
    assert!(lost <= 2 * WORK.shard, "{lost} images of {before} were lost");
    campaign.cluster.boot_node(2);
    campaign.start_again(job);
    campaign.wait_until_over(job);
    let events = campaign.journal(GENERATE);
    let takeovers = events.iter().filter(|event| event["event"] == "takeover");
    let because: Vec<_> = takeovers.map(|event| event["takeover"]["because"].clone()).collect();
    assert!(because.contains(&"restarted".into()), "{events:?}");
    campaign.finish_and_compare(GENERATE);
}

fn training_is_preempted_and_runs_out_of_time(campaign: &mut Campaign) {
    campaign.begin("training", TRAIN);
    // The shell dawdles, so that the limit of a minute comes soon.
    let settings = ["slurm.time='1'", r#"slurm.setup=["sleep 25"]"#, "slurm.signal_lead=1"];
    let job = campaign.submit(TRAIN, "low", &settings);
    campaign.wait_until_at_work(TRAIN, 1);
    let outcome = campaign.wait_for_outcome(TRAIN, 1);
    assert_eq!(outcome["name"], "requeue", "out of time: {outcome}");
    campaign.requeued(job, 1);
    campaign.cancel(job);

    let job = campaign.submit(TRAIN, "low", &[]);
    campaign.wait_until_at_work(TRAIN, 2);
    let urgent = campaign.cluster.preempt(2, 1);
    let outcome = campaign.wait_for_outcome(TRAIN, 2);
    assert_eq!(outcome["name"], "requeue", "preempted: {outcome}");
    campaign.requeued(job, 1);
    campaign.wait_until_over(urgent);
    campaign.cancel(job);
    campaign.submit(TRAIN, "low", &["slurm.nodes=1", "run.ranks=1"]);
    campaign.finish_and_compare(TRAIN);
}

/// F14: the owner sleeps on a node that is cut off, Slurm starts the job again elsewhere, the owner wakes up.
fn a_paused_owner_is_fenced(campaign: &mut Campaign) {
    campaign.begin("a paused owner", GENERATE);
    let job = campaign.submit(GENERATE, "low", &["slurm.nodes=1", "run.ranks=1"]);
    campaign.wait_until_at_work(GENERATE, 1);
    let node: usize = campaign.cluster.job(job).nodes.trim_start_matches('n').parse().unwrap();
    let steps = || {
        let is_rank =
            |found: &tree::Found| found.command.contains("stage=") && !found.command.starts_with("srun");
        campaign.cluster.processes(node).into_iter().filter(is_rank).collect::<Vec<_>>()
    };
    let paused = steps();
    assert!(!paused.is_empty(), "no rank on node {node}");
    campaign.cluster.cut_link(node);
    paused.iter().for_each(|found| tree::send(found.pid, libc::SIGSTOP));
    campaign.requeued(job, 1);
    campaign.start_again(job);
    campaign.wait_until_at_work(GENERATE, 2);
    paused.iter().for_each(|found| tree::send(found.pid, libc::SIGCONT));
    equipoise_testkit::wait_until("the paused rank is gone", Duration::from_secs(60), || {
        let alive = steps();
        !paused.iter().any(|found| alive.contains(found))
    });
    campaign.wait_until_over(job);
    assert!(campaign.logs(GENERATE).contains("has lost its lease"), "{}", campaign.logs(GENERATE));
    campaign.cluster.heal_link(node);
    campaign.finish_and_compare(GENERATE);
    campaign.cluster.wait_until_idle();
}

/// Three tasks of an array, one of them restarted: each image is made by one of them, and the last one finishes the set.
fn array_tasks_share_a_stage(campaign: &mut Campaign) {
    campaign.begin("array tasks", GENERATE);
    let job = campaign.submit(GENERATE, "low", &["slurm.array=3"]);
    campaign.wait_until_task_is_at_work(GENERATE, 1);
    campaign.cluster.requeue_task(job, 1);
    campaign.wait_until_tasks_are_over(job, 3);
    let outcome = campaign.outcome(GENERATE);
    assert_eq!(outcome["name"], "done", "{outcome}");
    let lines = campaign.task_journals(GENERATE);
    assert_eq!(
        lines.iter().filter(|event| event["event"] == "attempt").count(),
        4,
        "three tasks, one twice: {lines:?}"
    );
    let first = lines.iter().filter(|event| event["event"] == "attempt" && event["owner"]["restart"] == 0);
    assert!(
        first.clone().count() >= 3 && first.clone().all(|event| event["attempt"] == 1),
        "one lease: {lines:?}"
    );
    campaign.finish_and_compare(GENERATE);
}

/// Without PMIx each rank is a world of one, and all would write the same files.
fn the_wrong_mpi_is_named(campaign: &mut Campaign) {
    campaign.begin("the wrong MPI", GENERATE);
    let job = campaign.submit(GENERATE, "low", &["slurm.mpi=none"]);
    campaign.wait_until_over(job);
    assert_eq!(campaign.cluster.job(job).exit, 78);
    assert!(campaign.output().contains("slurm.mpi"), "{}", campaign.output());
    assert!(campaign.journal(GENERATE).is_empty(), "nothing was begun");
}
