"""What the instruction, and the pictures, are worth: answers of joint.py's files, without the checkpoint.

    python training/joint.py ... --only captions questions --steps 600 [--twin instruction] --seed 0, 1, 2
    python training/ablate.py --data shared/data --work training/work --part choose joint-0-captions-questions.pt ...

Greedy answers of the torch twin, of single words, to DAQUAR's questions and to made ones in wordings of no training. A
file whose name says what it goes without is asked so. The second and further files are compared with the first: the
difference is paired, by the same questions.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from joint import Learner
from lessons import Pictures
from metrics import interval
from questions import made_questions
from splits import Archive, daquar, flickr8k
from twin import BeyondVL
from words import BEGIN, END, Read, Vocabulary, room_questions


class Asked:
    """Questions about the pictures of one set."""

    def __init__(self, work: Path, name: str, rows: list[tuple[int, str, str]]):
        self.pictures = Pictures(work / "states", name)
        self.at, self.questions, self.answers = (list(part) for part in zip(*rows, strict=True))


def asked(data: Path, work: Path, part: str) -> list[Asked]:
    with Archive(data / "daquar.tar") as archive:
        rooms = daquar(archive)[part].words
    with Archive(data / "flickr8k.tar") as archive:
        captions = flickr8k(archive)[part].words
    pairs = room_questions(rooms, single=True)
    made = [(i, q, a) for i, _, q, a in made_questions(captions, np.random.default_rng(1), unseen=True)]
    return [Asked(work, f"daquar-{part}", pairs), Asked(work, f"flickr8k-{part}", made)]


@torch.no_grad()
def answers(learner: Learner, asked: Asked, batch: int = 64, most: int = 6) -> list[str]:
    model, vocabulary, out = learner.model, learner.lessons.vocabulary, []
    for start in range(0, len(asked.at), batch):
        part = slice(start, start + batch)
        pictures = asked.pictures.take(asked.at[part], [0] * len(asked.at[part]))
        stream = learner.stream({"image": (*learner.pictures(pictures), None)}, asked.questions[part])
        ids = torch.full((len(stream[0]), 1), BEGIN)
        for _ in range(most):
            logits = torch.nn.functional.linear(
                model.decoder.hidden(ids, *stream)[:, -1], model.decoder.embed_tokens.weight
            )
            ids = torch.cat([ids, logits.argmax(1, keepdim=True)], 1)
        for row in ids[:, 1:].tolist():
            out.append(vocabulary.text(row[: row.index(END)] if END in row else row))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--part", choices=("choose", "report"), default="choose")
    parser.add_argument("files", nargs="+")
    options = parser.parse_args()
    sets, first = asked(options.data, options.work, options.part), None
    read = Read([question for each in sets for question in each.questions])
    lessons = SimpleNamespace(vocabulary=Vocabulary.of(options.data, options.work / "vocabulary.json"), read=read)
    for file in options.files:
        saved = torch.load(options.work / file, weights_only=False)
        model = BeyondVL(saved["config"]).eval()
        model.load_state_dict(saved["model"])
        learner = Learner(model, lessons, file.partition("without-")[2].removesuffix(".pt") or None)
        right = [np.array(answers(learner, each)) == np.array(each.answers) for each in sets]
        first = first or right
        for name, mine, other in zip(("DAQUAR", "made questions"), right, first, strict=True):
            gained = other.astype(float) - mine
            low, high = interval(len(mine), lambda at, gained=gained: float(gained[at].mean()))
            print(f"{file}: {name} {100 * mine.mean():.1f}, n = {len(mine)}; the first file is "
                  f"[{100 * low:.1f}, {100 * high:.1f}] above it", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
