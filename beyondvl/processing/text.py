"""Tokenizers: the `tokenizers` library under transformers' call, built from whatever files a checkpoint holds (see
vocabularies.py; encoding.py has what a call does)."""

from __future__ import annotations

import json
import os
from typing import Any, ClassVar

import numpy as np

from ..config import Config
from ..families.registry import Family, families, family_of, load_config, processing_of
from ..families.tokens import TOKENIZERS
from ..files import write_aside
from ..folder import Folder
from ..hub import open_folder
from .encoding import (
    FIELDS,
    BatchEncoding,
    TextOptions,
    as_tensors,
    checked_ids,
    encoded,
    items_of,
    lists_of,
    padded,
    prefixed,
    warn_caller,
    width_of,
    without_blanks,
)
from .special_tokens import TokenNames
from .vocabularies import SPECIAL, Vocabulary, input_names_of, max_length_of, read_vocabulary, side_of

__all__ = ["AutoTokenizer", "Tokenizer", "tokenizer_class"]

# options of a call that tokenizer_config.json may set for a processor
CALL_OPTIONS = ("padding", "truncation", "max_length", "padding_side", "add_special_tokens", "stride",
                "pad_to_multiple_of", "return_attention_mask", "return_token_type_ids")  # fmt: skip


READ = FIELDS.keys() - {"attention_mask"}  # out of the library's encodings
NEUTRAL = ("text_pair_target", "tokenizer_kwargs")  # accepted where they are None


