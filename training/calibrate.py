"""Step 6b of the recipe: how sure the model is to be of what it says, and when it names a picture instead.

    python training/calibrate.py --data shared/data --work training/work --model FOLDER

Runs the checkpoint over the part "choose" of photographs and rooms and the drawings of the validation part, and writes
the section "confidence" of its config.json: logistic weights (Platt, 1999) of captions, answers and names (names.txt),
and the least confidence with which a caption is said: the largest by which one photograph in ten is named at most. A
caption is right where the first thing it names is in the words of the picture, of a room in its questions and answers;
a name where it is; an answer where it is the one expected. Prints calibration errors over ten held-out tenths.
"""

from __future__ import annotations

import argparse
import io
import json
import re
from pathlib import Path

import numpy as np
from drawings import Drawings
from metrics import calibration_error, tokens
from PIL import Image
from questions import ANIMALS, PEOPLE, PLACES, THINGS, made_questions
from splits import Archive, daquar, flickr8k
from words import room_questions

import beyondvl as bvl
from beyondvl.tasks.confidence import logistic
from data import on_white

SIZE = 260
AN = re.compile(r"(?i)(?!uni|ut|eu|one)[aeiou]")
NAMED = 0.1  # of photographs like those that taught captions, at most


def names() -> list[str]:
    """Of names.txt, with their articles."""
    out = []
    for line in Path(__file__).with_name("names.txt").read_text().splitlines():
        if not line.startswith("#"):
            bare = line.startswith("-")
            words = [word.strip() for word in line.lstrip("- ").split(",")]
            out += words if bare else [f"{'an' if AN.match(word) else 'a'} {word}" for word in words]
    return out


def singulars(words: list[str]) -> list[str]:
    return [re.sub(r"(?<=[^s])s$", "", word) for word in words]


NOUNS = frozenset(
    singulars([word for name in names() for word in tokens(name)] + [*ANIMALS, *PEOPLE, *PLACES, *THINGS])
) - {"a", "an", "of", "full", "black", "white", "old", "hot", "red"}


def subject_right(text: str, known: set[str]) -> bool:
    """Whether the first thing that a text names is among known words."""
    nouns = [word for word in singulars(tokens(text)) if word in NOUNS]
    return bool(nouns) and nouns[0] in known


def fit(features: np.ndarray, right: np.ndarray, hold: float = 1e-2) -> np.ndarray:
    """Weights and bias of a logistic regression, by Newton's steps; `hold` pulls weights to 0."""
    x = np.concatenate([features, np.ones((len(features), 1))], 1).astype(np.float64)
    weights, pull = np.zeros(x.shape[1]), np.r_[np.full(features.shape[1], hold), 1e-9]
    for _ in range(50):
        p = 1 / (1 + np.exp(-x @ weights))
        slope = x.T @ (p - right) / len(x) + pull * weights
        curve = (x * (p * (1 - p))[:, None]).T @ x / len(x) + np.diag(pull)
        weights -= np.linalg.solve(curve, slope)
    return weights


def held_out(features: np.ndarray, right: np.ndarray, parts: int = 10) -> np.ndarray:
    """Confidences of each tenth by weights that the others gave."""
    fold, out = np.random.default_rng(0).integers(parts, size=len(right)), np.zeros(len(right))
    for i in range(parts):
        out[fold == i] = logistic(features[fold == i], fit(features[fold != i], right[fold != i]))
    return out


