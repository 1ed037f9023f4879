//! Names in a recipe must name something.

use crate::nearest::hint;
use crate::problem::Problems;
use crate::recipe::{Arm, Diffusion, Set, Validate};
use crate::resolved::Resolved;

/// Every reference that leads nowhere, and every combination that makes no sense.
pub(crate) fn references(resolved: &Resolved) -> Problems {
    let mut checker = Checker { resolved, problems: Problems::default() };
    checker.names();
    checker.classifiers();
    checker.arms();
    checker.generator();
    checker.sets();
    checker.results();
    checker.problems.and(crate::slurm::problems(resolved))
}

struct Checker<'a> {
    resolved: &'a Resolved,
    problems: Problems,
}

impl Checker<'_> {
    fn wrong(&mut self, path: &str, message: impl Into<String>) {
        let origin = self.resolved.at(path).map(|node| node.origin.clone());
        self.problems.push(origin.as_ref(), message);
    }

    /// `name`, written at `path`, must be one of `known`.
    fn refers(&mut self, path: &str, what: &str, name: &str, known: &[&str]) {
        if !known.contains(&name) {
            self.wrong(path, format!("{path}: there is no {what} '{name}'{}", hint(name, known)));
        }
    }

    fn split(&mut self, path: &str, name: &str) {
        let resolved = self.resolved;
        match &resolved.recipe.data {
            Some(data) => self.refers(path, "split", name, &data.splits.names()),
            None => self.wrong(path, format!("{path}: there is no split '{name}': the recipe has no [data]")),
        }
    }

    fn names(&mut self) {
        let recipe = &self.resolved.recipe;
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let name = &recipe.run.name;
        if !name.chars().all(legal) || name.starts_with(['.', '-']) {
            self.wrong(
                "run.name",
                format!("run.name: '{name}' is no folder name: use letters, digits, '-', '_', '.'"),
            );
        }
        for arm in recipe.arms.names() {
            if recipe.classifiers.get(arm).is_some() {
                let path = format!("arms.{arm}");
                self.wrong(&path, format!("{path}: a classifier has this name too; rename one of them"));
            }
        }
    }

    fn batches(&mut self, path: &str, global: u64, micro: u64) {
        if global.is_multiple_of(micro) {
            return;
        }
        let [global_path, micro_path] = ["global_batch", "micro_batch"].map(|key| format!("{path}.{key}"));
        // At the one that somebody has set.
        let layer = |path: &str| self.resolved.at(path).map(|node| node.origin.source.layer);
        if layer(&global_path) > layer(&micro_path) {
            let message = format!("{global_path}: {global} is no multiple of micro_batch = {micro}");
            self.wrong(&global_path, message);
        } else {
            self.wrong(&micro_path, format!("{micro_path}: {micro} does not divide global_batch = {global}"));
        }
    }

    fn classifiers(&mut self) {
        let recipe = &self.resolved.recipe;
        for (name, helper) in recipe.classifiers.iter() {
            let path = format!("classifiers.{name}");
            self.batches(&path, helper.training.global_batch, helper.training.micro_batch);
            if helper.weights.is_none() {
                self.split(&format!("{path}.split"), &helper.training.split);
                self.validation(&path, helper.training.validate.as_ref());
            }
        }
    }

    fn arms(&mut self) {
        let recipe = &self.resolved.recipe;
        for (name, arm) in recipe.arms.iter() {
            let path = format!("arms.{name}");
            self.batches(&path, arm.training.global_batch, arm.training.micro_batch);
            self.split(&format!("{path}.split"), &arm.training.split);
            self.validation(&path, arm.training.validate.as_ref());
            self.search(&path, arm);
            self.seeds(&path, &arm.seeds);
            if let Some(set) = &arm.set {
                self.refers(&format!("{path}.set"), "set", set, &recipe.sets.names());
            }
            if let Some(split) = &arm.extra_split {
                self.split(&format!("{path}.extra_split"), split);
            }
            if arm.set.is_none() && arm.set_images.is_some() {
                let path = format!("{path}.set_images");
                self.wrong(&path, format!("{path}: there is no set to take images from"));
            }
            if arm.set.is_some() && arm.extra_split.is_some() {
                self.wrong(&path, format!("{path}: has both a set and an extra_split; make two arms of it"));
            }
        }
    }

    fn search(&mut self, path: &str, arm: &Arm) {
        let Some(search) = &arm.search else { return };
        let here = format!("{path}.search");
        if arm.training.validate.is_none() {
            let message = "needs validate = { split, every_steps }: that split decides";
            self.wrong(&here, format!("{here}: {message}"));
        }
        let [low, high] = search.lr;
        if !(low > 0.0 && low <= high && high.is_finite()) {
            let path = format!("{here}.lr");
            self.wrong(&path, format!("{path}: [{low}, {high}] must be positive and ascending"));
        }
        let ([low, high], least) =
            (search.global_batch, arm.training.global_batch / arm.training.micro_batch);
        if !(low >= least && low <= high) {
            let path = format!("{here}.global_batch");
            let message = format!("[{low}, {high}] must be ascending, from {least} micro-batches on");
            self.wrong(&path, format!("{path}: {message}"));
        }
    }

    fn validation(&mut self, path: &str, validate: Option<&Validate>) {
        if let Some(validate) = validate {
            self.split(&format!("{path}.validate.split"), &validate.split);
        }
    }

    fn seeds(&mut self, path: &str, seeds: &[u64]) {
        let mut sorted = seeds.to_vec();
        sorted.sort_unstable();
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            let path = format!("{path}.seeds");
            self.wrong(&path, format!("{path}: {} stands there twice", pair[0]));
        }
    }

    fn generator(&mut self) {
        let recipe = &self.resolved.recipe;
        let diffusion = &recipe.diffusion;
        match (&diffusion.folder, &diffusion.weights, &diffusion.train.split) {
            (Some(_), Some(_), _) => {
                self.wrong(
                    "diffusion.folder",
                    "diffusion.folder: there are diffusion.weights too; give one of them",
                );
            }
            (None, None, Some(split)) => self.split("diffusion.train.split", split),
            (None, None, None) if !recipe.sets.is_empty() => {
                let ways = "diffusion.weights, diffusion.folder or diffusion.train.split";
                self.wrong("sets", format!("sets need a generator: give {ways}"));
            }
            _ => {}
        }
        if learns_sigma(diffusion) && diffusion.schedule.0["rescale_betas_zero_snr"] == true {
            let path = "diffusion.model.learn_sigma";
            self.wrong(
                path,
                format!(
                    "{path}: rescale_betas_zero_snr leaves no finite variance to learn at the last time step"
                ),
            );
        }
        self.batches("diffusion.train", diffusion.train.global_batch, diffusion.train.micro_batch);
    }

    fn sets(&mut self) {
        let recipe = &self.resolved.recipe;
        for (name, set) in recipe.sets.iter() {
            let path = format!("sets.{name}");
            self.split(&format!("{path}.split"), &set.generate.split);
            self.seeds(&path, &set.seeds);
            self.variance(&path, set);
            self.hardness_keys(&path, set);
            self.condition(&path, set);
            self.groups(&path, set);
            if set.generate.feedback.is_some() {
                match &set.generate.guide {
                    Some(guide) => {
                        self.refers(
                            &format!("{path}.guide"),
                            "classifier",
                            guide,
                            &recipe.classifiers.names(),
                        );
                    }
                    None => self
                        .wrong(&path, format!("{path}: feedback needs a guide: name one of [classifiers]")),
                }
            }
        }
    }

    /// A latent generator must be told what to make; a pixel generator cannot be.
    fn condition(&mut self, path: &str, set: &Set) {
        let latent = self.resolved.recipe.diffusion.folder.is_some();
        match (latent, &set.generate.condition) {
            (true, None) => self.wrong(
                path,
                format!(
                    "{path}: diffusion.folder needs a condition, such as [generate.condition] in default.toml"
                ),
            ),
            (false, Some(_)) => {
                let path = format!("{path}.condition");
                self.wrong(&path, format!("{path}: only a generator of diffusion.folder takes one"));
            }
            _ => {}
        }
    }

    /// A plan by group needs contexts, and gives each image one; a prompt can only name what an image has.
    fn groups(&mut self, path: &str, set: &Set) {
        let by_group = set.generate.plan.0["kind"] == "balance_groups_to";
        let data = self.resolved.recipe.data.as_ref();
        if by_group && data.is_some_and(|data| data.contexts.is_none()) {
            let path = format!("{path}.plan.kind");
            self.wrong(
                &path,
                format!("{path}: a plan by group needs data.contexts, the names of the contexts"),
            );
        }
        if !by_group && names_context(set) {
            let path = format!("{path}.condition.prompt");
            self.wrong(
                &path,
                format!(
                    "{path}: {{context}} needs plan.kind = 'balance_groups_to', which gives each image one"
                ),
            );
        }
    }

    /// A learned variance can only be sampled with if it was learned.
    fn variance(&mut self, path: &str, set: &Set) {
        let wants = set.generate.sampler.0["variance"] == "learned_range";
        if wants && !learns_sigma(&self.resolved.recipe.diffusion) {
            let path = format!("{path}.sampler.variance");
            self.wrong(
                &path,
                format!("{path}: 'learned_range' needs a generator with diffusion.model.learn_sigma = true"),
            );
        }
    }

    /// Keys of feedback that only one criterion knows.
    fn hardness_keys(&mut self, path: &str, set: &Set) {
        let Some(feedback) = &set.generate.feedback else { return };
        for key in ["covariance", "shrinkage"] {
            if feedback.0["criterion"] != "hardness" && !feedback.0[key].is_null() {
                let path = format!("{path}.feedback.{key}");
                self.wrong(&path, format!("{path}: only the criterion 'hardness' has it"));
            }
        }
    }

    /// The report shows a split that is evaluated. Where splits do not exist, that is told already.
    fn report_split(&mut self) {
        let recipe = &self.resolved.recipe;
        let (split, splits) = (&recipe.report.split, &recipe.evaluate.splits);
        let names = recipe.data.as_ref().map(|data| data.splits.names()).unwrap_or_default();
        if splits.contains(split) || splits.iter().any(|split| !names.contains(&split.as_str())) {
            return;
        }
        let message =
            format!("report.split: there is no evaluated split '{split}'{}", hint(split, &strs(splits)));
        // At the one that somebody has set.
        let layer = |path: &str| self.resolved.at(path).map(|node| node.origin.source.layer);
        let path = match layer("evaluate.splits") > layer("report.split") {
            true => "evaluate.splits",
            false => "report.split",
        };
        self.wrong(path, message);
    }

    fn results(&mut self) {
        let recipe = &self.resolved.recipe;
        let classifiers = recipe.classifiers.names();
        if !recipe.arms.is_empty() {
            for split in &recipe.evaluate.splits {
                self.split("evaluate.splits", split);
            }
            self.split("classifier.split", &recipe.classifier.split);
            self.report_split();
        }
        if !recipe.sets.is_empty() {
            self.split("metrics.reference", &recipe.metrics.reference);
            self.refers("metrics.extractor", "classifier", &recipe.metrics.extractor, &classifiers);
            self.refers("metrics.judge", "classifier", &recipe.metrics.judge, &classifiers);
        }
        if let Some(grid) = &recipe.grid {
            self.refers("grid.set", "set", &grid.set, &recipe.sets.names());
            if recipe.sets.get(&grid.set).is_some_and(names_context) {
                let message =
                    "grid.set: the images of a grid have no {context}, which the prompt of this set names";
                self.wrong("grid.set", message);
            }
        }
        if let Some(dropout) = &recipe.dropout {
            self.refers("dropout.set", "set", &dropout.set, &recipe.sets.names());
            if recipe.diffusion.folder.is_none() {
                self.wrong(
                    "dropout",
                    "dropout: only a generator of diffusion.folder is conditioned on images",
                );
            }
        }
        if let Some(baseline) = &recipe.report.baseline {
            self.refers("report.baseline", "arm", baseline, &recipe.arms.names());
        }
    }
}

/// Whether the prompt of a set names the context of an image.
fn names_context(set: &Set) -> bool {
    let prompt = set.generate.condition.as_ref().map(|condition| condition.0["prompt"].to_string());
    prompt.is_some_and(|prompt| prompt.contains("{context}"))
}

/// Whether the generator has variance channels.
fn learns_sigma(diffusion: &Diffusion) -> bool {
    diffusion.model.0["learn_sigma"] == true
}

fn strs(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).collect()
}
