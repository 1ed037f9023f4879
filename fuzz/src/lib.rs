//! What the targets do. An error is an answer; a panic, a crash, a hang or much memory is a finding.

// The scratch folder is no run directory, and a panic is how a finding shows.
#![allow(clippy::disallowed_methods, clippy::expect_used)]

use equipoise_base::ExitCode;
use equipoise_catalog::prompts::{PromptConfig, SpecialTemplates};
use equipoise_catalog::{Source, counts, labels, list, metadata, webdataset};
use equipoise_config::layers::{default_layer, file_layer, set_layer};
use equipoise_config::source::Layer;
use equipoise_config::{Resolved, stages};
use equipoise_data::clip::{ClipImageProcessor, ClipTokenizer};
use equipoise_data::decode::{Limits, decode};
use equipoise_data::{cifar, idx};
use equipoise_diffusion::scheduler_config::SchedulerConfig;
use equipoise_models::autoencoder_kl::AutoencoderKLConfig;
use equipoise_models::clip::{ClipTextConfig, ClipVisionConfig};
use equipoise_models::unet2d_condition::UNet2DConditionConfig;
use equipoise_pretrained::{Component, Folder, Lock, WeightFiles};
use equipoise_report::{ArmLabel, Context, Gathered};
use equipoise_rundir::fault::FaultFs;
use equipoise_rundir::stage::{Outcome, Status, last_attempt};
use equipoise_rundir::{Checkpoints, RunDir, StageKey, Vfs, commit_bytes, create_dirs, journal};
use equipoise_shards::{Depth, Expect, Features, GUARD_LEN, ImageShard, Packed, Statistics, verify};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use tempfile::TempDir;

/// What is done with an input.
pub type Target = fn(&[u8]);

/// All targets, by the names of `targets.toml`.
pub const TARGETS: &[(&str, Target)] = &[
    ("recipe", recipe),
    ("set_argument", set_argument),
    ("slurm", slurm),
    ("lists", lists),
    ("archive", archive),
    ("image", image),
    ("binary_set", binary_set),
    ("shard", shard),
    ("run_directory", run_directory),
    ("weights", weights),
    ("configs", configs),
    ("tokenizer", tokenizer),
    ("results", results),
];

/// A folder that every run uses again.
fn folder() -> &'static Path {
    static FOLDER: LazyLock<TempDir> = LazyLock::new(|| {
        let in_memory = Path::new("/dev/shm");
        let place = if in_memory.is_dir() { in_memory.into() } else { std::env::temp_dir() };
        TempDir::new_in(place).expect("a folder")
    });
    FOLDER.path()
}

/// `bytes` as a file of this name.
fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder().join(name);
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    std::fs::write(&path, bytes).expect("a file");
    path
}

/// A recipe, up to its stages and back to text.
fn recipe(bytes: &[u8]) {
    let path = file("my.toml", bytes);
    let Ok(layer) = file_layer(Layer::Recipe, &path) else { return };
    match Resolved::from_layers(vec![default_layer(), layer]) {
        Ok(resolved) => drop(stages(&resolved)),
        Err(problems) => assert!(!problems.is_empty(), "refused without a reason"),
    }
}

/// An argument of `--set`.
fn set_argument(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let recipe = file_layer(Layer::Recipe, &file("set.toml", b"[run]\nname = 'a'\n")).expect("readable");
    let _ = Resolved::from_layers(vec![default_layer(), recipe, set_layer(text)]);
}

/// Everything that Slurm prints.
fn slurm(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    equipoise_slurm::squeue::parse(&text);
    equipoise_slurm::sacct::parse(&text);
    equipoise_slurm::sinfo::parse(&text);
    equipoise_slurm::nodes::parse(&text);
    equipoise_slurm::scontrol::config(&text);
    equipoise_slurm::scontrol::partitions(&text);
    let _ = equipoise_slurm::scontrol::Job::parse(&text);
    equipoise_slurm::duration::parse(&text);
    equipoise_slurm::site::mpi_types(&text);
    let _ = equipoise_comm::mpirun::Flavour::from_version_text(&text);
}

/// Lists, metadata, class names, places, counts, and label files.
fn lists(bytes: &[u8]) {
    let path = file("list.txt", bytes);
    let _ = list::read(&path, Path::new("/data"));
    let _ = list::read_grouped(&path, Path::new("/data"));
    let _ = metadata::read(&path, Path::new("/data"), 0);
    let _ = list::read_class_names(&path);
    let places = PromptConfig::Special(SpecialTemplates { places: path.clone() });
    if let Ok(prompts) = places.build(&["cat".to_string()]) {
        prompts.of(0, "").expect("special templates need no context");
    }
    let _ = counts::read(&path);
    for source in [
        Source::Idx { images: path.clone(), labels: path.clone() },
        Source::Cifar10 { files: vec![path.clone()] },
        Source::Cifar100 { files: vec![path.clone()] },
        Source::Idx { images: path.clone(), labels: file("labels.gz", bytes) },
    ] {
        let _ = labels::read(&source);
    }
}

