//! Photos to training images on one core: JPEG decoding, random resized crop, flip, normalisation.

use crate::photos;
use crate::timing::Repeats;
use equipoise_base::{ExitCode, Result, ResultExt as _};
use equipoise_data::{AugmentConfig, BatchBuilder, Shape};
use equipoise_workplan::Sample;
use serde_json::{Value, json};
use std::path::PathBuf;

/// What is decoded.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// JPEG files.
    #[arg(long)]
    photos: PathBuf,
    /// Height and width of a training image.
    #[arg(long, default_value_t = 224)]
    size: usize,
    /// Images of a round.
    #[arg(long, default_value_t = 64)]
    batch: usize,
    #[command(flatten)]
    repeats: Repeats,
}

/// Measures with one thread.
///
/// # Errors
/// 65 without photos in the folder.
pub fn run(args: &Args) -> Result<Value> {
    let (source, labels) = photos::source(&args.photos)?;
    let augment = json!([
        { "op": "resized_crop", "size": args.size }, { "op": "hflip" },
        { "op": "normalize", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225] }
    ]);
    let augment: AugmentConfig = serde_json::from_value(augment).or_exit(ExitCode::Bug, "augment")?;
    let shape = Shape { channels: 3, height: args.size, width: args.size };
    let builder = BatchBuilder::new(vec![source], augment, shape, 1)?;
    let (mut at, mut planes) = (0u64, Vec::new());
    let mut line = args.repeats.measure(args.batch as i64, || {
        let next = |offset: u64| {
            let index = (at + offset) % labels.len() as u64;
            Sample { set: 0, index, label: labels[index as usize], key: at + offset }
        };
        let samples: Vec<Sample> = (0..args.batch as u64).map(next).collect();
        at += args.batch as u64;
        builder.fill(&samples, &mut planes)
    })?;
    line["bench"] = "decode".into();
    line["side"] = "equipoise".into();
    line["case"] = json!({ "photos": labels.len(), "size": args.size, "batch": args.batch });
    Ok(line)
}
