//! Layers, messages, identities and stages, through the public interface.

#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

use equipoise_base::rng::Key;
use equipoise_config::check::check;
use equipoise_config::examples::EXAMPLES;
use equipoise_config::layers::{default_layer, file_layer, set_layer};
use equipoise_config::merge::inherit;
use equipoise_config::schema::Schema;
use equipoise_config::source::Layer;
use equipoise_config::{DEFAULT, Kind, Resolved, Stage, load_resolved, schema_for_recipe, stages};
use std::path::{Path, PathBuf};

const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// A recipe that needs no file but a weight file, in a folder of its own.
const RECIPE: &str = r#"
schema = 1
[run]
name = "test"
[data]
name = "numbers"
root = "."
size = [8, 8]
channels = 1
classes = ["zero", "one"]
[data.splits]
train.source = { format = "folder", path = "train" }
val.source = { format = "folder", path = "val" }
test.source = { format = "folder", path = "test" }
[classifiers.g]
[classifiers.judge]
weights = "judge.safetensors"
[diffusion.train]
split = "train"
[sets.plain]
seeds = [0, 1]
[sets.hard]
guide = "g"
feedback = { criterion = "hardness", omega = 1.0, every = 3, offset = 0, path = "through", update = "epsilon", max_t = 1.0 }
[arms.ce]
[arms.plain]
set = "plain"
seeds = [3, 4]
"#;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        folder.write("judge.safetensors", "weights");
        folder
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn resolve(&self, text: &str, sets: &[&str]) -> Result<Resolved, String> {
        let file = self.write("my.toml", text);
        let mut layers = vec![default_layer(), file_layer(Layer::Recipe, &file).unwrap()];
        layers.extend(sets.iter().map(|set| set_layer(set)));
        let folder = format!("{}/", self.0.path().display());
        Resolved::from_layers(layers)
            .map_err(|problems| equipoise_base::Error::from(problems).to_string().replace(&folder, ""))
    }
}

fn problems(text: &str) -> String {
    Folder::new().resolve(text, &[]).err().unwrap_or_default()
}

fn named<'a>(stages: &'a [Stage], name: &str) -> &'a Stage {
    stages.iter().find(|stage| stage.name == name).unwrap_or_else(|| panic!("no stage {name}"))
}

#[test]
fn the_embedded_schema_knows_the_structure() {
    let embedded: serde_json::Value = serde_json::from_str(equipoise_config::SCHEMA).unwrap();
    let structure = schema_for_recipe(&[]).unwrap();
    assert_eq!(embedded["properties"], structure["properties"], "run `cargo xtask schema`");
    for (name, definition) in structure["$defs"].as_object().unwrap() {
        if definition.is_object() {
            assert_eq!(&embedded["$defs"][name], definition, "{name}: run `cargo xtask schema`");
        }
    }
}

/// `default.toml` is the reference: with its examples uncommented it names every key, and no other.
#[test]
fn the_reference_is_complete() {
    let example =
        |line: &&str| line.starts_with('#') && line[1..].starts_with(|c: char| c.is_alphabetic() || c == '[');
    let text: String = DEFAULT
        .lines()
        .map(|line| if example(&line) { &line[1..] } else { line })
        .flat_map(|line| [line, "\n"])
        .collect();
    let folder = Folder::new();
    let file = folder.write("reference.toml", &text);
    let mut node = file_layer(Layer::Recipe, &file).unwrap().unwrap();
    let value = node.to_value();
    inherit(&mut node);
    let unknown = check(Schema::embedded(), &mut node);
    assert!(unknown.is_empty(), "{}", equipoise_base::Error::from(unknown));
    let schema = schema_for_recipe(&[]).unwrap();
    let mut missing = Vec::new();
    let mut covers = |table: &str, definition: &str| {
        for key in schema["$defs"][definition]["properties"].as_object().unwrap().keys() {
            let inherited = ["Arm", "Helper"].contains(&definition)
                && schema["$defs"]["Classifier"]["properties"].get(key).is_some()
                || definition == "Set" && schema["$defs"]["Generate"]["properties"].get(key).is_some();
            if !inherited && value.pointer(&format!("{table}/{key}")).is_none() {
                missing.push(format!("{table}/{key}"));
            }
        }
    };
    for (table, definition) in [
        ("/run", "Run"),
        ("/checkpoint", "Checkpoint"),
        ("/slurm", "Slurm"),
        ("/slurm/container", "Container"),
        ("/data", "Dataset"),
        ("/data/splits/train", "Split"),
        ("/classifier", "Classifier"),
        ("/classifiers/g", "Helper"),
        ("/diffusion", "Diffusion"),
        ("/diffusion/train", "DiffusionTraining"),
        ("/generate", "Generate"),
        ("/sets/unguided", "Set"),
        ("/arms/unguided", "Arm"),
        ("/evaluate", "Evaluate"),
        ("/metrics", "Metrics"),
        ("/grid", "Grid"),
        ("/report", "Report"),
    ] {
        covers(table, definition);
    }
    for key in schema["properties"].as_object().unwrap().keys() {
        assert!(value.get(key).is_some(), "default.toml says nothing about {key}");
    }
    assert!(missing.is_empty(), "default.toml says nothing about {missing:?}");
}

