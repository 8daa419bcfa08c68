"""Tokenizer backends from vocabulary files, assembled with the `tokenizers` library.

The pipelines are those of the models' own tokenizers: CLIP's byte-level BPE with `</w>`, RoBERTa's without, BERT's
WordPiece, SigLIP's SentencePiece unigram over canonical text (lower case, no punctuation, single spaces).
"""

from __future__ import annotations

import contextlib
import json
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import Config, read_json, read_text
from ..errors import ConfigError
from .sentencepiece import check_character_maps, read_model

__all__ = ["SPECIAL", "Defaults", "build_backend", "special_tokens"]

CLIP_PATTERN = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
SIGLIP_LENGTH = 64
ESCAPED = re.compile(r"\\u00[4-7]")  # letters that could have been written plainly
SPECIAL = ("unk_token", "bos_token", "eos_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class Defaults:
    """What a kind of tokenizer assumes when its configuration file does not say."""

    special_tokens: dict[str, str] = field(default_factory=dict)
    model_max_length: int | None = None
    model_input_names: tuple[str, ...] = ("input_ids", "attention_mask")
    exact_length: bool = False
    padding_side: str = "right"


CLIP = Defaults(
    {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    },
    77,
)
BERT = Defaults(
    {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]"},
    512,
    ("input_ids", "token_type_ids", "attention_mask"),
)
ROBERTA = Defaults(
    {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "sep_token": "</s>",
        "pad_token": "<pad>",
        "cls_token": "<s>",
        "mask_token": "<mask>",
    },
    512,
)
SIGLIP = Defaults({"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}, SIGLIP_LENGTH, exact_length=True)
# Gemma's vocabulary as SigLIP 2 uses it: ids alone, padded to 64
SIGLIP2 = Defaults(
    {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"},
    SIGLIP_LENGTH,
    ("input_ids",),
    exact_length=True,
    padding_side="left",  # of the class; published folders say "right"
)
KINDS = {
    "CLIPTokenizer": CLIP,
    "BertTokenizer": BERT,
    "RobertaTokenizer": ROBERTA,
    "SiglipTokenizer": SIGLIP,
    "Siglip2Tokenizer": SIGLIP2,
}


def _model_type(folder: Path) -> Any:
    """model_type of the folder's config, "clip" for one of OpenCLIP's, None where there is neither."""
    path = folder / "config.json"
    found = read_json(path).get("model_type") if path.exists() else None
    return "clip" if found is None and (folder / "open_clip_config.json").exists() else found


def _kind(folder: Path, settings: Config) -> Defaults | None:
    """Which defaults apply: by the tokenizer's class, else by the model's type."""
    name = str(settings.get("tokenizer_class") or "").removesuffix("Fast")
    model_type = _model_type(folder)
    if str(model_type).startswith("siglip") and "Gemma" in name:
        return SIGLIP2
    if name in KINDS:
        return KINDS[name]
    by_model = {"clip": CLIP, "siglip": SIGLIP, "siglip2": SIGLIP2, "bert": BERT, "chinese_clip": BERT,
                "clap": ROBERTA, "xclip": CLIP}  # fmt: skip
    return by_model.get(model_type)


def special_tokens(folder: Path, settings: Config, defaults: Defaults) -> dict[str, str]:
    """The special tokens by kind: the files' own over the defaults of the kind."""
    found = dict(defaults.special_tokens)
    map_path = folder / "special_tokens_map.json"
    sources = [read_json(map_path) if map_path.exists() else {}, settings.to_dict()]
    for source in sources:
        for kind in SPECIAL:
            token = source.get(kind)
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                found[kind] = token
    return found


def build_backend(folder: Path, settings: Config) -> tuple[Any, Defaults]:
    """A tokenizers.Tokenizer of the files in a folder, and the defaults of its kind.

    Raises ConfigError when no known tokenizer file is there or one is malformed.
    """
    kind = _kind(folder, settings)
    builders = (
        ("tokenizer.json", _from_tokenizer_json, kind or Defaults()),
        ("merges.txt", _roberta, ROBERTA) if kind is ROBERTA else ("merges.txt", _clip, CLIP),
        ("vocab.txt", _bert, BERT),
        ("spiece.model", _siglip, SIGLIP),
    )
    stated = str(settings.get("tokenizer_class") or "")
    for name, build, defaults in builders:
        if (folder / name).exists():
            if build is not _from_tokenizer_json and stated and kind is None:
                raise ConfigError(
                    f"tokenizer_config.json: tokenizer_class: found {stated!r} and {name}, expected a tokenizer.json: "
                    "transformers' AutoTokenizer reads such files, and its save_pretrained writes one"
                )
            with library_errors(f"{name}: not a tokenizer of this kind"):
                return build(folder, settings), defaults
    names = ", ".join(name for name, _, _ in builders)
    raise ConfigError(f"{folder}: no tokenizer files found, expected one of {names}")


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
        raise ConfigError(f"{what}: {error}") from error


def _from_tokenizer_json(folder: Path, settings: Config) -> Any:
    from tokenizers import Tokenizer, normalizers

    text = read_text(folder / "tokenizer.json")
    if "recompiled" in text or ESCAPED.search(text):
        check_character_maps(json.loads(text))
    backend = Tokenizer.from_str(text)
    kind = _kind(folder, settings)
    # transformers builds these two normalizers from the settings, whatever the file says
    if kind is BERT and {"do_lower_case", "strip_accents", "tokenize_chinese_chars"} & set(settings.to_dict()):
        backend.normalizer = _bert_normalizer(settings)
    if kind is SIGLIP2 and _lower_cases(folder, settings):
        steps = [normalizers.Lowercase()] + ([backend.normalizer] if backend.normalizer else [])
        backend.normalizer = normalizers.Sequence(steps)
    return backend


def _lower_cases(folder: Path, settings: Config) -> bool:
    """SigLIP 2's own tokenizer class lower-cases first; Gemma's, as the siglip checkpoints name it, does not."""
    return "Siglip2" in str(settings.get("tokenizer_class")) or str(_model_type(folder)).startswith("siglip2")


def _bert_normalizer(settings: Config) -> Any:
    from tokenizers import normalizers

    return normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True) is not False,
        strip_accents=settings.boolean("strip_accents", False) if settings.get("strip_accents") is not None else None,
        lowercase=settings.get("do_lower_case", True) is not False,
    )


def _pairs(folder: Path, settings: Config, kind: Defaults) -> tuple[dict[str, int], list[tuple], dict[str, str]]:
    """Vocabulary, merges and special tokens of a byte-level BPE."""
    vocab = read_json(folder / "vocab.json")
    lines = read_text(folder / "merges.txt").split("\n")
    merges = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
    if not all(len(pair) == 2 for pair in merges):
        raise ConfigError("merges.txt: expected two tokens a line")
    special = special_tokens(folder, settings, kind)
    for token in (special["bos_token"], special["eos_token"]):
        if token not in vocab:
            raise ConfigError(f"vocab.json: {token} is missing")
    return vocab, merges, special


def _roberta(folder: Path, settings: Config) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    vocab, merges, special = _pairs(folder, settings, ROBERTA)
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, continuing_subword_prefix="", end_of_word_suffix=""))
    spaced = settings.get("add_prefix_space") is True
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=spaced)
    backend.decoder = decoders.ByteLevel()
    known = [token for token in dict.fromkeys(special.values()) if token in vocab]
    backend.add_special_tokens(known)
    ends = [(special[name], vocab[special[name]]) for name in ("eos_token", "bos_token")]
    backend.post_processor = processors.RobertaProcessing(*ends, trim_offsets=True, add_prefix_space=spaced)
    return backend


