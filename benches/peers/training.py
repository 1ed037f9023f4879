"""Peer of `equipoise-bench training`: the same step in PyTorch eager at its best public settings.

channels_last, autocast, fused SGD, no gradient zeroing pass, cuDNN's search on, and no wait within a window.
"""

import argparse

import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import common


class Block(nn.Module):
    """Basic block with the parameter-free shortcut (option A of He et al. 2016)."""

    def __init__(self, inputs, planes, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.widen = planes // 4 if stride != 1 or inputs != planes else 0

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        if self.widen:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.widen, self.widen))
        return F.relu(out + x, inplace=True)


class CifarResNet(nn.Module):
    def __init__(self, depth=32, width=16, classes=10, channels=3, stem_stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stem_stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        for stage in range(3):
            blocks = []
            for index in range((depth - 2) // 6):
                blocks.append(Block(inputs, width << stage, 2 if stage and not index else 1))
                inputs = width << stage
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def options():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True, choices=["resnet32", "resnet50", "resnext50_32x4d"])
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--memory-format", default="channels_last", choices=["channels_last", "contiguous"])
    return parser


def stepper(args):
    """One step on images [N, 3, H, W] and labels [N]: returns the loss, which nobody has waited for."""
    memory_format = torch.channels_last if args.memory_format == "channels_last" else torch.contiguous_format
    if args.model == "resnet32":
        model = CifarResNet()
    else:
        model = getattr(torchvision.models, args.model)(weights=None)
    model = model.to(args.device, memory_format=memory_format).train()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, nesterov=True, fused=True
    )

    def step(images, labels):
        images = images.contiguous(memory_format=memory_format)
        with common.autocast(args):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss

    return step


def main():
    args = common.arguments(options())
    common.prepare(args)
    step, classes = stepper(args), 10 if args.model == "resnet32" else 1000
    images = torch.randn(args.batch, 3, args.size, args.size, device=args.device)
    if args.memory_format == "channels_last":
        images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(args.batch, device=args.device) % classes
    loss = None

    def one_round():
        nonlocal loss
        loss = step(images, labels)

    line = common.measure(args, args.batch, one_round)
    line["loss"] = loss.item()
    case = {"model": args.model, "size": args.size, "batch": args.batch, "precision": args.precision}
    case |= {"memory_format": args.memory_format, "deterministic": False, "tf32": False}
    common.report(args, "training", case, line)


if __name__ == "__main__":
    main()
