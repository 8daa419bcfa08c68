"""The tokenizers of published checkpoints, by the class their files name; several families share each.

A class says what its files leave out: special tokens, and the pipeline around the vocabulary (normalizer,
pre-tokenizer, decoder, the tokens around a text), which transformers builds anew whatever a tokenizer.json says. Files
of a class that is not here are used as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from ..config import Config
from ..spec import Spec

__all__ = ["BYTE_LEVEL", "GENERIC", "REGISTERED", "TOKENIZERS", "TokenizerKind"]

CLIP_PATTERN = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?%s+|\p{N}| ?[^\s%s\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SIGLIP_LENGTH = 64
BLANK = "\u2581"  # what SentencePiece writes for a space
NONE: Mapping[str, Any] = MappingProxyType({})

Special = Mapping[str, str | None]  # by kind: "bos_token", ...


class TokenizerKind(Spec):
    """A class of tokenizers.

    `model` is the algorithm and `files` hold its vocabulary where there is no tokenizer.json; `dress` sets the pipeline
    of a backend; `frame` gives the post-processor (None: the file's own, or the tokens that add_bos_token and
    add_eos_token name). `special_tokens` and the other fields are defaults. `exact_length`: trained at one padded
    length. `ends_once`: a text that ends with the end token gets no second. `prefix` stands before every text, `join`
    makes a text of ids: (backend, ids, special ids) -> text.
    """

    model: str
    files: tuple[str, ...]
    dress: Callable[[Any, Config, Special], None]
    special_tokens: Mapping[str, str | None]
    frame: Callable[[Any, Config, Special], Any] | None = None
    model_max_length: int | None = None
    model_input_names: tuple[str, ...] = ("input_ids", "attention_mask")
    exact_length: bool = False
    ends_once: bool = False
    prefix: str = ""
    join: Callable[[Any, list[int], set[int]], str] | None = None
    padding_side: str = "right"
    unk_token: bool = False  # whether the model of the vocabulary itself knows the unknown token
    options: Mapping[str, Any] = NONE  # of the model


def _spaced(settings: Config) -> bool:
    return settings.get("add_prefix_space") is True


def _byte_level(backend: Any, settings: Config, special: Special) -> None:
    from tokenizers import decoders, pre_tokenizers

    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=_spaced(settings))
    backend.decoder = decoders.ByteLevel()


def _clip(backend: Any, settings: Config, special: Special) -> None:
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers

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


def _qwen(letters: str) -> Callable[[Any, Config, Special], None]:
    """Words of `letters`, a class of characters."""

    def dress(backend: Any, settings: Config, special: Special) -> None:
        from tokenizers import Regex, decoders, normalizers, pre_tokenizers

        pattern = Regex(QWEN_PATTERN % (f"[{letters}]", letters))
        backend.normalizer = normalizers.NFC()
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(pattern, behavior="isolated", invert=False),
                pre_tokenizers.ByteLevel(add_prefix_space=_spaced(settings), use_regex=False),
            ]
        )
        backend.decoder = decoders.ByteLevel()

    return dress


def _bert(backend: Any, settings: Config, special: Special) -> None:
    from tokenizers import decoders, normalizers, pre_tokenizers

    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True) is not False,
        strip_accents=settings.boolean("strip_accents", False) if settings.get("strip_accents") is not None else None,
        lowercase=settings.get("do_lower_case", True) is not False,
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")


def _gemma(lowercase: bool) -> Callable[[Any, Config, Special], None]:
    def dress(backend: Any, settings: Config, special: Special) -> None:
        from tokenizers import decoders, normalizers, pre_tokenizers

        blanks = normalizers.Replace(" ", BLANK)
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), blanks]) if lowercase else blanks
        backend.pre_tokenizer = pre_tokenizers.Split(pattern=" ", behavior="merged_with_previous", invert=False)
        backend.decoder = decoders.Sequence([decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse()])

    return dress


def _llama(backend: Any, settings: Config, special: Special) -> None:
    from tokenizers import decoders, pre_tokenizers

    spaced = settings.get("add_prefix_space") is not False
    scheme = ("always" if settings.get("legacy") is True else "first") if spaced else "never"
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement=BLANK, prepend_scheme=scheme, split=False)
    steps = [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(steps + ([decoders.Strip(content=" ", left=1)] if spaced else []))


def _pieces(backend: Any, settings: Config, special: Special) -> None:
    """Words of SentencePiece, each after a blank; the character map is the file's."""
    from tokenizers import decoders, normalizers, pre_tokenizers

    charsmap = settings.get("_charsmap")  # put there by who reads the files
    scheme = "always" if settings.get("add_prefix_space", True) is not False else "never"
    backend.normalizer = normalizers.Precompiled(charsmap) if charsmap else None
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement=BLANK, prepend_scheme=scheme)]
    )
    backend.decoder = decoders.Metaspace(replacement=BLANK, prepend_scheme=scheme)


