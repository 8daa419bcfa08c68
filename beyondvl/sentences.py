"""What a sentence encoder's folder says beside its model: sentence-transformers' own files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from .config import Config, read_json, read_json_list
from .errors import ConfigError

__all__ = ["sentence_prompts", "sentence_settings"]

MODES = {"mean_tokens": "mean", "cls_token": "first", "mean": "mean", "cls": "first"}  # the latter since version 6


def sentence_settings(folder: Path) -> dict[str, Any]:
    """How a sentence-transformers folder pools: {"pooling": "mean" or "first", "normalize": bool}."""
    try:
        modules = read_json_list(folder / "modules.json")
        kinds = {str(module["type"]).rsplit(".", 1)[-1]: str(module.get("path", "")) for module in modules}
    except (TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"modules.json: expected objects with type and path: {error}") from error
    unknown = set(kinds) - {"Transformer", "Pooling", "Normalize"}
    if unknown:
        raise ConfigError(f"modules.json: found {', '.join(sorted(unknown))}, expected Transformer, Pooling, Normalize")
    pooling = "mean"
    place = kinds.get("Pooling", "")
    if "Pooling" in kinds:
        if not re.fullmatch(r"[\w\-]+", place):
            raise ConfigError(f"modules.json: Pooling: path {place!r}, expected a plain folder name")
        path = folder / place / "config.json"
        fields = read_json(path)
        modes = [name.removeprefix("pooling_mode_") for name, on in fields.items() if on is True and "_mode_" in name]
        newer = fields.get("pooling_mode")
        modes += newer if isinstance(newer, list) else [newer] if newer is not None else []
        if len(modes) != 1 or str(modes[0]) not in MODES:
            raise ConfigError(f"{path.parent.name}/config.json: pooling {modes}, expected the mean or the cls token")
        if fields.get("include_prompt", True) is not True:
            raise ConfigError(f"{path.parent.name}/config.json: include_prompt: found false, expected true")
        pooling = MODES[modes[0]]
    return {"pooling": pooling, "normalize": "Normalize" in kinds}


def sentence_prompts(folder: Path) -> tuple[dict[str, str], str | None]:
    """Prompts by name, and the name of the one that stands before every text, if any."""
    path = folder / "config_sentence_transformers.json"
    fields = Config(read_json(path) if path.exists() else {}, path.name)
    prompts, default = fields.get("prompts", {}), fields.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise ConfigError(f"{path.name}: prompts: found {prompts!r}, expected texts by name")
    if default is not None and (not isinstance(default, str) or default not in prompts):
        raise ConfigError(f"{path.name}: default_prompt_name: found {default!r}, expected one of {list(prompts)}")
    return prompts, default
