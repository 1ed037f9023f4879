//! Real Slurm, real MPI, several nodes: whatever the cluster does to a stage, it ends with the bytes of the uninterrupted
//! run. Each event is asserted to have hit the stage while it ran.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod acceptance;
mod campaign;
mod latent;
mod long;
#[path = "../../support/mod.rs"]
mod support;

use campaign::{Campaign, Work};
use equipoise_testkit::slurm::{Job, Options};
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
    mpirun_hears_of_it_through_the_shell(&mut campaign);
    two_ranks_greet_each_other_on_two_nodes(&campaign);
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

/// Death without a word, and the loss of nodes: at most one shard per rank is made again.
fn sudden_ends_cost_a_shard_per_rank(campaign: &mut Campaign) {
    campaign.begin("sudden ends", GENERATE);
    let job = campaign.submit(GENERATE, "low0", &[]);
    let before = campaign.wait_until_at_work(GENERATE, 1);
    // Without a grace time Slurm sends TERM all the same, and slurmd waits for 5 s at least before it kills, whatever
    // KillWait says: by then the ranks have committed. So somebody else kills, before Slurm takes the nodes.
    campaign.kill_ranks_unheard();
    let urgent = campaign.cluster.preempt(2, 1);
    campaign.requeued(job, 1);
    let redone = before.saturating_sub(campaign.committed_images(GENERATE));
    assert!(redone <= 2 * WORK.shard, "{redone} images of {before} were lost");
    println!("killed without notice: {redone} of {before} images to make again");
    campaign.wait_until_over(urgent);
    campaign.start_again(job);

    let before = campaign.wait_until_at_work(GENERATE, 2);
    campaign.cluster.kill_node(2);
    campaign.requeued(job, 2);
    let lost = before.saturating_sub(campaign.committed_images(GENERATE));
    assert!(lost <= 2 * WORK.shard, "{lost} images of {before} were lost");
    campaign.cluster.boot_node(2);
    campaign.start_again(job);
    let events = campaign.wait_until_begun(GENERATE, 3);
    let takeovers = events.iter().filter(|event| event["event"] == "takeover");
    let because: Vec<_> = takeovers.map(|event| event["takeover"]["because"].clone()).collect();
    assert!(because.contains(&"restarted".into()), "{events:?}");
    a_lost_node_is_noticed_before_slurm_does(campaign, job);
    campaign.wait_until_over(job);
    campaign.finish_and_compare(GENERATE);
}

/// Where Slurm waits longer for a silent node than the ranks for each other, they end with 75 and the job requeues itself.
fn a_lost_node_is_noticed_before_slurm_does(campaign: &mut Campaign, job: Job) {
    campaign.wait_until_at_work(GENERATE, 3);
    campaign.cluster.set_slurmd_timeout(300);
    let lost = std::time::Instant::now();
    campaign.cluster.kill_node(2);
    let outcome = campaign.wait_for_outcome(GENERATE, 3);
    assert_eq!(outcome["name"], "requeue", "lost node: {outcome}");
    assert!(outcome["message"].as_str().unwrap().contains("was not heard"), "{outcome}");
    println!("node lost: 75 after {:.1} s, before Slurm noticed", lost.elapsed().as_secs_f64());
    campaign.cluster.boot_node(2);
    campaign.requeued(job, 3);
    campaign.cluster.set_slurmd_timeout(equipoise_testkit::slurm::SLURMD_TIMEOUT);
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

/// A site where mpirun starts the ranks: Slurm tells the shell (as `--signal=B:USR2@lead` does at the time limit), the
/// shell mpirun, and mpirun its ranks on all nodes.
fn mpirun_hears_of_it_through_the_shell(campaign: &mut Campaign) {
    campaign.begin("mpirun", GENERATE);
    let job = campaign.submit(GENERATE, "low", &["slurm.launcher=mpirun"]);
    campaign.wait_until_at_work(GENERATE, 1);
    for node in 1..=2 {
        assert_eq!(campaign.ranks_on(node).len(), 1, "node {node}");
    }
    campaign.cluster.signal_shell(job, "USR2");
    let outcome = campaign.wait_for_outcome(GENERATE, 1);
    assert_eq!(outcome["name"], "requeue", "USR2 to the shell: {outcome}");
    campaign.requeued(job, 1);
    campaign.wait_until_over(job);
    let last = campaign.wait_for_outcome(GENERATE, 2);
    let made = |outcome: &serde_json::Value| outcome["made"].as_u64().unwrap();
    assert_eq!(made(&outcome) + made(&last), campaign.images(GENERATE), "finished batches were made again");
    campaign.finish_and_compare(GENERATE);
}

/// `equipoise doctor --node` from the login node: an allocation, ranks on both nodes, and every check of them; and with
/// a PMI that is not that of the MPI library, what to set.
fn two_ranks_greet_each_other_on_two_nodes(campaign: &Campaign) {
    let findings = |sets: &[&str], status: i32| {
        let mut command = campaign.cluster.as_user(env!("CARGO_BIN_EXE_equipoise"));
        command.env("EQUIPOISE_HOME", env!("CARGO_MANIFEST_DIR"));
        command.args(["doctor", "--node", "--output=json", "--set", "slurm.nodes=2", "--root"]);
        command.arg(campaign.cluster.shared());
        for set in sets {
            command.args(["--set", set]);
        }
        let output = command.output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(status), "{out}\n{err}");
        serde_json::from_str::<Vec<serde_json::Value>>(&out).unwrap_or_else(|_| panic!("{out}\n{err}"))
    };
    let found = findings(&["slurm.partition=high"], 0);
    for check in ["MPI hello", "clocks", "libtorch", "GPU", "NCCL", "HDF5", "file locks", "clock"] {
        let finding = found.iter().find(|finding| finding["check"] == check);
        let finding = finding.unwrap_or_else(|| panic!("no {check}: {found:?}"));
        println!("{check}: {}", finding["found"].as_str().unwrap());
    }
    let hello = found[0]["found"].as_str().unwrap();
    assert!(hello.contains("2 ranks on n1, n2 found each other"), "{hello}");
    let wrong = findings(&["slurm.partition=high", "slurm.mpi=none"], 1);
    assert!(wrong[0]["found"].as_str().unwrap().contains("slurm.mpi"), "{wrong:?}");
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
