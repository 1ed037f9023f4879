//! The page from made-up side files: every part is there, and an unfinished run says what is missing.
#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

use equipoise_report::results::*;
use equipoise_report::{ArmLabel, Context, Cost, gather, render};
use std::collections::BTreeMap;
use std::path::Path;

fn scores(all: f64, rare: f64) -> BTreeMap<String, Scores> {
    let per_class: Vec<Option<f64>> =
        (0..10).map(|class| Some(if class < 7 { all + 0.08 } else { rare })).collect();
    let scores = Scores {
        images: 10_000,
        all,
        many: Some(all + 0.05),
        medium: Some(rare + 0.02),
        few: None,
        rare3: Some(rare),
        per_class,
        groups: None,
    };
    BTreeMap::from([("test".to_string(), scores)])
}

fn put(run: &Path, file: &str, value: &impl serde::Serialize) {
    let path = run.join("stages").join(file);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, serde_json::to_vec(value).unwrap()).unwrap();
}

fn run_of(name: &str, seed: u64, all: f64, rare: f64) -> ArmRun {
    ArmRun { arm: name.into(), set_seed: None, seed, scores: scores(all, rare) }
}

fn evaluation() -> Evaluation {
    let noise = [-0.003, 0.001, 0.002];
    let arms =
        [("bs", 0.80, 0.52), ("feedback", 0.835, 0.63), ("unguided", 0.842, 0.65), ("ceiling", 0.9, 0.8)];
    let runs = arms.iter().flat_map(|(arm, all, rare)| {
        noise.iter().enumerate().map(move |(seed, e)| run_of(arm, seed as u64, all + e, rare + 2. * e))
    });
    Evaluation {
        classes: "T-shirt,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Boot"
            .split(',')
            .map(Into::into)
            .collect(),
        train_counts: vec![92, 1198, 33, 258, 55, 430, 20, 154, 718, 2000],
        groups: Vec::new(),
        train_group_counts: Vec::new(),
        runs: runs.collect(),
    }
}

/// Two contexts for each class; the third class in the second context has no test image.
fn with_groups(mut evaluation: Evaluation) -> Evaluation {
    let contexts = |class: &String| [format!("{class}/shop"), format!("{class}/street")];
    evaluation.groups = evaluation.classes.iter().flat_map(contexts).collect();
    evaluation.train_group_counts = (0..20).collect();
    for run in &mut evaluation.runs {
        let test = run.scores.get_mut("test").unwrap();
        let mut per_group: Vec<Option<f64>> = (0..20).map(|group| Some(0.5 + 0.01 * group as f64)).collect();
        (per_group[1], per_group[5]) = (Some(if run.arm == "feedback" { 0.4 } else { 0.2 }), None);
        let worst = per_group[1].unwrap();
        test.groups = Some(GroupScores { worst, worst_group: 1, mean: 0.6, per_group });
    }
    evaluation
}

fn context() -> Context {
    let arm = |name: &str, label: &str| ArmLabel {
        name: name.into(),
        label: label.into(),
        is_ceiling: name == "ceiling",
    };
    Context {
        title: "made up".into(),
        baseline: "bs".into(),
        arms: vec![
            arm("bs", "balanced softmax"),
            arm("unguided", "unguided synthetic"),
            arm("feedback", "feedback <entropy>"),
            arm("ceiling", "more real images"),
        ],
        has_sets: true,
        split: "test".into(),
        notes: vec!["The generator has seen a balanced set.".into()],
        config: "schema = 1".into(),
        identity: "0123".into(),
        costs: BTreeMap::from([
            ("evaluate".into(), Cost { expected: 120., took: Some(150.) }),
            ("metrics".into(), Cost { expected: 60., took: None }),
        ]),
    }
}

fn full_run(run: &Path) {
    put(run, "evaluate/results.json", &evaluation());
    put(run, "evaluate/outcome.json", &serde_json::json!({ "code": 0, "name": "done", "attempt": 2 }));
    let gain = CriterionGain {
        criterion: "entropy".into(),
        against: "unguided".into(),
        pairs: 1788,
        mean: 0.021,
        low: 0.011,
        high: 0.031,
    };
    let set = SetResult {
        codec: "jpeg:90".into(),
        resize_filter: "bilinear antialiased".into(),
        set: "feedback".into(),
        seed: 0,
        images: 1788,
        failed: 0,
        retried: 1,
        agreement: 0.91,
        agreement_by_class: vec![None; 10],
        fid: 6.1,
        density: 0.9,
        coverage: 0.8,
        div_cos: 0.3,
        div_std: 3.1,
        div_svd: 0.2,
        criterion_gain: Some(gain),
    };
    let reference = Reference { real: 1.2, shuffled: 80. };
    put(
        run,
        "metrics/results.json",
        &SetMetrics { extractor: "judge".into(), judge_accuracy: 0.92, reference, sets: vec![set] },
    );
    let grid = Grid {
        class: "Coat".into(),
        cfg_scales: vec![1., 1.5, 3.],
        omegas: vec![0., 0.02, 0.05, 0.1],
        criterion: "entropy".into(),
        agreement: vec![vec![0.9, 0.85, 0.7, 0.4]; 3],
        value: vec![vec![0.1, 0.2, 0.3, 0.6]; 3],
        images: 100,
    };
    put(run, "grid/results.json", &grid);
    let row = |p: f64| DropoutRow { p, agreement: 0.9 - p / 4., diversity: 0.1 + p, likeness: 1. - p };
    let dropout = Dropout {
        class: "Coat".into(),
        row: 7,
        images: 8,
        classes: 1,
        extractor: "judge".into(),
        rows: vec![row(0.), row(0.4)],
    };
    put(run, "dropout/results.json", &dropout);
    let points: Vec<ToyPoint> = (0..200)
        .map(|i| ToyPoint { x: (i as f32 * 0.7).sin() * 2., y: (i as f32 * 1.3).cos(), class: (i % 2) as u8 })
        .collect();
    let arm = |name: &str, share: f64| ToyArm {
        name: name.into(),
        minority_share: vec![share, share + 0.02],
        validity: vec![0.98, 0.97],
        minority_accuracy: vec![0.2, 0.3],
        points: points.clone(),
    };
    put(
        run,
        "toy/results.json",
        &Toy { arms: vec![arm("unguided", 0.1), arm("detached", 0.6)], real: points.clone() },
    );
    let rows: Vec<String> = (0..60)
        .map(|s| format!("{{\"step\":{},\"loss\":{}}}", s * 10, 2.0 / (1.0 + s as f64 * 0.2)))
        .collect();
    std::fs::create_dir_all(run.join("stages/train.feedback.k0.s0")).unwrap();
    std::fs::write(run.join("stages/train.feedback.k0.s0/metrics.jsonl"), rows.join("\n") + "\n{\"torn")
        .unwrap();
}

