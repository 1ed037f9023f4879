//! One oracle case: its parameters and tensors, and the rule that decides whether it passes.

use equipoise_base::{Error, ExitCode, Result, ResultExt};
use equipoise_nn::runtime;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

/// Tensors by name.
pub type Tensors = BTreeMap<String, Tensor>;

/// `|got - expected| <= atol + rtol * |expected|`.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Tolerance {
    /// Relative part.
    pub rtol: f64,
    /// Absolute part.
    pub atol: f64,
}

#[derive(Debug, Deserialize)]
struct Description {
    kind: String,
    #[serde(default)]
    params: Value,
    tolerance: Tolerance,
    #[serde(default)]
    tolerances: BTreeMap<String, Tolerance>,
}

/// A case folder, read.
#[derive(Debug)]
pub struct Case {
    /// The folder.
    pub dir: PathBuf,
    /// Kind, which selects the implementation.
    pub kind: String,
    /// Parameters; meaning per kind.
    pub params: Value,
    /// Inputs by name.
    pub inputs: Tensors,
    expected: Tensors,
    tolerance: Tolerance,
    tolerances: BTreeMap<String, Tolerance>,
}

/// The worst deviation of a case: `ratio` is error over tolerance, so up to 1 passes.
#[derive(Clone, Debug)]
pub struct Worst {
    /// Tensor it is in.
    pub tensor: String,
    /// Largest absolute error there.
    pub error: f64,
    /// Error relative to what is allowed at that element.
    pub ratio: f64,
}

fn on_device(tensors: impl IntoIterator<Item = (String, Tensor)>) -> impl Iterator<Item = (String, Tensor)> {
    tensors.into_iter().map(|(name, tensor)| (name, tensor.to_device(runtime::device())))
}

impl Case {
    /// Reads `case.json`, inputs and expected values; tensors to compute with come on the device.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("case.json");
        let text = std::fs::read_to_string(&path).map_err(|error| Error::io("read", &path, error))?;
        let described: Description =
            serde_json::from_str(&text).or_exit(ExitCode::BadData, path.display())?;
        let load = |file: &str| -> Result<Tensors> {
            Ok(equipoise_nn::weights::read(&dir.join(file))?.into_iter().collect())
        };
        Ok(Self {
            dir: dir.to_owned(),
            inputs: on_device(load("inputs.safetensors")?).collect(),
            expected: load("expected.safetensors")?,
            kind: described.kind,
            params: described.params,
            tolerance: described.tolerance,
            tolerances: described.tolerances,
        })
    }

    /// An input by name.
    pub fn input(&self, name: &str) -> Result<&Tensor> {
        self.inputs.get(name).ok_or_else(|| self.broken(&format!("input '{name}' is missing")))
    }

    /// Whether a tensor of this name is expected.
    pub fn expects(&self, name: &str) -> bool {
        self.expected.contains_key(name)
    }

    /// Tensors of another file of the folder, such as `weights.safetensors`.
    pub fn weights(&self, file: &str) -> Result<Vec<(String, Tensor)>> {
        Ok(on_device(equipoise_nn::weights::read(&self.dir.join(file))?).collect())
    }

    /// A parameter, deserialized.
    pub fn param<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<T> {
        let value = self.params.get(name).cloned().unwrap_or(Value::Null);
        serde_json::from_value(value).map_err(|error| self.broken(&format!("parameter '{name}': {error}")))
    }

    /// The kind named by `params.dtype`, float32 if there is none.
    pub fn dtype(&self) -> Kind {
        match self.params.get("dtype").and_then(Value::as_str) {
            Some("float64") => Kind::Double,
            _ => Kind::Float,
        }
    }

    /// An error about the case itself.
    pub fn broken(&self, what: &str) -> Error {
        Error::data(format!("{}: {what}", self.dir.display()))
    }

    /// Compares, and names the worst tensor.
    ///
    /// # Errors
    /// 1 when a tensor is missing, has another shape or holds a NaN that is not expected.
    pub fn compare(&self, got: &Tensors) -> Result<Worst> {
        let mut worst = Worst { tensor: String::new(), error: 0., ratio: 0. };
        for (name, expected) in &self.expected {
            let fail = |what: String| Error::new(ExitCode::CheckFailed, format!("{name}: {what}"));
            let tensor = got.get(name).ok_or_else(|| fail("not computed".into()))?;
            if tensor.size() != expected.size() {
                return Err(fail(format!("shape {:?}, expected {:?}", tensor.size(), expected.size())));
            }
            let Tolerance { rtol, atol } = self.tolerances.get(name).copied().unwrap_or(self.tolerance);
            let (got, want) =
                (tensor.to_device(Device::Cpu).to_kind(Kind::Double), expected.to_kind(Kind::Double));
            if got.numel() == 0 {
                continue;
            }
            if got.isfinite().all().int64_value(&[]) == 0 {
                return Err(fail("not finite".into()));
            }
            let error = (&got - &want).abs();
            let allowed = want.abs() * rtol + atol;
            // 0/0 is equality where equality is asked for: no deviation.
            let ratio = (&error / &allowed).nan_to_num(0., f64::INFINITY, 0.).max().double_value(&[]);
            if ratio > worst.ratio || worst.tensor.is_empty() {
                worst = Worst { tensor: name.clone(), error: error.max().double_value(&[]), ratio };
            }
        }
        Ok(worst)
    }
}