class Tokenizer(TokenNames):
    """`tokenizer(text) -> {"input_ids", "attention_mask", ...}` as in transformers; thread-safe.

    `bos_token`, `eos_token_id` and the like are its special tokens; each may be set. `settings` are the fields of
    tokenizer_config.json.
    """

    part: ClassVar[str] = "tokenizer"  # what it is of a processor
    class_name: ClassVar[str | None] = None

    def __init__(self, vocabulary: Vocabulary, settings: Config, **options: Any):
        unknown = sorted(set(options) - OPTIONS)
        if unknown:
            raise TypeError(f"{type(self).__name__}: unexpected arguments: {', '.join(unknown)}")
        kind, fields = vocabulary.kind, settings.updated(Config(options))
        self.backend_tokenizer, self.kind, self.settings = vocabulary.backend, kind, settings
        self.vocabulary, self.init_inputs, self.name_or_path = vocabulary, (), ""
        self.special_tokens, self.extra_special_tokens = dict(vocabulary.special_tokens), list(vocabulary.extra_tokens)
        self.model_max_length = max_length_of(fields, kind)
        self.padding_side = side_of(fields, "padding_side", kind.padding_side if kind else "right")
        self.truncation_side = side_of(fields, "truncation_side", "right")
        self.model_input_names = input_names_of(fields, kind)
        self.clean_up_tokenization_spaces = fields.boolean("clean_up_tokenization_spaces", False)
        self.exact_length = bool(kind and kind.exact_length)  # trained at one padded length: padding=True means that
        self.backend_tokenizer.no_padding()
        self.backend_tokenizer.no_truncation()
        self.add_special_tokens({name: options[name] for name in SPECIAL if options.get(name) is not None})
        self.special_tokens |= {name: None for name in SPECIAL if name in options and options[name] is None}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Tokenizer:
        """Of a folder, a hub id or "beyond-vl-model"; keyword arguments override fields of tokenizer_config.json.
        Raises ConfigError when no tokenizer files are there."""
        folder = open_folder(pretrained_model_name_or_path, kwargs)
        return cls.of_folder(folder, **kwargs)

    @classmethod
    def of_folder(cls, folder: Folder, **options: Any) -> Tokenizer:
        """From the files of a folder."""
        settings = folder.config("tokenizer_config.json")
        way = processing_of(folder)
        if way.tokenizer_config:
            settings = settings.updated(way.tokenizer_config(load_config(folder)))
        vocabulary = read_vocabulary(folder, settings.updated(Config(options)), cls.class_name)
        name = vocabulary.class_name if vocabulary.kind else ""
        chosen = tokenizer_class(name, family_of(folder)) if cls is Tokenizer and name else cls
        made = chosen(vocabulary, settings, **options)
        made.read_files(folder)
        return made

    def read_files(self, folder: Folder) -> None:
        """Takes from its folder what is beside the vocabulary."""
        self.name_or_path = str(folder.path)

    def tokenize(self, text: str, pair: str | None = None, add_special_tokens: bool = False) -> list[str]:
        """The tokens of a text."""
        items, _ = items_of(text, pair, False)
        return self._encodings(items, TextOptions(add_special_tokens=add_special_tokens))[0].tokens

    def encode(self, text: Any, text_pair: Any = None, add_special_tokens: bool = True, **options: Any) -> list[int]:
        """The ids of a text or a pair; `options` as those of a call."""
        return self(text, text_pair, add_special_tokens=add_special_tokens, **options)["input_ids"]

    def _encodings(self, items: list[Any], options: TextOptions) -> list[Any]:
        if self.kind and self.kind.prefix:
            items = [prefixed(item, self.kind.prefix) for item in items]
        return encoded(self.backend_tokenizer, items, options, self.truncation_side)

    def __call__(
        self,
        text: Any = None,
        text_pair: Any = None,
        text_target: Any = None,
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_overflowing_tokens: bool = False,
        verbose: bool = True,
        **returned: Any,
    ) -> BatchEncoding:
        """Token ids of one text or a list.

        Args:
            text_pair: a second text for each; `text_target`: texts whose ids are returned as `labels`.
            padding: False, True or "longest", or "max_length" (to `max_length`, else the model's length).
            truncation: cut at `max_length`, else the model's length; special tokens are kept; of pairs "longest_first"
                (True), "only_first" or "only_second". Without it and without padding, a `max_length` cuts too, as in
                transformers.
            is_split_into_words: texts are lists of words.
            return_tensors: "np", "pt" or None for lists.
            return_overflowing_tokens: what was cut off becomes further rows, repeating `stride` tokens.
            return_attention_mask, return_token_type_ids: True or False; None as the model takes them;
                return_special_tokens_mask, return_offsets_mapping, return_length: True adds them.

        Raises ValueError for lengths that differ when tensors are asked for without padding, or padding without a pad
        token; TypeError for anything that is not text.
        """
        if text_target is not None:
            options = {"padding": padding, "truncation": truncation, "max_length": max_length} | returned
            labels = self(text_target, return_tensors=return_tensors, **options)
            if text is None:
                return labels
        options = TextOptions.of(
            padding, truncation, max_length, stride, pad_to_multiple_of, padding_side or self.padding_side,
            self.model_max_length, add_special_tokens=add_special_tokens, is_split_into_words=is_split_into_words,
            overflow=return_overflowing_tokens,
        )  # fmt: skip
        items, single = items_of(text, text_pair, is_split_into_words)
        if not items and return_tensors is not None:
            raise ValueError("text: the list is empty, expected at least one text")
        encodings = self._encodings(items, options)
        fields, rows = self._fields(encodings, self._names(returned), options)
        if verbose:
            self._warn(fields["input_ids"], truncation, add_special_tokens)
        exact = self.model_max_length if padding is True and self.exact_length else None
        fields = self._padded(fields, options, exact)
        if text_target is not None:
            fields["labels"] = labels["input_ids"]
        if single and return_tensors is None and not return_overflowing_tokens:
            return BatchEncoding({name: values[0] for name, values in fields.items()}, rows)
        return BatchEncoding(fields if return_tensors is None else as_tensors(fields, return_tensors), rows)

    def _fields(self, encodings: list[Any], names: tuple[str, ...], options: TextOptions) -> tuple[dict, list[Any]]:
        """Fields by name, and the encodings in their rows."""
        rows = encodings
        if options.overflow:
            rows = [row for encoding in encodings for row in (encoding, *encoding.overflowing)]
        fields = {name: [getattr(row, FIELDS[name]) for row in rows] for name in names if name in READ}
        if "attention_mask" in names:  # nothing is padded yet
            fields["attention_mask"] = [[1] * len(row) for row in fields["input_ids"]]
        fields = {name: fields[name] for name in names if name in fields}
        if self.kind and self.kind.ends_once and options.add_special_tokens:
            fields = self._ended_once(fields)
        if "length" in names:
            fields["length"] = [len(row) for row in fields["input_ids"]]
        if options.overflow:
            fields["overflow_to_sample_mapping"] = [
                i for i, encoding in enumerate(encodings) for _ in range(1 + len(encoding.overflowing))
            ]
        return fields, rows

    def _ended_once(self, fields: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Without the end token after a text that ends with it."""
        end = self.eos_token_id
        twice = [row[-2:] == [end, end] for row in fields["input_ids"]]
        return {
            name: [row[:-1] if cut else row for row, cut in zip(rows, twice, strict=True)]
            for name, rows in fields.items()
        }

    def _padded(self, fields: dict[str, list[Any]], options: TextOptions, exact: int | None) -> dict[str, list[Any]]:
        if options.padding is None:
            return fields
        if self.pad_token_id is None:
            raise ValueError(
                "padding: this tokenizer has no padding token: set one, for example tokenizer.pad_token = "
                "tokenizer.eos_token"
            )
        width = width_of(fields["input_ids"], options, exact, warn_caller)
        return padded(fields, width, self.pad_token_id, options.padding_side)

    def pad(
        self,
        encoded_inputs: Any,
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Rows of ids ({"input_ids": [...]}, of one text or several, or a list of such) filled up to one length, as
        transformers' data collators do. ValueError where there are no input_ids, or no padding token."""
        if isinstance(encoded_inputs, list | tuple):
            encoded_inputs = {name: [row[name] for row in encoded_inputs] for name in (encoded_inputs or [{}])[0]}
        if "input_ids" not in encoded_inputs:
            raise ValueError(f"encoded_inputs: found {', '.join(encoded_inputs) or 'nothing'}, expected input_ids")
        fields = {
            name: [lists_of(row) for row in rows] if isinstance(rows, list | tuple) else lists_of(rows)
            for name, rows in encoded_inputs.items()
        }
        single = bool(len(fields["input_ids"])) and not isinstance(fields["input_ids"][0], list)
        if single:
            fields = {name: [row] for name, row in fields.items()}
        wanted = "attention_mask" in self.model_input_names if return_attention_mask is None else return_attention_mask
        if wanted and "attention_mask" not in fields:
            fields["attention_mask"] = [[1] * len(row) for row in fields["input_ids"]]
        options = TextOptions.of(
            padding, False, max_length, 0, pad_to_multiple_of, padding_side or self.padding_side, self.model_max_length
        )
        fields = self._padded(fields, options, None)
        if single and return_tensors is None:
            fields = {name: rows[0] for name, rows in fields.items()}
        return BatchEncoding(fields if return_tensors is None else as_tensors(fields, return_tensors))

    def _names(self, returned: dict[str, Any]) -> tuple[str, ...]:
        """Fields to return; TypeError for an unknown argument."""
        names = dict.fromkeys(("input_ids", *self.model_input_names))
        known = {
            f"return_{name}": name for name in ("attention_mask", "token_type_ids", "special_tokens_mask", "length")
        }
        known["return_offsets_mapping"] = "offset_mapping"
        for name, value in returned.items():
            if name in NEUTRAL and value is None:
                continue
            if name not in known or value not in (None, True, False):
                raise TypeError(f"unexpected argument {name}={value!r}")
            if value is False:
                names.pop(known[name], None)
            elif value:
                names[known[name]] = None
        return tuple(names)

    def _warn(self, ids: list[list[int]], truncation: Any, special: bool) -> None:
        longest = max(map(len, ids), default=0)
        if not truncation and longest > self.model_max_length:
            warn_caller(
                f"a text of {longest} tokens is longer than the model's {self.model_max_length}: pass truncation=True"
            )
        unknown = self.unk_token_id
        if unknown is None or self.unk_token == self.eos_token:
            return
        frame = self.num_special_tokens_to_add() if special else 0
        unreadable = [i for i, row in enumerate(ids) if 2 * row.count(unknown) > max(1, len(row) - frame)]
        if unreadable:
            warn_caller(
                f"text {unreadable[0]} is mostly unknown to this model's vocabulary ({len(unreadable)} of {len(ids)} "
                "texts): its embedding means little"
            )

    # ---- ids to text

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> str | list[str]:
        """The text of ids, or of each row of them; `clean_up_tokenization_spaces` takes out the blanks before
        punctuation (None: as the checkpoint says)."""
        if isinstance(token_ids, dict):
            token_ids = token_ids["input_ids"]
        if isinstance(token_ids, int | np.integer):
            token_ids = [token_ids]
        rows = lists_of(token_ids)
        if rows and isinstance(rows[0], list):
            return [self._text(row, skip_special_tokens, clean_up_tokenization_spaces, **kwargs) for row in rows]
        return self._text(rows, skip_special_tokens, clean_up_tokenization_spaces, **kwargs)

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = False, **kwargs: Any) -> list[str]:
        """The text of each row of ids."""
        return [self.decode(row, skip_special_tokens, **kwargs) for row in sequences]

    def _text(self, ids: list[int], skip_special_tokens: bool, clean_up: bool | None, **kwargs: Any) -> str:
        if kwargs:
            raise TypeError(f"unexpected arguments: {', '.join(kwargs)}")
        if self.kind and self.kind.join:
            special = set(self.all_special_ids)
            kept = [i for i in checked_ids(ids) if not (skip_special_tokens and i in special)]
            text = self.kind.join(self.backend_tokenizer, kept, special)
        else:
            text = self.backend_tokenizer.decode(checked_ids(ids), skip_special_tokens=skip_special_tokens)
        if suffix := getattr(self.backend_tokenizer.model, "end_of_word_suffix", None):
            text = text.replace(suffix, " ").strip()
        clean_up = self.clean_up_tokenization_spaces if clean_up is None else clean_up
        if (
            clean_up and type(self.backend_tokenizer.model).__name__ != "BPE"
        ):  # which has blanks of its own before punctuation
            text = without_blanks(text)
        return text

    # ---- to and from files

    @property
    def call_options(self) -> dict[str, Any]:
        """What tokenizer_config.json says of calls by a processor."""
        options = {name: self.settings.get(name) for name in CALL_OPTIONS if name in self.settings}
        return options | ({"padding_side": self.padding_side} if "padding_side" in options else {})

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> tuple[str, ...]:
        """Writes tokenizer.json and tokenizer_config.json (and a vocabulary file that the former cannot stand for), as
        transformers reads them; their paths."""
        if kwargs.pop("push_to_hub", False) or kwargs:
            raise TypeError(f"save_pretrained() got unexpected arguments: {', '.join(kwargs) or 'push_to_hub'}")
        folder = Folder(save_directory).path
        settings = {n: v for n, v in self.settings.to_dict().items() if not n.startswith("_")}
        settings |= {name: token for name, token in self.special_tokens.items() if token is not None}
        settings |= {"extra_special_tokens": self.extra_special_tokens} if self.extra_special_tokens else {}
        settings |= {
            "model_max_length": self.model_max_length, "padding_side": self.padding_side,
            "truncation_side": self.truncation_side, "model_input_names": list(self.model_input_names),
            "clean_up_tokenization_spaces": self.clean_up_tokenization_spaces,
            "tokenizer_class": self.vocabulary.class_name or settings.get("tokenizer_class", "PreTrainedTokenizerFast"),
            "added_tokens_decoder": {
                str(i): {"content": str(token)} | {flag: getattr(token, flag) for flag in
                ("lstrip", "rstrip", "normalized", "single_word", "special")}
                for i, token in sorted(self.backend_tokenizer.get_added_tokens_decoder().items())
            },
        }  # fmt: skip
        with write_aside(folder, ("tokenizer.json", "tokenizer_config.json")) as aside:
            (aside / "tokenizer.json").write_text(self.backend_tokenizer.to_str(pretty=True), "utf-8")
            (aside / "tokenizer_config.json").write_text(json.dumps(settings, indent=2, ensure_ascii=False), "utf-8")
            for name, data in self.vocabulary.files.items():
                (aside / name).write_bytes(data)
        return tuple(str(folder / name) for name in ("tokenizer.json", "tokenizer_config.json", *self.vocabulary.files))

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(vocab_size={self.vocab_size}, model_max_length={self.model_max_length}, "
            f"padding_side={self.padding_side!r}, special_tokens={self.special_tokens_map})"
        )


