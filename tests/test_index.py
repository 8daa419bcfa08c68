"""`Index`: the nearest are those that NumPy finds, and what is in a folder survives whatever happens to a process."""

from __future__ import annotations

import os
import pickle
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import beyondvl as bvl
from beyondvl import _C

DTYPES = ("float32", "bfloat16", "int8")
FORMS = (*DTYPES, "binary")


def clustered(count: int, dim: int, seed: int = 0) -> np.ndarray:
    """Vectors around a few centres, some of them twice."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((max(1, count // 20), dim))[rng.integers(0, max(1, count // 20), count)]
    rows = (rows + 0.4 * rng.standard_normal((count, dim))).astype(np.float32)
    rows[count // 2] = rows[0]
    return rows


def to_bfloat16(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    bits = (rows.view(np.uint32) + 0x7FFF + ((rows.view(np.uint32) >> 16) & 1)) >> 16
    return bits.astype(np.uint16), (bits << 16).astype(np.uint32).view(np.float32)


def signs(rows: np.ndarray) -> np.ndarray:
    """Rows of 1 and -1, of length 1."""
    return np.where(rows > 0, 1, -1) / np.sqrt(rows.shape[1])


def stored(rows: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Rows and scales as the core searches them, and what they are worth."""
    if dtype == "float32":
        return rows, None, rows
    if dtype == "bfloat16":
        return to_bfloat16(rows)[0], None, to_bfloat16(rows)[1]
    if dtype == "binary":
        return np.packbits(rows > 0, axis=1), None, signs(rows)
    scales = np.abs(rows).max(1) / np.float32(127)
    digits = np.rint(rows / scales[:, None]).astype(np.int8)
    return digits, scales, digits * scales[:, None]


# the core


@pytest.mark.parametrize("dtype", FORMS)
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (127, 40), (129, 64), (700, 37), (1500, 384)], ids=str)
def test_search_finds_what_numpy_finds(isa, dtype, shape):
    rows, scales, worth = stored(clustered(*shape), dtype)
    queries = clustered(9, shape[1], seed=1)
    mask = np.random.default_rng(2).random(shape[0]) < 0.7
    for allowed in (None, mask, np.zeros(shape[0], bool)):
        for count in (1, 3, 9):
            scores, hits = _C.search(rows, scales, allowed, queries[:count], 10, 2)
            wanted = (signs(queries) if dtype == "binary" else queries)[:count].astype(np.float64) @ worth.T
            if allowed is not None:
                wanted[:, ~allowed] = -np.inf
            there = min(10, shape[0] if allowed is None else int(allowed.sum()))
            best = -np.sort(-wanted, 1)[:, :there]
            # int8 rows are compared in steps of the query's largest number / 4095
            close = (
                np.abs(queries[:count]).max() * np.abs(worth).sum(1).max() / (8190 if dtype == "int8" else 3e5) + 1e-6
            )
            np.testing.assert_allclose(scores[:, :there], best, atol=close)
            np.testing.assert_allclose(np.take_along_axis(wanted, hits[:, :there], 1), best, atol=2 * close)
            assert (np.diff(scores[:, :there]) <= 0).all()
            assert np.isneginf(scores[:, there:]).all() and (hits[:, there:] == -1).all()
            assert all(len(set(row)) == there for row in hits[:, :there].tolist())


@pytest.mark.parametrize("dtype", FORMS)
def test_a_score_depends_on_neither_neighbours_nor_threads(isa, dtype):
    rows, scales, _ = stored(clustered(1000, 70), dtype)
    queries = clustered(300, 70, seed=1)
    together = _C.search(rows, scales, None, queries, 7, 1)
    for threads in (2, 3, 16):
        for one, other in zip(together, _C.search(rows, scales, None, queries, 7, threads), strict=True):
            np.testing.assert_array_equal(one, other)
    for at in (0, 5, 299):
        for one, other in zip(together, _C.search(rows, scales, None, queries[at : at + 1], 7, 2), strict=True):
            np.testing.assert_array_equal(one[at], other[0])
    equal = np.ones((600, 8), np.float32)  # the first of equal ones
    for count in (1, 8):
        _, hits = _C.search(equal, None, None, equal[:count], 5, 2)
        np.testing.assert_array_equal(hits, np.tile(np.arange(5), (count, 1)))


