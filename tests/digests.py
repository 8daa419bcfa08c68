"""Are the numbers of two builds the same, bit for bit, wherever the tests compute any?

    pytest -p digests --digests old.tsv tests/test_families.py ...   with the one build installed
    pytest -p digests --digests new.tsv tests/test_families.py ...   with the other
    python tests/digests.py old.tsv new.tsv

As a plugin (PYTHONPATH=tests) it writes for every test the checksums of all that towers returned in it: every family,
precision and instruction set that the tests run. Compared are tests that both have; calls of one test are compared as a
set, for threads may change their order. Prints what differs, and how many calls were alike; exits with 1 for a difference.
"""

from __future__ import annotations

import hashlib
import sys
import threading
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np


def pytest_addoption(parser) -> None:
    parser.addoption("--digests", help="a file for the checksums of all outputs")


def pytest_configure(config) -> None:
    if config.getoption("--digests"):
        config.pluginmanager.register(Recorder(Path(config.getoption("--digests"))))


class Recorder:
    """Wraps what runs a tower, and writes a line a call: the test, and a checksum."""

    def __init__(self, path: Path):
        self.file, self.lock, self.test = path.open("w"), threading.Lock(), "before any test"
        from beyondvl.models.tower import Tower

        run = Tower.run

        def recorded(tower, inputs, wanted, num_threads):
            outputs = run(tower, inputs, wanted, num_threads)
            self.record(outputs)
            return outputs

        Tower.run = recorded

    def record(self, outputs: dict) -> None:
        total = hashlib.blake2b(digest_size=12)
        for name, value in outputs.items():
            name = name.partition("@")[0]  # what a layer leaves is called by a number, which builds need not share
            if isinstance(value, np.ndarray):
                total.update(name.encode() + str(value.shape).encode() + np.ascontiguousarray(value).tobytes())
        with self.lock:
            self.file.write(f"{self.test}\t{total.hexdigest()}\n")

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.test = nodeid

    def pytest_unconfigure(self) -> None:
        self.file.close()


def read(path: str) -> dict[str, Counter]:
    tests: dict[str, Counter] = defaultdict(Counter)
    for line in Path(path).read_text().splitlines():
        test, digest = line.split("\t")
        tests[test][digest] += 1
    return tests


def main() -> None:
    old, new = map(read, sys.argv[1:])
    both = sorted(old.keys() & new.keys())
    differ = {test: (old[test] - new[test], new[test] - old[test]) for test in both if old[test] != new[test]}
    for test, (less, more) in differ.items():
        print(f"{test}: {less.total()} of {old[test].total()} calls gave other numbers, {more.total()} are new")
    alike = sum((old[test] & new[test]).total() for test in both)
    print(
        f"{len(both)} tests, {alike} calls alike; {len(differ)} tests differ, {len(old.keys() ^ new.keys())} are of one alone"
    )
    sys.exit(bool(differ))


if __name__ == "__main__":
    main()