OPTIONS = frozenset(
    "model_max_length truncation_side model_input_names clean_up_tokenization_spaces do_lower_case strip_accents "
    "tokenize_chinese_chars add_prefix_space add_bos_token add_eos_token trim_offsets errors language task "
    "predict_timestamps".split()
).union(SPECIAL, CALL_OPTIONS)


class AutoTokenizer:
    """`AutoTokenizer.from_pretrained(name)` gives a Tokenizer."""

    from_pretrained = Tokenizer.from_pretrained


_CLASSES: dict[str, type[Tokenizer]] = {}


def tokenizer_class(name: str, family: Family | None = None) -> type[Tokenizer]:
    """The class of that name, for example CLIPTokenizer, looked for in one family or in all; KeyError for one that is
    not known here."""
    name = name.removesuffix("Fast")
    if name not in _CLASSES:
        known = () if name in TOKENIZERS else (family,) if family else families().values()
        ways = [way for each in known for way in each.ways]
        base = next((way.tokenizer_classes[name] for way in ways if name in way.tokenizer_classes), None)
        if base is None and name not in TOKENIZERS and not any(name in way.tokenizers for way in ways):
            raise KeyError(name)
        _CLASSES[name] = type(name, (base or Tokenizer,), {"class_name": name, "__doc__": (base or Tokenizer).__doc__,
                                                           "__module__": "beyondvl"})  # fmt: skip
    return _CLASSES[name]