#[test]
fn an_unknown_key_is_named_with_its_place_and_the_nearest() {
    let message = problems(&RECIPE.replace("seeds = [3, 4]", "seeds = [3, 4]\nglobl_batch = 64"));
    assert!(
        message.starts_with("my.toml:29:1: unknown key 'globl_batch' in [arms.plain]; did you mean 'global_batch'? (valid: split, "),
        "{message}"
    );
}

#[test]
fn all_problems_are_reported_at_once() {
    let text = RECIPE
        .replace("name = \"test\"", "name = \"test\"\nseed = -1\ndevice = \"gpu\"\nranks = 1.5\nspeed = 1")
        + "steps = 0\nprecision = \"bf61\"\n[grid]\nset = \"plain\"\ncfg_scale = []\nomega = [1]\n";
    let message = problems(&text);
    for expected in [
        "my.toml:5:8: run.seed must be at least 0, not -1",
        "my.toml:6:10: run.device cannot be 'gpu'; did you mean 'cpu'? (valid: auto, cpu, cuda)",
        "my.toml:7:9: run.ranks must be an integer, not a decimal number",
        "my.toml:8:1: unknown key 'speed' in [run]; did you mean 'seed'?",
        "my.toml:33:9: arms.plain.steps must be at least 1, not 0",
        "my.toml:34:13: arms.plain.precision cannot be 'bf61'; did you mean 'bf16'?",
        "my.toml:37:13: grid.cfg_scale must have at least 1 item, not 0",
        "key 'images' is missing in [grid]",
    ] {
        assert!(message.contains(expected), "{expected}\n---\n{message}");
    }
}

#[test]
fn broken_text_never_panics() {
    for (text, expected) in [
        ("a = ", "my.toml:1:"),
        ("[run\nname = 1", "my.toml:1:"),
        ("run = 3", "run must be a table, not an integer"),
        ("[run]\nname = \"a\"\nseed = nan", "my.toml:3:8: 'nan' is not a finite number"),
        ("[run]\nname = \"a\"\nseed = 99999999999999999999", "is not a 64-bit integer"),
        ("[run]\nname = 1979-05-27", "no key takes a date"),
        ("[run]\nname = \"a\"\nname = \"b\"", "my.toml:3:"),
        ("[run]\nname = \"../a\"", "run.name: '../a' is no folder name"),
        ("arms = 3", "arms must be a table"),
        ("[arms]\nx = 3", "arms.x must be a table"),
        ("[arms.'a/b']", "'a/b' in [arms] is no name"),
        ("[arms.s1]", "'s1' in [arms] is no name: k, s and d with a number stand for seeds and draws"),
        ("[data]\nroot = \"$NO_SUCH_VARIABLE/x\"", "the variable $NO_SUCH_VARIABLE is not set"),
        ("é = 1\n  ü = 2", "my.toml:2:3"),
        ("", "key 'name' is missing in [run]"),
    ] {
        let message = problems(text);
        assert!(message.contains(expected), "{text:?}: expected {expected:?} in\n{message}");
    }
}

