//! The schema of a recipe, as the front end carries it.
//!
//! `configs/schema.json` is plain JSON Schema with four habits, so that one file serves editors and this crate:
//! keys that must be set in *some* layer are under `x-required` (a recipe alone need not set them), alternatives are
//! always `anyOf`, tables are closed unless they say otherwise, and keys may be marked `x-elastic` or `x-path`.

mod build;

pub use build::schema_for_recipe;

use crate::tree::{Data, Node};
use serde_json::{Map, Value};
use std::sync::LazyLock;

/// The embedded schema.
pub const SCHEMA: &str = include_str!("../../../../configs/schema.json");

static EMBEDDED: LazyLock<Schema> =
    LazyLock::new(|| Schema(serde_json::from_str(SCHEMA).unwrap_or(Value::Bool(true))));

/// A schema in the form that [`schema_for_recipe`] writes.
#[derive(Clone, Debug)]
pub struct Schema(pub Value);

/// What a value should be, with references and alternatives decided for that value.
pub(crate) enum Expected<'s> {
    /// Anything goes.
    Anything,
    /// One of these.
    OneOf(Vec<&'s Value>),
    /// A table of named values of one type.
    Named(&'s Value),
    /// A table with these keys.
    Table(Table<'s>),
    /// A list, string, number or boolean: the schema says what kind and which range.
    Plain(&'s Map<String, Value>),
    /// The tag of a table is missing or none of these.
    Tag(&'s str, Vec<&'s str>),
    /// A value of the wrong type; the right ones.
    Types(Vec<&'s str>),
    /// A string where a table with this tag belongs; the values of the tag.
    Untagged(&'s str, Vec<&'s str>),
}

/// A table with fixed keys.
pub(crate) struct Table<'s> {
    pub properties: &'s Map<String, Value>,
    pub required: Vec<&'s str>,
    pub closed: bool,
}

impl Schema {
    /// The embedded schema, parsed once.
    pub fn embedded() -> &'static Self {
        &EMBEDDED
    }

    /// The schema of the whole recipe.
    pub(crate) fn root(&self) -> &Value {
        &self.0
    }

    /// Follows references.
    pub(crate) fn resolve<'s>(&'s self, mut schema: &'s Value) -> &'s Value {
        while let Some(target) = schema.get("$ref").and_then(Value::as_str) {
            match self.0.pointer(target.trim_start_matches('#')) {
                Some(definition) => schema = definition,
                None => return &Value::Bool(true),
            }
        }
        schema
    }

    /// What `node` should be.
    pub(crate) fn expected<'s>(&'s self, schema: &'s Value, node: &Node) -> Expected<'s> {
        let Some(map) = self.resolve(schema).as_object() else { return Expected::Anything };
        if let Some(branches) = map.get("anyOf").and_then(Value::as_array) {
            return self.choose(branches, node);
        }
        if let Some(values) = map.get("enum").and_then(Value::as_array) {
            return Expected::OneOf(values.iter().collect());
        }
        if let Some(value) = map.get("const") {
            return Expected::OneOf(vec![value]);
        }
        match map.get("type").and_then(Value::as_str) {
            None if map.get("properties").is_none() => Expected::Anything,
            Some(wanted) if !fits(wanted, node) => Expected::Types(vec![wanted]),
            None | Some("object") => table(map),
            Some(_) => Expected::Plain(map),
        }
    }

    /// The alternative that `node` means: by its tag, else by its type.
    fn choose<'s>(&'s self, branches: &'s [Value], node: &Node) -> Expected<'s> {
        let branches: Vec<&Value> = branches.iter().map(|branch| self.resolve(branch)).collect();
        if let Some(values) = branches.iter().map(|branch| literals(branch)).collect::<Option<Vec<_>>>() {
            return Expected::OneOf(values.concat());
        }
        if matches!(node.data, Data::Table(_))
            && let Some(tag) = tag_of(&branches)
        {
            let given = node.get(tag).and_then(Node::as_str);
            let chosen = branches.iter().find(|branch| given.is_some() && constant(branch, tag) == given);
            return match chosen {
                Some(branch) => self.expected(branch, node),
                None => {
                    Expected::Tag(tag, branches.iter().filter_map(|branch| constant(branch, tag)).collect())
                }
            };
        }
        let tagged = tag_of(&branches).filter(|_| node.as_str().is_some()).map(|tag| {
            Expected::Untagged(tag, branches.iter().filter_map(|branch| constant(branch, tag)).collect())
        });
        let mut wrong = Vec::new();
        let mut nearly = tagged;
        for branch in branches {
            match self.expected(branch, node) {
                Expected::Types(types) => wrong.extend(types),
                Expected::OneOf(values) if !values.contains(&&node.to_value()) => {
                    nearly = Some(Expected::OneOf(values))
                }
                Expected::Table(table) if !self.keys_fit(branch, node) => {
                    nearly = Some(Expected::Table(table))
                }
                expected => return expected,
            }
        }
        nearly.unwrap_or(Expected::Types(wrong))
    }

    /// For tables without a tag: all their keys exist in this alternative.
    fn keys_fit(&self, branch: &Value, node: &Node) -> bool {
        node.entries().iter().all(|entry| self.property(branch, node, &entry.key).is_some())
    }

    /// The schema of `key` in `node`, also where `node` is part of a table whose tag is set in another layer.
    pub(crate) fn property<'s>(&'s self, schema: &'s Value, node: &Node, key: &str) -> Option<&'s Value> {
        match self.expected(schema, node) {
            Expected::Table(table) => table.properties.get(key),
            Expected::Named(values) => Some(values),
            Expected::Tag(..) => {
                let branches = self.resolve(schema).get("anyOf")?.as_array()?;
                branches.iter().find_map(|branch| self.resolve(branch).get("properties")?.get(key))
            }
            _ => None,
        }
    }

    /// The schema of the items of a list.
    pub(crate) fn items<'s>(&'s self, schema: &'s Value, node: &Node) -> Option<&'s Value> {
        match self.expected(schema, node) {
            Expected::Plain(map) => map.get("items"),
            _ => None,
        }
    }

    /// The key with this mark (`x-elastic`, `x-path`), on itself or on the alternative that `node` means.
    pub(crate) fn marked(&self, schema: &Value, node: &Node, mark: &str) -> bool {
        let set = |schema: &Value| schema.get(mark).and_then(Value::as_bool) == Some(true);
        if set(schema) || set(self.resolve(schema)) {
            return true;
        }
        match self.expected(schema, node) {
            Expected::Plain(map) => map.get(mark).and_then(Value::as_bool) == Some(true),
            _ => false,
        }
    }
}

fn table(map: &Map<String, Value>) -> Expected<'_> {
    let properties = map.get("properties").and_then(Value::as_object);
    let additional = map.get("additionalProperties");
    match (properties, additional) {
        (None, Some(values)) if values.is_object() => Expected::Named(values),
        (None, _) => Expected::Anything,
        (Some(properties), additional) => {
            let required = map.get("x-required").and_then(Value::as_array);
            let required = required.into_iter().flatten().filter_map(Value::as_str).collect();
            Expected::Table(Table { properties, required, closed: additional == Some(&Value::Bool(false)) })
        }
    }
}

/// The values of a schema that lists them.
fn literals(schema: &Value) -> Option<Vec<&Value>> {
    match schema.get("const") {
        Some(value) => Some(vec![value]),
        None => schema.get("enum")?.as_array().map(|values| values.iter().collect()),
    }
}

/// The key whose constant tells the alternatives apart.
fn tag_of<'s>(branches: &[&'s Value]) -> Option<&'s str> {
    let tables: Vec<_> = branches.iter().filter_map(|branch| branch.get("properties")?.as_object()).collect();
    let first = tables.first()?;
    first.keys().map(String::as_str).find(|key| {
        tables.iter().all(|table| table.get(*key).is_some_and(|property| property.get("const").is_some()))
    })
}

fn constant<'s>(branch: &'s Value, tag: &str) -> Option<&'s str> {
    branch.get("properties")?.get(tag)?.get("const")?.as_str()
}

fn fits(wanted: &str, node: &Node) -> bool {
    match (&node.data, wanted) {
        (Data::Table(_), "object") | (Data::List(_), "array") => true,
        (Data::Scalar(Value::String(_)), "string") | (Data::Scalar(Value::Bool(_)), "boolean") => true,
        (Data::Scalar(Value::Number(_)), "number") => true,
        (Data::Scalar(Value::Number(number)), "integer") => !number.is_f64(),
        _ => false,
    }
}
