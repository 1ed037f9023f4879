//! Compares a configuration with the schema; finds everything that is wrong, not only the first thing.

use crate::nearest::{hint, nearest};
use crate::problem::Problems;
use crate::schema::{Expected, Schema, Table};
use crate::source::{Layer, Origin};
use crate::tree::{Data, Entry, Node};
use serde_json::{Map, Number, Value};

/// Checks `root` and writes whole numbers as floats where the schema wants numbers, so that `1` and `1.0` are the
/// same configuration.
pub fn check(schema: &Schema, root: &mut Node) -> Problems {
    let mut checker =
        Checker { schema, root: root.origin.clone(), problems: Problems::default(), seen: Vec::new() };
    checker.value(schema.root(), root, "");
    checker.problems
}

/// The table whose keys are patterns of names.
const PATTERNS: &str = "slurm.stages";

struct Checker<'s> {
    schema: &'s Schema,
    /// Where the configuration begins: in the recipe, if there is one.
    root: Origin,
    problems: Problems,
    /// Place and kind of the problems so far.
    seen: Vec<(Origin, String)>,
}

impl<'s> Checker<'s> {
    fn value(&mut self, schema: &'s Value, node: &mut Node, path: &str) {
        match self.schema.expected(schema, node) {
            Expected::Anything => {}
            Expected::OneOf(values) => self.one_of(&values, node, path),
            Expected::Named(values) => self.named(values, node, path),
            Expected::Table(table) => self.table(&table, node, path),
            Expected::Plain(map) => self.plain(map, node, path),
            Expected::Tag(tag, values) => self.tag(tag, &values, node, path),
            Expected::Untagged(tag, values) => {
                let given = node.as_str().unwrap_or_default();
                let like = nearest(given, values.iter().copied()).or(values.first().copied());
                let example = like.map(|value| format!("; such as {{ {tag} = '{value}' }}"));
                let valid = values.join(", ");
                let what =
                    format!("must be a table, not a string{} (valid: {valid})", example.unwrap_or_default());
                self.wrong(node, path, &what);
            }
            Expected::Types(types) => {
                let mut wanted: Vec<&str> = types.into_iter().map(type_name).collect();
                wanted.dedup();
                self.wrong(node, path, &format!("must be {}, not {}", wanted.join(" or "), node.kind()));
            }
        }
    }

    fn wrong(&mut self, node: &Node, path: &str, what: &str) {
        self.once(&node.origin, what, format!("{path} {what}"));
    }

    /// A problem, unless what is inherited has shown it already: the same thing is wrong at the same place.
    fn once(&mut self, origin: &Origin, what: &str, message: String) {
        if !self.seen.iter().any(|(place, known)| place == origin && known == what) {
            self.seen.push((origin.clone(), what.to_string()));
            self.problems.push(Some(origin), message);
        }
    }