class Calibration:
    def __init__(self, data: Path, work: Path, model: bvl.PreTrainedModel):
        self.model = model
        with Archive(data / "flickr8k.tar") as archive:
            part = flickr8k(archive)["choose"]
            pictures = [Image.open(io.BytesIO(archive.read(file))) for file in part.files]
            self.photos = model.encode_image(pictures)
        self.captions = part.words
        drawings = Drawings(work)
        items = [drawings.items[i] for i in drawings.validation]
        drawn = [on_white(Image.open(work / "pictures" / item["picture"]), SIZE) for item in items]
        self.drawn = model.encode_image(drawn)
        with Archive(data / "daquar.tar") as archive:
            self.asked = daquar(archive)["choose"]
            self.rooms = model.encode_image([Image.open(io.BytesIO(archive.read(file))) for file in self.asked.files])
        words = [*self.captions, *(i["captions"] + i["keywords"] for i in items)]
        words += [[text for pair in pairs for text in pair] for pairs in self.asked.words]
        self.names = names()
        self.name_embeds = model._embed_names(self.names)
        self.known = [set(singulars(tokens(" ".join(lines)))) for lines in words]

    def written(self) -> tuple[np.ndarray, np.ndarray]:
        """Features (n, 4) of captions, and whether they are right."""
        features, texts = [], []
        for seen in (self.photos, self.drawn, self.rooms):
            said, chances = self.model._written(self.model._prompted(None, None, None, seen), {})
            features.append(self.model._with_cosines(said, chances, seen, self.name_embeds))
            texts += said
        right = [subject_right(text, known) for text, known in zip(texts, self.known, strict=True)]
        return np.concatenate(features), np.array(right)

    def named(self) -> tuple[np.ndarray, np.ndarray]:
        """Log shares (n, 1) of the likeliest names, and whether they are right."""
        embeds = np.concatenate([seen.embeds[:, 0] for seen in (self.photos, self.drawn, self.rooms)])
        best, shares = self.model._likeliest(embeds, self.name_embeds)
        right = [subject_right(self.names[b], known) for b, known in zip(best, self.known, strict=True)]
        return shares, np.array(right)

    def answered(self) -> tuple[np.ndarray, np.ndarray]:
        """Features (n, 2) of answers, and whether they are right: about rooms, and made questions."""
        features, right = [], []
        asked = [(self.rooms[i], question, answer) for i, question, answer in room_questions(self.asked.words)]
        made = made_questions(self.captions, np.random.default_rng(3), unseen=True)
        asked += [(self.photos[i], question, answer) for i, _, question, answer in made]
        for seen, question, expected in asked:
            text = self.model.texts(question)
            prompted = self.model._prompted(None, text["input_ids"], text.get("attention_mask"), seen)
            (said,), chances = self.model._written(prompted, {"max_new_tokens": 8})
            features.append(chances[0])
            right.append(said == expected)
        return np.array(features), np.array(right)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    options = parser.parse_args()
    path = options.model / "config.json"
    config = json.loads(path.read_text())
    config.pop("confidence", None)
    path.write_text(json.dumps(config) + "\n")
    calibration = Calibration(options.data, options.work, bvl.AutoModel.from_pretrained(options.model))
    section: dict[str, object] = {}
    sure = {}
    for kind, (features, right) in (
        ("caption", calibration.written()), ("name", calibration.named()), ("answer", calibration.answered()),
    ):  # fmt: skip
        sure[kind] = held_out(features, right), right
        section[kind] = [round(float(weight), 4) for weight in fit(features, right)]
        print(f"{kind}: {100 * right.mean():.1f} % right, calibration error {calibration_error(*sure[kind]):.3f}, "
              f"n = {len(right)}", flush=True)  # fmt: skip
    (caption, said), (name, called) = sure["caption"], sure["name"]
    thresholds = np.arange(0, 1.01, 0.05)
    gives_way = {least: (caption < least) & (name > caption) for least in thresholds}
    shares = {least: np.where(way, called, said).mean() for least, way in gives_way.items()}
    at_home = len(calibration.photos)
    # names are right as often as captions and oftener, but say less; users' pictures are stranger than these
    least = max(one for one, way in gives_way.items() if way[:at_home].mean() <= NAMED)
    print(f"named below {least:.2f}: {100 * shares[least]:.1f} % right, {100 * gives_way[least][:at_home].mean():.1f} % "
          f"of photographs; where none is {100 * shares[0.0]:.1f} %, wherever a name is surer {100 * shares[1.0]:.1f} %")  # fmt: skip
    config["confidence"] = section | {"least": round(float(least), 2), "names": calibration.names}
    path.write_text(json.dumps(config) + "\n")


if __name__ == "__main__":
    main()
