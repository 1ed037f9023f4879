//! Classes in contexts, as in NICO++: sets balanced by group, prompts that name the context, the worst group in the
//! results; through the public command, on images that the test makes.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "../support/mod.rs"]
mod support;

use equipoise_testkit::{Process, TempRun};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use support::{PATIENCE, assert_same, equipoise, finish, results, run_recipe};

/// Training images by class and context: no cat on rock, and more dogs on grass than any group is brought to.
const COUNTS: [[u64; 3]; 3] = [[6, 2, 0], [4, 9, 3], [5, 3, 4]];

/// What every group is brought to.
const EACH: u64 = 7;

/// What that takes.
fn planned() -> Vec<u64> {
    COUNTS.iter().flatten().map(|&count| EACH.saturating_sub(count)).collect()
}

/// A data set of squares and stripes: a metadata file for training and validation, a list for the test.
fn data(root: &Path) -> PathBuf {
    let root = root.join("data");
    std::fs::create_dir_all(&root).unwrap();
    let (mut metadata, mut list) = (String::from("id,filename,y,a,split\n"), String::new());
    let mut id = 0;
    for (class, contexts) in COUNTS.iter().enumerate() {
        for (context, &count) in contexts.iter().enumerate() {
            // The last group has no test image.
            let tested = if (class, context) == (2, 2) { 0 } else { 3 };
            for (split, count) in [(0, count), (1, 2), (2, tested)] {
                for _ in 0..count {
                    let name = format!("{class}-{context} {id}.png");
                    picture(&root.join(&name), class as u32, context as u32, id);
                    match split {
                        2 => list += &format!("{name} {class} {context}\n"),
                        _ => metadata += &format!("{id},{name},{class},{context},{split}\n"),
                    }
                    id += 1;
                }
            }
        }
    }
    std::fs::write(root.join("metadata.csv"), metadata).unwrap();
    std::fs::write(root.join("test.txt"), list).unwrap();
    root
}

fn picture(path: &Path, class: u32, context: u32, id: u32) {
    let pixel = |x: u32, y: u32| {
        let inside = x.abs_diff(12) < 3 + 2 * class && y.abs_diff(12) < 3 + 2 * class;
        let ground = if (x + y * context) % 4 < 2 { 60 + 40 * context } else { 30 };
        let value = if inside { 200 + class * 20 } else { ground };
        image::Luma([(value + id % 7) as u8])
    };
    image::GrayImage::from_fn(24, 24, pixel).save(path).unwrap();
}

