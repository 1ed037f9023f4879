//! Named parameters and buffers of a model, with the names of the reference implementation's `state_dict`.

use crate::precision::{Held, MemoryFormat};
use equipoise_base::rng::{Key, Stream};
use equipoise_base::{Result, ensure};
use std::cell::{Ref, RefCell};
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

/// How a parameter starts; all randomness is keyed by (seed, name), never by order of construction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// One value everywhere.
    Constant(f64),
    /// Normal with this standard deviation.
    Normal(f64),
    /// Uniform in [-bound, bound].
    Uniform(f64),
}

impl Init {
    /// Kaiming normal, fan out, ReLU: torchvision's convolutions. `shape` is [out, in/groups, kh, kw].
    pub fn kaiming_fan_out(shape: &[i64]) -> Self {
        let fan_out = shape[0] * shape[2..].iter().product::<i64>();
        Init::Normal((2.0 / fan_out as f64).sqrt())
    }

    /// Kaiming normal, fan in, ReLU: PyTorch's `kaiming_normal_`. `shape` is [out, in/groups, ..].
    pub fn kaiming_fan_in(shape: &[i64]) -> Self {
        Init::Normal((2.0 / shape[1..].iter().product::<i64>() as f64).sqrt())
    }

    /// PyTorch's default for linear and convolution weights and biases: U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
    pub fn default_for(fan_in: i64) -> Self {
        Init::Uniform(1.0 / (fan_in as f64).sqrt())
    }
}

/// One entry of the state.
#[derive(Debug)]
pub struct Entry {
    /// Name in the state dict.
    pub name: String,
    /// The tensor that the modules hold too (a shallow clone shares storage and gradient).
    pub tensor: Tensor,
    /// Trainable, as opposed to a buffer such as a running mean.
    pub trainable: bool,
    /// How it starts.
    pub init: Init,
}

/// Where the values of parameters come from.
#[derive(Clone, Copy, Debug)]
enum Origin {
    /// Drawn from this seed.
    Seed(u64),
    /// Zeros, to be loaded over.
    Loading,
    /// No values at all.
    Shapes,
}

/// All parameters and buffers of a model, in order of construction.
#[derive(Debug)]
pub struct Params {
    origin: Origin,
    held: Held,
    kernels: MemoryFormat,
    device: Device,
    entries: Rc<RefCell<Vec<Entry>>>,
}

impl Params {
    /// An empty state for floating tensors of `kind` on `device`, initialised from `seed`.
    pub fn new(seed: u64, kind: Kind, device: Device) -> Self {
        Self::empty(Origin::Seed(seed), kind.into(), device)
    }

    /// An empty state whose parameters start at 0 because [`Params::load`] follows: drawing the start values of a
    /// large model takes longer than reading its weights.
    pub fn for_loading(held: impl Into<Held>, device: Device) -> Self {
        Self::empty(Origin::Loading, held.into(), device)
    }

    /// A state of shapes without memory for values: to learn names, shapes and [`Params::count`] of a model that may be
    /// too large for this machine. What is built on it cannot be loaded or trained.
    pub fn for_shapes() -> Self {
        Self::empty(Origin::Shapes, Kind::Float.into(), Device::Cpu)
    }

    fn empty(origin: Origin, held: Held, device: Device) -> Self {
        Self { origin, held, kernels: MemoryFormat::Contiguous, device, entries: Rc::default() }
    }

    /// The same with convolution kernels [out, in, h, w] in the order of the images that they will see: libtorch would
    /// copy them at every call.
    #[must_use]
    pub fn with_kernels(self, kernels: MemoryFormat) -> Self {
        Self { kernels, ..self }
    }

