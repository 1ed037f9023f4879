//! A latent generator out of a Hugging Face folder: preempted, then killed, while two ranks sample.

use crate::campaign::{Campaign, Work};
use crate::support::{finish, run_recipe};
use equipoise_testkit::slurm::Options;
use equipoise_testkit::{TempRun, tree};

const STAGE: &str = "generate.published.k0";
/// Enough that both events land in the middle.
const WORK: Work = Work {
    recipe: "tests/recipes/tiny-unclip.toml",
    settings: &["sets.published.plan.n=28", "sets.published.sampler.steps=16"],
    shard: 4,
};

#[test]
fn a_latent_generator_ends_with_the_bytes_of_one_local_rank() {
    let reference = TempRun::default();
    finish(run_recipe("tiny-unclip", &reference.join("run"), 1, WORK.settings));
    let mut campaign = Campaign::new(WORK, reference, Options { grace: 10, ..Options::default() });
    campaign.begin("a latent generator", STAGE);
    let job = campaign.submit(STAGE, "low", &[]);

    campaign.wait_until_at_work(STAGE, 1);
    let urgent = campaign.cluster.preempt(2, 1);
    let outcome = campaign.wait_for_outcome(STAGE, 1);
    assert_eq!(outcome["name"], "requeue", "preempted: {outcome}");
    campaign.requeued(job, 1);
    campaign.wait_until_over(urgent);

    let before = campaign.wait_until_at_work(STAGE, 2);
    let ranks: Vec<_> = (1..=2)
        .flat_map(|node| campaign.cluster.processes(node))
        .filter(|found| found.command.contains("stage=") && !found.command.starts_with("srun"))
        .collect();
    assert!(ranks.len() >= 2, "{ranks:?}");
    ranks.iter().for_each(|found| tree::send(found.pid, libc::SIGKILL));
    campaign.wait_until_over(job);
    assert_ne!(campaign.cluster.job(job).exit, 0, "killed");
    let lost = before.saturating_sub(campaign.committed_images(STAGE));
    assert!(lost <= 2 * WORK.shard, "{lost} images of {before} were lost");
    // What waits for a job that failed never starts.
    assert!(campaign.cluster.as_user("scancel").args(["-u", "student"]).status().unwrap().success());
    campaign.wait_until_none_is_left();

    campaign.submit(STAGE, "low", &[]);
    campaign.finish_and_compare("a latent generator");
    let attempts = campaign.journal(STAGE).iter().filter(|event| event["event"] == "attempt").count();
    assert_eq!(attempts, 3);
}
