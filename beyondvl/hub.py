"""From what the user names to a folder of files: a folder, the shipped default, or a hub id.

The network is touched only for a hub id, and only by huggingface_hub (extra `[hub]`), imported then.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .folder import KNOWN, Folder

__all__ = ["DEFAULT_MODEL", "SHIPPED", "WEIGHTS", "open_folder", "resolve", "shipped_folder", "shipped_name"]

DEFAULT_MODEL = "beyond-vl-model"
SHIPPED = {DEFAULT_MODEL: "default", f"{DEFAULT_MODEL}-open": "open"}  # what the package holds, by name
FILES = (*KNOWN, "packed.json")
SAFETENSORS = [
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "packed.bin",
]
TORCH = ["pytorch_model*.bin", "pytorch_model.bin.index.json", "open_clip_pytorch_model.bin"]
PLACES = ["0_*", "[1-9]_Dense"]  # folders of sentence-transformers that hold weights
# what holds weights, in a folder and in those
WEIGHTS = [
    "packed.json",
    *SAFETENSORS,
    *TORCH,
    *(f"{place}/{name}" for place in PLACES for name in SAFETENSORS + TORCH),
]


def hub_options(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Takes what `resolve` knows of the hub out of a caller's keyword arguments, and what changes nothing here.
    ValueError for code that a repository would bring."""
    for ignored in ("use_fast", "backend", "_from_auto", "code_revision"):
        kwargs.pop(ignored, None)
    if kwargs.pop("trust_remote_code", False):
        raise ValueError("trust_remote_code: configuration files never name code here; leave it out")
    names = ("revision", "cache_dir", "local_files_only", "token", "force_download", "proxies")
    options = {name: kwargs.pop(name) for name in names if name in kwargs}
    return {name: value for name, value in options.items() if value is not None}


def open_folder(name: str | os.PathLike, options: dict[str, Any], weights: bool = False) -> Folder:
    """The files of a folder or a hub id, or of a `subfolder` of it; what is of the hub is taken out of a caller's
    options. ValueError for a subfolder that lies elsewhere, and as `resolve`."""
    within = options.pop("subfolder", None) or ""
    if not isinstance(within, str) or Path(within).is_absolute() or ".." in Path(within).parts:
        raise ValueError(f"subfolder: found {within!r}, expected a folder within the checkpoint's")
    return Folder(resolve(name, subfolder=within, weights=weights, **hub_options(options))).within(within)


def shipped_folder(name: str) -> Path:
    return Path(__file__).parent / SHIPPED[name]


def shipped_name(folder: Path) -> str | None:
    """What a folder that the package holds is called; None of any other."""
    return next((name for name in SHIPPED if shipped_folder(name).resolve() == folder.resolve()), None)


def resolve(
    name: str | os.PathLike,
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    force_download: bool = False,
    proxies: dict[str, str] | None = None,
    subfolder: str = "",
    weights: bool = True,
) -> Path:
    """The folder that holds the files of `name`.

    `name` is a folder, "beyond-vl-model" (shipped inside the package), or a hub id "owner/name" (also
    "hf-hub:owner/name"). With `weights` False only configuration and tokenizer files are fetched, and of a `subfolder`
    its own files alone. safetensors are preferred; a repository that holds only pytorch_model.bin gives that.

    Raises FileNotFoundError when there is no such folder and it is no hub id, ImportError when huggingface_hub is
    needed and not installed.
    """
    text = os.fspath(name)
    if text and Path(text).is_dir():
        return Path(text)
    if text in SHIPPED:
        return shipped_folder(text)
    text = text.removeprefix("hf-hub:")
    parts = text.split("/")
    if len(parts) > 2 or not all(parts) or Path(text).exists() or text.startswith((".", "~")):
        raise FileNotFoundError(f"{text!r}: no such folder, and not a hub id of the form owner/name")
    options = {"revision": revision, "cache_dir": cache_dir, "local_files_only": local_files_only, "token": token,
               "force_download": force_download, "proxies": proxies}  # fmt: skip
    return _download(text, {n: value for n, value in options.items() if value}, subfolder, weights)


def _download(repo: str, options: dict[str, Any], subfolder: str, weights: bool) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ImportError(
            f"{repo!r} is not a folder; to fetch it from the hub install huggingface_hub: pip install 'beyondvl[hub]'"
        ) from error
    within = f"{subfolder.strip('/')}/" if subfolder else ""
    files = [within + name for name in FILES] + ([] if within else [f"*/{name}" for name in FILES])
    tensors = [within + name for name in SAFETENSORS] if weights else []
    nested = [] if within or not weights else [f"{place}/{name}" for place in PLACES for name in SAFETENSORS]
    try:
        folder = Path(snapshot_download(repo, allow_patterns=files + tensors + nested, **options))
        if weights and not _has_safetensors(folder / within):
            nested = [] if within else [f"{place}/{name}" for place in PLACES for name in TORCH]
            torch = [within + name for name in TORCH] + nested
            folder = Path(snapshot_download(repo, allow_patterns=files + torch, **options))
    except Exception as error:  # the client's own, of a dozen kinds, which speak of HTTP
        said = " ".join(str(error).split())[:300]
        raise FileNotFoundError(
            f"{repo!r}: no such folder, and the hub does not give it ({type(error).__name__}: {said})"
        ) from error
    return folder


def _has_safetensors(folder: Path) -> bool:
    """Whether a model's weights came as safetensors; OpenCLIP's own file counts where the model is OpenCLIP's."""
    files = [
        *folder.glob("model*.safetensors"),
        *(path for place in PLACES for path in folder.glob(f"{place}/*.safetensors")),
    ]
    alone = (folder / "open_clip_model.safetensors").exists() and not (folder / "config.json").exists()
    return bool(files) or alone or (folder / "packed.bin").exists()
