"""Step 5b of the recipe: captions trained on what they are worth, not on each next word.

    python training/critical.py --data shared/data --work training/work --seed 0

Self-critical training (Rennie et al., 2017): of each photograph several captions are drawn from the model; each is made
likelier by how much its CIDEr, over word pieces and the end, is above the mean of the others' (Luo, 2020). A fifth of the
words' own loss stays, and the other lessons go on in turn, so that nothing is unlearned. Reads WORK/joint-SEED.pt, writes
WORK/joint-SEED-critical.pt.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joint import WEIGHTS, Learner, find_near, plan, to_train
from lessons import Lessons
from metrics import Cider
from torch import Tensor, nn
from torch.nn import functional as F
from twin import BeyondVL, mixed
from words import BEGIN, END, PAD

OTHERS = ("questions", "imagined", "clips", "questions", "imagined", "drawings", "sounds", "match")


class Critic:
    """Draws captions and says what they are worth. `each` are drawn of a photograph, of `most` word pieces."""

    def __init__(self, learner: Learner, each: int = 5, most: int = 22, keep: int = 40):
        self.learner, self.each, self.most, self.keep = learner, each, most, keep
        ids = learner.lessons.vocabulary.ids
        self.cider = Cider([[[*ids(text), END] for text in words] for words in learner.lessons.photographs.captions])

    @torch.no_grad()
    def draw(self, stream: Tensor, mask: Tensor) -> Tensor:
        """Ids (B, L) after the first, drawn among the `keep` likeliest of each place."""
        decoder = self.learner.model.decoder
        ids = torch.full((len(stream), 1), BEGIN)
        ended = torch.zeros(len(stream), dtype=torch.bool)
        for _ in range(self.most):
            hidden = decoder.hidden(ids, stream, mask)[:, -1]
            best, at = F.linear(hidden, decoder.embed_tokens.weight).float().topk(self.keep)
            drawn = at.gather(1, torch.multinomial(best.softmax(1), 1))[:, 0]
            ids = torch.cat([ids, torch.where(ended, PAD, drawn)[:, None]], 1)
            ended |= drawn == END
            if ended.all():
                break
        return ids[:, 1:]

    def worth(self, ids: Tensor, photographs: np.ndarray) -> Tensor:
        """CIDEr (n, each) of what was drawn of each photograph."""
        rows = ids.view(len(photographs), self.each, -1).tolist()
        return torch.tensor(
            [
                [self.cider.score([i for i in row if i != PAD], int(at)) for row in several]
                for several, at in zip(rows, photographs, strict=True)
            ]
        )

    def loss(self, batch: dict[str, Any], photographs: np.ndarray) -> tuple[Tensor, float]:
        """And the mean CIDEr of what was drawn."""
        model = self.learner.model
        stream, mask = self.learner.stream({"image": (*self.learner.pictures(batch), None)})
        stream, mask = (x.repeat_interleave(self.each, 0) for x in (stream, mask))
        ids = self.draw(stream, mask)
        worth = self.worth(ids, photographs)
        others = (worth.sum(1, keepdim=True) - worth) / (self.each - 1)
        kept = ids != PAD
        begun = F.pad(ids, (1, 0), value=BEGIN)[:, :-1]
        logits = F.linear(model.decoder.hidden(begun, stream, mask)[kept], model.decoder.embed_tokens.weight).float()
        unlikely = F.cross_entropy(logits, ids[kept], reduction="none")
        gain = (worth - others).flatten()[:, None].expand_as(ids)[kept]
        return (gain * unlikely).mean(), float(worth.mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--begin", help="a file of joint.py in WORK, where it is not that of the seed")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--photographs", type=int, default=24, help="of a step")
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--words", type=float, default=0.2, help="share of the words' own loss")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    saved = torch.load(options.work / (options.begin or f"joint-{options.seed}.pt"), weights_only=False)
    model = BeyondVL(saved["config"])
    model.load_state_dict(saved["model"])
    lessons = Lessons(options.data, options.work, options.seed)
    learner = Learner(model, lessons)
    find_near(model, lessons)
    critic = Critic(learner)
    trained = to_train(model)
    optimizer = torch.optim.AdamW(trained, lr=options.lr, weight_decay=0.05, betas=(0.95, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, options.steps, pct_start=0.1)
    start, worths = time.time(), []
    for step in range(options.steps):
        rng = np.random.default_rng([options.seed, step, 7])
        at = rng.integers(0, len(lessons.photographs), options.photographs)
        model.eval()
        with mixed():
            loss, worth = critic.loss(lessons.photographs.take(rng, at), at)
        loss.backward()
        worths.append(worth)
        model.train()
        for share, name in ((options.words, "captions"), (1.0, OTHERS[step % len(OTHERS)])):
            ((lesson, batch),) = plan(learner, rng, step, 0, [name])
            with mixed():
                losses = lesson(batch)
            sum(share * WEIGHTS[part] * loss for part, loss in losses.items()).backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if (step + 1) % 25 == 0:
            print(f"step {step + 1}/{options.steps} CIDEr of captions drawn {np.mean(worths):.3f}, "
                  f"{(time.time() - start) / (step + 1):.2f} s a step", flush=True)  # fmt: skip
            worths = []
    path = options.work / f"joint-{options.seed}-critical.pt"
    torch.save({"model": model.state_dict(), "config": saved["config"]}, path)


if __name__ == "__main__":
    main()
