//! Kind `resnet`: forward passes and SGD steps of torchvision's and the CIFAR ResNets.

use crate::case::{Case, Tensors};
use equipoise_base::{Result, ensure};
use equipoise_models::resnet::{bottleneck::BottleneckResNetConfig, cifar::CifarResNetConfig};
use equipoise_models::{ArchConfig, Classifier};
use equipoise_nn::layers::Mode;
use equipoise_nn::optim::SgdConfig;
use equipoise_nn::statistics::RunningStatistics;
use equipoise_nn::{FlatParams, Module, OptimizerConfig, Params, runtime};
use tch::{Reduction, Tensor};

/// Computes what the case expects.
pub fn check(case: &Case) -> Result<Tensors> {
    let params = Params::for_loading(case.dtype(), runtime::device());
    let classifier = Classifier::new(&arch(case)?, params, 3, case.param("num_classes")?)?;
    classifier.load("weights.safetensors", &case.weights("weights.safetensors")?)?;
    match case.param::<String>("op")?.as_str() {
        "forward" => forward(case, &classifier),
        "train" => train(case, &classifier),
        other => Err(case.broken(&format!("op '{other}' is unknown"))),
    }
}

fn arch(case: &Case) -> Result<ArchConfig> {
    match case.param::<String>("arch")?.as_str() {
        "torchvision" => Ok(ArchConfig::BottleneckResnet(BottleneckResNetConfig {
            layers: case.param("layers")?,
            base: case.param("base")?,
            groups: case.param("groups")?,
            width_per_group: case.param("width_per_group")?,
        })),
        "cifar" => {
            let blocks: [i64; 3] = case.param("num_blocks")?;
            ensure!(
                blocks.iter().all(|&count| count == blocks[0]),
                BadData,
                "{}: stages of different depth are no CIFAR ResNet: {blocks:?}",
                case.dir.display()
            );
            Ok(ArchConfig::CifarResnet(CifarResNetConfig {
                depth: 6 * blocks[0] + 2,
                width: case.param("base")?,
                stem_stride: 1,
                normalized_head: case.param("use_norm")?,
            }))
        }
        other => Err(case.broken(&format!("arch '{other}' is unknown"))),
    }
}

fn forward(case: &Case, classifier: &Classifier) -> Result<Tensors> {
    let x = case.input("x")?;
    let features = tch::no_grad(|| classifier.features(x, Mode::Eval));
    let logits = tch::no_grad(|| classifier.head(&features));
    Ok(Tensors::from([("features".into(), features), ("logits".into(), logits)]))
}

fn train(case: &Case, classifier: &Classifier) -> Result<Tensors> {
    let (x, y) = (case.input("x")?, case.input("y")?);
    let lrs: Vec<f64> = case.param("lrs")?;
    ensure!(lrs.len() as i64 == x.size()[0], BadData, "{}: one rate per step is needed", case.dir.display());
    let config = SgdConfig {
        lr: lrs.first().copied().unwrap_or_default(),
        momentum: case.param("momentum")?,
        weight_decay: case.param("weight_decay")?,
        nesterov: case.param("nesterov")?,
    };
    let flat = FlatParams::new(classifier.params())?;
    let running = RunningStatistics::new(classifier.batch_norms());
    let mut optimizer = OptimizerConfig::Sgd(config).build(&flat)?;
    let (mut got, mut losses, mut all_logits) = (Tensors::new(), Vec::new(), Vec::new());
    for (step, &lr) in (0i64..).zip(&lrs) {
        let logits = classifier.forward(&x.get(step), Mode::Train);
        // tch's `cross_entropy_for_logits` would round to float32.
        let loss = logits.cross_entropy_loss(&y.get(step), None::<&Tensor>, Reduction::Mean, -100, 0.);
        optimizer.step(&flat, &flat.gradient(&loss), lr)?;
        running.take()?.iter().for_each(|noted| running.apply(noted));
        losses.push(loss.detach());
        all_logits.push(logits.detach());
        for (name, tensor) in classifier.params().all() {
            let name = format!("step{}.{name}", step + 1);
            if case.expects(&name) {
                got.insert(name, tensor.detach().copy());
            }
        }
    }
    got.extend(optimizer.state(&flat).into_iter().filter(|(name, _)| case.expects(name)));
    got.insert("loss".into(), Tensor::stack(&losses, 0));
    got.insert("logits".into(), Tensor::stack(&all_logits, 0));
    Ok(got)
}
