//! `cargo xtask deps`: the crate graph of docs/design/architecture.md, checked.

use crate::shell;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::collections::BTreeMap;

/// Tier of each crate: a crate may depend on lower tiers, and on its own tier only where [`SIDEWAYS`] says so.
const TIERS: &[(&str, u32)] = &[
    ("base", 0),
    ("config", 1),
    ("rundir", 1),
    ("catalog", 1),
    ("pretrained", 1),
    ("workplan", 1),
    ("comm", 1),
    ("slurm", 2),
    ("telemetry", 2),
    ("report", 2),
    ("comm-mpi", 3),
    ("comm-nccl", 3),
    ("shards", 3),
    ("nn", 3),
    ("models", 4),
    ("numerics", 4),
    ("data", 4),
    ("classify", 5),
    ("diffusion", 5),
    ("metrics", 5),
    ("stages", 6),
];

/// Same-tier dependencies that the design allows.
const SIDEWAYS: &[(&str, &str)] = &[("workplan", "catalog"), ("diffusion", "metrics")];

/// Crates that may link each native library; everything else must stay free of it.
const NATIVE: &[(&str, &[&str])] =
    &[("mpi", &["comm-mpi"]), ("hdf5-metno", &["shards"]), ("hdf5-metno-sys", &["shards"])];

/// The first tier whose crates may use tensors.
const FIRST_TENSOR_TIER: u32 = 3;

/// Checks every edge.
pub fn run() -> Result<()> {
    let output = shell::cargo().args(["metadata", "--format-version", "1", "--no-deps"]).output()?;
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    let tiers: BTreeMap<&str, u32> = TIERS.iter().copied().collect();
    let packages = metadata["packages"].as_array().context("no packages")?;
    let (mut wrong, mut edges) = (Vec::new(), 0);
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let short = name.strip_prefix("equipoise-").unwrap_or(name);
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            if dependency["kind"] == "dev" {
                continue;
            }
            edges += 1;
            let target = dependency["name"].as_str().unwrap_or_default();
            if let Some(problem) = judge(short, target, &tiers) {
                wrong.push(problem);
            }
        }
    }
    if !wrong.is_empty() {
        bail!("the crate graph breaks the design:\n  {}", wrong.join("\n  "));
    }
    println!("{} packages, {edges} dependencies: all point downward", packages.len());
    Ok(())
}

fn judge(from: &str, to: &str, tiers: &BTreeMap<&str, u32>) -> Option<String> {
    let tier = tiers.get(from).copied();
    if let Some((_, allowed)) = NATIVE.iter().find(|(library, _)| *library == to) {
        return (!allowed.contains(&from))
            .then(|| format!("{from} links {to}; only {} may", allowed.join(", ")));
    }
    if to == "tch" && tier.is_some_and(|tier| tier < FIRST_TENSOR_TIER) {
        return Some(format!("{from} is below the tensor tiers but uses tch"));
    }
    let target = to.strip_prefix("equipoise-")?;
    if target == "testkit" {
        // The soak is a test that takes hours.
        return (from != "xtask").then(|| format!("{from} depends on testkit outside tests"));
    }
    let Some(&below) = tiers.get(target) else {
        return Some(format!("{target} has no tier in xtask/src/deps.rs"));
    };
    match (from, tier) {
        // The front end runs on login nodes: no native library may reach it.
        ("equipoise", _) if below >= FIRST_TENSOR_TIER => Some(format!("the front end depends on {target}")),
        (_, None) => None,
        (_, Some(tier)) if below < tier || SIDEWAYS.contains(&(from, target)) => None,
        (_, Some(tier)) => Some(format!("{from} (tier {tier}) depends on {target} (tier {below})")),
    }
}
