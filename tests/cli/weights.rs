//! Folders of weights: what is in them, and whether it is what was recorded.

use crate::util::Dir;
use serde_json::{Value, json};

/// A pipeline of one model and a scheduler.
fn pipeline(dir: &Dir) {
    let index = json!({
        "_class_name": "StableDiffusionPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
    });
    dir.write("sd/model_index.json", &index.to_string());
    dir.write("sd/scheduler/scheduler_config.json", "{}");
    dir.write("sd/text_encoder/config.json", "{}");
    dir.write("sd/text_encoder/model.safetensors", &safetensors('x'));
}

/// 1,200 half-precision numbers and one position, all bytes `fill`.
fn safetensors(fill: char) -> String {
    let header = json!({
        "embeddings.position_ids": { "dtype": "I64", "shape": [1], "data_offsets": [2400, 2408] },
        "weight": { "dtype": "F16", "shape": [30, 40], "data_offsets": [0, 2400] },
    });
    // The header's length, little-endian: 256, so that all of the file is text.
    format!("\0\u{1}\0\0\0\0\0\0{:<256}{}", header.to_string(), fill.to_string().repeat(2408))
}

#[test]
fn a_folder_is_listed_locked_and_checked() {
    let dir = Dir::new();
    pipeline(&dir);
    let text = dir.equipoise(&["doctor", "--weights", "sd"]).ok();
    assert!(text.contains("StableDiffusionPipeline, not locked (next: equipoise weights lock sd)"), "{text}");
    assert!(text.contains("CLIPTextModel                      1,200 F16, 1 I64 (2.4 kB)"), "{text}");
    let text = dir.equipoise(&["weights", "lock", "sd"]).ok();
    assert!(text.contains("sd/weights.lock.json: 4 files, identity "), "{text}");
    let out = dir.equipoise(&["doctor", "--weights", "sd", "--output", "json"]).ok();
    let found: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&found["locked"], &found["components"][1]["parameters"]), (&json!(true), &json!(1200)));

    dir.write("sd/text_encoder/model.safetensors", &safetensors('y'));
    let ran = dir.equipoise(&["doctor", "--weights", "sd"]);
    assert_eq!(ran.code, 1);
    assert!(ran.out.contains("FAIL text_encoder") && ran.out.contains("was locked"), "{}", ran.out);
    std::fs::remove_dir_all(dir.path().join("sd/scheduler")).unwrap();
    let ran = dir.equipoise(&["doctor", "--weights", "sd"]);
    assert!(ran.out.contains("FAIL scheduler") && ran.out.contains("missing"), "{}", ran.out);
}

#[test]
fn a_lock_may_lie_beside() {
    let dir = Dir::new();
    pipeline(&dir);
    dir.equipoise(&["weights", "lock", "sd/text_encoder", "--beside"]).ok();
    let text = dir.equipoise(&["doctor", "--weights", "sd/text_encoder"]).ok();
    assert!(text.contains("as locked in sd/text_encoder.weights.lock.json"), "{text}");
}

#[test]
fn what_is_no_folder_of_weights_is_said_so() {
    let dir = Dir::new();
    dir.write("empty/readme", "");
    for args in [&["doctor", "--weights", "empty"][..], &["weights", "lock", "empty"]] {
        assert!(dir.equipoise(args).fails(65).contains("empty: neither model_index.json nor a model"));
    }
    assert!(dir.equipoise(&["doctor", "--weights", "nowhere"]).fails(65).contains("nowhere: no such folder"));
}