/// Whatever a user's editor does to a recipe, the answer is a message.
#[test]
fn damaged_text_never_panics() {
    let folder = Folder::new();
    let mut stream = Key::new(0, "damage").stream();
    for _ in 0..150 {
        let mut bytes = RECIPE.as_bytes().to_vec();
        for _ in 0..=stream.below(3) {
            let at = stream.below(bytes.len() as u64) as usize;
            match stream.below(3) {
                0 => bytes[at] = b"[]{}=.,'\"#\n3nx"[stream.below(14) as usize],
                1 => drop(bytes.remove(at)),
                _ => bytes.truncate(at.max(1)),
            }
        }
        let text = String::from_utf8(bytes).unwrap();
        if let Err(message) = folder.resolve(&text, &[]) {
            assert!(!message.is_empty(), "{text}");
        }
    }
}

#[test]
fn names_must_name_something() {
    for (from, to, expected) in [
        (
            "set = \"plain\"",
            "set = \"plian\"",
            "my.toml:27:7: arms.plain.set: there is no set 'plian'; did you mean 'plain'?",
        ),
        ("guide = \"g\"", "guide = \"h\"", "sets.hard.guide: there is no classifier 'h'"),
        (
            "split = \"train\"",
            "split = \"trian\"",
            "diffusion.train.split: there is no split 'trian'; did you mean 'train'?",
        ),
        ("split = \"train\"", "", "sets need a generator"),
        ("guide = \"g\"", "", "sets.hard: feedback needs a guide"),
        (
            "criterion = \"hardness\", omega = 1.0",
            "criterion = \"loss\", omega = 1.0, shrinkage = 0.1",
            "sets.hard.feedback.shrinkage: only the criterion 'hardness' has it",
        ),
        (
            "[sets.plain]",
            "[sets.plain]\nsampler = { kind = \"ddpm\", respacing = \"5\", variance = \"learned_range\", clip_denoised = true }",
            "sets.plain.sampler.variance: 'learned_range' needs a generator",
        ),
        (
            "[diffusion.train]",
            "[diffusion]\nmodel.learn_sigma = true\nschedule.rescale_betas_zero_snr = true\n[diffusion.train]",
            "diffusion.model.learn_sigma: rescale_betas_zero_snr",
        ),
        ("[arms.ce]", "[arms.g]", "arms.g: a classifier has this name too"),
        (
            "[arms.ce]",
            "[arms.ce]\nmicro_batch = 60",
            "arms.ce.micro_batch: 60 does not divide global_batch = 128",
        ),
        ("[3, 4]", "[3, 3]", "arms.plain.seeds: 3 stands there twice"),
        (
            "[classifiers.judge]",
            "[classifiers.juge]",
            "metrics.extractor: there is no classifier 'judge'; did you mean 'juge'?",
        ),
    ] {
        let message = problems(&RECIPE.replace(from, to));
        assert!(message.contains(expected), "{from} -> {to}: expected {expected:?} in\n{message}");
    }
}

#[test]
fn set_arguments_win_and_say_so() {
    let folder = Folder::new();
    let resolved = folder
        .resolve(RECIPE, &["run.seed=7", "run.name=other", "arms.ce.loss={kind='focal',gamma=1}"])
        .unwrap();
    assert_eq!((resolved.recipe.run.seed, resolved.recipe.run.name.as_str()), (7, "other"));
    assert_eq!(resolved.at("run.seed").unwrap().origin.to_string(), "--set run.seed=7");
    assert_eq!(resolved.at("arms.ce.loss.kind").unwrap().as_str(), Some("focal"));
    assert_eq!(resolved.at("arms.plain.loss.kind").unwrap().as_str(), Some("ce"));
    let message = folder.resolve(RECIPE, &["run.sed=7"]).unwrap_err();
    assert!(
        message.starts_with("--set run.sed=7: unknown key 'sed' in [run]; did you mean 'seed'?"),
        "{message}"
    );
    assert!(folder.resolve(RECIPE, &["run.seed"]).unwrap_err().contains("must look like key=value"));
    let message = folder.resolve(RECIPE, &["arms.plian.steps=3"]).unwrap_err();
    assert!(
        message.starts_with("--set arms.plian.steps=3: arms has no 'plian'; did you mean 'plain'?"),
        "{message}"
    );
}

