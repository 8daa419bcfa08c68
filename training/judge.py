"""Step 7 of the recipe: what a checkpoint is worth, as users run it.

    python training/judge.py --data shared/data --work training/work --model FOLDER --part choose [--only captions ...]

Everything is chosen on the part "choose"; "report" is run once, at the end. Each figure is printed with its n and a
bootstrap interval of 95 %. The pictures are those of no training: photographs of the official dev set, rooms split by
name, clips made of those photographs and of held-out drawings, captions spoken in voices of no training.
"""

from __future__ import annotations

import argparse
import io
import json
import warnings
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import hearing
import moving
import numpy as np
from calibrate import NOUNS, singulars
from lessons import HEARD
from metrics import bleu, calibration_error, cider, interval, recalls, tokens
from PIL import Image
from questions import KINDS, balanced, made_questions, swapped
from splits import Archive, daquar, esc10, flickr8k
from words import plain, room_questions

import beyondvl as bvl
from data import emoji_names, on_white, one_per_caption

SHARES = (0.0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1)  # of matching's log odds in what ranks again
LANGUAGES = ("en", "zh", "es", "hi", "ar", "pt", "ru", "ja", "de", "fr", "ko")
SENTENCES = [lines[0] for lines in HEARD.values()]


class Judge:
    def __init__(self, data: Path, work: Path, model: bvl.PreTrainedModel, part: str):
        self.data, self.work, self.model, self.part = data, work, model, part
        with Archive(data / "flickr8k.tar") as archive:
            photographs = flickr8k(archive)[part]
            self.captions = photographs.words
            pictures = [Image.open(io.BytesIO(archive.read(file))).convert("RGB") for file in photographs.files]
        self.pictures = pictures
        self.photos = model.encode_image(pictures)

    def show(self, name: str, right: np.ndarray, scale: float = 100.0) -> None:
        """A mean with its n and interval."""
        right = np.asarray(right, np.float64)
        low, high = interval(len(right), lambda at: float(right[at].mean()))
        print(
            f"{name}: {scale * right.mean():.1f} [{scale * low:.1f}, {scale * high:.1f}], n = {len(right)}", flush=True
        )

    def retrieval(self) -> None:
        """Photographs and captions, by cosine, and by cosine and match together."""
        texts = [caption for words in self.captions for caption in words]
        owners = np.repeat(np.arange(len(self.captions)), 5)
        words = self.model.encode([{"text": t} for t in texts], normalize_embeddings=True)
        scores = self.photos.embeds[:, 0] @ words.T
        for way, row in recalls(scores, owners).items():
            print(way, {name: round(value, 1) for name, value in row.items()}, f"n = {len(scores)}, {len(texts)}")
        right: dict[float, np.ndarray] = {}
        for photo in range(len(scores)):  # each photograph's captions, and the photographs of its first caption
            few, first = np.argsort(-scores[photo])[:20], 5 * photo
            others = np.argsort(-scores[:, first])[:20]
            odds = [log_odds(self.model.match(self.photos[photo], [texts[i] for i in few])),
                    log_odds(self.model.match(self.photos[others], [texts[first]] * 20))]  # fmt: skip
            for share in SHARES:
                hits = right.setdefault(share, np.zeros((len(scores), 2)))
                hits[photo, 0] = owners[few[np.argmax(scores[photo, few] + share * odds[0])]] == photo
                hits[photo, 1] = others[np.argmax(scores[others, first] + share * odds[1])] == photo
        for share, hits in right.items():
            self.show(f"picture -> text R@1, cosine + {share} x match's log odds", hits[:, 0])
            self.show(f"text -> picture R@1, cosine + {share} x match's log odds", hits[:, 1])
            if share:
                self.show("   both ways, gained", (hits - right[0.0]).mean(1))

    def written(self) -> None:
        for beams in (1, 3):
            captions = self.model.caption(self.photos, num_beams=beams, max_new_tokens=24)
            scores = cider(captions, self.captions)
            low, high = interval(len(captions), lambda at, s=scores: float(s[at].mean()))
            grams = " ".join(f"{100 * b:.1f}" for b in bleu(captions, self.captions))
            print(f"captions, {beams} beams: BLEU-1 to 4 {grams}, CIDEr {scores.mean():.3f} [{low:.3f}, {high:.3f}], "
                  f"n = {len(captions)}", flush=True)  # fmt: skip
            print("  ", captions[:6])

    def rooms(self) -> None:
        """DAQUAR, answers of a single word."""
        with Archive(self.data / "daquar.tar") as archive:
            part = daquar(archive)[self.part]
            pictures = [Image.open(io.BytesIO(archive.read(file))).convert("RGB") for file in part.files]
        photos, right, given = self.model.encode_image(pictures), [], []
        for at, pairs in enumerate(part.words):
            single = [(q, a) for _, q, a in room_questions([pairs], single=True)]
            answers = self.model.answer(photos[at], [q for q, _ in single], max_new_tokens=8) if single else []
            right += [mine == a for mine, (_, a) in zip(answers, single, strict=True)]
            given += answers
        self.show("DAQUAR, single answers", right)

    def made(self) -> None:
        """Made questions, in wordings of no training, beside the commonest answer."""
        rows = made_questions(self.captions, np.random.default_rng(1), unseen=True)
        for kind in KINDS:
            asked = balanced([row for row in rows if row[1] == kind], np.random.default_rng(1))
            answers = [self.model.answer(self.photos[at], [q], max_new_tokens=8)[0] for at, _, q, _ in asked]
            right = [mine == a for mine, (*_, a) in zip(answers, asked, strict=True)]
            common = max(np.unique([a for *_, a in asked], return_counts=True)[1]) / len(asked)
            self.show(f"made questions, {kind} (commonest answer {100 * common:.1f})", right)

    def matching(self) -> None:
        """Areas under the curve: own captions against random ones, against near ones, against one word swapped."""
        rng = np.random.default_rng(2)
        own = [plain(words[0]) for words in self.captions]
        count = len(own)
        words = self.model.encode([{"text": t} for t in own], normalize_embeddings=True)
        scores = self.photos.embeds[:, 0] @ words.T
        scores[words @ words.T > 0.8] = -2
        fits = self.model.match(self.photos, own)
        random = self.model.match(self.photos, [own[(i + 1 + rng.integers(count - 1)) % count] for i in range(count)])
        near = self.model.match(self.photos, [own[np.argsort(-scores[i])[rng.integers(9)]] for i in range(count)])
        swaps = [(i, other) for i in range(count) if (other := swapped(own[i], rng))]
        wrong = self.model.match(self.photos[[i for i, _ in swaps]], [other for _, other in swaps])
        for name, negative in (("random", random), ("near", near), ("one word swapped", wrong)):
            area = (fits[:, None] > negative[None]).mean() + 0.5 * (fits[:, None] == negative[None]).mean()
            print(f"matching, AUC against {name} texts: {area:.3f}, n = {count} and {len(negative)}", flush=True)

    def heard(self) -> None:
        """Spoken captions find their photographs; real sounds are named."""
        sounds = [(samples, facts) for samples, facts in hearing.speech(self.captions, self.part, range(1))]
        spoken = self.model.encode([{"audio": (s, hearing.RATE)} for s, _ in sounds], normalize_embeddings=True)
        texts = self.model.encode([{"text": f["text"]} for _, f in sounds], normalize_embeddings=True)
        owners = np.array([f["photograph"] for _, f in sounds])
        for name, rows in (("spoken", spoken), ("written", texts)):
            scores = rows @ self.photos.embeds[:, 0].T
            ranks = (scores > scores[np.arange(len(rows)), owners][:, None]).sum(1)
            self.show(f"{name} captions find their photograph, R@10", ranks < 10)
            self.show(f"{name} captions find their photograph, R@1", ranks < 1)
        said = [
            self.model.answer(self.model.encode_audio((s, hearing.RATE)), "what does the voice say?")[0]
            for s, _ in sounds[:5]
        ]
        print("  ", list(zip(said, [f["text"] for _, f in sounds[:5]], strict=True)))

    def strange(self, root: Path) -> None:
        """Out of domain: whether captions hold a noun of what is shown. The 18 photographs of photographs.json, by their
        sentences too, and the 320 stamps of tuxpaint with the most colours, on white; real clips as they are narrated. All
        lie somewhere under `root`."""
        rows = json.loads(Path(__file__).with_name("photographs.json").read_text())
        found = {path.name: path for path in root.rglob("*") if path.name in rows}
        names = sorted(found)
        seen = self.model.encode_image([str(found[name]) for name in names])
        texts = self.model.encode([{"text": rows[name]["sentence"]} for name in names], normalize_embeddings=True)
        best = (seen.embeds[:, 0] @ texts.T).argmax(1)
        captions = self.model.caption(seen)
        for name, at, caption in zip(names, best, captions, strict=True):
            print(f"   {name:<22} {rows[names[at]]['sentence']:<36} {caption} ({caption.confidence:.2f})")
        self.show("photographs, their own sentence first of all", best == np.arange(len(names)))
        held = [set(tokens(c)) & set(rows[n]["nouns"]) != set() for n, c in zip(names, captions, strict=True)]
        self.show("photographs, a right noun in the caption", held)
        stamps = sorted(((colours(path), path) for path in root.rglob("stamps/**/*.png")
                         if path.with_suffix(".txt").exists()), key=lambda row: row[0])[-320:]  # fmt: skip
        words = [path.with_suffix(".txt").read_text(errors="replace").split("\n")[0] for _, path in stamps]
        captions = self.model.caption([on_white(Image.open(path).convert("RGBA"), 260) for _, path in stamps])
        held = [bool((set(singulars(tokens(c))) & NOUNS) & set(singulars(tokens(w))))
                for c, w in zip(captions, words, strict=True)]  # fmt: skip
        self.show("photographic stamps, a right noun in the caption", held)
        sure = np.array([caption.confidence for caption in captions])
        print(f"   calibration error of captions: {calibration_error(sure, np.array(held)):.3f}")
        print("  ", list(zip(captions[:12], words[:12], strict=True)))
        for path in sorted(root.rglob("*.mp4")):
            said = self.model.narrate(str(path))
            print(f"   {path.name}: {said} ({said.confidence:.2f})")

    def drawn(self) -> None:
        """The drawings of the validation part (of the test part, for the report), one of each caption."""
        items = json.loads((self.work / "items.json").read_text())
        at = one_per_caption(items, "validation" if self.part == "choose" else "test")
        pictures = [on_white(Image.open(self.work / "pictures" / items[i]["picture"]), 260) for i in at]
        texts = self.model.encode([{"text": items[i]["captions"][0]} for i in at], normalize_embeddings=True)
        scores = self.model.encode(pictures, normalize_embeddings=True) @ texts.T
        for way, row in recalls(scores, np.arange(len(at))).items():
            print("drawings", way, {name: round(value, 1) for name, value in row.items()}, f"n = {len(at)}")

    def languages(self, root: Path) -> None:
        """Emoji of the validation part (of the test part, for the report) by their names in eleven languages of Unicode
        CLDR, which lies under `root`: whether the nearest name is its own. The text tower was trained on English."""
        part = "validation" if self.part == "choose" else "test"
        items = [
            item
            for item in json.loads((self.work / "items.json").read_text())
            if item["part"] == part and "text" in item
        ]
        pictures = [on_white(Image.open(self.work / "pictures" / item["picture"]), 260) for item in items]
        seen = self.model.encode(pictures, normalize_embeddings=True)
        for language in LANGUAGES:
            names, _ = emoji_names(root, language)
            known = [at for at, item in enumerate(items) if item["text"] in names]
            texts = [{"text": names[items[at]["text"]]} for at in known]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that the vocabulary lacks their letters is what is measured
                rows = self.model.encode(texts, normalize_embeddings=True)
            self.show(f"emoji by their names, {language}", (seen[known] @ rows.T).argmax(1) == np.arange(len(known)))

    def sounds(self, fold: int) -> tuple[list[tuple[np.ndarray, int]], list[str]]:
        """The real sounds of a fold with their rates, and what they are."""
        with Archive(self.data / "esc10.tar") as archive:
            part = esc10(archive)[fold]
            read = [hearing.soundfile.read(io.BytesIO(archive.read(f)), dtype="float32") for f in part.files]
        return read, list(part.words)

    def real(self, fold: int) -> None:
        """Real sounds of a fold, by the ten sentences."""
        sounds, names = self.sounds(fold)
        texts = self.model.encode([{"text": s} for s in SENTENCES], normalize_embeddings=True)
        rows = self.model.encode([{"audio": sound} for sound in sounds], normalize_embeddings=True)
        best = (rows @ texts.T).argmax(1)
        self.show(f"real sounds, fold {fold}", [list(HEARD)[b] == name for b, name in zip(best, names, strict=True)])

    def narrated(self, fold: int) -> None:
        """Clips with a real sound of a fold, which they do not foretell: whether what is heard is said."""
        sounds, names = self.sounds(fold)
        rng, ways = np.random.default_rng(fold), ("with its sound", "by its pictures alone", "with another sound")
        told: dict[str, list[bool]] = {way: [] for way in ways}
        for frames, _ in self.clips(len(sounds)):
            own = rng.integers(len(sounds))
            other = rng.choice([i for i, name in enumerate(names) if name != names[own]])
            for way, at in zip(ways, (own, None, other), strict=True):
                clip = {"video": frames} | ({} if at is None else {"audio": sounds[at]})
                expected = names[own if at is None else at]
                said = self.model.narrate(clip)
                told[way].append(any(line in said for line in HEARD[expected]))
                if len(told[way]) <= 3:
                    print("  ", way, expected, "|", said)
        for way, right in told.items():
            self.show(f"narrations that say what is heard, {way}, fold {fold}", right)

    def clips(self, count: int = 300) -> Iterable[tuple[np.ndarray, dict[str, Any]]]:
        items = json.loads((self.work / "items.json").read_text())
        sprites = moving.drawings(items, held_out=True)
        for at in range(count):
            rng = np.random.default_rng([at, 99, zlib.crc32(self.part.encode())])
            chosen = rng.integers(len(self.pictures))
            some = [sprites[i] for i in rng.integers(len(sprites), size=6)]
            opened = [(Image.open(self.work / "pictures" / item["picture"]), noun) for item, noun in some]
            words = plain(self.captions[chosen][0])
            if len({noun for _, noun in opened}) > 1:
                yield moving.clip(rng, [(self.pictures[chosen], words)], opened)

    def moved(self) -> None:
        """Clips: what moves and which way, both in the caption; questions."""
        both, asked = [], []
        for frames, facts in self.clips():
            clip = self.model.encode_video(frames)
            if facts["kind"] in ("move", "cross"):
                caption = self.model.caption(clip)[0]
                parts = [(set(tokens(part)), part) for part in caption.split(" and ")]
                told = [any(noun in words and moving.FROM[way] in part for words, part in parts)
                        for noun, way in zip(facts["nouns"], facts["ways"], strict=True)]  # fmt: skip
                both.append(all(told))
                if len(both) <= 5:
                    print("  ", caption, "|", facts["captions"][0])
            questions = [(q, a) for q, a in facts["questions"] if "which way" in q]
            if questions:
                answers = self.model.answer(clip, [q for q, _ in questions])
                asked += [mine == a for mine, (_, a) in zip(answers, questions, strict=True)]
        self.show("clips: all that moves and which way, in the caption", both)
        self.show("clips: which way, asked", asked)


