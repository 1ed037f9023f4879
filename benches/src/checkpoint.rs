//! Checkpoints of a ResNet-50 with its momentum: saved, restored, and what saving costs a training that goes on.

use crate::noise::normals;
use crate::step::Model;
use crate::timing::{Repeats, median};
use equipoise_base::clock::SystemClock;
use equipoise_base::{Error, ExitCode, Identity, Result};
use equipoise_models::resnet::bottleneck::{BottleneckResNet, BottleneckResNetConfig};
use equipoise_nn::{FlatParams, Params, runtime, weights};
use equipoise_rundir::{CheckpointWriter, Checkpoints, RealFs, Snapshot};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use tch::{Kind, Tensor};

/// Steps between checkpoints in a recipe that does not say otherwise.
const EVERY: f64 = 100.;
/// Steps of a measurement: a checkpoint is on disk before they are over.
const STEPS: usize = 4;
/// Images of a step, and their height and width.
const BATCH: i64 = 32;
const SIZE: i64 = 64;

/// What is measured.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// save, restore, or stall: what a checkpoint costs a training that goes on.
    #[arg(value_parser = ["save", "restore", "stall"])]
    what: String,
    /// Where checkpoints are written.
    #[arg(long)]
    folder: PathBuf,
    #[command(flatten)]
    repeats: Repeats,
}

/// Parameters and momentum by name.
struct State {
    params: Params,
    momentum: Vec<(String, Tensor)>,
}

impl State {
    fn new() -> Result<Self> {
        let params = Params::new(0, Kind::Float, runtime::device());
        BottleneckResNet::new(&params.root(), BottleneckResNetConfig::resnet50(), 3, 1000)?;
        let flat = FlatParams::new(&params)?;
        Ok(Self { momentum: flat.named("momentum.", &flat.values().copy()), params })
    }

    /// As `stages::training` makes it.
    fn snapshot(&self, step: u64) -> Result<Snapshot> {
        let bytes = |tensors: &[(String, Tensor)]| weights::to_bytes(tensors, &BTreeMap::new());
        let files = BTreeMap::from([
            ("model.safetensors".to_string(), bytes(&self.params.all())?),
            ("optimizer.safetensors".to_string(), bytes(&self.momentum)?),
        ]);
        Ok(Snapshot { step, world: 1, identity: Identity::of("bench"), files, user: json!(null) })
    }
}

/// Measures.
///
/// # Errors
/// 74 if a checkpoint cannot be written or read.
pub fn run(args: &Args) -> Result<Value> {
    let checkpoints = Checkpoints::new(Arc::new(RealFs), &args.folder, None);
    let state = State::new()?;
    let mut step = 0;
    let mut line = match args.what.as_str() {
        "save" => args.repeats.measure(1, || {
            step += 1;
            checkpoints.save(&state.snapshot(step)?)?;
            checkpoints.keep_last(1)
        })?,
        "restore" => {
            checkpoints.save(&state.snapshot(1)?)?;
            args.repeats.measure(1, || restore(&checkpoints, &state))?
        }
        _ => stall(&checkpoints, &state, args.repeats)?,
    };
    std::fs::remove_dir_all(&args.folder).map_err(|error| Error::io("remove", &args.folder, error))?;
    line["bench"] = format!("checkpoint {}", args.what).into();
    line["side"] = "equipoise".into();
    line["case"] = json!({ "model": "resnet50", "files": 2 });
    Ok(line)
}

/// Found, verified, read and loaded.
fn restore(checkpoints: &Checkpoints, state: &State) -> Result<()> {
    let found = checkpoints.latest_valid(&mut |_, _| ())?;
    let mut found = found.ok_or_else(|| Error::new(ExitCode::Bug, "no checkpoint was saved"))?;
    let mut read = |name: &str| weights::from_bytes(name, found.take(name)?);
    state.params.load("bench", &read("model.safetensors")?)?;
    let momentum: BTreeMap<String, Tensor> = read("optimizer.safetensors")?.into_iter().collect();
    for (name, tensor) in &state.momentum {
        let saved = momentum.get(name).ok_or_else(|| Error::data(format!("{name} is missing")))?;
        tensor.shallow_clone().copy_(saved);
    }
    Ok(())
}

/// Rounds of [`STEPS`] training steps, without a checkpoint and with one that is written meanwhile.
fn stall(checkpoints: &Checkpoints, state: &State, repeats: Repeats) -> Result<Value> {
    let mut writer = CheckpointWriter::start(checkpoints.clone(), 1, Arc::new(SystemClock::default()))?;
    let images = runtime::upload(&normals("bench", &[BATCH, 3, SIZE, SIZE]));
    let labels = Tensor::arange(BATCH, (Kind::Int64, runtime::device()));
    let model = Model { model: "resnet50".into(), precision: "fp32".into() };
    let (mut number, mut handed_over, mut plain, mut with) = (0, Vec::new(), Vec::new(), Vec::new());
    let (mut line, _) = model.train(|step| {
        let mut steps = || (0..STEPS).try_for_each(|_| step(&images, &labels));
        steps()?;
        repeats.measure(1, || {
            let start = Instant::now();
            steps()?;
            plain.push(start.elapsed().as_secs_f64());
            number += 1;
            let start = Instant::now();
            writer.submit(state.snapshot(number)?)?;
            handed_over.push(start.elapsed().as_secs_f64());
            steps()?;
            with.push(start.elapsed().as_secs_f64());
            // The next round begins with a quiet disk.
            writer.wait()
        })
    })?;
    let step = median(&plain) / STEPS as f64;
    let cost = median(&with) - median(&plain);
    line["step_ms"] = (1e3 * step).into();
    line["handed_over_ms"] = (1e3 * median(&handed_over)).into();
    line["cost_ms"] = (1e3 * cost).into();
    line["share"] = (cost / (cost + EVERY * step)).into();
    Ok(line)
}
