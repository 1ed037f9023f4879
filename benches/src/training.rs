//! Training steps without the loader, on one batch that is on the device already.

use crate::noise::normals;
use crate::step::Model;
use crate::timing::Repeats;
use equipoise_base::Result;
use equipoise_nn::{MemoryFormat, runtime};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

/// A classifier and its batch.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: Model,
    /// Height and width in pixels.
    #[arg(long, default_value_t = 32)]
    size: i64,
    /// Images of a step.
    #[arg(long, default_value_t = 128)]
    batch: i64,
    #[command(flatten)]
    repeats: Repeats,
}

/// Measures.
///
/// # Errors
/// 71 if the training diverges.
pub fn run(args: &Args) -> Result<Value> {
    let (device, shape) = (runtime::device(), [args.batch, 3, args.size, args.size]);
    let images = MemoryFormat::ChannelsLast.apply(&normals("bench", &shape).to_device(device))?;
    let labels = Tensor::arange(args.batch, (Kind::Int64, device)).remainder(args.model.classes());
    let (mut line, loss) =
        args.model.train(|step| args.repeats.measure(args.batch, || step(&images, &labels)))?;
    line["bench"] = "training".into();
    line["side"] = "equipoise".into();
    line["case"] = json!({
        "model": args.model.model, "size": args.size, "batch": args.batch, "precision": args.model.precision,
        "memory_format": "channels_last", "deterministic": true, "tf32": false,
    });
    line["loss"] = loss.into();
    Ok(line)
}
