//! The numbers that `plan` reckons with are those of the networks.

#![allow(clippy::unwrap_used)]

use equipoise_models::adm::{AdmConfig, AdmShape, AdmUNet};
use equipoise_models::arch::{ArchConfig, Classifier};
use equipoise_nn::Params;
use equipoise_workplan::parameters::{ClassifierSize, UNetSize};
use serde_json::{Value, json};
use tch::{Device, Kind};

fn empty() -> Params {
    Params::for_loading(Kind::Float, Device::Cpu)
}

#[test]
fn classifiers_have_the_parameters_that_are_planned() {
    for arch in [
        json!({ "kind": "cifar_resnet" }),
        json!({ "kind": "cifar_resnet", "depth": 8, "width": 4, "stem_stride": 2, "normalized_head": true }),
        json!({ "kind": "resnet50" }),
        json!({ "kind": "resnext50_32x4d" }),
        json!({ "kind": "bottleneck_resnet", "layers": [1, 2, 1, 1], "base": 16, "groups": 2 }),
    ] {
        let config: ArchConfig = serde_json::from_value(arch.clone()).unwrap();
        let network = Classifier::new(&config, empty(), 1, 7).unwrap();
        let planned: ClassifierSize = serde_json::from_value(arch.clone()).unwrap();
        assert_eq!(planned.count(1, 7), network.params().count() as u64, "{arch}");
    }
}

#[test]
fn generators_have_the_parameters_that_are_planned() {
    let quickstart = json!({
        "model_channels": 64, "channel_mult": [1.0, 2.0], "num_res_blocks": 1, "attention_resolutions": [2],
        "num_heads": 4, "num_head_channels": -1, "num_heads_upsample": -1, "use_scale_shift_norm": true,
        "resblock_updown": false, "conv_resample": true, "use_new_attention_order": false, "patch": 2,
        "learn_sigma": false
    });
    let with = |changes: Value| {
        let mut config = quickstart.clone();
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        config
    };
    for config in [
        with(json!({})),
        with(json!({ "learn_sigma": true, "use_scale_shift_norm": false, "conv_resample": false })),
        with(
            json!({ "resblock_updown": true, "channel_mult": [1.0, 1.5, 2.0], "attention_resolutions": [1, 4] }),
        ),
        with(json!({ "num_res_blocks": 2, "patch": 1 })),
    ] {
        let adm: AdmConfig = serde_json::from_value(config.clone()).unwrap();
        let shape =
            AdmShape { image_size: 32, in_channels: 3, out_channels: adm.out_channels(3), labels: Some(11) };
        let params = empty();
        let _unet = AdmUNet::new(&params.root(), &adm, &shape).unwrap();
        let planned: UNetSize = serde_json::from_value(config.clone()).unwrap();
        assert_eq!(planned.count(3, 11), params.count() as u64, "{config}");
    }
}
