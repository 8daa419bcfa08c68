"""Step 3b of the recipe: the heads that compare, on what the tuned tower gives; some minutes a seed.

    python training/heads.py --data shared/data --work training/work --towers contrast-0-averaged.pt --seed 0

contrast.py tunes the tower with heads that see each picture a few times; these heads start anew and see many: features
of all views of photographs and drawings are computed once. The tower is the mean of the weights of --towers, which all
began as the published one (Wortsman et al., 2022), or that one where none is named, to compare with. Losses are those of
contrast.py; weights are averaged over the last third. With --teachers, heads of several seeds, half of what is learned is
their mean similarity (Hinton et al., 2015). Writes WORK/heads-SEED.pt: the tower's tuned stages and these heads.

A head ranks the photographs that it was trained on twice as well as others: formers that learned from such embeddings
would trust them too much. So --folds trains heads on the other photographs, in the space of the finished ones' texts, and
writes WORK/embeds-train.npy [views, n, SIZE]: every photograph as if it had never been seen.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from contrast import SIZE, Contrast, Photographs, shown
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


class Sets:
    """What is learned from, and what is chosen on, with the features of a tower."""

    def __init__(self, data: Path, work: Path, top: LiteTop, tag: str):
        self.train, self.choose = (Photographs(data, work, part) for part in ("train", "choose"))
        self.drawings, maps = Drawings(work), np.load(work / "drawings.npy", mmap_mode="r")
        self.photographs, self.chosen, self.drawn = (
            Seen(top, array, work / f"{tag}-{name}.pt")
            for name, array in (("train", self.train.maps), ("choose", self.choose.maps), ("drawings", maps))
        )
        self.usual = self.photographs.means[0, :512].float()


def told_apart(
    model: Contrast, teachers: list[Contrast], sets: Sets, among: np.ndarray, at: np.ndarray, rng: np.random.Generator,
    temperature: float,
) -> torch.Tensor:  # fmt: skip
    """Photographs of a batch, `at` of those that are learned from, against a caption of each of these, and back."""
    train, mine = sets.train, torch.from_numpy(at)
    view = rng.integers(0, len(train.maps), len(at))
    captions = train.draw(among[at], view, rng)[among]
    features = sets.photographs.take(view, among[at])
    vectors, means = (
        train.vectors[torch.from_numpy(among), torch.from_numpy(captions)],
        train.means[torch.from_numpy(among)],
    )
    scores = compared(model, features, vectors)
    alike = means[mine] @ means.T / temperature
    loss = towards(scores, alike) + towards(scores[:, mine].T, alike[:, mine])
    if not teachers:
        return loss
    with torch.no_grad():
        taught = torch.stack([compared(teacher, features, vectors) for teacher in teachers]).mean(0)
    return 0.5 * (loss + towards(scores, taught) + towards(scores[:, mine].T, taught[:, mine].T))


@torch.no_grad()
def evaluated(model: Contrast, sets: Sets) -> str:
    model.eval()
    whole = embedded(model, sets.chosen.take(np.zeros(len(sets.choose), int), np.arange(len(sets.choose))))
    scores = whole @ model.read(sets.choose.vectors.flatten(0, 1)).T
    at = sets.drawings.validation
    whole = embedded(model, sets.drawn.take(np.zeros(len(at), int), at))
    model.train()
    return shown(scores, whole @ model.read(sets.drawings.captions(at)).T)


def fit(
    model: Contrast, parts: list[nn.Parameter], teachers: list[Contrast], sets: Sets, among: np.ndarray,
    options: argparse.Namespace,
) -> None:  # fmt: skip
    """Trains some of the parameters on some of the photographs, and on the drawings."""
    optimizer = torch.optim.AdamW(parts, lr=options.lr, weight_decay=options.decay, betas=(0.9, 0.98))
    sums, count, per_epoch = [torch.zeros_like(part) for part in parts], 0, len(among) // options.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, options.epochs * per_epoch, pct_start=0.15)
    drawings, views = sets.drawings, len(sets.drawn.means)
    for epoch in range(options.epochs):
        rng = np.random.default_rng([options.seed, epoch])
        order = rng.permutation(len(among))
        for step in range(per_epoch):
            at = order[step * options.batch : (step + 1) * options.batch]
            loss = told_apart(model, teachers, sets, among, at, rng, options.temperature)
            some = rng.choice(drawings.train, options.drawn, replace=False)
            embeds = embedded(model, sets.drawn.take(rng.integers(0, views, len(some)), some))
            loss = loss + options.drawings * model.drawn(embeds, drawings, some, rng)
            loss = loss + options.classes * model.named(drawings, sets.usual, rng)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parts, 5.0)
            optimizer.step()
            schedule.step()
            if 3 * epoch >= 2 * options.epochs:
                for total, part in zip(sums, parts, strict=True):
                    total += part.detach()
                count += 1
        if epoch % 10 == 9 or epoch + 1 == options.epochs:
            print(f"epoch {epoch + 1}", evaluated(model, sets), flush=True)
    with torch.no_grad():
        for total, part in zip(sums, parts, strict=True):
            part.copy_(total / count)
    print("averaged", evaluated(model, sets), flush=True)


@torch.no_grad()
def embeddings(model: Contrast, seen: Seen, at: np.ndarray) -> np.ndarray:
    """(views, n, SIZE) float16 of photographs."""
    model.eval()
    views = [embedded(model, seen.take(np.full(len(at), view), at)) for view in range(len(seen.means))]
    model.train()
    return torch.stack(views).half().numpy()


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
    parser.add_argument("--folds", type=int, default=0, help="of photographs, each embedded by a head of the others")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    work, tag = options.work, "-".join(["seen", *(name.split("-")[1] for name in options.towers)])
    tower = open_checkpoint(work / "tower")
    state = {name: torch.from_numpy(tower.read(name, tower.entries[name].shape)) for name in tower.names()}
    names = torch.from_numpy(np.load(work / "classes.npy"))[1]
    model = Contrast(state, names, options.inner, options.dropout)
    model.top.load_state_dict(mean_tower(work, options.towers, model.top.state_dict(), options.share))
    teachers = []
    for name in options.teachers:
        saved = torch.load(work / name, weights_only=True)
        teachers.append(Contrast(state, names, len(saved["vision_head.fc1.bias"]), 0.0).eval())
        teachers[-1].load_state_dict(saved)
    sets = Sets(options.data, work, model.top, tag)
    every = np.arange(len(sets.train))
    if options.folds:
        taught = torch.load(work / f"heads-{options.seed}.pt", weights_only=True)
        out = np.zeros((len(sets.photographs.means), len(every), SIZE), np.float16)
        for fold in range(options.folds):
            model = Contrast(state, names, options.inner, options.dropout)
            model.load_state_dict(taught | {n: v for n, v in model.state_dict().items() if n.startswith("vision_head")})
            left = every[every % options.folds == fold]
            fit(model, [*model.vision_head.parameters()], [], sets, np.setdiff1d(every, left), options)
            out[:, left] = embeddings(model, sets.photographs, left)
        np.save(work / "embeds-train.npy", out)
        return
    heads = [*model.vision_head.parameters(), *model.text_projection.parameters(), model.logit_scale]
    fit(model, heads, teachers, sets, every, options)
    if options.write:
        torch.save(model.state_dict(), work / f"heads-{options.seed}.pt")


if __name__ == "__main__":
    main()
