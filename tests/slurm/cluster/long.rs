//! Faults that take many minutes to play through, so they run on request:
//!
//! ```text
//! cargo xtask faults --slow
//! ```

use crate::campaign::{Campaign, Work};
use crate::support::run;
use crate::{GENERATE, TRAIN};
use equipoise_base::rng::Key;
use equipoise_rundir::{RealFs, RunDir, StageKey, records, work};
use equipoise_testkit::slurm::Options;
use equipoise_testkit::{Process, TempRun, figure, wait_until};
use std::time::{Duration, Instant};

const RECIPE: &str = "tests/recipes/tiny.toml";

/// What a reference may take: the work of twenty attempts in a row is minutes.
const REFERENCE: Duration = Duration::from_secs(1200);

fn campaign(work: Work) -> Campaign {
    let reference = TempRun::default();
    let mut process = Process::spawn(run(&reference.join("run"), 2, work.settings));
    let status = process.wait(REFERENCE);
    assert!(status.success(), "{status}:\n{}", process.output());
    Campaign::new(work, reference, Options { grace: 10, ..Options::default() })
}

/// A node is lost while the ranks are finding each other, and is back before Slurm has missed it: srun would wait for its
/// ranks for ever, and the other ranks for them.
#[test]
#[ignore = "a minute or two"]
fn a_node_that_is_lost_at_the_start_and_back_at_once() {
    let settings = &["sets.feedback.plan.n=48", "slurm.start_timeout=15"];
    let mut campaign = campaign(Work { recipe: RECIPE, settings, shard: 8 });
    campaign.begin("back at once", GENERATE);
    let job = campaign.submit(GENERATE, "low", &["run.ranks=4"]);
    wait_until("ranks on node 2", Duration::from_secs(60), || !campaign.ranks_on(2).is_empty());
    campaign.cluster.kill_node(2);
    let lost = Instant::now();
    assert!(campaign.journal(GENERATE).is_empty(), "the ranks had begun already");
    campaign.cluster.boot_node(2);
    campaign.requeued(job, 1);
    println!("queued again after {:.1} s", lost.elapsed().as_secs_f64());
    let noted = campaign.wait_for_end(GENERATE, 0);
    assert_eq!((&noted["code"], &noted["stalled"]), (&"requeue".into(), &true.into()), "{noted}");
    // The PMIx of the survivors takes up to a minute to give up its sockets, and the starts until then fail too.
    campaign.wait_until_over(job);
    campaign.finish_and_compare(GENERATE);
}