    /// The root scope, where modules create their entries.
    pub fn root(&self) -> Scope<'_> {
        Scope { params: self, prefix: String::new() }
    }

    /// Kind of the floating entries; where matrices are held in a shorter one, that of the others.
    pub fn kind(&self) -> Kind {
        self.held.vectors
    }

    /// Device of all entries.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Shallow clones (shared storage) of the trainable tensors with their names, in order of construction.
    pub fn trainable(&self) -> Vec<(String, Tensor)> {
        self.collect(|entry| entry.trainable)
    }

    /// Shallow clones of all tensors with their names, in order of construction.
    pub fn all(&self) -> Vec<(String, Tensor)> {
        self.collect(|_| true)
    }

    pub(crate) fn entries(&self) -> Ref<'_, Vec<Entry>> {
        self.entries.borrow()
    }

    fn collect(&self, wanted: impl Fn(&Entry) -> bool) -> Vec<(String, Tensor)> {
        let entries = self.entries.borrow();
        entries
            .iter()
            .filter(|entry| wanted(entry))
            .map(|e| (e.name.clone(), e.tensor.shallow_clone()))
            .collect()
    }

    /// Number of trainable values.
    pub fn count(&self) -> i64 {
        self.trainable().iter().map(|(_, tensor)| tensor.numel() as i64).sum()
    }

    /// Copies values in by name, converting to this state's kind.
    ///
    /// # Errors
    /// 65 naming the first tensor that is missing, superfluous or of another shape; nothing is changed then.
    pub fn load(&self, source: &str, tensors: &[(String, Tensor)]) -> Result<()> {
        let given: std::collections::BTreeMap<&str, &Tensor> =
            tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let entries = self.entries.borrow();
        for entry in entries.iter() {
            let Some(tensor) = given.get(entry.name.as_str()) else {
                equipoise_base::bail!(BadData, "{source}: tensor '{}' is missing", entry.name)
            };
            let (have, want) = (tensor.size(), entry.tensor.size());
            ensure!(
                have == want,
                BadData,
                "{source}: tensor '{}' is {have:?}, the model wants {want:?}",
                entry.name
            );
        }
        let known: std::collections::BTreeSet<&str> = entries.iter().map(|e| e.name.as_str()).collect();
        if let Some(extra) = given.keys().find(|name| !known.contains(**name)) {
            equipoise_base::bail!(BadData, "{source}: tensor '{extra}' belongs to no part of the model");
        }
        tch::no_grad(|| {
            for entry in entries.iter() {
                entry.tensor.shallow_clone().copy_(given[entry.name.as_str()]);
            }
        });
        Ok(())
    }

    /// Stops gradients to the parameters: a guide or a feature extractor only passes them through.
    pub fn freeze(&self) {
        for entry in self.entries.borrow().iter().filter(|entry| entry.trainable) {
            let _ = entry.tensor.set_requires_grad(false);
        }
    }
}

/// A place in the tree of names.
#[derive(Clone, Debug)]
pub struct Scope<'a> {
    params: &'a Params,
    prefix: String,
}

impl<'a> Scope<'a> {
    /// The scope below, `name.` in the state dict.
    pub fn sub(&self, name: impl std::fmt::Display) -> Scope<'a> {
        Scope { params: self.params, prefix: format!("{}{name}.", self.prefix) }
    }

    /// Creates a trainable parameter.
    pub fn param(&self, name: &str, shape: &[i64], init: Init) -> Tensor {
        let name = format!("{}{name}", self.prefix);
        let Held { vectors, matrices } = self.params.held;
        let options = (if shape.len() > 1 { matrices } else { vectors }, self.params.device);
        let tensor = match self.params.origin {
            Origin::Seed(seed) => {
                let count = shape.iter().product::<i64>() as usize;
                Start::new(seed, &name, init).next(count, options).reshape(shape)
            }
            Origin::Loading => Tensor::zeros(shape, options),
            // Every element is the same one: a shape that costs nothing.
            Origin::Shapes => Tensor::zeros([1], options).expand(shape, false),
        };
        let is_kernel = shape.len() == 4 && !matches!(self.params.origin, Origin::Shapes);
        let tensor = match self.params.kernels {
            MemoryFormat::ChannelsLast if is_kernel => {
                tensor.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
            }
            _ => tensor,
        };
        let tensor = tensor.set_requires_grad(true);
        self.add(name, tensor.shallow_clone(), true, init);
        tensor
    }

    /// Creates a floating buffer.
    pub fn buffer(&self, name: &str, shape: &[i64], value: f64) -> Tensor {
        let tensor = Tensor::full(shape, value, (self.params.held.vectors, self.params.device));
        self.add(format!("{}{name}", self.prefix), tensor.shallow_clone(), false, Init::Constant(value));
        tensor
    }

    /// Creates an int64 counter of shape [].
    pub fn counter(&self, name: &str) -> Tensor {
        let tensor = Tensor::zeros([0i64; 0], (Kind::Int64, self.params.device));
        self.add(format!("{}{name}", self.prefix), tensor.shallow_clone(), false, Init::Constant(0.));
        tensor
    }

    /// Name of this scope without the trailing dot.
    pub fn name(&self) -> &str {
        self.prefix.trim_end_matches('.')
    }

    fn add(&self, name: String, tensor: Tensor, trainable: bool, init: Init) {
        let mut entries = self.params.entries.borrow_mut();
        assert!(entries.iter().all(|entry| entry.name != name), "parameter {name} exists twice");
        entries.push(Entry { name, tensor, trainable, init });
    }
}

