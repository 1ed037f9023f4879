//! `equipoise-shards` from outside, on small run directories made by hand.
#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

mod export;
mod python;
mod run;
mod show;
mod verify;

use run::{Run, stderr};

/// What the binary printed and how it ended.
fn shards(args: &[&str]) -> std::process::Output {
    std::process::Command::new(env!("CARGO_BIN_EXE_equipoise-shards")).args(args).output().unwrap()
}

#[test]
fn every_help_shows_examples() {
    for command in [&["--help"][..], &["verify", "--help"], &["show", "--help"], &["regenerate", "--help"]] {
        let output = shards(command);
        assert_eq!(output.status.code(), Some(0));
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("Examples:\n  equipoise shards "), "{text}");
    }
}

#[test]
fn the_build_is_told_alone() {
    let output = shards(&["--build-id"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), equipoise_config::BUILD_ID);
}

#[test]
fn wrong_command_lines_exit_64() {
    let run = Run::new();
    let path = run.path();
    for args in [
        &["frobnicate"][..],
        &["verify"],
        &["verify", "/no/such/run"],
        &["verify", path, "--set", "other.k0"],
        &["verify", path, "--sample", "many"],
        &["show", path, "--columns", "0"],
        &["regenerate", path, "Coat"],
        &["regenerate", path, "Coat/1", "--failed"],
        &["regenerate", path, "Coat/1"],
        &["export", "zip", path, "out"],
    ] {
        let output = shards(args);
        assert_eq!(output.status.code(), Some(64), "{args:?}: {}", stderr(&output));
        assert!(!stderr(&output).is_empty() && output.stdout.is_empty(), "{args:?}");
    }
    let output = shards(&["verify", path, "--set", "other.k0"]);
    assert!(
        stderr(&output).contains("there is no set 'other.k0'; there are: plain.k0"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_run_without_sets_is_bad_data() {
    let run = Run::new();
    std::fs::remove_dir_all(run.set()).unwrap();
    let output = shards(&["verify", run.path()]);
    assert_eq!(output.status.code(), Some(65), "{}", stderr(&output));
}
