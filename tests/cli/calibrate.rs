//! Calibration and what plans make of it. The step binaries are shell scripts that tell made-up speeds.

use crate::util::{Dir, RECIPE, images};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// `--config C --run R --set stage=S --rehearse F --rehearse-seconds N`, and more settings behind. Every unit takes two
/// seconds. What a stage is to do instead stands in `do/<stage>`: `fail` or `wait` (for USR2).
const STEP: &str = r#"#!/bin/sh
here=$(dirname "$0")
[ "$1" = --build-id ] && { cat "$here/build-id"; exit 0; }
[ -f "$2" ] || { echo "error: $2: no configuration" >&2; exit 78; }
stage=${6#stage=}
more=
while [ $# -gt 0 ]; do
  case $1 in --rehearse) file=$2 ;; --set) more=$2 ;; esac
  shift
done
echo "$stage $more" >> "$here/rehearsed"
listen='$SIG{USR2} = sub { exit 75 }; open F, ">", $ARGV[0]; close F; sleep 1 while 1'
case $(cat "$here/do/$stage" 2>/dev/null) in
  fail) echo "error: too little memory" >&2; exit 74 ;;
  wait) exec perl -e "$listen" "$here/waiting" ;;
esac
cat > "$file" <<END
{"pace":{"unit":"units","units":4,"steady":3,"seconds":2.0,"low":1.9,"high":2.1,"overhead":1.0,"total":99.0},"ranks":1,
"peak_memory":1000,"gpu_memory":null,"gpu_total":null,"host":"n1","cpu":"fast","machine":{"gpu":"none"}}
END
"#;

/// A front end with scripts for step binaries beside it, and the small recipe.
fn installation() -> Dir {
    let dir = Dir::new();
    images(&dir);
    dir.write("my.toml", RECIPE);
    std::fs::create_dir_all(dir.path().join("bin/do")).unwrap();
    std::fs::copy(env!("CARGO_BIN_EXE_equipoise"), dir.path().join("bin/equipoise")).unwrap();
    let version = dir.equipoise(&["--version"]).ok();
    dir.write("bin/build-id", version.split_whitespace().last().unwrap());
    for program in ["prepare", "train", "generate", "features", "metrics"] {
        let path = dir.write(&format!("bin/equipoise-{program}"), STEP);
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
    }
    dir
}

/// The front end beside the scripts.
fn command(dir: &Dir, args: &[&str]) -> std::process::Command {
    let mut command = std::process::Command::new(dir.path().join("bin/equipoise"));
    command.args(args).current_dir(dir.path()).env("HOME", dir.path()).env("EQUIPOISE_HOME", dir.path());
    command.env_remove("XDG_CONFIG_HOME").env_remove("EQUIPOISE_SITE");
    command
}

fn run(dir: &Dir, args: &[&str]) -> crate::util::Ran {
    crate::util::Ran::of(&mut command(dir, args))
}

fn rehearsed(dir: &Dir) -> Vec<String> {
    let text = std::fs::read_to_string(dir.path().join("bin/rehearsed")).unwrap_or_default();
    text.lines().map(str::to_string).collect()
}

