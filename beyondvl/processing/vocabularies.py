"""Tokenizer backends of the `tokenizers` library from checkpoint files: tokenizer.json; or vocab.json and merges.txt,
vocab.txt, spiece.model.

Which class a folder's tokenizer is of, which tokens it adds to its vocabulary and what becomes of a tokenizer.json is
decided as transformers 5 decides it: a class that is known builds its pipeline itself and takes the vocabulary alone
out of that file, any other file is used as it is.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..config import Config
from ..errors import ConfigError
from ..families.registry import family_of, tokenizer_kind
from ..families.tokens import GENERIC, REGISTERED, TokenizerKind
from ..folder import Folder
from .sentencepiece import check_character_maps, read_model

__all__ = ["SPECIAL", "TOKENIZER_FILES", "UNBOUNDED", "Vocabulary", "library_errors", "read_vocabulary"]

SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
ESCAPED = re.compile(r"\\u00[4-7]")  # letters that could have been written plainly
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
TOKENIZER_FILES = ("tokenizer.json", "merges.txt", "vocab.txt", "spiece.model")
UNBOUNDED = 1 << 30  # transformers writes 1e30 where a tokenizer has no limit
ANY = ("PreTrainedTokenizer", "TokenizersBackend", "PythonBackend")  # names of no class in particular


@dataclass(frozen=True)
class Vocabulary:
    """A backend that is ready, the class it is of (None: its file as it is), and its special tokens by name."""

    backend: Any
    kind: TokenizerKind | None
    class_name: str
    special_tokens: dict[str, str | None]
    extra_tokens: tuple[str, ...] = ()
    files: dict[str, bytes] = field(default_factory=dict)  # what the backend alone cannot write again


@contextlib.contextmanager
def library_errors(what: str) -> Iterator[None]:
    """ConfigError in place of the bare Exceptions of the `tokenizers` library, and of its panics, which are none."""
    try:
        yield
    except ConfigError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ConfigError(f"{what}: {str(error)[:500]}") from error


def read_vocabulary(folder: Folder, settings: Config, class_name: str | None = None) -> Vocabulary:
    """The tokenizer of a folder whose tokenizer_config.json is `settings`; `class_name` is the caller's own choice.

    Raises ConfigError when no known tokenizer file is there, one is malformed, or the class needs a library.
    """
    name, kind = _class_of(folder, settings, class_name)
    known = next((file for file in TOKENIZER_FILES if file in folder), None)
    if known is None:
        raise ConfigError(f"{folder}: no tokenizer files found, expected one of {', '.join(TOKENIZER_FILES)}")
    if "tokenizer.json" in folder and not (kind and kind.files == ("spiece.model",) and "spiece.model" in folder):
        with library_errors("tokenizer.json: not a tokenizer"):
            backend, settings = _from_json(folder, settings, kind)
            vocabulary = _finish(backend, folder, settings, kind, name)
            vocabulary.backend.encode("")  # a template may lead nowhere
            return vocabulary
    if kind is None or not kind.files:
        raise ConfigError(
            f"tokenizer_config.json: tokenizer_class: found {name or 'none'!r} and {known}, expected a tokenizer.json: "
            "transformers' AutoTokenizer reads such files, and its save_pretrained writes one"
        )
    if missing := [file for file in kind.files if file not in folder]:
        raise ConfigError(
            f"{folder}: no tokenizer files found: {missing[0]} is missing, or a tokenizer.json in its place"
        )
    with library_errors(f"{kind.files[0]}: not a tokenizer of this kind"):
        backend, settings = _from_files(folder, settings, kind)
        files = {file: folder.read(file) for file in kind.files if file.endswith(".model")}
        return _finish(backend, folder, settings, kind, name, files)


def _class_of(folder: Folder, settings: Config, class_name: str | None) -> tuple[str, TokenizerKind | None]:
    """The class a folder's tokenizer is of: what its files name, else what its model's type goes with; None: any.

    Where both are known and differ, the files are believed but of model types that were published with a wrong name.
    """
    family, config = family_of(folder), folder.config("config.json")
    model_type = config.get("model_type")
    stated = class_name or settings.get("tokenizer_class") or config.get("tokenizer_class")
    name = str(stated).removesuffix("Fast") if stated else ""
    known = family.processing_of(model_type).tokenizer if family else REGISTERED.get(str(model_type), "")
    if known is None or (model_type in GENERIC and class_name is None):
        name = known or ""
    elif not name:
        name = known
    elif name in ANY:
        name = ""
    return name, tokenizer_kind(name, family) if name else None


def _from_json(folder: Folder, settings: Config, kind: TokenizerKind | None) -> tuple[Any, Config]:
    """A backend of tokenizer.json, and the settings with what else that file says."""
    from tokenizers import Tokenizer

    text = folder.text("tokenizer.json")
    parsed = None
    if "recompiled" in text or ESCAPED.search(text):
        parsed = json.loads(text)
        check_character_maps(parsed)
    backend = Tokenizer.from_str(text)
    stated = _added_tokens(folder, settings, backend.get_added_tokens_decoder())
    dropped = {str(token) for token in backend.get_added_tokens_decoder().values()} - {str(t) for t in stated.values()}
    if kind and dropped:  # tokens that the settings, which count, do not have
        parsed = parsed or json.loads(text)
        parsed["added_tokens"] = [token for token in parsed["added_tokens"] if token["content"] not in dropped]
        backend = Tokenizer.from_str(json.dumps(parsed))
    padding = backend.padding or {}
    more = {"pad_token": padding.get("pad_token"), "padding_side": padding.get("direction")}
    fields = {name: value for name, value in more.items() if value is not None and name not in settings}
    fields["_charsmap"] = _character_map(parsed or {})
    if kind is not None and type(backend.model).__name__ != kind.model:
        raise ConfigError(f"tokenizer.json: found a {type(backend.model).__name__}, expected a {kind.model}")
    return backend, settings.updated(Config(fields))


def _character_map(tokenizer: dict[str, Any]) -> bytes | None:
    import base64

    normalizer = tokenizer.get("normalizer") or {}
    steps = normalizer.get("normalizers", [normalizer]) if isinstance(normalizer, dict) else normalizer
    maps = (step.get("precompiled_charsmap") for step in steps if isinstance(step, dict))
    return next((base64.b64decode(text) for text in maps if text), None)


def _from_files(folder: Folder, settings: Config, kind: TokenizerKind) -> tuple[Any, Config]:
    """A backend of the class's own files, without its pipeline."""
    from tokenizers import Tokenizer, models

    if kind.files == ("spiece.model",):
        model = read_model(folder)
        backend = Tokenizer(models.Unigram(model.pieces, unk_id=model.unk_id, byte_fallback=model.byte_fallback))
        return backend, settings.updated(Config({"_charsmap": model.charsmap}))
    if kind.files == ("vocab.txt",):
        tokens = folder.text("vocab.txt").split("\n")
        if tokens and not tokens[-1]:
            tokens.pop()
        vocab = {token.rstrip("\r"): i for i, token in enumerate(tokens)}
        unk = _stated_tokens(folder, settings, kind).get("unk_token") or "[UNK]"
        if unk not in vocab:
            raise ConfigError(f"vocab.txt: {unk} is missing")
        return Tokenizer(models.WordPiece(vocab, unk_token=str(unk))), settings
    vocab = folder.json("vocab.json")
    lines = (line.strip() for line in folder.text("merges.txt").split("\n"))
    merges = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
    if not all(len(pair) == 2 for pair in merges):
        raise ConfigError("merges.txt: expected two tokens a line")
    return Tokenizer(models.BPE(vocab=vocab, merges=merges)), settings


