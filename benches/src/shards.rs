//! A shard of raw images from memory to disk: checksums, HDF5, the commit with its syncs and its reading back.

use crate::timing::Repeats;
use equipoise_base::rng::Key;
use equipoise_base::{Error, Result};
use equipoise_rundir::{RealFs, commit_bytes};
use equipoise_shards::{Codec, Flags, Image, ImageShard, Row, ShardMeta, tool_version};
use serde_json::{Value, json};
use std::path::PathBuf;

/// Shape of the shard.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where it is written.
    #[arg(long)]
    folder: PathBuf,
    /// Images in it.
    #[arg(long, default_value_t = 64)]
    images: u64,
    /// Height and width.
    #[arg(long, default_value_t = 512)]
    size: usize,
    #[command(flatten)]
    repeats: Repeats,
}

/// Measures; each round replaces the file of the one before.
///
/// # Errors
/// 74 if the file cannot be written.
pub fn run(args: &Args) -> Result<Value> {
    let shape = [args.size, args.size, 3];
    let mut stream = Key::new(0, "bench").stream();
    let picture = |_| {
        let pixels = (0..shape.iter().product()).map(|_| stream.below(256) as u8).collect();
        Image::new(args.size, args.size, 3, pixels)
    };
    let images = (0..args.images).map(picture).collect::<Result<Vec<Image>>>()?;
    let path = args.folder.join("shard.h5");
    let round = || {
        let mut file = ImageShard::new(meta(args.images, shape))?;
        for (index, image) in images.iter().enumerate() {
            let row = Row { index: index as u64, group: -1, seed: 7, condition: None, flags: Flags::NONE };
            file.push(row, &Codec::Raw.encode(image)?, &[])?;
        }
        commit_bytes(&RealFs, &path, &file.write()?, None)
    };
    let mut line = args.repeats.measure(args.images as i64, round)?;
    std::fs::remove_file(&path).map_err(|error| Error::io("remove", &path, error))?;
    line["bench"] = "shards".into();
    line["side"] = "equipoise".into();
    line["case"] = json!({ "images": args.images, "size": args.size });
    Ok(line)
}

fn meta(planned: u64, shape: [usize; 3]) -> ShardMeta {
    ShardMeta {
        identity: "bench".into(),
        class: 0,
        class_name: "bag".into(),
        prompt: String::new(),
        first: 0,
        planned,
        shape,
        codec: Codec::Raw,
        resize_filter: String::new(),
        criterion: String::new(),
        guided_steps: 0,
        reproducible: true,
        tool_version: tool_version(),
    }
}
