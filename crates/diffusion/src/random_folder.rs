//! Folders with the layout of `stable-diffusion-2-1-unclip` and random weights: tiny ones for dry runs and tests of
//! everything around the networks, and one of the published sizes for measuring. Their images show nothing.

use equipoise_base::Result;
use equipoise_models::autoencoder_kl::{AutoencoderKL, AutoencoderKLConfig};
use equipoise_models::clip::{ClipTextConfig, ClipTextModel, ClipVisionConfig, ClipVisionModel};
use equipoise_models::unet2d_condition::{UNet2DConditionConfig, UNet2DConditionModel};
use equipoise_nn::{Init, Params, Scope, start};
use serde_json::{Map, Value, json};
use std::path::Path;
use tch::Kind;

/// Pairs of letters that the tokenizer joins.
const MERGES: [&str; 6] = ["a n", "t h", "p h", "ph o", "o f</w>", "a t"];

/// A file by its path in the folder.
pub type File = (String, Content);

/// What a file holds.
#[derive(Debug)]
pub enum Content {
    /// These bytes.
    Text(Vec<u8>),
    /// Start values of a network, which may be large.
    Weights(Weights),
}

/// Weights that are drawn when they are written.
#[derive(Debug)]
pub struct Weights {
    params: Params,
    seed: u64,
    kind: Kind,
}

impl Weights {
    /// Number of parameters.
    pub fn count(&self) -> i64 {
        self.params.count()
    }

    /// Writes the safetensors file, a tensor at a time.
    ///
    /// # Errors
    /// 74 if it cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        start::write(&self.params, self.seed, self.kind, path)
    }
}

/// How large the networks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// A few thousand parameters each.
    Tiny,
    /// As published: 870,173,124 parameters of the U-Net and 1,056,118,503 of the others.
    Full,
}

/// The configurations that differ in size.
struct Networks {
    unet: Value,
    vae: Value,
    text_encoder: Value,
    image_encoder: Value,
}

impl Size {
    fn networks(self) -> Networks {
        match self {
            Size::Tiny => Networks {
                unet: tiny_unet(),
                vae: tiny_vae(),
                text_encoder: tiny_text_encoder(),
                image_encoder: tiny_image_encoder(),
            },
            Size::Full => Networks {
                unet: full_unet(),
                vae: full_vae(),
                text_encoder: full_text_encoder(),
                image_encoder: full_image_encoder(),
            },
        }
    }
}

/// The files of the folder, weights drawn from `seed` and stored as `kind`.
///
/// # Errors
/// 101 never: the configurations are ours.
pub fn files(size: Size, seed: u64, kind: Kind) -> Result<Vec<File>> {
    let Networks { unet, vae, text_encoder, image_encoder } = size.networks();
    let mut files = vec![text("model_index.json", &index())];
    files.extend(tokenizer());
    let side = image_encoder["image_size"].clone();
    files.push(text("feature_extractor/preprocessor_config.json", &feature_extractor(&side)));
    files.push(text("scheduler/scheduler_config.json", &scheduler("DDIMScheduler", "scaled_linear")));
    let noising = scheduler("DDPMScheduler", "squaredcos_cap_v2");
    files.push(text("image_noising_scheduler/scheduler_config.json", &noising));
    let (diffusers, width) = ("diffusion_pytorch_model", image_encoder["projection_dim"].clone());
    let component = |name: &str, stem: &str, config: &Value, build: &dyn Fn(&Scope, Value) -> Result<()>| {
        let params = Params::for_shapes();
        build(&params.root(), config.clone())?;
        let weights = Content::Weights(Weights { params, seed, kind });
        Result::Ok([
            text(&format!("{name}/config.json"), config),
            (format!("{name}/{stem}.safetensors"), weights),
        ])
    };
    files.extend(component("unet", diffusers, &unet, &|scope, config| {
        UNet2DConditionConfig::from_json("unet", config)
            .map(|config| drop(UNet2DConditionModel::new(scope, &config)))
    })?);
    files.extend(component("vae", diffusers, &vae, &|scope, config| {
        AutoencoderKLConfig::from_json("vae", config).map(|config| drop(AutoencoderKL::new(scope, &config)))
    })?);
    files.extend(component("text_encoder", "model", &text_encoder, &|scope, config| {
        ClipTextConfig::from_json("text", config)
            .map(|config| drop(ClipTextModel::new(scope, &config, false)))
    })?);
    files.extend(component("image_encoder", "model", &image_encoder, &|scope, config| {
        ClipVisionConfig::from_json("vision", config).map(|config| drop(ClipVisionModel::new(scope, &config)))
    })?);
    let normalizer = json!({ "_class_name": "StableUnCLIPImageNormalizer", "embedding_dim": width });
    files.extend(component("image_normalizer", diffusers, &normalizer, &|scope, config| {
        let width = config["embedding_dim"].as_i64().unwrap_or_default();
        let _ = scope.param("mean", &[1, width], Init::Constant(0.));
        let _ = scope.param("std", &[1, width], Init::Constant(1.));
        Ok(())
    })?);
    Ok(files)
}

