"""Step 3b of the recipe: the heads that compare, on what the tuned tower gives; some minutes a seed.

    python training/heads.py --data shared/data --work training/work --towers contrast-0-averaged.pt --seed 0

contrast.py tunes the tower with heads that see each picture a few times; these heads start anew and see many: features
of all views of photographs and drawings are computed once. The tower is the mean of the weights of --towers, which all
began as the published one (Wortsman et al., 2022), or that one where none is named, to compare with. Losses are those of
contrast.py; weights are averaged over the last third. Writes WORK/heads-SEED.pt: the tower's tuned stages and these heads.

A head ranks the photographs that it was trained on twice as well as others: formers that learned from such embeddings
would trust them too much. So --folds, after states.py, trains heads on the other photographs, in the space of the finished
ones' texts, and writes WORK/embeds-train.npy [views, n, SIZE]: every photograph as if it had never been seen.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from contrast import SIZE, Contrast, shown
from drawings import Drawings
from seen import Seen, Sets, by_maps, by_states, by_words
from torch import nn

from beyondvl.weights import open_checkpoint

AGAINST = 6000  # captions that a batch is contrasted with, at most


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


def embedded(model: Contrast, seen: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return model.vision_head(seen[0][:, None], seen[1])


def towards(scores: torch.Tensor, alike: torch.Tensor) -> torch.Tensor:
    """Half a contrast: scores (n, m) against likenesses (n, m)."""
    return -0.5 * (alike.softmax(1) * scores.log_softmax(1)).sum(1).mean()


def compared(model: Contrast, features: tuple[torch.Tensor, torch.Tensor], vectors: torch.Tensor) -> torch.Tensor:
    """Scaled cosines (n, m) of pictures and sentence vectors."""
    return model.scale() * embedded(model, features) @ model.read(vectors).T


def told_apart(
    model: Contrast, sets: Sets, among: np.ndarray, at: np.ndarray, rng: np.random.Generator, temperature: float
) -> torch.Tensor:
    """Photographs of a batch, `at` of those that are learned from, against a caption of each of these, and back."""
    train, mine = sets.train, torch.from_numpy(at)
    view = rng.integers(0, sets.photographs.views, len(at))
    captions = train.draw(among[at], view, rng)[among]
    every = torch.from_numpy(among)
    scores = compared(model, sets.photographs.take(view, among[at]), train.vectors[every, torch.from_numpy(captions)])
    alike = train.means[every[mine]] @ train.means[every].T / temperature
    return towards(scores, alike) + towards(scores[:, mine].T, alike[:, mine])


@torch.no_grad()
def evaluated(model: Contrast, sets: Sets) -> str:
    """Recalls of photographs that are chosen on, none for the open set, and of drawings."""
    model.eval()
    scores = None
    if sets.choose is not None:
        whole = embedded(model, sets.chosen.take(np.zeros(len(sets.choose), int), np.arange(len(sets.choose))))
        scores = whole @ model.read(sets.choose.vectors.flatten(0, 1)).T
    at = sets.drawings.validation
    whole = embedded(model, sets.drawn.take(np.zeros(len(at), int), at))
    model.train()
    return shown(scores, whole @ model.read(sets.drawings.captions(at)).T)


def fit(model: Contrast, parts: list[nn.Parameter], sets: Sets, among: np.ndarray, options: argparse.Namespace) -> None:
    """Trains some of the parameters on some of the photographs, and on the drawings."""
    optimizer = torch.optim.AdamW(parts, lr=options.lr, weight_decay=options.decay, betas=(0.9, 0.98))
    sums, count, per_epoch = [torch.zeros_like(part) for part in parts], 0, len(among) // options.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, options.epochs * per_epoch, pct_start=0.15)
    drawings, views, usual = sets.drawings, sets.drawn.views, sets.photographs.means[0, :512].float()
    for epoch in range(options.epochs):
        rng = np.random.default_rng([options.seed, epoch])
        order = rng.permutation(len(among))
        for step in range(per_epoch):
            at = order[step * options.batch : (step + 1) * options.batch]
            some = among
            if len(among) > AGAINST:
                some = among[np.concatenate([at, rng.choice(len(among), AGAINST - len(at), replace=False)])]
                at = np.arange(len(at))
            loss = told_apart(model, sets, some, at, rng, options.temperature)
            some = rng.choice(drawings.train, options.drawn, replace=False)
            embeds = embedded(model, sets.drawn.take(rng.integers(0, views, len(some)), some))
            loss = loss + options.drawings * model.drawn(embeds, drawings, some, rng)
            loss = loss + options.classes * model.named(drawings, usual, rng)
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


def left_out(begin: Callable[[], Contrast], sets: Sets, options: argparse.Namespace) -> np.ndarray:
    """(views, n, SIZE) float16 of all photographs, each by a head of those of the other folds."""
    taught = torch.load(options.work / f"heads-{options.seed}.pt", weights_only=True)
    every = np.arange(len(sets.train))
    out = np.zeros((sets.photographs.views, len(every), SIZE), np.float16)
    for fold in range(options.folds):
        model = begin()
        anew = {name: value for name, value in model.state_dict().items() if name.startswith("vision_head")}
        model.load_state_dict(taught | anew)
        left = every[every % options.folds == fold]
        fit(model, [*model.vision_head.parameters()], sets, np.setdiff1d(every, left), options)
        out[:, left] = embeddings(model, sets.photographs, left)
    return out


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
    parser.add_argument("--folds", type=int, default=0, help="of photographs, each embedded by a head of the others")
    parser.add_argument("--open", action="store_true", help="no photographs: imagined ones, over the published tower")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    tower = open_checkpoint(options.work / "tower")
    state = {name: torch.from_numpy(tower.read(name, tower.entries[name].shape)) for name in tower.names()}

    def begin() -> Contrast:
        return Contrast(state, Drawings(options.work).class_sentences[1], options.inner, options.dropout)

    if options.folds:
        np.save(options.work / "embeds-train.npy", left_out(begin, by_states(options.data, options.work), options))
        return
    model = begin()
    model.top.load_state_dict(mean_tower(options.work, options.towers, model.top.state_dict(), options.share))
    heads = [*model.vision_head.parameters(), model.logit_scale]
    if options.open:
        sets = by_words(options.data, options.work)
    else:
        tag = "-".join(["seen", *(name.split("-")[1] for name in options.towers)])
        sets = by_maps(options.data, options.work, model.top, tag)
        heads += model.text_projection.parameters()  # the open set keeps what texts mean to each other
    fit(model, heads, sets, np.arange(len(sets.train)), options)
    if options.write:
        torch.save(model.state_dict(), options.work / f"heads-{options.seed}.pt")


if __name__ == "__main__":
    main()