def _clip(folder: Path, settings: Config) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    vocab, merges, special = _pairs(folder, settings, CLIP)
    backend = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=merges,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            unk_token=special["unk_token"],
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([token for token in dict.fromkeys(special.values()) if token in vocab])
    backend.post_processor = processors.RobertaProcessing(
        (special["eos_token"], vocab[special["eos_token"]]),
        (special["bos_token"], vocab[special["bos_token"]]),
        trim_offsets=False,
        add_prefix_space=False,
    )
    return backend


def _bert(folder: Path, settings: Config) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    tokens = read_text(folder / "vocab.txt").split("\n")
    if tokens and not tokens[-1]:
        tokens.pop()
    vocab = {token.rstrip("\r"): i for i, token in enumerate(tokens)}
    special = special_tokens(folder, settings, BERT)
    for kind, token in special.items():
        if token not in vocab and kind in ("unk_token", "sep_token", "pad_token", "cls_token"):
            raise ConfigError(f"vocab.txt: {token} is missing")
    backend = Tokenizer(models.WordPiece(vocab, unk_token=special["unk_token"]))
    backend.normalizer = _bert_normalizer(settings)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.add_special_tokens([token for token in special.values() if token in vocab])
    cls, sep = special["cls_token"], special["sep_token"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(cls, vocab[cls]), (sep, vocab[sep])],
    )
    return backend


def _siglip(folder: Path, settings: Config) -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    pieces, unk_id, charsmap = read_model(folder / "spiece.model")
    backend = Tokenizer(models.Unigram(pieces, unk_id=unk_id, byte_fallback=False))
    steps = [normalizers.Lowercase()] if settings.get("do_lower_case", True) is not False else []
    steps.append(normalizers.Replace(Regex("[" + "".join("\\" + c for c in string.punctuation) + "]"), ""))
    if charsmap:
        steps.append(normalizers.Precompiled(charsmap))
    steps += [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    backend.normalizer = normalizers.Sequence(steps)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    backend.decoder = decoders.Metaspace(prepend_scheme="always", split=True)
    special = SIGLIP.special_tokens
    names = [name for name, _ in pieces]
    if special["eos_token"] not in names:
        raise ConfigError("spiece.model: </s> is missing")
    backend.add_special_tokens(
        [AddedToken(token, lstrip=True, rstrip=True, normalized=False) for token in ("</s>", "<unk>") if token in names]
    )
    eos = special["eos_token"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {eos}", pair=f"$A {eos} $B {eos}", special_tokens=[(eos, names.index(eos))]
    )
    return backend
