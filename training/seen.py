"""What heads.py learns from: pictures with words, and drawings, with what a tower makes of them.

Photographs by a tower that contrast.py tuned, from the maps of views.py (`by_maps`), or as states.py wrote them
(`by_states`); or captions with pictures that are imagined, for the open set (`by_words`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from contrast import Photographs
from drawings import Drawings
from imagined import Imagined
from twin import LiteTop, mixed
from words import Read, captions

Features = tuple[torch.Tensor, torch.Tensor]  # mean rows (views, n, 1280), class scores (views, n, 1000), float16


class Seen:
    """Features of one set, kept at a path, made where they are not."""

    def __init__(self, path: Path, make: Callable[[], Features]):
        if not path.exists():
            torch.save(make(), path)
        self.means, self.scores = torch.load(path, weights_only=True)

    @property
    def views(self) -> int:
        return len(self.means)

    def take(self, view: np.ndarray, at: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean rows (B, 1280) and class probabilities (B, 1000) of those."""
        view, at = torch.from_numpy(view), torch.from_numpy(at)
        return self.means[view, at].float(), self.scores[view, at].float().softmax(-1)


class Words:
    """Captions with unit vectors (n, 384) that stand for pictures, as contrast.Photographs: of each one alone."""

    def __init__(self, vectors: torch.Tensor):
        self.means, self.vectors = vectors, vectors[:, None]

    def __len__(self) -> int:
        return len(self.means)

    def draw(self, at: np.ndarray, view: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return np.zeros(len(self), int)


@dataclass
class Sets:
    """Pictures with words to learn from, drawings, and photographs to choose on where there are some."""

    drawings: Drawings
    drawn: Seen
    train: Photographs | Words
    photographs: Seen
    choose: Photographs | None = None
    chosen: Seen | None = None


@torch.no_grad()
def features(top: LiteTop, maps: np.ndarray) -> Features:
    """By a tower's last stages, of maps of the fifth."""
    top.eval()
    means, scores = torch.zeros(*maps.shape[:2], 1280).half(), torch.zeros(*maps.shape[:2], 1000).half()
    for view in range(len(maps)):
        for start in range(0, maps.shape[1], 128):
            with mixed():
                states, logits = top(torch.from_numpy(np.array(maps[view, start : start + 128])).float())
            means[view, start : start + 128], scores[view, start : start + 128] = states.mean(1).half(), logits.half()
    return means, scores


def stored(states: Path, name: str) -> Features:
    """As states.py wrote them."""
    means, scores = (np.load(states / f"{name}-{what}.npy") for what in ("mean", "classes"))
    return torch.from_numpy(means).half(), torch.from_numpy(scores).half()


def imagined(pictures: Imagined, count: int, views: int = 2) -> Features:
    """Of the pictures of all captions."""
    torch.manual_seed(0)
    means, scores = torch.zeros(views, count, 1280).half(), torch.zeros(views, count, 1000).half()
    for view in range(views):
        for start in range(0, count, 64):
            part = slice(start, min(start + 64, count))
            made = pictures.take(range(part.start, part.stop), ())
            means[view, part], scores[view, part] = made["means"].half(), made["classes"].half()
    return means, scores


def by_maps(data: Path, work: Path, top: LiteTop, tag: str) -> Sets:
    train, choose = (Photographs(data, work, part) for part in ("train", "choose"))
    arrays = {"train": train.maps, "choose": choose.maps, "drawings": np.load(work / "drawings.npy", mmap_mode="r")}
    seen = {name: Seen(work / f"{tag}-{name}.pt", partial(features, top, array)) for name, array in arrays.items()}
    return Sets(Drawings(work), seen["drawings"], train, seen["train"], choose, seen["choose"])


def by_states(data: Path, work: Path) -> Sets:
    seen = {
        name: Seen(work / f"states-{name}.pt", partial(stored, work / "states", name))
        for name in ("flickr8k-train", "flickr8k-choose", "drawings")
    }
    train, choose = (Photographs(data, work, part) for part in ("train", "choose"))
    return Sets(Drawings(work), seen["drawings"], train, seen["flickr8k-train"], choose, seen["flickr8k-choose"])


def by_words(data: Path, work: Path) -> Sets:
    drawings, words = Drawings(work), captions(data, "coco-val2017")
    train = Words(Read.vectors_of(words, work / "coco.npy").float())
    pictures = Imagined(work / "tower", train.means, drawings.class_sentences[0])
    made = Seen(work / "states-imagined.pt", lambda: imagined(pictures, len(train)))
    return Sets(drawings, Seen(work / "states-drawings.pt", partial(stored, work / "states", "drawings")), train, made)
