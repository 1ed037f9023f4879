//! Help, usage errors, completions, and what the binary links.

use crate::util::Dir;
use std::process::Command;

const COMMANDS: [&str; 16] = [
    "init",
    "calibrate",
    "plan",
    "run",
    "submit",
    "resume",
    "cancel",
    "status",
    "logs",
    "report",
    "shards",
    "verify",
    "doctor",
    "weights",
    "config",
    "completions",
];

#[test]
fn every_command_has_help_with_examples() {
    let dir = Dir::new();
    let all = dir.equipoise(&["--help"]).ok();
    for command in COMMANDS {
        assert!(all.contains(&format!("\n  {command} ")), "{command} is not listed:\n{all}");
        let help = dir.equipoise(&[command, "--help"]).ok();
        assert!(help.contains("Examples:\n  equipoise "), "{command} shows no example:\n{help}");
    }
    for (code, meaning) in [("75", "resume"), ("78", "bad configuration"), ("64", "usage")] {
        assert!(all.contains(&format!("{code} ")) && all.contains(meaning), "{all}");
    }
}

#[test]
fn wrong_usage_ends_with_64() {
    let dir = Dir::new();
    for args in [&["rnu"][..], &["run"], &["status"], &["run", "a.toml", "--fast"], &["config"], &[]] {
        let message = dir.equipoise(args).fails(64);
        assert!(message.contains("Usage") || message.contains("error"), "{args:?}: {message}");
    }
    let message = dir.equipoise(&["staus"]).fails(64);
    assert!(message.contains("'status'"), "{message}");
    let message = dir.equipoise(&["status", "nowhere"]).fails(64);
    assert_eq!(
        message,
        "error: nowhere: no run directory: it has no config.toml (next: equipoise run RECIPE)\n"
    );
}

#[test]
fn completions_name_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let text = Dir::new().equipoise(&["completions", shell]).ok();
        assert!(COMMANDS.iter().all(|command| text.contains(command)), "{shell}");
    }
}

#[test]
fn nothing_native_is_linked() {
    let output = Command::new("ldd").arg(env!("CARGO_BIN_EXE_equipoise")).output().unwrap();
    let linked = String::from_utf8_lossy(&output.stdout).to_lowercase();
    assert!(linked.contains("libc.so"), "{linked}");
    for library in ["torch", "mpi", "hdf5", "cuda", "stdc++", "gomp"] {
        assert!(!linked.contains(library), "{linked}");
    }
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let script = format!("{} init default | head -1", env!("CARGO_BIN_EXE_equipoise"));
    let output = Command::new("sh").arg("-c").arg(script).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(output.stdout.starts_with(b"# Every key"));
}
