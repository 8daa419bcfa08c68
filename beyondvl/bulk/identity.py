"""What tells whether embeddings are of one space: the checkpoint's files and the precision they are computed in."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from ..hub import SHIPPED, WEIGHTS, shipped_folder

__all__ = ["fingerprint"]

KNOWN: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


def fingerprint(model: Any) -> str:
    """32 hex digits of a model's configuration, processor files and weights (SHA-256), the weights as they lie in its
    folder when it is asked for first. FileNotFoundError where they are there no more."""
    if model not in KNOWN:
        KNOWN[model] = _fingerprint(model)
    return KNOWN[model]


def _fingerprint(model: Any) -> str:
    digest = hashlib.sha256()
    for name, content in sorted(model.files.files.items()):
        digest.update(f"{name} {len(content)} ".encode() + content)
    base = model.config.get("base_model_name_or_path")
    folders = [Path(model.folder), *([shipped_folder(base)] if base in SHIPPED else [])]
    paths = [path for folder in folders for pattern in WEIGHTS for path in sorted(folder.glob(pattern))]
    if not paths:
        raise FileNotFoundError(f"{model.folder}: no weights there any more, expected those that were loaded")
    for path in paths:
        with open(path, "rb") as file:
            digest.update(f"{path.name} ".encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:32]
