//! Makes the stages. Each identity covers the stage's own keys, what every stage depends on, and the identities of
//! the stages it reads; never its neighbours, so that adding an arm leaves the others as they are.

use super::contents::Contents;
use super::search::{self, Candidate};
use super::{Kind, Stage};
use crate::recipe::{Classes, Classifier, Diffusion, Helper, Set};
use crate::resolved::Resolved;
use crate::tree::canonical;
use equipoise_base::{Identity, Result, rng};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// The stage that embeds the texts of all sets.
const TEXT_EMBEDDINGS: &str = "embed-texts";

pub(super) struct Builder<'a> {
    resolved: &'a Resolved,
    /// Everything, and everything that decides bits.
    full: Value,
    pure: Value,
    stages: Vec<Stage>,
    contents: Contents<'a>,
}

/// The keys of a stage: a table of the recipe, and what else it needs to know.
type Params<'p> = &'p dyn Fn(&Value) -> Value;

impl<'a> Builder<'a> {
    pub(super) fn new(resolved: &'a Resolved) -> Self {
        Self {
            resolved,
            full: resolved.value(),
            pure: resolved.identity_value(),
            stages: Vec::new(),
            contents: Contents::new(resolved),
        }
    }

    pub(super) fn build(mut self) -> Result<Vec<Stage>> {
        self.prepare()?;
        self.helpers()?;
        self.diffusion()?;
        self.embeddings()?;
        self.sets()?;
        self.arms()?;
        self.evaluate()?;
        self.metrics()?;
        self.grid()?;
        self.dropout()?;
        if self.resolved.recipe.toy.is_some() {
            self.add(Kind::Toy, "toy".into(), vec![], Value::Null, &|all| all["toy"].clone());
        }
        let everything = self.stages.iter().map(|stage| stage.name.clone()).collect();
        self.add(Kind::Report, "report".into(), everything, Value::Null, &|all| all["report"].clone());
        Ok(self.stages)
    }

    /// Adds a stage. `content` stands for files read from elsewhere: it decides bits but is no key.
    fn add(&mut self, kind: Kind, name: String, after: Vec<String>, content: Value, params: Params<'_>) {
        let run = &self.pure["run"];
        let inherited: Map<String, Value> = self
            .stages
            .iter()
            .filter(|stage| after.contains(&stage.name))
            .map(|stage| (stage.name.clone(), json!(stage.identity)))
            .collect();
        let decides = json!({
            "kind": kind,
            "params": params(&self.pure),
            "content": content,
            "after": inherited,
            "seed": run["seed"],
            "threads": run["threads"],
            "cpu_capability": run["cpu_capability"],
            "device": run["device"],
            "rng": rng::VERSION,
        });
        let identity = Identity::of(&canonical(&decides).to_string());
        let params = params(&self.full);
        self.stages.push(Stage { name, kind, after, params, decides, identity });
    }

    fn prepare(&mut self) -> Result<()> {
        let resolved = self.resolved;
        let Some(data) = &resolved.recipe.data else { return Ok(()) };
        let mut content = self.names_identity("data.classes", &data.classes)?;
        if let Some(contexts) = &data.contexts {
            content = json!([content, self.names_identity("data.contexts", contexts)?]);
        }
        for split in data.splits.names() {
            let name = format!("prepare.{split}");
            self.add(Kind::Prepare, name, vec![], content.clone(), &|all| {
                let mut params = without(&all["data"], &["splits"]);
                params.insert("split".into(), json!(split));
                params.extend(without(&all["data"]["splits"][split], &[]));
                Value::Object(params)
            });
        }
        Ok(())
    }

    fn names_identity(&self, key: &str, names: &Classes) -> Result<Value> {
        Ok(match names {
            Classes::File(file) => json!(self.contents.of_file(key, file)?),
            Classes::Names(names) => json!(names),
        })
    }

    /// The content of the weights that a training starts from; nothing if it starts from a seed.
    fn init_identity(&self, path: &str, training: &Classifier) -> Result<Value> {
        match &training.init_from {
            None => Ok(Value::Null),
            Some(file) => {
                Ok(json!({ "init_from": self.contents.of_file(&format!("{path}.init_from"), file)? }))
            }
        }
    }

