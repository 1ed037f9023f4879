//! Loading from weight files that are mapped into memory: one tensor at a time, converted on the way.

use crate::params::Params;
use crate::weights::kind_of;
use equipoise_base::{Error, Result, ResultExt as _, bail, ensure};
use equipoise_pretrained::{TensorInfo, WeightFiles};
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

/// Most names that one message lists.
const LISTED: usize = 8;

/// Fills `params` from a component's weight files, converting to the parameters' kind.
///
/// `rename` gives the model's name of a tensor of the files, `None` for one that the model does without: that is how
/// older spellings are read. Beyond the parameters themselves this takes no memory, whatever the size of the files.
///
/// # Errors
/// 65 naming the file and the first tensor that is missing, of another shape or no floating-point numbers, or all
/// tensors that belong to no part of the model; nothing is changed then.
pub fn load(params: &Params, files: &WeightFiles, rename: impl Fn(&str) -> Option<String>) -> Result<()> {
    let given = by_model_name(files, rename)?;
    let entries = params.all();
    let mut plan = Vec::with_capacity(entries.len());
    for (name, target) in entries {
        let Some(&(theirs, tensor)) = given.get(&name) else {
            bail!(BadData, "{}: tensor '{name}' is missing", files.source().display())
        };
        plan.push((checked(files, theirs, tensor, &target.size())?, tensor, target));
    }
    if plan.len() < given.len() {
        return Err(superfluous(params, files, &given));
    }
    for (kind, tensor, target) in plan {
        tch::no_grad(|| copy(files, tensor, kind, target))
            .or_exit(equipoise_base::ExitCode::Bug, files.file_of(tensor).display())?;
        files.release(tensor);
    }
    Ok(())
}

/// Tensors of the files by the name that the model gives them, with their name in the files.
type Given<'a> = BTreeMap<String, (&'a str, &'a TensorInfo)>;

fn by_model_name(files: &WeightFiles, rename: impl Fn(&str) -> Option<String>) -> Result<Given<'_>> {
    let mut given = Given::new();
    for (theirs, tensor) in files.tensors() {
        let Some(name) = rename(theirs) else { continue };
        if let Some((other, _)) = given.insert(name, (theirs, tensor)) {
            let source = files.source().display();
            bail!(BadData, "{source}: tensors '{other}' and '{theirs}' are the same part of the model");
        }
    }
    Ok(given)
}

/// The kind of a tensor that fits.
fn checked(files: &WeightFiles, name: &str, tensor: &TensorInfo, want: &[i64]) -> Result<Kind> {
    let file = files.file_of(tensor).display();
    let have: Vec<i64> = tensor.shape.iter().map(|&size| size as i64).collect();
    ensure!(have == want, BadData, "{file}: tensor '{name}' is {have:?}, the model wants {want:?}");
    // Counters, such as BatchNorm's, are whole numbers.
    let kind = kind_of(tensor.dtype).filter(|_| tensor.is_float() || tensor.shape.is_empty());
    kind.ok_or_else(|| Error::data(format!("{file}: tensor '{name}' has dtype {:?}", tensor.dtype)))
}

fn superfluous(params: &Params, files: &WeightFiles, given: &Given) -> Error {
    let known: std::collections::BTreeSet<String> = params.all().into_iter().map(|(name, _)| name).collect();
    let extra: Vec<&str> =
        given.iter().filter(|(name, _)| !known.contains(*name)).map(|(_, (theirs, _))| *theirs).collect();
    let mut list = extra.iter().take(LISTED).map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ");
    if extra.len() > LISTED {
        list += &format!(" and {} more", extra.len() - LISTED);
    }
    Error::data(format!("{}: belong to no part of the model: {list}", files.source().display()))
}

