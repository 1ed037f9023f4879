#!/usr/bin/env python3
"""Makes the case unclip_pipeline/cfg4_epsilon: a folder that diffusers writes, and what diffusers computes with it.

    python -m venv /tmp/oracle && /tmp/oracle/bin/pip install torch diffusers==0.35.2 transformers==4.57.3 pillow
    OMP_NUM_THREADS=1 /tmp/oracle/bin/python tests/oracle/make_unclip_pipeline.py

The networks differ from those of cfg10_v wherever a configuration can: three levels with unequal numbers of layers, other
numbers of heads, convolutions as projections, quick GELU, epsilon prediction, linear betas, trailing time steps, padding
with the end token, weights stored in half precision; and the sampling has two images, prompts of its own, a negative
prompt, noise on the embedding and noise in every step.
"""

import json
import pathlib
import shutil

import numpy
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableUnCLIPImg2ImgPipeline, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

CASE = pathlib.Path(__file__).parent / "unclip_pipeline" / "cfg4_epsilon"
MERGES = ["a n", "t h", "p h", "ph o", "o f</w>", "a t", "o o", "k i"]
TEXT, IMAGE = 24, 12
PARAMS = {
    "prompt": ["a painting of a kiwi", "two boots, worn"],
    "negative_prompt": ["blurry", "text"],
    "guidance_scale": 4.0,
    "noise_level": 30,
    "steps": 5,
    "eta": 0.7,
}


def vocabulary():
    """GPT-2's alphabet of bytes, with and without the end of a word, then what the merges make."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
    words = letters + [letter + "</w>" for letter in letters] + [merge.replace(" ", "") for merge in MERGES]
    return {word: i for i, word in enumerate(words + ["<|startoftext|>", "<|endoftext|>"])}


def tokenizer(folder):
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary()))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]) + "\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)


def shaken(module, generator):
    """Norms and biases that start at 1 and 0 would hide that they are not used; larger weights make larger images."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() < 2:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
            else:
                parameter *= 1.1
    return module.eval().half()


def pipeline(generator):
    tokens = tokenizer(CASE / "model" / "tokenizer")
    ends = tokens.convert_tokens_to_ids(["<|startoftext|>", "<|endoftext|>"])
    text = CLIPTextConfig(
        vocab_size=len(tokens), hidden_size=TEXT, intermediate_size=40, num_hidden_layers=3, num_attention_heads=2,
        projection_dim=TEXT, hidden_act="quick_gelu", bos_token_id=ends[0], eos_token_id=ends[1], pad_token_id=ends[1],
    )
    vision = CLIPVisionConfig(
        hidden_size=20, intermediate_size=36, num_hidden_layers=3, num_attention_heads=5, image_size=24, patch_size=6,
        projection_dim=IMAGE, hidden_act="quick_gelu",
    )
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16, 24), layers_per_block=(1, 2, 1), attention_head_dim=(2, 4, 3),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), norm_num_groups=4,
        cross_attention_dim=TEXT, class_embed_type="projection", projection_class_embeddings_input_dim=2 * IMAGE,
        use_linear_projection=False,
    )
    vae = AutoencoderKL(
        block_out_channels=(4, 8, 12), layers_per_block=2, norm_num_groups=4, scaling_factor=0.31,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, sample_size=32,
    )
    normalizer = StableUnCLIPImageNormalizer(IMAGE)
    normalizer.mean.data.normal_(0, 0.1, generator=generator)
    normalizer.std.data.uniform_(0.5, 1.5, generator=generator)
    return StableUnCLIPImg2ImgPipeline(
        feature_extractor=CLIPImageProcessor(
            crop_size=24, size={"shortest_edge": 28}, image_mean=[0.5, 0.45, 0.4], image_std=[0.25, 0.26, 0.27]
        ),
        image_encoder=shaken(CLIPVisionModelWithProjection(vision), generator),
        image_normalizer=normalizer,
        image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=tokens,
        text_encoder=shaken(CLIPTextModel(text), generator),
        unet=shaken(unet, generator),
        scheduler=DDIMScheduler(
            beta_schedule="linear", beta_start=0.0002, beta_end=0.008, prediction_type="epsilon", clip_sample=False,
            timestep_spacing="trailing", set_alpha_to_one=True,
        ),
        vae=shaken(vae, generator),
    )


def inputs(pipe, generator):
    """Noise and images, as oracle/README.md names them."""
    image = torch.randint(0, 256, (9, 11, 3), generator=generator).to(torch.uint8).numpy()
    image = numpy.asarray(Image.fromarray(image).resize((34, 30), Image.BICUBIC))
    other = numpy.ascontiguousarray(image[::-1, ::-1])
    pixels = pipe.feature_extractor(images=[Image.fromarray(image), Image.fromarray(other)], return_tensors="pt")
    normal = lambda *shape: torch.randn(shape, generator=generator)
    return {
        "image": torch.from_numpy(image.copy()),
        "pixel_values": pixels.pixel_values,
        "latents": normal(2, 4, 8, 8),
        "image_noise": normal(2, IMAGE),
        "step_noise": normal(PARAMS["steps"], 2, 4, 8, 8),
    }


