//! What decides how long a unit of a stage takes. Stages that do the same work share one measurement.

use crate::runner::Run;
use equipoise_base::Identity;
use equipoise_config::recipe::Recipe;
use equipoise_config::tree::canonical;
use equipoise_config::{Kind, Stage};
use serde_json::{Value, json};

/// Names the work of a stage; none for stages that count no units.
pub fn key(run: &Run, stage: &Stage) -> Option<Identity> {
    let recipe = &run.resolved.recipe;
    let work = work(recipe, stage)?;
    let data = recipe.data.as_ref().map(|data| json!({ "size": data.size, "channels": data.channels }));
    let all = json!({
        "work": work,
        "data": data,
        "threads": recipe.run.threads,
        "cpu_capability": recipe.run.cpu_capability,
        "device": recipe.run.device,
    });
    Some(Identity::of(&canonical(&all).to_string()))
}

fn work(recipe: &Recipe, stage: &Stage) -> Option<Value> {
    let params = &stage.params;
    Some(match stage.kind {
        Kind::Prepare => json!(["prepare", params["source"]["format"], params["codec"]]),
        // Which of them are helpers and which are compared makes no difference.
        Kind::Classifier | Kind::Arm => json!(["train", training(params), params["arch"], params["loss"]]),
        Kind::Diffusion => json!(["diffusion", training(&params["train"]), params["model"]]),
        Kind::Generate => json!(["generate", sampling(recipe, params)]),
        Kind::Grid | Kind::Dropout => json!([
            "sweep",
            sampling(recipe, &params["generate"]),
            params["images"],
            network(recipe, &params["judge"]),
        ]),
        Kind::Features => json!(["features", network(recipe, &params["classifier"])]),
        Kind::Embed => json!(["embed", params["of"], params["folder"]]),
        Kind::Evaluate => {
            let archs = recipe.arms.iter().map(|(_, arm)| json!([arm.training.arch, arm.training.augment]));
            let mut archs: Vec<String> = archs.map(|arch| arch.to_string()).collect();
            archs.sort();
            archs.dedup();
            json!(["evaluate", archs])
        }
        Kind::Metrics => {
            json!(["metrics", network(recipe, &params["extractor"]), network(recipe, &params["judge"])])
        }
        Kind::Toy => json!(["toy"]),
        Kind::Statistics | Kind::Report => return None,
    })
}

fn training(table: &Value) -> Value {
    let keys = ["augment", "global_batch", "micro_batch", "precision"];
    let values: Vec<&Value> = keys.iter().map(|key| &table[*key]).collect();
    json!([values, table["optimizer"]["kind"]])
}

/// Everything of a set but how many images it has, where they go, and what they are called.
fn sampling(recipe: &Recipe, params: &Value) -> Value {
    let mut own = params.as_object().cloned().unwrap_or_default();
    for key in ["set", "seed", "split", "plan", "batches_per_shard", "guide"] {
        own.remove(key);
    }
    if let Some(diffusion) = own.get_mut("diffusion").and_then(Value::as_object_mut) {
        diffusion.remove("weights");
    }
    // A strength costs no time; the grid varies it.
    json!([own, network(recipe, &params["guide"])])
}

/// Architecture and views of a helper classifier.
fn network(recipe: &Recipe, name: &Value) -> Value {
    let helper = name.as_str().and_then(|name| recipe.classifiers.get(name));
    helper.map_or(Value::Null, |helper| json!([helper.training.arch, helper.training.augment]))
}

/// Micro-batches of a training step, which ranks share; none for other stages.
pub fn micro_batches(stage: &Stage) -> Option<u64> {
    let table = match stage.kind {
        Kind::Classifier | Kind::Arm => &stage.params,
        Kind::Diffusion => &stage.params["train"],
        _ => return None,
    };
    table["global_batch"].as_u64()?.checked_div(table["micro_batch"].as_u64()?)
}