def _canonical(backend: Any, settings: Config, special: Special) -> None:
    """SigLIP's: lower case, no punctuation, single spaces. The blank before a text is put there before special tokens
    are looked for (`prefix`), so that what follows one of them has none."""
    import string  # loading a model does not wait for it

    from tokenizers import Regex, decoders, normalizers, pre_tokenizers

    charsmap = settings.get("_charsmap")
    steps = [normalizers.Lowercase()] if settings.get("do_lower_case", True) is not False else []
    steps += [
        normalizers.Replace(Regex("[" + "".join("\\" + c for c in string.punctuation) + "]"), ""),
        normalizers.Replace(Regex(r"\s+"), " "),
        normalizers.Strip(),
    ]
    steps += [normalizers.Precompiled(charsmap)] if charsmap else []  # a blank becomes a space there
    steps += [normalizers.Replace(BLANK, " "), normalizers.Replace(Regex(" +"), " "), normalizers.Strip(left=False)]
    backend.normalizer = normalizers.Sequence(steps)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement=BLANK, prepend_scheme="never", split=True)
    backend.decoder = decoders.Sequence(
        [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )


def _spaced_specials(backend: Any, ids: list[int], special: set[int]) -> str:
    """The text of ids; words after a special token come after a space."""
    parts, words, after = [], [], False
    for i in ids:
        if i not in special:
            words.append(i)
            after = False
            continue
        parts += ["" if after else " ", backend.decode(words), backend.id_to_token(i)]
        words, after = [], True
    return "".join([*parts, backend.decode(words)]).strip()


def _id(backend: Any, token: str | None) -> int:
    known = backend.token_to_id(token) if token else None
    return 0 if known is None else known


def _roberta_frame(first: str, last: str) -> Callable[[Any, Config, Special], Any]:
    def frame(backend: Any, settings: Config, special: Special) -> Any:
        from tokenizers import processors

        ends = [(special[name] or "", _id(backend, special[name])) for name in (last, first)]
        trim = first == "cls_token" and settings.get("trim_offsets", True) is not False
        spaced = first == "cls_token" and _spaced(settings)
        return processors.RobertaProcessing(*ends, trim_offsets=trim, add_prefix_space=spaced)

    return frame


def _template(single: str, pair: str) -> Callable[[Any, Config, Special], Any]:
    """Of patterns in which {cls_token} and the like stand for special tokens."""

    def frame(backend: Any, settings: Config, special: Special) -> Any:
        from tokenizers import processors

        tokens = {token: _id(backend, token) for kind, token in special.items() if token and f"{{{kind}}}" in pair}
        return processors.TemplateProcessing(
            single=single.format(**special), pair=pair.format(**special), special_tokens=list(tokens.items())
        )

    return frame


def _end(name: str) -> Callable[[Any, Config, Special], Any]:
    return _template(f"$A {{{name}}}", f"$A {{{name}}} $B {{{name}}}")


END = "<|endoftext|>"
CLIP_TOKENS = {"unk_token": END, "bos_token": "<|startoftext|>", "eos_token": END, "pad_token": END}
BERT_TOKENS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
ROBERTA_TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "cls_token": "<s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}
GEMMA_TOKENS = {
    "unk_token": "<unk>",
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}
PAIRS = ("vocab.json", "merges.txt")
PLAIN = {"dropout": None, "fuse_unk": False, "continuing_subword_prefix": "", "end_of_word_suffix": ""}
FUSED = {"dropout": None, "fuse_unk": True, "byte_fallback": True}
CLIP_OPTIONS = PLAIN | {"end_of_word_suffix": "</w>"}

TOKENIZERS: dict[str, TokenizerKind] = {
    "CLIPTokenizer": TokenizerKind(
        "BPE",
        PAIRS,
        _clip,
        CLIP_TOKENS,
        _roberta_frame("bos_token", "eos_token"),
        77,
        unk_token=True,
        options=CLIP_OPTIONS,
    ),
    "BertTokenizer": TokenizerKind(
        "WordPiece",
        ("vocab.txt",),
        _bert,
        BERT_TOKENS,
        _template("{cls_token}:0 $A:0 {sep_token}:0", "{cls_token}:0 $A:0 {sep_token}:0 $B:1 {sep_token}:1"),
        512,
        ("input_ids", "token_type_ids", "attention_mask"),
        unk_token=True,
    ),
    "RobertaTokenizer": TokenizerKind(
        "BPE", PAIRS, _byte_level, ROBERTA_TOKENS, _roberta_frame("cls_token", "sep_token"), 512, options=PLAIN
    ),
    "GPT2Tokenizer": TokenizerKind(
        "BPE", PAIRS, _byte_level, {"unk_token": END, "bos_token": END, "eos_token": END}, options=PLAIN
    ),
    "Qwen2Tokenizer": TokenizerKind(
        "BPE", PAIRS, _qwen(r"\p{L}"), {"unk_token": END, "eos_token": END, "pad_token": END}, options=PLAIN
    ),
    "Qwen3_5Tokenizer": TokenizerKind(
        "BPE", PAIRS, _qwen(r"\p{L}\p{M}"), {"unk_token": END, "eos_token": END, "pad_token": END}, options=PLAIN
    ),
    "LlamaTokenizer": TokenizerKind(
        "BPE",
        (),
        _llama,
        {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
        padding_side="left",
        options=FUSED,
    ),
    "GemmaTokenizer": TokenizerKind(
        "BPE", (), _gemma(False), GEMMA_TOKENS, padding_side="left", unk_token=True, options=FUSED
    ),
    "T5Tokenizer": TokenizerKind(
        "Unigram", (), _pieces, {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}, _end("eos_token")
    ),
    "XLMRobertaTokenizer": TokenizerKind(
        "Unigram",
        (),
        _pieces,
        ROBERTA_TOKENS,
        _template("{bos_token} $A {eos_token}", "{bos_token} $A {eos_token} {eos_token} $B {eos_token}"),
    ),
    "SiglipTokenizer": TokenizerKind(
        "Unigram",
        ("spiece.model",),
        _canonical,
        {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"},
        _end("eos_token"),
        SIGLIP_LENGTH,
        exact_length=True,
        ends_once=True,
        prefix=BLANK,
        join=_spaced_specials,
    ),
    # Gemma's vocabulary as SigLIP 2 uses it: ids alone, padded to 64
    "Siglip2Tokenizer": TokenizerKind(
        "BPE",
        (),
        _gemma(True),
        GEMMA_TOKENS,
        None,
        SIGLIP_LENGTH,
        ("input_ids",),
        exact_length=True,
        padding_side="left",
        unk_token=True,
        options=FUSED,
    ),
}
TOKENIZERS["BartTokenizer"] = TOKENIZERS["RobertaTokenizer"]
BYTE_LEVEL = TOKENIZERS["GPT2Tokenizer"]

# tokenizers of model types that are no family here yet; None: of those, files are used as they are
REGISTERED: dict[str, str | None] = {
    "florence2": "BartTokenizer",
    "bart": "RobertaTokenizer",
    "roberta": "RobertaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
    "opt": "GPT2Tokenizer",
    "gpt2": "GPT2Tokenizer",
    "t5": "T5Tokenizer",
    "qwen2_vl": "Qwen2Tokenizer",
    "qwen2_5_vl": "Qwen2Tokenizer",
    "qwen3_vl": "Qwen2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
    "qwen3_5": "Qwen3_5Tokenizer",
    "gemma3": "GemmaTokenizer",
    "gemma3_text": "GemmaTokenizer",
    "sam3_video": "CLIPTokenizer",
}
# model types whose published files name the wrong class: the registered one counts
GENERIC = frozenset({"siglip2", "qwen3_5", "smolvlm", "qwen2", "phi3", "llava", "llava_next"})
