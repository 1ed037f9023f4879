//! A training step as `equipoise-train` takes it: forward, backward, the one wait, the optimizer, running statistics.

use equipoise_base::{Error, ExitCode, Result, ResultExt as _, ensure};
use equipoise_classify::{Counts, Loss, LossConfig, Progress};
use equipoise_comm::LocalComm;
use equipoise_models::resnet::cifar::CifarResNetConfig;
use equipoise_models::{ArchConfig, Classifier};
use equipoise_nn::flat::is_finite;
use equipoise_nn::layers::Mode;
use equipoise_nn::optim::SgdConfig;
use equipoise_nn::reduce::Ownership;
use equipoise_nn::statistics::RunningStatistics;
use equipoise_nn::{
    FlatParams, HostTree, MemoryFormat, Module as _, OptimizerConfig, Params, Precision, runtime,
};
use serde_json::json;
use tch::{Kind, Tensor};

/// A classifier and its number format.
#[derive(Debug, clap::Args)]
pub struct Model {
    /// Network.
    #[arg(long, value_parser = ["resnet32", "resnet50", "resnext50_32x4d"])]
    pub model: String,
    /// fp32 (never TF32) or bf16.
    #[arg(long, default_value = "fp32", value_parser = ["fp32", "bf16"])]
    pub precision: String,
}

/// One step on float images [N, 3, H, W] and labels [N], both on the device.
pub type Step<'a> = dyn FnMut(&Tensor, &Tensor) -> Result<()> + 'a;

impl Model {
    /// Number of classes.
    pub fn classes(&self) -> i64 {
        if self.model == "resnet32" { 10 } else { 1000 }
    }

    fn arch(&self) -> Result<ArchConfig> {
        match self.model.as_str() {
            "resnet32" => Ok(ArchConfig::CifarResnet(CifarResNetConfig::default())),
            name => serde_json::from_value(json!({ "kind": name })).or_exit(ExitCode::Bug, "arch"),
        }
    }

    /// Hands a step to `body`; what that gives, and the last loss.
    ///
    /// # Errors
    /// 71 if the training diverges, and what `body` fails with.
    pub fn train<T>(&self, body: impl FnOnce(&mut Step<'_>) -> Result<T>) -> Result<(T, f64)> {
        let (device, classes) = (runtime::device(), self.classes());
        let params = Params::new(0, Kind::Float, device).with_kernels(MemoryFormat::ChannelsLast);
        let classifier = Classifier::new(&self.arch()?, params, 3, classes)?;
        let precision = if self.precision == "bf16" { Precision::Bf16 } else { Precision::Fp32 };
        let ce: LossConfig =
            serde_json::from_value(json!({ "kind": "ce" })).or_exit(ExitCode::Bug, "loss")?;
        let loss = Loss::new(&ce, &Counts::new(&vec![1; classes as usize]))?;
        let flat = FlatParams::new(classifier.params())?;
        let sgd = SgdConfig { lr: 0.01, momentum: 0.9, weight_decay: 5e-4, nesterov: true };
        let mut optimizer = OptimizerConfig::Sgd(sgd).build(&flat)?;
        let running = RunningStatistics::new(classifier.batch_norms());
        let (comm, ownership) = (LocalComm::default(), Ownership::new(1, 1)?);
        let mut last = f64::NAN;
        let mut step = |images: &Tensor, labels: &Tensor| -> Result<()> {
            let images = MemoryFormat::ChannelsLast.apply(images)?;
            let logits = precision.scope(device, || classifier.forward(&images, Mode::Train))?;
            let value = loss.forward(&logits, labels, Progress { epoch: 0, step: 0 });
            let gradient = flat.gradient(&value);
            let noted = running.take()?;
            ensure!(is_finite(&gradient), NonFinite, "the gradient is not finite");
            optimizer.step(&flat, &gradient, sgd.lr)?;
            running.fold(&HostTree(&comm), &ownership, noted.as_slice())?;
            last = value.to_kind(Kind::Double).double_value(&[]);
            Ok(())
        };
        let result = body(&mut step)?;
        if !last.is_finite() {
            return Err(Error::new(ExitCode::NonFinite, "the loss is not finite"));
        }
        Ok((result, last))
    }
}
