//! Images that no seed of generation makes usable: left out and listed, then completed from further sub-seeds.

use crate::support::{PATIENCE, equipoise, finish};
use equipoise_testkit::{Process, TempRun};
use serde_json::Value;
use std::path::Path;

/// Two by two pixels, grey, all different.
const PNG: [u8; 71] =
    *b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x02\0\0\0\x02\x08\0\0\0\0\x57\xdd\x52\xf8\0\0\0\x0eIDAT\
    \x78\x9c\x63\x10\x68\x60\x38\xe0\0\0\x04\x16\x01\x91\xeb\xf2\x1f\x4e\0\0\0\0IEND\xae\x42\x60\x82";

/// One denoising step, so that an image is the sign of its noise above the estimate.
const RECIPE: &str = r#"
schema = 1
[run]
name = "completion"
device = "cpu"
[data]
name = "four pixels"
root = "."
size = [2, 2]
channels = 1
classes = ["a", "b"]
[data.splits.train]
source = { format = "folder", path = "images" }
[classifier]
arch = { kind = "cifar_resnet", depth = 8, width = 4, stem_stride = 1, normalized_head = false }
augment = []
steps = 1
global_batch = 2
micro_batch = 2
[classifiers.g]
[diffusion]
prediction = "epsilon"
[diffusion.model]
model_channels = 32
channel_mult = [1.0]
attention_resolutions = []
patch = 1
[diffusion.train]
split = "train"
steps = 1
global_batch = 2
micro_batch = 2
# The output convolution starts at 0 and stays there.
optimizer = { kind = "sgd", lr = 0.0, momentum = 0.0, weight_decay = 0.0, nesterov = false }
schedule = { warmup = 0.0, decay = { kind = "constant" }, per_epoch = false }
"#;

const SET: &str = r#"
[generate]
batch = 8
plan = { kind = "add", n = 16 }
cfg_scale = 1.0
sampler = { kind = "ddim", steps = 1, eta = 0.0, timestep_spacing = "trailing", steps_offset = 0, set_alpha_to_one = true, clip_sample = true, clip_sample_range = 1.0 }
[sets.black]
[metrics]
extractor = "g"
judge = "g"
reference = "train"
"#;

/// Writes `from` with another output bias: six in ten images become black.
fn bias(from: &Path, to: &Path) {
    let mut bytes = std::fs::read(from).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let tensors: Value = serde_json::from_slice(&bytes[8..header]).unwrap();
    let offsets = &tensors["out.2.bias"]["data_offsets"];
    let at = header + offsets[0].as_u64().unwrap() as usize;
    bytes[at..at + 4].copy_from_slice(&1.2f32.to_le_bytes());
    std::fs::write(to, bytes).unwrap();
}

fn failed(run: &Path) -> u64 {
    let index = std::fs::read(run.join("sets/black.k0/index.json")).unwrap();
    let index: Value = serde_json::from_slice(&index).unwrap();
    index["shards"]
        .as_array()
        .unwrap()
        .iter()
        .map(|shard| shard["failed"].as_array().unwrap().len() as u64)
        .sum()
}

#[test]
fn images_that_every_seed_of_generation_fails_are_completed() {
    let folder = TempRun::default();
    for class in ["a", "b"] {
        std::fs::create_dir_all(folder.join("images").join(class)).unwrap();
        for image in ["0.png", "1.png"] {
            std::fs::write(folder.join("images").join(class).join(image), PNG).unwrap();
        }
    }
    let (pretrain, generate) = (folder.join("pretrain.toml"), folder.join("generate.toml"));
    std::fs::write(&pretrain, RECIPE).unwrap();
    let weights = RECIPE.replace("prediction =", "weights = \"black.safetensors\"\nprediction =");
    std::fs::write(&generate, format!("{weights}{SET}")).unwrap();
    let text = |path: &Path| path.to_str().unwrap().to_string();
    let (trained, run) = (folder.join("trained"), folder.join("run"));
    finish(equipoise(&["run", &text(&pretrain), "--run", &text(&trained)]));
    bias(&trained.join("stages/diffusion/model.safetensors"), &folder.join("black.safetensors"));

    let mut process = Process::spawn(equipoise(&["run", &text(&generate), "--run", &text(&run)]));
    assert_eq!(process.wait(PATIENCE).code(), Some(1), "{}", process.output());
    assert!(process.output().contains("--failed"), "{}", process.output());
    let missing = failed(&run);
    assert!((1..16).contains(&missing), "{missing} of 32 failed");
    finish(equipoise(&["shards", "regenerate", &text(&run), "--failed"]));
    assert_eq!(failed(&run), 0);
    // What was completed is a function of its identity too.
    finish(equipoise(&["shards", "regenerate", &text(&run), "--sample", "32"]));
    finish(equipoise(&["shards", "verify", "--deep", &text(&run)]));
}
