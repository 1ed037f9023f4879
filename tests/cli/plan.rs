//! Plans: exact counts, stages, space.

use crate::util::{Dir, RECIPE, images};
use serde_json::Value;

/// The quickstart without its committed weights, which another test would have to carry along.
fn quickstart(dir: &Dir) {
    dir.write("my.toml", &dir.equipoise(&["init", "quickstart"]).ok());
    dir.write("weights.safetensors", "");
}

const WEIGHTS: [&str; 4] = [
    "--set",
    "diffusion.weights=weights.safetensors",
    "--set",
    "classifiers.judge.weights=weights.safetensors",
];

#[test]
fn the_quickstart_brings_every_class_to_400() {
    let dir = Dir::new();
    quickstart(&dir);
    let args = [&["plan", "my.toml", "--output", "json"][..], &WEIGHTS].concat();
    let plan: Value = serde_json::from_str(&dir.equipoise(&args).ok()).unwrap();
    let sets = plan["sets"].as_array().unwrap();
    assert_eq!(sets.len(), 2);
    for set in sets {
        assert_eq!(set["images"], 1788);
        let classes = set["classes"].as_array().unwrap();
        let column = |key: &str| classes.iter().map(|row| row[key].as_u64().unwrap()).collect::<Vec<_>>();
        assert_eq!(column("real"), [92, 1198, 33, 154, 55, 430, 20, 258, 718, 2000]);
        assert_eq!(column("synthetic"), [308, 0, 367, 246, 345, 0, 380, 142, 0, 0]);
    }
    let split =
        |name: &str| plan["splits"].as_array().unwrap().iter().find(|split| split["name"] == name).unwrap();
    assert_eq!((&split("train")["images"], &split("extra")["images"]), (&4958.into(), &1788.into()));
    let stages: Vec<&str> =
        plan["stages"].as_array().unwrap().iter().map(|stage| stage["name"].as_str().unwrap()).collect();
    let expected =
        ["prepare.train", "train.g", "generate.feedback.k1", "train.feedback.k1.s0", "evaluate", "report"];
    let positions = expected.map(|name| {
        stages.iter().position(|stage| *stage == name).unwrap_or_else(|| panic!("{name}: {stages:?}"))
    });
    assert!(positions.is_sorted(), "{stages:?}");
    assert!(plan["bytes"].as_u64().unwrap() > 4 * 1788 * 28 * 28);
}

#[test]
fn a_plan_reads_well() {
    let dir = Dir::new();
    images(&dir);
    dir.write("my.toml", RECIPE);
    let text = dir.equipoise(&["plan", "my.toml"]).ok();
    assert!(text.contains("set plain, seeds 0: 91 images in 2 shards"), "{text}");
    assert!(text.lines().any(|line| line.split_whitespace().eq(["dog", "2", "0", "48"])), "{text}");
    assert!(!text.contains('\x1b'), "colours are for terminals");
    assert!(!dir.path().join("runs").exists(), "nothing may be created");
}

#[test]
fn a_plan_that_does_not_fit_ends_with_73() {
    let dir = Dir::new();
    images(&dir);
    dir.write("my.toml", RECIPE);
    for command in ["plan", "run"] {
        // Ten to the fifteenth images: no disk holds them.
        let ran = dir.equipoise(&[command, "my.toml", "--set", "generate.plan.n=1_000_000_000_000_000"]);
        // `run` may miss its step binaries before it asks for space.
        assert!(
            ran.code == 73 || (command == "run" && ran.code == 78),
            "{command}: {} {}",
            ran.code,
            ran.err
        );
        assert!(ran.code == 78 || ran.err.contains("the plan needs"), "{}", ran.err);
    }
}

#[test]
fn missing_images_are_named() {
    let dir = Dir::new();
    dir.write("my.toml", RECIPE);
    let message = dir.equipoise(&["plan", "my.toml"]).fails(74);
    assert!(message.contains("images/train"), "{message}");
}

#[test]
fn missing_weights_are_named_with_their_line() {
    let dir = Dir::new();
    images(&dir);
    dir.write(
        "my.toml",
        &RECIPE.replace("[classifiers.judge]", "[classifiers.judge]\nweights = \"no.safetensors\""),
    );
    let message = dir.equipoise(&["plan", "my.toml"]).fails(78);
    assert!(message.starts_with("error: my.toml:15:11: classifiers.judge.weights: "), "{message}");
    assert!(message.contains("no.safetensors"), "{message}");
}
