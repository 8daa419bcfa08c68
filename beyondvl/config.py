"""config.json and its relatives: read with limits, every number checked before anything is built from it.

Configuration files never name code: `auto_map`, `trust_remote_code` and attention implementations are ignored.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .errors import ConfigError
from .files import read_regular

__all__ = ["MAX_JSON_BYTES", "Config", "decode_text", "parse_json", "parse_json_list", "read_config_file", "read_json"]

MAX_JSON_BYTES = 50_000_000


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of bounded size; ConfigError names the file and what is wrong."""
    return parse_json(read_config_file(path), path.name)


def parse_json(data: bytes, name: str) -> dict[str, Any]:
    """A JSON object; ConfigError names the file and what is wrong."""
    value = _parse(data, name)
    if not isinstance(value, dict):
        raise ConfigError(f"{name}: expected an object, found {type(value).__name__}")
    return value


def parse_json_list(data: bytes, name: str) -> list[Any]:
    """A JSON array, as `parse_json`."""
    value = _parse(data, name)
    if not isinstance(value, list):
        raise ConfigError(f"{name}: expected an array, found {type(value).__name__}")
    return value


def _parse(data: bytes, name: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name}: not valid JSON: {error}") from error


def read_config_file(path: Path, most: int = MAX_JSON_BYTES) -> bytes:
    """The whole of a file of a checkpoint other than its weights. ConfigError when it cannot be read."""
    try:
        return read_regular(path, most)
    except FileNotFoundError as error:
        raise ConfigError(f"{path.name} is missing from {path.parent}") from error
    except OSError as error:
        raise ConfigError(f"{path.name}: cannot be read: {error.strerror}") from error


def decode_text(data: bytes, name: str) -> str:
    """Text of UTF-8; ConfigError names the file where it is none."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: not UTF-8: {error}") from error


class Config:
    """A (nested) configuration: fields as attributes, and typed reads that check their range.

    `config.text_config.hidden_size` works as in transformers. `where` is the path shown in errors.
    """

    def __init__(self, values: dict[str, Any], where: str = "config.json"):
        self._values, self._where = values, where

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._values:
            raise AttributeError(f"{self.__dict__.get('_where', 'config')} has no field {name!r}")
        value = self._values[name]
        return Config(value, f"{self._where}: {name}") if isinstance(value, dict) else value

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __repr__(self) -> str:
        return f"Config({json.dumps(self._values, indent=2, default=str)})"

    def get(self, name: str, default: Any = None) -> Any:
        return self._values.get(name, default)

    def to_dict(self) -> dict[str, Any]:
        return self._values

    def section(self, name: str) -> Config:
        """A nested object; an absent one is empty, so that every field takes its default."""
        value = self._values.get(name)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise ConfigError(f"{self._where}: {name}: found {value!r}, expected an object")
        return Config(value, f"{self._where}: {name}")

    def updated(self, other: Config) -> Config:
        """This configuration with the fields of another one over it."""
        return Config(self._values | other._values, self._where)

    def over(self, other: Config) -> Config:
        """The same, named as this one is in errors."""
        return Config(other._values | self._values, self._where)

    def with_older_sections(self) -> Config:
        """Early configs hold a `text_config_dict` beside their `text_config`, which then counts alone, as in
        transformers: what it leaves out is the class's default, whatever the section says."""
        older = {n.removesuffix("_dict"): value for n, value in self._values.items() if n.endswith("_config_dict")}
        return Config(self._values | {n: value for n, value in older.items() if value}, self._where)

    def integer(self, name: str, default: int | None, low: int = 1, high: int = 1 << 20) -> int:
        value = self._values.get(name)
        if value is None:
            value = default
        if value is None:
            raise ConfigError(f"{self._where}: {name} is missing")
        if type(value) is not int or not low <= value <= high:
            raise ConfigError(f"{self._where}: {name}: found {value!r}, expected a whole number from {low} to {high}")
        return value

    def number(self, name: str, default: float, low: float, high: float) -> float:
        value = self._values.get(name)
        if value is None:
            value = default
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ConfigError(f"{self._where}: {name}: found {value!r}, expected a number from {low} to {high}")
        return float(value)

    def boolean(self, name: str, default: bool) -> bool:
        value = self._values.get(name)
        if value is None:
            value = default
        if type(value) is not bool:
            raise ConfigError(f"{self._where}: {name}: found {value!r}, expected true or false")
        return value

    def choice(self, name: str, default: str, allowed: tuple[str, ...]) -> str:
        value = self._values.get(name)
        if value is None:
            value = default
        if value not in allowed:
            raise ConfigError(f"{self._where}: {name}: found {value!r}, expected one of {', '.join(allowed)}")
        return value

    def heads(self, hidden_size: int, default_hidden: int, default_heads: int) -> int:
        """num_attention_heads. A class default counts only together with the class's own hidden size: a wrong
        number of heads loads without an error and ruins the results."""
        if "num_attention_heads" not in self and hidden_size != default_hidden:
            raise ConfigError(
                f"{self._where}: num_attention_heads is missing, expected it beside hidden_size {hidden_size}"
            )
        heads = self.integer("num_attention_heads", default_heads, 1, 1024)
        if hidden_size % heads:
            raise ConfigError(f"{self._where}: hidden_size {hidden_size} is not a multiple of {heads} heads")
        return heads