/// Start values of the parameter `name`, piece by piece: however they are cut, they are the same.
pub(crate) struct Start {
    random: Stream,
    init: Init,
}

impl Start {
    pub(crate) fn new(seed: u64, name: &str, init: Init) -> Self {
        Self { random: Key::new(seed, &format!("init/{name}")).stream(), init }
    }

    /// The next `count` of them [count].
    pub(crate) fn next(&mut self, count: usize, (kind, device): (Kind, Device)) -> Tensor {
        let random = &mut self.random;
        let values: Vec<f64> = match self.init {
            Init::Constant(value) => return Tensor::full([count as i64], value, (kind, device)),
            Init::Normal(std) => (0..count).map(|_| random.normal() * std).collect(),
            Init::Uniform(bound) => (0..count).map(|_| random.range(-bound, bound)).collect(),
        };
        Tensor::from_slice(&values).to_kind(kind).to_device(device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small(seed: u64, names: &[&str]) -> Params {
        let params = Params::new(seed, Kind::Float, Device::Cpu);
        for name in names {
            let _ = params.root().sub("a").param(name, &[50, 20], Init::kaiming_fan_in(&[50, 20]));
        }
        let _ = params.root().counter("steps");
        params
    }

    #[test]
    fn start_values_depend_on_seed_and_name_only() {
        let value = |seed, names: &[&str]| {
            let all: std::collections::BTreeMap<_, _> = small(seed, names).all().into_iter().collect();
            all["a.x"].copy()
        };
        assert!(value(1, &["x", "y"]).equal(&value(1, &["y", "x"])));
        assert!(!value(1, &["x"]).equal(&value(2, &["x"])));
        let std = value(1, &["x"]).std(false).double_value(&[]);
        assert!((std - (2f64 / 20.).sqrt()).abs() < 0.02, "{std}");
    }

    #[test]
    fn loading_is_strict_and_all_or_nothing() {
        let (source, target) = (small(1, &["x", "y"]), small(2, &["x", "y"]));
        let before = target.all()[0].1.copy();
        let mut tensors = source.all();
        let dropped = tensors.remove(1);
        let error = target.load("f", &tensors).unwrap_err();
        assert!(error.message().contains("'a.y' is missing"), "{error}");
        tensors.push((dropped.0, Tensor::zeros([3], (Kind::Float, Device::Cpu))));
        assert!(target.load("f", &tensors).unwrap_err().message().contains("[3]"));
        assert!(target.all()[0].1.equal(&before));
        let mut tensors = source.all();
        tensors.push(("z".into(), before.copy()));
        assert!(target.load("f", &tensors).unwrap_err().message().contains("'z'"));
        let empty = Params::for_loading(Kind::Float, Device::Cpu);
        let _ = empty.root().sub("a").param("x", &[50, 20], Init::Normal(1.));
        empty.load("f", &source.all()[..1]).unwrap();
        assert!(empty.all()[0].1.equal(&source.all()[0].1) && empty.trainable()[0].1.requires_grad());
    }
}