def test_numbers_that_are_none_are_no_hits():
    rows = clustered(300, 16)
    rows[[3, 200]] = np.nan
    for count in (1, 8):
        scores, hits = _C.search(rows, None, None, clustered(count, 16, 1), 300, 2)
        assert np.isfinite(scores[:, :298]).all() and (hits[:, 298:] == -1).all()
        assert not np.isin([3, 200], hits).any()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"rows": np.zeros((3, 4))}, "rows: found dtype float64, expected float32"),
        ({"rows": np.zeros((3, 4, 1), np.float32)}, "rows: found 3 dimensions, expected 2"),
        ({"queries": np.zeros((2, 5), np.float32)}, "queries: found 5 numbers, expected 4"),
        ({"scales": np.ones(3, np.float32)}, "scales: expected them of int8 rows"),
        ({"rows": np.zeros((3, 4), np.int8)}, "scales: expected them of int8 rows"),
        ({"rows": np.zeros((3, 4), np.int8), "scales": np.ones(2, np.float32)}, "scales: found 2, expected 3"),
        ({"rows": np.zeros((3, 4), np.uint8)}, "rows: found 4 bytes, expected 1, a bit of each of 4 numbers"),
        ({"mask": np.ones(4, bool)}, "mask: found 4, expected 3"),
        ({"mask": np.ones(3, np.uint8)}, "mask: found dtype uint8, expected bool"),
        ({"k": 0}, "k: found 0, expected 1 to 65536"),
        ({"k": 70000}, "k: found 70000, expected 1 to 65536"),
        ({"rows": np.zeros((3, 5000), np.float32), "queries": np.zeros((1, 5000), np.float32)}, "of rows of 5000 numbers"),
        ({"rows": np.zeros((3, 8), np.float32)[:, ::2]}, "rows: expected a C-contiguous, aligned array"),
    ],
)  # fmt: skip
def test_what_the_core_refuses(arguments, match):
    said = {
        "rows": np.zeros((3, 4), np.float32),
        "scales": None,
        "mask": None,
        "queries": np.zeros((2, 4), np.float32),
        "k": 2,
    }
    with pytest.raises(ValueError, match=match):
        _C.search(*(said | arguments).values(), 1)


def test_every_allocation_may_fail():
    rows, queries = clustered(300, 16), clustered(8, 16, 1)
    live = _C.alloc_live()
    for at in range(1, 9):
        _C.alloc_fail_at(at)
        try:
            _C.search(rows, None, None, queries, 3, 2)
        except MemoryError as error:
            assert "a search for 11 rows of each of 8 queries" in str(error)
        else:
            assert at > 7
        finally:
            _C.alloc_fail_at(0)
        assert _C.alloc_live() == live


# the index


def nearest(rows: dict, query: np.ndarray, k: int) -> list:
    return sorted(rows, key=lambda key: -float(rows[key] @ query))[:k]


@pytest.mark.parametrize("metric", ["cosine", "dot"])
@pytest.mark.parametrize("dtype", FORMS)
def test_an_index_is_a_dictionary_that_is_searched(dtype, metric, tmp_path):
    """Whatever is added, replaced and removed, in memory and in a folder: what is found is what a dictionary holds."""
    rng, known = random.Random(0), {}
    rows = clustered(900, 24)
    multiplier = 100 if dtype == "binary" else None  # signs of 24 numbers tell little

    def worth(rows: dict) -> dict:
        """What those rows are scored as at last: int8 ones are kept beside signs, else float32."""
        of_length = {key: row / (np.linalg.norm(row) if metric == "cosine" else 1) for key, row in rows.items()}
        return {key: stored(r[None], "int8" if dtype == "binary" else "float32")[2][0] for key, r in of_length.items()}

    indices = [
        bvl.Index(24, dtype, metric, rescore=True),
        bvl.Index(24, dtype, metric, rescore=True, path=tmp_path / "a"),
    ]
    for step in range(40):
        if step % 4 == 3:
            gone = rng.sample(sorted(known, key=str), len(known) // 3)
            assert all(index.remove([*gone, "never there"]) == len(gone) for index in indices)
            known = {key: row for key, row in known.items() if key not in gone}
        else:
            at = rng.sample(range(900), rng.choice([1, 5, 60]))
            keys = [number if number % 2 else f"key {number}" for number in at]
            vectors = rows[at] + step * 0.01
            for index in indices:
                index.add(keys, vectors)
            known |= dict(zip(keys, vectors, strict=True))
        if step % 5 == 4:
            indices[1] = bvl.Index.open(tmp_path / "a", verify=True)
        query = rows[rng.randrange(900)]
        some = rng.sample(sorted(known, key=str), len(known) // 2)
        for index in indices:
            assert len(index) == len(known) and set(index.keys()) == set(known)
            keys, scores = index.search(query, 5, rescore_multiplier=multiplier)
            assert keys == nearest(worth(known), query, 5), step
            assert scores.shape == (len(keys),) and (np.diff(scores) <= 0).all()
            among = worth({key: known[key] for key in some})
            keys, _ = index.search(query, 5, filter=[*some, "no"], rescore_multiplier=multiplier)
            assert keys == nearest(among, query, 5)
    assert len(list((tmp_path / "a").glob("vectors-*.npy"))) < 8
    saved = indices[0].save(tmp_path / "b")
    (keys, scores), (others, _) = (
        one.search(rows[:300], 3, rescore_multiplier=multiplier) for one in (saved, indices[1])
    )
    assert keys == others and scores.shape == (300, 3)
    np.testing.assert_allclose(saved.vectors(keys[0]), indices[1].vectors(keys[0]), atol=1e-6)
    assert len(list((tmp_path / "b").glob("vectors-*.npy"))) == 1


def test_sizes_and_accuracy(tmp_path):
    rows = clustered(4000, 128)
    exact = bvl.Index(128, path=tmp_path / "float32")
    exact.add(range(4000), rows)
    wanted = exact.search(rows[:100], 10)[0]
    for dtype, rescore, least in (
        ("bfloat16", False, 0.97),
        ("int8", False, 0.9),
        ("int8", None, 0.99),
        ("bfloat16", True, 1),
        ("binary", False, 0.4),
        ("binary", None, 0.97),
    ):
        index = bvl.Index(128, dtype, rescore=rescore, path=tmp_path / f"{dtype}{rescore}")
        index.add(range(4000), rows)
        found = index.search(rows[:100], 10)[0]
        recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, wanted, strict=True)])
        assert recall >= least, (dtype, rescore, recall)
        (file,) = index.folder.glob("vectors-*.npy")
        assert np.load(file).nbytes == 4000 * {"bfloat16": 256, "int8": 128, "binary": 16}[dtype]
        assert any(index.folder.glob("exact-*.npy")) == (rescore is not False)


