//! `equipoise doctor` on a login node.

use crate::site::Site;
use crate::util::Ran;
use serde_json::Value;

fn cluster() -> Site {
    let site = Site::new();
    site.slurm.answer(
        "config",
        "Configuration data as of now\nKillWait                = 30 sec\nMaxArraySize            = 11\n",
    );
    site.slurm.answer(
        "partition",
        "PartitionName=low\n   Default=YES GraceTime=120 MaxTime=1-00:00:00\n   PreemptMode=REQUEUE State=UP\n",
    );
    site.slurm.answer("sinfo", "low|up|1-00:00:00|4|32|128000|(null)|avx2\n");
    site
}

fn finding(site: &Site, set: &[(&str, &str)], check: &str) -> Value {
    let mut command = site.command(&["doctor", "--output", "json"]);
    command.envs(set.iter().copied());
    let findings: Vec<Value> = serde_json::from_str(&Ran::of(&mut command).out).unwrap();
    findings.into_iter().find(|finding| finding["check"] == check).unwrap_or_else(|| panic!("no {check}"))
}

#[test]
fn settings_are_explained_and_the_mpi_flavour_checked() {
    let site = cluster();
    let found = finding(&site, &[], "Slurm KillWait")["found"].clone();
    assert!(found.as_str().unwrap().starts_with("30 sec (between TERM and KILL)"), "{found}");
    let found = finding(&site, &[], "partition low")["found"].clone();
    assert!(found.as_str().unwrap().contains("GraceTime=120 s: the stages commit"), "{found}");
    assert_eq!(finding(&site, &[], "slurm.mpi")["passed"], true);
    let file = site.dir.write("site.toml", "schema = 1\n[slurm]\nmpi = 'pmi2'\n");
    let wrong = finding(&site, &[("EQUIPOISE_SITE", file.to_str().unwrap())], "slurm.mpi");
    assert_eq!(wrong["passed"], false);
    assert!(
        wrong["found"].as_str().unwrap().contains("srun does not offer 'pmi2' but none, pmix"),
        "{wrong}"
    );
}

#[test]
fn a_site_file_is_proposed_that_works() {
    let site = cluster();
    let text = site.equipoise(&["doctor", "--write-site"]).ok();
    let file = site.dir.write("site.toml", &text);
    let mut command =
        site.command(&["submit", "my.toml", "--run", "run", "--print-sbatch", "--stage", "train.g"]);
    command.env("EQUIPOISE_SITE", &file);
    let script = Ran::of(&mut command).ok();
    assert!(script.contains("#SBATCH --partition=low\n#SBATCH --time=4:00:00\n"), "{script}");
}

#[test]
fn arrays_stay_below_the_limit_of_the_cluster() {
    let site = cluster();
    let args = [
        "submit",
        "my.toml",
        "--run",
        "run",
        "--print-sbatch",
        "--stage",
        "generate.plain.k0",
        "--set",
        "slurm.array=64",
    ];
    assert!(site.equipoise(&args).ok().contains("#SBATCH --array=0-9\n"));
}

#[test]
fn a_machine_without_slurm_is_no_failure() {
    let site = Site::new();
    let mut command = site.dir.command(&["doctor", "--output", "json"]);
    command.env("PATH", "/nowhere");
    let findings: Vec<Value> = serde_json::from_str(&Ran::of(&mut command).out).unwrap();
    let slurm = findings.iter().find(|finding| finding["check"] == "Slurm").unwrap();
    assert_eq!(slurm["passed"], true);
}
