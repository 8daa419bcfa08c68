"""The programs of examples/, run as examples/README.md says: they print what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import beyondvl as bvl

EXAMPLES = Path(__file__).parent.parent / "examples"
BLOCKS = re.findall(r"```console\n\$ python examples/(\w+\.py)\n(.*?)```", (EXAMPLES / "README.md").read_text(), re.S)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
APART = 0.03  # of numbers: instruction sets round differently


def test_every_program_is_shown():
    assert sorted(name for name, _ in BLOCKS) == sorted(path.name for path in EXAMPLES.glob("*.py"))
    assert all(len(path.read_text().splitlines()) < 60 for path in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("name,printed", BLOCKS, ids=[name for name, _ in BLOCKS])
def test_prints_what_is_said(name, printed):
    if name in ("search.py", "narration.py"):
        pytest.importorskip("soundfile", reason="sound files need soundfile: pip install 'beyondvl[audio]'")
    env = {**os.environ, "PYTHONPATH": str(Path(bvl.__file__).parent.parent)}
    done = subprocess.run([sys.executable, EXAMPLES / name], capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr
    assert NUMBER.sub("#", done.stdout) == NUMBER.sub("#", printed)
    for mine, expected in zip(NUMBER.findall(done.stdout), NUMBER.findall(printed), strict=True):
        assert abs(float(mine) - float(expected)) <= (APART if "." in expected else 100 * APART)