def _stated_tokens(folder: Folder, settings: Config, kind: TokenizerKind | None) -> dict[str, Any]:
    """Special tokens by name, as text or with their flags: the class's, then tokenizer_config.json's, and where that
    has no added_tokens_decoder, those of special_tokens_map.json over them."""
    tokens: dict[str, Any] = dict(kind.special_tokens) if kind else {}
    sources = [settings.to_dict()]
    if "added_tokens_decoder" not in settings and "special_tokens_map.json" in folder:
        sources.append(folder.json("special_tokens_map.json"))
    for source in sources:
        named = source.get("extra_special_tokens")
        for name, token in {**source, **(named if isinstance(named, dict) else {})}.items():
            if name in SPECIAL or (name.endswith("_token") and name not in tokens):
                token = _token(token)
                if token is not None or name in SPECIAL:
                    tokens[name] = token
    return tokens


def _extra_tokens(folder: Folder, settings: Config) -> list[Any]:
    """Special tokens without a name of their own."""
    tokens = _listed(settings.to_dict())
    if "added_tokens_decoder" not in settings and "special_tokens_map.json" in folder:
        tokens = _listed(folder.json("special_tokens_map.json")) or tokens
    return tokens


def _listed(source: dict[str, Any]) -> list[Any]:
    """The special tokens that a file lists without names, under the newer name of the field or the older one."""
    value = source.get("extra_special_tokens") or source.get("additional_special_tokens")
    tokens = [_token(token) for token in value] if isinstance(value, list) else []
    return [token for token in tokens if token is not None]


def _token(value: Any) -> Any:
    """A token as text, or with its flags where the file has some; None where it is neither."""
    from tokenizers import AddedToken

    if isinstance(value, str):
        return value
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        return None
    return AddedToken(value["content"], **{name: value[name] for name in FLAGS if type(value.get(name)) is bool})


