"""From texts to rows of ids: the options of a tokenizer's call, truncation, padding, and what the call returns.

Truncation and padding are done here and not by settings of the backend, so that one tokenizer serves many threads.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from ..outputs import BatchFeature, check_count, from_numpy, to_numpy
from .vocabularies import UNBOUNDED, library_errors

__all__ = ["FIELDS", "BatchEncoding", "TextOptions", "as_tensors", "checked_ids", "encoded", "items_of",
           "lists_of", "padded", "prefixed", "warn_caller", "width_of", "without_blanks"]  # fmt: skip

MOST_PADDED = 1 << 20  # tokens of a text
STRATEGIES = ("longest_first", "only_first", "only_second")
# what an encoding of the library holds, by the names of a call's fields
FIELDS = {
    "input_ids": "ids",
    "token_type_ids": "type_ids",
    "attention_mask": "attention_mask",
    "special_tokens_mask": "special_tokens_mask",
    "offset_mapping": "offsets",
}
# as sentence pieces and word pieces leave them: transformers' list
SPACES = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)
FILL = {"token_type_ids": 0, "attention_mask": 0, "special_tokens_mask": 1, "offset_mapping": (0, 0)}


# what an encoding is made of, and what its state calls that
STATE = {name: name for name in ("ids", "type_ids", "tokens", "offsets", "special_tokens_mask", "attention_mask")} | {
    "word_ids": "words"
}


class Span(NamedTuple):
    """Where something begins, and what comes after it."""

    start: int
    end: int


class BatchEncoding(BatchFeature):
    """What a tokenizer returns: fields by name, and by number the library's own encodings, where words and characters
    of each text can be found."""

    def __init__(self, fields: dict[str, Any], encodings: list[Any] | None = None):
        super().__init__(fields)
        self.__dict__["encodings"] = encodings

    def __getitem__(self, key: str | int | slice) -> Any:
        if isinstance(key, str):
            return dict.__getitem__(self, key)
        if isinstance(key, slice):
            return {name: value[key] for name, value in self.items()}
        if self.encodings is None:
            raise KeyError("indexing by number needs the tokenizer's encodings, which a padded or merged result lacks")
        return self.encodings[key]

    def tokens(self, batch_index: int = 0) -> list[str]:
        """Tokens of one text."""
        return self[batch_index].tokens

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """Which word each token of one text is of."""
        return self[batch_index].word_ids

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """Which text of a pair each token is of."""
        return self[batch_index].sequence_ids

    def token_to_sequence(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """Which text of a pair a token is of; of one text, or of text `batch_or_token_index`."""
        return self._at(batch_or_token_index, token_index, "token_to_sequence")

    def token_to_word(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """The word a token is of."""
        word = self._at(batch_or_token_index, token_index, "token_to_word")
        return None if word is None else word if isinstance(word, int) else word[1]

    def token_to_chars(self, batch_or_token_index: int, token_index: int | None = None) -> Span | None:
        """Where the characters of a token begin and end."""
        span = self._at(batch_or_token_index, token_index, "token_to_chars")
        return None if span is None else Span(*(span if isinstance(span[0], int) else span[1]))

    def char_to_token(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """The token that holds a character."""
        return self._at(batch_or_char_index, char_index, "char_to_token", sequence_index)

    def char_to_word(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """The word that holds a character."""
        return self._at(batch_or_char_index, char_index, "char_to_word", sequence_index)

    def word_to_tokens(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> Span | None:
        """The first token of a word and the one after its last."""
        span = self._at(batch_or_word_index, word_index, "word_to_tokens", sequence_index)
        return None if span is None else Span(*span)

    def word_to_chars(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> Span | None:
        """Where the characters of a word begin and end."""
        span = self._at(batch_or_word_index, word_index, "word_to_chars", sequence_index)
        return None if span is None else Span(*span)

    def _at(self, first: int, second: int | None, name: str, *more: int) -> Any:
        """What the library says of place `second` of text `first`, or of place `first` of the only one."""
        text, place = (0, first) if second is None else (first, second)
        encoding = self[text]
        return getattr(encoding, name)(place + len(encoding.ids) if place < 0 and "token_to" in name else place, *more)


@dataclass(frozen=True)
class TextOptions:
    """Options of one call, checked."""

    add_special_tokens: bool = True
    padding: str | None = None  # "longest", "max_length"
    truncation: str | None = None  # one of STRATEGIES
    max_length: int | None = None
    stride: int = 0
    is_split_into_words: bool = False
    pad_to_multiple_of: int | None = None
    padding_side: str = "right"
    overflow: bool = False

    @classmethod
    def of(
        cls,
        padding: Any,
        truncation: Any,
        max_length: Any,
        stride: Any,
        pad_to_multiple_of: Any,
        padding_side: Any,
        model_max_length: int,
        **flags: bool,
    ) -> TextOptions:
        """From the arguments of a call, with transformers' meaning of what is not given. ValueError names one that
        makes no sense."""
        for name, value in (("max_length", max_length), ("pad_to_multiple_of", pad_to_multiple_of)):
            if value is not None:
                check_count(name, value)
        if type(stride) is not int or stride < 0:
            raise ValueError(f"stride: found {stride!r}, expected a whole number from 0")
        padding, truncation = getattr(padding, "value", padding), getattr(truncation, "value", truncation)
        if padding not in (True, False, None, "longest", "max_length", "do_not_pad"):
            raise ValueError(f"padding: found {padding!r}, expected True, False, 'longest' or 'max_length'")
        if truncation not in (True, False, None, *STRATEGIES, "do_not_truncate"):
            raise ValueError(
                f"truncation: found {truncation!r}, expected True, False or one of {', '.join(STRATEGIES)}"
            )
        if padding_side not in ("left", "right"):
            raise ValueError(f"padding_side: found {padding_side!r}, expected 'left' or 'right'")
        pads = {True: "longest", "longest": "longest", "max_length": "max_length"}.get(padding)
        if truncation is None and max_length is not None and pads is None:
            truncation = True
        cuts = STRATEGIES[0] if truncation is True else truncation if truncation in STRATEGIES else None
        if max_length is None:
            bounded = model_max_length < UNBOUNDED
            pads = None if pads == "max_length" and not bounded else pads
            cuts = cuts if bounded else None
            max_length = model_max_length if bounded and (cuts or pads == "max_length") else None
        if cuts and pads and pad_to_multiple_of and max_length % pad_to_multiple_of:
            raise ValueError(
                f"max_length: found {max_length}, expected a multiple of pad_to_multiple_of, {pad_to_multiple_of}"
            )
        return cls(padding=pads, truncation=cuts, max_length=max_length, stride=stride,
                   pad_to_multiple_of=pad_to_multiple_of, padding_side=padding_side, **flags)  # fmt: skip


def _clean(text: str) -> str:
    """Lone surrogates cannot be encoded: they become the replacement character."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _one(value: Any, split: bool, name: str) -> Any:
    """A text, or the words of one that is split."""
    if split:
        if not isinstance(value, list | tuple) or not all(isinstance(word, str) for word in value):
            raise TypeError(f"{name}: found {type(value).__name__}, expected a list of words")
        return [_clean(word) for word in value]
    if not isinstance(value, str):
        raise TypeError(f"{name}: found {type(value).__name__}, expected str")
    return _clean(value)


