//! Planning a million images, a long tail of 1,000 classes completed to 1,300 images each (as large as the plan of
//! FG-ImageNet-LT), and handing them out to 1,024 ranks, simulated.

use crate::timing::Repeats;
use equipoise_base::{Result, ensure};
use equipoise_workplan::simulate::simulate;
use equipoise_workplan::{Layout, LayoutConfig, PlanConfig};
use serde_json::{Value, json};

/// Classes, and images of the most and the least frequent one.
const CLASSES: usize = 1000;
const HEAD: f64 = 1280.;
const TAIL: f64 = 5.;
/// Images of each class after the plan.
const TARGET: u64 = 1300;
/// Ranks.
const RANKS: usize = 1024;

/// How often.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    repeats: Repeats,
}

/// Measures plan, layout and a simulation without failures.
///
/// # Errors
/// 78 if there is nothing to plan.
pub fn run(args: &Args) -> Result<Value> {
    let at = |class: usize| HEAD * (TAIL / HEAD).powf(class as f64 / (CLASSES - 1) as f64);
    let counts: Vec<u64> = (0..CLASSES).map(|class| at(class) as u64).collect();
    let names: Vec<String> = (0..CLASSES).map(|class| format!("class-{class:04}")).collect();
    // One image per second and rank: sizes are seconds.
    let speeds = vec![1.; RANKS];
    let (mut images, mut shards, mut idle) = (0, 0, 0.);
    let mut line = args.repeats.measure(1, || {
        let plan = PlanConfig::BalanceTo { n: TARGET }.plan(&counts).synthetic();
        let layout = Layout::new(LayoutConfig { batch: 8, batches_per_shard: 2 }, &names, &plan)?;
        let size = |id: &u64| layout.shard(*id).map_or(0, |shard| shard.images.end - shard.images.start);
        let sizes: Vec<u64> = layout.claim_order().iter().map(size).collect();
        (images, shards) = (layout.images(), sizes.len());
        idle = simulate(&sizes, &speeds, None).idle_tail;
        Ok(())
    })?;
    ensure!(images > 1_000_000, Bug, "only {images} images were planned");
    line["bench"] = "planning".into();
    line["side"] = "equipoise".into();
    line["case"] = json!({ "images": images, "shards": shards, "ranks": RANKS });
    line["idle_tail"] = idle.into();
    Ok(line)
}
