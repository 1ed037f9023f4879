//! Training steps fed by the loader: images drawn, decoded and augmented in a thread while the model computes.

use crate::photos;
use crate::step::Model;
use crate::timing::Repeats;
use equipoise_base::rng::Key;
use equipoise_base::{Error, ExitCode, Result, ResultExt as _};
use equipoise_data::{AugmentConfig, BatchBuilder, ImageSet, ImageSource, Loader, Request, Shape};
use equipoise_nn::runtime;
use equipoise_workplan::{OrderConfig, Pool, TrainingOrder};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;

/// Images in memory where no folder of photos is given.
const IMAGES: usize = 10_000;
/// Micro-batches that are prepared ahead, as in `stages::training`.
const PREFETCH: usize = 4;

/// A classifier and what feeds it.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: Model,
    /// Height and width in pixels.
    #[arg(long, default_value_t = 32)]
    size: usize,
    /// Images of a step.
    #[arg(long, default_value_t = 128)]
    batch: usize,
    /// JPEG files, decoded at every visit; without it images of 32 x 32 in memory.
    #[arg(long)]
    photos: Option<PathBuf>,
    #[command(flatten)]
    repeats: Repeats,
}

/// Measures.
///
/// # Errors
/// 65 without photos in the folder, 71 if the training diverges.
pub fn run(args: &Args) -> Result<Value> {
    let (source, labels) = match &args.photos {
        Some(folder) => photos::source(folder)?,
        None => in_memory()?,
    };
    let first = match args.photos {
        Some(_) => json!({ "op": "resized_crop", "size": args.size }),
        None => json!({ "op": "crop", "padding": 4 }),
    };
    let normalize = json!({ "op": "normalize", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225] });
    let augment = json!([first, { "op": "hflip" }, normalize]);
    let augment: AugmentConfig = serde_json::from_value(augment).or_exit(ExitCode::Bug, "augment")?;
    let shape = Shape { channels: 3, height: args.size, width: args.size };
    let builder = BatchBuilder::new(vec![source], augment, shape, 1)?.placed_by(runtime::pinned);
    let batch = args.batch as u64;
    let order = OrderConfig::Shuffle {};
    let mut order = TrainingOrder::new(0, &order, batch, batch, Pool::of_set(0, &labels), Pool::default())?;
    let requests = (0..).map(move |step| Request { step, micro: 0, samples: order.micro_batch(step, 0) });
    let mut loader = Loader::start(builder, requests, PREFETCH)?;
    let (mut line, loss) = args.model.train(|step| {
        args.repeats.measure(args.batch as i64, || {
            let ended = || Error::new(ExitCode::Bug, "the loader has ended");
            let micro = loader.next().ok_or_else(ended)??;
            step(&runtime::upload(&micro.images), &runtime::upload(&micro.labels))
        })
    })?;
    line["bench"] = "end-to-end".into();
    line["side"] = "equipoise".into();
    line["case"] = json!({
        "model": args.model.model, "size": args.size, "batch": args.batch, "precision": args.model.precision,
        "photos": args.photos.is_some(), "memory_format": "channels_last",
    });
    line["loss"] = loss.into();
    Ok(line)
}

/// Ten classes of noise: what is in an image does not change how long it takes.
fn in_memory() -> Result<(Arc<dyn ImageSource>, Vec<u32>)> {
    let mut stream = Key::new(0, "bench").stream();
    let pixels = (0..IMAGES * 32 * 32 * 3).map(|_| stream.below(256) as u8).collect();
    let labels: Vec<u32> = (0..IMAGES as u32).map(|index| index % 10).collect();
    Ok((Arc::new(ImageSet::new(32, 32, 3, pixels, labels.clone())?), labels))
}