def items_of(text: Any, text_pair: Any, split: bool) -> tuple[list[Any], bool]:
    """What the library encodes, a text or a pair each, and whether it is a single one. TypeError names what is no
    text."""
    if not isinstance(text, Iterable) or isinstance(text, bytes | dict):
        raise TypeError(f"text: found {type(text).__name__}, expected a text or a list of texts")
    text = text if isinstance(text, str | list | tuple) else list(text)
    words = split and not (text and isinstance(text[0], list | tuple))
    single = isinstance(text, str) or words
    texts = [text] if single else list(text)
    if text_pair is not None:
        others = [text_pair] if single else list(text_pair)
        if isinstance(text_pair, str) != isinstance(text, str) or len(others) != len(texts):
            count = "one text" if isinstance(text_pair, str) else f"{len(others)} texts"
            raise ValueError(f"text_pair: found {count}, expected as many as text")
        texts = list(zip(texts, others, strict=True))
    items = []
    for i, item in enumerate(texts):
        if type(item) is str and not split:
            items.append(item if item.isascii() else _clean(item))
            continue
        pair = (isinstance(item, tuple) and len(item) == 2) or (isinstance(item, list) and len(item) == 2 and not split)
        parts = item if pair and not isinstance(item, str) else (item,)
        made = tuple(_one(part, split, f"text {i}") for part in parts)
        items.append(made if len(made) == 2 else made[0])
    return items, single


