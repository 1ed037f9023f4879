//! Safetensors in and out. Writing gives bytes: `rundir` commits them.

use crate::shim;
use equipoise_base::{Error, ExitCode, Result, ResultExt};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

/// Reads every tensor of a file, on the CPU, in name order.
///
/// # Errors
/// 74 if it cannot be read, 65 if it is not a safetensors file.
pub fn read(path: &Path) -> Result<Vec<(String, Tensor)>> {
    let bytes = std::fs::read(path).map_err(|error| Error::io("read", path, error))?;
    from_bytes(&path.display().to_string(), bytes)
}

/// [`read`] for bytes at hand, which the tensors share; `source` names them in errors.
///
/// # Errors
/// 65 if they are not a safetensors file.
pub fn from_bytes(source: &str, bytes: Vec<u8>) -> Result<Vec<(String, Tensor)>> {
    let bytes = Arc::new(bytes);
    let file = SafeTensors::deserialize(&bytes).or_exit(ExitCode::BadData, source)?;
    let sorted: BTreeMap<String, TensorView> = file.tensors().into_iter().collect();
    sorted
        .into_iter()
        .map(|(name, view)| {
            let kind = kind_of(view.dtype()).ok_or_else(|| {
                Error::data(format!("{source}: tensor '{name}' has dtype {:?}", view.dtype()))
            })?;
            let size: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
            let data = view.data();
            let aligned = (data.as_ptr() as usize).is_multiple_of(kind.elt_size_in_bytes());
            let tensor = match aligned && !data.is_empty() {
                true => shim::share(&bytes, data.as_ptr() as usize - bytes.as_ptr() as usize, &size, kind)?,
                // Not one of ours.
                false => Tensor::f_from_data_size(data, &size, kind)
                    .or_exit(ExitCode::BadData, format!("{source}: tensor '{name}'"))?,
            };
            Ok((name, tensor))
        })
        .collect()
}

/// The bytes of a safetensors file; equal tensors and metadata give equal bytes.
pub fn to_bytes(tensors: &[(String, Tensor)], metadata: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    let data: BTreeMap<&str, (Dtype, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, tensor)| (name.as_str(), (dtype_of(tensor.kind()), shape_of(tensor), raw_bytes(tensor))))
        .collect();
    let mut views = Vec::with_capacity(data.len());
    for (name, (dtype, shape, bytes)) in &data {
        let view = TensorView::new(*dtype, shape.clone(), bytes).or_exit(ExitCode::Bug, name)?;
        views.push((*name, view));
    }
    // A HashMap writes its entries in random order: at most one entry keeps equal content equal in bytes.
    let metadata = (!metadata.is_empty()).then(|| {
        let json = serde_json::to_string(metadata).unwrap_or_default();
        HashMap::from([("equipoise".to_string(), json)])
    });
    safetensors::serialize(views, metadata).or_exit(ExitCode::Bug, "safetensors")
}

/// The values of a tensor as little-endian bytes, row-major.
pub fn raw_bytes(tensor: &Tensor) -> Vec<u8> {
    let tensor = tensor.detach().to_device(Device::Cpu).contiguous();
    let count = tensor.numel();
    let mut bytes = vec![0u8; count * tensor.kind().elt_size_in_bytes()];
    tensor.copy_data_u8(&mut bytes, count);
    bytes
}

fn shape_of(tensor: &Tensor) -> Vec<usize> {
    tensor.size().iter().map(|&n| n as usize).collect()
}

pub(crate) fn kind_of(dtype: Dtype) -> Option<Kind> {
    Some(match dtype {
        Dtype::BOOL => Kind::Bool,
        Dtype::U8 => Kind::Uint8,
        Dtype::I32 => Kind::Int,
        Dtype::I64 => Kind::Int64,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::F32 => Kind::Float,
        Dtype::F64 => Kind::Double,
        _ => return None,
    })
}

pub(crate) fn dtype_of(kind: Kind) -> Dtype {
    match kind {
        Kind::Bool => Dtype::BOOL,
        Kind::Uint8 => Dtype::U8,
        Kind::Int => Dtype::I32,
        Kind::Int64 => Dtype::I64,
        Kind::Half => Dtype::F16,
        Kind::BFloat16 => Dtype::BF16,
        Kind::Float => Dtype::F32,
        Kind::Double => Dtype::F64,
        other => unreachable!("no parameter has kind {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_comes_back_and_outlives_its_file() {
        use Kind::{BFloat16, Bool, Double, Float, Half, Int, Int64, Uint8};
        let given: Vec<(String, Tensor)> = [Bool, Uint8, Int, Int64, Half, BFloat16, Float, Double]
            .into_iter()
            .map(|kind| {
                let values = Tensor::arange(6, (Float, Device::Cpu)).view([2, 3]).to_kind(kind);
                (format!("{kind:?}"), values)
            })
            .chain([("empty".to_string(), Tensor::zeros([0, 4], (Float, Device::Cpu)))])
            .collect();
        let read = from_bytes("a file", to_bytes(&given, &BTreeMap::new()).unwrap()).unwrap();
        assert_eq!(read.len(), given.len());
        let of = |name: &str| &read.iter().find(|(other, _)| other == name).unwrap().1;
        for (name, tensor) in &given {
            let found = of(name);
            assert_eq!((found.kind(), found.size()), (tensor.kind(), tensor.size()), "{name}");
            assert_eq!(raw_bytes(found), raw_bytes(tensor), "{name}");
        }
        // Neighbours in one block of memory are tensors of their own.
        let _ = of("Float").shallow_clone().fill_(7.);
        assert_eq!(raw_bytes(of("Double")), raw_bytes(&given[7].1));
        assert_eq!(of("Float").double_value(&[1, 2]), 7.);
    }

    /// Other writers may put a float behind a single byte.
    #[test]
    fn what_is_not_aligned_is_copied() {
        let header = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}}"#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.push(3);
        bytes.extend(1.5f32.to_le_bytes());
        let read = from_bytes("a file", bytes).unwrap();
        assert_eq!((read[0].1.int64_value(&[0]), read[1].1.double_value(&[0])), (3, 1.5));
    }
}
