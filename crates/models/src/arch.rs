//! Classifier architectures by name: what a configuration asks for, built.
//!
//! A new architecture is one file and one variant of [`ArchConfig`].

use crate::resnet::bottleneck::{BottleneckResNet, BottleneckResNetConfig};
use crate::resnet::cifar::{CifarResNet, CifarResNetConfig};
use equipoise_base::{Result, ensure};
use equipoise_nn::layers::{BatchNorm2d, Mode};
use equipoise_nn::{Module, Params, Scope};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// Which network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ArchConfig {
    /// CIFAR ResNet: ResNet-32 unless said otherwise.
    CifarResnet(CifarResNetConfig),
    /// A bottleneck ResNet of any shape.
    BottleneckResnet(BottleneckResNetConfig),
    /// torchvision's ResNet-50.
    Resnet50(NoParameters),
    /// torchvision's ResNet-152.
    Resnet152(NoParameters),
    /// torchvision's ResNeXt-50 32x4d.
    #[serde(rename = "resnext50_32x4d")]
    Resnext50(NoParameters),
}

/// An architecture whose name says it all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NoParameters {}

/// A network that ends in a linear head over a feature vector.
pub trait Network: Module + std::fmt::Debug {
    /// Input of the head: [N, C, H, W] to [N, feature_dim].
    fn features(&self, x: &Tensor, mode: Mode) -> Tensor;

    /// Logits of features: [N, feature_dim] to [N, classes].
    fn head(&self, features: &Tensor) -> Tensor;

    /// Name of the head in the state dict, such as `fc`.
    fn head_name(&self) -> &'static str;

    /// Length of a feature vector.
    fn feature_dim(&self) -> i64;
}

impl ArchConfig {
    /// Creates the network's parameters in `scope`.
    ///
    /// # Errors
    /// 78 naming the field that makes no network.
    pub fn build(&self, scope: &Scope, channels: i64, classes: i64) -> Result<Box<dyn Network>> {
        ensure!(
            channels > 0 && classes > 0,
            Config,
            "arch: {channels} channels and {classes} classes make no network"
        );
        let bottleneck = |config| BottleneckResNet::new(scope, config, channels, classes);
        Ok(match self {
            ArchConfig::CifarResnet(config) => Box::new(CifarResNet::new(scope, *config, channels, classes)?),
            ArchConfig::BottleneckResnet(config) => Box::new(bottleneck(*config)?),
            ArchConfig::Resnet50(_) => Box::new(bottleneck(BottleneckResNetConfig::resnet50())?),
            ArchConfig::Resnet152(_) => Box::new(bottleneck(BottleneckResNetConfig::resnet152())?),
            ArchConfig::Resnext50(_) => Box::new(bottleneck(BottleneckResNetConfig::resnext50_32x4d())?),
        })
    }
}

/// A network together with its parameters.
#[derive(Debug)]
pub struct Classifier {
    params: Params,
    network: Box<dyn Network>,
    classes: i64,
}

impl Classifier {
    /// Builds the network into `params`, which must be empty: [`Params::new`] to train it from a seed,
    /// [`Params::for_loading`] to load it.
    ///
    /// # Errors
    /// 78 naming the field that makes no network.
    pub fn new(arch: &ArchConfig, params: Params, channels: i64, classes: i64) -> Result<Self> {
        let network = arch.build(&params.root(), channels, classes)?;
        Ok(Self { params, network, classes })
    }

    /// [N, C, H, W] to logits [N, classes], in the kind of the parameters whatever the precision inside.
    pub fn forward(&self, x: &Tensor, mode: Mode) -> Tensor {
        self.head(&self.features(x, mode))
    }

    /// [N, C, H, W] to the input of the head, [N, feature_dim], in the kind of the parameters.
    pub fn features(&self, x: &Tensor, mode: Mode) -> Tensor {
        self.network.features(x, mode).to_kind(self.params.kind())
    }

    /// Features [N, feature_dim] to logits [N, classes].
    pub fn head(&self, features: &Tensor) -> Tensor {
        self.network.head(features).to_kind(self.params.kind())
    }

