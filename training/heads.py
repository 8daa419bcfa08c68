"""Step 3b of the recipe: the heads that compare, on what the tuned tower gives; a minute a seed.

    python training/heads.py --data shared/data --work training/work --tower-seed 0 --seed 0

contrast.py tunes the tower with heads that see each picture a few times; these heads start anew and see many: features
of all views of photographs and drawings are computed once. Losses are those of contrast.py. --tower-seed -1 is the
published tower, to compare with. Writes WORK/heads-SEED.pt: the tower's tuned stages and these heads.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from contrast import Contrast, Photographs
from metrics import recalls
from torch import nn
from train import Data as Drawings
from train import soft_loss, synthetic
from twin import LiteTop

from beyondvl.weights import open_checkpoint


@torch.no_grad()
def features(top: LiteTop, maps: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean rows (views, n, 1280) and class scores (views, n, 1000) of maps, float16."""
    top.eval()
    means, scores = torch.zeros(*maps.shape[:2], 1280).half(), torch.zeros(*maps.shape[:2], 1000).half()
    for view in range(len(maps)):
        for start in range(0, maps.shape[1], 128):
            with torch.autocast("cpu", torch.bfloat16):
                states, logits = top(torch.from_numpy(np.array(maps[view, start : start + 128])).float())
            means[view, start : start + 128], scores[view, start : start + 128] = states.mean(1).half(), logits.half()
    return means, scores


