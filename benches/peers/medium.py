"""Makes a latent diffusion of about 60M U-Net parameters from a tiny Hugging Face folder: the same pipeline with wider
networks and seeded random weights. Nobody has trained it, which changes nothing about how long it takes."""

import argparse
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

UNET = {"block_out_channels": [128, 256, 448], "attention_head_dim": [4, 8, 14], "sample_size": 16, "norm_num_groups": 32}
UNET |= {"down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"]}
UNET |= {"up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"], "layers_per_block": 2}
VAE = {"block_out_channels": [32, 64, 96], "norm_num_groups": 32, "sample_size": 64}
VAE |= {"down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("tiny", help="folder to take tokenizer, encoders and schedulers from")
    parser.add_argument("folder", help="what is made")
    args = parser.parse_args()
    folder = Path(args.folder)
    shutil.rmtree(folder, ignore_errors=True)
    scratch = folder.with_suffix(".new")
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(args.tiny, scratch)
    torch.manual_seed(0)
    for network, name, changes in ((UNet2DConditionModel, "unet", UNET), (AutoencoderKL, "vae", VAE)):
        shutil.rmtree(scratch / name)
        config = dict(network.load_config(args.tiny, subfolder=name)) | changes
        model = network.from_config(config)
        model.save_pretrained(scratch / name)
        print(name, sum(parameter.numel() for parameter in model.parameters()) / 1e6, "million parameters")
    scratch.rename(folder)


if __name__ == "__main__":
    main()