#[test]
fn each_kind_of_work_is_measured_once_and_plans_are_told_in_hours() {
    let dir = installation();
    let before = run(&dir, &["plan", "my.toml"]).ok();
    assert!(before.contains("takes  unknown") && before.contains("equipoise calibrate my.toml"), "{before}");
    let told = run(&dir, &["calibrate", "my.toml", "--batches", "32,8"]).ok();
    let stages: Vec<String> =
        rehearsed(&dir).iter().map(|line| line.replace("stage=", "").trim().to_string()).collect();
    let expected = [
        "prepare.train prepare.train",
        // The judge and the arm train the same network in the same way.
        "train.g train.g",
        "diffusion diffusion",
        "generate.plain.k0 generate.plain.k0",
        "evaluate evaluate",
        "metrics metrics",
        "generate.plain.k0 sets.plain.batch=8",
        "generate.plain.k0 sets.plain.batch=32",
    ];
    assert_eq!(stages, expected, "{told}");
    assert!(told.contains("a batch of 32 would generate 100 % faster than the recipe's"), "{told}");
    let left: Vec<_> = std::fs::read_dir(dir.path().join("runs/small")).unwrap().flatten().collect();
    assert_eq!(left.len(), 1, "only calibration.json: {left:?}");

    let plan: Value =
        serde_json::from_str(&run(&dir, &["plan", "my.toml", "--output", "json"]).ok()).unwrap();
    let seconds = |name: &str| {
        let stages = plan["stages"].as_array().unwrap();
        let stage = stages.iter().find(|stage| stage["name"] == name).unwrap();
        assert_eq!(stage["time"]["measured_by"], "calibration", "{stage}");
        stage["time"]["seconds"].as_f64().unwrap()
    };
    assert_eq!((seconds("train.ce.s0"), seconds("train.judge")), (20_001.0, 20_001.0));
    // A second beside each. Six batches of sixteen; nine test images in one batch of 64.
    assert_eq!((seconds("generate.plain.k0"), seconds("evaluate")), (13.0, 3.0));
    // Four passes over nine images or ninety-one, and one over those that match.
    assert_eq!(seconds("metrics"), 1.0 + 2.0 * (2.0 + 4.0 + 1.0));
    assert_eq!(plan["time"]["unknown"], 0);
    let text = run(&dir, &["plan", "my.toml"]).ok();
    assert!(text.contains("rank-hours") && text.contains("calibrated on n1 (fast), 1 ranks"), "{text}");
    // Other work than was measured.
    let text = run(&dir, &["plan", "my.toml", "--set", "classifier.global_batch=64"]).ok();
    assert!(text.contains("and 3 stages of unknown speed"), "{text}");
}

#[test]
fn a_file_of_its_own_and_json() {
    let dir = installation();
    let args = ["calibrate", "my.toml", "--out", "here.json", "--batches", "none", "--output", "json"];
    let lines = run(&dir, &args).ok();
    let last: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!((&last["measured"], &last["stopped"]), (&6.into(), &false.into()));
    assert!(!dir.path().join("runs").exists());
    let plan = run(&dir, &["plan", "my.toml", "--calibration", "here.json"]).ok();
    assert!(!plan.contains("unknown"), "{plan}");
    let message = run(&dir, &["plan", "my.toml", "--calibration", "there.json"]).fails(78);
    assert!(message.contains("there.json"), "{message}");
}

#[test]
fn a_failure_is_named_and_a_stop_keeps_what_was_measured() {
    let dir = installation();
    dir.write("bin/do/diffusion", "fail");
    let ran = run(&dir, &["calibrate", "my.toml"]);
    assert_eq!(ran.code, 74, "{}{}", ran.out, ran.err);
    assert!(ran.err.contains("stage diffusion: its rehearsal ended with status 74"), "{}", ran.err);

    dir.write("bin/do/diffusion", "wait");
    let mut child =
        command(&dir, &["calibrate", "my.toml"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    while !dir.path().join("bin/waiting").exists() {
        assert!(start.elapsed() < Duration::from_secs(20), "waited in vain");
        std::thread::sleep(Duration::from_millis(20));
    }
    // SAFETY: kill has no memory preconditions.
    unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) };
    assert_eq!(child.wait().unwrap().code(), Some(75));
    let text = std::fs::read_to_string(dir.path().join("runs/small/calibration.json")).unwrap();
    let kept: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(kept["work"].as_array().unwrap().len(), 2);
    let left: Vec<_> = std::fs::read_dir(dir.path().join("runs/small")).unwrap().flatten().collect();
    assert_eq!(left.len(), 1, "{left:?}");
    for wrong in [["--seconds", "0"], ["--batches", "0"], ["--batches", "many"]] {
        run(&dir, &[&["calibrate", "my.toml"][..], &wrong].concat()).fails(64);
    }
}
