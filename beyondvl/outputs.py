"""What models and processors return: dictionaries with attributes, in the caller's kind of array."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from . import _C

__all__ = ["BatchFeature", "Features", "ModelOutput", "features_of", "from_numpy", "is_torch", "kind_of", "to_numpy"]


FLOATS = ("float32", "bfloat16", "float16", "float64")


def is_torch(value: Any) -> bool:
    """Whether value is a torch tensor, without importing torch: a tensor exists only where torch was imported."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def kind_of(*values: Any) -> str:
    """What a caller who gave these wants back: "pt" when any of them is a torch tensor, else "np"."""
    return "pt" if any(map(is_torch, values)) else "np"


def to_numpy(value: Any, name: str = "input") -> np.ndarray:
    """An array that shares memory with a torch CPU tensor (float32 of bfloat16, which NumPy lacks), or np.asarray of
    anything else. ValueError names what does not make an array, such as rows of different lengths."""
    if not is_torch(value):
        try:
            return np.asarray(value)
        except ValueError as error:
            raise ValueError(f"{name}: found what makes no array, expected rows of one length") from error
    value = value.detach()
    value = value.to_dense() if value.is_sparse else value
    return (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()


def from_numpy(array: np.ndarray, kind: str | None) -> Any:
    """`array` as NumPy ("np"), torch ("pt", sharing memory) or nested lists (None)."""
    if kind is None:
        return array.tolist()
    if kind == "np":
        return array
    if kind != "pt":
        raise ValueError(f"return_tensors: found {kind!r}, expected 'np', 'pt' or None")
    import torch

    return torch.from_numpy(np.ascontiguousarray(array))


def each_from_numpy(value: Any, kind: str) -> Any:
    """As `from_numpy`, of an array or of those in a dictionary, whose other values stay."""
    if isinstance(value, dict):
        return {name: from_numpy(one, kind) if isinstance(one, np.ndarray) else one for name, one in value.items()}
    return from_numpy(value, kind)


class Device(str):
    """A device's name that is also equal to torch's device of that name, and has its `type`."""

    @property
    def type(self) -> str:
        return str(self)

    def __eq__(self, other: Any) -> bool:
        return str(self) == str(other)

    __hash__ = str.__hash__


CPU = Device("cpu")


class ModelOutput(dict):
    """A dictionary whose items are also attributes; indexing by number follows the order, as in transformers."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no field {name!r}; it has {', '.join(self)}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __getitem__(self, key: str | int | slice) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def to_tuple(self) -> tuple:
        return tuple(self.values())

    def _repr_html_(self) -> str:
        rows = "".join(_html_row(name, value) for name, value in self.items())
        return f"<table><caption>{type(self).__name__}</caption>{rows}</table>"


class BatchFeature(ModelOutput):
    """What a processor returns; `.to("cpu")` returns itself."""

    def to(self, device: Any = None, dtype: Any = None, **kwargs: Any) -> BatchFeature:
        """Stays on the CPU; torch tensors of floats become `dtype`, as in transformers. Raises ValueError for any other
        device."""
        device, dtype = device_and_dtype(device, dtype)
        check_device(device)
        if dtype is not None:
            wanted = getattr(sys.modules.get("torch"), dtype, None)
            for name, value in self.items():
                if is_torch(value) and value.is_floating_point() and wanted is not None:
                    self[name] = value.to(wanted)
        return self


class Features(np.ndarray):
    """Embeddings [B, D] that also answer to `.pooler_output` (transformers 5) and `.last_hidden_state`."""

    last_hidden_state: np.ndarray | None = None

    @property
    def pooler_output(self) -> np.ndarray:
        return self.view(np.ndarray)

    def __array_finalize__(self, source: Any) -> None:
        self.last_hidden_state = None

    def _repr_html_(self) -> str:
        return f"<table>{_html_row('features', self.view(np.ndarray))}</table>"


def features_of(embeds: np.ndarray, kind: str) -> Any:
    """Embeddings [B, D] as Features, or as a torch tensor that also answers to `.pooler_output`."""
    if kind != "pt":
        return embeds.view(Features)
    rows = from_numpy(embeds, kind)
    rows.pooler_output = rows.detach()  # the same memory
    return rows


def device_and_dtype(device: Any, dtype: Any) -> tuple[Any, str | None]:
    """What `.to(...)` was given, a dtype by its name; torch takes either as its first argument."""
    if str(device).startswith("torch.") or device in FLOATS:
        device, dtype = None, device
    return device or "cpu", None if dtype is None else str(dtype).removeprefix("torch.")


def check_count(name: str, value: Any, unit: str = "") -> None:
    """ValueError for anything but a whole number from 1; `unit` (" of samples") is said in it."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name}: found {value!r}, expected a whole number{unit} from 1")


def thread_count(value: Any) -> int:
    """A caller's `num_threads`, or the processors of this process for None. ValueError for anything else."""
    if value is None:
        return _C.default_threads()
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1024:
        raise ValueError(f"num_threads: found {value!r}, expected 1 to 1024")
    return value


def check_allowed(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """ValueError for an option of transformers at a value that would change something."""
    if not any(value is one for one in allowed):
        said = type(value).__name__ if hasattr(value, "shape") else repr(value)
        raise ValueError(f"{name}: found {said}, which is not available here")


def check_device(device: Any) -> None:
    if str(device).split(":")[0] != "cpu":
        raise ValueError(f"device: found {str(device)!r}, expected 'cpu': beyondvl runs on the processor only")


def _html_row(name: str, value: Any) -> str:
    from html import escape  # loading a model does not wait for it

    return f"<tr><th>{escape(name)}</th><td>{escape(_describe(value))}</td></tr>"


def _describe(value: Any) -> str:
    if value is None:
        return "None"
    if not hasattr(value, "shape"):
        return f"{type(value).__name__} with {', '.join(value)}" if isinstance(value, dict) else repr(value)
    array = to_numpy(value)
    shape = " x ".join(map(str, array.shape))
    if array.size == 0 or not np.issubdtype(array.dtype, np.number):
        return f"{array.dtype} [{shape}]"
    return f"{array.dtype} [{shape}], from {array.min():.4g} to {array.max():.4g}"
