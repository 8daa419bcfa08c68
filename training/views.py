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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from features import tower, view
from PIL import Image, ImageEnhance
from splits import Archive, daquar, flickr8k

from beyondvl.compile import Reader, compile_encoder
from beyondvl.config import Config
from beyondvl.families.efficientnet_lite import VARIANTS, lite_encoder
from beyondvl.models.tower import Tower
from beyondvl.spec import replace
from beyondvl.weights import open_checkpoint

VARIANT = "efficientnet-lite2"
SIZE, FROZEN = VARIANTS[VARIANT][2], 15  # blocks up to the fifth stage
ROWS, CHANNELS = 17 * 17, 120
DRAWN = (0, 1, 8, 9)  # views of drawings, as features.py numbers them


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
    for name, parts in (("daquar", daquar), ("flickr8k", flickr8k)):
        with Archive(options.data / f"{name}.tar") as archive:
            for part, what in parts(archive).items():
                content = [archive.read(file) for file in what.files]

                def pixels(at: int, view: int, content: list[bytes] = content) -> np.ndarray:
                    return seen(Image.open(io.BytesIO(content[at])), view, np.random.default_rng([view, at]))

                views = options.views if part == "train" else 1
                write_views(options.work / f"{name}-{part}.npy", pixels, len(what), views, model)
    items = json.loads((options.work / "items.json").read_text())
    paths = [options.work / "pictures" / item["picture"] for item in items]
    write_views(
        options.work / "drawings.npy",
        lambda at, number: (view(paths[at], DRAWN[number]) - 127) / 128,
        len(paths), len(DRAWN), model,
    )  # fmt: skip


if __name__ == "__main__":
    main()
