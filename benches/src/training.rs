//! Training steps as `equipoise-train` takes them, without the loader: forward, backward, the one wait, the optimizer,
//! running statistics.

use crate::timing::Repeats;
use equipoise_base::rng::Key;
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
use serde_json::{Value, json};
use tch::{Kind, Tensor};

/// A classifier and its batch.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Network.
    #[arg(long, value_parser = ["resnet32", "resnet50", "resnext50_32x4d"])]
    model: String,
    /// Height and width in pixels.
    #[arg(long, default_value_t = 32)]
    size: i64,
    /// Images of a step.
    #[arg(long, default_value_t = 128)]
    batch: i64,
    /// fp32 (never TF32) or bf16.
    #[arg(long, default_value = "fp32", value_parser = ["fp32", "bf16"])]
    precision: String,
    #[command(flatten)]
    repeats: Repeats,
}

impl Args {
    fn arch(&self) -> (ArchConfig, i64) {
        let named = |name: &str| serde_json::from_value(json!({ "kind": name }));
        match self.model.as_str() {
            "resnet32" => (ArchConfig::CifarResnet(CifarResNetConfig::default()), 10),
            name => match named(name) {
                Ok(arch) => (arch, 1000),
                Err(error) => unreachable!("the command line allows networks that exist: {error}"),
            },
        }
    }
}

/// Measures.
///
/// # Errors
/// 71 if the training diverges.
pub fn run(args: &Args) -> Result<Value> {
    let (arch, classes) = args.arch();
    let (device, shape) = (runtime::device(), [args.batch, 3, args.size, args.size]);
    let classifier = Classifier::new(&arch, Params::new(0, Kind::Float, device), 3, classes)?;
    let precision = if args.precision == "bf16" { Precision::Bf16 } else { Precision::Fp32 };
    let mut pixels = vec![0f32; shape.iter().product::<i64>() as usize];
    Key::new(0, "bench").stream().fill_normal(&mut pixels);
    let images =
        MemoryFormat::ChannelsLast.apply(&Tensor::from_slice(&pixels).view(shape).to_device(device))?;
    let labels = Tensor::arange(args.batch, (Kind::Int64, device)).remainder(classes);
    let ce: LossConfig = serde_json::from_value(json!({ "kind": "ce" })).or_exit(ExitCode::Bug, "loss")?;
    let loss = Loss::new(&ce, &Counts::new(&vec![1; classes as usize]))?;
    let flat = FlatParams::new(classifier.params())?;
    let sgd = SgdConfig { lr: 0.01, momentum: 0.9, weight_decay: 5e-4, nesterov: true };
    let mut optimizer = OptimizerConfig::Sgd(sgd).build(&flat)?;
    let running = RunningStatistics::new(classifier.batch_norms());
    let (comm, ownership) = (LocalComm::default(), Ownership::new(1, 1)?);
    let mut last = f64::NAN;
    let mut step = || -> Result<()> {
        let logits = precision.scope(device, || classifier.forward(&images, Mode::Train))?;
        let value = loss.forward(&logits, &labels, Progress { epoch: 0, step: 0 });
        let gradient = flat.gradient(&value);
        let noted = running.take()?;
        ensure!(is_finite(&gradient), NonFinite, "the gradient is not finite");
        optimizer.step(&flat, &gradient, sgd.lr)?;
        running.fold(&HostTree(&comm), &ownership, noted.as_slice())?;
        last = value.to_kind(Kind::Double).double_value(&[]);
        Ok(())
    };
    let mut line = args.repeats.measure(args.batch, &mut step)?;
    if !last.is_finite() {
        return Err(Error::new(ExitCode::NonFinite, "the loss is not finite"));
    }
    line["bench"] = "training".into();
    line["side"] = "equipoise".into();
    line["case"] = json!({
        "model": args.model, "size": args.size, "batch": args.batch, "precision": args.precision,
        "memory_format": "channels_last", "deterministic": true, "tf32": false,
    });
    line["loss"] = last.into();
    Ok(line)
}
