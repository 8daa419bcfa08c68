"""`Index(approximate=True)`: the graphs of usearch find most of what looking at all does, and score it the same."""

from __future__ import annotations

import numpy as np
import pytest
from test_index import DTYPES, clustered

import beyondvl as bvl

pytest.importorskip("usearch", reason="usearch is not installed: pip install 'beyondvl[approximate]'")
COUNT, DIM = 9000, 32


def recall(found, wanted) -> float:
    return float(np.mean([len(set(one) & set(other)) / len(other) for one, other in zip(found, wanted, strict=True)]))


@pytest.mark.parametrize("metric", ["cosine", "dot"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_finds_most_and_scores_them_the_same(dtype, metric, tmp_path):
    rows, queries = clustered(COUNT, DIM), clustered(40, DIM, seed=3)
    near = bvl.Index(DIM, dtype, metric, approximate=True, path=tmp_path / "near")
    every = bvl.Index(DIM, dtype, metric)
    for index in (near, every):
        index.add(range(COUNT), rows)
    assert near.approximate and not every.approximate and (tmp_path / "near" / "graph-000001.npy").exists()
    keys, scores = near.search(queries, 10)
    wanted, _ = every.search(queries, 10)
    assert recall(keys, wanted) > 0.9
    exact = dict(zip(*every.search(queries[0], COUNT), strict=True))
    np.testing.assert_allclose(scores[0], [exact[key] for key in keys[0]], rtol=1e-5, atol=1e-5)
    assert (np.diff(scores) <= 0).all()
    opened = bvl.Index.open(tmp_path / "near", verify=True)
    again, same = opened.search(queries, 10)
    assert opened.approximate and again == keys
    np.testing.assert_array_equal(same, scores)
    copy = opened.save(tmp_path / "copy")
    assert copy.approximate and recall(copy.search(queries, 10)[0], wanted) > 0.9


def test_what_is_removed_is_not_found(tmp_path):
    rows = clustered(COUNT, DIM)
    index = bvl.Index(DIM, approximate=True, path=tmp_path / "index")
    index.add(range(COUNT), rows)
    first, _ = index.search(rows[:20], 10)
    gone = {key for keys in first for key in keys}
    index.remove(gone)
    keys, scores = index.search(rows[:20], 10)
    assert not gone & {key for some in keys for key in some} and np.isfinite(scores).all()
    assert all(len(some) == 10 for some in keys)
    only = sorted(set(range(100)) - gone)
    assert {key for some in index.search(rows[:20], 5, filter=only)[0] for key in some} <= set(only)
    index.add(range(COUNT, COUNT + 5000), clustered(5000, DIM, seed=5))  # joined: a graph of both
    assert not (tmp_path / "index" / "graph-000001.npy").exists()
    assert len(list((tmp_path / "index").glob("graph-*"))) == 1
    assert not gone & {key for some in index.search(rows[:20], 10)[0] for key in some}


def test_a_damaged_graph_is_never_followed(tmp_path):
    index = bvl.Index(DIM, approximate=True, path=tmp_path / "index")
    index.add(range(COUNT), clustered(COUNT, DIM))
    index.close()
    path = tmp_path / "index" / "graph-000001.npy"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"graph-000001.npy: checksum .*: damaged"):
        bvl.Index.open(tmp_path / "index").search(np.ones(DIM), 3)


def test_without_usearch_it_says_so(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "usearch", None)
    with pytest.raises(ImportError, match=r"pip install 'beyondvl\[approximate\]'"):
        bvl.Index(DIM, approximate=True)


def test_a_wide_search_does_not_slow_later_ones():
    index = bvl.Index(DIM, approximate=True)
    index.add(range(COUNT), clustered(COUNT, DIM))
    graph = index._segments[0].graph
    beams = []
    for count in (500, 3):
        index.search(np.ones(DIM), count)
        beams.append(graph._opened.expansion_search)
    assert beams[0] >= 500 and beams[1] == 128


def test_equal_rows_are_all_duplicates():
    """A graph loses its way among many equal rows; groups are looked for without it, and so is search(exact=True)."""
    rows = clustered(COUNT, DIM)
    rows[:3000] = rows[0]
    index = bvl.Index(DIM, approximate=True)
    index.add(range(COUNT), rows)
    assert index._segments[0].graph is not None
    pairs = {3100: 5000, 3200: 6000}
    for one, other in pairs.items():
        rows[other] = rows[one]
    index.add(range(COUNT), rows)
    groups = [set(group) for group in index.duplicates(0.99999, k=2)]
    assert all({one, other} in groups for one, other in pairs.items())
    keys, _ = index.search(rows[3000::7], 1, exact=True)
    assert all((rows[some[0]] == rows[at]).all() for some, at in zip(keys, range(3000, COUNT, 7), strict=True))


def test_a_graph_is_drawn_while_others_write(tmp_path, monkeypatch):
    """Building takes long: another process adds meanwhile, and what it joined is left alone."""
    from beyondvl.search.graph import Graph

    index = bvl.Index(DIM, approximate=True, path=tmp_path / "index")
    original, others = Graph.of.__func__, []

    def of(cls, *arguments):
        if not others:
            others.append(bvl.Index.open(tmp_path / "index"))
            others[0].add(range(COUNT, COUNT + 6000), clustered(6000, DIM, seed=8))
        return original(cls, *arguments)

    monkeypatch.setattr(Graph, "of", classmethod(of))
    index.add(range(COUNT), clustered(COUNT, DIM))
    assert len(index) == COUNT + 6000 and [len(s) for s in index._segments] == [COUNT + 6000]
    assert index._segments[0].graph is not None
    assert bvl.Index.open(tmp_path / "index", verify=True).search(np.ones(DIM), 3)[0]
