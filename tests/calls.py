"""What a caller of transformers or sentence-transformers finds different here: every public attribute, method and
argument of the classes that share a name, tried on both sides.

    python tests/calls.py > tests/calls.tsv

Parts are loaded from published files, models have random weights. An attribute that holds data is compared by value. Of
a call that is listed in CALLS every argument of the peer's signature is given, alone, the values of VALUES or else what
it is by default; a row says where ours refuses what the peer takes, or gives something else. What the peer refuses, and
what there is more here, is no difference. A row: class, name, argument=value, what differs, why.
tests/test_calls.py compares the table, and fails for a difference that nothing in WHY explains.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import re
import tempfile
import typing
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import sounds

import beyondvl as bvl
import pictures
import published

TEXT, OTHER, LONG = "A photo of two cats!", "it's  RAINING 24/7", " ".join(["the quick brown fox"] * 60)
RATE = 16_000

# argument -> values to try; every other one gets what the peer has by default
VALUES: dict[str, list[Any]] = {
    "padding": [True, False, "longest", "max_length", "do_not_pad"],
    "truncation": [True, False, "longest_first", "do_not_truncate"],
    "max_length": [5, 40],
    "return_tensors": [None, "np", "pt"],
    "add_special_tokens": [True, False],
    "text_pair": [OTHER],
    "text_target": [OTHER],
    "stride": [0, 2],
    "is_split_into_words": [False],
    "pad_to_multiple_of": [None, 8],
    "padding_side": [None, "left", "right"],
    "skip_special_tokens": [True, False],
    "clean_up_tokenization_spaces": [None, True, False],
    "do_resize": [True, False],
    "size": [{"shortest_edge": 50}, {"height": 40, "width": 50}, 48],
    "crop_size": [{"height": 20, "width": 30}, 30],
    "resample": [0, 1, 2, 3, 4, 5],
    "rescale_factor": [1.0, 0.5],
    "image_mean": [[0.1, 0.2, 0.3], 0.5],
    "image_std": [[0.1, 0.2, 0.3], 0.5],
    "input_data_format": [None, "channels_last"],
    "data_format": ["channels_first"],
    "sampling_rate": [RATE, 8000, None],
    "pad_size": [{"height": 400, "width": 420}],
    "do_pad": [False, True],
    "normalize_embeddings": [True, False],
    "output_value": ["sentence_embedding", "token_embeddings", None],
    "precision": ["float32", None, "int8", "uint8", "binary", "ubinary"],
    "truncate_dim": [None, 8],
    "prompt_name": [None, "query"],
    "prompt": [None, "a "],
    "convert_to_numpy": [True, False],
    "convert_to_tensor": [True, False],
    "batch_size": [1, 32],
    "output_hidden_states": [None, False, True],
    "output_attentions": [None, False],
    "return_dict": [None, True],
    "num_beams": [1, 3],
    "do_sample": [False],
    "max_new_tokens": [1, 5],
    "min_new_tokens": [3],
    "repetition_penalty": [1.0, 1.5],
    "no_repeat_ngram_size": [0, 2],
    "use_cache": [True],
}  # fmt: skip
FLAGS = [True, False]  # of every argument whose default is one of them
# what has to be there for an argument to mean something
BESIDE: dict[str, dict[str, Any]] = {
    "max_length": {"truncation": True, "padding": "max_length"},
    "stride": {"truncation": True, "max_length": 6, "return_overflowing_tokens": True},
    "return_overflowing_tokens": {"truncation": True, "max_length": 6},
    "pad_to_multiple_of": {"padding": True},
    "padding_side": {"padding": "max_length", "max_length": 12},
    "pad_size": {"do_pad": True},
    "data_format": {},
}
# of a model only what is called with inputs: the rest is torch's, or of training
MODEL_NAMES = ("forward", "get_text_features", "get_image_features", "get_audio_features", "generate", "device",
               "dtype", "config", "text_model", "vision_model", "audio_model", "eval", "to")  # fmt: skip

# (pattern of "class name argument=value what differs", why): the first that matches
WHY = [
    (
        r" \w*(chat|response|control_tokens)\w*  absent| parse_response ",
        "chat templates are of processors here",
    ),
    (r" (push_to_hub|register_for_auto_class|train_new_from_iterator)  ", "uploads, custom code, training"),
    (
        r"Processor (fetch_images|center_crop|convert_to_rgb|normalize|pad|process_image|rescale|resize)  ",
        "a step of its own: the core does all of them in one pass",
    ),
    (r"Extractor (fetch_audio|normalize|zero_mean_unit_var_norm|mel_filters\w*)  ", "a step of its own, as above"),
    (
        r"Processor __call__ .*(mm_token|text_replacement)|Processor preprocess .*pad|Processor __call__ (do_pad=True|pad_size)",
        "refused by name: no family here pads pictures or marks their tokens",
    ),
    (
        r"Processor \w*(token_ids|multimodal|replace|mm_token|replacement|inputs_layout|tensor_conversion)\w*  ",
        "the peer's insides: pictures among the words of a language model",
    ),
    (
        r" (get_\w*_dict|get_possibly_dynamic_module|from_args_and_dict|check_argument\w*|validate_\w+|unused_input_names|"
        r"text_kwargs|files_loaded|deprecation_warnings|verbose|convert_\w+|can_save_slow_tokenizer|slow_tokenizer_class|"
        r"pretrained_vocab_files_map|vocab_files?(_names)?|update_post_processor|set_truncation_and_padding|model|decoder|"
        r"save_vocabulary|clean_up_tokenization_spaces_for_bpe\w*|init_kwargs)  ",
        "how the peer loads and keeps its files",
    ),
    (
        r"Tokenizer (do_lower_case|tokenize_chinese_chars|strip_accents|unk_token_length|total_vocab_size|tokens_trie|"
        r"token_type_ids_\w+|special_tokens_pattern|sp_model\w*|legacy|truncate_sequences|prepare_for_\w+|"
        r"remove_punctuation|canonicalize_text|build_inputs_\w+|create_token_type\w+|timestamp_pat)  ",
        "insides of tokenizers written in Python; a call does it",
    ),
    (r"SiglipTokenizer (backend|is_fast) ", "one library reads all vocabularies"),
    (r"SiglipTokenizer \w+ (padding=True|pad_to_multiple_of)", "trained on texts of one length: padded means to that"),
    (
        r"SiglipTokenizer \w+ (return_offsets|stride|add_special_tokens)",
        "the peer's tokenizer in Python leaves it undone",
    ),
    (r"Tokenizer __call__ return_tensors='np' ValueError", "rows of different lengths make no array of numbers"),
    (r"do_center_crop  False, theirs None", "not set"),
    (r"ChineseCLIPImageProcessor image_processor_type  ", "the class it is, not the older name in its file"),
    (
        r"Clap\w+ __call__ (truncation|padding|pad_to_multiple_of)=",
        "refused by name: the peer takes it and pads with zeros",
    ),
    (r"ClapProcessor __call__ padding_side", "a crop that the peer draws at random"),
    (r"interpolate_pos_encoding=True", "refused by name: positions of the trained size"),
    (r"output_hidden_states=True ValueError", "refused by name: the towers give them in a call of the model"),
    (r"encode\w* output_value=None", "no padding in the rows of a text"),
]


@dataclass(frozen=True)
class Shared:
    """One class of both libraries: objects of it, and calls by the name of the method."""

    name: str
    theirs: Any
    ours: Any
    calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]]
    names: tuple[str, ...] = ()  # looked at; all public ones where none are named


def picture() -> Any:
    return pictures.photo(90, 70)


def sound() -> np.ndarray:
    return sounds.tone(RATE, 0.4, 300.0)


def text_calls(ids: list[int]) -> dict[str, Any]:
    return {
        "__call__": (([TEXT, OTHER],), {}),
        "encode": ((TEXT,), {}),
        "encode_plus": ((TEXT,), {}),
        "batch_encode_plus": (([TEXT, OTHER],), {}),
        "decode": ((ids,), {}),
        "batch_decode": (([ids, ids[:3]],), {}),
        "tokenize": ((TEXT,), {}),
        "pad": (({"input_ids": [ids, ids[:3]]},), {}),
        "convert_ids_to_tokens": ((ids,), {}),
        "convert_tokens_to_ids": ((["a", "photo"],), {}),
        "get_vocab": ((), {}),
        "get_special_tokens_mask": ((ids,), {"already_has_special_tokens": True}),
        "num_special_tokens_to_add": ((), {}),
        "build_inputs_with_special_tokens": (([7, 8],), {}),
        "create_token_type_ids_from_sequences": (([7, 8],), {}),
        "get_added_vocab": ((), {}),
        "convert_tokens_to_string": ((["a", "photo"],), {}),
    }


PARTS = [
    ("CLIPTokenizer", "openai--clip-vit-base-patch32@4.57"),
    ("BertTokenizer", "sentence-transformers--all-MiniLM-L6-v2"),
    ("SiglipTokenizer", "google--siglip-so400m-patch14-384"),
    ("WhisperTokenizer", "openai--whisper-base"),
    ("CLIPImageProcessor", "openai--clip-vit-base-patch32@4.57"),
    ("SiglipImageProcessor", "google--siglip-so400m-patch14-384"),
    ("BlipImageProcessor", "Salesforce--blip-image-captioning-base"),
    ("ChineseCLIPImageProcessor", "OFA-Sys--chinese-clip-vit-base-patch16"),
    ("WhisperFeatureExtractor", "openai--whisper-base"),
    ("ClapFeatureExtractor", "laion--clap-htsat-fused"),
    ("ASTFeatureExtractor", "MIT--ast-finetuned-audioset-10-10-0.4593"),
    ("CLIPProcessor", "openai--clip-vit-base-patch32@4.57"),
    ("BlipProcessor", "Salesforce--blip-image-captioning-large@5.5.4"),
    ("WhisperProcessor", "openai--whisper-base"),
    ("ClapProcessor", "laion--clap-htsat-fused"),
]


def part(name: str, folder: Path) -> Shared:
    import transformers

    theirs = getattr(transformers, f"{name}Pil" if "Image" in name else name).from_pretrained(folder)
    ours = getattr(bvl, name).from_pretrained(folder)
    both = ((), {"images": picture(), "text": [TEXT, OTHER], "padding": True, "return_tensors": "np"})
    if "Tokenizer" in name:
        calls = text_calls(theirs(TEXT)["input_ids"])
    elif "ImageProcessor" in name:
        calls = {name: ((picture(),), {"return_tensors": "np"}) for name in ("__call__", "preprocess")}
    elif "FeatureExtractor" in name:
        rate = ours.sampling_rate
        calls = {"__call__": ((sound(),), {"sampling_rate": rate, "return_tensors": "np"})}
    elif name in ("WhisperProcessor", "ClapProcessor"):
        rate = ours.feature_extractor.sampling_rate
        calls = {"__call__": ((), {"audio": sound(), "sampling_rate": rate, "return_tensors": "np"})}
    else:
        calls = {"__call__": both}
    return Shared(name, theirs, ours, calls)


def tiny(cls: str, config: Any, folder: Path) -> tuple[Any, Any]:
    """A model of transformers with random weights, and ours of its folder."""
    import torch
    import transformers

    torch.manual_seed(0)
    model = getattr(transformers, cls)(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.05 * torch.randn_like(weight)
    model.save_pretrained(folder)
    return model, getattr(bvl, cls).from_pretrained(folder)


def models(place: Path) -> Iterator[Shared]:
    import torch
    import transformers

    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = small | {"vocab_size": 300, "max_position_embeddings": 24}
    vision = small | {"image_size": 32, "patch_size": 16}
    ids, pixels = torch.tensor([[1, 7, 9, 2], [1, 30, 2, 0]]), torch.randn(2, 3, 32, 32)
    mask = (ids > 0).long()
    both = {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}
    words, seen = {"input_ids": ids, "attention_mask": mask}, {"pixel_values": pixels}
    calls = {"forward": ((), both), "get_text_features": ((), words), "get_image_features": ((), seen)}
    clip = transformers.CLIPConfig(text_config=text | {"eos_token_id": 2}, vision_config=vision, projection_dim=24)
    yield Shared("CLIPModel", *tiny("CLIPModel", clip, place / "clip"), calls, MODEL_NAMES)
    siglip = transformers.SiglipConfig(text_config=text, vision_config=vision)
    yield Shared("SiglipModel", *tiny("SiglipModel", siglip, place / "siglip"), calls, MODEL_NAMES)
    bert = transformers.BertConfig(**text)
    yield Shared("BertModel", *tiny("BertModel", bert, place / "bert"), {"forward": ((), words)}, MODEL_NAMES)
    decoder = text | {"bos_token_id": 298, "sep_token_id": 2, "pad_token_id": 0, "encoder_hidden_size": 32}
    blip = transformers.BlipConfig(text_config=decoder, vision_config=vision)
    name = "BlipForConditionalGeneration"
    writes = {"forward": ((), both), "generate": ((), seen | {"max_new_tokens": 6})}
    yield Shared(name, *tiny(name, blip, place / "blip"), writes, MODEL_NAMES)


def sentence_encoder(place: Path) -> Shared:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import AutoTokenizer, BertConfig, BertModel

    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=30522, **size)).save_pretrained(place / "words")
    words = AutoTokenizer.from_pretrained(published.folder() / "sentence-transformers--all-MiniLM-L6-v2")
    words.save_pretrained(place / "words")
    model = SentenceTransformer(modules=[Transformer(str(place / "words")), Pooling(32)], prompts={"query": "what "})
    model.save(str(place / "sentences"))
    model = SentenceTransformer(str(place / "sentences"), device="cpu")
    rows = model.encode([TEXT, OTHER, LONG])
    calls = {"encode": (([TEXT, OTHER],), {}), "encode_query": (([TEXT, OTHER],), {}),
             "encode_document": (([TEXT, OTHER],), {}), "similarity": ((rows, rows[:2]), {}),
             "similarity_pairwise": ((rows, rows), {}), "get_embedding_dimension": ((), {}),
             "get_max_seq_length": ((), {}), "get_sentence_embedding_dimension": ((), {})}  # fmt: skip
    ours = bvl.SentenceTransformer(str(place / "sentences"))
    names = (*calls, "prompts", "default_prompt_name", "similarity_fn_name", "truncate_dim", "max_seq_length", "device",
             "start_multi_process_pool", "stop_multi_process_pool", "truncate_embeddings", "modalities", "tokenizer",
             "tokenize", "supports", "eval", "to", "save", "save_pretrained")  # fmt: skip
    return Shared("SentenceTransformer", model, ours, calls, names)


def everything(place: Path) -> Iterator[Shared]:
    for name, folder in PARTS:
        yield part(name, published.folder() / folder)
    yield from models(place)
    yield sentence_encoder(place)


# ---- what a method may be given


def arguments(function: Callable[..., Any]) -> dict[str, Any]:
    """Arguments that may be left out, those of a typed **kwargs too, and what they are then."""
    found: dict[str, Any] = {}
    for p in inspect.signature(function).parameters.values():
        if p.kind is p.VAR_KEYWORD:
            for kind in typing.get_args(p.annotation) or ():
                found |= dict.fromkeys(hints(kind), None)
        elif p.default is not p.empty and not p.name.startswith("_"):
            found[p.name] = p.default
    return found


@cache
def hints(kind: Any) -> tuple[str, ...]:
    """Names in a typed dictionary; of one that holds options by part, those of the parts."""
    names: list[str] = []
    for name, value in getattr(kind, "__annotations__", {}).items():
        names += list(getattr(value, "__annotations__", ())) if name.endswith("_kwargs") else [name]
    return tuple(dict.fromkeys(names))


def values_of(shared: Shared, name: str, default: Any) -> list[Any]:
    if name in VALUES:
        return VALUES[name]
    attribute = getattr(shared.theirs, name, default)
    if isinstance(default, bool) or isinstance(attribute, bool):
        return FLAGS
    return [default if default is not None else attribute if plain(attribute) else None]


def plain(value: Any) -> bool:
    return isinstance(value, bool | int | float | str | list | tuple | dict | None)


# ---- what comes of it


def outcome(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, str]:
    """(what it gives, "") or (None, what it says)."""
    quiet = contextlib.redirect_stderr(io.StringIO())
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), quiet:
        warnings.simplefilter("ignore")
        np.random.seed(0)  # of which the peer draws
        try:
            return simple(function(*args, **kwargs)), ""
        except Exception as error:  # of any kind: it is what differs
            return None, f"{type(error).__name__}: {' '.join(str(error).split())[:80]}"


def simple(value: Any) -> Any:
    """Plain data of what a call returns."""
    if hasattr(value, "detach"):
        value = value.detach().numpy()
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "items"):
        return {str(name): simple(one) for name, one in value.items() if one is not None}
    if isinstance(value, list | tuple):
        return [simple(one) for one in value]
    if isinstance(value, np.generic):
        return value.item()
    return value.value if hasattr(value, "value") and isinstance(value.value, str) else value


def same(a: Any, b: Any) -> bool:
    if (
        isinstance(a, np.ndarray) and isinstance(b, dict) and "pooler_output" in b
    ):  # get_*_features: an array that has it
        return same(a, b["pooler_output"])
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        a, b = np.asarray(a), np.asarray(b)
        if a.shape != b.shape or a.dtype.kind not in "fiub":
            return a.shape == b.shape and bool((a == b).all())
        tolerance = 1 if a.dtype in (np.int8, np.uint8) else 1e-3  # a step of quantised rows
        return bool(np.allclose(a.astype(float), b.astype(float), atol=tolerance, rtol=1e-4))
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) or isinstance(b, float):
        return isinstance(a, int | float) and isinstance(b, int | float) and abs(a - b) < 1e-3
    return bool(a == b)


def told(value: Any) -> str:
    """A value in a few words."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {told(one)}" for name, one in list(value.items())[:6]) + "}"
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    return " ".join(repr(value).split())[:60]


