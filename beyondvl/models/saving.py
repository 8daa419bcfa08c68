"""A checkpoint written again elsewhere: its files as they were read, weights as they lie, the options of `encode`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..files import check_empty, write_aside
from ..hub import SHIPPED, WEIGHTS, shipped_name
from ..outputs import check_allowed
from ..sentences import BERT_FILE, FILE
from ..weights import Checkpoint, open_checkpoint, save_safetensors
from .load import open_stored
from .packed import write_companions

__all__ = ["copy_checkpoint", "float_tensors", "write_changed", "write_floats"]

# of transformers' save_pretrained, at the values that change nothing
NEUTRAL = {"push_to_hub": (None, False), "safe_serialization": (None, True), "max_shard_size": (None, "5GB", "50GB"),
           "safe_serialization_options": (None,), "create_model_card": (None, True, False), "model_name": (None,),
           "train_datasets": (None,)}  # fmt: skip


def copy_checkpoint(model: Any, target: Path, settings: dict[str, Any]) -> None:
    """See `PreTrainedModel.save_pretrained`."""
    for name, value in settings.items():
        if name not in NEUTRAL:
            raise TypeError(f"save_pretrained() got unexpected arguments: {name}")
        check_allowed(name, value, NEUTRAL[name])
    source = model.folder
    if target.resolve() == source.resolve():
        raise ValueError(f"{target}: the checkpoint's own folder, expected another one")
    weights = sorted({path.relative_to(source) for pattern in WEIGHTS for path in source.glob(pattern)})
    if not weights:
        raise FileNotFoundError(f"{source}: its weights are gone, expected them where they were loaded from")
    others = sorted({path.relative_to(target) for pattern in WEIGHTS for path in target.glob(pattern)} - {*weights})
    if others:
        raise ValueError(f"{target}: found another checkpoint's {others[0]}, expected a new folder")
    with write_aside(target, tuple(map(str, weights))) as aside:
        write_companions(dict(model.files.files) | _options(model), aside)
        for name in weights:
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, aside / name)


def write_floats(target: Path, tensors: dict[str, Any], files: Mapping[str, bytes]) -> None:
    """A checkpoint of float32 tensors, one model.safetensors beside other files. ValueError where the folder holds
    files: those of another checkpoint would be read with the new weights."""
    check_empty(target)
    with write_aside(target, ("model.safetensors",)) as aside:
        save_safetensors(aside / "model.safetensors", tensors, {"format": "pt"})
        write_companions(files, aside)


def float_tensors(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """All tensors of numbers as float32, those of int8 multiplied by their scales."""
    skipped = {n for n in checkpoint.names() if checkpoint.entries[n].dtype not in ("F64", "F32", "F16", "BF16", "I8")}
    scales = {checkpoint.scale_name(n) for n in checkpoint.names()}
    names = [n for n in checkpoint.names() if n not in skipped | scales]
    return {n: checkpoint.read(n, checkpoint.entries[n].shape) for n in names}


def write_changed(model: Any, target: Path, changed: dict[str, np.ndarray]) -> None:
    """A model's checkpoint with other values of some tensors, by their encoders' names; over a model that the package
    holds these alone."""
    stored, named = open_stored(model)
    of_entry = {id(stored.entries[name]): name for name in stored.names()}
    values = {of_entry[id(named.entries[name])]: value for name, value in changed.items()}
    files = dict(model.files.files) | _options(model)
    base = shipped_name(model.folder)
    if model.config.get("base_model_name_or_path") in SHIPPED:  # its own tensors over those it is lent
        values = float_tensors(open_checkpoint(model.folder)) | values
    elif base is None:
        values = float_tensors(stored) | values
    else:
        config = json.loads(files["config.json"]) | {"base_model_name_or_path": base}
        files["config.json"] = json.dumps(config, indent=2).encode()
    write_floats(target, values, files)


def _options(model: Any) -> dict[str, bytes]:
    """Files that say what a model's options of `encode` are, where its folder says nothing or something else."""
    files, model_place = model.files, ""
    if model.sentences:
        place = model.sentences.model.path.relative_to(model.sentences.folder.path)
        model_place = "" if str(place) == "." else f"{place}/"
    stated = {"prompts": model.prompts, "default_prompt_name": model.default_prompt_name,
              "similarity_fn_name": model.options["_similarity_fn_name"]}  # fmt: skip
    stated |= {"truncate_dim": model.truncate_dim} if model.truncate_dim else {}
    fields = {**files.config(FILE).to_dict(), **stated}
    fields = fields if model.truncate_dim else {n: value for n, value in fields.items() if n != "truncate_dim"}
    made = {FILE: fields}
    if length := model.options["_max_seq_length"]:
        made[model_place + BERT_FILE] = files.config(model_place + BERT_FILE).to_dict() | {"max_seq_length": length}
    return {name: json.dumps(values, indent=2, ensure_ascii=False).encode() for name, values in made.items()}
