//! Files of start values, for models that are larger than memory: one tensor at a time.

use crate::params::{Entry, Params, Start};
use crate::weights::{dtype_of, raw_bytes};
use equipoise_base::{ExitCode, Result, ResultExt as _};
use safetensors::tensor::{Dtype, View};
use std::borrow::Cow;
use std::path::Path;
use tch::{Device, Kind};

/// Values that are drawn at once.
const PIECE: usize = 1 << 20;

/// Writes the safetensors file of a model that starts from `seed`, its floating tensors as `kind`: the values of
/// [`Params::new`] in fp32, rounded. `params` gives names and shapes only ([`Params::for_shapes`]).
///
/// The largest tensor is all that is in memory. The file appears under its name when it is complete.
///
/// # Errors
/// 74 if it cannot be written.
pub fn write(params: &Params, seed: u64, kind: Kind, path: &Path) -> Result<()> {
    let entries = params.entries();
    let views = entries.iter().map(|entry| {
        let shape = entry.tensor.size().iter().map(|&size| size as usize).collect();
        let kind = if entry.tensor.kind() == params.kind() { kind } else { entry.tensor.kind() };
        (entry.name.as_str(), Drawn { entry, shape, seed, kind })
    });
    safetensors::serialize_to_file(views, None, path).or_exit(ExitCode::Io, path.display())
}

/// A tensor that exists while it is written.
struct Drawn<'a> {
    entry: &'a Entry,
    shape: Vec<usize>,
    seed: u64,
    kind: Kind,
}

impl View for Drawn<'_> {
    fn dtype(&self) -> Dtype {
        dtype_of(self.kind)
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut left = self.shape.iter().product::<usize>();
        let mut bytes = Vec::with_capacity(self.data_len());
        let mut start = Start::new(self.seed, &self.entry.name, self.entry.init);
        while left > 0 {
            let count = left.min(PIECE);
            let piece = start.next(count, (Kind::Float, Device::Cpu)).to_kind(self.kind);
            bytes.extend_from_slice(&raw_bytes(&piece));
            left -= count;
        }
        Cow::Owned(bytes)
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.kind.elt_size_in_bytes()
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;
    use crate::params::Init;
    use crate::weights::to_bytes;

    fn build(params: Params) -> Params {
        let _ = params.root().sub("a").param("weight", &[1025, 1024], Init::Uniform(0.1));
        let _ = params.root().param("b", &[7], Init::Normal(1.));
        let _ = params.root().buffer("c", &[2], 3.);
        let _ = params.root().counter("n");
        params
    }

    /// A piece is 2^20 values, so the first tensor takes two.
    #[test]
    fn the_file_is_that_of_the_model_in_memory() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let model = build(Params::new(5, Kind::Float, Device::Cpu)).all();
        for kind in [Kind::Float, Kind::Half, Kind::BFloat16] {
            write(&build(Params::for_shapes()), 5, kind, &path).unwrap();
            let rounded = |tensor: &tch::Tensor| match tensor.kind() {
                Kind::Float => tensor.detach().to_kind(kind),
                _ => tensor.shallow_clone(),
            };
            let want: Vec<_> = model.iter().map(|(name, tensor)| (name.clone(), rounded(tensor))).collect();
            assert!(
                std::fs::read(&path).unwrap() == to_bytes(&want, &Default::default()).unwrap(),
                "{kind:?}"
            );
        }
        let missing = folder.path().join("missing/model.safetensors");
        assert_eq!(
            write(&build(Params::for_shapes()), 5, Kind::Half, &missing).unwrap_err().code(),
            ExitCode::Io
        );
    }
}