class Seen:
    """Features of one set by the tower."""

    def __init__(self, top: LiteTop, maps: np.ndarray, path: Path):
        if not path.exists():
            torch.save(features(top, maps), path)
        self.means, self.scores = torch.load(path, weights_only=True)

    def take(self, view: np.ndarray, at: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        view, at = torch.from_numpy(view), torch.from_numpy(at)
        return self.means[view, at].float(), self.scores[view, at].float().softmax(-1)


def embedded(model: Contrast, seen: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return model.vision_head(seen[0][:, None], seen[1])


@torch.no_grad()
def everything(model: Contrast, seen: Seen, rng: np.random.Generator) -> torch.Tensor:
    """Embeddings of a view of every photograph: each caption is contrasted with them all."""
    at = np.arange(seen.means.shape[1])
    model.eval()
    whole = embedded(model, seen.take(rng.integers(0, len(seen.means), len(at)), at))
    model.train()
    return whole


@torch.no_grad()
def evaluated(model: Contrast, choose: Photographs, seen: Seen, drawings: Drawings, drawn: Seen) -> str:
    model.eval()
    whole = embedded(model, seen.take(np.zeros(len(choose), int), np.arange(len(choose))))
    scores = whole @ model.read(choose.vectors.flatten(0, 1)).T
    lines = [recalls(scores.numpy(), np.repeat(np.arange(len(choose)), 5))]
    kept: dict[str, int] = {}
    for i in drawings.parts["validation"]:
        kept.setdefault(drawings.items[i]["captions"][0], i)
    at = np.array(sorted(kept.values()))
    whole = embedded(model, drawn.take(np.zeros(len(at), int), at))
    texts = model.read(drawings.sentences[[drawings.variants[i][0] for i in at]])
    lines.append(recalls((whole @ texts.T).numpy(), np.arange(len(at))))
    model.train()
    return ", ".join(
        f"{what} {' / '.join(f'{v:.1f}' for v in row.values())}"
        for name, line in zip(("photographs", "drawings"), lines, strict=True)
        for what, row in ((f"{name} {way}", row) for way, row in line.items())
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--tower-seed", type=int, default=0)
    parser.add_argument("--tower-file", type=Path, help="in place of WORK/contrast-SEED-averaged.pt")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--drawn", type=int, default=256)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--dropout", type=float, default=0.65)
    parser.add_argument("--inner", type=int, default=1536)
    parser.add_argument("--decay", type=float, default=0.15)
    parser.add_argument("--temperature", type=float, default=0.03)
    parser.add_argument("--drawings", type=float, default=0.7)
    parser.add_argument("--classes", type=float, default=0.3)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    work, tag = options.work, f"tower{options.tower_seed}"
    train, choose = (Photographs(options.data, work, part) for part in ("train", "choose"))
    drawings, maps = Drawings(work, 1), np.load(work / "drawings.npy", mmap_mode="r")
    tower = open_checkpoint(work / "tower")
    state = {name: torch.from_numpy(tower.read(name, tower.entries[name].shape)) for name in tower.names()}
    model = Contrast(state, drawings.class_sentences[1], options.inner, options.dropout)
    if options.tower_seed >= 0:
        file = options.tower_file or work / f"contrast-{options.tower_seed}-averaged.pt"
        tuned = torch.load(file, weights_only=True)
        model.top.load_state_dict({n[4:]: v for n, v in tuned.items() if n.startswith("top.")})
    photographs, chosen, drawn = (
        Seen(model.top, array, work / f"{tag}-{name}.pt")
        for name, array in (("train", train.maps), ("choose", choose.maps), ("drawings", maps))
    )
    usual = photographs.means[0, :512].float()
    heads = [*model.vision_head.parameters(), *model.text_projection.parameters(), model.logit_scale]
    optimizer = torch.optim.AdamW(heads, lr=options.lr, weight_decay=options.decay, betas=(0.9, 0.98))
    per_epoch = len(train) // options.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, options.epochs * per_epoch, pct_start=0.15)
    for epoch in range(options.epochs):
        rng = np.random.default_rng([options.seed, epoch])
        order = rng.permutation(len(train))
        for step in range(per_epoch):
            at = order[step * options.batch : (step + 1) * options.batch]
            view = rng.integers(0, len(train.maps), len(at))
            captions = torch.from_numpy(train.draw(at, view, rng))
            scale = model.logit_scale.exp().clamp(max=60)
            seen = embedded(model, photographs.take(view, at))
            texts = model.read(train.vectors[torch.arange(len(train)), captions])
            mine, meant = torch.from_numpy(at), train.means[torch.from_numpy(at)]
            scores = scale * seen @ texts.T
            loss = (
                -0.5 * ((meant @ train.means.T / options.temperature).softmax(1) * scores.log_softmax(1)).sum(1).mean()
            )
            others = everything(model, photographs, rng)
            others[mine] = seen
            back = (meant @ train.means.T / options.temperature).softmax(1)
            scores = scale * texts[mine] @ others.T
            loss = loss - 0.5 * (back * scores.log_softmax(1)).sum(1).mean()
            some = rng.choice(drawings.parts["train"], options.drawn, replace=False)
            raw = drawings.sentences[[rng.choice(drawings.variants[i]) for i in some]]
            main_captions = drawings.sentences[[drawings.variants[i][0] for i in some]]
            seen = embedded(model, drawn.take(rng.integers(0, len(maps), len(some)), some))
            alike = (main_captions @ main_captions.T / 0.05).softmax(1)
            loss = loss + options.drawings * soft_loss(seen, model.read(raw), alike, scale)
            classes = torch.from_numpy(rng.integers(0, 1000, 192))
            made = synthetic(drawings, usual.mean(0), usual.std(0), classes)
            named = model.vision_head(made[:, None], drawings.probabilities(made))
            names = drawings.class_sentences[rng.integers(2), classes]
            alike = drawings.class_sentences[0, classes]
            loss = loss + options.classes * soft_loss(
                named, model.read(names), (alike @ alike.T / 0.05).softmax(1), scale
            )
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(heads, 5.0)
            optimizer.step()
            schedule.step()
        if epoch % 10 == 9 or epoch + 1 == options.epochs:
            print(f"epoch {epoch + 1}", evaluated(model, choose, chosen, drawings, drawn), flush=True)
    if options.write:
        torch.save(model.state_dict(), work / f"heads-{options.seed}.pt")


if __name__ == "__main__":
    main()