#[test]
fn stages_are_in_order_and_complete() {
    let stages = stages(&Folder::new().resolve(RECIPE, &[]).unwrap()).unwrap();
    let names: Vec<&str> = stages.iter().map(|stage| stage.name.as_str()).collect();
    let expected = [
        "prepare.train",
        "prepare.val",
        "prepare.test",
        "train.g",
        "features.g",
        "statistics-pooled.g",
        "diffusion",
        "generate.plain.k0",
        "generate.plain.k1",
        "generate.hard.k0",
        "train.ce.s0",
        "train.plain.k0.s3",
        "train.plain.k0.s4",
        "train.plain.k1.s3",
        "train.plain.k1.s4",
        "evaluate",
        "metrics",
        "report",
    ];
    assert_eq!(names, expected);
    for (position, stage) in stages.iter().enumerate() {
        for earlier in &stage.after {
            assert!(names[..position].contains(&earlier.as_str()), "{} comes before {earlier}", stage.name);
        }
    }
    assert_eq!(named(&stages, "generate.plain.k0").after, ["prepare.train", "diffusion"]);
    assert_eq!(
        named(&stages, "generate.hard.k0").after,
        ["prepare.train", "diffusion", "train.g", "statistics-pooled.g"]
    );
    let arm = named(&stages, "train.plain.k1.s4");
    assert_eq!(arm.after, ["prepare.train", "generate.plain.k1"]);
    assert_eq!((arm.kind, arm.kind.program()), (Kind::Arm, Some("equipoise-train")));
    let (set_seed, seed) = (&arm.params["set_seed"], &arm.params["seed"]);
    assert_eq!(
        (set_seed.as_u64(), seed.as_u64(), arm.params["steps"].as_u64()),
        (Some(1), Some(4), Some(10000))
    );
}

fn identities(text: &str, sets: &[&str]) -> Vec<(String, String)> {
    let stages = stages(&Folder::new().resolve(text, sets).unwrap()).unwrap();
    stages.into_iter().map(|stage| (stage.name, stage.identity.to_string())).collect()
}

/// Names of stages whose identity a change touches.
fn touched(text: &str, sets: &[&str]) -> Vec<String> {
    let before = identities(RECIPE, &[]);
    let after = identities(text, sets);
    let same = |name: &String, id: &String| after.iter().any(|(n, i)| n == name && i == id);
    before.iter().filter(|(name, id)| !same(name, id)).map(|(name, _)| name.clone()).collect()
}

#[test]
fn identities_follow_what_decides_bits_and_nothing_else() {
    let elastic = [
        "run.ranks=8",
        "run.root=/elsewhere",
        "checkpoint.every_steps=7",
        "arms.ce.label=other",
        "classifier.log_every=3",
        "report.title=other",
        "run.name=other",
    ];
    assert_eq!(touched(RECIPE, &elastic), Vec::<String>::new());
    let more = format!("{RECIPE}[arms.zzz]\nsteps = 5\n[sets.zzz]\ncfg_scale = 4.0\n");
    assert_eq!(touched(&more, &[]), ["evaluate", "metrics", "report"]);
    assert_eq!(touched(&RECIPE.replace("[3, 4]", "[3, 4, 5]"), &[]), ["evaluate", "report"]);
    assert_eq!(touched(RECIPE, &["arms.ce.steps=5"]), ["train.ce.s0", "evaluate", "report"]);
    let guided = ["train.g", "features.g", "statistics-pooled.g", "generate.hard.k0", "metrics", "report"];
    assert_eq!(touched(RECIPE, &["classifiers.g.steps=5"]), guided);
    assert_eq!(touched(RECIPE, &["run.seed=1"]).len(), identities(RECIPE, &[]).len());
    assert_eq!(touched(RECIPE, &["generate.cfg_scale=2"]), touched(RECIPE, &["generate.cfg_scale=2.0"]));
    let own = "sets.hard.feedback.covariance=per_class";
    assert_eq!(touched(RECIPE, &[own]), ["statistics-pooled.g", "generate.hard.k0", "metrics", "report"]);
    assert_eq!(
        touched(RECIPE, &["diffusion.train.ema={decay=0.9}"])[..2],
        ["diffusion", "generate.plain.k0"]
    );
}

