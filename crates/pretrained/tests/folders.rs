//! Folders as they are found: whole, sharded, locked, damaged.

#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

use equipoise_base::ExitCode;
use equipoise_pretrained::{Component, Folder, Lock};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;
use std::path::Path;
use tempfile::TempDir;

/// Bytes of a safetensors file of float32 vectors.
fn tensors(shapes: &[(&str, usize)]) -> Vec<u8> {
    let data: Vec<Vec<u8>> = shapes.iter().map(|(_, count)| vec![7; count * 4]).collect();
    let views = shapes
        .iter()
        .zip(&data)
        .map(|((name, count), bytes)| (*name, TensorView::new(Dtype::F32, vec![*count], bytes).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

fn put(dir: &Path, name: &str, bytes: impl AsRef<[u8]>) {
    let path = dir.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// A pipeline of a model, a scheduler and a switched-off safety checker.
fn pipeline() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let index = json!({
        "_class_name": "StableDiffusionPipeline",
        "requires_safety_checker": false,
        "safety_checker": [null, null],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", "UNet2DConditionModel"],
    });
    put(dir.path(), "model_index.json", index.to_string());
    put(dir.path(), "scheduler/scheduler_config.json", r#"{"steps_offset": 1}"#);
    put(dir.path(), "unet/config.json", r#"{"_class_name": "UNet2DConditionModel", "in_channels": 4}"#);
    put(dir.path(), "unet/diffusion_pytorch_model.safetensors", tensors(&[("a", 3), ("b.c", 5)]));
    dir
}

/// A model in two shards.
fn sharded() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "config.json", r#"{"architectures": ["CLIPTextModel"]}"#);
    let map = json!({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}});
    put(dir.path(), "model.safetensors.index.json", map.to_string());
    put(dir.path(), "model-1.safetensors", tensors(&[("a", 3)]));
    put(dir.path(), "model-2.safetensors", tensors(&[("b", 4)]));
    dir
}

/// The error of reading the weights, which names `file`.
fn refusal(component: &Component, file: &str) -> String {
    let error = component.weights().unwrap_err();
    assert_eq!(error.code(), ExitCode::BadData, "{error}");
    assert!(error.message().contains(file), "{error}");
    error.message().to_string()
}

#[test]
fn a_pipeline_lists_its_components() {
    let dir = pipeline();
    let folder = Folder::open(dir.path()).unwrap();
    assert_eq!(folder.pipeline(), "StableDiffusionPipeline");
    let classes: Vec<_> = folder.classes().collect();
    assert_eq!(classes, [("scheduler", "DDIMScheduler"), ("unet", "UNet2DConditionModel")]);
    let unet = folder.component("unet").unwrap();
    let config: serde_json::Value = unet.config().unwrap();
    assert_eq!((config["in_channels"].as_i64(), unet.name()), (Some(4), "unet"));
    let weights = unet.weights().unwrap();
    assert_eq!((weights.count(), weights.byte_size()), (8, 32));
    assert_eq!(weights.tensors()["b.c"].shape, [5]);
    assert_eq!(weights.bytes(&weights.tensors()["a"]), [7; 12]);
}

#[test]
fn missing_components_are_named() {
    let dir = pipeline();
    let folder = Folder::open(dir.path()).unwrap();
    let error = folder.component("vae").unwrap_err();
    assert!(error.message().contains("no component 'vae'; there are: scheduler, unet"), "{error}");
    std::fs::remove_dir_all(dir.path().join("unet")).unwrap();
    let error = folder.component("unet").unwrap_err();
    assert!(error.message().contains("unet: missing: model_index.json names"), "{error}");
    assert_eq!(error.code(), ExitCode::BadData);
    let error = Folder::open(&dir.path().join("scheduler")).unwrap_err();
    assert!(error.message().contains("no model_index.json"), "{error}");
}

#[test]
fn shards_make_one_model() {
    let dir = sharded();
    let component = Component::open(dir.path()).unwrap();
    assert_eq!(component.class().as_deref(), Some("CLIPTextModel"));
    let weights = component.weights().unwrap();
    assert_eq!((weights.tensors().len(), weights.count()), (2, 7));
    assert!(weights.file_of(&weights.tensors()["b"]).ends_with("model-2.safetensors"));
    assert!(weights.source().ends_with("model.safetensors.index.json"));
}

#[test]
fn damaged_shards_are_named() {
    let dir = sharded();
    let component = Component::open(dir.path()).unwrap();
    let whole = tensors(&[("b", 4)]);
    put(dir.path(), "model-2.safetensors", &whole[..whole.len() - 1]);
    assert!(refusal(&component, "model-2.safetensors").contains("truncated"));
    put(dir.path(), "model-2.safetensors", tensors(&[("c", 4)]));
    assert!(refusal(&component, "model.safetensors.index.json").contains("tensor 'c'"));
    put(dir.path(), "model-2.safetensors", tensors(&[]));
    assert!(refusal(&component, "model-2.safetensors").contains("tensor 'b' is missing"));
    std::fs::remove_file(dir.path().join("model-2.safetensors")).unwrap();
    assert!(refusal(&component, "model-2.safetensors").contains("missing"));
    put(dir.path(), "model.safetensors.index.json", r#"{"weight_map": {"a": "../a.safetensors"}}"#);
    assert!(refusal(&component, "index.json").contains("'../a.safetensors' of tensor 'a' is no file name"));
    put(dir.path(), "model.safetensors.index.json", "{");
    refusal(&component, "model.safetensors.index.json");
}

#[test]
fn every_cut_of_a_file_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let whole = tensors(&[("a", 2)]);
    let component = Component::open(dir.path()).unwrap();
    for length in 0..whole.len() {
        put(dir.path(), "model.safetensors", &whole[..length]);
        refusal(&component, "model.safetensors");
    }
    std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    put(dir.path(), "pytorch_model.bin", "");
    assert!(refusal(&component, "no safetensors weights").contains("pickle"));
}

#[test]
fn a_lock_is_checked_on_load() {
    let dir = pipeline();
    let lock = Lock::of(&Folder::open(dir.path()).unwrap()).unwrap();
    let names: Vec<&str> = lock.files().keys().map(String::as_str).collect();
    let expected = [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ];
    assert_eq!(names, expected);
    let identity = lock.identity();
    assert_eq!(Folder::open(dir.path()).unwrap().records().unwrap().identity(), identity);
    let part = |dir: &Path| Folder::open(dir).unwrap().identity_of(&["unet"]).unwrap();
    let unlocked = part(dir.path());
    put(dir.path(), "weights.lock.json", lock.to_json().unwrap());
    let folder = Folder::open(dir.path()).unwrap();
    assert!(folder.lock().is_some());
    assert_eq!(folder.records().unwrap().identity(), identity);
    assert!(part(dir.path()) == unlocked && unlocked != identity);
    folder.component("unet").unwrap().weights().unwrap();

    let mut bytes = tensors(&[("a", 3), ("b.c", 5)]);
    *bytes.last_mut().unwrap() = 8;
    put(dir.path(), "unet/diffusion_pytorch_model.safetensors", bytes);
    let message = refusal(&folder.component("unet").unwrap(), "diffusion_pytorch_model.safetensors");
    assert!(message.contains("SHA-256") && message.contains("weights.lock.json"), "{message}");
    assert_ne!(Lock::of(&folder).unwrap().identity(), identity);

    put(dir.path(), "unet/config.json", "{}");
    let error = folder.component("unet").unwrap().config::<serde_json::Value>().unwrap_err();
    assert!(error.message().contains("2 bytes, but"), "{error}");
    put(dir.path(), "model_index.json", r#"{"unet": ["diffusers", "UNet2DConditionModel"]}"#);
    assert!(Folder::open(dir.path()).unwrap_err().message().contains("model_index.json"));
}

#[test]
fn a_lock_may_lie_beside_the_folder() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("model");
    put(&dir, "model_index.json", r#"{"unet": ["diffusers", "U"]}"#);
    put(&dir, "unet/config.json", "{}");
    let lock = Lock::of(&Folder::open(&dir).unwrap()).unwrap();
    put(parent.path(), "model.weights.lock.json", lock.to_json().unwrap());
    assert!(Folder::open(&dir).unwrap().lock().is_some());
    put(&dir, "unet/config.json", "[]");
    let component = Folder::open(&dir).unwrap().component("unet").unwrap();
    assert!(component.config::<serde_json::Value>().unwrap_err().message().contains("SHA-256"));
    put(parent.path(), "model.weights.lock.json", r#"{"format": 9, "files": {}}"#);
    assert!(Folder::open(&dir).unwrap_err().message().contains("format 9"));
}

/// SHA-256 of nothing and of "abc", FIPS 180-2.
#[test]
fn hashes_are_those_that_hubs_print() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "abc", "abc");
    let record = equipoise_pretrained::lock::Record::of(&dir.path().join("abc")).unwrap();
    assert_eq!(record.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_eq!(record.bytes, 3);
}
