//! How the front end starts step binaries and what it makes of their ends. The step binaries are shell scripts that
//! leave what real ones leave: identity and outcome.

use crate::util::{Dir, REPOSITORY};
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const RECIPE: &str = r#"schema = 1
[run]
name = "steps"
[data]
name = "two classes"
root = "images"
size = [4, 4]
channels = 3
classes = ["cat"]
[data.splits]
train.source = { format = "folder", path = "train" }
[arms.ce]
[evaluate]
splits = ["train"]
[report]
split = "train"
"#;

/// `--config C --run R --set stage=S`. What a stage is to do stands in the file `do/<stage>`: an exit code, `kill`
/// or `wait` (for USR2); without one it is done.
const STEP: &str = r#"#!/bin/sh
here=$(dirname "$0")
[ "$1" = --build-id ] && { cat "$here/build-id"; exit 0; }
run=$4; stage=${6#stage=}; dir="$run/stages/$stage"
mkdir -p "$dir"
cp "$here/identity/$stage.json" "$dir/identity.json"
echo "$stage $OMP_NUM_THREADS" >> "$here/started"
attempt=$(wc -l < "$here/started")
outcome() {
  echo "{\"code\":$1,\"name\":\"$2\",\"message\":\"$3\",\"next\":null,\"rank\":0,\"attempt\":$attempt,\"host\":\"h\",\"wall\":0}"
}
end() { outcome "$@" > "$dir/outcome.json"; exit "$1"; }
# The launcher lets steps ignore USR2 until they listen, and what a shell was told to ignore it cannot trap.
listen='$SIG{USR2} = sub { open F, ">", $ARGV[0]; print F $ARGV[1]; close F; exit 75 };
  open F, ">", $ARGV[2]; close F; sleep 1 while 1'
case $(cat "$here/do/$stage" 2>/dev/null) in
  kill) kill -9 $$ ;;
  silent) exit 0 ;;
  65) end 65 bad_data "x.png: truncated" ;;
  wait) exec perl -e "$listen" "$dir/outcome.json" "$(outcome 75 requeue stopped)" "$here/waiting" ;;
  *) end 0 done done ;;
esac
"#;

/// A front end with scripts for step binaries beside it.
struct Installation(Dir);

impl Installation {
    fn new() -> Self {
        let dir = Dir::new();
        dir.write("images/train/cat/1.png", "");
        dir.write("my.toml", RECIPE);
        std::fs::create_dir_all(dir.path().join("bin/do")).unwrap();
        std::fs::copy(env!("CARGO_BIN_EXE_equipoise"), dir.path().join("bin/equipoise")).unwrap();
        let version = dir.equipoise(&["--version"]).ok();
        dir.write("bin/build-id", version.split_whitespace().last().unwrap());
        for program in ["prepare", "train", "metrics"] {
            let path = dir.write(&format!("bin/equipoise-{program}"), STEP);
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
        }
        let plan: Value = serde_json::from_str(
            &dir.equipoise(&["plan", "my.toml", "--set", PINNED, "--output", "json"]).ok(),
        )
        .unwrap();
        for stage in plan["stages"].as_array().unwrap() {
            let (name, identity) = (stage["name"].as_str().unwrap(), &stage["identity"]);
            let record = json!({ "identity": identity, "fields": { "configuration": identity } });
            dir.write(&format!("bin/identity/{name}.json"), &record.to_string());
        }
        Self(dir)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.0.path().join("bin/equipoise"));
        command
            .args(args)
            .current_dir(self.0.path())
            .env("HOME", self.0.path())
            .env("EQUIPOISE_HOME", REPOSITORY);
        command.env_remove("XDG_CONFIG_HOME").env_remove("EQUIPOISE_SITE");
        command
    }

    /// Exit code, standard output, standard error.
    fn run(&self, args: &[&str]) -> (i32, String, String) {
        let output = self.command(args).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
    }

    fn tell(&self, stage: &str, what: &str) {
        self.0.write(&format!("bin/do/{stage}"), what);
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn started(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.file("bin/started")).unwrap_or_default();
        text.lines().map(|line| line.split(' ').next().unwrap().to_string()).collect()
    }

    /// Starts a run and waits until a stage waits for a signal.
    fn spawn_waiting(&self) -> Child {
        let child = self.command(&RUN).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_until(|| self.file("bin/waiting").exists());
        child
    }
}

const PINNED: &str = "run.cpu_capability=avx2";
const RUN: [&str; 4] = ["run", "my.toml", "--set", PINNED];
const STAGES: [&str; 3] = ["prepare.train", "train.ce.s0", "evaluate"];

