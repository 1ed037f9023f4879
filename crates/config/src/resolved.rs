//! One configuration out of its layers.

use crate::check::check;
use crate::layers::{self, Parsed};
use crate::merge::{inherit, merge, require_known_names};
use crate::place::resolve_paths;
use crate::problem::Problems;
use crate::recipe::Recipe;
use crate::render::to_toml;
use crate::schema::Schema;
use crate::source::Layer;
use crate::tree::{Data, Node, canonical};
use equipoise_base::{Error, Identity, Result};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// A configuration whose every value is known, checked and traced to the line that set it.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// What the user would write: layers merged, paths absolute.
    merged: Node,
    /// The same with inheritance carried out: every arm, classifier and set complete.
    complete: Node,
    /// The typed view of `complete`.
    pub recipe: Recipe,
}

impl Resolved {
    /// Merges parsed layers, weakest first, and checks the result.
    ///
    /// # Errors
    /// Everything that is wrong, with its place.
    pub fn from_layers(layers: impl IntoIterator<Item = Parsed>) -> std::result::Result<Self, Problems> {
        let mut merged: Option<Node> = None;
        for layer in layers {
            let layer = layer?;
            match &mut merged {
                Some(merged) => {
                    require_known_names(merged, &layer)?;
                    merge(merged, layer);
                }
                None => merged = Some(layer),
            }
        }
        let schema = Schema::embedded();
        let mut merged = merged.ok_or_else(|| Problems::one(None, "no configuration was given"))?;
        let problems = resolve_paths(schema, &mut merged);
        let mut complete = merged.clone();
        inherit(&mut complete);
        let mut problems = check(schema, &mut complete).and(problems);
        if !problems.is_empty() {
            return Err(problems);
        }
        match serde_json::from_value::<Recipe>(complete.to_value()) {
            Ok(recipe) => {
                let resolved = Self { merged, complete, recipe };
                crate::pipeline::references(&resolved).or(resolved)
            }
            Err(error) => {
                problems.push(None, error.to_string());
                Err(problems)
            }
        }
    }

    /// The value, with its place, at a dotted path such as `arms.bs.loss`.
    pub fn at(&self, path: &str) -> Option<&Node> {
        self.complete.at(path)
    }

    /// The configuration before inheritance, as `config show` prints it.
    pub fn merged(&self) -> &Node {
        &self.merged
    }

    /// The whole configuration, tables complete.
    pub fn value(&self) -> Value {
        self.complete.to_value()
    }

    /// [`Resolved::value`] without elastic keys and places on disk: what must match when a run is continued.
    pub fn identity_value(&self) -> Value {
        let schema = Schema::embedded();
        strip(schema, schema.root(), &self.complete).unwrap_or_default()
    }

    /// Hash of [`Resolved::identity_value`].
    pub fn identity(&self) -> Identity {
        Identity::of(&canonical(&self.identity_value()).to_string())
    }

    /// The file to keep in the run directory: it resolves to this configuration again, from anywhere.
    pub fn to_toml(&self) -> String {
        format!("# Resolved configuration, identity {}\n{}", self.identity(), to_toml(&self.merged, true))
    }

    /// Identity keys whose values differ from `other`'s, as dotted paths.
    pub fn changed_keys(&self, other: &Self) -> Vec<String> {
        let mut changed = Vec::new();
        differences(&self.identity_value(), &other.identity_value(), "", &mut changed);
        changed
    }

    /// `run.root/run.name`, where the run lives unless the command line says otherwise.
    pub fn run_dir(&self) -> PathBuf {
        self.recipe.run.root.join(&self.recipe.run.name)
    }
}

/// Resolves a recipe with the site's and the user's settings and `--set` arguments.
///
/// # Errors
/// 78 with one line per problem.
pub fn load_recipe(recipe: &Path, sets: &[String]) -> Result<Resolved> {
    let mut parsed = vec![layers::default_layer()];
    for (layer, file) in layers::site_and_user_files() {
        parsed.push(layers::file_layer(layer, &file)?);
    }
    parsed.push(layers::file_layer(Layer::Recipe, recipe)?);
    parsed.extend(sets.iter().map(|set| layers::set_layer(set)));
    Resolved::from_layers(parsed).map_err(Error::from)
}

/// Reads back what [`Resolved::to_toml`] wrote. Site and user files play no part: the run keeps what it began with.
///
/// # Errors
/// 78 with one line per problem.
pub fn load_resolved(file: &Path, sets: &[String]) -> Result<Resolved> {
    let mut parsed = vec![layers::default_layer(), layers::file_layer(Layer::Recipe, file)?];
    parsed.extend(sets.iter().map(|set| layers::set_layer(set)));
    Resolved::from_layers(parsed).map_err(Error::from)
}

/// The value without what may change; `None` if nothing is left of it.
fn strip(schema: &Schema, expected: &Value, node: &Node) -> Option<Value> {
    if schema.marked(expected, node, "x-elastic") || schema.marked(expected, node, "x-path") {
        return None;
    }
    match &node.data {
        Data::Table(entries) => {
            let mut kept = Map::new();
            for entry in entries {
                let value = match schema.property(expected, node, &entry.key) {
                    Some(property) => strip(schema, property, &entry.node),
                    None => Some(entry.node.to_value()),
                };
                kept.extend(value.map(|value| (entry.key.clone(), value)));
            }
            Some(Value::Object(kept))
        }
        Data::List(items) => match schema.items(expected, node) {
            Some(item) => Some(items.iter().filter_map(|node| strip(schema, item, node)).collect()),
            None => Some(node.to_value()),
        },
        Data::Scalar(value) => Some(value.clone()),
    }
}

fn differences(a: &Value, b: &Value, path: &str, changed: &mut Vec<String>) {
    match (a, b) {
        (Value::Object(left), Value::Object(right)) => {
            let keys = left.keys().chain(right.keys().filter(|key| !left.contains_key(*key)));
            for key in keys {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                let side = |map: &Map<String, Value>| map.get(key).cloned().unwrap_or(Value::Null);
                differences(&side(left), &side(right), &path, changed);
            }
        }
        _ if a != b => changed.push(path.to_string()),
        _ => {}
    }
}