    /// Length of a feature vector.
    pub fn feature_dim(&self) -> i64 {
        self.network.feature_dim()
    }

    /// Number of classes.
    pub fn classes(&self) -> i64 {
        self.classes
    }

    /// Parameters and buffers.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// The trainable tensors of the head, for training it alone.
    pub fn head_params(&self) -> Vec<(String, Tensor)> {
        self.params.trainable().into_iter().filter(|(name, _)| self.is_head(name)).collect()
    }

    /// Loads a whole state dict, such as a safetensors export of torchvision's.
    ///
    /// # Errors
    /// 65 naming the first tensor that is missing, superfluous or of another shape; nothing is changed then.
    pub fn load(&self, source: &str, tensors: &[(String, Tensor)]) -> Result<()> {
        self.load_over(source, tensors, |_| false)
    }

    /// [`Classifier::load`] for all but the head, which keeps its values: other classes than the weights'.
    ///
    /// # Errors
    /// As [`Classifier::load`].
    pub fn load_backbone(&self, source: &str, tensors: &[(String, Tensor)]) -> Result<()> {
        self.load_over(source, tensors, |name| self.is_head(name))
    }

    /// Loads what is given, except that entries which are `kept` stay, and BatchNorm's counters may be missing:
    /// some exports drop them.
    fn load_over(
        &self,
        source: &str,
        tensors: &[(String, Tensor)],
        kept: impl Fn(&str) -> bool,
    ) -> Result<()> {
        let given: std::collections::BTreeSet<&str> = tensors.iter().map(|(name, _)| name.as_str()).collect();
        let may_stay =
            |name: &str| kept(name) || (name.ends_with("num_batches_tracked") && !given.contains(name));
        let own = self.params.all().into_iter().filter(|(name, _)| may_stay(name));
        let loaded = tensors.iter().filter(|(name, _)| !kept(name));
        let all: Vec<_> =
            loaded.map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).chain(own).collect();
        self.params.load(source, &all)
    }

    fn is_head(&self, name: &str) -> bool {
        name.strip_prefix(self.network.head_name()).is_some_and(|rest| rest.starts_with('.'))
    }
}

