//! Writes the schema: the structure from [`Recipe`], the methods from the crates that own them.

use crate::method::METHODS;
use crate::recipe::Recipe;
use equipoise_base::{Result, ensure};
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

/// The schema of a recipe, with method definitions (`"Arch"`, `"Loss"`, ... as in [`METHODS`]) filled in.
///
/// Definitions left out accept anything. A step binary calls this with the parameter structs of the method crates.
///
/// # Errors
/// If a fragment has no definition of that name to fill.
pub fn schema_for_recipe(fragments: &[(&str, schemars::Schema)]) -> Result<Value> {
    let root = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<Recipe>();
    let mut root = root.to_value();
    for (name, fragment) in fragments {
        ensure!(
            METHODS.contains(name),
            Bug,
            "schema: no method definition '{name}' in {}",
            METHODS.join(", ")
        );
        insert(&mut root, name, fragment.clone().to_value());
    }
    let definitions = root["$defs"].clone();
    publish(&mut root, &definitions);
    if let Value::Object(definitions) = &mut root["$defs"] {
        definitions.sort_keys();
    }
    root["title"] = json!("Equipoise recipe");
    Ok(root)
}

/// Puts `fragment` at `#/$defs/name`, and its own definitions beside it as `name.theirs`.
fn insert(root: &mut Value, name: &str, mut fragment: Value) {
    let inner = fragment.as_object_mut().and_then(|map| map.remove("$defs"));
    let inner = inner.and_then(|definitions| definitions.as_object().cloned()).unwrap_or_default();
    rename(&mut fragment, name);
    if let Some(map) = fragment.as_object_mut() {
        map.remove("$schema");
    }
    root["$defs"][name] = fragment;
    for (theirs, mut definition) in inner {
        rename(&mut definition, name);
        root["$defs"][format!("{name}.{theirs}")] = definition;
    }
}

/// References of a fragment follow its definitions to their new names.
fn rename(schema: &mut Value, prefix: &str) {
    match schema {
        Value::Object(map) => {
            if let Some(Value::String(target)) = map.get_mut("$ref") {
                *target = match target.strip_prefix("#/$defs/") {
                    Some(name) => format!("#/$defs/{prefix}.{name}"),
                    None => format!("#/$defs/{prefix}"),
                };
            }
            map.values_mut().for_each(|value| rename(value, prefix));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| rename(item, prefix)),
        _ => {}
    }
}