/// F19: 20 preemptions in a row, each a random 1-30 s after the job has started: in the middle of the start-up, of a step, of
/// a commit. Metrics have no step twice and none missing, and no step was made again.
#[test]
#[ignore = "twenty minutes"]
fn twenty_preemptions_in_a_row() {
    const EVERY: u64 = 100;
    let settings = &[
        "arms.ce.steps=120000",
        "arms.ce.log_every=100",
        "checkpoint.every_steps=100",
        // Some attempts are stopped before their first step.
        "slurm.max_stalls=20",
    ];
    let mut campaign = campaign(Work { recipe: RECIPE, settings, shard: 8 });
    campaign.begin("twenty preemptions", TRAIN);
    let job = campaign.submit(TRAIN, "low", &[]);
    let (mut stream, start) = (Key::new(19, "preempt").stream(), Instant::now());
    for count in 1..=20 {
        campaign.cluster.wait_for(job, "running", Duration::from_secs(240), |state| state.state == "RUNNING");
        let delay = stream.range(1.0, 30.0);
        std::thread::sleep(Duration::from_secs_f64(delay));
        let urgent = campaign.cluster.preempt(2, 1);
        campaign.requeued(job, count);
        campaign.wait_until_over(urgent);
        println!("preemption {count} after {delay:.1} s, {:.0} s in all", start.elapsed().as_secs_f64());
    }
    campaign.wait_until_over(job);
    let rows = records::current(campaign.metrics(TRAIN));
    let steps: Vec<u64> = rows.iter().map(|row| row["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, (1..=120000 / EVERY).map(|row| row * EVERY).collect::<Vec<_>>());
    let stage = RunDir::new(campaign.run()).stage(&StageKey::parse(TRAIN).unwrap());
    let work = work::of_stage(&RealFs, &stage).unwrap();
    assert_eq!(work.superseded, 0.0, "steps were made again: {work:?}");
    println!("{} attempts, {work:?}", campaign.journal(TRAIN).len());
    figure("F19", "preemptions in a row", 20);
    figure("F19", "seconds of steps made again", work.superseded);
    figure("F19", "minutes in all", format!("{:.1}", start.elapsed().as_secs_f64() / 60.0));
    campaign.finish_and_compare("twenty preemptions");
}

/// F33: a rank dies while another is in the middle of a commit, and `--kill-on-bad-exit` ends that one too: the checkpoint
/// is complete or was never there. With a checkpoint after every step, rank 0 nearly always is.
#[test]
#[ignore = "minutes"]
fn a_commit_that_srun_cuts_short_is_whole_or_not_there() {
    let settings = &["arms.ce.steps=3000", "checkpoint.every_steps=1"];
    let mut campaign = campaign(Work { recipe: RECIPE, settings, shard: 8 });
    campaign.begin("teardown", TRAIN);
    let mut job = campaign.submit(TRAIN, "low", &[]);
    let (mut stream, mut longest) = (Key::new(33, "teardown").stream(), Duration::ZERO);
    for attempt in 1..=5 {
        campaign.wait_until_at_work(TRAIN, attempt);
        std::thread::sleep(Duration::from_secs_f64(stream.range(0.0, 0.5)));
        let victims = campaign.ranks_on(2);
        assert_eq!(victims.len(), 1, "rank 1 alone is on node 2");
        equipoise_testkit::tree::send(victims[0].pid, libc::SIGKILL);
        let killed = Instant::now();
        campaign.wait_until_over(job);
        println!("attempt {attempt}: over {:.1} s after the kill", killed.elapsed().as_secs_f64());
        longest = longest.max(killed.elapsed());
        assert_eq!(campaign.cluster.job(job).exit, 74, "a killed rank is no reason to requeue");
        campaign.wait_until_none_is_left();
        job = campaign.submit(TRAIN, "low", &[]);
    }
    campaign.wait_until_over(job);
    let logs = campaign.logs(TRAIN);
    assert!(!logs.contains("damaged checkpoint"), "{logs}");
    assert!(logs.matches("resumed at step").count() >= 5, "{logs}");
    figure("F33", "ranks killed beside a commit", 5);
    figure(
        "F33",
        "seconds from the kill to the end of the job, at most",
        format!("{:.1}", longest.as_secs_f64()),
    );
    campaign.finish_and_compare("teardown");
}

/// A time limit on a site with mpirun: `--signal=B:USR2@lead` reaches the shell only.
#[test]
#[ignore = "minutes: Slurm looks at time limits every half minute"]
fn a_time_limit_under_mpirun() {
    let settings = &["sets.feedback.plan.n=150", "sets.feedback.sampler.steps=24"];
    let mut campaign = campaign(Work { recipe: RECIPE, settings, shard: 8 });
    campaign.begin("time limit under mpirun", GENERATE);
    // The shell dawdles, so that the limit of a minute comes soon.
    let settings =
        ["slurm.launcher=mpirun", "slurm.time='1'", r#"slurm.setup=["sleep 25"]"#, "slurm.signal_lead=1"];
    let job = campaign.submit(GENERATE, "low", &settings);
    let before = campaign.wait_until_at_work(GENERATE, 1);
    let outcome = campaign.wait_for_outcome(GENERATE, 1);
    assert_eq!(outcome["name"], "requeue", "out of time: {outcome}");
    assert!(outcome["made"].as_u64().unwrap() >= before, "{outcome}");
    campaign.requeued(job, 1);
    campaign.cancel(job);
    campaign.submit(GENERATE, "low", &["slurm.launcher=mpirun"]);
    campaign.finish_and_compare("time limit under mpirun");
}

/// F32: what the earlier start of a job has left of its rendezvous, here the socket of PMIx, is never used. srun fails at once,
/// with status 0; nothing was made, so the job is queued again, and goes on once the way is free.
#[test]
#[ignore = "a minute"]
fn a_stale_rendezvous_is_never_used() {
    let settings = &["sets.feedback.plan.n=48", "sets.feedback.sampler.steps=24"];
    let mut campaign = campaign(Work { recipe: RECIPE, settings, shard: 8 });
    campaign.begin("stale rendezvous", GENERATE);
    let job = campaign.submit(GENERATE, "low", &[]);
    campaign.wait_until_at_work(GENERATE, 1);
    campaign.cluster.requeue(job);
    campaign.wait_for_outcome(GENERATE, 1);
    campaign.requeued(job, 1);
    // The job waits some seconds in the queue; until then the step's own socket has gone.
    let stale = [1, 2].map(|node| campaign.cluster.spool(node).join(format!("stepd.slurm.pmix.{}.0", job.0)));
    let gone = || stale.iter().all(|socket| !socket.exists());
    equipoise_testkit::wait_until("the earlier start has left", Duration::from_secs(60), gone);
    stale.iter().for_each(|socket| drop(std::os::unix::net::UnixListener::bind(socket).unwrap()));
    let ended = campaign.wait_for_end(GENERATE, 1);
    assert_eq!((&ended["stalled"], &ended["requeued"]), (&true.into(), &true.into()), "{ended}");
    assert_eq!(campaign.outcome(GENERATE)["attempt"], 1, "the stage was not begun");
    println!("stale socket: srun ended with {}", ended["status"]);
    figure("F32", "sockets of PMIx left behind, neither used", 2);
    stale.iter().for_each(|socket| drop(std::fs::remove_file(socket)));
    campaign.wait_until_over(job);
    campaign.finish_and_compare("stale rendezvous");
}
