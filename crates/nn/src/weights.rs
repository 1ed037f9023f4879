//! Safetensors in and out. Writing gives bytes: `rundir` commits them.

use equipoise_base::{Error, ExitCode, Result, ResultExt};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// Reads every tensor of a file, on the CPU, in name order.
///
/// # Errors
/// 74 if it cannot be read, 65 if it is not a safetensors file.
pub fn read(path: &Path) -> Result<Vec<(String, Tensor)>> {
    let bytes = std::fs::read(path).map_err(|error| Error::io("read", path, error))?;
    from_bytes(&path.display().to_string(), &bytes)
}

/// [`read`] for bytes at hand; `source` names them in errors.
pub fn from_bytes(source: &str, bytes: &[u8]) -> Result<Vec<(String, Tensor)>> {
    let file = SafeTensors::deserialize(bytes).or_exit(ExitCode::BadData, source)?;
    let sorted: BTreeMap<String, TensorView> = file.tensors().into_iter().collect();
    sorted
        .into_iter()
        .map(|(name, view)| {
            let kind = kind_of(view.dtype()).ok_or_else(|| {
                Error::data(format!("{source}: tensor '{name}' has dtype {:?}", view.dtype()))
            })?;
            let size: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
            let tensor = Tensor::f_from_data_size(view.data(), &size, kind)
                .or_exit(ExitCode::BadData, format!("{source}: tensor '{name}'"))?;
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