fn text(path: &str, json: &Value) -> File {
    (path.to_string(), Content::Text(format!("{json:#}\n").into_bytes()))
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

fn tiny_unet() -> Value {
    json!({
        "_class_name": "UNet2DConditionModel",
        "attention_head_dim": [2, 4],
        "block_out_channels": [32, 64],
        "class_embed_type": "projection",
        "cross_attention_dim": 32,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "projection_class_embeddings_input_dim": 32,
        "sample_size": 8,
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "use_linear_projection": true,
    })
}

fn tiny_vae() -> Value {
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

fn tiny_text_encoder() -> Value {
    let size = vocabulary().len();
    json!({
        "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "hidden_act": "gelu",
        "bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": 0, "vocab_size": size,
        "hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 77,
        "num_attention_heads": 4, "num_hidden_layers": 2, "projection_dim": 32,
    })
}

fn tiny_image_encoder() -> Value {
    json!({
        "architectures": ["CLIPVisionModelWithProjection"], "model_type": "clip_vision_model", "hidden_act": "gelu",
        "hidden_size": 32, "image_size": 32, "intermediate_size": 64, "num_attention_heads": 4,
        "num_hidden_layers": 2, "patch_size": 8, "projection_dim": 16,
    })
}

/// The U-Net of stable-diffusion-2-1-unclip.
fn full_unet() -> Value {
    json!({
        "_class_name": "UNet2DConditionModel",
        "attention_head_dim": [5, 10, 20, 20],
        "block_out_channels": [320, 640, 1280, 1280],
        "class_embed_type": "projection",
        "cross_attention_dim": 1024,
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "projection_class_embeddings_input_dim": 2048,
        "sample_size": 96,
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        "upcast_attention": true,
        "use_linear_projection": true,
    })
}

fn full_vae() -> Value {
    json!({
        "_class_name": "AutoencoderKL",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": vec!["DownEncoderBlock2D"; 4],
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "sample_size": 768,
        "up_block_types": vec!["UpDecoderBlock2D"; 4],
    })
}

/// Its tokenizer is the tiny one, which knows fewer tokens.
fn full_text_encoder() -> Value {
    let known = vocabulary().len();
    json!({
        "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "hidden_act": "gelu",
        "bos_token_id": known - 2, "eos_token_id": known - 1, "pad_token_id": 0, "vocab_size": 49_408,
        "hidden_size": 1024, "intermediate_size": 4096, "max_position_embeddings": 77,
        "num_attention_heads": 16, "num_hidden_layers": 23, "projection_dim": 512,
    })
}

/// OpenCLIP ViT-H/14.
fn full_image_encoder() -> Value {
    json!({
        "architectures": ["CLIPVisionModelWithProjection"], "model_type": "clip_vision_model", "hidden_act": "gelu",
        "hidden_size": 1280, "image_size": 224, "intermediate_size": 5120, "num_attention_heads": 16,
        "num_hidden_layers": 32, "patch_size": 14, "projection_dim": 1024,
    })
}

fn feature_extractor(side: &Value) -> Value {
    json!({
        "image_processor_type": "CLIPImageProcessor",
        "crop_size": { "height": side, "width": side },
        "size": { "shortest_edge": side },
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
        ("tokenizer/merges.txt".to_string(), Content::Text(merges.into_bytes())),
        text("tokenizer/special_tokens_map.json", &roles),
        text("tokenizer/tokenizer_config.json", &config),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(seed: u64) -> Vec<(String, Vec<u8>)> {
        let folder = tempfile::tempdir().unwrap();
        let read = |(name, content)| match content {
            Content::Text(bytes) => (name, bytes),
            Content::Weights(weights) => {
                let path = folder.path().join("weights");
                weights.write(&path).unwrap();
                (name, std::fs::read(path).unwrap())
            }
        };
        files(Size::Tiny, seed, Kind::Float).unwrap().into_iter().map(read).collect()
    }

    #[test]
    fn the_seed_decides_every_byte() {
        let (one, two) = (bytes(1), bytes(2));
        assert!(one == bytes(1));
        let differ = one.iter().zip(&two).filter(|(a, b)| a != b).count();
        // U-Net, autoencoder and both towers.
        assert_eq!(differ, 4);
        let total: usize = one.iter().map(|(_, bytes)| bytes.len()).sum();
        assert!(total < 8 << 20, "{total} bytes are not tiny");
    }

    #[test]
    fn full_size_is_the_published_one() {
        let counts: Vec<i64> = files(Size::Full, 0, Kind::Half)
            .unwrap()
            .into_iter()
            .filter_map(|(_, content)| match content {
                Content::Weights(weights) => Some(weights.count()),
                Content::Text(_) => None,
            })
            .collect();
        assert_eq!(counts, [870_173_124, 83_653_863, 340_387_840, 632_076_800, 2048]);
    }

    #[test]
    fn every_byte_has_a_piece_within_and_at_the_end_of_a_word() {
        let vocabulary = vocabulary();
        assert_eq!(vocabulary.len(), 2 * 256 + MERGES.len() + 2);
        let distinct: std::collections::BTreeSet<_> = vocabulary.iter().collect();
        assert_eq!((distinct.len(), vocabulary[0].as_str()), (vocabulary.len(), "!"));
    }
}