def test_what_an_index_refuses(tmp_path):
    index = bvl.Index(4)
    index.add(["a"], [[1, 2, 3, 4]])
    for call, error, match in (
        (lambda: bvl.Index(0), ValueError, "dim: found 0"),
        (lambda: bvl.Index(5000), ValueError, "dim: found 5000, expected at most 4096"),
        (lambda: bvl.Index(4, "float16"), ValueError, "dtype: found 'float16', expected one of float32, bfloat16, int8, b"),
        (lambda: index.search(np.ones(4), rescore_multiplier=0), ValueError, "rescore_multiplier: found 0"),
        (lambda: bvl.Index(4, metric="l2"), ValueError, "metric: found 'l2', expected one of cosine, dot"),
        (lambda: index.add(["b"], [[1, 2, 3]]), ValueError, r"vectors: found shape \[1, 3\], expected \[n, 4\]"),
        (lambda: index.add(["b", "c"], [[1, 2, 3, 4]]), ValueError, "keys: found 2, expected 1, one of each vector"),
        (lambda: index.add(["b", "b"], np.ones((2, 4))), ValueError, "keys: found 'b' twice"),
        (lambda: index.add(["b"], [[1, 2, np.nan, 4]]), ValueError, "vectors: row 0 holds a number that is not finite"),
        (lambda: index.add([1.5], np.ones((1, 4))), TypeError, "keys: found 1.5 .float., expected a string or a whole"),
        (lambda: index.add([True], np.ones((1, 4))), TypeError, "keys: found True"),
        (lambda: index.add([2**63], np.ones((1, 4))), ValueError, "keys: found 9223372036854775808, expected"),
        (lambda: index.search(np.ones(5)), ValueError, r"queries: found shape \[5\], expected \[n, 4\]"),
        (lambda: index.search(np.full(4, np.inf)), ValueError, "queries: row 0 holds a number that is not finite"),
        (lambda: index.search(np.ones(4), 0), ValueError, "k: found 0"),
        (lambda: index.vectors(["z"]), KeyError, "z"),
        (lambda: bvl.Index.open(tmp_path), FileNotFoundError, "no index there"),
        (lambda: pickle.dumps(index), TypeError, "an index in memory cannot be pickled"),
    ):  # fmt: skip
        with pytest.raises(error, match=match):
            call()
    assert index.keys() == ["a"] and index.search(np.ones(4), 3)[0] == ["a"]
    assert index.search(np.ones(4), filter=[])[0] == [] and bvl.Index(4).search(np.ones((2, 4)))[0] == [[], []]
    index.add([], np.zeros((0, 4)))
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ValueError, match="holds files, expected a new or empty folder"):
        bvl.Index(4, path=tmp_path)