def prefixed(item: Any, prefix: str) -> Any:
    """A text, a pair or words with a character in front of each text; the text's own of that kind are spaces."""
    if isinstance(item, tuple):
        return tuple(prefixed(part, prefix) for part in item)
    if isinstance(item, list):
        return [prefixed(word, prefix) for word in item]
    return prefix + item.replace(prefix, " ")


def encoded(backend: Any, items: list[Any], options: TextOptions, side: str) -> list[Any]:
    """The library's encodings; those that are too long are cut on that side."""
    if not items:
        return []
    special, split = options.add_special_tokens, options.is_split_into_words
    with library_errors("text: the tokenizer cannot encode it"):
        encodings = backend.encode_batch(items, add_special_tokens=special, is_pretokenized=split)
        if not options.truncation:
            return encodings
        most, frame = options.max_length, None
        for i, (item, encoding) in enumerate(zip(items, encodings, strict=True)):
            if len(encoding) <= most:
                continue
            if options.overflow or isinstance(item, tuple):
                encodings[i] = _truncated(backend, item, options, side)
                continue
            frame = frame or _frame(backend, encoding, options)  # of every text the same
            encodings[i] = Cut(encoding, *frame, most - sum(frame), side)
        return encodings


def _truncated(backend: Any, item: Any, options: TextOptions, side: str) -> Any:
    """One text or pair of at most max_length tokens, special ones kept; what was cut off overflows into further
    encodings, which repeat `stride` tokens."""
    parts = item if isinstance(item, tuple) else (item,)
    split, special = options.is_split_into_words, options.add_special_tokens
    room = _room(options, backend.num_special_tokens_to_add(len(parts) == 2) if special else 0)
    bare = [backend.encode(part, add_special_tokens=False, is_pretokenized=split) for part in parts]
    stride = min(options.stride, max(0, room - 1)) if options.overflow else 0
    lengths = _shares([len(encoding.ids) for encoding in bare], room, options.truncation)
    for i, (part, length) in enumerate(zip(bare, lengths, strict=True)):
        if length < len(part.ids) and options.overflow:
            part.truncate(length, stride=stride if length > stride else 0, direction=side)
        elif length < len(part.ids):
            bare[i] = Cut(part, 0, 0, length, side).library
    return backend.post_process(*bare, *[None] * (2 - len(bare)), special)


def _room(options: TextOptions, frame: int) -> int:
    """Tokens beside so many special ones. ValueError where there is no room for these."""
    room = options.max_length - frame
    if room < 0 or (room == 0 and frame == 0):
        raise ValueError(f"max_length: found {options.max_length}, expected room for {frame} special tokens")
    return room


def _frame(backend: Any, encoding: Any, options: TextOptions) -> tuple[int, int]:
    """How many special tokens stand before and after a text."""
    frame = backend.num_special_tokens_to_add(False) if options.add_special_tokens else 0
    _room(options, frame)
    if not frame:
        return 0, 0
    short = backend.encode("a").special_tokens_mask  # of a long text it is as long
    mask = short if 0 in short else encoding.special_tokens_mask
    return mask.index(0), frame - mask.index(0)


class Cut:
    """Some of the tokens of an encoding: `head` and `tail` special ones, and between them `room` of the others. Fields
    are read from it; what else the library tells of an encoding, from one of these tokens alone.

    The library's own `truncate` keeps all others beside, piece by piece, and puts every piece of one text together with
    every one of the other where a pair is joined.
    """

    overflowing: tuple[Any, ...] = ()

    def __init__(self, encoding: Any, head: int, tail: int, room: int, side: str):
        count = len(encoding.ids)
        begin = count - tail - room if side == "left" else head
        self.parts = slice(head), slice(begin, begin + room), slice(count - tail, count)
        self.encoding, self.sequence = encoding, {"start": head, "end": head + room}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name not in STATE:
            return getattr(self.library, name)
        values, (head, kept, tail) = getattr(self.encoding, name), self.parts
        return values[head] + values[kept] + values[tail]

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def library(self) -> Any:
        """An encoding of these tokens."""
        state = {STATE[name]: getattr(self, name) for name in STATE}
        made = type(self.encoding)()
        made.__setstate__(json.dumps(state | {"overflowing": [], "sequence_ranges": {"0": self.sequence}}).encode())
        return made


