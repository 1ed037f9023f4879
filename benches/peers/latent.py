"""Peer of `equipoise-bench latent`: diffusers' U-Net, autoencoder and scheduler on the same folder, in the loop of its
pipelines, with the same feedback of a classifier.

It starts from what --same FILE holds, which `equipoise-bench latent --dump FILE` wrote: noise, embeddings (so encoding
them is nobody's cost) and the classifier; and says how far its images are from those.
"""

import argparse

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file

import common
from training import CifarResNet

VIEW, WIDTH, OMEGA = 32, 16, 0.5


class Sampling:
    def __init__(self, args, same):
        here = {"low_cpu_mem_usage": False}  # the other way wants another package
        load = lambda network, name: network.from_pretrained(args.folder, subfolder=name, **here)
        form = torch.channels_last if args.memory_format == "channels_last" else torch.contiguous_format
        freeze = lambda network: network.to(args.device, memory_format=form).eval().requires_grad_(False)
        self.unet, self.vae = (freeze(load(*it)) for it in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae")))
        self.scheduler = DDIMScheduler.from_pretrained(args.folder, subfolder="scheduler")
        self.scheduler.set_timesteps(args.steps, device=args.device)
        judge = CifarResNet(depth=8, width=WIDTH)
        prefix = "judge."
        judge.load_state_dict({name[len(prefix) :]: it for name, it in same.items() if name.startswith(prefix)})
        self.judge = freeze(judge)
        at = lambda name: same[name].to(args.device)
        self.start, self.args = at("start"), args
        labels, (text, negative) = at("class_labels"), at("texts")
        both = lambda uncond, cond: torch.cat([uncond, cond])
        count = len(self.start)
        self.text = both(negative.expand(count, -1, -1), text.expand(count, -1, -1))
        self.labels = both(torch.zeros_like(labels), labels)

    def network(self, x, t):
        with common.autocast(self.args):
            out = self.unet(torch.cat([x, x]), t, encoder_hidden_states=self.text, class_labels=self.labels).sample
        uncond, cond = out.float().chunk(2)
        return uncond + self.args.cfg_scale * (cond - uncond)

    def decode(self, x):
        with common.autocast(self.args):
            return self.vae.decode(x / self.vae.config.scaling_factor).sample

    def criterion(self, image):
        view = (image / 2 + 0.5).clamp(0, 1)
        if image.shape[-1] != VIEW:
            view = F.interpolate(view, (VIEW, VIEW), mode="bilinear", antialias=True)
        with common.autocast(self.args):
            logits = self.judge((view - 0.5) / 0.25)
        log_p = logits.float().log_softmax(-1)
        return -(log_p.exp() * log_p).sum()

    def guided(self, x, t):
        """The network's output with eps - sqrt(1 - abar) omega grad in place of eps."""
        abar = self.scheduler.alphas_cumprod[t]
        signal, noise = abar.sqrt(), (1 - abar).sqrt()
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            v = self.network(leaf, t)
            criterion = self.criterion(self.decode(signal * leaf - noise * v))
            grad = torch.autograd.grad(criterion, leaf)[0]
        v = v.detach()
        eps = signal * v + noise * x - noise * OMEGA * grad
        return signal * eps - noise * (x - noise * eps) / signal

    @torch.no_grad()
    def sample(self):
        x, every = self.start * self.scheduler.init_noise_sigma, self.args.every
        for index, t in enumerate(self.scheduler.timesteps):
            v = self.guided(x, t) if every and index % every == 0 else self.network(x, t)
            x = self.scheduler.step(v, t, x, eta=0.0).prev_sample
        return self.decode(x).float().cpu()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", required=True)
    parser.add_argument("--same", required=True)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--cfg-scale", type=float, default=5.0)
    parser.add_argument("--every", type=int)
    parser.add_argument("--memory-format", default="channels_last", choices=["channels_last", "contiguous"])
    args = common.arguments(parser)
    common.prepare(args)
    same = load_file(args.same)
    sampling, images = Sampling(args, same), None

    def one_round():
        nonlocal images
        images = sampling.sample()

    line = common.measure(args, args.batch, one_round)
    line["largest_difference"] = (images - same["images"]).abs().max().item()
    case = {"batch": args.batch, "steps": args.steps, "cfg_scale": args.cfg_scale, "precision": args.precision}
    case |= {"every": args.every, "memory_format": args.memory_format}
    common.report(args, "latent", case, line)


if __name__ == "__main__":
    main()
