"""calls.tsv is what calls.py finds: a difference to the peers that is new, or gone, is noticed, and each has a reason."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import calls
import numpy as np
import pytest

import published

pytest.importorskip("transformers", reason="parity needs transformers: pip install 'beyondvl[test]'")
pytest.importorskip("sentence_transformers", reason="parity needs sentence-transformers: pip install 'beyondvl[test]'")
TABLE = Path(__file__).parent / "calls.tsv"
VERSIONS = {"transformers": "5.23", "sentence-transformers": "6.2"}


@pytest.mark.skipif(published.archive() is None, reason="no published files: BEYONDVL_PUBLISHED names their folder")
def test_table():
    for library, version in VERSIONS.items():
        if not (installed := importlib.metadata.version(library)).startswith(version):
            pytest.skip(f"the table is of {library} {version}, not of {installed}")
    stated = {tuple(line.split("\t")) for line in TABLE.read_text("utf-8").splitlines()}
    rows = set(calls.rows())
    assert rows == stated, f"new: {sorted(rows - stated)[:5]}, gone: {sorted(stated - rows)[:5]}"


def test_every_difference_has_a_reason():
    rows = [line.split("\t") for line in TABLE.read_text("utf-8").splitlines()]
    assert len(rows) > 100 and all(len(row) == 5 and row[4] for row in rows)


def test_a_difference_is_seen():
    class Theirs:
        size, kind = 3, "a"

        def __call__(self, text, padding=False, factor=2, *, words=None):
            return {"ids": np.arange(factor), "padding": padding}

    class Ours:
        size = 4

        def __call__(self, text, padding=False, factor=2):
            return {"ids": np.arange(factor), "padding": bool(padding)}

    shared = calls.Shared("Both", Theirs(), Ours(), {"__call__": (("a",), {})})
    assert [row[1:] for row in calls.attributes(shared)] == [("kind", "", "absent"), ("size", "", "4, theirs 3")]
    differences = {row[2]: row[3] for row in calls.calls(shared)}
    assert set(differences) == {"padding='longest'", "padding='max_length'", "padding='do_not_pad'", "words=None"}
    assert differences["words=None"].startswith("TypeError")
    assert not calls.why(("Both", "size", "", "4, theirs 3"))