    fn helpers(&mut self) -> Result<()> {
        let resolved = self.resolved;
        for (name, helper) in
            resolved.recipe.classifiers.iter().filter(|(_, helper)| helper.weights.is_none())
        {
            let mut after = vec![format!("prepare.{}", helper.training.split)];
            after.extend(validation(&helper.training));
            let content = self.init_identity(&format!("classifiers.{name}"), &helper.training)?;
            self.add(Kind::Classifier, format!("train.{name}"), after, content, &|all| {
                let mut params = without(&all["classifiers"][name], &[]);
                params.insert("classifier".into(), json!(name));
                params.entry("seed").or_insert(json!(helper.seed));
                Value::Object(params)
            });
        }
        self.statistics()
    }

    /// Features of the guides whose class statistics some set asks for, and these statistics.
    fn statistics(&mut self) -> Result<()> {
        let resolved = self.resolved;
        let mut asked: Vec<(&str, &str)> =
            resolved.recipe.sets.iter().filter_map(|(_, set)| hardness(set)).collect();
        asked.sort_unstable();
        asked.dedup();
        for guides in asked.chunk_by(|a, b| a.0 == b.0) {
            let guide = guides[0].0;
            let Some(helper) = resolved.recipe.classifiers.get(guide) else { continue };
            let split = &helper.training.split;
            let (mut after, content) = self.helper_needs(guide, helper)?;
            after.insert(0, format!("prepare.{split}"));
            self.add(
                Kind::Features,
                format!("features.{guide}"),
                after,
                content,
                &|_| json!({ "classifier": guide, "split": split }),
            );
            for (_, covariance) in guides {
                let after = vec![format!("features.{guide}")];
                self.add(
                    Kind::Statistics,
                    format!("statistics-{covariance}.{guide}"),
                    after,
                    Value::Null,
                    &|_| json!({ "classifier": guide, "split": split, "covariance": covariance }),
                );
            }
        }
        Ok(())
    }

    /// The stage that trains a helper or, if it is not trained here, the content of its weights.
    fn helper_needs(&self, name: &str, helper: &Helper) -> Result<(Vec<String>, Value)> {
        match &helper.weights {
            None => Ok((vec![format!("train.{name}")], Value::Null)),
            Some(file) => {
                let weights = self.contents.of_file(&format!("classifiers.{name}.weights"), file)?;
                Ok((vec![], json!({ "weights": weights, "arch": self.pure["classifiers"][name]["arch"] })))
            }
        }
    }

    fn diffusion(&mut self) -> Result<()> {
        let diffusion = &self.resolved.recipe.diffusion;
        if let (None, None, Some(split)) = (&diffusion.folder, &diffusion.weights, &diffusion.train.split) {
            let after = vec![format!("prepare.{split}")];
            self.add(Kind::Diffusion, "diffusion".into(), after, Value::Null, &|all| {
                all["diffusion"].clone()
            });
        }
        Ok(())
    }

    /// What a folder makes of the real images of every split that a set is conditioned on, and of all texts.
    fn embeddings(&mut self) -> Result<()> {
        let resolved = self.resolved;
        let recipe = &resolved.recipe;
        let Some(folder) = recipe.diffusion.folder.as_ref().filter(|_| !recipe.sets.is_empty()) else {
            return Ok(());
        };
        let content = json!({ "generator": self.contents.of_folder("diffusion.folder", folder)? });
        let distinct = |of: &dyn Fn(&'a Set) -> Option<&'a str>| -> Vec<&'a str> {
            let all = recipe.sets.iter().filter_map(|(_, set)| of(set));
            all.collect::<BTreeSet<_>>().into_iter().collect()
        };
        let text = |key: &'static str| move |set: &'a Set| set.generate.condition.as_ref()?.0[key].as_str();
        // A set without an image condition may have classes without real images.
        let splits = distinct(&|set| {
            let condition = set.generate.condition.as_ref()?;
            (condition.0["image"] != "none").then_some(&*set.generate.split)
        });
        let (prompts, negative) = (distinct(&text("prompt")), distinct(&text("negative_prompt")));
        for split in &splits {
            let after = vec![format!("prepare.{split}")];
            self.add(
                Kind::Embed,
                image_embeddings(split),
                after,
                content.clone(),
                &|all| json!({ "of": "images", "folder": all["diffusion"]["folder"], "split": split }),
            );
        }
        let after = distinct(&|set| Some(&set.generate.split));
        let after = after.iter().map(|split| format!("prepare.{split}")).collect();
        self.add(Kind::Embed, TEXT_EMBEDDINGS.into(), after, content, &|all| {
            json!({
                "of": "texts",
                "folder": all["diffusion"]["folder"],
                "prompts": prompts,
                "negative_prompts": negative,
            })
        });
        Ok(())
    }

