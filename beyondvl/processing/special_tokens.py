"""The names and ids of a tokenizer's tokens: special ones by name ("pad_token"), others beside the vocabulary."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from .encoding import checked_ids, without_blanks
from .vocabularies import SPECIAL

__all__ = ["TokenNames"]

EXTRA = ("extra_special_tokens", "additional_special_tokens")


class TokenNames:
    """What a tokenizer says of its tokens; of those with a name `name` and `name_id` may be read and set."""

    backend: ClassVar[str] = "tokenizers"  # the library
    is_fast: ClassVar[bool] = True
    pad_token_type_id: ClassVar[int] = 0
    SPECIAL_TOKENS_ATTRIBUTES: ClassVar[tuple[str, ...]] = SPECIAL
    split_special_tokens: ClassVar[bool] = False

    def __getattr__(self, name: str) -> Any:
        """bos_token, eos_token_id and the like."""
        tokens = self.__dict__.get("special_tokens", {})
        kind = name.removesuffix("_id")
        if kind in SPECIAL or kind in tokens:
            token = tokens.get(kind)
            return token if kind == name or token is None else self.convert_tokens_to_ids(token)
        raise AttributeError(f"Tokenizer has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        """A special token may be set, pad_token for example; one that is not in the vocabulary is the unknown token, as
        in transformers, and where there is none a ValueError."""
        if name.removesuffix("_id") not in SPECIAL:
            super().__setattr__(name, value)
            return
        if name.endswith("_id"):
            name, value = name.removesuffix("_id"), None if value is None else self.backend_tokenizer.id_to_token(value)
        value = None if value is None else str(value)
        if value is not None and self.backend_tokenizer.token_to_id(value) is None:
            unknown = self.special_tokens.get("unk_token")
            if unknown is None or name == "unk_token":
                raise ValueError(f"{name}: found {value!r}, expected a token of the vocabulary")
            warnings.warn(f"{name}: {value!r} is not in the vocabulary: its id is that of {unknown}", stacklevel=2)
        self.special_tokens = self.special_tokens | {name: value}

    @property
    def vocab_size(self) -> int:
        """Tokens without those added beside the vocabulary."""
        return self.backend_tokenizer.get_vocab_size(with_added_tokens=False)

    def __len__(self) -> int:
        return self.backend_tokenizer.get_vocab_size(with_added_tokens=True)

    def __bool__(self) -> bool:
        return True

    @property
    def vocab(self) -> dict[str, int]:
        """As `get_vocab`."""
        return self.get_vocab()

    def get_vocab(self) -> dict[str, int]:
        """Token -> id."""
        return self.backend_tokenizer.get_vocab(with_added_tokens=True)

    def get_added_vocab(self) -> dict[str, int]:
        """Token -> id of those added beside the vocabulary."""
        return {str(token): i for i, token in sorted(self.backend_tokenizer.get_added_tokens_decoder().items())}

    @property
    def all_special_tokens(self) -> list[str]:
        """Special tokens, those with a name first."""
        named = [self.special_tokens.get(name) for name in dict.fromkeys((*SPECIAL, *self.special_tokens))]
        return list(dict.fromkeys([token for token in (*named, *self.extra_special_tokens) if token is not None]))

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of `all_special_tokens`."""
        return self.convert_tokens_to_ids(self.all_special_tokens)

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """Special tokens by name."""
        return {name: token for name, token in self.special_tokens.items() if token is not None}

    @property
    def extra_special_tokens_ids(self) -> list[int]:
        """Ids of `extra_special_tokens`, those without a name."""
        return self.convert_tokens_to_ids(self.extra_special_tokens)

    @extra_special_tokens_ids.setter
    def extra_special_tokens_ids(self, ids: list[int]) -> None:
        self.extra_special_tokens = self.convert_ids_to_tokens(list(ids))

    @property
    def added_tokens_decoder(self) -> dict[int, Any]:
        """Id -> token of those added beside the vocabulary, as the library has them."""
        return dict(sorted(self.backend_tokenizer.get_added_tokens_decoder().items()))

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        """As `get_added_vocab`."""
        return self.get_added_vocab()

    @property
    def add_prefix_space(self) -> bool:
        """Whether a blank is put before a text."""
        return bool(self.settings.get("add_prefix_space", False))

    @property
    def add_bos_token(self) -> bool:
        """What tokenizer_config.json says of the token that begins a text."""
        return bool(self.settings.get("add_bos_token", False))

    @property
    def add_eos_token(self) -> bool:
        """As `add_bos_token`, of the one that ends it."""
        return bool(self.settings.get("add_eos_token", False))

    @property
    def init_kwargs(self) -> dict[str, Any]:
        """The fields of tokenizer_config.json."""
        return self.settings.to_dict()

    def add_tokens(self, new_tokens: Any, special_tokens: bool = False) -> int:
        """Adds tokens (texts or the library's AddedToken) beside the vocabulary; how many were new. A model's own
        vocabulary does not grow: it refuses their ids."""
        several = isinstance(new_tokens, Iterable) and not isinstance(new_tokens, str)
        tokens = list(new_tokens) if several else [new_tokens]
        if not special_tokens:
            return self.backend_tokenizer.add_tokens(tokens)
        known = self.all_special_tokens
        self.extra_special_tokens = [
            *self.extra_special_tokens,
            *(str(token) for token in tokens if str(token) not in known),
        ]
        return self.backend_tokenizer.add_special_tokens(tokens)

    def add_special_tokens(self, special_tokens_dict: dict[str, Any], replace_extra_special_tokens: bool = True) -> int:
        """Adds special tokens by name ({"pad_token": "[PAD]"}), or a list of "extra_special_tokens", which replace
        those that were; how many were new to the vocabulary."""
        known = (*SPECIAL, *EXTRA)
        if unknown := [name for name in special_tokens_dict if name not in known]:
            raise ValueError(f"special_tokens_dict: found {unknown[0]!r}, expected some of {', '.join(known)}")
        count = 0
        for name, value in special_tokens_dict.items():
            if name not in EXTRA:
                count += self.backend_tokenizer.add_special_tokens([value])
                setattr(self, name, value)
                continue
            if not isinstance(value, list | tuple):
                raise ValueError(f"{name}: found {value!r}, expected a list of tokens")
            self.extra_special_tokens = [] if replace_extra_special_tokens else self.extra_special_tokens
            count += self.add_tokens(list(value), special_tokens=True)
        return count

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Special tokens around a text, or a pair of them."""
        return self.backend_tokenizer.num_special_tokens_to_add(pair)

    @property
    def max_len_single_sentence(self) -> int:
        """Tokens of the longest text without its special ones."""
        return self.model_max_length - self.num_special_tokens_to_add()

    @property
    def max_len_sentences_pair(self) -> int:
        """As `max_len_single_sentence`, of both texts of a pair together."""
        return self.model_max_length - self.num_special_tokens_to_add(pair=True)

    def get_special_tokens_mask(
        self, token_ids_0: Any, token_ids_1: Any = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """1 for each special token among ids that have theirs, else 0. ValueError for ids that lack them: a call with
        return_special_tokens_mask=True tells of those."""
        if not already_has_special_tokens or token_ids_1 is not None:
            raise ValueError("already_has_special_tokens: found False, expected True: ids that have them")
        special = set(self.all_special_ids)
        return [int(i in special) for i in checked_ids(token_ids_0)]

    @staticmethod
    def clean_up_tokenization(out_string: str) -> str:
        """A text without the blanks before punctuation."""
        return without_blanks(out_string)

    def convert_tokens_to_ids(self, tokens: str | list[str]) -> Any:
        """The id of a token, or a list of them; of one that is not known the unknown token's."""
        if isinstance(tokens, str):
            known = self.backend_tokenizer.token_to_id(tokens)
            return self.unk_token_id if known is None else known
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """The token of an id, or a list of them."""
        if isinstance(ids, int | np.integer):
            return self.backend_tokenizer.id_to_token(checked_ids([ids])[0])
        skipped = set(self.all_special_ids) if skip_special_tokens else ()
        return [self.backend_tokenizer.id_to_token(i) for i in checked_ids(ids) if i not in skipped]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text that tokens make."""
        return self.backend_tokenizer.decoder.decode(tokens) if self.backend_tokenizer.decoder else " ".join(tokens)
