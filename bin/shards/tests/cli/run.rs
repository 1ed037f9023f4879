//! A run directory with one set, as generation would leave it: `coat` in two shards, `bag` in one.

use equipoise_base::{Identity, hash::xxh3};
use equipoise_shards::{Codec, Flags, ImageShard, Row, ShardMeta};
use equipoise_stages::{ShardEntry, ShardIndex};
use equipoise_testkit::TempRun;
use std::path::{Path, PathBuf};
use std::process::Output;

pub const SHAPE: [usize; 3] = [6, 5, 1];
pub const COAT: [&str; 2] = ["coat/coat-00000-of-00005.h5", "coat/coat-00003-of-00005.h5"];
pub const BAG: &str = "bag/bag-00000-of-00003.h5";

/// A run directory that lives as long as the test.
pub struct Run {
    dir: TempRun,
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Samples of an image: no two are equal.
pub fn pixels(class: u32, index: u64) -> Vec<u8> {
    let samples = SHAPE.iter().product::<usize>();
    (0..samples).map(|at| (at * 3 + index as usize * 17 + class as usize * 50) as u8).collect()
}

/// A shard of `class` with the images `first..first + planned`, those of `failed` missing.
fn shard(class: u32, name: &str, first: u64, planned: u64, failed: &[u64], codec: Codec) -> Vec<u8> {
    let mut shard = ImageShard::new(ShardMeta {
        identity: identity().to_string(),
        class,
        class_name: name.into(),
        prompt: String::new(),
        first,
        planned,
        shape: SHAPE,
        codec,
        resize_filter: String::new(),
        criterion: "entropy".into(),
        guided_steps: 2,
        reproducible: true,
        tool_version: "0.1.0".into(),
    })
    .unwrap();
    for index in first..first + planned {
        if failed.contains(&index) {
            shard.push_failed(index).unwrap();
            continue;
        }
        let [height, width, channels] = SHAPE;
        let image = equipoise_shards::Image::new(height, width, channels, pixels(class, index)).unwrap();
        let row = Row { index, group: -1, seed: index << 60 | 1, condition: None, flags: Flags::NONE };
        shard.push(row, &codec.encode(&image).unwrap(), &[0.5, index as f32]).unwrap();
    }
    shard.write().unwrap().to_vec()
}

pub fn identity() -> Identity {
    Identity::of("test")
}

impl Run {
    pub fn new() -> Self {
        Self::with(&[], Codec::Raw)
    }

    /// Coats of these indices could not be made.
    pub fn with(failed: &[u64], codec: Codec) -> Self {
        let run = Self { dir: TempRun::default() };
        run.add_set("plain.k0", failed, codec);
        run
    }

    /// One more set of the same images.
    pub fn add_set(&self, set: &str, failed: &[u64], codec: Codec) {
        let planned = [(4, "coat", COAT[0], 0, 3), (4, "coat", COAT[1], 3, 2), (8, "bag", BAG, 0, 3)];
        let mut shards = Vec::new();
        for (class, name, path, first, count) in planned {
            let failed: Vec<u64> = failed
                .iter()
                .copied()
                .filter(|index| class == 4 && (first..first + count).contains(index))
                .collect();
            let bytes = shard(class, name, first, count, &failed, codec);
            self.dir.write(format!("sets/{set}/{path}"), &bytes);
            shards.push(ShardEntry {
                path: path.into(),
                class,
                images: count - failed.len() as u64,
                failed,
                retried: 0,
                bytes: bytes.len() as u64,
                xxh3: format!("{:016x}", xxh3(&bytes)),
            });
        }
        let index = ShardIndex { identity: identity(), shards };
        self.dir.write(format!("sets/{set}/index.json"), serde_json::to_vec_pretty(&index).unwrap());
    }

    pub fn path(&self) -> &str {
        self.dir.path().to_str().unwrap()
    }

    pub fn join(&self, relative: &str) -> PathBuf {
        self.dir.join(relative)
    }

    pub fn set(&self) -> PathBuf {
        self.join("sets/plain.k0")
    }

    pub fn shard(&self, path: &str) -> PathBuf {
        self.set().join(path)
    }

    pub fn change(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = std::fs::read(path).unwrap();
        change(&mut bytes);
        std::fs::write(path, bytes).unwrap();
    }

    pub fn change_index(&self, change: impl FnOnce(&mut serde_json::Value)) {
        self.change(&self.set().join("index.json"), |bytes| {
            let mut index = serde_json::from_slice(bytes).unwrap();
            change(&mut index);
            *bytes = serde_json::to_vec(&index).unwrap();
        });
    }
}
