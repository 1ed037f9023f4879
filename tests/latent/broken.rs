//! Folders and settings that are wrong: one line that names what, the right exit code, and everything that was made kept.

use crate::support::{finish, results};
use crate::{copy, failure, run};
use equipoise_testkit::TempRun;
use serde_json::Value;
use std::path::Path;

/// Runs with a folder, each time in a new directory.
struct Broken {
    temp: TempRun,
    folder: std::path::PathBuf,
    runs: usize,
}

impl Broken {
    fn new() -> Self {
        let temp = TempRun::default();
        let folder = copy(&temp);
        Self { temp, folder, runs: 0 }
    }

    /// The run ends with `want`, and says so in one line with these words.
    fn fails(&mut self, more: &[&str], want: i32, words: &[&str]) {
        self.runs += 1;
        let key = format!("diffusion.folder={}", self.folder.display());
        let sets: Vec<&str> = [key.as_str()].iter().chain(more).copied().collect();
        let (code, output) = failure(run(&self.temp.join(format!("run{}", self.runs)), 1, &sets));
        assert_eq!(code, Some(want), "{output}");
        assert!(words.iter().all(|word| output.contains(word)), "{words:?}: {output}");
        assert!(!output.contains("panicked"), "{output}");
        // The step says it, then the front end with the name of the stage.
        let errors: Vec<&str> = output.lines().filter(|line| line.starts_with("error: ")).collect();
        assert!((1..=2).contains(&errors.len()), "{output}");
        assert!(errors.iter().all(|error| error.contains(words[0])), "{words:?}: {errors:?}");
    }

    /// Changes a file for one such run.
    fn with(&mut self, file: &str, change: impl Fn(&[u8]) -> Vec<u8>, words: &[&str]) {
        let path = self.folder.join(file);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, change(&whole)).unwrap();
        self.fails(&[], 65, words);
        std::fs::write(&path, whole).unwrap();
    }

    /// Takes something away for one such run.
    fn without(&mut self, name: &str, words: &[&str]) {
        let (path, aside) = (self.folder.join(name), self.temp.join("aside"));
        std::fs::rename(&path, &aside).unwrap();
        self.fails(&[], 65, words);
        std::fs::rename(&aside, &path).unwrap();
    }
}

fn replaced(from: &str, to: &str) -> impl Fn(&[u8]) -> Vec<u8> {
    move |bytes| {
        let text = std::str::from_utf8(bytes).unwrap();
        assert!(text.contains(from), "{from} is not in {text}");
        text.replace(from, to).into_bytes()
    }
}

#[test]
fn a_setting_that_does_not_fit_is_named() {
    let mut broken = Broken::new();
    broken.fails(&["diffusion.weights=none.safetensors"], 78, &["diffusion.folder"]);
    let profile = "data.splits.train.select.profile.counts=[8, 8, 6, 8, 0, 8, 4, 8, 8, 8]";
    broken.fails(&[profile], 65, &["Coat", "no image"]);
    broken.fails(&["generate.condition.noise_level=1000"], 78, &["noise_level = 1000"]);
}

#[test]
fn a_component_that_is_missing_is_named() {
    let mut broken = Broken::new();
    for name in ["unet", "text_encoder", "image_encoder", "image_normalizer"] {
        broken.without(name, &[name, "missing"]);
    }
    broken.without("tokenizer/merges.txt", &["merges.txt"]);
    broken.without("vae/diffusion_pytorch_model.safetensors", &["vae", "no safetensors weights"]);
    broken.without("model_index.json", &["model_index.json"]);
}

#[test]
fn weights_that_are_cut_or_of_another_shape_are_named() {
    let mut broken = Broken::new();
    for file in [
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "image_encoder/model.safetensors",
    ] {
        broken.with(file, |bytes| bytes[..bytes.len() / 2].to_vec(), &[file, "truncated"]);
    }
    let shape = replaced("    16,\n    32\n  ],\n  \"center", "    16,\n    24\n  ],\n  \"center");
    broken.with("unet/config.json", shape, &["unet/diffusion_pytorch_model.safetensors", "the model wants"]);
    broken.with(
        "text_encoder/config.json",
        replaced("\"hidden_size\": 32", "\"hidden_size\": 64"),
        &["text_encoder/model.safetensors", "the model wants"],
    );
}