fn copy(files: &WeightFiles, tensor: &TensorInfo, kind: Kind, target: Tensor) -> Result<(), tch::TchError> {
    let bytes = files.bytes(tensor);
    let size = target.size();
    let aligned = (bytes.as_ptr() as usize).is_multiple_of(kind.elt_size_in_bytes());
    let source = if aligned && !bytes.is_empty() {
        let mut strides = vec![1; size.len()];
        for dim in (1..size.len()).rev() {
            strides[dim - 1] = strides[dim] * size[dim];
        }
        // SAFETY: aligned, of `size` values of `kind` (the header was checked), only read, and gone before `files`.
        unsafe { Tensor::f_from_blob(bytes.as_ptr(), &size, &strides, kind, Device::Cpu)? }
    } else {
        Tensor::f_from_data_size(bytes, &size, kind)?
    };
    let mut target = target;
    target.f_copy_(&source)
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;
    use crate::params::Init;
    use equipoise_pretrained::Component;
    use std::path::Path;

    fn model(kind: Kind) -> Params {
        let params = Params::new(3, kind, Device::Cpu);
        let _ = params.root().sub("a").param("weight", &[3, 5], Init::Normal(1.));
        let _ = params.root().param("b", &[7], Init::Normal(1.));
        params
    }

    fn save(dir: &Path, file: &str, tensors: &[(String, Tensor)]) {
        let bytes = crate::weights::to_bytes(tensors, &BTreeMap::new()).unwrap();
        std::fs::write(dir.join(file), bytes).unwrap();
    }

    fn same(name: &str) -> Option<String> {
        Some(name.into())
    }

    #[test]
    fn half_precision_files_fill_any_kind() {
        let dir = tempfile::tempdir().unwrap();
        for kind in [Kind::Half, Kind::BFloat16, Kind::Float] {
            save(dir.path(), "model.safetensors", &model(kind).all());
            let files = Component::open(dir.path()).unwrap().weights().unwrap();
            let target = Params::for_loading(Kind::Double, Device::Cpu);
            let _ = target.root().param("b", &[7], Init::Normal(1.));
            let _ = target.root().sub("c").param("weight", &[3, 5], Init::Normal(1.));
            load(&target, &files, |name| Some(name.replace("a.", "c."))).unwrap();
            let (got, want) = (&target.all()[1].1, model(kind).all()[0].1.to_kind(Kind::Double));
            assert!(got.equal(&want), "{kind:?}");
            assert!(got.requires_grad());
        }
    }

    #[test]
    fn what_does_not_fit_is_named_with_its_file_and_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let message = |tensors: &[(String, Tensor)]| {
            save(dir.path(), "model.safetensors", tensors);
            let files = Component::open(dir.path()).unwrap().weights().unwrap();
            let target = model(Kind::Float);
            let before = target.all()[0].1.copy();
            let error = load(&target, &files, same).unwrap_err();
            assert!(target.all()[0].1.equal(&before));
            assert_eq!(error.code(), equipoise_base::ExitCode::BadData);
            assert!(error.message().contains("model.safetensors"), "{error}");
            error.message().to_string()
        };
        let whole = || model(Kind::Float).all();
        assert!(message(&whole()[..1]).contains("tensor 'b' is missing"));
        let mut wrong = whole();
        wrong[1].1 = Tensor::zeros([8], (Kind::Float, Device::Cpu));
        assert!(message(&wrong).contains("tensor 'b' is [8], the model wants [7]"));
        wrong[1].1 = Tensor::zeros([7], (Kind::Int64, Device::Cpu));
        assert!(message(&wrong).contains("tensor 'b' has dtype I64"));
        let mut extra = whole();
        extra.extend((0..12).map(|i| (format!("x{i:02}"), Tensor::zeros([1], (Kind::Float, Device::Cpu)))));
        let text = message(&extra);
        assert!(text.contains("'x00', 'x01'") && text.ends_with("'x07' and 4 more"), "{text}");
    }

    #[test]
    fn two_spellings_of_one_tensor_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        save(dir.path(), "model.safetensors", &model(Kind::Float).all());
        let files = Component::open(dir.path()).unwrap().weights().unwrap();
        let error = load(&model(Kind::Float), &files, |_| Some("b".into())).unwrap_err();
        assert!(error.message().contains("'a.weight' and 'b'"), "{error}");
    }

    #[test]
    fn shapes_cost_no_memory() {
        let params = Params::for_shapes();
        let _ = params.root().param("w", &[1 << 20, 1 << 20], Init::Normal(1.));
        assert_eq!(params.count(), 1 << 40);
    }
}