/// Archives of webdataset.
fn archive(bytes: &[u8]) {
    if let Ok(members) = webdataset::scan(&file("a.tar", bytes)) {
        for member in members {
            assert_eq!(member.read().map(|bytes| bytes.len() as u64).ok(), Some(member.len));
        }
    }
}

/// JPEG and PNG, within limits that keep a run short.
fn image(bytes: &[u8]) {
    let limits = Limits { max_pixels: 1 << 18, ..Limits::default() };
    for channels in [1, 3] {
        match decode(bytes, channels, &limits) {
            Ok(image) => assert_eq!(image.pixels.len(), image.height * image.width * channels),
            Err(error) => assert_eq!(error.code(), ExitCode::BadData),
        }
    }
}

/// MNIST's and CIFAR's files.
fn binary_set(bytes: &[u8]) {
    let path = file("set", bytes);
    let _ = idx::read(&path, &path);
    let _ = cifar::read(std::slice::from_ref(&path), cifar::Records::Cifar10);
    let _ = cifar::read(&[path], cifar::Records::Cifar100);
}

/// HDF5 files as they are found, and again behind a guard that vouches for them.
fn shard(bytes: &[u8]) {
    read_shard(bytes);
    if bytes.len() > GUARD_LEN {
        let mut forged = bytes.to_vec();
        if reseal(&mut forged).is_some() {
            read_shard(&forged);
        }
    }
}

fn read_shard(bytes: &[u8]) {
    let path = file("shard.h5", bytes);
    let _ = verify(&path, Depth::Deep, &Expect::default());
    let _ = ImageShard::from_bytes("shard", bytes);
    let _ = Packed::read(&path);
    let _ = Features::from_bytes("features", bytes);
    let _ = Statistics::read(&path);
}

/// Writes the length and the checksum that belong to the content into its guard.
fn reseal(bytes: &mut [u8]) -> Option<()> {
    let text = String::from_utf8(bytes[..GUARD_LEN].to_vec()).ok()?;
    let mut lines: Vec<String> = text.lines().take(6).map(str::to_string).collect();
    if lines.len() < 6 {
        return None;
    }
    lines[4] = format!("bytes {}", bytes.len());
    lines[5] = format!("xxh3 {:016x}", equipoise_base::hash::xxh3(&bytes[GUARD_LEN..]));
    let mut block = (lines.join("\n") + "\n").into_bytes();
    if block.len() >= GUARD_LEN {
        return None;
    }
    block.resize(GUARD_LEN - 1, b' ');
    block.push(b'\n');
    bytes[..GUARD_LEN].copy_from_slice(&block);
    Some(())
}

/// Everything in a run directory that is text: journals, outcomes, the status, manifests, the lock.
fn run_directory(bytes: &[u8]) {
    let fs = FaultFs::new();
    let vfs: Arc<dyn Vfs> = Arc::new(fs.clone());
    let dir = RunDir::new("/run").stage(&StageKey::new("train").expect("a name"));
    let ckpt = dir.checkpoints();
    create_dirs(&*vfs, &ckpt.join("step-00000001")).expect("in memory");
    create_dirs(&*vfs, &dir.lock().join("000001")).expect("in memory");
    for path in [
        dir.journal(),
        dir.outcome(),
        dir.status(),
        dir.identity(),
        ckpt.join("step-00000001/MANIFEST.json"),
        dir.lock().join("000001/owner.json"),
    ] {
        commit_bytes(&*vfs, &path, bytes, None).expect("in memory");
    }
    let _ = journal::read::<Value>(&*vfs, &dir.journal());
    let _ = last_attempt(&*vfs, &dir);
    let _ = Outcome::read(&*vfs, &dir);
    let _ = Status::read(&*vfs, &dir);
    let _ = equipoise_rundir::lease::recorded_owner(&*vfs, &dir.lock());
    let _ = Checkpoints::new(vfs, ckpt, None).latest_valid(&mut |_, _| {});
}

/// Weights, and the files that say what is in a Hugging Face folder.
fn weights(bytes: &[u8]) {
    let _ = equipoise_nn::weights::read(&file("own.safetensors", bytes));
    if let Ok(files) = WeightFiles::open_file(&file("model.safetensors", bytes)) {
        for tensor in files.tensors().values() {
            files.bytes(tensor);
        }
        files.count_by_dtype();
    }
    file("sharded/config.json", b"{}");
    file("sharded/model.safetensors.index.json", bytes);
    if let Ok(component) = Component::open(&folder().join("sharded")) {
        let _ = component.weights();
    }
    file("hub/config.json", bytes);
    file("hub/model_index.json", bytes);
    if let Ok(folder) = Folder::open(&folder().join("hub")) {
        folder.components().for_each(drop);
    }
    let locked = file("locked/weights.lock.json", bytes);
    let _ = Lock::find(locked.parent().expect("a folder"));
}

