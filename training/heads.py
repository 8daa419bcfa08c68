"""Step 3b of the recipe: the heads that compare, on what the tuned tower gives; some minutes a seed.

    python training/heads.py --data shared/data --work training/work --towers contrast-0-averaged.pt --seed 0

contrast.py tunes the tower with heads that see each picture a few times; these heads start anew and see many: features
of all views of photographs and drawings are computed once. The tower is the mean of the weights of --towers, which all
began as the published one (Wortsman et al., 2022), or that one where none is named, to compare with. Losses are those of
contrast.py; weights are averaged over the last third. With --teachers, heads of several seeds, half of what is learned is
their mean similarity (Hinton et al., 2015). Writes WORK/heads-SEED.pt: the tower's tuned stages and these heads.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from contrast import Contrast, Photographs, shown
from drawings import Drawings
from torch import nn
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


def mean_tower(
    work: Path, names: list[str], published: dict[str, torch.Tensor], share: float
) -> dict[str, torch.Tensor]:
    """The mean of tuned towers, of which `share` of what the tuning changed."""
    if not names:
        return published
    tuned = [torch.load(work / name, weights_only=True) for name in names]
    return {
        name: value + share * (torch.stack([each[f"top.{name}"] for each in tuned]).mean(0) - value)
        for name, value in published.items()
    }


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


def towards(scores: torch.Tensor, alike: torch.Tensor) -> torch.Tensor:
    """Half a contrast: scores (n, m) against likenesses (n, m)."""
    return -0.5 * (alike.softmax(1) * scores.log_softmax(1)).sum(1).mean()


def compared(model: Contrast, features: tuple[torch.Tensor, torch.Tensor], vectors: torch.Tensor) -> torch.Tensor:
    """Scaled cosines (n, m) of pictures and sentence vectors."""
    return model.scale() * embedded(model, features) @ model.read(vectors).T


def told_apart(
    model: Contrast, teachers: list[Contrast], train: Photographs, seen: Seen, at: np.ndarray, rng: np.random.Generator,
    temperature: float,
) -> torch.Tensor:  # fmt: skip
    """Photographs of a batch against a caption of every photograph, and their captions against them."""
    view, mine = rng.integers(0, len(train.maps), len(at)), torch.from_numpy(at)
    captions = torch.from_numpy(train.draw(at, view, rng))
    features, vectors = seen.take(view, at), train.vectors[torch.arange(len(train)), captions]
    scores = compared(model, features, vectors)
    alike = train.means[mine] @ train.means.T / temperature
    loss = towards(scores, alike) + towards(scores[:, mine].T, alike[:, mine])
    if not teachers:
        return loss
    with torch.no_grad():
        taught = torch.stack([compared(teacher, features, vectors) for teacher in teachers]).mean(0)
    return 0.5 * (loss + towards(scores, taught) + towards(scores[:, mine].T, taught[:, mine].T))


@torch.no_grad()
def evaluated(model: Contrast, choose: Photographs, seen: Seen, drawings: Drawings, drawn: Seen) -> str:
    model.eval()
    whole = embedded(model, seen.take(np.zeros(len(choose), int), np.arange(len(choose))))
    scores = whole @ model.read(choose.vectors.flatten(0, 1)).T
    at = drawings.validation
    whole = embedded(model, drawn.take(np.zeros(len(at), int), at))
    model.train()
    return shown(scores, whole @ model.read(drawings.captions(at)).T)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--towers", nargs="*", default=[], help="files of contrast.py in WORK")
    parser.add_argument("--share", type=float, default=1.0, help="of the tuning, the rest is the published tower")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--drawn", type=int, default=256)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--dropout", type=float, default=0.6)
    parser.add_argument("--inner", type=int, default=1536)
    parser.add_argument("--decay", type=float, default=0.15)
    parser.add_argument("--temperature", type=float, default=0.03)
    parser.add_argument("--drawings", type=float, default=0.4)
    parser.add_argument("--classes", type=float, default=0.15)
    parser.add_argument("--teachers", nargs="*", default=[], help="files of this step in WORK")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    work, tag = options.work, "-".join(["seen", *(name.split("-")[1] for name in options.towers)])
    train, choose = (Photographs(options.data, work, part) for part in ("train", "choose"))
    drawings, maps = Drawings(work), np.load(work / "drawings.npy", mmap_mode="r")
    tower = open_checkpoint(work / "tower")
    state = {name: torch.from_numpy(tower.read(name, tower.entries[name].shape)) for name in tower.names()}
    model = Contrast(state, drawings.class_sentences[1], options.inner, options.dropout)
    model.top.load_state_dict(mean_tower(work, options.towers, model.top.state_dict(), options.share))
    teachers = []
    for name in options.teachers:
        saved = torch.load(work / name, weights_only=True)
        teachers.append(Contrast(state, drawings.class_sentences[1], len(saved["vision_head.fc1.bias"]), 0.0).eval())
        teachers[-1].load_state_dict(saved)
    photographs, chosen, drawn = (
        Seen(model.top, array, work / f"{tag}-{name}.pt")
        for name, array in (("train", train.maps), ("choose", choose.maps), ("drawings", maps))
    )
    usual = photographs.means[0, :512].float()
    heads = [*model.vision_head.parameters(), *model.text_projection.parameters(), model.logit_scale]
    optimizer = torch.optim.AdamW(heads, lr=options.lr, weight_decay=options.decay, betas=(0.9, 0.98))
    sums, count = [torch.zeros_like(part) for part in heads], 0
    per_epoch = len(train) // options.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, options.epochs * per_epoch, pct_start=0.15)
    for epoch in range(options.epochs):
        rng = np.random.default_rng([options.seed, epoch])
        order = rng.permutation(len(train))
        for step in range(per_epoch):
            at = order[step * options.batch : (step + 1) * options.batch]
            loss = told_apart(model, teachers, train, photographs, at, rng, options.temperature)
            some = rng.choice(drawings.train, options.drawn, replace=False)
            embeds = embedded(model, drawn.take(rng.integers(0, len(maps), len(some)), some))
            loss = loss + options.drawings * model.drawn(embeds, drawings, some, rng)
            loss = loss + options.classes * model.named(drawings, usual, rng)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(heads, 5.0)
            optimizer.step()
            schedule.step()
            if 3 * epoch >= 2 * options.epochs:
                for total, part in zip(sums, heads, strict=True):
                    total += part.detach()
                count += 1
        if epoch % 10 == 9 or epoch + 1 == options.epochs:
            print(f"epoch {epoch + 1}", evaluated(model, choose, chosen, drawings, drawn), flush=True)
    with torch.no_grad():
        for total, part in zip(sums, heads, strict=True):
            part.copy_(total / count)
    print("averaged", evaluated(model, choose, chosen, drawings, drawn), flush=True)
    if options.write:
        torch.save(model.state_dict(), work / f"heads-{options.seed}.pt")


if __name__ == "__main__":
    main()
