//! Timed loops over the product's own code, to set beside `benches/peers`, and NCCL on a GPU.
//!
//! Every command prints one JSON line at its end; `cargo xtask bench` and `benches/gpu/run.sh` collect them.

mod checkpoint;
mod decode;
mod distances;
mod dump;
mod end_to_end;
mod guide;
mod latent;
mod nccl;
mod noise;
mod parts;
mod photos;
mod planning;
mod sampling;
mod shards;
mod step;
mod timing;
mod training;

use clap::{Parser, Subcommand};
use equipoise_base::{ExitCode, Result};
use equipoise_nn::runtime::{self, DeviceChoice, RuntimeConfig};

#[derive(Debug, Parser)]
#[command(name = "equipoise-bench", about = "Timed loops to set beside benches/peers")]
struct Cli {
    /// cpu or cuda.
    #[arg(long, global = true, default_value = "cuda", value_parser = ["cpu", "cuda"])]
    device: String,
    /// Threads of an operator on a CPU.
    #[arg(long, global = true, default_value_t = 1)]
    threads: usize,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Training steps of a classifier on images that are on the device already.
    Training(training::Args),
    /// Images of the committed generator, by DDIM with classifier-free guidance.
    Sampling(sampling::Args),
    /// Training steps fed by the loader.
    EndToEnd(end_to_end::Args),
    /// Images of a latent diffusion out of a Hugging Face folder.
    Latent(latent::Args),
    /// Photos to training images on one core.
    Decode(decode::Args),
    /// A shard of images from memory to disk.
    Shards(shards::Args),
    /// Checkpoints of a ResNet-50.
    Checkpoint(checkpoint::Args),
    /// PRDC or FID of random features.
    Distances(distances::Args),
    /// Planning a million images for 1,024 ranks.
    Planning(planning::Args),
    /// A group of one rank: load the library, make an id, reduce, ask for errors, leave.
    Nccl,
}

fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(line) => {
            println!("{line}");
            ExitCode::Done.into()
        }
        Err(error) => {
            eprintln!("error: {error}");
            error.code().into()
        }
    }
}

fn run(cli: &Cli) -> Result<serde_json::Value> {
    let device = if cli.device == "cpu" { DeviceChoice::Cpu } else { DeviceChoice::Cuda };
    runtime::init(&RuntimeConfig { device, threads: cli.threads, ..RuntimeConfig::default() })?;
    let mut line = match &cli.what {
        What::Training(args) => training::run(args),
        What::Sampling(args) => sampling::run(args),
        What::EndToEnd(args) => end_to_end::run(args),
        What::Latent(args) => latent::run(args),
        What::Decode(args) => decode::run(args),
        What::Shards(args) => shards::run(args),
        What::Checkpoint(args) => checkpoint::run(args),
        What::Distances(args) => distances::run(args),
        What::Planning(args) => planning::run(args),
        What::Nccl => nccl::run(),
    }?;
    line["device"] = cli.device.clone().into();
    line["threads"] = cli.threads.into();
    line["nondeterministic"] = runtime::nondeterministic_operators()?.into();
    Ok(line)
}
