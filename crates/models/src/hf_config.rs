//! `config.json` of a Hugging Face folder, read key by key: what this build does not implement is refused by name
//! instead of being ignored, because it would sample without complaint and make other images.

use equipoise_base::{Error, Result, bail, ensure};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// The keys of a configuration file that nobody has asked for yet.
#[derive(Debug)]
pub struct Keys {
    source: String,
    left: Map<String, Value>,
}

impl Keys {
    /// The keys of a JSON object; `source` names the file in errors.
    ///
    /// # Errors
    /// 65 if it is no object.
    pub fn new(source: &str, value: Value) -> Result<Self> {
        match value {
            Value::Object(left) => Ok(Self { source: source.into(), left }),
            _ => bail!(BadData, "{source}: want a JSON object"),
        }
    }

    /// The file, as errors name it.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The value of a key, or the library's default where the file has none or null.
    ///
    /// # Errors
    /// 65 naming file and key if the value is of another type.
    pub fn take<T: DeserializeOwned>(&mut self, key: &str, default: T) -> Result<T> {
        Ok(self.take_optional(key)?.unwrap_or(default))
    }

    /// The value of a key; `None` where the file has none or null.
    ///
    /// # Errors
    /// 65 naming file and key if the value is of another type.
    pub fn take_optional<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>> {
        match self.left.remove(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value)
                .map(Some)
                .map_err(|error| Error::data(format!("{}: '{key}': {error}", self.source))),
        }
    }

    /// One whole number for each of `levels`: the file may say it once or as a list; `None` where it says nothing.
    ///
    /// # Errors
    /// 65 naming file and key if a list has another length, or an entry is no whole number.
    pub fn take_per_level(&mut self, key: &str, levels: usize) -> Result<Option<Vec<i64>>> {
        if let Some(Value::Array(_)) = self.left.get(key) {
            let list: Vec<i64> = self.take(key, Vec::new())?;
            let have = list.len();
            ensure!(
                have == levels,
                BadData,
                "{}: '{key}' has {have} entries for {levels} levels",
                self.source
            );
            return Ok(Some(list));
        }
        Ok(self.take_optional(key)?.map(|value| vec![value; levels]))
    }

    /// Refuses any other value of keys that have one meaning here.
    ///
    /// # Errors
    /// 65 naming file, key and value.
    pub fn only(&mut self, values: &[(&str, Value)]) -> Result<()> {
        for (key, only) in values {
            let value = self.left.remove(*key).filter(|value| !value.is_null());
            if let Some(value) = value.filter(|value| !same(value, only)) {
                bail!(BadData, "{}: '{key}' = {value} is not supported, only {only} is", self.source);
            }
        }
        Ok(())
    }

    /// Refuses what is left, unless it is switched off (null, false, an empty list) or a note (`_class_name`).
    ///
    /// # Errors
    /// 65 naming file, key and value.
    pub fn finish(self) -> Result<()> {
        let off = |value: &Value| {
            matches!(value, Value::Null | Value::Bool(false)) || value.as_array().is_some_and(Vec::is_empty)
        };
        match self.left.iter().find(|(key, value)| !key.starts_with('_') && !off(value)) {
            None => Ok(()),
            Some((key, value)) => bail!(BadData, "{}: '{key}' = {value} is not supported", self.source),
        }
    }
}

/// Equality that does not tell 1 from 1.0.
fn same(a: &Value, b: &Value) -> bool {
    a == b || a.as_f64().zip(b.as_f64()).is_some_and(|(a, b)| a == b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn keys(value: Value) -> Keys {
        Keys::new("unet/config.json", value).unwrap()
    }

    #[test]
    fn values_defaults_and_levels() {
        let mut keys =
            keys(json!({ "a": 3, "b": null, "c": [1, 2], "d": 8, "_class_name": "X", "off": false }));
        assert_eq!((keys.take("a", 1).unwrap(), keys.take("b", 7).unwrap()), (3, 7));
        assert_eq!(keys.take_per_level("c", 2).unwrap(), Some(vec![1, 2]));
        assert_eq!(keys.take_per_level("d", 3).unwrap(), Some(vec![8; 3]));
        assert_eq!(keys.take_per_level("e", 3).unwrap(), None);
        keys.finish().unwrap();
    }

    #[test]
    fn what_would_make_another_network_is_refused_by_name() {
        let message = |result: Result<()>| result.unwrap_err().message().to_string();
        let only = |value| keys(json!({ "scale": value })).only(&[("scale", json!(1))]);
        assert!(only(json!(1.0)).is_ok() && only(json!(null)).is_ok());
        assert_eq!(message(only(json!(2))), "unet/config.json: 'scale' = 2 is not supported, only 1 is");
        assert!(message(keys(json!({ "new": "x" })).finish()).contains("'new' = \"x\""));
        assert!(message(keys(json!({ "a": "x" })).take("a", 1).map(drop)).contains("'a'"));
        assert!(message(keys(json!({ "a": [1] })).take_per_level("a", 2).map(drop)).contains("2 levels"));
        assert!(Keys::new("f", json!([])).is_err());
    }
}