#[test]
fn a_full_run_has_every_part_and_names_the_winner() {
    let dir = tempfile::tempdir().unwrap();
    full_run(dir.path());
    let gathered = gather(dir.path()).unwrap();
    let report = render(&gathered, &context()).unwrap();
    let html = &report.html;
    assert!(
        html.contains("On all classes, \u{201c}unguided synthetic\u{201d} comes first with 84.2 ± 0.3 %"),
        "{html}"
    );
    assert!(html.contains("Out of the race, \u{201c}more real images\u{201d} reaches 90.0"));
    for part in ["Accuracy by class", "Synthetic images", "2-D toy", "Guidance scale", "Training", "Cost"] {
        assert!(html.contains(part), "{part}");
    }
    assert!(
        html.contains("feedback &#60;entropy&#62;") || html.contains("feedback &lt;entropy&gt;"),
        "labels are escaped"
    );
    assert!(!html.contains("NaN") && !html.contains("src=\"http"), "self-contained and finite");
    assert!(html.contains("<td>0.4</td><td>80.0</td><td>0.500</td><td>0.600</td>"), "{html}");
    assert!(html.contains("2.0 min, took 2.5 min (+25 %)"), "{html}");
    assert!(report.csv.lines().count() > 9 * 10);
    let json: serde_json::Value = serde_json::from_str(&report.json).unwrap();
    assert_eq!(json["arms"][0]["arm"], "bs");
    if let Some(path) = std::env::var_os("EQUIPOISE_SHOW_PAGE") {
        std::fs::write(path, html).unwrap();
    }
}

#[test]
fn groups_have_their_columns_and_the_worst_ones_names() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "evaluate/results.json", &with_groups(evaluation()));
    let report = render(&gather(dir.path()).unwrap(), &context()).unwrap();
    let first = "On the worst group, \u{201c}feedback &#60;entropy&#62;\u{201d} comes first with 40.0";
    assert!(report.html.contains(first), "{}", report.html);
    assert!(
        report.html.contains(
            "balanced softmax: T-shirt/street 20.0 % (1 real training images), T-shirt/shop 50.0 %"
        )
    );
    assert!(report.csv.contains("feedback,,0,test,worst_group,0.400000\n"));
    assert!(report.csv.contains("bs,,0,test,group 1,0.200000\n") && !report.csv.contains("group 5,"));
    let json: serde_json::Value = serde_json::from_str(&report.json).unwrap();
    assert_eq!(json["metrics"][5], "worst_group");
    let worst = json["arms"][0]["cells"][5]["value"]["mean"].as_f64().unwrap();
    assert!((worst - 0.2).abs() < 1e-12, "{worst}");
    assert_eq!(json["arms"][0]["per_group"][5], serde_json::Value::Null);

    put(dir.path(), "evaluate/results.json", &evaluation());
    let without = render(&gather(dir.path()).unwrap(), &context()).unwrap();
    let all = without.html + &without.csv + &without.json;
    assert!(!all.to_lowercase().contains("group 1") && !all.contains("worst"));
}

#[test]
fn an_unfinished_run_says_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let report = render(&gather(dir.path()).unwrap(), &context()).unwrap();
    assert!(report.html.contains("No accuracies") && report.html.contains("No synthetic sets"));
    let without = Context { has_sets: false, ..context() };
    let report = render(&gather(dir.path()).unwrap(), &without).unwrap();
    assert!(report.html.contains("No accuracies") && !report.html.contains("No synthetic sets"));
}

#[test]
fn a_broken_side_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("stages/evaluate");
    std::fs::create_dir_all(&path).unwrap();
    std::fs::write(path.join("results.json"), "{").unwrap();
    let error = gather(dir.path()).unwrap_err();
    assert_eq!(error.code(), equipoise_base::ExitCode::BadData);
    assert!(error.message().contains("results.json"));
}
