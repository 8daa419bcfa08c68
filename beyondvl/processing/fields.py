"""Fields as JSON files hold them: what every part of a processor but tokenizers is written to and read from."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, ClassVar

from ..config import read_json
from ..folder import Folder

__all__ = ["JsonFields"]


class JsonFields:
    """`to_dict` in files. `others` are fields of the file it was read from that change nothing; they are attributes
    too, and are written again."""

    others: dict[str, Any]
    file_name: ClassVar[str] = "preprocessor_config.json"

    def __getattr__(self, name: str) -> Any:
        others = self.__dict__.get("others", {})
        if name not in others:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return others[name]

    def to_dict(self) -> dict[str, Any]:
        """The fields."""
        raise NotImplementedError

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike) -> Any:
        """Of the fields in a JSON file. ConfigError where it is none."""
        return cls.from_dict(read_json(Path(json_file)))

    def to_json_string(self) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def to_json_file(self, json_file_path: str | os.PathLike) -> None:
        """Writes `to_dict` there."""
        Path(json_file_path).write_text(self.to_json_string(), "utf-8")

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> list[str]:
        """Writes the file that `from_pretrained` reads; its path."""
        if kwargs.pop("push_to_hub", False) or kwargs:
            raise TypeError(f"save_pretrained() got unexpected arguments: {', '.join(kwargs) or 'push_to_hub'}")
        path = Folder(save_directory).path / self.file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        self.to_json_file(path)
        return [str(path)]
