//! The main job through everything at once: five preemptions, two time limits, a requeue, a lost node, a cancelled job,
//! and another number of ranks. Minutes of real work, so it runs on request:
//!
//! ```text
//! cargo test --test cluster acceptance -- --ignored --nocapture
//! ```

use crate::campaign::{Campaign, Work};
use crate::support::equipoise;
use equipoise_testkit::slurm::{Job, Options};
use equipoise_testkit::{Process, TempRun};
use std::time::{Duration, Instant};

const STAGE: &str = "generate.feedback.k0";

/// The quickstart with one seed, little training, and all images of the guided set, in so many steps that their stage
/// outlasts everything that happens to it.
const WORK: Work = Work {
    recipe: "configs/recipes/quickstart.toml",
    settings: &[
        "sets.feedback.seeds=[0]",
        "sets.feedback.sampler.steps=36",
        "sets.unguided.seeds=[0]",
        "arms.ce.seeds=[0]",
        "arms.bs.seeds=[0]",
        "arms.unguided.seeds=[0]",
        "arms.feedback.seeds=[0]",
        "arms.ceiling.seeds=[0]",
        "classifier.steps=40",
        "sets.unguided.plan.n=60",
        "toy.seeds=[0]",
        "grid.images=1",
        "arms.ce.steps=200",
    ],
    shard: 64,
};

fn reference() -> TempRun {
    let reference = TempRun::default();
    let mut command = equipoise(&["run", WORK.recipe, "--run"]);
    command.current_dir(env!("CARGO_MANIFEST_DIR")).arg(reference.join("run"));
    for setting in WORK.settings {
        command.args(["--set", setting]);
    }
    let mut process = Process::spawn(command);
    let status = process.wait(Duration::from_secs(3600));
    assert!(status.success(), "{status}:\n{}", process.output());
    reference
}

/// A campaign in the middle of a stage.
struct Progress {
    campaign: Campaign,
    job: Job,
    restarts: u32,
    attempt: u64,
}

impl Progress {
    /// Lets `hit` happen to the job while it makes images. If it is told to stop it must leave an outcome, and make
    /// nothing twice. Waits until the next attempt is at work.
    fn survive(&mut self, what: &str, told: bool, hit: impl FnOnce(&mut Campaign, Job)) {
        let before = self.campaign.wait_until_at_work(STAGE, self.attempt);
        let since = Instant::now();
        hit(&mut self.campaign, self.job);
        let exit = told.then(|| self.stopped(what, since));
        self.restarts += 1;
        self.campaign.requeued(self.job, self.restarts);
        let queued = Instant::now();
        if !told {
            let redone = before.saturating_sub(self.campaign.committed_images(STAGE));
            assert!(redone <= 2 * WORK.shard, "{what}: {redone} of {before} images are lost");
            println!("{what}: {redone} of {before} images to make again");
            self.campaign.start_again(self.job);
        }
        self.attempt += 1;
        self.campaign.wait_until_at_work(STAGE, self.attempt);
        println!("{what}: signal to outcome {exit:?}, requeue to new images {:?}", queued.elapsed());
    }

    /// The outcome of an attempt that was told to stop; how many seconds it took from the signal, or from the request
    /// where the controller logs no signal.
    fn stopped(&self, what: &str, since: Instant) -> f64 {
        let outcome = self.campaign.wait_for_outcome(STAGE, self.attempt);
        let elapsed = since.elapsed().as_secs_f64();
        assert_eq!(outcome["name"], "requeue", "{what}: {outcome}");
        let signalled = self.campaign.since_signal(self.job, outcome["wall"].as_f64().unwrap());
        let took = signalled.filter(|took| *took < elapsed).unwrap_or(elapsed);
        assert!(took < crate::LEAVE.as_secs_f64(), "{what}: {took:.1} s");
        took
    }

    fn preempted(&mut self) {
        self.survive("preemption", true, |campaign, _| {
            campaign.cluster.preempt(2, 1);
        });
    }

    /// Cancelled on purpose, then submitted again.
    fn cancelled(&mut self, settings: &[&str]) {
        self.campaign.wait_until_at_work(STAGE, self.attempt);
        let since = Instant::now();
        self.campaign.cluster.cancel(self.job);
        println!("scancel: signal to outcome {:.1} s", self.stopped("scancel", since));
        self.campaign.wait_until_none_is_left();
        self.job = self.campaign.submit(STAGE, "low", settings);
        (self.restarts, self.attempt) = (0, self.attempt + 1);
    }

    /// Runs into the end of its time, and is queued again.
    fn out_of_time(&mut self) {
        self.campaign.wait_until_at_work(STAGE, self.attempt);
        let outcome = self.campaign.wait_for_outcome(STAGE, self.attempt);
        assert_eq!(outcome["name"], "requeue", "time limit: {outcome}");
        self.restarts += 1;
        self.campaign.requeued(self.job, self.restarts);
        self.attempt += 1;
        println!("time limit: committed and queued again");
    }
}

#[test]
#[ignore = "minutes of real work"]
fn the_quickstart_survives_everything() {
    let mut campaign = Campaign::new(WORK, reference(), Options::default());
    let start = Instant::now();
    campaign.begin("acceptance", STAGE);
    let job = campaign.submit(STAGE, "low", &[]);
    let mut progress = Progress { campaign, job, restarts: 0, attempt: 1 };
    for _ in 0..5 {
        progress.preempted();
    }
    progress.survive("scontrol requeue", true, |campaign, job| campaign.cluster.requeue(job));
    progress.survive("node loss", false, |campaign, _| {
        campaign.cluster.kill_node(2);
        campaign.cluster.boot_node(2);
    });
    // The shell dawdles, so that the limit of a minute comes soon.
    progress.cancelled(&["slurm.time='1'", r#"slurm.setup=["sleep 20"]"#, "slurm.signal_lead=1"]);
    progress.out_of_time();
    progress.out_of_time();
    progress.cancelled(&["run.ranks=3"]);
    let (attempts, campaign) = (progress.attempt, progress.campaign);
    campaign.finish_and_compare("acceptance");
    assert_eq!(
        campaign.journal(STAGE).iter().filter(|event| event["event"] == "attempt").count() as u64,
        attempts
    );
    println!("{attempts} attempts, the same bytes after {:.0} s", start.elapsed().as_secs_f64());
}