#[test]
fn an_identity_can_be_told_field_by_field() {
    let stages = stages(&Folder::new().resolve(RECIPE, &[]).unwrap()).unwrap();
    let fields = named(&stages, "train.ce.s0").identity_fields();
    assert_eq!(fields["params.steps"], "10000");
    assert_eq!(fields["params.optimizer.kind"], "\"sgd\"");
    assert_eq!(fields["configuration"], named(&stages, "train.ce.s0").identity.to_string());
    assert_eq!(fields["after.prepare.train"], format!("\"{}\"", named(&stages, "prepare.train").identity));
    assert!(!fields.keys().any(|key| key.contains("log_every") || key.contains("label")));
}

#[test]
fn weights_count_by_content() {
    let folder = Folder::new();
    let identity = |folder: &Folder| {
        let stages = stages(&folder.resolve(RECIPE, &[]).unwrap()).unwrap();
        named(&stages, "metrics").identity.clone()
    };
    let first = identity(&folder);
    assert_eq!(identity(&Folder::new()), first, "the folder is no part of the identity");
    folder.write("judge.safetensors", "other weights");
    assert_ne!(identity(&folder), first);
    std::fs::remove_file(folder.0.path().join("judge.safetensors")).unwrap();
    let error = stages(&folder.resolve(RECIPE, &[]).unwrap()).unwrap_err().to_string();
    assert!(error.contains("my.toml:17:11: classifiers.judge.weights: "), "{error}");
}

#[test]
fn the_resolved_file_resolves_to_the_same() {
    let folder = Folder::new();
    let resolved = folder.resolve(RECIPE, &["run.seed=3"]).unwrap();
    let elsewhere = Folder::new();
    let file = elsewhere.write("config.toml", &resolved.to_toml());
    let again = load_resolved(&file, &[]).unwrap();
    assert_eq!(again.value(), resolved.value());
    assert_eq!(again.identity(), resolved.identity());
    assert_eq!(stages(&again).unwrap(), stages(&resolved).unwrap());
    let stage = load_resolved(&file, &["stage=train.g".into()]).unwrap();
    assert_eq!(stage.recipe.stage.as_deref(), Some("train.g"));
    assert_eq!(stage.identity(), resolved.identity());
    let changed = folder.resolve(RECIPE, &["arms.ce.steps=5", "run.ranks=4"]).unwrap();
    assert_eq!(changed.changed_keys(&resolved), ["run.seed", "arms.ce.steps"]);
}

#[test]
fn embedded_recipes_resolve() {
    for example in EXAMPLES {
        let file = Path::new(REPOSITORY).join(format!("configs/recipes/{}.toml", example.name));
        let layers = [default_layer(), file_layer(Layer::Recipe, &file).unwrap()];
        let resolved = Resolved::from_layers(layers);
        assert!(resolved.is_ok(), "{}", equipoise_base::Error::from(resolved.unwrap_err()));
        assert!(!example.summary().is_empty());
    }
}

