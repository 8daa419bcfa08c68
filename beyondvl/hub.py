"""From what the user names to a folder of files: a folder, the shipped default, or a hub id.

The network is touched only for a hub id, and only by huggingface_hub (extra `[hub]`), imported then.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

__all__ = ["DEFAULT_MODEL", "hub_options", "resolve"]

DEFAULT_MODEL = "beyond-vl-model"
PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model", "packed.bin"]
NESTED = ["*/*.safetensors", "*/*.bin", "*/*.txt", "*/*.model"]  # of subfolders only small configs are wanted
TORCH_PATTERNS = ["pytorch_model*.bin", "open_clip_pytorch_model.bin"]


def hub_options(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Takes what `resolve` knows of the hub out of a caller's keyword arguments, and what changes nothing here."""
    for ignored in ("use_fast", "backend"):
        kwargs.pop(ignored, None)
    refuse_remote_code(kwargs.pop("trust_remote_code", False))
    names = ("revision", "cache_dir", "local_files_only", "token")
    return {name: kwargs.pop(name) for name in names if name in kwargs}


def refuse_remote_code(trusted: Any) -> None:
    if trusted:
        raise ValueError("trust_remote_code: configuration files never name code here; leave it out")


def default_folder() -> Path:
    return Path(__file__).parent / "default"


def resolve(
    name: str | os.PathLike,
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    weights: bool = True,
) -> Path:
    """The folder that holds the files of `name`.

    `name` is a folder, "beyond-vl-model" (shipped inside the package), or a hub id "owner/name" (also
    "hf-hub:owner/name"). With `weights` False only configuration and tokenizer files are fetched. safetensors are
    preferred; a repository that holds only pytorch_model.bin gives that.

    Raises FileNotFoundError when there is no such folder and it is no hub id, ImportError when huggingface_hub is
    needed and not installed.
    """
    text = os.fspath(name)
    if text and Path(text).is_dir():
        return Path(text)
    if text == DEFAULT_MODEL:
        return default_folder()
    text = text.removeprefix("hf-hub:")
    parts = text.split("/")
    if len(parts) > 2 or not all(parts) or Path(text).exists() or text.startswith((".", "~")):
        raise FileNotFoundError(f"{text!r}: no such folder, and not a hub id of the form owner/name")
    return _download(text, revision, cache_dir, local_files_only, token, weights)


def _download(repo, revision, cache_dir, local_files_only, token, weights) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ImportError(
            f"{repo!r} is not a folder; to fetch it from the hub install huggingface_hub: pip install 'beyondvl[hub]'"
        ) from error
    options = {
        "ignore_patterns": NESTED,
        "revision": revision,
        "cache_dir": cache_dir,
        "local_files_only": local_files_only,
        "token": token,
    }
    patterns = PATTERNS if weights else [p for p in PATTERNS if p != "*.safetensors"]
    folder = Path(snapshot_download(repo, allow_patterns=patterns, **options))
    own = any(folder.glob("model*.safetensors")) or (
        (folder / "open_clip_model.safetensors").exists() and not (folder / "config.json").exists()
    )
    if weights and not own:
        folder = Path(snapshot_download(repo, allow_patterns=patterns + TORCH_PATTERNS, **options))
    return folder