    fn one_of(&mut self, values: &[&Value], node: &Node, path: &str) {
        let given = node.to_value();
        if values.contains(&&given) {
            return;
        }
        let names: Vec<String> = values.iter().map(|value| plain_text(value)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let text = plain_text(&given);
        self.wrong(node, path, &format!("cannot be '{text}'{}", hint(&text, &names)));
    }

    fn tag(&mut self, tag: &str, values: &[&str], node: &Node, path: &str) {
        match node.get(tag) {
            Some(given) => {
                let text = plain_text(&given.to_value());
                let message = format!("{path}.{tag} cannot be '{text}'{}", hint(&text, values));
                self.once(&given.origin, tag, message);
            }
            None => self.wrong(node, path, &format!("needs a key '{tag}' (valid: {})", values.join(", "))),
        }
    }

    fn named(&mut self, values: &'s Value, node: &mut Node, path: &str) {
        let patterns = path == PATTERNS;
        for Entry { key, origin, node } in entries_mut(node) {
            let legal = |c: char| {
                c.is_ascii_alphanumeric() || c == '-' || c == '_' || patterns && "*?[].".contains(c)
            };
            if key.is_empty() || key.starts_with('-') || !key.chars().all(legal) {
                let message = format!("'{key}' in [{path}] is no name: use letters, digits, '-' and '_'");
                self.problems.push(Some(origin), message);
            } else if stands_for_a_seed(key) {
                let message = format!(
                    "'{key}' in [{path}] is no name: k, s and d with a number stand for seeds and draws"
                );
                self.problems.push(Some(origin), message);
            }
            self.value(values, node, &format!("{path}.{key}"));
        }
    }

    fn table(&mut self, table: &Table<'s>, node: &mut Node, path: &str) {
        let place = if path.is_empty() { "the top level".into() } else { format!("[{path}]") };
        let missing: Vec<String> = table
            .required
            .iter()
            .filter(|key| node.get(key).is_none())
            .map(|key| format!("'{key}'"))
            .collect();
        // A table that only the defaults have is not where anybody can add a key.
        let origin = if node.origin.source.layer == Layer::Default { &self.root } else { &node.origin };
        let (origin, all) = (origin.clone(), missing.join(", "));
        match missing.len() {
            0 => {}
            1 => self.once(&origin, &all, format!("key {all} is missing in {place}")),
            _ => self.once(&origin, &all, format!("keys {all} are missing in {place}")),
        }
        for Entry { key, origin, node } in entries_mut(node) {
            match table.properties.get(key.as_str()) {
                Some(schema) => {
                    let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    self.value(schema, node, &path);
                }
                None if table.closed => {
                    let valid: Vec<&str> = table.properties.keys().map(String::as_str).collect();
                    let message = format!("unknown key '{key}' in {place}{}", hint(key, &valid));
                    self.once(origin, "unknown", message);
                }
                None => {}
            }
        }
    }

    fn plain(&mut self, schema: &'s Map<String, Value>, node: &mut Node, path: &str) {
        let limit = |word: &str| schema.get(word).and_then(Value::as_f64);
        match &mut node.data {
            Data::List(items) => {
                let count = items.len() as f64;
                let first = schema.get("prefixItems").and_then(Value::as_array);
                for (index, node) in items.iter_mut().enumerate() {
                    let item = first.and_then(|first| first.get(index)).or(schema.get("items"));
                    if let Some(item) = item {
                        self.value(item, node, &format!("{path}[{index}]"));
                    }
                }
                if limit("minItems").is_some_and(|least| count < least)
                    || limit("maxItems").is_some_and(|most| count > most)
                {
                    let wanted = bounds(limit("minItems"), limit("maxItems"));
                    let items = if wanted.ends_with(" 1") || wanted == "1" { "item" } else { "items" };
                    self.wrong(node, path, &format!("must have {wanted} {items}, not {count}"));
                }
            }
            Data::Scalar(Value::String(text)) if text.is_empty() && limit("minLength") > Some(0.0) => {
                self.wrong(node, path, "must not be empty");
            }
            Data::Scalar(Value::Number(number)) => {
                if schema.get("type").and_then(Value::as_str) == Some("number")
                    && let Some(float) = number.as_f64().and_then(Number::from_f64)
                {
                    *number = float;
                }
                let number = number.clone();
                self.range(schema, &number, node, path);
            }
            _ => {}
        }
    }

    fn range(&mut self, schema: &Map<String, Value>, number: &Number, node: &Node, path: &str) {
        let limit = |word: &str| schema.get(word).and_then(Value::as_f64);
        let value = number.as_f64().unwrap_or(0.0);
        let least = limit("minimum");
        let most =
            limit("maximum").or_else(|| schema.get("format").and_then(Value::as_str).and_then(format_limit));
        if least.is_some_and(|least| value < least) || most.is_some_and(|most| value > most) {
            self.wrong(node, path, &format!("must be {}, not {number}", bounds(least, most)));
        }
        if let Some(least) = limit("exclusiveMinimum").filter(|least| value <= *least) {
            self.wrong(node, path, &format!("must be more than {least}, not {number}"));
        }
        if let Some(most) = limit("exclusiveMaximum").filter(|most| value >= *most) {
            self.wrong(node, path, &format!("must be less than {most}, not {number}"));
        }
    }
}

/// `k0`, `s1` and `d2` are parts of stage names.
fn stands_for_a_seed(name: &str) -> bool {
    let digits = name.strip_prefix(['k', 's', 'd']).unwrap_or_default();
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

fn entries_mut(node: &mut Node) -> &mut [Entry] {
    match &mut node.data {
        Data::Table(entries) => entries,
        _ => &mut [],
    }
}

fn plain_text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}

fn type_name(name: &str) -> &str {
    match name {
        "object" => "a table",
        "array" => "a list",
        "string" => "a string",
        "boolean" => "true or false",
        "integer" => "an integer",
        "number" => "a number",
        other => other,
    }
}

fn bounds(least: Option<f64>, most: Option<f64>) -> String {
    match (least, most) {
        (Some(least), Some(most)) if least == most => format!("{least}"),
        (Some(least), Some(most)) => format!("{least} to {most}"),
        (Some(least), None) => format!("at least {least}"),
        (None, Some(most)) => format!("at most {most}"),
        (None, None) => "any number of".into(),
    }
}

/// Largest value of the integer formats that `schemars` names.
fn format_limit(format: &str) -> Option<f64> {
    match format {
        "uint8" => Some(f64::from(u8::MAX)),
        "uint16" => Some(f64::from(u16::MAX)),
        "uint32" => Some(f64::from(u32::MAX)),
        "int32" => Some(f64::from(i32::MAX)),
        _ => None,
    }
}
