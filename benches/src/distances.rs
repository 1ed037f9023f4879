//! PRDC and FID of random features.

use crate::dump::dump;
use crate::noise::normals;
use crate::timing::Repeats;
use equipoise_base::Result;
use equipoise_metrics::{Fid, Prdc};
use equipoise_numerics::Moments;
use serde_json::{Value, json};
use std::path::PathBuf;
use tch::{Device, Kind, Tensor};

/// Two sets of features.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// prdc, or fid from means and covariances.
    #[arg(value_parser = ["prdc", "fid"])]
    what: String,
    /// Images of each set.
    #[arg(long, default_value_t = 5000)]
    rows: i64,
    /// Features of an image.
    #[arg(long, default_value_t = 2048)]
    dim: i64,
    /// Write both sets and the result to this safetensors file: the peer must find the same.
    #[arg(long)]
    dump: Option<PathBuf>,
    #[command(flatten)]
    repeats: Repeats,
}

/// Correlated normals [rows, dim] around `shift`, as float32: as features come out of a network.
fn features(purpose: &str, rows: i64, dim: i64, shift: f64) -> Tensor {
    let mixing = normals("bench/mixing", &[dim, dim]) / (dim as f64).sqrt();
    normals(purpose, &[rows, dim]).matmul(&(mixing + Tensor::eye(dim, (Kind::Float, Device::Cpu)))) + shift
}

/// Measures.
///
/// # Errors
/// Those of the measure.
pub fn run(args: &Args) -> Result<Value> {
    let real = features("bench/real", args.rows, args.dim, 0.);
    let fake = features("bench/fake", args.rows, args.dim, 0.05);
    let gaussian = |rows: &Tensor| Moments::of(rows).map(|it| (it.mean().shallow_clone(), it.covariance()));
    let (a, b) = (gaussian(&real)?, gaussian(&fake)?);
    let measure = || -> Result<Vec<f64>> {
        if args.what == "fid" {
            return Ok(vec![Fid::of_gaussians((&a.0, &a.1), (&b.0, &b.1))?.value]);
        }
        let prdc = Prdc::of(&real, &fake, &[5])?;
        Ok(prdc.iter().flat_map(|it| [it.precision, it.recall, it.density, it.coverage]).collect())
    };
    let values = measure()?;
    if let Some(path) = &args.dump {
        let tensors = [("real", real.shallow_clone()), ("fake", fake.shallow_clone())];
        let result = ("result", Tensor::from_slice(&values));
        let named = tensors.into_iter().chain([result]).map(|(name, tensor)| (name.to_string(), tensor));
        dump(path, &named.collect::<Vec<_>>())?;
    }
    let mut line = args.repeats.measure(args.rows, || measure().map(drop))?;
    line["bench"] = args.what.clone().into();
    line["side"] = "equipoise".into();
    line["case"] = json!({ "rows": args.rows, "dim": args.dim });
    line["values"] = json!(values);
    Ok(line)
}