impl Module for Classifier {
    fn batch_norms(&self) -> Vec<&BatchNorm2d> {
        self.network.batch_norms()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    fn empty(json: &str, classes: i64) -> Classifier {
        let arch: ArchConfig = serde_json::from_str(json).unwrap();
        Classifier::new(&arch, Params::for_loading(Kind::Float, Device::Cpu), 3, classes).unwrap()
    }

    fn random(json: &str, seed: u64, classes: i64) -> Classifier {
        let arch: ArchConfig = serde_json::from_str(json).unwrap();
        Classifier::new(&arch, Params::new(seed, Kind::Float, Device::Cpu), 3, classes).unwrap()
    }

    fn images(size: i64) -> Tensor {
        Tensor::arange(2 * 3 * size * size, (Kind::Float, Device::Cpu)).sin().view([2, 3, size, size])
    }

    const SMALL: &str = r#"{"kind":"bottleneck_resnet","layers":[1,1,1,1],"base":4}"#;

    /// Parameter counts of torchvision 0.26 and of LDAM-DRW's resnet32.
    #[test]
    fn sizes_of_the_published_networks() {
        let count = |json, classes| empty(json, classes).params().count();
        assert_eq!(count(r#"{"kind":"resnet50"}"#, 1000), 25_557_032);
        assert_eq!(count(r#"{"kind":"resnet152"}"#, 1000), 60_192_808);
        assert_eq!(count(r#"{"kind":"resnext50_32x4d"}"#, 1000), 25_028_904);
        assert_eq!(count(r#"{"kind":"cifar_resnet"}"#, 10), 464_154);
    }

    #[test]
    fn names_of_torchvisions_resnet50() {
        let classifier = empty(r#"{"kind":"resnet50"}"#, 1000);
        let names: Vec<String> = classifier.params().all().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), 320);
        assert_eq!(names.iter().filter(|name| !name.ends_with("num_batches_tracked")).count(), 267);
        assert_eq!(classifier.params().trainable().len(), 161);
        assert_eq!(classifier.batch_norms().len(), 53);
        for name in [
            "conv1.weight",
            "bn1.running_var",
            "layer1.0.downsample.0.weight",
            "layer4.2.bn3.bias",
            "fc.bias",
        ] {
            assert!(names.iter().any(|have| have == name), "{name}");
        }
    }

    #[test]
    fn batch_norms_are_all_of_them() {
        for json in [SMALL, r#"{"kind":"cifar_resnet","depth":14,"width":4}"#] {
            let classifier = empty(json, 5);
            let all = classifier.params().all();
            let expected = all.iter().filter(|(name, _)| name.ends_with("running_mean")).count();
            assert_eq!(classifier.batch_norms().len(), expected);
        }
    }

    #[test]
    fn shapes_of_small_networks() {
        let quick = random(r#"{"kind":"cifar_resnet","depth":8,"width":4,"stem_stride":2}"#, 1, 5);
        assert_eq!(quick.features(&images(28), Mode::Eval).size(), [2, 16]);
        assert_eq!(quick.forward(&images(28), Mode::Train).size(), [2, 5]);
        assert_eq!((quick.feature_dim(), quick.classes()), (16, 5));
        let small = random(SMALL, 1, 5);
        assert_eq!(small.features(&images(40), Mode::Eval).size(), [2, 128]);
    }

    #[test]
    fn a_cosine_head_gives_cosines() {
        let json = r#"{"kind":"cifar_resnet","depth":8,"width":4,"normalized_head":true}"#;
        let classifier = random(json, 1, 5);
        let head = classifier.head_params();
        assert_eq!((head.len(), head[0].1.size()), (1, vec![16, 5]));
        let norms = head[0].1.norm_scalaropt_dim(2, [0i64].as_slice(), false);
        assert!(norms.allclose(&norms.ones_like(), 1e-6, 0., false));
        assert!(classifier.forward(&images(16), Mode::Eval).abs().max().double_value(&[]) <= 1.0 + 1e-6);
    }

    #[test]
    fn backbones_load_without_head_and_counters() {
        let (source, target) = (random(SMALL, 1, 5), random(SMALL, 2, 7));
        let mut tensors = source.params().all();
        tensors.retain(|(name, _)| !name.ends_with("num_batches_tracked"));
        assert!(target.load("f", &tensors).is_err());
        target.load_backbone("f", &tensors).unwrap();
        let x = images(40);
        assert!(target.features(&x, Mode::Eval).equal(&source.features(&x, Mode::Eval)));
        assert_eq!(target.forward(&x, Mode::Eval).size(), [2, 7]);
        tensors.retain(|(name, _)| name != "layer3.0.bn2.weight");
        let error = target.load_backbone("f", &tensors).unwrap_err();
        assert!(error.message().contains("layer3.0.bn2.weight"), "{error}");
    }

    #[test]
    fn nonsense_is_refused() {
        let refused = |json: &str| {
            let arch: ArchConfig = serde_json::from_str(json).unwrap();
            Classifier::new(&arch, Params::for_loading(Kind::Float, Device::Cpu), 3, 2).is_err()
        };
        assert!(refused(r#"{"kind":"cifar_resnet","depth":33}"#));
        assert!(refused(r#"{"kind":"cifar_resnet","width":5}"#));
        assert!(refused(r#"{"kind":"bottleneck_resnet","layers":[1,0,1,1]}"#));
        assert!(refused(r#"{"kind":"bottleneck_resnet","base":4,"width_per_group":4}"#));
        assert!(serde_json::from_str::<ArchConfig>(r#"{"kind":"resnet50","base":3}"#).is_err());
        assert!(serde_json::from_str::<ArchConfig>(r#"{"kind":"cifar_resnet","dept":8}"#).is_err());
    }
}
