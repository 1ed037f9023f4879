//! Kind `losses`: value and gradient of classification, mixing, contrastive and group losses.

use crate::case::{Case, Tensors};
use equipoise_base::{Error, Result};
use equipoise_classify::contrastive::{Bcl, PaCo, Queue, SupCon};
use equipoise_classify::groups::{GroupDro, Irm};
use equipoise_classify::mix::{self, Remix};
use equipoise_classify::{Counts, Loss, LossConfig, Progress};
use equipoise_nn::runtime;
use equipoise_numerics::check::{labels, to_i64};
use serde_json::Value;
use tch::{Kind, Tensor};

/// Computes the losses of the family that `params.family` names.
pub fn check(case: &Case) -> Result<Tensors> {
    let family: String = case.param("family")?;
    match family.as_str() {
        "classification" => classification(case),
        "mix" => mixing(case),
        "contrastive" => contrastive(case),
        "groups" => groups(case),
        _ => {
            Err(case.broken(&format!("family '{family}' of kind losses has no implementation in this build")))
        }
    }
}

fn classification(case: &Case) -> Result<Tensors> {
    let target = case.input("target")?;
    let counts = Counts::new(&counts(case)?);
    let mut out = Tensors::new();
    for described in case.param::<Vec<Value>>("losses")? {
        let id =
            described.get("id").and_then(Value::as_str).ok_or_else(|| case.broken("a loss has no id"))?;
        let loss = Loss::new(&configuration(case, &described)?, &counts)?;
        let logits = leaf(case.input("logits")?);
        // Far enough for deferred weights.
        let value = loss.forward(&logits, target, Progress { epoch: u64::MAX, step: 0 });
        out.insert(format!("{id}.grad"), gradient(&value, &logits));
        out.insert(format!("{id}.value"), scalar(&value));
    }
    Ok(out)
}

/// The configuration of a loss as the oracle describes it, which leaves out what it has one choice of.
fn configuration(case: &Case, described: &Value) -> Result<LossConfig> {
    let mut fields = described.as_object().cloned().unwrap_or_default();
    fields.remove("id");
    let kind = fields.remove("type").as_ref().and_then(Value::as_str).unwrap_or_default().to_string();
    fields.insert("kind".into(), kind.clone().into());
    match kind.as_str() {
        "ldam" => {
            if let Some(beta) = fields.remove("drw_beta").filter(|beta| !beta.is_null()) {
                fields.insert("kind".into(), "ldam_drw".into());
                fields.insert("beta".into(), beta);
                fields.insert("start_epoch".into(), 0.into());
            }
        }
        "balanced_softmax" | "logit_adjust" => {
            fields.insert("prior".into(), "real".into());
        }
        _ => (),
    }
    serde_json::from_value(Value::Object(fields))
        .map_err(|error| case.broken(&format!("loss '{kind}': {error}")))
}

fn mixing(case: &Case) -> Result<Tensors> {
    let (x, logits) = (case.input("x")?, case.input("logits")?);
    let (target, perm) = (case.input("target")?, case.input("perm")?);
    let (lambda, counts) = (case.param("lam")?, counts(case)?);
    let rows = target.size().first().copied().unwrap_or(0);
    let host_target = labels("target", target, rows, counts.len())?;
    let host_perm = labels("perm", perm, rows, rows as usize)?;
    let remix = Remix { kappa: case.param("kappa")?, tau: case.param("tau")? };
    let remix_share = Tensor::from_slice(&remix.shares(&counts, &host_target, &host_perm, lambda));
    let remix_share = remix_share.to_device(logits.device());
    let mut out = Tensors::new();
    for (name, share) in [("mixup", &mix::mixup_shares(target, lambda, logits)), ("remix", &remix_share)] {
        let logits = leaf(logits);
        let soft = mix::soft_targets(target, perm, share, counts.len() as i64);
        let value = mix::soft_cross_entropy(&logits, &soft);
        out.insert(format!("{name}.grad"), gradient(&value, &logits));
        out.insert(format!("{name}.value"), scalar(&value));
        out.insert(format!("{name}.soft"), soft);
    }
    out.insert("remix.lam_y".into(), remix_share);
    out.insert("x_mix".into(), mix::mix_images(x, perm, lambda));
    Ok(out)
}