def log_odds(probabilities: np.ndarray) -> np.ndarray:
    p = np.clip(probabilities.astype(np.float64), 1e-9, 1 - 1e-9)
    return np.log(p / (1 - p))


def colours(path: Path) -> int:
    """How many a picture has, of six bits each, where it is opaque."""
    pixels = np.asarray(Image.open(path).convert("RGBA"))
    return len(np.unique((pixels[pixels[..., 3] > 250][:, :3].astype(np.int64) // 4) @ np.array([65536, 256, 1])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--part", choices=("choose", "report"), default="choose")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--fold", type=int, help="of sounds, that the training left out")
    parser.add_argument(
        "--pictures", type=Path, help="a folder of scikit-image's, matplotlib's, tuxpaint's pictures, and CLDR"
    )
    options = parser.parse_args()
    model = bvl.AutoModel.from_pretrained(options.model, dtype=options.dtype)
    judge = Judge(options.data, options.work, model, options.part)
    figures: dict[str, Callable[[], None]] = {
        "retrieval": judge.retrieval, "captions": judge.written, "rooms": judge.rooms, "made": judge.made,
        "matching": judge.matching, "heard": judge.heard, "real": lambda: judge.real(options.fold),
        "narrated": lambda: judge.narrated(options.fold), "clips": judge.moved, "drawings": judge.drawn, "strange": lambda: judge.strange(options.pictures),
        "languages": lambda: judge.languages(options.pictures),
    }  # fmt: skip
    if options.fold is None:
        del figures["real"], figures["narrated"]
    if options.pictures is None:
        del figures["strange"], figures["languages"]
    for name in options.only or figures:
        figures[name]()


if __name__ == "__main__":
    main()
