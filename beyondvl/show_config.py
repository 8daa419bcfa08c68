"""What this machine runs and why: `beyondvl.show_config()`."""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import Any

from . import _C

__all__ = ["describe", "show_config"]

OPTIONAL = {"simplejpeg": "fast JPEG", "av": "video files", "soundfile": "sound files", "soxr": "other sampling rates",
            "huggingface_hub": "hub ids", "torch": "return_tensors='pt'"}  # fmt: skip


def describe() -> dict[str, Any]:
    """The facts as a dictionary: processor, instruction set and the reason for it, threads, BLAS, optional parts."""
    from . import __version__

    build = _C.config()
    return {
        "beyondvl": __version__,
        "python": sys.version.split()[0],
        "cpu": build["cpu"],
        "isa": build["isa"],
        "isa_reason": build["isa_reason"],
        "isa_detected": build["isa_detected"],
        "num_threads": build["num_threads"],
        "cpus": build["cpus"],
        "gemm": os.environ.get("BEYONDVL_GEMM") or "own",
        "openblas": build["openblas"] or "opened at first use",
        "stb_image": build["stb"] or "not built in",
        "optional": {name: importlib.util.find_spec(name) is not None for name in OPTIONAL},
    }


def show_config() -> None:
    """Prints which kernels were chosen and why, threads, BLAS and optional parts."""
    facts = describe()
    optional = facts.pop("optional")
    for name, value in facts.items():
        print(f"{name:<13} {value}")
    for name, there in optional.items():
        print(f"{name:<13} {'installed' if there else 'not installed'} ({OPTIONAL[name]})")
