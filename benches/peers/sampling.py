"""Peer of `equipoise-bench sampling`: the same U-Net, weights, DDIM steps and guidance as a plain PyTorch loop.

With --same FILE, which `equipoise-bench sampling --dump FILE` wrote, it starts from the same noise and says how far
its images are from those: equal work, not only similar work.
"""

import argparse
import math

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

import common
from training import CifarResNet

CLASSES, SIZE, BASE, PATCH, HEADS = 10, 28, 64, 2, 4


class ResBlock(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(32, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, 1, 1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(4 * BASE, 2 * outputs))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, outputs), nn.SiLU(), nn.Identity(), nn.Conv2d(outputs, outputs, 3, 1, 1)
        )
        self.skip_connection = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x, emb):
        hidden = self.in_layers(x)
        scale, shift = self.emb_layers(emb)[:, :, None, None].chunk(2, 1)
        hidden = self.out_layers[0](hidden) * (1 + scale) + shift
        return self.skip_connection(x) + self.out_layers[1:](hidden)


class Attention(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm = nn.GroupNorm(32, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x, _):
        n, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x).flatten(2)).view(n, HEADS, 3, channels // HEADS, height * width)
        query, key, value = (part.transpose(-1, -2) for part in qkv.unbind(2))
        out = F.scaled_dot_product_attention(query, key, value)
        out = self.proj_out(out.transpose(-1, -2).reshape(n, channels, height * width))
        return x + out.view_as(x)


class Down(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, 2, 1)

    def forward(self, x, _):
        return self.op(x)


class Up(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, 1, 1)

    def forward(self, x, _):
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class First(nn.Conv2d):
    def forward(self, x, _):
        return super().forward(x)


class Block(nn.Sequential):
    def forward(self, x, emb):
        for layer in self:
            x = layer(x, emb)
        return x


class UNet(nn.Module):
    """guided-diffusion's UNetModel as configs/default.toml sets it: 64 channels, x1 x2, attention at half size."""

    def __init__(self):
        super().__init__()
        low, high, fold = BASE, 2 * BASE, PATCH * PATCH
        self.time_embed = nn.Sequential(nn.Linear(BASE, 4 * BASE), nn.SiLU(), nn.Linear(4 * BASE, 4 * BASE))
        self.label_emb = nn.Embedding(CLASSES + 1, 4 * BASE)
        self.input_blocks = nn.ModuleList(
            [
                Block(First(fold, low, 3, 1, 1)),
                Block(ResBlock(low, low)),
                Block(Down(low)),
                Block(ResBlock(low, high), Attention(high)),
            ]
        )
        self.middle_block = Block(ResBlock(high, high), Attention(high), ResBlock(high, high))
        self.output_blocks = nn.ModuleList(
            [
                Block(ResBlock(2 * high, high), Attention(high)),
                Block(ResBlock(high + low, high), Attention(high), Up(high)),
                Block(ResBlock(high + low, low)),
                Block(ResBlock(2 * low, low)),
            ]
        )
        self.out = nn.Sequential(nn.GroupNorm(32, low), nn.SiLU(), nn.Conv2d(low, fold, 3, 1, 1))

    def forward(self, x, t, y):
        half = BASE // 2
        rates = torch.exp(torch.arange(half, dtype=torch.float32, device=x.device) * -math.log(10000) / half)
        angle = t[:, None].float() * rates
        emb = self.time_embed(torch.cat([angle.cos(), angle.sin()], -1)) + self.label_emb(y)
        hidden, skips = F.pixel_unshuffle(x, PATCH), []
        for block in self.input_blocks:
            hidden = block(hidden, emb)
            skips.append(hidden)
        hidden = self.middle_block(hidden, emb)
        for block in self.output_blocks:
            hidden = block(torch.cat([hidden, skips.pop()], 1), emb)
        return F.pixel_shuffle(self.out(hidden), PATCH)


def alphas_cumprod(steps=1000):
    bar = lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    betas = [min(1 - bar((i + 1) / steps) / bar(i / steps), 0.999) for i in range(steps)]
    return torch.cumprod(1 - torch.tensor(betas, dtype=torch.float32), 0).double().tolist()


def feedback(judge, x, eps, abar, omega=0.03):
    """The quickstart's: up the entropy of the predicted image by a part of the image's norm, eps held constant."""
    signal, noise = abar**0.5, (1 - abar) ** 0.5
    with torch.enable_grad():
        leaf = x.detach().requires_grad_(True)
        view = ((leaf - noise * eps) / signal / 2 + 0.5).clamp(0, 1)
        log_p = judge((view - 0.286) / 0.353).float().log_softmax(-1)
        grad = torch.autograd.grad(-(log_p.exp() * log_p).sum(), leaf)[0]
    norm = lambda values: values.square().sum((1, 2, 3), keepdim=True).sqrt()
    moved = x + grad * (norm(x) / (norm(grad) + 1e-8) * omega)
    return moved, (moved - noise * eps) / signal


@torch.no_grad()
def sample(model, judge, start, labels, steps, scale, args):
    """DDIM, eta 0, trailing time steps, v-prediction, clipped; both halves of the guidance in one pass."""
    alphas = alphas_cumprod()
    both = torch.cat([torch.full_like(labels, CLASSES), labels])
    x = start
    for i in range(steps):
        t = round(1000 - i * 1000 / steps) - 1
        before = t - 1000 // steps
        abar, abar_next = alphas[t], alphas[before] if before >= 0 else 1.0
        with common.autocast(args):
            out = model(torch.cat([x, x]), torch.full_like(both, t), both)
        plain, conditional = out.float().chunk(2)
        v = plain + (conditional - plain) * scale
        x0 = abar**0.5 * x - (1 - abar) ** 0.5 * v
        eps = abar**0.5 * v + (1 - abar) ** 0.5 * x
        if judge and t < 0.8 * 1000:
            x, x0 = feedback(judge, x, eps, abar)
        x = abar_next**0.5 * x0.clamp(-1, 1) + (1 - abar_next) ** 0.5 * eps
    return x


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", default="configs/weights/fashion-mnist-generator.safetensors")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--cfg-scale", type=float, default=1.5)
    parser.add_argument("--feedback", action="store_true")
    parser.add_argument("--judge", default="configs/weights/fashion-mnist-judge.safetensors")
    parser.add_argument("--same")
    args = common.arguments(parser)
    common.prepare(args)
    model = UNet()
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(args.weights).items()})
    model = model.to(args.device).eval().requires_grad_(False)
    judge = None
    if args.feedback:
        judge = CifarResNet(depth=8, width=32, channels=1, stem_stride=2)
        judge.load_state_dict(load_file(args.judge))
        judge = judge.to(args.device).eval().requires_grad_(False)
    same = load_file(args.same) if args.same else {}
    shape = (args.batch, 1, SIZE, SIZE)
    start = same["start"].to(args.device) if same else torch.randn(shape, device=args.device)
    labels = torch.arange(args.batch, device=args.device) % CLASSES

    def one_round():
        nonlocal images
        images = sample(model, judge, start, labels, args.steps, args.cfg_scale, args).cpu()

    images = None
    line = common.measure(args, args.batch, one_round)
    if same:
        line["largest_difference"] = (images - same["images"]).abs().max().item()
    case = {"batch": args.batch, "steps": args.steps, "cfg_scale": args.cfg_scale}
    case |= {"precision": args.precision, "feedback": args.feedback, "tf32": False}
    common.report(args, "sampling", case, line)


if __name__ == "__main__":
    main()
