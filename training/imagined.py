"""Pictures that nobody took: what the picture tower would make of one that a caption is about, for the open set, which no
photograph with words may teach.

The tower's last batch norm holds the mean and the spread of every channel over ImageNet's photographs: a cell without a
thing is relu6(offset + gain z), z in part the picture's, in part the cell's. Things are the classes whose names mean what
the caption means, by the sentence encoder; around a place of its own each pushes the cells along its row of the
classifier. Means and class scores follow from the cells as in the tower. Beside photographs: nine cells in ten are 0
(0.88), norm of the mean 13.0 (13.4), likeliest class 0.36 (0.29).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from beyondvl.weights import open_checkpoint

SIDE, NEAREST, THINGS = 9, 12, 3
SHARED = 0.6  # of z is the whole picture's


def neighbours(vectors: torch.Tensor, texts: Sequence[str], count: int = 5, least: float = 0.6) -> list[list[str]]:
    """Of each text with a unit vector (n, 384) itself and those that mean nearly the same, `count` in all; where there
    are not as many, itself again."""
    groups = []
    for start in range(0, len(texts), 1024):
        best = (vectors[start : start + 1024].float() @ vectors.float().T).topk(count, 1)
        for at, (scores, places) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True), start):
            near = [texts[p] for s, p in zip(scores, places, strict=True) if s >= least and p != at]
            groups.append(([texts[at], *near] + [texts[at]] * count)[:count])
    return groups


class Imagined:
    """Pictures of captions with unit vectors (n, 384), as lessons.Pictures gives those that were taken."""

    views = 2

    def __init__(self, tower: Path, vectors: torch.Tensor, names: torch.Tensor):
        checkpoint = open_checkpoint(tower)

        def read(name: str) -> torch.Tensor:
            return torch.from_numpy(checkpoint.read(name, checkpoint.entries[name].shape))

        self.offset, self.gain = read("_bn1.bias"), read("_bn1.weight")
        self.fc, self.fc_bias = read("_fc.weight"), read("_fc.bias")
        self.ways = F.normalize(self.fc, dim=-1)
        best = (vectors.float() @ names.T).topk(NEAREST, 1)
        self.classes, self.chances = best.indices, (best.values / 0.04).softmax(1)
        self.arrays = {"embeds": vectors[None].numpy()}  # what the pictures are meant to be near to
        line = torch.linspace(0, 1, SIDE)
        self.cells = torch.cartesian_prod(line, line)

    def blobs(self, count: int) -> torch.Tensor:
        """(count, THINGS, cells) of mean 1: where each thing is."""
        centres = 0.1 + 0.8 * torch.rand(count, THINGS, 1, 2)
        widths = 0.12 + 0.3 * torch.rand(count, THINGS, 1)
        shapes = (-((self.cells - centres) ** 2).sum(-1) / (2 * widths**2)).exp()
        return shapes / shapes.mean(2, keepdim=True)

    def of_classes(self, classes: torch.Tensor) -> dict[str, torch.Tensor]:
        """Pictures of classes (n, THINGS), the first of which is the largest."""
        count = len(classes)
        strength = (8 + 20 * torch.rand(count, THINGS)) * torch.tensor([1.0, 0.6, 0.35])
        z = SHARED * torch.randn(count, 1, 1280) + (1 - SHARED**2) ** 0.5 * torch.randn(count, SIDE * SIDE, 1280)
        pushes = (self.blobs(count) * strength[..., None]).transpose(1, 2) @ self.ways[classes]
        cells = (self.offset + self.gain * z + pushes).clamp(0, 6)
        means = cells.mean(1)
        states = F.layer_norm(cells, (1280,))
        return {"states": states, "classes": means @ self.fc.T + self.fc_bias, "means": means}

    def take(self, at: Sequence[int], views: Sequence[int]) -> dict[str, torch.Tensor]:
        """Pictures of those captions, none twice the same."""
        at = torch.from_numpy(np.asarray(at))
        chosen = torch.multinomial(self.chances[at], THINGS)
        return self.of_classes(self.classes[at].gather(1, chosen))