/// The lock is what was recorded; the folder may have been replaced since.
#[test]
fn a_hash_that_is_not_the_locked_one_is_named() {
    let mut broken = Broken::new();
    finish(crate::equipoise(&["weights", "lock", broken.folder.to_str().unwrap()]));
    let lock = broken.folder.join("weights.lock.json");
    let whole = std::fs::read_to_string(&lock).unwrap();
    let mut document: Value = serde_json::from_str(&whole).unwrap();
    for (file, digits) in [
        ("unet/diffusion_pytorch_model.safetensors", "0"),
        ("scheduler/scheduler_config.json", "1"),
        ("image_encoder/model.safetensors", "2"),
    ] {
        let right = document["files"][file]["sha256"].take();
        document["files"][file]["sha256"] = digits.repeat(64).into();
        std::fs::write(&lock, document.to_string()).unwrap();
        broken.fails(&[], 65, &[file, "SHA-256", "weights.lock.json", "equipoise doctor --weights"]);
        document["files"][file]["sha256"] = right;
    }
    // With the right hashes again the run that failed goes on.
    std::fs::write(&lock, whole).unwrap();
    let key = format!("diffusion.folder={}", broken.folder.display());
    finish(run(&broken.temp.join("whole"), 1, &[&key]));
}

fn index(run: &Path, set: &str) -> Value {
    let path = run.join(format!("sets/{set}.k0/index.json"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn total(index: &Value, of: impl Fn(&Value) -> u64) -> u64 {
    index["shards"].as_array().unwrap().iter().map(of).sum()
}

/// An update that leaves no number finite: every image is retried and listed, and the set before it is as it would be.
#[test]
fn a_strength_that_makes_nan_ends_with_1() {
    let temp = TempRun::default();
    let sets =
        ["sets.published.feedback.omega=1e38", "sets.published.plan.n=8", "sets.published.feedback.every=1"];
    let (code, output) = failure(run(&temp.join("run"), 1, &sets));
    assert_eq!(code, Some(1), "{output}");
    assert!(output.contains("came out unusable") && output.contains("--failed"), "{output}");
    let (whole, failed) = (index(&temp.join("run"), "unguided"), index(&temp.join("run"), "published"));
    let listed = |shard: &Value| shard["failed"].as_array().unwrap().len() as u64;
    let images = |shard: &Value| shard["images"].as_u64().unwrap();
    // Ten classes of 8 real images at most are filled up to 8: only two have fewer.
    assert_eq!((total(&failed, images), total(&failed, listed)), (0, 6), "{failed}");
    assert_eq!(total(&whole, listed), 0, "{whole}");
    assert!(total(&whole, images) > 0);
}

/// Scales the input of the autoencoder's decoder so far that its activations are beyond float16, but not its weights.
fn overflowing(folder: &Path) {
    let path = folder.join("vae/diffusion_pytorch_model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let tensors: Value = serde_json::from_slice(&bytes[8..header]).unwrap();
    let offsets = &tensors["decoder.conv_in.weight"]["data_offsets"];
    let [from, to] = [0, 1].map(|end| header + offsets[end].as_u64().unwrap() as usize);
    let weights: Vec<f32> =
        bytes[from..to].chunks(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect();
    let largest = weights.iter().fold(0f32, |largest, weight| largest.max(weight.abs()));
    for (four, weight) in bytes[from..to].chunks_mut(4).zip(weights) {
        four.copy_from_slice(&(weight / largest * 60_000.).to_le_bytes());
    }
    std::fs::write(path, bytes).unwrap();
}

/// What float16 cannot hold is made in fp32, by weights that are held in float16, and flagged.
#[test]
fn images_that_overflow_are_made_in_fp32_and_flagged() {
    let temp = TempRun::default();
    let folder = copy(&temp);
    overflowing(&folder);
    let key = format!("diffusion.folder={}", folder.display());
    let runs = [1, 2].map(|ranks| {
        let path = temp.join(format!("run{ranks}"));
        finish(run(&path, ranks, &[&key, "sets.unguided.precision=fp16"]));
        path
    });
    let index = index(&runs[0], "unguided");
    let retried = total(&index, |shard| shard["retried"].as_u64().unwrap());
    assert!(retried > 0, "{index}");
    assert_eq!(total(&index, |shard| shard["failed"].as_array().unwrap().len() as u64), 0, "{index}");
    crate::assert_same(&results(&runs[0]), &results(&runs[1]), "2 ranks");
}