#[test]
fn what_slurm_refuses_is_refused_with_its_place() {
    for (wrong, expected) in [
        (
            "[slurm]\nmem = '4G'\nmem_per_cpu = '1G'",
            "my.toml:3:15: slurm.mem_per_cpu: Slurm takes one form of memory, and slurm.mem is set too",
        ),
        (
            "[slurm.stages.'generate.*']\nmem = '4G'\nmem_per_gpu = '1G'",
            "my.toml:3:15: slurm.stages.\"generate.*\".mem_per_gpu: Slurm takes one form of memory",
        ),
        (
            "[slurm]\npartition = \"a\\nb\"",
            "my.toml:2:13: slurm.partition: \"a\\nb\" cannot stand in a directive",
        ),
        ("[slurm]\nextra = ['rm -rf']", "my.toml:2:9: slurm.extra: \"rm -rf\" is no directive"),
        ("[slurm]\nscratch = 'here'", "my.toml:2:11: slurm.scratch: \"here\" must be an absolute path"),
        ("[slurm]\nmemory = '4G'", "my.toml:2:1: unknown key 'memory' in [slurm]"),
        (
            "[slurm]\nlauncher = 'sruun'",
            "my.toml:2:12: slurm.launcher cannot be 'sruun'; did you mean 'srun'?",
        ),
        ("[slurm.env]\n'A B' = 'x'", "'A B' in [slurm.env] is no name"),
    ] {
        // The recipe comes after, so that lines are counted from the table.
        let text = format!("{wrong}\n{RECIPE}").replace("\nschema = 1", "");
        let found = problems(&text);
        assert!(found.contains(expected), "{wrong}:\n{found}");
    }
}

#[test]
fn batch_jobs_are_elastic_and_a_stronger_layer_chooses_the_form_of_memory() {
    let folder = Folder::new();
    let plain = folder.resolve(RECIPE, &[]).unwrap();
    let text = format!("{RECIPE}\n[slurm]\nmem = '4G'\n[slurm.stages.'train.*']\ntime = '1:00:00'\n");
    let asked = folder.resolve(&text, &["slurm.mem_per_cpu=1G"]).unwrap();
    assert_eq!(plain.identity(), asked.identity());
    let job = &asked.recipe.slurm.job;
    assert_eq!((job.mem.as_deref(), job.mem_per_cpu.as_deref()), (None, Some("1G")));
    let kept = folder.write("config.toml", &asked.to_toml());
    assert_eq!(load_resolved(&kept, &[]).unwrap().recipe.slurm, asked.recipe.slurm);
}

#[test]
fn the_site_examples_are_configurations() {
    let sites = std::fs::read_dir(format!("{REPOSITORY}/configs/site")).unwrap();
    let mut seen = 0;
    for site in sites.flatten() {
        let site = file_layer(Layer::Site, &site.path()).unwrap();
        let layers = [default_layer(), site, set_layer("run.name=x")];
        Resolved::from_layers(layers)
            .unwrap_or_else(|wrong| panic!("{}", equipoise_base::Error::from(wrong)));
        seen += 1;
    }
    assert_eq!(seen, 3);
}

/// Embeddings are made once per split and once for all texts, before the sets that read them; but they decide no identity
/// that the folder, the split and the texts do not decide already.
#[test]
fn embeddings_come_before_the_sets_that_read_them() {
    let folder = Folder::new();
    std::fs::create_dir(folder.0.path().join("sd")).unwrap();
    folder.write("sd/model_index.json", "{}");
    let condition = |prompt: &str| {
        let dropout = r#"{ p = 0.0, target = "class_label", rescale = "none" }"#;
        format!(
            r#"{{ prompt = "{prompt}", negative_prompt = "", noise_level = 0, dropout = {dropout}, sliced_decode = false }}"#
        )
    };
    let text = |prompt: &str| {
        format!(
            "{}[generate]\ncondition = {}\n",
            RECIPE.replacen("[diffusion", "[diffusion]\nfolder = \"sd\"\n[diffusion", 1),
            condition(prompt)
        )
    };
    let stages_of = |prompt: &str| stages(&folder.resolve(&text(prompt), &[]).unwrap()).unwrap();
    let (one, other) = (stages_of("a {class}"), stages_of("the {class}"));
    let (images, texts) = ("embed-images.train", "embed-texts");
    assert_eq!(named(&one, images).after, ["prepare.train"]);
    assert_eq!(named(&one, texts).params["prompts"], serde_json::json!(["a {class}"]));
    assert_eq!(named(&one, texts).kind.program(), Some("equipoise-features"));
    let set = named(&one, "generate.plain.k0");
    assert!(set.after.ends_with(&[images.to_string(), texts.to_string()]), "{:?}", set.after);
    assert!(!set.identity_fields().keys().any(|key| key.contains("embed")));
    let differs = |name: &str| named(&one, name).identity != named(&other, name).identity;
    assert!(!differs(images) && differs(texts) && differs("generate.plain.k0"));
    folder.write("sd/model_index.json", "{ }");
    assert_ne!(named(&stages_of("a {class}"), images).identity, named(&one, images).identity);
}