fn contrastive(case: &Case) -> Result<Tensors> {
    let target = case.input("target")?;
    let number = |loss: &str, name: &str| -> Result<f64> {
        let value = case.params.get(loss).and_then(|parameters| parameters.get(name)).and_then(Value::as_f64);
        value.ok_or_else(|| case.broken(&format!("parameter '{loss}.{name}' is missing")))
    };
    let mut out = Tensors::new();
    let mut note = |loss: &str, value: Tensor, inputs: &[(&str, &Tensor)]| {
        value.backward();
        out.insert(format!("{loss}.value"), scalar(&value));
        out.extend(inputs.iter().map(|(name, input)| (format!("{loss}.grad_{name}"), input.grad())));
    };

    let features = leaf(case.input("features")?);
    let supcon =
        SupCon { temperature: number("supcon", "T")?, base_temperature: number("supcon", "base_T")? };
    note("supcon", supcon.forward(&features, target), &[("features", &features)]);

    let (features, sup_logits) = (leaf(case.input("features")?), leaf(case.input("sup_logits")?));
    let paco = PaCo {
        alpha: number("paco", "alpha")?,
        beta: number("paco", "beta")?,
        gamma: number("paco", "gamma")?,
        supt: number("paco", "supt")?,
        temperature: number("paco", "T")?,
        base_temperature: number("paco", "base_T")?,
    };
    let counts = case.input("counts")?.to_kind(Kind::Double);
    let prior = &counts / counts.sum(Kind::Double);
    let queue = Queue { features: case.input("queue")?, target: case.input("queue_target")? };
    let value = paco.forward(&features, target, (&sup_logits, &prior), &queue);
    note("paco", value, &[("features", &features), ("sup_logits", &sup_logits)]);

    let (features, centers) = (leaf(case.input("features")?), leaf(case.input("centers")?));
    let value = Bcl { temperature: number("bcl", "T")? }.forward(&features, target, &centers);
    note("bcl", value, &[("features", &features), ("centers", &centers)]);
    Ok(out)
}

fn groups(case: &Case) -> Result<Tensors> {
    let (logits, target, attr) = (case.input("logits")?, case.input("target")?, case.input("attr")?);
    let &[steps, _, classes] = &logits.size()[..] else {
        return Err(case.broken("logits are not [S, N, C]"));
    };
    let (attributes, lambda): (i64, f64) = (case.param("num_attributes")?, case.param("irm_lambda")?);
    let mut dro = GroupDro::new(classes * attributes, case.param("groupdro_eta")?, runtime::device())?;
    let mut parts: Vec<(&str, Vec<Tensor>)> = Vec::new();
    let mut note =
        |name: &'static str, tensor: Tensor| match parts.iter_mut().find(|(known, _)| *known == name) {
            Some((_, tensors)) => tensors.push(tensor),
            None => parts.push((name, vec![tensor])),
        };
    for step in 0..steps {
        let (target, attr) = (target.get(step), attr.get(step));
        let batch = leaf(&logits.get(step));
        let value = dro.forward(&batch, &target, &(&target * attributes + &attr));
        note("groupdro.q", dro.weights().shallow_clone());
        note("groupdro.grad", gradient(&value, &batch));
        note("groupdro.value", value.detach());

        let batch = leaf(&logits.get(step));
        let irm = Irm::of(&batch, &target, &attr, attributes);
        let value = &irm.nll + &irm.penalty * lambda;
        note("irm.grad", gradient(&value, &batch));
        note("irm.value", value.detach());
        note("irm.nll", irm.nll.detach());
        note("irm.penalty", irm.penalty.detach());
        note("irmv1.penalty", irm.penalty_v1.detach());
    }
    Ok(parts.into_iter().map(|(name, tensors)| (name.to_string(), Tensor::stack(&tensors, 0))).collect())
}

fn counts(case: &Case) -> Result<Vec<u64>> {
    let valid =
        |count: i64| u64::try_from(count).map_err(|_| -> Error { case.broken("a count is negative") });
    to_i64(case.input("counts")?).into_iter().map(valid).collect()
}

fn leaf(tensor: &Tensor) -> Tensor {
    tensor.copy().set_requires_grad(true)
}

fn gradient(value: &Tensor, of: &Tensor) -> Tensor {
    value.backward();
    of.grad()
}

/// The oracle's single numbers have one dimension.
fn scalar(value: &Tensor) -> Tensor {
    value.detach().view([1])
}
