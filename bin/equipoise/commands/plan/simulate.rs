//! `equipoise plan --simulate`: how long the sets take on ranks that differ in speed and fail.

use crate::classes::{Counts, Planned};
use crate::output::{self, Format};
use crate::runner::Run;
use equipoise_base::rng::Key;
use equipoise_base::{ExitCode, Result, ensure};
use equipoise_config::recipe::{Dataset, Set};
use equipoise_telemetry::human_duration;
use equipoise_workplan::simulate::{Failures, Simulation, simulate};
use serde::Serialize;
use std::time::Instant;

/// How to simulate.
#[derive(Debug, clap::Args)]
pub struct Simulate {
    /// Simulate the generation of each set on so many ranks.
    #[arg(long, value_name = "RANKS")]
    simulate: Option<usize>,
    /// Images per second of the slowest rank, with --simulate.
    #[arg(long, value_name = "RATE", default_value_t = 1.0, requires = "simulate")]
    rate: f64,
    /// How much faster the fastest rank is, with --simulate: 0.3 is 30 %.
    #[arg(long, value_name = "PART", default_value_t = 0.3, requires = "simulate")]
    spread: f64,
    /// Mean seconds between two failures of a rank, with --simulate; none if left out.
    #[arg(long, value_name = "SECONDS", requires = "simulate")]
    mtbf: Option<f64>,
    /// Seconds until a failed rank is back, with --simulate.
    #[arg(long, value_name = "SECONDS", default_value_t = 130.0, requires = "simulate")]
    downtime: f64,
}

impl Simulate {
    /// How many ranks to simulate, if that is what is wanted.
    pub fn ranks(&self) -> Option<usize> {
        self.simulate
    }
}

#[derive(Debug, Serialize)]
struct Row {
    set: String,
    images: u64,
    shards: u64,
    seconds: f64,
    /// Part of the ranks' time with nothing left to claim.
    idle_tail: f64,
    /// Part of the computing that failures destroyed.
    lost: f64,
    failures: u64,
}

/// Simulates every set once; its seeds take as long.
///
/// # Errors
/// As planning; 64 for numbers that make no sense.
pub fn run(run: &Run, ranks: usize, args: &Simulate, format: Format) -> Result<ExitCode> {
    let sensible = ranks > 0
        && args.rate > 0.0
        && args.spread >= 0.0
        && args.downtime >= 0.0
        && args.mtbf.is_none_or(|mean| mean > 0.0);
    ensure!(
        sensible,
        Usage,
        "--simulate, --rate and --mtbf must be above 0, --spread and --downtime not below"
    );
    let start = Instant::now();
    let recipe = &run.resolved.recipe;
    let failures = args.mtbf.map(|mean| Failures { mean, downtime: args.downtime, seed: recipe.run.seed });
    let speed = |rank: usize| {
        let key = Key::new(recipe.run.seed, "simulate.speed").index(rank as u64);
        args.rate * (1.0 + args.spread * key.stream().uniform())
    };
    let speeds: Vec<f64> = (0..ranks).map(speed).collect();
    let mut rows = Vec::new();
    if let Some(data) = &recipe.data {
        for (name, set) in recipe.sets.iter() {
            rows.push(row(run, data, name, set, &speeds, failures)?);
        }
    }
    let took = start.elapsed().as_secs_f64();
    match format {
        Format::Json => output::json(&rows),
        Format::Text => print(&rows, ranks, took),
    }
    Ok(ExitCode::Done)
}

fn row(
    run: &Run,
    data: &Dataset,
    name: &str,
    set: &Set,
    speeds: &[f64],
    failures: Option<Failures>,
) -> Result<Row> {
    let generate = &set.generate;
    let counts = match data.splits.get(&generate.split) {
        Some(split) => Counts::read(&run.resolved.recipe, data, &generate.split, split)?,
        None => Counts::default(),
    };
    let layout = Planned::new(data, generate, &counts)?.layout;
    let size = |id| layout.shard(id).map_or(0, |shard| shard.images.end - shard.images.start);
    let sizes: Vec<u64> = layout.claim_order().into_iter().map(size).collect();
    let Simulation { makespan, busy, idle_tail, lost, failures } = simulate(&sizes, speeds, failures);
    let lost = if busy > 0.0 { lost / busy } else { 0.0 };
    let (images, shards) = (layout.images(), layout.len());
    Ok(Row { set: name.into(), images, shards, seconds: makespan, idle_tail, lost, failures })
}

fn print(rows: &[Row], ranks: usize, took: f64) {
    let percent = |part: f64| format!("{:.2} %", 100.0 * part);
    let row = |row: &Row| {
        vec![
            row.set.clone(),
            row.images.to_string(),
            row.shards.to_string(),
            human_duration(row.seconds),
            percent(row.idle_tail),
            row.failures.to_string(),
            percent(row.lost),
        ]
    };
    let cells: Vec<_> = rows.iter().map(row).collect();
    let header = ["set", "images", "shards", "takes", "idle tail", "failures", "lost"];
    output::table(&header, &cells, &[1, 2, 3, 4, 5, 6]);
    output::line(format!("{ranks} ranks, planned and simulated in {took:.2} s"));
}
