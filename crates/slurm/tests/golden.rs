//! The scripts, as they come out; each passes shellcheck and runs.

#![allow(clippy::disallowed_methods, clippy::expect_used, clippy::unwrap_used)]

use equipoise_base::Identity;
use equipoise_config::layers::{default_layer, file_layer};
use equipoise_config::source::Layer;
use equipoise_config::{Kind, Resolved, Stage};
use equipoise_slurm::script::{Request, STAGE_IN, render};
use equipoise_slurm::shape::Shape;
use equipoise_slurm::{settings, shape};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What a script is made of; the defaults are those of a plain site.
struct Case {
    /// A file of `configs/site/`, below the keys.
    site: Option<&'static str>,
    keys: &'static str,
    kind: Kind,
    stage: &'static str,
    after: &'static [&'static str],
    run: PathBuf,
    front_end: PathBuf,
    program: Option<&'static str>,
}

impl Default for Case {
    fn default() -> Self {
        Self {
            site: None,
            keys: "",
            kind: Kind::Arm,
            stage: "train.bs.s0",
            after: &["prepare.train", "generate.plain.k0"],
            run: "/scratch/me/runs/first".into(),
            front_end: "/opt/equipoise/bin/equipoise".into(),
            program: Some("equipoise-train"),
        }
    }
}

impl Case {
    fn render(&self) -> String {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("site.toml");
        std::fs::write(&file, format!("[run]\nname = 'first'\nranks = 4\n{}", self.keys)).unwrap();
        let mut layers = vec![default_layer()];
        let sites = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/site");
        layers.extend(self.site.map(|site| file_layer(Layer::Site, &sites.join(site)).unwrap()));
        layers.push(file_layer(Layer::Recipe, &file).unwrap());
        let resolved = Resolved::from_layers(layers).unwrap_or_else(|wrong| panic!("{wrong:?}"));
        let slurm = &resolved.recipe.slurm;
        let stage = Stage {
            name: self.stage.into(),
            kind: self.kind,
            after: self.after.iter().map(|name| name.to_string()).collect(),
            params: serde_json::Value::Null,
            decides: serde_json::Value::Null,
            identity: Identity::of("x"),
        };
        let job = settings::of_stage(slurm, self.stage).unwrap();
        let shape: Shape = shape::of(&job, &stage, resolved.recipe.run.ranks, 1000, &|ranks| ranks);
        let program = self.program.map(|program| self.front_end.with_file_name(program));
        let environment = [("OMP_NUM_THREADS".to_string(), "1".to_string())];
        let request = Request {
            slurm,
            name: "first",
            run: &self.run,
            stage: &stage,
            shape,
            front_end: &self.front_end,
            program: program.as_deref(),
            threads: 1,
            environment: &environment,
        };
        let text = render(&request).unwrap().text;
        shellcheck(&text);
        text
    }
}

