"""Step 3 of the recipe: pictures and words in one space, and the last stages of the picture tower tuned for it.

    python training/contrast.py --work training/work --seed 0

The text tower is frozen, so each batch of photographs is contrasted with a caption of every photograph of the training
part; targets are soft (what a photograph's captions mean, by the sentence encoder, shares the mass). Drawings, their
captions, the names of ImageNet's classes and features that the classifier's rows point to are contrasted beside them
(drawings.py). The tower's last two stages are tuned at a tenth of the rate, batch norms as they were,
held by a divergence from the published tower's class scores. Weights are averaged over the last quarter.

Writes WORK/contrast-SEED.pt after each epoch, from where a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import math
import re
import time
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from drawings import Drawings, sentence_vectors, soft_loss, synthetic
from metrics import recalls
from splits import Archive, flickr8k
from torch import nn
from torch.nn import functional as F
from twin import LiteTop, VisionHead, mixed

from beyondvl.weights import open_checkpoint

SIDED = re.compile(r"\b(left|right)\b", re.I)
SIZE = 384


class Photographs:
    """The maps of one part, and the sentence vectors (n, 5, SIZE) of its captions."""

    def __init__(self, data: Path, work: Path, part: str):
        self.place = work / f"flickr8k-{part}.npy"
        with Archive(data / "flickr8k.tar") as archive:
            self.captions = flickr8k(archive)[part].words
        path = work / f"caps-{part}.npy"
        if not path.exists():
            np.save(path, sentence_vectors([c for w in self.captions for c in w]).numpy().reshape(-1, 5, SIZE))
        self.vectors = torch.from_numpy(np.load(path))
        self.means = F.normalize(self.vectors.mean(1), dim=-1)
        self.sided = np.array([[bool(SIDED.search(c)) for c in words] for words in self.captions])

    @cached_property
    def maps(self) -> np.ndarray:
        """(views, n, 289, 120) float16, as views.py wrote them."""
        return np.load(self.place, mmap_mode="r")

    def __len__(self) -> int:
        return len(self.captions)

    def draw(self, at: np.ndarray, view: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A caption of every photograph; a mirrored view has none that says left or right, where there are others."""
        chosen = rng.integers(0, 5, len(self))
        for i, v in zip(at, view, strict=True):
            if v % 2 and self.sided[i, chosen[i]] and not self.sided[i].all():
                chosen[i] = rng.choice(np.flatnonzero(~self.sided[i]))
        return chosen