@torch.no_grad()
def step_by_step(pipe, given, text_encoder=None):
    """The computation of oracle/README.md with diffusers' parts."""
    encode = lambda texts: pipe.tokenizer(
        texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids
    ids, negative = encode(PARAMS["prompt"]), encode(PARAMS["negative_prompt"])
    text = (text_encoder or pipe.text_encoder)(torch.cat([negative, ids]))[0].to(given["latents"].dtype)
    embeds = pipe.image_encoder(given["pixel_values"]).image_embeds
    labels = pipe.noise_image_embeddings(embeds, PARAMS["noise_level"], noise=given["image_noise"])
    labels = torch.cat([torch.zeros_like(labels), labels])
    pipe.scheduler.set_timesteps(PARAMS["steps"])
    latents, predictions, steps = given["latents"], [], []
    for i, t in enumerate(pipe.scheduler.timesteps):
        both = pipe.unet(torch.cat([latents] * 2), t, encoder_hidden_states=text, class_labels=labels).sample
        uncond, cond = both.chunk(2)
        prediction = uncond + PARAMS["guidance_scale"] * (cond - uncond)
        noise = given["step_noise"][i]
        latents = pipe.scheduler.step(prediction, t, latents, eta=PARAMS["eta"], variance_noise=noise).prev_sample
        predictions.append(prediction)
        steps.append(latents)
    out = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    return {
        "input_ids": ids, "negative_input_ids": negative, "prompt_embeds": text, "image_embeds": embeds,
        "class_labels": labels, "timesteps": pipe.scheduler.timesteps, "noise_pred": torch.stack(predictions),
        "latents_steps": torch.stack(steps), "latents_final": latents, "image_out": out,
        "image01": (out / 2 + 0.5).clamp(0, 1),
    }


@torch.no_grad()
def by_the_pipeline(pipe, given):
    """The same by the pipeline's own loop, which is only given the noise."""
    noise = iter(given["step_noise"])
    step, noised = pipe.scheduler.step, pipe.noise_image_embeddings
    pipe.scheduler.step = lambda *args, eta, generator=None, **more: step(*args, eta=eta, variance_noise=next(noise), **more)
    pipe.noise_image_embeddings = lambda **more: noised(**{**more, "noise": given["image_noise"]})
    embeds = pipe.image_encoder(given["pixel_values"]).image_embeds
    images = pipe(
        image_embeds=embeds, prompt=PARAMS["prompt"], negative_prompt=PARAMS["negative_prompt"],
        guidance_scale=PARAMS["guidance_scale"], noise_level=PARAMS["noise_level"], eta=PARAMS["eta"],
        num_inference_steps=PARAMS["steps"], latents=given["latents"], output_type="pt",
    ).images
    return images


def describe(tensors):
    return {name: [str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in tensors.items()}


def tolerances(expected):
    """As for cfg10_v: absolute parts in units of the tensor's rms where that is below 1."""
    scale = lambda name: min(1.0, expected[name].double().square().mean().sqrt().item())
    exact = {name: {"rtol": 0, "atol": 0} for name in ["input_ids", "negative_input_ids", "timesteps"]}
    embeddings = ["prompt_embeds", "image_embeds", "class_labels"]
    single = {name: {"rtol": 1e-4, "atol": float(f"{3e-5 * scale(name):.2g}")} for name in embeddings}
    images = {name: {"rtol": 5e-4, "atol": float(f"{3e-4 * scale(name):.2g}")} for name in ["image_out", "image01"]}
    return {**exact, **single, **images}


def main():
    shutil.rmtree(CASE, ignore_errors=True)
    generator = torch.Generator().manual_seed(20020)
    torch.manual_seed(20021)
    pipeline(generator).save_pretrained(CASE / "model", safe_serialization=True)
    pipe = StableUnCLIPImg2ImgPipeline.from_pretrained(CASE / "model", torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    given = inputs(pipe, generator)
    expected = step_by_step(pipe, given)
    double = {name: t.double() if t.is_floating_point() else t for name, t in given.items()}
    # transformers' causal mask overflows in float64.
    exact = step_by_step(pipe.to(torch.float64), double, pipe.text_encoder.to(torch.float32))
    pipe.to(torch.float32)
    verified = {
        "image01": (by_the_pipeline(pipe, given) - expected["image01"]).abs().max().item(),
        "float64_image": (exact["image_out"] - expected["image_out"]).abs().max().item(),
        "latent_std": expected["latents_final"].std().item(),
    }
    save_file({name: t.contiguous() for name, t in given.items()}, CASE / "inputs.safetensors")
    save_file({name: t.contiguous() for name, t in expected.items()}, CASE / "expected.safetensors")
    case = {
        "kind": "unclip_pipeline",
        "name": "cfg4_epsilon",
        "reference": "diffusers==0.35.2 StableUnCLIPImg2ImgPipeline, transformers==4.57.3",
        "params": PARAMS,
        "tolerance": {"rtol": 5e-4, "atol": 3e-4},
        "about": "Another configuration than cfg10_v, stored in half precision; made by make_unclip_pipeline.py.",
        "inputs": describe(given),
        "expected": describe(expected),
        "tolerances": tolerances(expected),
        "verified": {name: float(f"{value:.3g}") for name, value in verified.items()},
    }
    (CASE / "case.json").write_text(json.dumps(case, indent=1))
    print(json.dumps(case["verified"]))


if __name__ == "__main__":
    main()