/// A test that cannot run says why and fails.
fn shellcheck(script: &str) {
    let mut child = Command::new("shellcheck")
        // SC2016: a dollar sign in single quotes is meant to stay one.
        .args(["--shell=bash", "--exclude=SC2016", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("shellcheck is not installed: run `cargo xtask setup`");
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), script.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn a_plain_site() {
    insta::assert_snapshot!(Case { keys: "[slurm]\ntime = '4:00:00'", ..Case::default() }.render());
}

#[test]
fn every_directive() {
    let keys = r#"
[slurm]
account = "abc123"
partition = "preempt,long"
qos = "low"
constraint = "avx512&ib"
reservation = "course"
time = "1-12:00:00"
nodes = 2
ntasks_per_node = 4
cpus_per_task = 8
mem_per_cpu = "2G"
gres = "gpu:a100:4"
gpus = "8"
gpus_per_node = "4"
gpus_per_task = "1"
extra = ["--exclude=n17", "--mail-type=END"]
skip = ["--requeue", "signal"]
modules = ["gcc/13", "openmpi/4.1"]
setup = ["ulimit -n 4096"]
[slurm.env]
UCX_TLS = "rc,self,sm"
"#;
    insta::assert_snapshot!(Case { keys, ..Case::default() }.render());
}

#[test]
fn mpirun_in_the_allocation() {
    let keys = "[slurm]\nlauncher = 'mpirun'\nmpirun_args = ['--mca', 'btl', '^openib']\nmem = '0'";
    insta::assert_snapshot!(Case { keys, ..Case::default() }.render());
}

#[test]
fn an_array_of_single_nodes() {
    let keys =
        "[slurm]\nmem_per_gpu = '32G'\narray = 5000\narray_at_once = 16\nnodes = 8\nntasks_per_node = 2";
    let case = Case {
        keys,
        kind: Kind::Generate,
        stage: "generate.plain.k0",
        program: Some("equipoise-generate"),
        ..Case::default()
    };
    insta::assert_snapshot!(case.render());
}

#[test]
fn a_container_and_scratch() {
    let keys = r#"
[slurm]
nodes = 2
ntasks_per_node = 1
scratch = "$SLURM_TMPDIR"
[slurm.container]
image = "/shared/images/equipoise.sif"
binds = ["/datasets", "/home/me/conf:/conf"]
nv = true
bin = "/opt/equipoise/bin"
"#;
    insta::assert_snapshot!(Case { keys, ..Case::default() }.render());
}

/// The examples that people begin with.
#[test]
fn the_site_files_of_the_distribution() {
    for site in ["apptainer.toml", "modules.toml", "preemptible.toml"] {
        let script = Case { site: Some(site), ..Case::default() }.render();
        insta::assert_snapshot!(format!("site_{}", site.trim_end_matches(".toml")), script);
    }
}

#[test]
fn the_report() {
    let case = Case { kind: Kind::Report, stage: "report", program: None, ..Case::default() };
    insta::assert_snapshot!(case.render());
}

const HOSTILE: &str = r#"
[slurm]
partition = "a b #c"
extra = ["--comment=$(touch owned)"]
modules = ["$(touch owned)", "-x", "it's"]
scratch = "/tmp/$(touch owned)"
[slurm.env]
A = "$(touch owned) `touch owned` \"x\" 'y' \n -z"
[slurm.container]
image = "x $(touch owned).sif"
binds = ["a'b;touch owned"]
"#;

#[test]
fn hostile_names_stay_what_they_are() {
    let case = Case {
        keys: HOSTILE,
        run: "/tmp/-r f/it's \"$(touch owned)\"\n`x`/*".into(),
        front_end: "/opt/$(touch owned)/a\nb/equipoise".into(),
        ..Case::default()
    };
    let script = case.render();
    insta::assert_snapshot!(script);
    // Run with every command replaced by one that prints its arguments: nothing may have been expanded.
    let folder = tempfile::tempdir().unwrap();
    let commands = "module() { printf 'module <%s>\\n' \"$@\"; }\nsrun() { printf 'srun <%s>\\n' \"$@\"; }\n\
                    command_not_found_handle() { :; }\n";
    let begin = format!("{commands}{}", script.replace("|| exit\n", "|| :\n").replace("exec ", ": "));
    let output = Command::new("bash").args(["-c", &begin]).current_dir(folder.path()).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "something was expanded:\n{printed}");
    for expected in [
        "module <$(touch owned)>",
        "module <it's>",
        "srun <--config>\nsrun </tmp/-r f/it's \"$(touch owned)\"\n`x`/*/config.toml>",
        "srun <x $(touch owned).sif>",
        "srun <a'b;touch owned>",
        "srun </opt/$(touch owned)/a\nb/equipoise-train>",
    ] {
        assert!(printed.contains(expected), "no {expected:?} in\n{printed}");
    }
}

/// Stages `$@` of `run` in, with so many bytes free as `df` says; returns what it printed and whether each arrived.
fn stage_in(run: &Path, scratch: &str, free: Option<u64>, paths: &[&str]) -> (String, Vec<bool>) {
    let mut script = String::new();
    if let Some(free) = free {
        script = format!("df() {{ printf 'Avail\\n{free}\\n'; }}\n");
    }
    script += STAGE_IN;
    let output = Command::new("bash")
        .args(["-c", &script, "stage-in"])
        .arg(run)
        .args(paths)
        .env("EQUIPOISE_SCRATCH", scratch)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let there = paths.iter().map(|path| Path::new(scratch).join(path).exists()).collect();
    (String::from_utf8_lossy(&output.stdout).into_owned(), there)
}

#[test]
fn inputs_are_staged_in_if_they_fit_and_arrive_whole() {
    shellcheck(STAGE_IN);
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("a run");
    std::fs::create_dir_all(run.join("sets/x.k0/cat")).unwrap();
    std::fs::write(run.join("sets/x.k0/cat/a b.h5"), vec![7; 1000]).unwrap();
    let scratch = |name: &str| folder.path().join(name).join("equipoise-1").display().to_string();
    let (said, there) = stage_in(&run, &scratch("s1"), None, &["sets/x.k0"]);
    assert!(there[0] && said.contains("sets/x.k0 is on"), "{said}");
    let copy = Path::new(&scratch("s1")).join("sets/x.k0/cat/a b.h5");
    assert_eq!(std::fs::read(copy).unwrap(), vec![7; 1000]);
    // An earlier attempt of the job was interrupted here, on this node.
    std::fs::write(Path::new(&scratch("s1")).join("sets/x.k0/cat/half.h5"), "x").unwrap();
    let (_, there) = stage_in(&run, &scratch("s1"), None, &["sets/x.k0"]);
    assert!(there[0] && !Path::new(&scratch("s1")).join("sets/x.k0/cat/half.h5").exists());
    let (said, there) = stage_in(&run, &scratch("s2"), Some(1000), &["sets/x.k0"]);
    assert!(!there[0] && said.contains("do not fit into 1000"), "{said}");
    let (said, there) = stage_in(&run, &scratch("s3"), None, &["sets/x.k0", "sets/none"]);
    assert!(there[0] && !there[1] && said.contains("sets/none could not be copied"), "{said}");
    // A variable that is not set leaves `/equipoise-1`: never a folder in the root.
    let (said, _) = stage_in(&run, "/equipoise-1", None, &["sets/x.k0"]);
    assert!(said.contains("no folder on this node"), "{said}");
}
