"""A model's texts brought nearer to somebody's own pictures: one matrix, learned from pairs in seconds, without torch.

Embeddings of pictures X and texts T (unit rows) are computed once. W, which begins as the identity, turns texts so that
of a batch each picture's text is the likeliest and the other way round (the symmetric contrast of CLIP, Radford et al.,
2021), by Adam; a weight pulls it back to the identity. How far to go is chosen on pairs kept apart for that; what is
reported is of others that nothing was chosen on. W is then multiplied into the text tower's projection, so that the
adapted model is a checkpoint as any other, and as fast.
"""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .files import check_empty
from .modalities import IMAGE, TEXT
from .models.load import open_stored
from .models.saving import write_changed
from .outcomes import Failure
from .spec import Linear, Project, Step

__all__ = ["Adapted", "adapt", "read_pairs"]

LEAST_PAIRS = 40
HELD_OUT, CHOSEN_ON = 0.15, 0.15
BATCH, STEPS, RATE, PULL = 256, 600, 2e-3, 1e-4
LOOKS = 20  # at what is chosen on
SHARES = (0.25, 0.5, 0.75, 1.0)  # of the way from the identity
IMAGE_COLUMNS, TEXT_COLUMNS = ("image", "filepath", "file", "path", "image_path"), ("text", "caption", "title", "label")


class Adapted(NamedTuple):
    """What came of it: the folder, how many pictures were learned from and held out, R@1 in percent (picture -> text,
    text -> picture) on the held-out ones before and after, failures, seconds of learning."""

    folder: Path
    pictures: int
    held_out: int
    before: tuple[float, float]
    after: tuple[float, float]
    failures: tuple[Failure, ...]
    seconds: float


