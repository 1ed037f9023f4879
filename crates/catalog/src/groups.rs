//! Groups: a class in a context, as in NICO++ (dog in snow) or Waterbirds.

use crate::source::Source;
use crate::{LabeledPath, list, metadata};
use equipoise_base::{Error, Result, ensure};
use serde::{Deserialize, Serialize};

/// Image files with the context of each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grouped {
    /// The files.
    pub files: Vec<LabeledPath>,
    /// Context of each, from 0.
    pub contexts: Vec<u32>,
}

impl Grouped {
    /// The files of a source whose format says contexts; none for other formats.
    ///
    /// # Errors
    /// 74 or 65 naming the file, and the line, that cannot be read.
    pub fn read(source: &Source) -> Result<Option<Self>> {
        match source {
            Source::GroupList { file, root } => list::read_grouped(file, root).map(Some),
            Source::Metadata { file, root, split } => metadata::read(file, root, *split).map(Some),
            _ => Ok(None),
        }
    }

    /// Group of each image.
    ///
    /// # Errors
    /// 65 naming the image whose class or context does not exist.
    pub fn groups(&self, groups: &Groups) -> Result<Vec<u32>> {
        let of = |(file, &context): (&LabeledPath, &u32)| {
            let named = |error: Error| error.context(file.path.display());
            groups.id(file.label, context).map_err(named)
        };
        self.files.iter().zip(&self.contexts).map(of).collect()
    }
}

/// The grid of classes and contexts; group `class * contexts + context`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Groups {
    /// Class names.
    pub classes: Vec<String>,
    /// Context names.
    pub contexts: Vec<String>,
}

impl Groups {
    /// Number of groups, those without images included.
    pub fn len(&self) -> usize {
        self.classes.len() * self.contexts.len()
    }

    /// Whether there is no group.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The group of a class in a context.
    ///
    /// # Errors
    /// 65 when either does not exist.
    pub fn id(&self, class: u32, context: u32) -> Result<u32> {
        let (classes, contexts) = (self.classes.len(), self.contexts.len());
        ensure!((class as usize) < classes, BadData, "class {class} of {classes} does not exist");
        ensure!((context as usize) < contexts, BadData, "context {context} of {contexts} does not exist");
        Ok(class * contexts as u32 + context)
    }

    /// Class and context of a group.
    ///
    /// # Errors
    /// 65 when the group does not exist.
    pub fn parts(&self, group: u32) -> Result<(u32, u32)> {
        let groups = self.len();
        ensure!((group as usize) < groups, BadData, "group {group} of {groups} does not exist");
        let contexts = self.contexts.len() as u32;
        Ok((group / contexts, group % contexts))
    }

    /// Names of all groups, by group.
    pub fn names(&self) -> Vec<String> {
        let pairs =
            self.classes.iter().flat_map(|class| self.contexts.iter().map(move |context| (class, context)));
        pairs.map(|(class, context)| format!("{class}/{context}")).collect()
    }

    /// `class/context`, for tables and folders.
    ///
    /// # Errors
    /// 65 when the group does not exist.
    pub fn name(&self, group: u32) -> Result<String> {
        let (class, context) = self.parts(group)?;
        Ok(format!("{}/{}", self.classes[class as usize], self.contexts[context as usize]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_parts_are_inverse() {
        let names = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
        let groups = Groups { classes: names(&["cat", "dog"]), contexts: names(&["snow", "grass", "rock"]) };
        for group in 0..groups.len() as u32 {
            let (class, context) = groups.parts(group).unwrap();
            assert_eq!(groups.id(class, context).unwrap(), group);
        }
        assert_eq!(groups.name(4).unwrap(), "dog/grass");
        assert_eq!(groups.names()[4], "dog/grass");
        assert!(groups.id(2, 0).is_err() && groups.id(0, 3).is_err() && groups.name(6).is_err());
    }
}
