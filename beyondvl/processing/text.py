"""Tokenizers: the `tokenizers` library under transformers' call, built from whatever files a checkpoint holds.

tokenizer.json is used as it is; vocab.json + merges.txt (CLIP), vocab.txt (BERT) and spiece.model (SigLIP) are
assembled in vocabularies.py. Truncation and padding are done here, so that one tokenizer serves many threads with
different settings.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..config import Config, read_json
from ..errors import ConfigError
from ..hub import hub_options, resolve
from ..outputs import BatchFeature, check_count, from_numpy
from .vocabularies import SPECIAL, build_backend, library_errors, special_tokens

__all__ = ["AutoTokenizer", "Tokenizer"]

MOST_PADDED = 1 << 20  # tokens of a text
UNBOUNDED = 1 << 30  # transformers writes 1e30 where a tokenizer has no limit


class Tokenizer:
    """`tokenizer(text) -> {"input_ids", "attention_mask", ...}` as in transformers; thread-safe."""

    part: ClassVar[str] = "tokenizer"  # what it is of a processor

    def __init__(
        self,
        backend: Any,
        *,
        model_max_length: int = UNBOUNDED,
        padding_side: str = "right",
        truncation_side: str = "right",
        special_tokens: dict[str, str] | None = None,
        model_input_names: tuple[str, ...] = ("input_ids", "attention_mask"),
        exact_length: bool = False,
    ):
        self.backend = backend
        self.model_max_length = model_max_length
        self.padding_side, self.truncation_side = padding_side, truncation_side
        self.special_tokens = special_tokens or {}
        self.model_input_names = model_input_names
        self.exact_length = exact_length  # trained at one padded length (SigLIP): padding=True means that length
        backend.no_padding()
        backend.no_truncation()
        self.pad_token_id = self._id("pad_token", 0)
        self.unk_token_id = self._id("unk_token", None)
        self._prefix, self._suffix = self._frame()

    def __getattr__(self, name: str) -> Any:
        """bos_token, eos_token_id and the like."""
        kind = name.removesuffix("_id")
        if kind in SPECIAL:
            token = self.special_tokens.get(kind)
            return token if kind == name or token is None else self.backend.token_to_id(token)
        raise AttributeError(f"Tokenizer has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        """A special token may be set, pad_token for example. ValueError where it is not in the vocabulary."""
        if name not in SPECIAL:
            super().__setattr__(name, value)
            return
        if value is not None and self.backend.token_to_id(value) is None:
            raise ValueError(f"{name}: found {value!r}, expected a token of the vocabulary")
        self.special_tokens = self.special_tokens | {name: value}
        self.pad_token_id, self.unk_token_id = self._id("pad_token", 0), self._id("unk_token", None)

    def _id(self, kind: str, default: int | None) -> int | None:
        token = self.special_tokens.get(kind)
        found = self.backend.token_to_id(token) if token is not None else None
        return default if found is None else found

    def _frame(self) -> tuple[int, int]:
        """How many special tokens come before and after a text."""
        with library_errors("tokenizer: cannot encode 'a'"):
            total = self.backend.num_special_tokens_to_add(False)
            framed = self.backend.encode("a").ids
            bare = self.backend.encode("a", add_special_tokens=False).ids
        before = next((n for n in range(total + 1) if framed[n : n + len(bare)] == bare), 0)
        return before, total - before

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike, **kwargs: Any) -> Tokenizer:
        """Of a folder, a hub id or "beyond-vl-model". Raises ConfigError when no tokenizer files are there."""
        hub = hub_options(kwargs)
        folder = resolve(name, weights=False, **hub)
        settings = _settings(folder)
        backend, defaults = build_backend(folder, settings)
        fields = {
            "model_max_length": _max_length(settings, defaults),
            "padding_side": settings.choice("padding_side", defaults.padding_side, ("left", "right")),
            "truncation_side": settings.choice("truncation_side", "right", ("left", "right")),
            "special_tokens": special_tokens(folder, settings, defaults),
            "model_input_names": _input_names(settings, defaults),
            "exact_length": defaults.exact_length,
        }
        return cls(backend, **(fields | kwargs))

    @property
    def vocab_size(self) -> int:
        return self.backend.get_vocab_size(with_added_tokens=False)

    def __len__(self) -> int:
        return self.backend.get_vocab_size(with_added_tokens=True)

    def get_vocab(self) -> dict[str, int]:
        return self.backend.get_vocab(with_added_tokens=True)

    def tokenize(self, text: str) -> list[str]:
        return self._encoded([text], False)[0].tokens

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return self._encoded([text], add_special_tokens)[0].ids

    def _encoded(self, text: str | list[str], add_special_tokens: bool) -> list[Any]:
        """What the library makes of a text or each of a list."""
        texts = _texts(text)
        with library_errors("text: the tokenizer cannot encode it"):
            return self.backend.encode_batch(texts, add_special_tokens=add_special_tokens)

    def convert_tokens_to_ids(self, tokens: str | list[str]) -> Any:
        if isinstance(tokens, str):
            found = self.backend.token_to_id(tokens)
            return self.unk_token_id if found is None else found
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        if isinstance(ids, int | np.integer):
            return self.backend.id_to_token(_ids([ids])[0])
        return [self.backend.id_to_token(i) for i in _ids(ids)]

    def decode(self, ids: Any, skip_special_tokens: bool = False) -> str | list[str]:
        """The text of ids, or of each row of them."""
        if not isinstance(ids, int | np.integer) and len(ids) and np.ndim(ids[0]):
            return self.batch_decode(ids, skip_special_tokens)
        text = self.backend.decode(_ids(np.asarray(ids).reshape(-1)), skip_special_tokens=skip_special_tokens)
        suffix = getattr(self.backend.model, "end_of_word_suffix", None)
        return text.replace(suffix, " ").strip() if suffix else text

    def batch_decode(self, batch: Any, skip_special_tokens: bool = False) -> list[str]:
        return [self.decode(ids, skip_special_tokens) for ids in batch]

    def __call__(
        self,
        text: str | list[str],
        *,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        return_tensors: str | None = None,
        add_special_tokens: bool = True,
        **kwargs: Any,
    ) -> BatchFeature:
        """Token ids of one text or a list.

        Args:
            padding: False, True or "longest", or "max_length" (to `max_length`, else the model's length).
            truncation: cut at `max_length`, else the model's length; special tokens are kept. Without it and without
                padding, a `max_length` cuts too, as in transformers.
            return_tensors: "np", "pt" or None for lists.
            return_attention_mask, return_token_type_ids: True or False; None as the model takes them.

        Raises ValueError for an empty list, for lengths that differ when tensors are asked for without padding, and
        TypeError for anything that is not text.
        """
        names = self._names(kwargs)
        if max_length is not None:
            check_count("max_length", max_length)
        truncation = _checked_truncation(truncation, padding, max_length)
        encodings = self._encoded(text, add_special_tokens)
        ids = [self._truncate(e.ids, truncation, max_length, add_special_tokens) for e in encodings]
        self._warn(ids, truncation, add_special_tokens)
        width = self._width(ids, padding, max_length)
        fields = self._pad(ids, width, names)
        if isinstance(text, str) and return_tensors is None:
            return BatchFeature({name: rows[0] for name, rows in fields.items()})
        return BatchFeature(fields if return_tensors is None else as_tensors(fields, return_tensors))

    def _names(self, kwargs: dict[str, Any]) -> tuple[str, ...]:
        """Fields to return; TypeError for an unknown argument."""
        names = dict.fromkeys(("input_ids", *self.model_input_names))
        for name, value in kwargs.items():
            field = name.removeprefix("return_")
            if name not in ("return_attention_mask", "return_token_type_ids") or value not in (None, True, False):
                raise TypeError(f"unexpected argument {name}={value!r}")
            if value is False:
                names.pop(field, None)
            elif value:
                names[field] = None
        return tuple(names)

    def _truncate(self, ids: list[int], truncation: bool, max_length: int | None, special: bool) -> list[int]:
        if not truncation:
            return ids
        most = max_length or self.model_max_length
        if len(ids) <= most:
            return ids
        head, tail = (self._prefix, self._suffix) if special else (0, 0)
        if most < head + tail:
            raise ValueError(f"max_length: found {most}, expected room for {head + tail} special tokens")
        text, room = ids[head : len(ids) - tail], most - head - tail
        text = text[len(text) - room :] if self.truncation_side == "left" else text[:room]
        return ids[:head] + text + ids[len(ids) - tail :]

    def _width(self, ids: list[list[int]], padding: bool | str, max_length: int | None) -> int:
        if padding == "max_length":
            width = max_length or self.model_max_length
            if width >= UNBOUNDED:
                raise ValueError("padding='max_length': this tokenizer has no length of its own, pass max_length")
            return width
        if padding is True and self.exact_length:
            if max(map(len, ids)) < self.model_max_length:
                warnings.warn(
                    f"this model was trained on texts padded to {self.model_max_length} tokens: padding=True pads to "
                    "that, where transformers pads to the longest and gives poor results; "
                    "padding='longest' gives what transformers gives",
                    stacklevel=_caller_level(),
                )
            return self.model_max_length
        if padding in (True, "longest"):
            return max(map(len, ids))
        if padding in (False, None, "do_not_pad"):
            return 0
        raise ValueError(f"padding: found {padding!r}, expected True, False, 'longest' or 'max_length'")

    def _pad(self, ids: list[list[int]], width: int, names: tuple[str, ...]) -> dict[str, list[list[int]]]:
        if width > MOST_PADDED:
            raise ValueError(f"padding to {width} tokens: expected at most {MOST_PADDED}")
        fields: dict[str, list[list[int]]] = {name: [] for name in names}
        for row in ids:
            gap = max(0, width - len(row))
            values = {
                "input_ids": (row, self.pad_token_id),
                "attention_mask": ([1] * len(row), 0),
                "token_type_ids": ([0] * len(row), 0),
            }
            for name, rows in fields.items():
                kept, pad = values[name]
                rows.append([pad] * gap + kept if self.padding_side == "left" else kept + [pad] * gap)
        return fields

    def _warn(self, ids: list[list[int]], truncation: Any, special: bool) -> None:
        longest = max(map(len, ids))
        if not truncation and longest > self.model_max_length:
            warnings.warn(
                f"a text of {longest} tokens is longer than the model's {self.model_max_length}: pass truncation=True",
                stacklevel=_caller_level(),
            )
        if self.unk_token_id is None or self.special_tokens.get("unk_token") == self.special_tokens.get("eos_token"):
            return
        frame = self._prefix + self._suffix if special else 0
        unreadable = [i for i, row in enumerate(ids) if 2 * row.count(self.unk_token_id) > max(1, len(row) - frame)]
        if unreadable:
            warnings.warn(
                f"text {unreadable[0]} is mostly unknown to this model's vocabulary ({len(unreadable)} of {len(ids)} "
                "texts): its embedding means little",
                stacklevel=_caller_level(),
            )


def as_tensors(fields: dict[str, list[list[int]]], kind: str) -> dict[str, Any]:
    """Rows of ids as arrays (n, length) int64, "np" or "pt". ValueError when lengths differ."""
    if len({len(row) for row in fields["input_ids"]}) > 1:
        raise ValueError("texts of different lengths do not make a tensor: pass padding=True (and truncation=True)")
    return {name: from_numpy(np.array(rows, dtype=np.int64), kind) for name, rows in fields.items()}


class AutoTokenizer:
    """`AutoTokenizer.from_pretrained(name)` gives a Tokenizer."""

    from_pretrained = Tokenizer.from_pretrained


def _caller_level() -> int:
    """A stacklevel that points out of this package: each line of a caller's own code warns once."""
    import sys

    frame, level = sys._getframe(1), 1
    package = __name__.split(".")[0]
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] == package:
        frame, level = frame.f_back, level + 1
    return level


