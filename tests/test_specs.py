"""The frozen data that models are described by, and how a config finds its family."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import beyondvl
from beyondvl import spec
from beyondvl.config import Config
from beyondvl.families.registry import families, find_family


def test_specs_are_made_as_dataclasses_are():
    norm = spec.Norm(spec.ref("a", 4), bias=None, eps=1e-5)
    changed = spec.replace(norm, eps=1e-6)
    assert (norm.eps, changed.eps, changed.weight) == (1e-5, 1e-6, norm.weight)
    assert list(vars(spec.QFormer(steps=(), stem=None, layers=(), hidden_size=8))) == list(spec.Encoder.defaults)
    for values, named in [((), {}), ((1, 2), {}), ((1, 2, 3, 4), {}), ((1, 2), {"bias": 3}), ((1, 2, 3), {"gain": 4})]:
        with pytest.raises(TypeError, match=r"Norm: found .* expected weight, bias, eps"):
            spec.Norm(*values, **named)
    with pytest.raises(AttributeError, match=r"Norm\.eps is frozen"):
        norm.eps = 1.0
    assert repr(spec.Pool("first")) == "Pool(kind='first', token=0)"


def test_every_family_is_found_by_each_of_its_types():
    for model_type, family in families().items():
        assert find_family(Config({"model_type": model_type})) is family
    for unknown in ("registry", "x-clip", "x_clip", "", None, 3):  # names of modules are no types
        with pytest.raises(beyondvl.ConfigError, match=r"model_type: found .* expected one of"):
            find_family(Config({"model_type": unknown}))


def test_a_checkpoint_imports_its_own_family_alone():
    code = "import sys, beyondvl; beyondvl.AutoModel.from_pretrained('beyond-vl-model'); print(*sys.modules, sep='\\n')"
    env = {**os.environ, "PYTHONPATH": str(Path(beyondvl.__file__).parent.parent)}
    here = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True, cwd=here)
    found = {name.split(".")[-1] for name in done.stdout.split() if name.startswith("beyondvl.families.")}
    assert "beyond_vl" in found and not found & {"blip", "clap", "flava", "siglip", "x_clip"}