    /// Lets the stage that was added last wait for the embeddings that it reads. They are a function of what it depends
    /// on already (folder, split, texts), so they are no part of its identity.
    fn await_embeddings(&mut self, split: &str) {
        let reads = [image_embeddings(split), TEXT_EMBEDDINGS.to_string()];
        let there = reads.into_iter().filter(|name| self.stages.iter().any(|stage| stage.name == *name));
        let there: Vec<String> = there.collect();
        if let Some(stage) = self.stages.last_mut() {
            stage.after.extend(there);
        }
    }

    /// What sampling with the settings of `set` reads.
    fn sampling_needs(&mut self, set: &Set) -> Result<(Vec<String>, Value)> {
        let resolved = self.resolved;
        let recipe = &resolved.recipe;
        let mut after = vec![format!("prepare.{}", set.generate.split)];
        let mut content = Map::new();
        let Diffusion { folder, weights, .. } = &recipe.diffusion;
        if let Some(folder) = folder {
            let identity = self.contents.of_folder("diffusion.folder", folder)?;
            content.insert("generator".into(), json!(identity));
        } else if let Some(file) = weights {
            let identity = self.contents.of_file("diffusion.weights", file)?;
            content.insert("generator".into(), json!(identity));
        } else {
            after.push("diffusion".into());
        }
        if let (Some(_), Some(guide)) = (&set.generate.feedback, &set.generate.guide)
            && let Some(helper) = recipe.classifiers.get(guide)
        {
            let (stages, weights) = self.helper_needs(guide, helper)?;
            after.extend(stages);
            content.insert("guide".into(), weights);
            after.extend(hardness(set).map(|(guide, covariance)| format!("statistics-{covariance}.{guide}")));
        }
        Ok((after, Value::Object(content)))
    }

    fn sets(&mut self) -> Result<()> {
        let resolved = self.resolved;
        for (name, set) in resolved.recipe.sets.iter() {
            let (after, content) = self.sampling_needs(set)?;
            for seed in &set.seeds {
                let stage = format!("generate.{name}.k{seed}");
                self.add(Kind::Generate, stage, after.clone(), content.clone(), &|all| {
                    let mut params = sampling_params(all, name, set);
                    params.insert("set".into(), json!(name));
                    params.insert("seed".into(), json!(seed));
                    Value::Object(params)
                });
                self.await_embeddings(&set.generate.split);
            }
        }
        Ok(())
    }

    fn arms(&mut self) -> Result<()> {
        for (run, stage) in arm_runs(self.resolved) {
            let (mut after, content) = self.arm_needs(&run)?;
            let candidates = self.search(&run, &content)?;
            after.extend(candidates.iter().map(|candidate| candidate.stage.clone()));
            let candidates = (!candidates.is_empty()).then(|| json!(candidates));
            self.add(Kind::Arm, stage, after, content, &|all| {
                let mut params = arm_params(all, &run);
                params.extend(candidates.clone().map(|candidates| ("candidates".into(), candidates)));
                Value::Object(params)
            });
        }
        Ok(())
    }

    /// Stages and content that a training of an arm reads.
    fn arm_needs(&self, run: &ArmRun) -> Result<(Vec<String>, Value)> {
        let training = self.resolved.recipe.arms.get(&run.arm).map(|arm| &arm.training);
        let mut after = vec![format!("prepare.{}", run.split)];
        after.extend(run.extra_split.as_ref().map(|split| format!("prepare.{split}")));
        after.extend(training.and_then(validation));
        after.extend(run.set_seed.and_then(|k| Some(format!("generate.{}.k{k}", run.set.as_ref()?))));
        let content = training.map(|training| self.init_identity(&format!("arms.{}", run.arm), training));
        Ok((after, content.transpose()?.unwrap_or_default()))
    }