def _checked_truncation(truncation: Any, padding: Any, max_length: int | None) -> bool:
    """Whether to cut."""
    if truncation is None:
        return max_length is not None and padding in (False, None, "do_not_pad")
    if truncation not in (True, False, "longest_first", "only_first", "do_not_truncate"):
        raise ValueError(f"truncation: found {truncation!r}, expected True or False")
    return truncation not in (False, "do_not_truncate")


def _ids(ids: Iterable[Any]) -> list[int]:
    found = [int(i) for i in ids]
    if wrong := [i for i in found if not 0 <= i < 1 << 32]:
        raise ValueError(f"ids: found {wrong[0]}, expected token ids from 0")
    return found


def _texts(text: Any) -> list[str]:
    if not isinstance(text, Iterable) or isinstance(text, bytes):
        raise TypeError(f"text: found {type(text).__name__}, expected a text or a list of texts")
    texts = [text] if isinstance(text, str) else list(text)
    if not texts:
        raise ValueError("text: the list is empty, expected at least one text")
    for i, item in enumerate(texts):
        if not isinstance(item, str):
            raise TypeError(f"text {i}: found {type(item).__name__}, expected str")
    return [_clean(item) for item in texts]


def _clean(text: str) -> str:
    """Lone surrogates cannot be encoded: they become the replacement character."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _settings(folder: Path) -> Config:
    path = folder / "tokenizer_config.json"
    return Config(read_json(path) if path.exists() else {}, path.name)


def _max_length(settings: Config, defaults: Any) -> int:
    value = settings.get("model_max_length")
    if value is None:
        return defaults.model_max_length or UNBOUNDED
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 1:
        raise ConfigError(f"tokenizer_config.json: model_max_length: found {value!r}, expected a positive number")
    if value >= UNBOUNDED:
        return defaults.model_max_length if defaults.exact_length else UNBOUNDED
    return int(value)


def _input_names(settings: Config, defaults: Any) -> tuple[str, ...]:
    names = settings.get("model_input_names") or defaults.model_input_names
    known = ("input_ids", "attention_mask", "token_type_ids")
    if not isinstance(names, list | tuple) or not all(name in known for name in names):
        raise ConfigError(
            f"tokenizer_config.json: model_input_names: found {names!r}, expected some of {', '.join(known)}"
        )
    return tuple(names)