def test_files_that_are_damaged(tmp_path):
    rows = clustered(200, 8)

    def broken(change) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        index = bvl.Index(8, "int8", path=folder)
        index.add(range(200), rows)
        index.close()
        change(folder)
        with pytest.raises(ValueError) as caught:
            bvl.Index.open(folder, verify=True).search(rows[0])
        return str(caught.value)

    def flip(name: str, at: int):
        def change(folder):
            path = folder / name
            data = bytearray(path.read_bytes())
            data[at] ^= 0xFF
            path.write_bytes(data)

        return change

    def cut(name: str):
        return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size // 2)

    assert "checksum" in broken(flip("vectors-000001.npy", 500)) and "checksum" in broken(flip("exact-000001.npy", 500))
    assert "not an array that can be mapped" in broken(cut("vectors-000001.npy"))
    assert "not an array that can be mapped" in broken(flip("scales-000001.npy", 2))
    assert "expects int8 [200, 8]" in broken(lambda f: np.save(f / "vectors-000001.npy", np.zeros((100, 8), np.int8)))
    assert "expects float32 [200]" in broken(lambda f: np.save(f / "scales-000001.npy", np.zeros(200)))
    pickled = np.array([object()], dtype=object)
    assert "not an array" in broken(lambda f: np.save(f / "exact-000001.npy", pickled, allow_pickle=True))
    assert "not an index that can be read" in broken(lambda f: (f / "index.db").write_bytes(b"not a database" * 99))
    assert "not an index that can be read" in broken(
        lambda f: sqlite3.connect(f / "index.db").executescript("DROP TABLE keys")
    )


def test_others_see_what_is_published(tmp_path):
    """Two that have a folder open, a fork, a pickle, a folder that cannot be written."""
    rows = clustered(100, 8)
    one = bvl.Index(8, path=tmp_path / "i")
    other, copy = bvl.Index.open(tmp_path / "i"), pickle.loads(pickle.dumps(one))
    for count in range(10, 101, 10):
        one.add(range(count - 10, count), rows[count - 10 : count])
        assert len(other) == len(copy) == count and other.search(rows[count - 1], 1)[0] == [count - 1]
    other.remove(range(60))
    assert len(one) == 40 and one.search(rows[70], 1)[0] == [70]
    if (child := os.fork()) == 0:
        one.add(["of the child"], rows[:1] * 2)
        os._exit(0 if one.search(rows[80], 1)[0] == [80] else 1)
    assert os.waitpid(child, 0)[1] == 0 and "of the child" in one
    one.close()
    other.close()
    copy.close()
    for path in (tmp_path / "i").iterdir():
        path.chmod(0o444)
    (tmp_path / "i").chmod(0o555)
    try:
        assert bvl.Index.open(tmp_path / "i").search(rows[70], 1)[0] == [70]
    finally:
        (tmp_path / "i").chmod(0o755)


def test_many_threads(tmp_path):
    rows = clustered(400, 16)
    index, errors = bvl.Index(16, path=tmp_path / "i"), []
    index.add(range(200), rows[:200])

    def work(number: int) -> None:
        try:
            for step in range(10):
                if number % 3 == 0:
                    index.add([f"{number} {step}"], rows[200 + number * 10 + step][None])
                keys, _ = index.search(rows[number * 7 + step], 1)
                assert keys == [number * 7 + step]
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and len(index) == 240


ADDER = """
import sys, numpy as np
import beyondvl as bvl
index = bvl.Index.open(sys.argv[1])
rows = np.random.default_rng(0).standard_normal((2000, 32)).astype(np.float32)
while True:
    first = sum(isinstance(key, int) for key in index.keys())
    if first >= 2000:
        break
    index.add(range(first, first + 20), rows[first : first + 20])
    index.add([f"changed {first % 60}"], rows[:1])
    index.remove([f"changed {first % 60}"])
    print(first, flush=True)
"""


def test_killed_at_any_moment(tmp_path):
    """kill -9 while somebody adds and removes: the index is whole, and is that of some moment; a reader never errs."""
    rows = np.random.default_rng(0).standard_normal((2000, 32)).astype(np.float32)
    bvl.Index(32, "int8", path=tmp_path / "i").close()
    reader, rng, kills = bvl.Index.open(tmp_path / "i"), random.Random(1), 0
    while True:
        job = subprocess.Popen([sys.executable, "-P", "-c", ADDER, tmp_path / "i"], stdout=subprocess.PIPE)
        job.stdout.readline()
        end = time.time() + (rng.uniform(0, 0.3) if kills < 8 else 300)
        while time.time() < end and job.poll() is None:
            count = len(reader)
            if count > 20:
                assert reader.search(rows[10], 1)[0] == [10]
        if job.poll() is not None:
            break
        job.send_signal(signal.SIGKILL)
        job.wait()
        job.stdout.close()
        kills += 1
        index = bvl.Index.open(tmp_path / "i", verify=True)
        keys = [key for key in list(index.keys()) if isinstance(key, int)]
        assert sorted(keys) == list(range(len(keys))) and len(keys) % 20 == 0
        assert index.search(rows[keys[-1]], 1)[0] == [keys[-1]]
    assert job.returncode == 0 and kills >= 5
    index = bvl.Index.open(tmp_path / "i", verify=True)
    assert {key for key in list(index.keys()) if isinstance(key, int)} == set(range(2000))