def _shares(counts: list[int], room: int, strategy: str) -> list[int]:
    """Tokens that each text of a pair keeps, by the library's own rules."""
    if len(counts) == 1:
        return [room] if strategy != "only_second" else counts
    if strategy == STRATEGIES[0]:
        less, more = sorted(counts)
        more = less if less > room else max(less, room - less)
        if less + more > room:
            less, more = room // 2, room // 2 + room % 2
        return [less, more] if counts[0] <= counts[1] else [more, less]
    at = 0 if strategy == "only_first" else 1
    kept = counts[at] - max(0, sum(counts) - room)
    if kept <= 0:
        raise ValueError(
            f"truncation={strategy!r}: found texts of {counts} tokens, expected that one to hold what is cut"
        )
    return [kept if i == at else count for i, count in enumerate(counts)]


def padded(
    fields: dict[str, list[Any]], width: int, pad_id: int | None, side: str, name: str = "input_ids"
) -> dict[str, list[Any]]:
    """Rows filled up to a width; a field that has nothing to be filled with stays."""
    if width > MOST_PADDED:
        raise ValueError(f"padding to {width} tokens: expected at most {MOST_PADDED}")
    gaps = [max(0, width - len(row)) for row in fields[name]]
    filled = {}
    for field, rows in fields.items():
        fill = pad_id if field == name else FILL.get(field)
        if fill is None:
            filled[field] = rows
            continue
        filled[field] = [
            ([fill] * gap + row if side == "left" else row + [fill] * gap) if gap else row
            for row, gap in zip(rows, gaps, strict=True)
        ]
    return filled


def as_tensors(fields: dict[str, Any], kind: str) -> dict[str, Any]:
    """Rows of numbers as arrays int64, "np" or "pt". ValueError when lengths differ."""
    kind = getattr(kind, "value", kind)
    if "input_ids" in fields and len({len(row) for row in fields["input_ids"]}) > 1:
        raise ValueError("texts of different lengths do not make a tensor: pass padding=True (and truncation=True)")
    return {name: from_numpy(np.array(rows, dtype=np.int64), kind) for name, rows in fields.items()}


def width_of(rows: list[list[int]], options: TextOptions, exact: int | None, warn: Callable[[str], None]) -> int:
    """How wide rows become; `exact` is the length of training where padding means that."""
    if options.padding is None:
        return 0
    width = options.max_length if options.padding == "max_length" else max(map(len, rows), default=0)
    if exact is not None and options.padding == "longest":
        if width < exact:
            warn(
                f"this model was trained on texts padded to {exact} tokens: padding=True pads to that, where "
                "transformers pads to the longest and gives poor results; padding='longest' gives the same"
            )
        width = exact
    step = options.pad_to_multiple_of or 1
    return -(-width // step) * step


def warn_caller(message: str) -> None:
    """A warning at the caller's own line, outside this package: each such line warns once."""
    import sys

    frame, level = sys._getframe(1), 1
    package = __name__.split(".")[0]
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] == package:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level + 1)


def lists_of(values: Any) -> Any:
    """Numbers of an array or tensor as lists."""
    if isinstance(values, list | tuple):
        return [
            lists_of(value) if hasattr(value, "shape") or isinstance(value, list | tuple) else value for value in values
        ]
    array = to_numpy(values) if hasattr(values, "shape") else values
    return array.tolist() if isinstance(array, np.ndarray | np.generic) else list(array)


def checked_ids(ids: Iterable[Any]) -> list[int]:
    numbers = [int(i) for i in ids]
    if wrong := [i for i in numbers if not 0 <= i < 1 << 32]:
        raise ValueError(f"ids: found {wrong[0]}, expected token ids from 0")
    return numbers


def without_blanks(text: str) -> str:
    """Text without the blanks before punctuation that word pieces leave."""
    for blank, plain in SPACES:
        text = text.replace(blank, plain)
    return text
