//! Layers and inheritance: a stronger table over a weaker one.

use crate::nearest::hint;
use crate::problem::Problems;
use crate::slurm::MEMORY;
use crate::source::Layer;
use crate::tree::{Data, Entry, Node};

/// Keys that say what the other keys of their table mean.
pub(crate) const TAGS: [&str; 4] = ["kind", "op", "criterion", "format"];

/// `over` over `base`: tables merge key by key, anything else is replaced.
///
/// A table with a tag (such as `kind`) is replaced as a whole when the tag changes, since the remaining
/// keys belonged to the old one.
pub fn merge(base: &mut Node, over: Node) {
    let replaced = retagged(base, &over);
    match (&mut base.data, over.data) {
        (Data::Table(below), Data::Table(above)) if !replaced => {
            base.origin = over.origin;
            // Keys that exclude each other: a stronger layer's choice replaces a weaker one's.
            if above.iter().any(|entry| MEMORY.contains(&entry.key.as_str())) {
                below.retain(|entry| !MEMORY.contains(&entry.key.as_str()));
            }
            for entry in above {
                match below.iter_mut().find(|candidate| candidate.key == entry.key) {
                    Some(existing) => {
                        existing.origin = entry.origin;
                        merge(&mut existing.node, entry.node);
                    }
                    None => below.push(entry),
                }
            }
        }
        (_, data) => *base = Node { data, origin: over.origin },
    }
}

fn retagged(base: &Node, over: &Node) -> bool {
    TAGS.iter().any(|tag| match (base.get(tag), over.get(tag)) {
        (Some(old), Some(new)) => old.to_value() != new.to_value(),
        _ => false,
    })
}

/// Tables that inherit: each table in the second named table starts as a copy of the first.
const INHERITANCE: [(&str, &str); 3] =
    [("classifier", "classifiers"), ("classifier", "arms"), ("generate", "sets")];

/// Completes `classifiers.*` and `arms.*` from `classifier`, and `sets.*` from `generate`.
pub fn inherit(root: &mut Node) {
    for (parent, children) in INHERITANCE {
        let Some(parent) = root.get(parent).cloned() else { continue };
        let Some(Node { data: Data::Table(children), .. }) = root.get_mut(children) else { continue };
        for child in children.iter_mut().filter(|child| matches!(child.node.data, Data::Table(_))) {
            let mut complete = parent.clone();
            merge(&mut complete, child.node.clone());
            child.node = complete;
        }
    }
}

/// Tables of things that the recipe's author has named.
const NAMED: [&str; 4] = ["classifiers", "arms", "sets", "data.splits"];

/// A mistyped name in a `--set` would otherwise make another arm, with the classifier's settings, and train it.
///
/// # Errors
/// Every name in `over`, if that is a `--set`, that `base` does not have.
pub fn require_known_names(base: &Node, over: &Node) -> Result<(), Problems> {
    let mut problems = Problems::default();
    for table in NAMED {
        let known: Vec<&str> = names(base, table).iter().map(|entry| &*entry.key).collect();
        for entry in names(over, table).iter().filter(|entry| entry.origin.source.layer == Layer::Set) {
            if !known.contains(&&*entry.key) {
                let hint = hint(&entry.key, &known);
                problems.push(Some(&entry.origin), format!("{table} has no '{}'{hint}", entry.key));
            }
        }
    }
    problems.or(())
}

fn names<'n>(root: &'n Node, table: &str) -> &'n [Entry] {
    root.at(table).map_or(&[], Node::entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{Layer, Source};
    use serde_json::json;
    use std::sync::Arc;

    fn node(text: &str) -> Node {
        let source = Source { layer: Layer::Recipe, name: "t.toml".into(), dir: ".".into() };
        Node::parse(&Arc::new(source), text).unwrap()
    }

    #[test]
    fn tables_merge_and_tagged_tables_are_replaced() {
        let mut base = node(
            "a.x = 1\na.list = [1, 2]\nloss = {kind = 'ce', smoothing = 0.1}\narch = {kind = 'r', depth = 8}",
        );
        merge(&mut base, node("a.y = 2\na.list = [3]\nloss = {kind = 'bs'}\narch = {depth = 20}"));
        let expected = json!({
            "a": {"x": 1, "list": [3], "y": 2}, "loss": {"kind": "bs"}, "arch": {"kind": "r", "depth": 20}
        });
        assert_eq!(base.to_value(), expected);
    }

    #[test]
    fn one_form_of_memory_replaces_another() {
        let mut base = node("slurm.mem = '4G'\nslurm.time = '1:00:00'");
        merge(&mut base, node("slurm.mem_per_cpu = '1G'"));
        assert_eq!(base.to_value(), json!({"slurm": {"time": "1:00:00", "mem_per_cpu": "1G"}}));
    }

    #[test]
    fn the_stronger_layer_is_the_origin() {
        let mut base = node("a.x = 1\na.y = 2");
        merge(&mut base, node("\n\na.x = 3"));
        assert_eq!(base.at("a.x").unwrap().origin.line, 3);
        assert_eq!(base.at("a.y").unwrap().origin.line, 2);
    }

    #[test]
    fn arms_inherit_the_classifier() {
        let mut root = node(
            "[classifier]\nsteps = 5\nloss.kind = 'ce'\n[arms.bs]\nloss.kind = 'bs'\n[arms.ce]\n[classifiers.g]\nsteps = 6",
        );
        inherit(&mut root);
        assert_eq!(root.at("arms.bs").unwrap().to_value(), json!({"steps": 5, "loss": {"kind": "bs"}}));
        assert_eq!(root.at("arms.ce.loss.kind").unwrap().as_str(), Some("ce"));
        assert_eq!(root.at("classifiers.g.steps").unwrap().to_value(), json!(6));
    }
}
