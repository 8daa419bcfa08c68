"""Fixtures shared by all tests."""

from __future__ import annotations

import os

import numpy as np
import pytest

import beyondvl
from beyondvl import _C

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def isa_params() -> list:
    """Every level as a parameter; those the machine lacks are skipped with their name."""
    have = _C.usable_isas()
    skip = pytest.mark.skip
    return [i if i in have else pytest.param(i, marks=skip(f"this machine lacks {i}")) for i in _C.ISAS]


@pytest.fixture(params=isa_params())
def isa(request):
    """Runs the test at each instruction set."""
    _C.set_isa(request.param)
    yield request.param
    _C.set_isa()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def pytest_report_header(config) -> str:
    c = _C.config()
    return (
        f"beyondvl {beyondvl.__version__}: {c['cpu']}, isa {c['isa']} ({c['isa_reason']}), {c['num_threads']} threads"
    )