class Contrast(nn.Module):
    """The tower's last stages, and both heads."""

    def __init__(self, state: dict[str, torch.Tensor], class_vectors: torch.Tensor, inner: int, dropout: float):
        super().__init__()
        self.top = LiteTop(state)
        self.vision_head = VisionHead(SIZE, 1280, inner, 1000, dropout)
        self.text_projection = nn.Linear(SIZE, SIZE)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(20.0)))
        with torch.no_grad():
            self.vision_head.class_embeddings.copy_(2 * class_vectors.T)
            self.text_projection.weight.copy_(torch.eye(SIZE))
            self.text_projection.bias.zero_()

    def seen(self, maps: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Unit embeddings and class scores of maps of the fifth stage."""
        with mixed():
            states, logits = self.top(torch.from_numpy(maps).float())
        return self.vision_head(states, logits.softmax(-1)), logits

    def read(self, vectors: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.text_projection(vectors), dim=-1)

    def scale(self) -> torch.Tensor:
        return self.logit_scale.exp().clamp(max=60)

    def drawn(self, seen: torch.Tensor, drawings: Drawings, at: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
        """Drawings against what they are called; how texts are read, photographs alone teach."""
        texts = self.read(drawings.any_words(at, rng)).detach()
        return soft_loss(seen, texts, drawings.captions(at), self.scale().detach())

    def named(
        self, drawings: Drawings, usual: torch.Tensor, rng: np.random.Generator, count: int = 192
    ) -> torch.Tensor:
        """Features of some classes against their names."""
        classes = torch.from_numpy(rng.integers(0, 1000, count))
        features, probabilities = synthetic(drawings, usual, classes)
        seen = self.vision_head(features[:, None], probabilities)
        names = drawings.class_sentences[rng.integers(2), classes]
        texts = self.read(names).detach()
        return soft_loss(seen, texts, drawings.class_sentences[0, classes], self.scale().detach())


def shown(scores: torch.Tensor | None, drawn: torch.Tensor) -> str:
    """Recalls of photographs (scores of five captions each), where there are any, and of drawings."""
    rows = {}
    if scores is not None:
        rows["photographs"] = recalls(scores.numpy(), np.repeat(np.arange(len(scores)), 5))
    rows["drawings"] = recalls(drawn.numpy(), np.arange(len(drawn)))
    return ", ".join(
        f"{name} {way} {' / '.join(f'{v:.1f}' for v in row.values())}"
        for name, line in rows.items()
        for way, row in line.items()
    )


def anchored(logits: torch.Tensor, published: torch.Tensor) -> torch.Tensor:
    """How far class scores went from the published tower's."""
    return F.kl_div(logits.log_softmax(1), published.log_softmax(1), log_target=True, reduction="batchmean")


@torch.no_grad()
def published_scores(top: LiteTop, maps: np.ndarray, path: Path) -> np.ndarray:
    """The published tower's class scores (views, n, 1000) float16 of all maps, kept at `path`."""
    if not path.exists():
        out = np.zeros((*maps.shape[:2], 1000), np.float16)
        for view in range(len(maps)):
            for start in range(0, maps.shape[1], 128):
                with mixed():
                    part = top(torch.from_numpy(np.array(maps[view, start : start + 128])).float())[1]
                out[view, start : start + 128] = part.float().numpy()
        np.save(path, out)
    return np.load(path, mmap_mode="r")


def picked(maps: np.ndarray, view: np.ndarray, at: np.ndarray) -> np.ndarray:
    return np.stack([maps[v, i] for v, i in zip(view, at, strict=True)])


@torch.no_grad()
def evaluated(model: Contrast, photographs: Photographs, drawings: Drawings, maps: np.ndarray) -> str:
    """Recalls on photographs, and on the drawings of the validation part."""
    model.eval()
    parts = [photographs.maps[0, s : s + 100] for s in range(0, len(photographs), 100)]
    scores = torch.cat([model.seen(np.array(part))[0] for part in parts])
    scores = scores @ model.read(photographs.vectors.flatten(0, 1)).T
    at = drawings.validation
    seen = torch.cat([model.seen(np.array(maps[0][at[s : s + 100]]))[0] for s in range(0, len(at), 100)])
    drawn = seen @ model.read(drawings.captions(at)).T
    model.train()
    return shown(scores, drawn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--drawn", type=int, default=64, help="drawings a batch")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--tower-rate", type=float, default=0.15)
    parser.add_argument("--anchor", type=float, default=0.25)
    parser.add_argument("--dropout", type=float, default=0.65)
    parser.add_argument("--temperature", type=float, default=0.03)
    parser.add_argument("--drawings", type=float, default=0.4)
    parser.add_argument("--classes", type=float, default=0.15)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    work = options.work
    photographs, choose = (Photographs(options.data, work, part) for part in ("train", "choose"))
    drawings, maps = Drawings(work), np.load(work / "drawings.npy", mmap_mode="r")
    tower = open_checkpoint(work / "tower")
    state = {name: torch.from_numpy(tower.read(name, tower.entries[name].shape)) for name in tower.names()}
    model = Contrast(state, drawings.class_sentences[1], 1536, options.dropout)
    published = LiteTop(state).eval()
    heads = [*model.vision_head.parameters(), *model.text_projection.parameters(), model.logit_scale]
    groups = [
        {"params": heads, "lr": options.lr, "weight_decay": 0.15},
        {"params": model.top.parameters(), "lr": options.lr * options.tower_rate, "weight_decay": 0.01},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    per_epoch = len(photographs) // options.batch
    steps = options.epochs * per_epoch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [g["lr"] for g in groups], steps, pct_start=0.15)
    path, first, averaged = work / f"contrast-{options.seed}.pt", 0, None
    if path.exists():
        saved = torch.load(path, weights_only=False)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        first, averaged = saved["epoch"], saved["averaged"]
    kept = [
        published_scores(published, each, work / f"{name}-published.npy")
        for each, name in ((photographs.maps, "flickr8k-train"), (maps, "drawings"))
    ]
    with torch.no_grad():  # what features look like, for those made of the classifier's rows
        usual = published(torch.from_numpy(np.array(photographs.maps[0, :512])).float())[0].mean(1)
    for epoch in range(first, options.epochs):
        rng = np.random.default_rng([options.seed, epoch])
        order, start, total = rng.permutation(len(photographs)), time.time(), np.zeros(4)
        for step in range(per_epoch):
            at = np.sort(order[step * options.batch : (step + 1) * options.batch])
            view = rng.integers(0, len(photographs.maps), len(at))
            chosen = photographs.draw(at, view, rng)
            drawn = np.sort(rng.choice(drawings.train, options.drawn, replace=False))
            drawn_view = rng.integers(0, len(maps), len(drawn))
            both = np.concatenate([picked(photographs.maps, view, at), picked(maps, drawn_view, drawn)])
            embeds, logits = model.seen(both)
            before = np.concatenate([picked(kept[0], view, at), picked(kept[1], drawn_view, drawn)])
            mine = torch.from_numpy(at)
            texts = model.read(photographs.vectors[torch.arange(len(photographs)), torch.from_numpy(chosen)])
            seen, meant = embeds[: len(at)], photographs.means[mine]
            scores = model.scale() * seen @ texts.T
            to_texts = (meant @ photographs.means.T / options.temperature).softmax(1)
            to_pictures = (meant @ meant.T / options.temperature).softmax(1)
            contrast = -0.5 * (
                (to_texts * scores.log_softmax(1)).sum(1).mean()
                + (to_pictures * scores[:, mine].T.log_softmax(1)).sum(1).mean()
            )
            drawing = model.drawn(embeds[len(at) :], drawings, drawn, rng)
            naming = model.named(drawings, usual, rng)
            far = anchored(logits, torch.from_numpy(before).float())
            loss = contrast + options.drawings * drawing + options.classes * naming + options.anchor * far
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(heads, 5.0)
            optimizer.step()
            schedule.step()
            total += [contrast.item(), drawing.item(), naming.item(), far.item()]
            if epoch >= 0.75 * options.epochs and step % 4 == 0:
                averaged = averaged or {
                    "count": 0,
                    "sum": {n: torch.zeros_like(v) for n, v in model.state_dict().items()},
                }
                averaged["count"] += 1
                for name, value in model.state_dict().items():
                    averaged["sum"][name] += value
        print(
            f"epoch {epoch + 1}/{options.epochs} losses {(total / per_epoch).round(3)} {time.time() - start:.0f} s",
            flush=True,
        )
        last = epoch + 1 == options.epochs
        if last or epoch % 3 == 2:
            print(evaluated(model, choose, drawings, maps), flush=True)
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(),
                    "epoch": epoch + 1, "averaged": averaged, "options": vars(options)}, path)  # fmt: skip
    model.load_state_dict({name: value / averaged["count"] for name, value in averaged["sum"].items()})
    print("averaged", evaluated(model, choose, drawings, maps), flush=True)
    torch.save(model.state_dict(), work / f"contrast-{options.seed}-averaged.pt")


if __name__ == "__main__":
    main()