    /// The trainings that try settings out for this arm, which are added if they are not there yet. Sets of other seeds
    /// take what was found with the first.
    fn search(&mut self, run: &ArmRun, content: &Value) -> Result<Vec<Candidate>> {
        let recipe = &self.resolved.recipe;
        let Some(arm) = recipe.arms.get(&run.arm) else { return Ok(Vec::new()) };
        let Some(search) = &arm.search else { return Ok(Vec::new()) };
        let set = arm.set.as_ref().and_then(|set| recipe.sets.get(set));
        let set_seed = set.and_then(|set| set.seeds.first().copied());
        let trial = ArmRun { set_seed, seed: search.seed, ..run.clone() };
        let candidates =
            search::draws(search, &arm.training).into_iter().enumerate().map(|(draw, settings)| Candidate {
                stage: format!("train.{}{}.d{draw}", run.arm, of_set(set_seed)),
                settings,
            });
        let candidates: Vec<Candidate> = candidates.collect();
        for Candidate { stage, settings } in &candidates {
            if self.stages.iter().any(|known| known.name == *stage) {
                continue;
            }
            let (after, _) = self.arm_needs(&trial)?;
            self.add(Kind::Arm, stage.clone(), after, content.clone(), &|all| {
                let mut params = arm_params(all, &trial);
                params.insert("settings".into(), json!(settings));
                Value::Object(params)
            });
        }
        Ok(candidates)
    }

    fn evaluate(&mut self) -> Result<()> {
        let recipe = &self.resolved.recipe;
        let runs = arm_runs(self.resolved);
        if runs.is_empty() {
            return Ok(());
        }
        let mut after: Vec<String> =
            recipe.evaluate.splits.iter().map(|split| format!("prepare.{split}")).collect();
        after.push(format!("prepare.{}", recipe.classifier.split));
        after.extend(runs.iter().map(|(_, stage)| stage.clone()));
        let runs: Vec<Value> = runs
            .iter()
            .map(|(run, stage)| json!({ "stage": stage, "arm": run.arm, "set_seed": run.set_seed, "seed": run.seed }))
            .collect();
        self.add(Kind::Evaluate, "evaluate".into(), after, Value::Null, &|all| {
            let mut params = without(&all["evaluate"], &[]);
            params.insert("train_split".into(), all["classifier"]["split"].clone());
            params.insert("runs".into(), json!(runs));
            Value::Object(params)
        });
        Ok(())
    }

    fn metrics(&mut self) -> Result<()> {
        let recipe = &self.resolved.recipe;
        if recipe.sets.is_empty() {
            return Ok(());
        }
        let mut after = vec![format!("prepare.{}", recipe.metrics.reference)];
        let mut content = Map::new();
        for name in [&recipe.metrics.extractor, &recipe.metrics.judge] {
            let Some(helper) = recipe.classifiers.get(name) else { continue };
            let (stages, weights) = self.helper_needs(name, helper)?;
            after.extend(stages.into_iter().filter(|stage| !after.contains(stage)).collect::<Vec<_>>());
            content.insert(name.clone(), weights);
        }
        let mut sets = Vec::new();
        for (name, set) in recipe.sets.iter() {
            after.push(format!("prepare.{}", set.generate.split));
            for seed in &set.seeds {
                let stage = format!("generate.{name}.k{seed}");
                sets.push(json!({ "stage": stage, "set": name, "seed": seed }));
                after.push(stage);
            }
        }
        after.sort();
        after.dedup();
        self.add(Kind::Metrics, "metrics".into(), after, Value::Object(content), &|all| {
            let mut params = without(&all["metrics"], &[]);
            params.insert("sets".into(), json!(sets));
            Value::Object(params)
        });
        Ok(())
    }

    fn grid(&mut self) -> Result<()> {
        let resolved = self.resolved;
        let recipe = &resolved.recipe;
        let Some(grid) = &recipe.grid else { return Ok(()) };
        let Some(set) = recipe.sets.get(&grid.set) else { return Ok(()) };
        let (mut after, mut content) = self.sampling_needs(set)?;
        if let Some(judge) = recipe.classifiers.get(&recipe.metrics.judge) {
            let (stages, weights) = self.helper_needs(&recipe.metrics.judge, judge)?;
            after.extend(stages);
            content["judge"] = weights;
        }
        self.add(Kind::Grid, "grid".into(), after, content, &|all| {
            let mut params = without(&all["grid"], &[]);
            params.insert("generate".into(), Value::Object(sampling_params(all, &grid.set, set)));
            params.insert("judge".into(), all["metrics"]["judge"].clone());
            Value::Object(params)
        });
        self.await_embeddings(&set.generate.split);
        Ok(())
    }

