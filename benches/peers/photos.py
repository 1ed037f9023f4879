"""Makes the JPEG files that the input pipelines read: noise with the spectrum of photos, of their usual size."""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT, QUALITY = 500, 375, 90


def photo(random):
    """Octaves of smooth noise, each half as strong as the one before: close to the 1/f of natural images."""
    canvas = np.zeros((HEIGHT, WIDTH, 3))
    for octave in range(1, 8):
        side = 2**octave
        noise = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
        smooth = Image.fromarray(noise).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        canvas += (np.asarray(smooth, float) - 127.5) * 0.75**octave
    return Image.fromarray(np.clip(canvas + 127.5, 0, 255).astype(np.uint8))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--count", type=int, default=512)
    args = parser.parse_args()
    folder, random = Path(args.folder), np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(args.count):
        photo(random).save(folder / f"{index:04}.jpg", quality=QUALITY)


if __name__ == "__main__":
    main()
