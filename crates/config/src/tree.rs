//! A configuration as a tree that remembers where each value was written.

use crate::problem::Problems;
use crate::source::{Origin, Source};
use serde_json::{Map, Value};
use std::sync::Arc;
use toml::de::{DeTable, DeValue};

/// A value and its place.
#[derive(Clone, Debug)]
pub struct Node {
    /// The value.
    pub data: Data,
    /// Where it was written.
    pub origin: Origin,
}

/// A value whose parts know their places.
#[derive(Clone, Debug)]
pub enum Data {
    /// A table, in the order of the file.
    Table(Vec<Entry>),
    /// A list.
    List(Vec<Node>),
    /// A string, number or boolean.
    Scalar(Value),
}

/// A key with its value.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Where the key was written.
    pub origin: Origin,
    /// Its value.
    pub node: Node,
}

impl Node {
    /// Parses TOML; every syntax error becomes a problem.
    pub fn parse(source: &Arc<Source>, text: &str) -> Result<Self, Problems> {
        let (table, errors) = DeTable::parse_recoverable(text);
        let mut problems = Problems::default();
        for error in errors {
            let origin = Origin::at(source, text, error.span().map_or(0, |span| span.start));
            let message = error.message().replace('\n', " ");
            let what = error.span().and_then(|span| text.get(span)).filter(|_| message == "duplicate key");
            problems.push(Some(&origin), what.map_or(message.clone(), |key| format!("{message} '{key}'")));
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let mut reader = Reader { source, text, problems };
        let data = reader.table(table.get_ref());
        let node = Self { data, origin: Origin::at(source, text, 0) };
        reader.problems.or(node)
    }

    /// The entries of a table; none for anything else.
    pub fn entries(&self) -> &[Entry] {
        match &self.data {
            Data::Table(entries) => entries,
            _ => &[],
        }
    }

    /// The value under `key` of a table.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entries().iter().find(|entry| entry.key == key).map(|entry| &entry.node)
    }

    /// The value under `key` of a table, to change.
    pub fn get_mut(&mut self, key: &str) -> Option<&mut Node> {
        match &mut self.data {
            Data::Table(entries) => {
                entries.iter_mut().find(|entry| entry.key == key).map(|entry| &mut entry.node)
            }
            _ => None,
        }
    }

    /// The value at a dotted path; list items are not reached.
    pub fn at(&self, path: &str) -> Option<&Node> {
        path.split('.').try_fold(self, |node, key| node.get(key))
    }

    /// The string, if this is one.
    pub fn as_str(&self) -> Option<&str> {
        match &self.data {
            Data::Scalar(value) => value.as_str(),
            _ => None,
        }
    }

    /// The value without places.
    pub fn to_value(&self) -> Value {
        match &self.data {
            Data::Table(entries) => Value::Object(
                entries.iter().map(|entry| (entry.key.clone(), entry.node.to_value())).collect(),
            ),
            Data::List(items) => Value::Array(items.iter().map(Node::to_value).collect()),
            Data::Scalar(value) => value.clone(),
        }
    }

    /// What a message calls this kind of value.
    pub fn kind(&self) -> &'static str {
        match &self.data {
            Data::Table(_) => "a table",
            Data::List(_) => "a list",
            Data::Scalar(Value::String(_)) => "a string",
            Data::Scalar(Value::Bool(_)) => "a boolean",
            Data::Scalar(Value::Number(number)) if number.is_f64() => "a decimal number",
            Data::Scalar(_) => "an integer",
        }
    }
}

/// Reads one text into a tree.
struct Reader<'a> {
    source: &'a Arc<Source>,
    text: &'a str,
    problems: Problems,
}

impl Reader<'_> {
    fn origin(&self, offset: usize) -> Origin {
        Origin::at(self.source, self.text, offset)
    }

    fn table(&mut self, table: &DeTable<'_>) -> Data {
        let entries = table.iter().map(|(key, value)| Entry {
            key: key.get_ref().to_string(),
            origin: self.origin(key.span().start),
            node: self.node(value.get_ref(), value.span().start),
        });
        Data::Table(entries.collect())
    }

    fn node(&mut self, value: &DeValue<'_>, offset: usize) -> Node {
        let origin = self.origin(offset);
        let data = match value {
            DeValue::Table(table) => self.table(table),
            DeValue::Array(items) => {
                Data::List(items.iter().map(|item| self.node(item.get_ref(), item.span().start)).collect())
            }
            DeValue::String(text) => Data::Scalar(Value::String(text.to_string())),
            DeValue::Boolean(value) => Data::Scalar(Value::Bool(*value)),
            DeValue::Integer(integer) => Data::Scalar(self.number(
                &origin,
                integer.as_str(),
                integer.radix(),
                "is not a 64-bit integer",
            )),
            DeValue::Float(float) => {
                let finite = float.as_str().parse::<f64>().ok().and_then(serde_json::Number::from_f64);
                Data::Scalar(finite.map(Value::Number).unwrap_or_else(|| {
                    self.problems.push(Some(&origin), format!("'{}' is not a finite number", float.as_str()));
                    Value::Null
                }))
            }
            DeValue::Datetime(date) => {
                self.problems
                    .push(Some(&origin), format!("no key takes a date; quote '{date}' to make it a string"));
                Data::Scalar(Value::Null)
            }
        };
        Node { data, origin }
    }

    fn number(&mut self, origin: &Origin, digits: &str, radix: u32, wrong: &str) -> Value {
        if let Ok(value) = i64::from_str_radix(digits, radix) {
            return value.into();
        }
        u64::from_str_radix(digits, radix).map_or_else(
            |_| {
                self.problems.push(Some(origin), format!("'{digits}' {wrong}"));
                Value::Null
            },
            Value::from,
        )
    }
}

/// `value` with the keys of every table sorted: equal configurations have equal texts.
pub fn canonical(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort();
            let sorted: Map<String, Value> =
                keys.into_iter().map(|key| (key.clone(), canonical(&map[key]))).collect();
            Value::Object(sorted)
        }
        Value::Array(items) => Value::Array(items.iter().map(canonical).collect()),
        scalar => scalar.clone(),
    }
}