fn run(root: &Path, path: &Path, ranks: usize, sets: &[&str]) -> Command {
    let data = format!("data.root={}", root.display());
    let sets: Vec<&str> = [data.as_str()].iter().chain(sets).copied().collect();
    run_recipe("tiny-groups", path, ranks, &sets)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Label, group and index of every image of a set, from its export.
fn exported(temp: &TempRun, set: &str) -> Vec<(u64, i64, u64)> {
    let out = temp.join(format!("export-{set}"));
    let (run, to) = (temp.join("run"), out.to_str().unwrap().to_string());
    finish(equipoise(&["shards", "export", "webdataset", run.to_str().unwrap(), &to, "--set", set]));
    let mut images = Vec::new();
    for archive in std::fs::read_dir(&out).unwrap().flatten().map(|entry| entry.path()) {
        if archive.extension().is_some_and(|extension| extension == "tar") {
            for about in members(&std::fs::read(archive).unwrap(), ".json") {
                let about: Value = serde_json::from_slice(&about).unwrap();
                let index = about["index"].as_u64().unwrap();
                images.push((about["label"].as_u64().unwrap(), about["group"].as_i64().unwrap(), index));
            }
        }
    }
    images.sort_unstable();
    images
}

/// The files of a tar archive whose names end so.
fn members(tar: &[u8], ending: &str) -> Vec<Vec<u8>> {
    let (mut at, mut found) = (0, Vec::new());
    while at + 512 <= tar.len() && tar[at] != 0 {
        let text = |field: &[u8]| String::from_utf8_lossy(field).trim_matches(['\0', ' ']).to_string();
        let size = usize::from_str_radix(&text(&tar[at + 124..at + 136]), 8).unwrap();
        let content = &tar[at + 512..at + 512 + size];
        if text(&tar[at..at + 100]).ends_with(ending) {
            found.push(content.to_vec());
        }
        at += 512 + size.div_ceil(512) * 512;
    }
    found
}

/// Every group has exactly what it lacked, and images of a class are numbered through its groups.
fn assert_balanced(temp: &TempRun, set: &str) {
    let images = exported(temp, set);
    let mut by_group = BTreeMap::new();
    for &(label, group, _) in &images {
        assert_eq!(group / 3, label as i64);
        *by_group.entry(group as usize).or_insert(0u64) += 1;
    }
    let wanted: BTreeMap<usize, u64> =
        planned().into_iter().enumerate().filter(|&(_, planned)| planned > 0).collect();
    assert_eq!(by_group, wanted);
    let of_cats: Vec<(i64, u64)> =
        images.iter().filter(|image| image.0 == 0).map(|image| (image.1, image.2)).collect();
    assert!(
        of_cats.iter().map(|cat| cat.1).eq(0..13) && of_cats.is_sorted_by_key(|cat| cat.1),
        "{of_cats:?}"
    );
    assert!(of_cats.iter().map(|cat| cat.0).is_sorted(), "{of_cats:?}");
}

#[test]
fn a_pixel_generator_fills_every_group_and_the_worst_one_is_reported() {
    let temps = [1, 2].map(|ranks| {
        let temp = TempRun::default();
        let root = data(temp.path());
        finish(run(&root, &temp.join("run"), ranks, &[]));
        temp
    });
    let [one, two] = temps.each_ref().map(|temp| results(&temp.join("run")));
    assert_same(&one, &two, "2 ranks");
    let temp = &temps[0];
    assert_balanced(temp, "guided.k0");
    finish(equipoise(&["shards", "verify", temp.join("run").to_str().unwrap(), "--deep"]));
    finish(equipoise(&["shards", "regenerate", temp.join("run").to_str().unwrap(), "--sample", "3"]));

    let evaluation = json(&temp.join("run/stages/evaluate/results.json"));
    assert_eq!(evaluation["groups"][7], "sea lion/grass");
    let counts: Vec<u64> = COUNTS.iter().flatten().copied().collect();
    assert_eq!(evaluation["train_group_counts"], serde_json::json!(counts));
    for run in evaluation["runs"].as_array().unwrap() {
        for (split, tested) in [("val", 9), ("test", 8)] {
            let scores = &run["scores"][split];
            let groups: Vec<f64> =
                scores["groups"]["per_group"].as_array().unwrap().iter().filter_map(Value::as_f64).collect();
            assert_eq!(groups.len(), tested);
            let worst = groups.iter().copied().fold(1., f64::min);
            let mean = groups.iter().sum::<f64>() / tested as f64;
            assert_eq!(scores["groups"]["worst"].as_f64().unwrap(), worst);
            // Groups have equally many images here, so their mean is the accuracy.
            assert!((scores["groups"]["mean"].as_f64().unwrap() - mean).abs() < 1e-12);
            assert!((scores["all"].as_f64().unwrap() - mean).abs() < 1e-12, "{scores}");
        }
    }
    let report = |file: &str| std::fs::read_to_string(temp.join(format!("run/report.{file}"))).unwrap();
    assert!(report("html").contains("worst group") && report("html").contains("On the worst group"));
    assert!(
        report("csv").contains("erm,,0,val,worst_group,") && report("csv").contains("erm,,0,test,group 4,")
    );
    assert!(report("json").contains("\"worst_group\""));
}

/// Fine-tuning starts from the given weights, all but the head, and they are part of the identity.
#[test]
fn weights_to_start_from_decide_the_result() {
    let temp = TempRun::default();
    let root = data(temp.path());
    let weights = temp.join("weights.safetensors");
    let judge = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/weights/fashion-mnist-judge.safetensors");
    std::fs::copy(judge, &weights).unwrap();
    let from = format!("classifier.init_from={}", weights.display());
    let plan = |recipe: &Command| -> Vec<String> {
        let mut recipe = clone_as_plan(recipe);
        let output = recipe.output().unwrap();
        assert!(!output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
        let stages = plan["stages"].as_array().unwrap().iter();
        stages
            .filter(|s| s["name"] == "train.g")
            .map(|s| s["identity"].as_str().unwrap().to_string())
            .collect()
    };
    let command = run(&root, &temp.join("run"), 1, &[&from]);
    let (here, before) = (plan(&run(&root, &temp.join("run"), 1, &[])), plan(&command));
    assert_eq!((here.len(), &here), (1, &before), "the place of the weights is no part of the identity");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    assert_ne!(plan(&command), before, "their content is");
    std::fs::remove_file(&weights).unwrap();
    let mut process = Process::spawn(command);
    assert_eq!(process.wait(PATIENCE).code(), Some(78));
    let output = process.output();
    assert!(output.contains("init_from") && output.contains("weights.safetensors"), "{output}");
}

/// `equipoise plan --output json` with the arguments of a run.
fn clone_as_plan(run: &Command) -> Command {
    let mut arguments: Vec<&str> = run.get_args().map(|argument| argument.to_str().unwrap()).collect();
    arguments[0] = "plan";
    arguments.extend(["--output", "json"]);
    let mut command = equipoise(&arguments);
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    command
}

/// A latent generator is told class and context, and conditioned on images of the class in any context.
#[test]
fn unclip_is_told_the_context_and_shown_the_class() {
    let condition = "generate.condition={ prompt = '{class} in {context}', negative_prompt = '', noise_level = 0, \
                     dropout = { p = 0.4, target = 'class_label', rescale = 'none' }, sliced_decode = false }";
    let temps = [1, 2].map(|ranks| {
        let temp = TempRun::default();
        let root = data(temp.path());
        let folder = temp.join("tiny");
        finish(equipoise(&["weights", "make-tiny", folder.to_str().unwrap()]));
        let key = format!("diffusion.folder={}", folder.display());
        let guided = "sets.guided.cfg_scale=3.0";
        let text = "sets.plain.condition.image=none";
        finish(run(&root, &temp.join("run"), ranks, &[&key, condition, guided, text]));
        temp
    });
    let [one, two] = temps.each_ref().map(|temp| results(&temp.join("run")));
    assert_same(&one, &two, "2 ranks");
    assert_balanced(&temps[0], "guided.k0");
    let shard = |path: &str| {
        let path = PathBuf::from("sets/guided.k0").join(path);
        String::from_utf8_lossy(one.get(&path).unwrap_or_else(|| panic!("{path:?} of {:?}", one.keys())))
            .to_string()
    };
    // Cats: 1 in snow, 5 in grass (two shards), 7 on rock, where there is no real one.
    assert!(shard("cat/cat-00000-of-00013.h5").contains("cat in snow"));
    assert!(shard("cat/cat-00001-of-00013.h5").contains("cat in grass"));
    assert!(shard("cat/cat-00006-of-00013.h5").contains("cat in rock"));
    assert!(shard("sea-lion/sea-lion-00000-of-00009.h5").contains("sea lion in snow"));
    let sets = |set: &str| one.iter().filter(|(path, _)| path.starts_with(format!("sets/{set}"))).count();
    assert_eq!(sets("guided.k0"), sets("plain.k0"));
    finish(equipoise(&["shards", "regenerate", temps[0].join("run").to_str().unwrap(), "--sample", "3"]));
}

#[test]
fn what_does_not_fit_is_named() {
    let temp = TempRun::default();
    let root = data(temp.path());
    let fails = |sets: &[&str], code: i32, words: &[&str]| {
        let output = clone_as_plan(&run(&root, &temp.join("run"), 1, sets)).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert!(words.iter().all(|word| text.contains(word)), "{words:?}: {text}");
    };
    fails(&["data.contexts=['snow', 'grass']"], 65, &["data.splits.train", "context 2 of 2 does not exist"]);
    fails(
        &["data.splits.train.source={ format = 'list', file = 'test.txt', root = '.' }"],
        78,
        &["data.splits.train", "group_list"],
    );
    fails(&["data.splits.train.source.file=none.csv"], 74, &["none.csv"]);
    fails(&["data.splits.train.source.split=3"], 65, &["metadata.csv", "split 3"]);
    fails(&["arms.erm.set_images=3"], 78, &["arms.erm.set_images"]);
    let condition = "generate.condition={ prompt = '{class} in {context}', negative_prompt = '', noise_level = 0, \
                     dropout = { p = 0.0, target = 'class_label', rescale = 'none' }, sliced_decode = false }";
    let plan = "generate.plan={ kind = 'balance_to', n = 7 }";
    fails(&[condition, plan, "diffusion.folder=."], 78, &["{context} needs plan.kind"]);
}