fn wait_until(condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(20), "waited in vain");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn wait(child: &mut Child) -> i32 {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code().unwrap_or(-1);
        }
        if start.elapsed() > Duration::from_secs(20) {
            let _ = child.kill();
            panic!("it did not end");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn stages_run_once_in_order_and_are_kept() {
    let installation = Installation::new();
    let (code, out, err) = installation.run(&RUN);
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert_eq!(installation.started(), STAGES);
    let states: Vec<&str> = out.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(states, ["done", "done", "done", "done", "report:"], "{out}");
    for file in ["config.toml", "identity.json", "report.html", "report.json", "report.csv"] {
        assert!(installation.file("runs/steps").join(file).is_file(), "{file}");
    }
    assert!(!installation.file("runs/steps/launcher.json").exists());

    let (code, out, _) = installation.run(&["resume", "runs/steps"]);
    assert_eq!((code, out.matches("kept").count()), (0, 3), "{out}");
    assert_eq!(installation.started(), STAGES, "nothing is done twice");

    let (code, _, err) = installation.run(&["resume", "runs/steps", "--set", "classifier.steps=3"]);
    assert_eq!(code, 78);
    assert!(err.contains("stage train.ce.s0 was begun under another configuration"), "{err}");
    assert_eq!(installation.run(&["resume", "runs/steps", "--set", "classifier.log_every=3"]).0, 0);
}

#[test]
fn the_outcome_of_a_failure_is_passed_on() {
    let installation = Installation::new();
    installation.tell("train.ce.s0", "65");
    let (code, out, err) = installation.run(&RUN);
    assert_eq!((code, err.as_str()), (65, "error: stage train.ce.s0: x.png: truncated\n"), "{out}");
    assert_eq!(installation.started(), STAGES[..2]);
    installation.tell("train.ce.s0", "");
    assert_eq!(installation.run(&["resume", "runs/steps"]).0, 0);
    assert_eq!(installation.started(), ["prepare.train", "train.ce.s0", "train.ce.s0", "evaluate"]);
}

#[test]
fn an_end_without_an_outcome_is_never_a_success() {
    let installation = Installation::new();
    installation.tell("prepare.train", "kill");
    let (code, _, err) = installation.run(&RUN);
    assert_eq!(code, 74);
    assert!(err.contains("killed by signal 9"), "{err}");
    installation.tell("prepare.train", "silent");
    assert_eq!(installation.run(&RUN).0, 101);
}

#[test]
fn a_signal_stops_with_75_and_the_run_goes_on_later() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGUSR2] {
        let installation = Installation::new();
        installation.tell("train.ce.s0", "wait");
        let mut child = installation.spawn_waiting();
        // SAFETY: kill has no memory preconditions.
        unsafe { libc::kill(child.id() as libc::pid_t, signal) };
        assert_eq!(wait(&mut child), 75, "signal {signal}");
        installation.tell("train.ce.s0", "");
        assert_eq!(installation.run(&["resume", "runs/steps"]).0, 0);
    }
}

#[test]
fn cancel_finds_the_run_and_waits_for_its_end() {
    for now in [false, true] {
        let installation = Installation::new();
        installation.tell("train.ce.s0", "wait");
        let mut child = installation.spawn_waiting();
        let (code, out, err) = installation.run(&["status", "runs/steps"]);
        assert!(code == 0 && out.contains("running: process"), "{out}{err}");
        let args: &[&str] = if now { &["cancel", "runs/steps", "--now"] } else { &["cancel", "runs/steps"] };
        // The test is the parent: until it looks, the ended run is still there as a zombie, which counts as gone.
        let (code, out, err) = installation.run(args);
        assert!(code == 0 && out.contains("equipoise resume runs/steps"), "{out}{err}");
        assert_eq!(wait(&mut child), 75);
    }
}

#[test]
fn step_binaries_must_be_there_and_of_this_build() {
    let installation = Installation::new();
    installation.0.write("bin/build-id", "0.0.1+00000000");
    let (code, _, err) = installation.run(&RUN);
    assert!(code == 78 && err.contains("is of build '0.0.1+00000000', equipoise of '"), "{code} {err}");
    std::fs::remove_file(installation.file("bin/equipoise-train")).unwrap();
    installation
        .0
        .write("bin/build-id", installation.run(&["--version"]).1.split_whitespace().last().unwrap());
    let (code, _, err) = installation.run(&RUN);
    assert!(code == 78 && err.contains("equipoise-train: not found"), "{code} {err}");
    assert!(installation.started().is_empty() && !installation.file("runs").exists(), "nothing was begun");
}
