"""What the formers and the decoder learn from: batches of pictures, clips, sounds and words, out of what the steps before
wrote. A batch is a dictionary of tensors and lists; joint.py says what is made of it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from captioned import Captioned, joined
from drawings import Drawings
from imagined import Imagined, neighbours
from splits import Archive, daquar, flickr8k
from words import Read, Vocabulary, captions, class_names, plain, room_questions

HEARD = {
    "dog bark": ["a dog is barking", "a dog barks", "the barking of a dog"],
    "rain": ["rain is falling", "it is raining", "the sound of rain"],
    "sea waves": ["waves are breaking on the shore", "the sea is roaring", "the sound of sea waves"],
    "baby cry": ["a baby is crying", "a baby cries", "the crying of a baby"],
    "clock tick": ["a clock is ticking", "a clock ticks", "the ticking of a clock"],
    "person sneeze": ["somebody is sneezing", "a person sneezes", "the sound of a sneeze"],
    "helicopter": ["a helicopter is flying", "a helicopter flies by", "the sound of a helicopter"],
    "chainsaw": ["a chainsaw is running", "somebody is sawing with a chainsaw", "the sound of a chainsaw"],
    "rooster": ["a rooster is crowing", "a rooster crows", "the crowing of a rooster"],
    "fire crackling": ["a fire is crackling", "a fire burns and crackles", "the crackling of a fire"],
}
VOICE = ["what does the voice say?", "what is said?", "what do they say?"]
SOUND = ["what do you hear?", "what is that sound?", "what is making the sound?"]
NARRATED = ["{} while {}", "{} and {}"]
ANSWERS = ["yes", "no", "a voice says"]  # beside what captions say


class Pictures:
    """States [views, n, 81, 1280], class scores and mean rows of one set; `embeds` [views, n, 384] where they are not to
    be made of these."""

    def __init__(self, folder: Path, name: str, embeds: Path | None = None):
        self.arrays = {
            what: np.load(folder / f"{name}{part}.npy", mmap_mode="r")
            for what, part in (("states", ""), ("classes", "-classes"), ("means", "-mean"))
        }
        if embeds is not None:
            self.arrays["embeds"] = np.load(embeds)

    @property
    def views(self) -> int:
        return len(self.arrays["states"])

    def take(self, at: Sequence[int], views: Sequence[int]) -> dict[str, torch.Tensor]:
        """Those pictures, a view of each."""
        places = list(zip(views, at, strict=True))
        return {
            name: torch.from_numpy(np.stack([array[place] for place in places])).float()
            for name, array in self.arrays.items()
        }


class Clips:
    """Cells [n, 8, 9, 1280], class scores and mean rows of frames, and what is said of each clip."""

    def __init__(self, folder: Path, name: str):
        self.cells, self.classes, self.means = (
            np.load(folder / f"{name}{part}.npy", mmap_mode="r") for part in ("", "-classes", "-mean")
        )
        self.facts = json.loads((folder / f"{name}.json").read_text())

    def take(self, at: Sequence[int]) -> dict[str, torch.Tensor]:
        at = np.asarray(at)
        return {
            name: torch.from_numpy(np.array(array[at])).float()
            for name, array in (("cells", self.cells), ("classes", self.classes), ("means", self.means))
        }


class Sounds:
    """Rows of sounds one after another, and what is known of each."""

    def __init__(self, folder: Path, name: str):
        self.rows, self.facts = (
            np.load(folder / f"{name}.npy", mmap_mode="r"),
            json.loads((folder / f"{name}.json").read_text()),
        )

    def take(self, at: Sequence[int]) -> dict[str, torch.Tensor]:
        """States (B, n, columns), filled up, and their mask."""
        parts = [self.rows[f["first"] : f["first"] + f["rows"]] for f in (self.facts[i] for i in at)]
        length = max(map(len, parts))
        out = np.zeros((len(parts), length, self.rows.shape[1]), np.float32)
        mask = np.zeros((len(parts), length), bool)
        for i, part in enumerate(parts):
            out[i, : len(part)], mask[i, : len(part)] = part, True
        return {"heard": torch.from_numpy(out), "heard_mask": torch.from_numpy(mask)}


class Lessons:
    """Every set of the training part: photographs, and captions of COCO with pictures that are imagined. An open set has
    neither Flickr8k nor DAQUAR, whose terms are research: there those that are imagined are all."""

    def __init__(self, data: Path, work: Path, seed: int = 0, fold: int | None = None, open_set: bool = False):
        states, rng = work / "states", np.random.default_rng(seed)
        self.clips = Clips(states, "clips-train")
        taught = [*ANSWERS, *(line for lines in HEARD.values() for line in lines)]
        taught += [plain(text) for f in self.clips.facts for text in [*f["captions"], *(a for _, a in f["questions"])]]
        self.vocabulary = Vocabulary.of(data, work / "vocabulary.json", open_set, taught if open_set else ())
        coco, rooms = captions(data, "coco-val2017"), ()
        vectors = Read.vectors_of(coco, work / "coco.npy")
        pictures = Imagined(work / ("tower" if open_set else "tuned"), vectors, Drawings(work).class_sentences[0])
        self.imagined = Captioned(pictures, neighbours(vectors, coco), rng)
        self.photographs, self.sets = self.imagined, [self.imagined]
        if not open_set:
            with Archive(data / "flickr8k.tar") as archive:
                words = flickr8k(archive)["train"].words
            with Archive(data / "daquar.tar") as archive:
                rooms = daquar(archive)["train"].words
            pictures = Pictures(states, "flickr8k-train", work / "embeds-train.npy")
            self.photographs = Captioned(pictures, words, rng)
            self.rooms = Pictures(states, "daquar-train")
            self.sets.append(self.photographs)
        self.photographs.swap_words(rng)
        self.room_questions = room_questions(rooms)
        self.drawings = Pictures(states, "drawings")
        self.speech, self.real = Sounds(work, "speech-train"), Sounds(work, "esc10")
        self.real_at = [i for i, f in enumerate(self.real.facts) if f["fold"] != fold]
        self.silent = coco + captions(data, "audiocaps") + [plain(name) for name in class_names()]
        self.drawn = self.drawings_by_words(json.loads((work / "items.json").read_text()))
        questions = {q for _, q, _ in self.room_questions} | {q for f in self.clips.facts for q, _ in f["questions"]}
        texts = [text for each in self.sets for text in each.texts()] + sorted(questions | set(VOICE) | set(SOUND))
        texts += [line for lines in HEARD.values() for line in lines]
        self.read = Read.of(texts + [plain(f["text"]) for f in self.speech.facts], work / "read")
        self.silent_vectors = Read.vectors_of(self.silent, work / "silent.npy")

    def drawings_by_words(self, items: list[dict[str, Any]]) -> list[tuple[int, str]]:
        """Drawings of the training part with a caption of words that people use of pictures, and that can be written:
        file names are no captions."""
        said = Counter(
            word
            for text in [*self.silent, *(t for words in self.photographs.captions for t in words)]
            for word in text.split()
        )
        return [
            (i, text)
            for i, item in enumerate(items)
            if item["part"] == "train"
            for text in [
                next((t for t in map(plain, item["captions"]) if t and all(said[w] > 4 for w in t.split())), "")
            ]
            if text and self.vocabulary.writes(text)
        ]

    def drawing_batch(self, rng: np.random.Generator, count: int) -> dict[str, Any]:
        chosen = [self.drawn[i] for i in rng.integers(0, len(self.drawn), count)]
        views = rng.integers(0, self.drawings.views, count)
        return self.drawings.take([i for i, _ in chosen], views) | {"texts": [text for _, text in chosen]}

    def question_batch(self, rng: np.random.Generator, rooms: int, made: int, imagined: int) -> dict[str, Any]:
        """Questions about rooms, never mirrored where they say a side, about imagined pictures and about photographs."""
        batches = []
        if self.room_questions:
            asked = [self.room_questions[i] for i in rng.integers(0, len(self.room_questions), rooms)]
            views = [int(v) if " left" not in q + a and " right" not in q + a else 2 * (int(v) // 2)
                     for v, (_, q, a) in zip(rng.integers(0, self.rooms.views, rooms), asked, strict=True)]  # fmt: skip
            said = {"questions": [q for _, q, _ in asked], "texts": [a for *_, a in asked]}
            batches.append(self.rooms.take([i for i, _, _ in asked], views) | said)
        batches.append(self.imagined.question_batch(rng, imagined))
        return joined([*batches, self.photographs.question_batch(rng, made)])

    def sound_batch(self, rng: np.random.Generator, real: int, spoken: int) -> dict[str, Any]:
        """Real sounds with what is heard, speech with what is said; `asked` of half of them is how one asks for it."""
        first = [self.real_at[i] for i in rng.integers(0, len(self.real_at), real)]
        second = rng.integers(0, len(self.speech.facts), spoken)
        one, two = self.real.take(first), self.speech.take(second)
        length = max(one["heard"].shape[1], two["heard"].shape[1])
        pad = torch.nn.functional.pad
        heard = torch.cat([pad(x["heard"], (0, 0, 0, length - x["heard"].shape[1])) for x in (one, two)])
        mask = torch.cat([pad(x["heard_mask"], (0, length - x["heard_mask"].shape[1])) for x in (one, two)])
        sentences = [str(rng.choice(HEARD[self.real.facts[i]["class"]])) for i in first]
        said = [plain(self.speech.facts[i]["text"]) for i in second]
        questions = [str(rng.choice(SOUND)) for _ in first] + [str(rng.choice(VOICE)) for _ in second]
        return {
            "heard": heard, "heard_mask": mask, "meant": sentences + said, "questions": questions,
            "texts": sentences + [f"a voice says {text}" for text in said], "answers": sentences + said,
            "kinds": torch.tensor([list(HEARD).index(self.real.facts[i]["class"]) for i in first] + [-1] * spoken),
        }  # fmt: skip

    def clip_batch(self, rng: np.random.Generator, count: int, narrated: int) -> dict[str, Any]:
        """Clips with a caption, and a question of each; the last `narrated` have a sound too, which the caption names."""
        at = rng.integers(0, len(self.clips.facts), count)
        facts = [self.clips.facts[i] for i in at]
        texts = [plain(str(rng.choice(f["captions"]))) for f in facts]
        asked = [f["questions"][rng.integers(len(f["questions"]))] for f in facts]
        sounds = self.sound_batch(rng, narrated - narrated // 2, narrated // 2)
        begun = count - narrated
        for i, said in enumerate(sounds["texts"]):
            texts[begun + i] = str(rng.choice(NARRATED)).format(texts[begun + i], said)
        return self.clips.take(at) | {
            "texts": texts, "questions": [q for q, _ in asked], "answers": [plain(a) for _, a in asked],
            "heard": sounds["heard"], "heard_mask": sounds["heard_mask"],
        }  # fmt: skip

    def silent_batch(self, rng: np.random.Generator, count: int) -> dict[str, Any]:
        """Captions without pictures, and their sentence vectors."""
        at = rng.integers(0, len(self.silent), count)
        return {"vectors": self.silent_vectors[torch.from_numpy(at)].float(), "texts": [self.silent[i] for i in at]}