/// Brings a schema into the form that the `schema` module describes.
fn publish(schema: &mut Value, definitions: &Value) {
    flatten(schema, definitions);
    match schema {
        Value::Object(map) => {
            rewrite(map);
            for (key, value) in map.iter_mut() {
                match (key.as_str(), value) {
                    // Names of keys and definitions, not words of JSON Schema.
                    ("properties" | "$defs", Value::Object(named)) => {
                        named.values_mut().for_each(|value| publish(value, definitions));
                    }
                    ("default" | "const" | "enum" | "examples", _) => {}
                    (_, value) => publish(value, definitions),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| publish(item, definitions)),
        _ => {}
    }
}

/// Copies into a table what `$ref`, `allOf` and flattened alternatives would add to it, so that it can be closed.
fn flatten(schema: &mut Value, definitions: &Value) {
    let Some(map) = schema.as_object_mut() else { return };
    if map.contains_key("properties") && map.contains_key("$ref") {
        let target = map.remove("$ref").unwrap_or_default();
        absorb(map, &lookup(&target, definitions), definitions);
    }
    if let Some(Value::Array(parts)) = map.remove("allOf") {
        parts.iter().for_each(|part| absorb(map, part, definitions));
    }
    for word in ["oneOf", "anyOf"] {
        if map.contains_key("properties")
            && let Some(Value::Array(branches)) = map.remove(word)
        {
            let shared = std::mem::take(map);
            let merged = branches.iter().map(|branch| {
                let mut merged = shared.clone();
                absorb(&mut merged, branch, definitions);
                Value::Object(merged)
            });
            map.insert("anyOf".into(), merged.collect());
        }
    }
}

fn absorb(map: &mut Map<String, Value>, part: &Value, definitions: &Value) {
    let mut part = part.clone();
    if let Some(target) = part.get("$ref").cloned() {
        part = lookup(&target, definitions);
    }
    flatten(&mut part, definitions);
    let Value::Object(part) = part else { return };
    for (key, value) in part {
        match (map.get_mut(&key), value) {
            (Some(Value::Object(existing)), Value::Object(new)) => existing.extend(new),
            (Some(Value::Array(existing)), Value::Array(new)) => existing.extend(new),
            (Some(_), _) => {}
            (None, value) => {
                map.insert(key, value);
            }
        }
    }
}

fn lookup(target: &Value, definitions: &Value) -> Value {
    let name = target.as_str().and_then(|target| target.strip_prefix("#/$defs/"));
    name.and_then(|name| definitions.get(name)).cloned().unwrap_or(Value::Bool(true))
}

fn rewrite(map: &mut Map<String, Value>) {
    if let Some(required) = map.remove("required") {
        map.insert("x-required".into(), required);
    }
    if let Some(branches) = map.remove("oneOf") {
        map.insert("anyOf".into(), branches);
    }
    // TOML has no null: an optional key is one that may be left out.
    if let Some(Value::Array(branches)) = map.get_mut("anyOf") {
        branches.retain(|branch| branch.get("type").and_then(Value::as_str) != Some("null"));
        if branches.len() == 1
            && let Some(Value::Array(mut only)) = map.remove("anyOf")
            && let Some(Value::Object(only)) = only.pop()
        {
            only.into_iter().for_each(|(key, value)| {
                map.entry(key).or_insert(value);
            });
        }
    }
    if let Some(Value::Array(types)) = map.get_mut("type") {
        types.retain(|name| name != "null");
        if let [only] = types.as_slice() {
            let only = only.clone();
            map.insert("type".into(), only);
        }
    }
    if let Some(Value::Array(values)) = map.get_mut("enum") {
        values.retain(|value| !value.is_null());
    }
    map.retain(|key, value| !(key == "default" && value.is_null()) && key != "title");
    if map.get("properties").is_some_and(Value::is_object) && !map.contains_key("additionalProperties") {
        map.remove("unevaluatedProperties");
        map.insert("additionalProperties".into(), Value::Bool(false));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::check;
    use crate::merge::inherit;
    use crate::schema::Schema;
    use crate::source::{Layer, Source};
    use crate::tree::Node;
    use schemars::{JsonSchema, schema_for};
    use std::sync::Arc;

    /// As method crates write their parameters: a tag, and a struct that denies unknown keys.
    #[derive(JsonSchema)]
    #[serde(tag = "kind", rename_all = "snake_case")]
    #[expect(dead_code, reason = "only its schema is used")]
    enum TestArch {
        Net(Net),
        Plain {},
    }

    #[derive(JsonSchema)]
    #[serde(deny_unknown_fields, default)]
    struct Net {
        depth: u8,
        pool: Option<Pool>,
        window: (f64, u32),
    }

    impl Default for Net {
        fn default() -> Self {
            Self { depth: 8, pool: None, window: (1.0, 1) }
        }
    }

    #[derive(JsonSchema)]
    #[serde(rename_all = "snake_case")]
    #[expect(dead_code, reason = "only its schema is used")]
    enum Pool {
        /// Documented, so that the schema lists constants instead of an enumeration.
        Average,
        Attention,
    }

    /// What is wrong with an architecture, under a schema with the fragment above.
    fn problems(arch: &str) -> Vec<String> {
        let schema = Schema(schema_for_recipe(&[("Arch", schema_for!(TestArch))]).unwrap());
        let text = crate::DEFAULT.replace("[run]", "[run]\nname = 'x'");
        let text = text.lines().map(|line| match line.starts_with("arch = ") {
            true => format!("arch = {arch}\n"),
            false => format!("{line}\n"),
        });
        let source = Source { layer: Layer::Recipe, name: "t.toml".into(), dir: ".".into() };
        let mut node = Node::parse(&Arc::new(source), &text.collect::<String>()).unwrap();
        inherit(&mut node);
        let message = |problem: &crate::Problem| problem.message.clone();
        check(&schema, &mut node).iter().map(message).collect()
    }

    #[test]
    fn a_fragment_checks_what_it_describes() {
        for fine in
            ["{ kind = 'plain' }", "{ kind = 'net', depth = 20, pool = 'attention', window = [1, 2] }"]
        {
            assert_eq!(problems(fine), Vec::<String>::new(), "{fine}");
        }
        for (wrong, expected) in [
            (
                "{ kind = 'nte' }",
                "classifier.arch.kind cannot be 'nte'; did you mean 'net'? (valid: net, plain)",
            ),
            ("{ depth = 20 }", "classifier.arch needs a key 'kind' (valid: net, plain)"),
            ("{ kind = 'plain', depth = 20 }", "unknown key 'depth' in [classifier.arch]"),
            ("{ kind = 'net', depth = 300 }", "classifier.arch.depth must be 0 to 255, not 300"),
            (
                "{ kind = 'net', pool = 'averge' }",
                "classifier.arch.pool cannot be 'averge'; did you mean 'average'?",
            ),
            (
                "{ kind = 'net', window = [1.0, 2.5] }",
                "classifier.arch.window[1] must be an integer, not a decimal number",
            ),
            ("{ kind = 'net', window = [1.0] }", "classifier.arch.window must have 2 items, not 1"),
            ("'net'", "classifier.arch must be a table, not a string"),
        ] {
            let found = problems(wrong);
            assert!(found.iter().any(|problem| problem.starts_with(expected)), "{wrong}: {found:?}");
        }
    }

    #[test]
    fn a_fragment_without_a_place_is_our_mistake() {
        let error = schema_for_recipe(&[("Arhc", schema_for!(TestArch))]).unwrap_err();
        assert_eq!(error.code(), equipoise_base::ExitCode::Bug);
    }
}
