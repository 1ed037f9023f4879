//! A configuration as TOML, with where each value came from.

use crate::layers::quoted;
use crate::merge::TAGS;
use crate::tree::{Data, Node};
use serde_json::Value;
use std::fmt::Write;

/// Writes `root` as TOML; with `origins`, each line ends in a comment that says which layer and line set it.
pub fn to_toml(root: &Node, origins: bool) -> String {
    let mut text = String::new();
    section(root, "", origins, &mut text);
    text
}

fn section(table: &Node, path: &str, origins: bool, text: &mut String) {
    let (tables, values): (Vec<_>, Vec<_>) =
        table.entries().iter().partition(|entry| is_section(&entry.node));
    // A table that only holds tables needs no header of its own; an empty one does, or it would be lost.
    if !path.is_empty() && (!values.is_empty() || tables.is_empty()) {
        let _ = writeln!(text, "\n[{path}]");
    }
    for entry in values {
        let line = format!("{} = {}", bare_or_quoted(&entry.key), inline(&entry.node));
        let _ = match origins {
            // A file name may hold a line break, a comment may not.
            true => writeln!(
                text,
                "{line:<48} # {}",
                entry.node.origin.with_layer().replace(char::is_control, "?")
            ),
            false => writeln!(text, "{line}"),
        };
    }
    for entry in tables {
        let key = bare_or_quoted(&entry.key);
        let path = if path.is_empty() { key } else { format!("{path}.{key}") };
        section(&entry.node, &path, origins, text);
    }
}

/// Small tables of plain values, such as `arch = { kind = ..., depth = ... }`, are written on one line.
fn is_section(node: &Node) -> bool {
    let Data::Table(entries) = &node.data else { return false };
    let tagged = TAGS.iter().any(|tag| node.get(tag).is_some());
    !(tagged && entries.iter().all(|entry| !matches!(entry.node.data, Data::Table(_))))
}

fn inline(node: &Node) -> String {
    match &node.data {
        Data::Table(entries) => {
            let parts = entries
                .iter()
                .map(|entry| format!("{} = {}", bare_or_quoted(&entry.key), inline(&entry.node)));
            format!("{{ {} }}", parts.collect::<Vec<_>>().join(", "))
        }
        Data::List(items) => format!("[{}]", items.iter().map(inline).collect::<Vec<_>>().join(", ")),
        Data::Scalar(Value::String(string)) => quoted(string),
        Data::Scalar(Value::Number(number)) => match number.as_f64().filter(|_| number.is_f64()) {
            Some(float) => toml::Value::Float(float).to_string(),
            None => number.to_string(),
        },
        Data::Scalar(value) => value.to_string(),
    }
}

fn bare_or_quoted(key: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if !key.is_empty() && key.chars().all(bare) { key.to_string() } else { quoted(key) }
}

/// Every value with its dotted key; lists are values.
pub fn leaves(root: &Node) -> Vec<(String, &Node)> {
    let mut found = Vec::new();
    collect(root, "", &mut found);
    found
}

fn collect<'a>(node: &'a Node, path: &str, found: &mut Vec<(String, &'a Node)>) {
    for entry in node.entries() {
        let key = bare_or_quoted(&entry.key);
        let path = if path.is_empty() { key } else { format!("{path}.{key}") };
        match &entry.node.data {
            Data::Table(_) => collect(&entry.node, &path, found),
            _ => found.push((path, &entry.node)),
        }
    }
}
