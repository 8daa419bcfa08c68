"""What refusing bad files costs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import beyondvl as bvl

SCRIPT = """
import re, sys
import beyondvl as bvl
for path in sys.argv[1:]:
    try:
        bvl.{call}(path, {more})
    except bvl.{error}:
        continue
    sys.exit(path)
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""


def peak_kib(call: str, error: str, paths: list[Path], more: str = "") -> int:
    """Most memory that a process holds which is refused every one of these files. In a process of its own: a peak is never
    forgotten; not from the root of the checkout, where Python would find the sources before the installed package."""
    env = {**os.environ, "PYTHONPATH": str(Path(bvl.__file__).parent.parent)}
    script = SCRIPT.format(call=call, error=error, more=more)
    done = subprocess.run([sys.executable, "-c", script, *map(str, paths)], capture_output=True, text=True, env=env,
                          timeout=60, cwd=paths[0].parent)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return int(done.stdout)
