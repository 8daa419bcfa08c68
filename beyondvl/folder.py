"""The files of a checkpoint beside its weights, by their names within its folder ("1_Pooling/config.json").

A model holds them: what is needed later (a tokenizer, a prompt, generation settings) is read when the model is loaded,
so that a folder which moves or vanishes, or a working directory that changes, changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .config import MAX_JSON_BYTES, Config, decode_text, parse_json, parse_json_list, read_config_file
from .errors import ConfigError

__all__ = ["KNOWN", "Folder"]

# what libraries write beside weights; in folders within it too (1_Pooling, qformer_tokenizer)
KNOWN = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
    "normalizer.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "open_clip_config.json",
)


class Folder:
    """Files by name: read when asked for, or held in memory since `hold`. `path` is absolute."""

    def __init__(self, path: str | os.PathLike, files: Mapping[str, bytes] | None = None):
        self.path = Path(os.path.abspath(path))
        self._files = files

    def __repr__(self) -> str:
        return f"Folder({str(self.path)!r})"

    def __str__(self) -> str:
        return str(self.path)

    def __contains__(self, name: str) -> bool:
        if self._files is not None:
            return name in self._files
        path = self.path / name  # what is no regular file is there too, and is refused when it is read
        return path.exists() and not path.is_dir()

    def hold(self) -> Folder:
        """The same files, read now and kept."""
        if self._files is not None:
            return self
        nested = (path.name for path in self.path.iterdir() if path.is_dir() and not path.name.startswith("."))
        names = [
            name for place in ("", *sorted(nested)) for known in KNOWN if (name := os.path.join(place, known)) in self
        ]
        return Folder(self.path, {name: self.read(name) for name in names})

    @property
    def files(self) -> Mapping[str, bytes]:
        """The contents of those that are held, by name."""
        return self.hold()._files or {}

    def read(self, name: str, most: int = MAX_JSON_BYTES) -> bytes:
        """A file's content. ConfigError when it is missing, cannot be read or is larger than `most`."""
        if self._files is None:
            return read_config_file(self.path / name, most)
        if name not in self._files:
            raise ConfigError(f"{name} is missing from {self.path}")
        return self._files[name]

    def text(self, name: str) -> str:
        """A file of UTF-8."""
        return decode_text(self.read(name), name)

    def json(self, name: str) -> dict[str, Any]:
        """A file that holds a JSON object."""
        return parse_json(self.read(name), name)

    def json_list(self, name: str) -> list[Any]:
        """A file that holds a JSON array."""
        return parse_json_list(self.read(name), name)

    def config(self, name: str) -> Config:
        """A file that holds a JSON object; an absent one is empty, so that every field takes its default."""
        return Config(self.json(name) if name in self else {}, name)

    def within(self, name: str) -> Folder:
        """A folder within it, whose files go by their own names."""
        if not name or name == ".":
            return self
        if self._files is None:
            return Folder(self.path / name)
        prefix = name.rstrip("/") + "/"
        return Folder(
            self.path / name, {n.removeprefix(prefix): data for n, data in self._files.items() if n.startswith(prefix)}
        )
