//! A folder with the layout of `stable-diffusion-2-1-unclip` and networks of a few thousand random weights: for dry runs
//! and tests of everything around them. Its images show nothing.

use equipoise_base::Result;
use equipoise_models::autoencoder_kl::{AutoencoderKL, AutoencoderKLConfig};
use equipoise_models::clip::{ClipTextConfig, ClipTextModel, ClipVisionConfig, ClipVisionModel};
use equipoise_models::unet2d_condition::{UNet2DConditionConfig, UNet2DConditionModel};
use equipoise_nn::{Init, Params, Scope, weights};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use tch::{Device, Kind};

/// Width of text embeddings, and of CLIP's image embeddings.
const TEXT_WIDTH: i64 = 32;
const IMAGE_WIDTH: i64 = 16;
/// Pairs of letters that the tokenizer joins.
const MERGES: [&str; 6] = ["a n", "t h", "p h", "ph o", "o f</w>", "a t"];

/// A file by its path in the folder.
pub type File = (String, Vec<u8>);

/// The files of the folder, weights drawn from `seed`.
///
/// # Errors
/// 101 never: the configurations are ours.
pub fn files(seed: u64) -> Result<Vec<File>> {
    let mut files = vec![text("model_index.json", &index())];
    files.extend(tokenizer());
    files.push(text("feature_extractor/preprocessor_config.json", &feature_extractor()));
    files.push(text("scheduler/scheduler_config.json", &scheduler("DDIMScheduler", "scaled_linear")));
    let noising = scheduler("DDPMScheduler", "squaredcos_cap_v2");
    files.push(text("image_noising_scheduler/scheduler_config.json", &noising));
    let diffusers = "diffusion_pytorch_model";
    files.extend(component(seed, "unet", diffusers, &unet(), |scope, config| {
        UNet2DConditionConfig::from_json("unet", config)
            .map(|config| drop(UNet2DConditionModel::new(scope, &config)))
    })?);
    files.extend(component(seed, "vae", diffusers, &vae(), |scope, config| {
        AutoencoderKLConfig::from_json("vae", config).map(|config| drop(AutoencoderKL::new(scope, &config)))
    })?);
    files.extend(component(seed, "text_encoder", "model", &text_encoder(), |scope, config| {
        ClipTextConfig::from_json("text", config)
            .map(|config| drop(ClipTextModel::new(scope, &config, false)))
    })?);
    files.extend(component(seed, "image_encoder", "model", &image_encoder(), |scope, config| {
        ClipVisionConfig::from_json("vision", config).map(|config| drop(ClipVisionModel::new(scope, &config)))
    })?);
    let normalizer = json!({ "_class_name": "StableUnCLIPImageNormalizer", "embedding_dim": IMAGE_WIDTH });
    files.extend(component(seed, "image_normalizer", diffusers, &normalizer, |scope, _| {
        let _ = scope.param("mean", &[1, IMAGE_WIDTH], Init::Constant(0.));
        let _ = scope.param("std", &[1, IMAGE_WIDTH], Init::Constant(1.));
        Ok(())
    })?);
    Ok(files)
}

fn text(path: &str, json: &Value) -> File {
    (path.to_string(), format!("{json:#}\n").into_bytes())
}

/// Configuration and weights of a network.
fn component(
    seed: u64,
    name: &str,
    stem: &str,
    config: &Value,
    build: impl FnOnce(&Scope, Value) -> Result<()>,
) -> Result<[File; 2]> {
    let params = Params::new(seed, Kind::Float, Device::Cpu);
    build(&params.root(), config.clone())?;
    let bytes = weights::to_bytes(&params.all(), &BTreeMap::new())?;
    Ok([text(&format!("{name}/config.json"), config), (format!("{name}/{stem}.safetensors"), bytes)])
}