/// What configures the networks, the scheduler and the image processor of a Hugging Face folder.
fn configs(bytes: &[u8]) {
    if let Ok(json) = serde_json::from_slice::<Value>(bytes) {
        let _ = UNet2DConditionConfig::from_json("config.json", json.clone());
        let _ = AutoencoderKLConfig::from_json("config.json", json.clone());
        let _ = ClipTextConfig::from_json("config.json", json.clone());
        let _ = ClipVisionConfig::from_json("config.json", json.clone());
        if let Ok(scheduler) = SchedulerConfig::from_json("scheduler_config.json", json) {
            let _ = scheduler.single();
        }
    }
    file("images/preprocessor_config.json", bytes);
    if let Ok(component) = Component::open(&folder().join("images")) {
        let _ = ClipImageProcessor::open(&component);
    }
}

/// The files of a tokenizer, each in turn beside whole ones, and texts.
fn tokenizer(bytes: &[u8]) {
    macro_rules! whole {
        ($name:literal) => {
            (
                $name,
                include_bytes!(concat!("../../tests/oracle/clip_tokenizer/pad_bang/tokenizer/", $name))
                    .as_slice(),
            )
        };
    }
    const MERGES: (&str, &[u8]) = whole!("merges.txt");
    const OF_JSON: [(&str, &[u8]); 3] =
        [whole!("vocab.json"), whole!("tokenizer_config.json"), whole!("special_tokens_map.json")];
    let open = |name: &str| ClipTokenizer::open(&Component::open(&folder().join(name))?);
    let text = String::from_utf8_lossy(bytes);
    let encode =
        |tokenizer: &ClipTokenizer| tokenizer.encode(&[&text], 77).map(|tokens| tokens.input_ids.size());
    static WHOLE: LazyLock<ClipTokenizer> = LazyLock::new(|| {
        OF_JSON
            .iter()
            .chain([&MERGES])
            .for_each(|(name, whole)| drop(file(&format!("tokenizer/{name}"), whole)));
        ClipTokenizer::open(&Component::open(&folder().join("tokenizer")).expect("a folder"))
            .expect("a tokenizer")
    });
    assert_eq!(encode(&WHOLE).expect("every text can be encoded"), [1, 77]);
    // To open a tokenizer takes milliseconds.
    let replaced = if bytes.starts_with(b"{") { OF_JSON.as_slice() } else { &[MERGES] };
    for (name, whole) in replaced {
        file(&format!("tokenizer/{name}"), bytes);
        let _ = open("tokenizer").and_then(|tokenizer| encode(&tokenizer));
        file(&format!("tokenizer/{name}"), whole);
    }
    if bytes.starts_with(b"{") {
        file("library/tokenizer.json", bytes);
        let _ = open("library").and_then(|tokenizer| encode(&tokenizer));
    }
}

/// The side files that the report reads, and the report of what they say.
fn results(bytes: &[u8]) {
    let run = folder().join("run");
    // One at a time: the first that is wrong ends the gathering.
    let of_stages =
        ["evaluate", "metrics", "grid", "dropout", "toy"].map(|name| format!("{name}/results.json"));
    let of_training =
        ["provenance.json", "outcome.json", "metrics.jsonl"].map(|name| format!("train.ce.s0/{name}"));
    for name in of_stages.into_iter().chain(of_training) {
        let path = file(&format!("run/stages/{name}"), bytes);
        if let Ok(gathered) = equipoise_report::gather(&run) {
            let _ = equipoise_report::render(&gathered, &context(&gathered));
        }
        std::fs::remove_file(path).expect("removed");
    }
}

/// Every arm of the evaluation, the first as the baseline.
fn context(gathered: &Gathered) -> Context {
    let runs = gathered.evaluation.iter().flat_map(|evaluation| &evaluation.runs);
    let mut names: Vec<&str> = runs.map(|run| run.arm.as_str()).collect();
    names.dedup();
    let arm = |name: &&str| ArmLabel { name: name.to_string(), label: name.to_string(), is_ceiling: false };
    Context {
        has_sets: gathered.sets.is_some(),
        title: "fuzz".into(),
        baseline: names.first().copied().unwrap_or_default().into(),
        arms: names.iter().map(arm).collect(),
        split: "test".into(),
        notes: Vec::new(),
        config: String::new(),
        identity: String::new(),
        costs: BTreeMap::new(),
    }
}