    fn dropout(&mut self) -> Result<()> {
        let resolved = self.resolved;
        let recipe = &resolved.recipe;
        let Some(dropout) = &recipe.dropout else { return Ok(()) };
        let Some(set) = recipe.sets.get(&dropout.set) else { return Ok(()) };
        let (mut after, mut content) = self.sampling_needs(set)?;
        for (role, name) in [("judge", &recipe.metrics.judge), ("extractor", &recipe.metrics.extractor)] {
            let Some(helper) = recipe.classifiers.get(name) else { continue };
            let (stages, weights) = self.helper_needs(name, helper)?;
            after.extend(stages.into_iter().filter(|stage| !after.contains(stage)).collect::<Vec<_>>());
            content[role] = weights;
        }
        self.add(Kind::Dropout, "dropout".into(), after, content, &|all| {
            let mut params = without(&all["dropout"], &[]);
            params.insert("generate".into(), Value::Object(sampling_params(all, &dropout.set, set)));
            params.insert("judge".into(), all["metrics"]["judge"].clone());
            params.insert("extractor".into(), all["metrics"]["extractor"].clone());
            Value::Object(params)
        });
        self.await_embeddings(&set.generate.split);
        Ok(())
    }
}

/// The stage that embeds the real images of a split.
fn image_embeddings(split: &str) -> String {
    format!("embed-images.{split}")
}

/// One training of an arm.
#[derive(Clone)]
struct ArmRun {
    arm: String,
    split: String,
    extra_split: Option<String>,
    set: Option<String>,
    set_seed: Option<u64>,
    seed: u64,
}

/// Every training of every arm, with the name of its stage.
fn arm_runs(resolved: &Resolved) -> Vec<(ArmRun, String)> {
    let recipe = &resolved.recipe;
    let mut runs = Vec::new();
    for (name, arm) in recipe.arms.iter() {
        let set = arm.set.as_ref().and_then(|set| recipe.sets.get(set));
        let set_seeds: Vec<Option<u64>> = match set {
            Some(set) => set.seeds.iter().map(|&seed| Some(seed)).collect(),
            None => vec![None],
        };
        for set_seed in set_seeds {
            for &seed in &arm.seeds {
                let run = ArmRun {
                    arm: name.into(),
                    split: arm.training.split.clone(),
                    extra_split: arm.extra_split.clone(),
                    set: arm.set.clone(),
                    set_seed,
                    seed,
                };
                runs.push((run, format!("train.{name}{}.s{seed}", of_set(set_seed))));
            }
        }
    }
    runs
}

/// The part of a stage's name that tells on which of several sets an arm is trained.
fn of_set(seed: Option<u64>) -> String {
    seed.map(|k| format!(".k{k}")).unwrap_or_default()
}

/// The keys of a training of an arm.
fn arm_params(all: &Value, run: &ArmRun) -> Map<String, Value> {
    let mut params = without(&all["arms"][&run.arm], &["seeds", "label", "search"]);
    params.insert("arm".into(), json!(run.arm));
    params.insert("seed".into(), json!(run.seed));
    params.extend(run.set_seed.map(|k| ("set_seed".into(), json!(k))));
    params
}

/// The stage that a training waits for because it looks at a split now and then.
fn validation(training: &Classifier) -> Option<String> {
    Some(format!("prepare.{}", training.validate.as_ref()?.split))
}

/// A set's own keys with the generator's. Without feedback the guide plays no part.
fn sampling_params(all: &Value, name: &str, set: &Set) -> Map<String, Value> {
    let unused: &[&str] =
        if set.generate.feedback.is_some() { &["seeds", "label"] } else { &["seeds", "label", "guide"] };
    let mut params = without(&all["sets"][name], unused);
    params.insert("diffusion".into(), Value::Object(without(&all["diffusion"], &["train"])));
    params
}

/// The guide and the kind of covariance of a set that feedback makes harder.
fn hardness(set: &Set) -> Option<(&str, &str)> {
    let feedback = &set.generate.feedback.as_ref()?.0;
    let guide = set.generate.guide.as_deref()?;
    (feedback["criterion"] == "hardness")
        .then(|| (guide, feedback["covariance"].as_str().unwrap_or("pooled")))
}

/// A table without some of its keys.
fn without(table: &Value, keys: &[&str]) -> Map<String, Value> {
    let mut table = table.as_object().cloned().unwrap_or_default();
    table.retain(|key, _| !keys.contains(&key.as_str()));
    table
}
