"""Fixtures shared by all tests."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import beyondvl
from beyondvl import _C

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _without_torchvision() -> None:
    """The pixels are those of transformers' Pillow path, which its pipelines take where it sees no torchvision; OpenCLIP
    brings one along."""
    try:
        from transformers import utils
    except ImportError:
        return
    for place in (utils, utils.import_utils):
        for name in ("is_torchvision_available", "is_torchvision_v2_available"):
            setattr(place, name, lambda: False)


def _importable_torchvision() -> None:
    """OpenCLIP imports torchvision, which does not import beside a torch of another build than its own operators; none
    of them is used here, and those that are asked for at import are declared in their place."""
    located = importlib.util.find_spec("torchvision")
    if located is None or importlib.util.find_spec("torch") is None:
        return
    import torch

    library = next(Path(located.origin).parent.glob("_C*.so"), None)
    try:
        if library:
            torch.ops.load_library(str(library))
    except OSError:
        kept.append(torch.library.Library("torchvision", "DEF"))
        for name in ("nms", "qnms"):
            kept[0].define(f"{name}(Tensor a, Tensor b, float c) -> Tensor")


kept: list = []  # operators are declared for as long as this lives
_without_torchvision()
_importable_torchvision()


def isa_params() -> list:
    """Every level as a parameter; those the machine lacks are skipped with their name, and those that BEYONDVL_TEST_ISAS
    leaves out."""
    have, chosen = _C.usable_isas(), os.environ.get("BEYONDVL_TEST_ISAS", "").split() or _C.ISAS
    reasons = {i: f"this machine lacks {i}" for i in _C.ISAS if i not in have}
    reasons |= {i: f"BEYONDVL_TEST_ISAS leaves out {i}" for i in _C.ISAS if i not in chosen}
    return [pytest.param(i, marks=pytest.mark.skip(reasons[i])) if i in reasons else i for i in _C.ISAS]


@pytest.fixture(params=isa_params())
def isa(request):
    """Runs the test at each instruction set."""
    _C.set_isa(request.param)
    yield request.param
    _C.set_isa()


@pytest.fixture(scope="module", autouse=True)
def disk(request, tmp_path_factory):
    """Checkpoints that a file of tests writes for all of them go with it, or the suite fills a disk; those of a file
    with a failure stay, to be looked at."""
    base = tmp_path_factory.getbasetemp()
    before, failed = set(base.iterdir()), request.session.testsfailed
    yield
    if request.session.testsfailed == failed:
        for place in set(base.iterdir()) - before:
            shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def pytest_report_header(config) -> str:
    c = _C.config()
    return (
        f"beyondvl {beyondvl.__version__}: {c['cpu']}, isa {c['isa']} ({c['isa_reason']}), {c['num_threads']} threads"
    )
