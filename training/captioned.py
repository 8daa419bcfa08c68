"""Pictures with captions, and what these make: questions with their answers, captions of which one word is wrong, captions
of pictures that are nearly the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from questions import chances, made_questions, swapped
from words import plain


class Captioned:
    """Pictures (lessons.Pictures, imagined.Imagined) with several captions of each."""

    def __init__(self, pictures: Any, captions: Sequence[Sequence[str]], rng: np.random.Generator):
        self.pictures = pictures
        self.captions = [[plain(c) for c in words] for words in captions]
        self.sided = [[" left" in c or " right" in c for c in words] for words in self.captions]
        self.made = made_questions(captions, rng)
        self.chances = chances(self.made)
        self.swaps: dict[str, str] = {}
        self.swappable: list[tuple[int, int]] = []
        self.near = np.zeros((0, 0), int)  # of each picture, others whose captions might be its own

    def __len__(self) -> int:
        return len(self.captions)

    def texts(self) -> list[str]:
        """All that is read of them."""
        questions = sorted({question for _, _, question, _ in self.made})
        return [*(c for words in self.captions for c in words), *self.swaps.values(), *questions]

    def swap_words(self, rng: np.random.Generator) -> None:
        """`swaps`: of each caption where there is one, what it is with one word swapped; `swappable`: where those are."""
        swaps = {c: swapped(c, rng) for words in self.captions for c in words}
        self.swaps = {caption: other for caption, other in swaps.items() if other}
        self.swappable = [
            (i, c) for i, words in enumerate(self.captions) for c in range(len(words)) if words[c] in self.swaps
        ]

    @torch.no_grad()
    def find_near(self, embeds: torch.Tensor, vectors: torch.Tensor, meant: torch.Tensor, count: int = 30) -> None:
        """`near`: those whose first captions, with sentence vectors (n, D) and unit embeddings (n, D), come nearest to a
        picture's embedding (n, D), but say another thing."""
        near = []
        for some, own in zip(embeds.split(1024), vectors.split(1024), strict=True):
            scores = some @ meant.T
            scores[own @ vectors.T > 0.8] = -2
            near.append(scores.topk(count, 1).indices)
        self.near = torch.cat(near).numpy()

    def take(self, rng: np.random.Generator, at: Sequence[int]) -> dict[str, torch.Tensor]:
        """Those pictures, a view of each."""
        return self.pictures.take(at, rng.integers(0, self.pictures.views, len(at)))

    def caption_batch(self, rng: np.random.Generator, count: int, each: int) -> dict[str, Any]:
        """Pictures with `each` captions of each; a mirrored view has none that says a side, where there are others."""
        at = rng.integers(0, len(self), count)
        views = rng.integers(0, self.pictures.views, count)
        chosen = []
        for i, view in zip(at, views, strict=True):
            kept = [c for c, sided in enumerate(self.sided[i]) if not (view % 2 and sided)] or [
                *range(len(self.sided[i]))
            ]
            chosen += [self.captions[i][c] for c in rng.choice(kept, each, replace=len(kept) < each)]
        return self.pictures.take(at, views) | {"texts": chosen}

    def question_batch(self, rng: np.random.Generator, count: int) -> dict[str, Any]:
        """Pictures, a question and its answer of each."""
        asked = [self.made[i] for i in rng.choice(len(self.made), count, p=self.chances)]
        seen = self.take(rng, [i for i, *_ in asked])
        return seen | {"questions": [q for _, _, q, _ in asked], "texts": [a for *_, a in asked]}

    def match_batch(self, rng: np.random.Generator, count: int) -> dict[str, Any]:
        """Pictures, and four texts of each: its own, that with one word swapped, and two of near pictures."""
        chosen = [self.swappable[i] for i in rng.integers(0, len(self.swappable), count)]
        texts = []
        for at, own in chosen:
            near = [self.captions[i] for i in rng.choice(self.near[at], 2, replace=False)]
            caption = self.captions[at][own]
            texts += [caption, self.swaps[caption], *(words[rng.integers(len(words))] for words in near)]
        views = 2 * rng.integers(0, (self.pictures.views + 1) // 2, count)  # none mirrored
        return self.pictures.take([at for at, _ in chosen], views) | {"questions": texts}


def joined(batches: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Batches one after another; what the first ones lack (`embeds`) is of the last ones alone."""
    out: dict[str, Any] = {}
    for batch in batches:
        for name, part in batch.items():
            before = out.get(name)
            if before is None:
                out[name] = part
            else:
                out[name] = before + part if isinstance(part, list) else torch.cat([before, part])
    return out