def _added_tokens(folder: Folder, settings: Config, in_file: dict[int, Any]) -> dict[int, Any]:
    """Tokens beside the vocabulary by id: added_tokens_decoder's; without one added_tokens.json's and tokenizer.json's
    own."""
    from tokenizers import AddedToken

    decoder = settings.get("added_tokens_decoder")
    if decoder is not None:
        try:
            tokens = {int(i): _token(token) for i, token in decoder.items()}
        except (AttributeError, ValueError, TypeError):
            tokens = {0: None}
        if None in tokens.values():
            raise ConfigError("tokenizer_config.json: added_tokens_decoder: expected tokens by id")
        return tokens
    # those that special_tokens_map.json alone calls special do not count as such, as in transformers
    tokens, special = {}, {str(token) for token in _listed(settings.to_dict())}
    special |= {str(token) for token in _stated_tokens(folder, settings, None).values() if token}
    if "added_tokens.json" in folder:
        for text, i in folder.json("added_tokens.json").items():
            if type(i) is not int:
                raise ConfigError(f"added_tokens.json: {text}: found {i!r}, expected an id")
            tokens[i] = AddedToken(text, normalized=text not in special, special=text in special)
    return tokens | in_file


def _finish(
    backend: Any, folder: Folder, settings: Config, kind: TokenizerKind | None, name: str, files: Any = None
) -> Vocabulary:
    """The backend with its class's pipeline and all its tokens."""
    in_file = backend.get_added_tokens_decoder()
    added = _added_tokens(folder, settings, in_file)
    texts = {str(token): token for token in added.values()}
    named = {n: texts.get(str(token), token) for n, token in _stated_tokens(folder, settings, kind).items()}
    plain = {n: None if token is None else str(token) for n, token in named.items()}
    framed = backend.post_processor is not None
    if kind is not None:
        for option, value in kind.options.items():
            setattr(backend.model, option, value)
        if kind.model == "BPE":
            backend.model.unk_token = plain.get("unk_token") if kind.unk_token else None
        kind.dress(backend, settings, plain)
    extra = [token for token in _extra_tokens(folder, settings) if str(token) not in plain.values()]
    _add(backend, added, in_file, named, extra)
    special = {n: token for n, token in plain.items() if token is not None or n in SPECIAL}
    if kind is not None and kind.frame:
        backend.post_processor = kind.frame(backend, settings, plain)
    elif kind is not None and not framed:
        backend.post_processor = _begin_and_end(backend, settings, plain)
    return Vocabulary(backend, kind, name, special, tuple(str(t) for t in extra), files or {})


def _add(backend: Any, added: dict[int, Any], in_file: dict[int, Any], named: dict[str, Any], extra: list[Any]) -> None:
    """Adds to the vocabulary what it lacks, in the order of transformers: by id, then by name, then the rest."""
    from tokenizers import AddedToken

    there = {repr(token) for token in in_file.values()}
    tokens = [token for _, token in sorted(added.items()) if repr(token) not in there]
    texts = {str(token) for token in (*in_file.values(), *tokens)}
    for token in (*named.values(), *extra):
        if token is not None and str(token) not in texts:
            texts.add(str(token))
            tokens.append(token)
    names = {str(token) for token in named.values() if token is not None}
    made = []
    for token in tokens:
        token = AddedToken(token, special=True) if isinstance(token, str) else token
        if not token.special and str(token) in names:
            flags = {flag: getattr(token, flag) for flag in FLAGS} | {"special": True}
            token = AddedToken(str(token), **flags)
        made.append(token)
    if made:
        backend.add_tokens(made)


def _begin_and_end(backend: Any, settings: Config, special: dict[str, str | None]) -> Any:
    """The tokens before and after a text that add_bos_token and add_eos_token ask for."""
    from tokenizers import processors

    bos = special.get("bos_token") if settings.get("add_bos_token") is True else None
    eos = special.get("eos_token") if settings.get("add_eos_token") is True else None
    single = f"{f'{bos}:0 ' if bos else ''}$A:0{f' {eos}:0' if eos else ''}"
    pair = f"{single}{f' {bos}:1' if bos else ''} $B:1{f' {eos}:1' if eos else ''}"
    tokens = [(token, backend.token_to_id(token)) for token in dict.fromkeys((bos, eos)) if token]
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=tokens)


def side_of(settings: Config, name: str, default: str) -> str:
    return settings.choice(name, default, ("left", "right"))


def max_length_of(settings: Config, kind: Any) -> int:
    value = settings.get("model_max_length", settings.get("max_len"))
    default = kind.model_max_length if kind and (kind.exact_length or not settings.to_dict()) else None
    if value is None:
        return default or UNBOUNDED
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 1:
        raise ConfigError(f"tokenizer_config.json: model_max_length: found {value!r}, expected a positive number")
    if value >= UNBOUNDED:
        return default or UNBOUNDED
    return int(value)


def input_names_of(settings: Config, kind: Any) -> tuple[str, ...]:
    names = settings.get("model_input_names") or (kind.model_input_names if kind else ("input_ids", "attention_mask"))
    known = ("input_ids", "attention_mask", "token_type_ids")
    if not isinstance(names, list | tuple) or not all(name in known for name in names):
        raise ConfigError(
            f"tokenizer_config.json: model_input_names: found {names!r}, expected some of {', '.join(known)}"
        )
    return tuple(names)