# ---- rows


def attributes(shared: Shared) -> Iterator[tuple[str, str, str, str]]:
    for name in shared.names or [name for name in dir(shared.theirs) if not name.startswith("_")]:
        value, failed = outcome(partial(getattr, shared.theirs), (name,), {})
        if failed:
            continue
        if not hasattr(shared.ours, "__call__" if name == "forward" else name):
            yield shared.name, name, "", "absent"
        elif not callable(value) and name != "config" and (plain(value) or hasattr(value, "dtype")):
            own, failed = outcome(partial(getattr, shared.ours), (name,), {})
            if failed or not same(own, value):
                yield shared.name, name, "", failed or f"{told(own)}, theirs {told(value)}"[:120]


def calls(shared: Shared) -> Iterator[tuple[str, str, str, str]]:
    for method, (args, kwargs) in shared.calls.items():
        theirs = getattr(shared.theirs, method, None)
        ours = getattr(shared.ours, "__call__" if method == "forward" else method, None)
        if theirs is None or ours is None:
            continue
        tried: list[tuple[str, Any]] = [("", None)]
        for name, default in arguments(theirs).items():
            if name not in kwargs:
                tried += [(name, value) for value in values_of(shared, name, default)]
        for name, value in tried:
            given = kwargs | ({name: value} if name else {}) | (BESIDE.get(name, {}) if name else {})
            wanted, refused = outcome(theirs, args, given)
            if refused:
                continue
            found, failed = outcome(ours, args, given)
            if failed or not same(found, wanted):
                said = failed or f"{told(found)}, theirs {told(wanted)}"[:120]
                yield shared.name, method, f"{name}={told(value)}" if name else "", said


def rows() -> list[tuple[str, str, str, str, str]]:
    """(class, name, argument=value, what differs, why) of every difference."""
    with tempfile.TemporaryDirectory() as place:
        shared = everything(Path(place))
        return [(*row, why(row)) for one in shared for row in (*attributes(one), *calls(one))]


def why(row: tuple[str, str, str, str]) -> str:
    """Empty where nothing explains it."""
    return next((reason for pattern, reason in WHY if re.search(pattern, " ".join(row))), "")


if __name__ == "__main__":
    import conftest  # noqa: F401  (transformers' Pillow path)

    print("".join("\t".join(row) + "\n" for row in rows()), end="")