#[test]
fn a_search_comes_before_the_trainings_that_take_its_best() {
    let search = |draws: u64| {
        format!(
            "{RECIPE}validate = {{ split = 'val', every_steps = 100 }}\n\
             search = {{ draws = {draws}, lr = [1e-4, 1e-2], global_batch = [64, 200] }}\n\
             [arms.other]\nvalidate = {{ split = 'val', every_steps = 100 }}\n\
             search = {{ draws = {draws}, lr = [1e-4, 1e-2], global_batch = [64, 200] }}\n"
        )
    };
    let stages_of = |draws| stages(&Folder::new().resolve(&search(draws), &[]).unwrap()).unwrap();
    let stages = stages_of(20);
    let last = named(&stages, "train.plain.k1.s4");
    let candidates = last.params["candidates"].as_array().unwrap();
    assert_eq!(candidates.len(), 20);
    for (draw, candidate) in candidates.iter().enumerate() {
        let name = format!("train.plain.k0.d{draw}");
        assert!(candidate["stage"] == *name && last.after.contains(&name), "{candidate}");
        let settings = &named(&stages, &name).params["settings"];
        assert_eq!(settings, &named(&stages, &format!("train.other.d{draw}")).params["settings"]);
        assert_eq!(*settings, candidate["settings"]);
        let number = |key: &str| settings[key].as_f64().unwrap();
        assert!((1e-4..=1e-2).contains(&number("lr")), "{settings}");
        let (global, micro) = (number("global_batch"), number("micro_batch"));
        assert!((64.0..=200.0).contains(&global), "{settings}");
        // 128 images in micro-batches of 64 for 10000 steps, looked at after every 100.
        assert_eq!(global / micro, 2.0, "{settings}");
        assert_eq!(number("steps"), (10000.0 * 128.0 / global).round());
        assert_eq!(number("validate_every"), (100.0 * 128.0 / global).round());
    }
    // Both ends of both ranges are within reach.
    let all =
        |key: &str| candidates.iter().map(|it| it["settings"][key].as_f64().unwrap()).collect::<Vec<_>>();
    assert!(all("lr").iter().any(|&lr| lr < 1e-3) && all("lr").iter().any(|&lr| lr > 1e-3));
    assert!(all("global_batch").iter().any(|&n| n < 110.0) && all("global_batch").iter().any(|&n| n > 120.0));
    let fewer = stages_of(5);
    let identity = |stages: &[Stage], name: &str| named(stages, name).identity.clone();
    assert_eq!(identity(&fewer, "train.plain.k0.d4"), identity(&stages, "train.plain.k0.d4"));
    assert_ne!(identity(&fewer, "train.plain.k0.s3"), identity(&stages, "train.plain.k0.s3"));
}

#[test]
fn a_search_that_cannot_be_is_refused() {
    let wrong = |keys: &str| problems(&format!("{RECIPE}{keys}\n"));
    let found = wrong("search = { draws = 10, lr = [1e-2, 1e-4], global_batch = [1, 128] }");
    for expected in ["plain.search: needs validate", "search.lr: [0.01, 0.0001]", "global_batch: [1, 128]"] {
        assert!(found.contains(expected), "{expected}: {found}");
    }
    assert!(wrong("search = { draws = 1, lr = [1e-4, 1e-2], global_batch = [64, 128] }").contains("draws"));
}
