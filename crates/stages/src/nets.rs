//! The networks of a recipe, built and loaded: classifiers as guides, judges and extractors, and the generator.

use equipoise_base::{Identity, Result, ensure};
use equipoise_config::{method, recipe};
use equipoise_diffusion::criterion::Guide;
use equipoise_diffusion::prediction::Prediction;
use equipoise_diffusion::schedule::DiffusionScheduleConfig;
use equipoise_models::adm::{AdmConfig, AdmShape, AdmUNet};
use equipoise_models::arch::Classifier;
use equipoise_nn::layers::Mode;
use equipoise_nn::{MemoryFormat, Params, runtime, weights};
use tch::{Kind, Tensor};

/// Shape of the data that networks are built for.
#[derive(Clone, Debug)]
pub struct DataShape {
    /// Height and width.
    pub size: [i64; 2],
    /// Channels.
    pub channels: i64,
    /// Classes.
    pub classes: i64,
}

/// A classifier in evaluation mode whose parameters take no gradient.
pub struct Frozen {
    /// The network.
    pub classifier: Classifier,
    /// Hash of its weights.
    pub hash: Identity,
}

impl Frozen {
    /// Builds `arch` and gives it tensors with our names or torchvision's; `source` names their file in errors.
    ///
    /// # Errors
    /// 65 naming the tensor that does not fit, 78 if `arch` makes no network.
    pub fn load(
        arch: &method::Arch,
        source: &str,
        tensors: &[(String, Tensor)],
        shape: &DataShape,
    ) -> Result<Self> {
        let params =
            Params::for_loading(Kind::Float, runtime::device()).with_kernels(MemoryFormat::ChannelsLast);
        let classifier = Classifier::new(&arch.parse()?, params, shape.channels, shape.classes)?;
        classifier.load(source, tensors)?;
        classifier.params().freeze();
        Ok(Self { classifier, hash: hash(tensors) })
    }

    /// A network that nobody has trained: for rehearsals.
    ///
    /// # Errors
    /// 78 if `arch` makes no network.
    pub fn untrained(arch: &method::Arch, shape: &DataShape) -> Result<Self> {
        let params = Params::new(0, Kind::Float, runtime::device()).with_kernels(MemoryFormat::ChannelsLast);
        let classifier = Classifier::new(&arch.parse()?, params, shape.channels, shape.classes)?;
        classifier.params().freeze();
        Ok(Self { classifier, hash: Identity::of("untrained") })
    }
}

impl Guide for Frozen {
    fn logits(&self, x: &Tensor) -> Tensor {
        self.classifier.forward(x, Mode::Eval)
    }

    fn features(&self, x: &Tensor) -> Tensor {
        self.classifier.features(x, Mode::Eval)
    }
}

/// Hash over names, kinds, shapes and values: two files with other metadata but equal weights are equal.
fn hash(tensors: &[(String, Tensor)]) -> Identity {
    let lines: Vec<String> = tensors
        .iter()
        .map(|(name, tensor)| {
            let bytes = Identity::of_bytes(&weights::raw_bytes(tensor));
            format!("{name} {:?} {:?} {bytes}", tensor.kind(), tensor.size())
        })
        .collect();
    Identity::of(&lines.join("\n"))
}

/// A class-conditional pixel diffusion network.
pub struct Generator {
    /// Its parameters.
    pub params: Params,
    /// The network; the last row of its label embedding is the null label.
    pub unet: AdmUNet,
    /// What it predicts.
    pub prediction: Prediction,
    /// Whether it has learned the reverse variance too.
    pub learn_sigma: bool,
    /// Noise schedule it was trained with.
    pub schedule: DiffusionScheduleConfig,
    /// Label that stands for no class.
    pub null_label: i64,
    /// Hash of its weights; of nothing before they are loaded.
    pub hash: Identity,
}

impl Generator {
    /// Builds the network of a recipe; `params` decides whether it starts from a seed or waits for weights.
    ///
    /// # Errors
    /// 78 naming the field that makes no network.
    pub fn new(config: &GeneratorConfig, params: Params, shape: &DataShape) -> Result<Self> {
        ensure!(
            shape.size[0] == shape.size[1],
            Config,
            "data.size: the pixel generator makes square images, not {:?}",
            shape.size
        );
        let model: AdmConfig = config.model.parse()?;
        let prediction = prediction(config.prediction);
        let adm = AdmShape {
            image_size: shape.size[0],
            in_channels: shape.channels,
            out_channels: model.out_channels(shape.channels),
            labels: Some(shape.classes + 1),
        };
        let unet = AdmUNet::new(&params.root(), &model, &adm)?;
        let schedule = config.schedule.parse()?;
        let (learn_sigma, null_label) = (model.learn_sigma, shape.classes);
        Ok(Self { params, unet, prediction, learn_sigma, schedule, null_label, hash: Identity::of("") })
    }

    /// Builds the network and gives it tensors, which may be of a shorter format than fp32; `source` names their file.
    ///
    /// # Errors
    /// As [`Frozen::load`].
    pub fn load(
        config: &GeneratorConfig,
        source: &str,
        tensors: &[(String, Tensor)],
        shape: &DataShape,
    ) -> Result<Self> {
        let params = Params::for_loading(Kind::Float, runtime::device());
        let mut generator = Self::new(config, params, shape)?;
        generator.params.load(source, tensors)?;
        generator.params.freeze();
        generator.hash = hash(tensors);
        Ok(generator)
    }

    /// A network that nobody has trained: for rehearsals.
    ///
    /// # Errors
    /// As [`Generator::new`].
    pub fn untrained(config: &GeneratorConfig, shape: &DataShape) -> Result<Self> {
        let generator = Self::new(config, Params::new(0, Kind::Float, runtime::device()), shape)?;
        generator.params.freeze();
        Ok(generator)
    }
}

/// The keys of `[diffusion]` that a generator is built from.
#[derive(Clone, Debug, serde::Deserialize)]
pub struct GeneratorConfig {
    /// Trained weights, if the recipe names some.
    pub weights: Option<std::path::PathBuf>,
    /// Folder of a latent diffusion, which is then the generator instead.
    pub folder: Option<std::path::PathBuf>,
    /// Network.
    pub model: method::DiffusionModel,
    /// Noise schedule.
    pub schedule: method::NoiseSchedule,
    /// What the network predicts.
    pub prediction: recipe::Prediction,
}

fn prediction(name: recipe::Prediction) -> Prediction {
    match name {
        recipe::Prediction::Epsilon => Prediction::Epsilon,
        recipe::Prediction::VPrediction => Prediction::VPrediction,
        recipe::Prediction::Sample => Prediction::Sample,
    }
}