fn index() -> Value {
    json!({
        "_class_name": "StableUnCLIPImg2ImgPipeline",
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
        "image_noising_scheduler": ["diffusers", "DDPMScheduler"],
        "image_normalizer": ["stable_diffusion", "StableUnCLIPImageNormalizer"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    })
}

fn unet() -> Value {
    json!({
        "_class_name": "UNet2DConditionModel",
        "attention_head_dim": [2, 4],
        "block_out_channels": [32, 64],
        "class_embed_type": "projection",
        "cross_attention_dim": TEXT_WIDTH,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "projection_class_embeddings_input_dim": 2 * IMAGE_WIDTH,
        "sample_size": 8,
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "use_linear_projection": true,
    })
}

fn vae() -> Value {
    json!({
        "_class_name": "AutoencoderKL",
        "block_out_channels": [16, 32, 32],
        "down_block_types": vec!["DownEncoderBlock2D"; 3],
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "sample_size": 32,
        "up_block_types": vec!["UpDecoderBlock2D"; 3],
    })
}

fn text_encoder() -> Value {
    let size = vocabulary().len();
    json!({
        "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "hidden_act": "gelu",
        "bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": 0, "vocab_size": size,
        "hidden_size": TEXT_WIDTH, "intermediate_size": 2 * TEXT_WIDTH, "max_position_embeddings": 77,
        "num_attention_heads": 4, "num_hidden_layers": 2, "projection_dim": TEXT_WIDTH,
    })
}

fn image_encoder() -> Value {
    json!({
        "architectures": ["CLIPVisionModelWithProjection"], "model_type": "clip_vision_model", "hidden_act": "gelu",
        "hidden_size": 32, "image_size": 32, "intermediate_size": 64, "num_attention_heads": 4,
        "num_hidden_layers": 2, "patch_size": 8, "projection_dim": IMAGE_WIDTH,
    })
}

fn feature_extractor() -> Value {
    json!({
        "image_processor_type": "CLIPImageProcessor",
        "crop_size": { "height": 32, "width": 32 },
        "size": { "shortest_edge": 32 },
        "do_center_crop": true, "do_convert_rgb": true, "do_normalize": true, "do_rescale": true, "do_resize": true,
        "image_mean": [0.481_454_66, 0.457_827_5, 0.408_210_73],
        "image_std": [0.268_629_54, 0.261_302_58, 0.275_777_11],
        "resample": 3,
        "rescale_factor": 0.003_921_568_627_450_98,
    })
}

fn scheduler(class: &str, betas: &str) -> Value {
    let mut json = json!({ "_class_name": class, "beta_schedule": betas, "num_train_timesteps": 1000 });
    if class == "DDIMScheduler" {
        json["beta_start"] = json!(0.00085);
        json["beta_end"] = json!(0.012);
        json["clip_sample"] = json!(false);
        json["prediction_type"] = json!("v_prediction");
        json["set_alpha_to_one"] = json!(false);
        json["steps_offset"] = json!(1);
    }
    json
}

/// Byte-level pieces in the order of their ids: "!" first, the special tokens last.
fn vocabulary() -> Vec<String> {
    // GPT-2's alphabet: printable bytes stand for themselves, the others for the letters from 256 on.
    let printable = |byte: &u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let own = (0..256).filter(printable);
    let moved = 256..256 + (0..256).filter(|byte| !printable(byte)).count() as u32;
    let letters: Vec<String> = own.chain(moved).filter_map(char::from_u32).map(String::from).collect();
    let ends = letters.iter().map(|letter| format!("{letter}</w>"));
    let merged = MERGES.iter().map(|merge| merge.replace(' ', ""));
    let special = ["<|startoftext|>", "<|endoftext|>"].map(String::from);
    letters.iter().cloned().chain(ends).chain(merged).chain(special).collect()
}

fn tokenizer() -> Vec<File> {
    let ids: Map<String, Value> =
        vocabulary().into_iter().enumerate().map(|(id, piece)| (piece, json!(id))).collect();
    let special = |content: &str| json!({ "content": content, "lstrip": false, "normalized": true, "rstrip": false, "single_word": false });
    let roles = json!({
        "bos_token": special("<|startoftext|>"), "eos_token": special("<|endoftext|>"),
        "unk_token": special("<|endoftext|>"), "pad_token": "!",
    });
    let config = json!({
        "tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": "!",
        "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>",
    });
    let merges = format!("#version: 0.2\n{}\n", MERGES.join("\n"));
    vec![
        text("tokenizer/vocab.json", &Value::Object(ids)),
        ("tokenizer/merges.txt".to_string(), merges.into_bytes()),
        text("tokenizer/special_tokens_map.json", &roles),
        text("tokenizer/tokenizer_config.json", &config),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_decides_every_byte() {
        let of = |seed| files(seed).unwrap();
        assert_eq!(of(1), of(1));
        let differ = of(1).into_iter().zip(of(2)).filter(|(a, b)| a != b).count();
        // U-Net, autoencoder and both towers.
        assert_eq!(differ, 4);
        let bytes: usize = of(1).iter().map(|(_, bytes)| bytes.len()).sum();
        assert!(bytes < 8 << 20, "{bytes} bytes are not tiny");
    }

    #[test]
    fn every_byte_has_a_piece_within_and_at_the_end_of_a_word() {
        let vocabulary = vocabulary();
        assert_eq!(vocabulary.len(), 2 * 256 + MERGES.len() + 2);
        let distinct: std::collections::BTreeSet<_> = vocabulary.iter().collect();
        assert_eq!((distinct.len(), vocabulary[0].as_str()), (vocabulary.len(), "!"));
    }
}