def read_pairs(
    path: str | os.PathLike, image: str | None = None, text: str | None = None
) -> tuple[list[str], list[str]]:
    """Pictures' paths and texts of a .csv or .tsv with a header; paths are from its own folder. `image`, `text`: the
    columns; None: the first of the usual names. ValueError where there are none such."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        head = file.readline()
        file.seek(0)
        rows = csv.DictReader(file, delimiter="\t" if "\t" in head else ",")
        names = list(rows.fieldnames or ())
        chosen = []
        for said, usual, what in ((image, IMAGE_COLUMNS, "image"), (text, TEXT_COLUMNS, "text")):
            name = said or next((n for n in usual if n in names), None)
            if name not in names:
                expected = ", ".join(names) if said else ", ".join(usual)
                raise ValueError(f"{path}: {what} column: found {name or ', '.join(names)}, expected one of {expected}")
            chosen.append(name)
        pairs = [(row[chosen[0]], row[chosen[1]]) for row in rows if row[chosen[0]] and row[chosen[1]]]
    folder = Path(path).parent
    return [str(folder / name) for name, _ in pairs], [text for _, text in pairs]


def adapt(
    model: Any,
    images: Sequence[Any],
    texts: Sequence[str],
    output: str | os.PathLike,
    *,
    seed: int = 0,
    show_progress_bar: bool | None = None,
) -> Adapted:
    """Learns from pairs of pictures and texts, and saves the adapted model to a new folder, for `from_pretrained`.

    Args:
        model: one that embeds texts and pictures, whose text tower ends in a projection.
        images, texts: as many of both; a picture may come several times, with other texts. Pictures are what `encode`
            takes; those that cannot be read are left out and returned.
        output: a new or empty folder.
        seed: of the split and the batches: the same pairs give the same model.

    Raises ValueError for fewer than 40 pictures, lengths that differ, a folder that holds files and a model whose texts
    end in no projection.
    """
    if len(images) != len(texts):
        raise ValueError(f"texts: found {len(texts)}, expected {len(images)}, one of each picture")
    target = Path(output)
    check_empty(target)  # before the work, not after it
    step = projection_of(model)
    keys = [os.fspath(x) if isinstance(x, str | os.PathLike) else id(x) for x in images]
    first: dict[Any, int] = {}
    for at, key in enumerate(keys):
        first.setdefault(key, at)
    some = {"normalize_embeddings": True, "show_progress_bar": show_progress_bar}
    seen = model.encode([images[at] for at in first.values()], modality=IMAGE.name, on_error="skip", **some)
    places = {key: at for at, key in enumerate(first)}
    rows = {place: row for row, place in enumerate(seen.indices)}
    pairs = [(rows[places[key]], at) for at, key in enumerate(keys) if places[key] in rows]
    if len(seen) < LEAST_PAIRS:
        raise ValueError(f"images: found {len(seen)} that can be read, expected {LEAST_PAIRS} and more")
    known = dict.fromkeys(texts[at] for _, at in pairs)
    read = model.encode([{TEXT.name: text} for text in known], **some)
    number = {text: at for at, text in enumerate(known)}
    start = time.perf_counter()
    data = Pairs(np.asarray(seen), np.asarray(read), np.array([(i, number[texts[at]]) for i, at in pairs]), seed)
    matrix = data.learn(float(model.logit_scale or 20.0))
    seconds = time.perf_counter() - start
    write_changed(model, target, _folded(model, step, matrix))
    failures = tuple(failure._replace(index=list(first.values())[failure.index]) for failure in seen.failures)
    before, after = data.recall(data.held_out, None), data.recall(data.held_out, matrix)
    return Adapted(target, len(seen) - len(data.held_out), len(data.held_out), before, after, failures, seconds)


def projection_of(model: Any) -> Step:
    """The step of the text tower that makes its embedding. ValueError where W cannot be multiplied into it."""
    name, tower = model._embedding(TEXT.tower), model.tower(TEXT.tower)
    steps = [step for step in tower.encoder.steps if step.dst == name]
    what = steps[0].what if len(steps) == 1 else None
    linear = what.linear if isinstance(what, Project) and what.activation == "none" else None
    parts = [linear.weight, *([linear.bias] if linear.bias else [])] if isinstance(linear, Linear) else []
    if not parts or any(len(part.names) != 1 or part.rows or part.scaled_by for part in parts):
        raise ValueError(f"{type(model).__name__}: its texts end in no projection of their own, which adapting changes")
    return steps[0]


def _folded(model: Any, step: Step, matrix: np.ndarray) -> dict[str, np.ndarray]:
    """The tensors of the projection after the matrix, by their names, as they are stored."""
    (_, checkpoint), out = open_stored(model), {}
    for part in (step.what.linear.weight, step.what.linear.bias):
        if part is None or (part.optional and part.names[0] not in checkpoint.entries):
            continue
        shape = part.shape[::-1] if part.transpose else part.shape
        stored = checkpoint.read(part.names[0], shape).astype(np.float64)
        out[part.names[0]] = ((stored @ matrix.T) if part.transpose else matrix @ stored).astype(np.float32)
    return out


class Pairs:
    """Unit embeddings of pictures [n, D] and texts [m, D], which belong together [k, 2], and how they are split."""

    def __init__(self, images: np.ndarray, texts: np.ndarray, pairs: np.ndarray, seed: int):
        self.images, self.texts = images.astype(np.float32), texts.astype(np.float32)
        self.rng = np.random.default_rng(seed)
        self.of: list[list[int]] = [[] for _ in images]
        for image, text in pairs.tolist():
            self.of[image].append(text)
        order = self.rng.permutation(len(images))
        first, second = int(len(images) * HELD_OUT), int(len(images) * (HELD_OUT + CHOSEN_ON))
        self.held_out, self.chosen_on, self.learned = order[:first], order[first:second], order[second:]

    def recall(self, some: np.ndarray, matrix: np.ndarray | None) -> tuple[float, float]:
        """R@1 in percent among some pictures and their texts: picture -> text, text -> picture."""
        texts = sorted({text for image in some for text in self.of[image]})
        rows = self.texts[texts] if matrix is None else self.texts[texts] @ matrix.T
        scores = self.images[some] @ (rows / np.linalg.norm(rows, axis=1, keepdims=True)).T
        own = [set(self.of[image]) for image in some]
        there = [texts[at] in own[row] for row, at in enumerate(scores.argmax(1))]
        back = [texts[at] in own[image] for at, image in enumerate(scores.argmax(0))]
        return 100 * float(np.mean(there)), 100 * float(np.mean(back))

    def learn(self, scale: float) -> np.ndarray:
        """W [D, D]: of all looks and shares of the way the one that is best on pairs kept apart."""
        size = self.images.shape[1]
        eye = np.eye(size, dtype=np.float32)
        matrix, mean, square, step = eye.copy(), np.zeros_like(eye), np.zeros_like(eye), 0
        best, kept = sum(self.recall(self.chosen_on, None)), eye
        for _ in range(LOOKS):
            for _ in range(STEPS // LOOKS):
                batch = self.rng.choice(self.learned, min(BATCH, len(self.learned)), replace=False)
                gradient = self.gradient(matrix, batch, scale) + PULL * (matrix - eye)
                mean = 0.9 * mean + 0.1 * gradient
                square = 0.99 * square + 0.01 * gradient**2
                rate = RATE * (1 - step / STEPS) / (1 - 0.9 ** (step + 1))
                matrix = matrix - rate * mean / (np.sqrt(square / (1 - 0.99 ** (step + 1))) + 1e-8)
                step += 1
            for share in SHARES:
                mixed = eye + np.float32(share) * (matrix - eye)
                if (worth := sum(self.recall(self.chosen_on, mixed))) > best:
                    best, kept = worth, mixed
        return kept

    def gradient(self, matrix: np.ndarray, batch: np.ndarray, scale: float) -> np.ndarray:
        """Of the contrast of a batch's pictures and one text of each, [D, D]; equal texts are right for each other."""
        chosen = np.array([self.of[image][self.rng.integers(len(self.of[image]))] for image in batch])
        turned = self.texts[chosen] @ matrix.T
        lengths = np.linalg.norm(turned, axis=1, keepdims=True)
        unit = turned / lengths
        scores = scale * self.images[batch] @ unit.T
        right = (chosen[:, None] == chosen[None]).astype(np.float32)
        right /= right.sum(1, keepdims=True)
        wrong = (_softmax(scores) - right + (_softmax(scores.T) - right).T) / (2 * len(batch))
        of_unit = scale * wrong.T @ self.images[batch]
        of_turned = (of_unit - unit * (of_unit * unit).sum(1, keepdims=True)) / lengths
        return of_turned.T @ self.texts[chosen]


def _softmax(x: np.ndarray) -> np.ndarray:
    x = np.exp(x - x.max(1, keepdims=True))
    return x / x.sum(1, keepdims=True)
