//! The same bits on any number of ranks, also when it changes between restarts.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "../support/mod.rs"]
mod support;

use equipoise_base::rng::Key;
use equipoise_testkit::{Process, TempRun, figure, wait_until};
use std::collections::BTreeSet;
use std::time::Duration;
use support::{PATIENCE, assert_same, equipoise, finish, results, run, run_recipe};

#[test]
fn one_two_and_three_ranks_give_the_same_files() {
    let reference = TempRun::default();
    finish(run(&reference.join("run"), 1, &[]));
    let reference = results(&reference.join("run"));
    for ranks in [2, 3] {
        let other = TempRun::default();
        let path = other.join("run");
        // A trace changes nothing either.
        finish(run(&path, ranks, &["run.trace=true"]));
        assert_same(&reference, &results(&path), &format!("{ranks} ranks"));
        traced(&path.join("stages/train.g/logs/1/trace.json"), 2, &TRAINING);
        traced(&path.join("stages/generate.feedback.k0/logs/1/trace.json"), ranks, &GENERATION);
    }
}

/// Work that a trace of a training on several ranks shows, and one of a generation.
const TRAINING: [&str; 9] = [
    "load",
    "data wait",
    "forward",
    "backward",
    "reduce bucket",
    "reduce",
    "optimizer",
    "checkpoint handed over",
    "checkpoint",
];
const GENERATION: [&str; 4] = ["sample", "sample step", "encode", "commit"];

/// A trace is one JSON file with spans of all ranks and of every kind.
fn traced(path: &std::path::Path, ranks: usize, kinds: &[&str]) {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let events: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let spans = || events.iter().filter(|event| event["ph"] == "X");
    for kind in kinds {
        let found = spans().any(|span| span["name"] == *kind && span["dur"].as_f64() >= Some(0.));
        assert!(found, "{}: no span '{kind}'", path.display());
    }
    let seen: BTreeSet<u64> = spans().filter_map(|span| span["pid"].as_u64()).collect();
    assert_eq!(seen, (0..ranks as u64).collect(), "{}", path.display());
}

/// Random search ends with the weights of the best draw, which has the seed of the first training.
#[test]
fn a_search_takes_the_best_pair_on_any_number_of_ranks() {
    let search = [
        "arms.ce.steps=60",
        r#"arms.ce.validate={ split = "test", every_steps = 20 }"#,
        "arms.ce.search={ draws = 3, lr = [0.001, 0.2], global_batch = [16, 64] }",
    ];
    let runs = [1, 2].map(|ranks| {
        let run = TempRun::default();
        finish(run_recipe("train", &run.join("run"), ranks, &search));
        run
    });
    let made = [
        "train.ce.d0/model.safetensors",
        "train.ce.d1/model.safetensors",
        "train.ce.d2/model.safetensors",
        "train.ce.s0/model.safetensors",
        "train.ce.s0/search.json",
        "evaluate/results.json",
    ];
    for file in made {
        let [one, two] = runs.each_ref().map(|run| std::fs::read(run.join("run/stages").join(file)).unwrap());
        assert!(one == two, "{file} differs on 1 and 2 ranks");
    }

    let read = |file: String| std::fs::read(runs[0].join("run/stages").join(file)).unwrap();
    let json = |file: String| serde_json::from_slice::<serde_json::Value>(&read(file)).unwrap();
    let seen = [0, 1, 2].map(|draw| {
        let accuracy = json(format!("train.ce.d{draw}/validation.json"))["accuracy"].as_f64().unwrap();
        (accuracy, read(format!("train.ce.d{draw}/model.safetensors")))
    });
    let found = json("train.ce.s0/search.json".into());
    let taken = found["taken"].as_u64().unwrap() as usize;
    let best = seen.iter().map(|(accuracy, _)| *accuracy).fold(0.0, f64::max);
    assert_eq!(seen.iter().position(|(accuracy, _)| *accuracy == best), Some(taken), "{found}");
    assert!(seen.iter().any(|(accuracy, _)| *accuracy < best), "the draws differ: {found}");
    assert!(read("train.ce.s0/model.safetensors".into()) == seen[taken].1, "other weights than the draw's");
    let page = std::fs::read_to_string(runs[0].join("run/report.html")).unwrap();
    assert!(page.contains("Random search") && page.contains(&found["tried"][taken]["lr"].to_string()));
}

/// A learned variance, a respaced chain with its noise, and hardness with either covariance.
#[test]
fn ddpm_with_hardness_is_the_same_on_one_and_two_ranks() {
    let runs = [1, 2].map(|ranks| {
        let run = TempRun::default();
        finish(run_recipe("tiny-ddpm", &run.join("run"), ranks, &[]));
        run
    });
    let files = runs.each_ref().map(|run| results(&run.join("run")));
    assert_same(&files[0], &files[1], "2 ranks");
    // No identity in a picture: equal pictures would be equal images.
    let sheets = ["ddim", "ddpm", "per-class", "pooled"].map(|set| {
        std::fs::read(runs[0].join(format!("run/stages/metrics/real-beside-{set}-set-0.png"))).unwrap()
    });
    for (position, sheet) in sheets.iter().enumerate() {
        assert!(!sheets[..position].contains(sheet), "set {position} is like an earlier one");
    }
}

/// Stops by USR2 at keyed moments and goes on with another number of ranks, until it is done.
#[test]
fn ranks_may_change_at_every_restart() {
    let sets = ["generate.plan.n=60", "classifier.steps=60"];
    let reference = TempRun::default();
    finish(run(&reference.join("run"), 1, &sets));
    let elastic = TempRun::default();
    let path = elastic.join("run");
    let mut restarts = 0;
    for (attempt, ranks) in [2, 3, 1].into_iter().cycle().take(60).enumerate() {
        let mut process = Process::spawn(run(&path, ranks, &sets));
        // From the first stage on: before, nobody listens to the signal and nothing can be lost.
        wait_until("a stage or the end", PATIENCE, || {
            process.output().contains(": attempt") || process.try_wait().is_some()
        });
        let delay = Key::new(7, "stop").index(attempt as u64).stream().range(0.5, 4.);
        std::thread::sleep(Duration::from_secs_f64(delay));
        if process.try_wait().is_none() {
            process.signal(libc::SIGINT);
        }
        let status = process.wait(PATIENCE);
        process.wait_for_no_orphans(Duration::from_secs(30));
        match status.code() {
            Some(0) => break,
            Some(75) => restarts += 1,
            other => {
                panic!("attempt {attempt} with {ranks} ranks ended with {other:?}:\n{}", process.output())
            }
        }
    }
    assert!(restarts >= 2, "the run was over before it was stopped twice");
    finish(equipoise(&["resume", path.to_str().unwrap()]));
    assert_same(&results(&reference.join("run")), &results(&path), "2, 3 and 1 ranks in turn");
    figure("F17", "restarts with 2, 3 and 1 ranks in turn", restarts);
    figure("F18", "restarts with 2, 3 and 1 ranks in turn", restarts);
}
