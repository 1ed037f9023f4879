//! `identity.json`: everything that decides the bits of a result, recorded with the first of them.

use crate::commit::{commit_json, read_json, sync_parent};
use crate::lease::LeaseGuard;
use crate::vfs::Vfs;
use equipoise_base::{Error, ExitCode, Identity, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// The identity fields and their hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityRecord {
    /// Hash of the fields.
    pub identity: Identity,
    /// Name to value, as text that is equal exactly when the values are.
    pub fields: BTreeMap<String, String>,
}

impl IdentityRecord {
    /// The record of these fields; the hash covers names and values in the order of the names.
    pub fn of(fields: BTreeMap<String, String>) -> Self {
        let mut text = String::new();
        for (name, value) in &fields {
            // Lengths keep ("a", "b=c") and ("a=b", "c") apart.
            text.push_str(&format!("{}:{name}={}:{value}\n", name.len(), value.len()));
        }
        Self { identity: Identity::of(&text), fields }
    }

    /// Records this identity under `path`, or requires that it is the one recorded there.
    ///
    /// # Errors
    /// 78 naming both identities and the fields that differ; 65 for an unreadable record; 69 and 74 from the commit.
    pub fn require(&self, vfs: &dyn Vfs, path: &Path, guard: Option<&LeaseGuard>) -> Result<()> {
        match read_json::<IdentityRecord>(vfs, path)? {
            None => commit_json(vfs, path, self, guard),
            // Whoever recorded it may have failed to put its name on disk; from now on results rest on it.
            Some(recorded) if recorded.identity == self.identity => sync_parent(vfs, path),
            Some(recorded) => Err(self.mismatch(path, &recorded)),
        }
    }

    fn mismatch(&self, path: &Path, recorded: &IdentityRecord) -> Error {
        let absent = "absent".to_string();
        let names: std::collections::BTreeSet<&String> =
            self.fields.keys().chain(recorded.fields.keys()).collect();
        let differing: Vec<String> = names
            .into_iter()
            .filter(|name| self.fields.get(*name) != recorded.fields.get(*name))
            .map(|name| {
                let (was, now) = (recorded.fields.get(name), self.fields.get(name));
                format!("{name} was {}, is {}", was.unwrap_or(&absent), now.unwrap_or(&absent))
            })
            .collect();
        let message = format!(
            "{}: this directory was made with identity {}, and this command has {}: {}",
            path.display(),
            recorded.identity,
            self.identity,
            differing.join("; "),
        );
        Error::new(ExitCode::Config, message).next("restore these values, or choose another run directory")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::FaultFs;

    fn record(fields: &[(&str, &str)]) -> IdentityRecord {
        IdentityRecord::of(fields.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect())
    }

    #[test]
    fn a_second_identity_is_refused_by_name() {
        let (fs, path) = (FaultFs::new(), Path::new("/identity.json"));
        let first = record(&[("lr", "0.1"), ("seed", "1")]);
        first.require(&fs, path, None).unwrap();
        first.require(&fs, path, None).unwrap();
        let error =
            record(&[("lr", "0.2"), ("seed", "1"), ("tf32", "on")]).require(&fs, path, None).unwrap_err();
        assert_eq!(error.code(), ExitCode::Config);
        let text = error.to_string();
        assert!(text.contains("lr was 0.1, is 0.2; tf32 was absent, is on"), "{text}");
        assert!(text.contains(first.identity.as_str()) && !text.contains("seed"), "{text}");
    }

    #[test]
    fn names_and_values_do_not_run_together() {
        assert_ne!(record(&[("a", "b=c")]).identity, record(&[("a=b", "c")]).identity);
        assert_ne!(record(&[("a", "1:x\n1:b=0:")]).identity, record(&[("a", "1:x"), ("b", "")]).identity);
    }
}
