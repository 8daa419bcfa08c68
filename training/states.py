"""Step 4 of the recipe: what the picture tower, tuned or not, gives of every picture and clip that the formers learn from.

    python training/states.py --data shared/data --work training/work [--open]

Writes, of each set, WORK/states/<set>.npy, float16: pictures [views, n, 81, 1280], clips [n, 8 frames, 9 cells, 1280]:
the states of the last map, each row brought to mean 0 and variance 1 (what the first norm of `image_rows` does, but for
its gain and offset, which training learns), clips in means over a grid of 3 x 3; and <set>-classes.npy, float16, the
class scores, <set>-mean.npy, float32, the mean row as it is. Clips are made of the photographs of that part and of
drawings, held-out ones for what is not trained on; <set>.json says what moves.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import moving
import numpy as np
from PIL import Image
from views import SIZE, drawn, photographs, texture
from views import tower as published

import beyondvl as bvl

CLIPS = {"train": 4000, "choose": 300, "report": 300}


def normed(rows: np.ndarray) -> np.ndarray:
    """Each row of mean 0 and variance 1, as a layer norm without gain and offset."""
    centred = rows - rows.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)


class Writer:
    """Runs the tower over pixels and fills the files of one set."""

    def __init__(self, folder: Path, model: bvl.PreTrainedModel):
        self.folder, self.model = folder, model
        folder.mkdir(parents=True, exist_ok=True)

    def tower(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        names = ["last_hidden_state", "pooler_output", "logits"]
        return self.model.run_tower("vision", {"pixel_values": np.ascontiguousarray(pixels)}, names)

    def finished(self, name: str) -> bool:
        return (self.folder / f"{name}-mean.npy").exists()

    def pictures(self, name: str, pixels: Callable[[int, int], np.ndarray], count: int, views: int, batch: int = 32):
        """Of pixels (picture, view), views of all pictures."""
        if self.finished(name):
            return
        shape = (views, count)
        out = np.lib.format.open_memmap(self.folder / f"{name}.npy", "w+", np.float16, (*shape, 81, 1280))
        classes, means = np.zeros((*shape, 1000), np.float16), np.zeros((*shape, 1280), np.float32)
        with ThreadPoolExecutor(2) as pool:
            for number in range(views):
                for start in range(0, count, batch):
                    part = range(start, min(start + batch, count))
                    made = self.tower(np.stack(list(pool.map(pixels, part, [number] * len(part)))))
                    at = (number, slice(part.start, part.stop))
                    out[at], classes[at] = normed(made["last_hidden_state"]), made["logits"]
                    means[at] = made["pooler_output"]
                print(name, "view", number, flush=True)
        self.done(name, classes, means)

    def clips(self, name: str, make: Callable[[int], tuple[np.ndarray, dict[str, Any]]], count: int) -> None:
        """Of frames (clip), and what is said of them."""
        if self.finished(name):
            return
        out = np.lib.format.open_memmap(self.folder / f"{name}.npy", "w+", np.float16, (count, moving.FRAMES, 9, 1280))
        classes = np.zeros((count, moving.FRAMES, 1000), np.float16)
        means, facts = np.zeros((count, moving.FRAMES, 1280), np.float32), []
        with ThreadPoolExecutor(2) as pool:
            for start in range(0, count, 8):
                made = list(pool.map(make, range(start, min(start + 8, count))))
                frames = np.concatenate([frames for frames, _ in made])
                seen = self.tower((frames.astype(np.float32).transpose(0, 3, 1, 2) - 127) / 128)
                grid = normed(seen["last_hidden_state"]).reshape(-1, moving.FRAMES, 3, 3, 3, 3, 1280)
                at = slice(start, start + len(made))
                out[at] = grid.mean((3, 5)).reshape(-1, moving.FRAMES, 9, 1280)
                classes[at] = seen["logits"].reshape(-1, moving.FRAMES, 1000)
                means[at] = seen["pooler_output"].reshape(-1, moving.FRAMES, 1280)
                facts += [what for _, what in made]
        (self.folder / f"{name}.json").write_text(json.dumps(facts))
        print(name, flush=True)
        self.done(name, classes, means)

    def done(self, name: str, classes: np.ndarray, means: np.ndarray) -> None:
        np.save(self.folder / f"{name}-classes.npy", classes)
        np.save(self.folder / f"{name}-mean.npy", means)  # the last to be there


def clips(
    work: Path, part: str, content: list[bytes], captions: list[list[str]], items: list[dict[str, Any]]
) -> Callable[[int], tuple[np.ndarray, dict[str, Any]]]:
    """Makes the clips of a part out of its photographs, and drawings; over mere textures where it has none."""
    words = [lines[0].lower().rstrip(" .") for lines in captions]
    sprites = moving.drawings(items, held_out=part != "train")

    def clip(at: int) -> tuple[np.ndarray, dict[str, Any]]:
        rng = np.random.default_rng([at, len(part)])
        ground = (texture(SIZE, rng), "")
        if content:
            chosen = rng.integers(len(content))
            ground = (Image.open(io.BytesIO(content[chosen])), words[chosen])
        some = [sprites[i] for i in rng.integers(len(sprites), size=4)]
        nouns = {noun: item for item, noun in some}
        while len(nouns) < 2:
            item, noun = sprites[rng.integers(len(sprites))]
            nouns[noun] = item
        opened = [(Image.open(work / "pictures" / item["picture"]), noun) for noun, item in nouns.items()]
        return moving.clip(rng, [ground], opened)

    return clip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--views", type=int, default=3)
    parser.add_argument("--open", action="store_true", help="no photographs, clips over textures, the published tower")
    options = parser.parse_args()
    model = published(options.work / "tower") if options.open else bvl.AutoModel.from_pretrained(options.work / "tuned")
    writer = Writer(options.work / "states", model)
    items = json.loads((options.work / "items.json").read_text())
    paths = [options.work / "pictures" / item["picture"] for item in items]
    if options.open:
        writer.clips("clips-train", clips(options.work, "train", [], [], items), CLIPS["train"] // 2)
    for name, part, what, content, pixels in () if options.open else photographs(options.data):
        writer.pictures(f"{name}-{part}", pixels, len(what), options.views if part == "train" else 1)
        if name == "flickr8k":
            writer.clips(f"clips-{part}", clips(options.work, part, content, what.words, items), CLIPS[part])
    numbers = (0, 8)
    writer.pictures("drawings", lambda at, v: drawn(paths[at], numbers[v]), len(paths), len(numbers))


if __name__ == "__main__":
    main()
