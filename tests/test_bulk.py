"""`encode_stream` and `encode_to`: the sources that people have, the files that others read, and jobs that are killed."""

from __future__ import annotations

import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import dataset, parquet

import beyondvl as bvl
import pictures

FILES = sorted(str(path) for path in pictures.EXAMPLES.glob("*.jpg"))[:6]
BYTES = [Path(file).read_bytes() for file in FILES]


@pytest.fixture(scope="module")
def model():
    return bvl.AutoModel.from_pretrained("beyond-vl-model")


@pytest.fixture(scope="module")
def expected(model):
    rows = model.encode(FILES)
    assert np.unique(rows, axis=0).shape == rows.shape
    return rows


def all_of(stream) -> tuple[np.ndarray, list[str]]:
    chunks = list(stream)
    return np.concatenate(chunks), [key for chunk in chunks for key in chunk.keys]


def write_shard(path: Path, samples: list[dict[str, bytes]], first: int = 0) -> str:
    with tarfile.open(path, "w") as tar:
        for at, sample in enumerate(samples, first):
            for extension, data in sample.items():
                member = tarfile.TarInfo(f"set/{at:05}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return str(path)


# sources


def test_folders_and_patterns(model, expected, tmp_path):
    folder = tmp_path / "pictures"
    (folder / "b" / "deep").mkdir(parents=True)
    names = ["a.jpg", "b/1.JPG", "b/deep/x.jpeg", "b/z.jpg", "c.jpg", "d.jpg"]
    for name, data in zip(names, BYTES, strict=True):
        (folder / name).write_bytes(data)
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.jpg").write_bytes(b"")
    (folder / "c.json").write_text("{}")
    rows, keys = all_of(model.encode_stream(folder, chunk_size=4))
    np.testing.assert_array_equal(rows, expected)
    assert keys == names
    rows, keys = all_of(model.encode_stream(f"{folder}/*.jpg"))
    np.testing.assert_array_equal(rows, expected[[0, 4, 5]])
    assert keys == [f"{folder}/{name}" for name in ("a.jpg", "c.jpg", "d.jpg")]
    assert len(all_of(model.encode_stream(f"{folder}/**/*.jp*g"))[1]) == 5
    for nothing, error in ((tmp_path / "gone", FileNotFoundError), (f"{folder}/*.gif", ValueError), (5, ValueError)):
        with pytest.raises(error):
            list(model.encode_stream(nothing))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: nothing to read, expected text, image, video, audio files"):
        list(model.encode_stream(tmp_path / "empty"))


def test_shards_of_webdataset(model, expected, tmp_path):
    samples = [{"json": b"{}", "jpg": data, "txt": b"a thing"} for data in BYTES]
    for number in range(3):
        write_shard(tmp_path / f"s-{number:03}.tar", samples[2 * number : 2 * number + 2], 2 * number)
    names = [f"set/{at:05}" for at in range(6)]
    for source in (
        f"{tmp_path}/s-{{000..002}}.tar",
        f"{tmp_path}/s-*.tar",
        tmp_path,
        [f"{tmp_path}/s-{n:03}.tar" for n in range(3)],
    ):
        rows, keys = all_of(model.encode_stream(source))
        np.testing.assert_array_equal(rows, expected)
        assert keys == names
    rows, _ = all_of(model.encode_stream(tmp_path, column="txt"))
    np.testing.assert_array_equal(rows, np.repeat(model.encode(["a thing"]), 6, 0))
    samples[1] = {"json": b"{}"}
    (chunk,) = model.encode_stream(write_shard(tmp_path / "lacks.tar", samples))
    (failure,) = chunk.failures
    assert failure.index == 1 and "found json, expected one of text, image" in str(failure.error)
    np.testing.assert_array_equal(chunk[[0, 2]], expected[[0, 2]])
    cut = Path(write_shard(tmp_path / "cut.tar", samples)).read_bytes()
    (tmp_path / "cut.tar").write_bytes(cut[: len(cut) // 2])
    with pytest.raises(ValueError, match=r"cut.tar: not a whole tar file"):
        list(model.encode_stream(tmp_path / "cut.tar"))


def test_tables(model, expected, tmp_path):
    hub = [{"bytes": data, "path": None} for data in BYTES[:3]] + [{"bytes": None, "path": file} for file in FILES[3:]]
    table = pa.table({"id": list("abcdef"), "image": BYTES, "of_hub": hub, "file": FILES})
    parquet.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    for source in (table, tmp_path / "t.parquet", dataset.dataset(tmp_path / "t.parquet"), table.to_reader()):
        rows, keys = all_of(model.encode_stream(source, column="image", key="id"))
        np.testing.assert_array_equal(rows, expected)
        assert keys == list("abcdef")
    for column in ("of_hub", "file"):
        rows, keys = all_of(model.encode_stream(tmp_path / "t.parquet", column=column))
        np.testing.assert_array_equal(rows, expected)
        assert keys == list("012345")
    parquet.write_table(table.slice(2), tmp_path / "u.parquet")
    rows, keys = all_of(model.encode_stream([tmp_path / "t.parquet", tmp_path / "u.parquet"], column="image"))
    np.testing.assert_array_equal(rows[6:], expected[2:])
    assert keys == [str(number) for number in range(10)]
    pixels = np.random.default_rng(0).integers(0, 256, (3, 30, 20, 3), np.uint8)
    tensors = pa.table({"pixels": pa.FixedShapeTensorArray.from_numpy_ndarray(pixels)})
    np.testing.assert_array_equal(all_of(model.encode_stream(tensors))[0], model.encode(list(pixels)))
    with pytest.raises(ValueError, match=r"column: found None, expected one of id, image, of_hub, file"):
        list(model.encode_stream(table))
    with pytest.raises(ValueError, match=r"key: found 'no', expected one of id, image"):
        list(model.encode_stream(table, column="image", key="no"))
    (tmp_path / "no.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(ValueError, match=r"no\.parquet: not a table that can be read"):
        list(model.encode_stream(tmp_path / "no.parquet"))


def test_texts_and_iterables(model, tmp_path):
    texts = [f"a text of number {number}" for number in range(25)]
    (tmp_path / "texts.txt").write_text("\r\n".join(texts))
    wanted = model.encode(texts)
    rows, keys = all_of(model.encode_stream(tmp_path / "texts.txt", chunk_size=10))
    np.testing.assert_array_equal(rows, wanted)
    assert keys == [str(number) for number in range(25)]
    threads = set()

    def made():
        for text in texts:
            threads.add(threading.get_ident())
            yield text

    rows, keys = all_of(model.encode_stream(made(), chunk_size=10))
    np.testing.assert_array_equal(rows, wanted)
    assert keys == texts and threads == {threading.get_ident()}  # a cursor of a database stays in its thread
    assert list(model.encode_stream([])) == []
    with pytest.raises(TypeError, match="unexpected option 'output_value'"):
        model.encode_stream(texts, output_value=None)
    with pytest.raises(ValueError, match="precision: found 'int8'"):
        model.encode_stream(texts, precision="int8")
    half = all_of(model.encode_stream(texts, precision="float16"))[0]
    np.testing.assert_array_equal(half, wanted.astype(np.float16))


def test_what_lies_elsewhere(model, expected, tmp_path):
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    for at, data in enumerate(BYTES):
        files.pipe(f"/bucket/pictures/{at}.jpg", data)
    shard = write_shard(tmp_path / "s.tar", [{"jpg": data} for data in BYTES])
    files.pipe("/bucket/shards/s.tar", Path(shard).read_bytes())
    parquet.write_table(pa.table({"image": BYTES}), tmp_path / "t.parquet")
    files.pipe("/bucket/t.parquet", (tmp_path / "t.parquet").read_bytes())
    names = [f"memory://bucket/pictures/{at}.jpg" for at in range(6)]
    for source in ("memory://bucket/pictures", "memory://bucket/pictures/*.jpg", names, "memory://bucket/shards/s.tar",
                   "memory://bucket/shards", "memory://bucket/t.parquet"):  # fmt: skip
        rows, keys = all_of(model.encode_stream(source))
        np.testing.assert_array_equal(rows, expected)
        if source == "memory://bucket/pictures":
            assert keys == [f"{at}.jpg" for at in range(6)]
    (chunk,) = model.encode_stream([names[0], "memory://bucket/none.jpg"])
    assert chunk.failures[0].index == 1 and isinstance(chunk.failures[0].error, FileNotFoundError)
    np.testing.assert_array_equal(chunk[:1], expected[:1])


# failures


def test_every_row_has_one_outcome(model, expected, tmp_path):
    items = [*BYTES, *BYTES]
    items[2], items[9] = b"none", b""
    good = [at for at in range(12) if at not in (2, 9)]
    chunks = list(model.encode_stream(items, chunk_size=5))
    rows = np.concatenate(chunks)
    assert np.isnan(rows[[2, 9]]).all()
    np.testing.assert_array_equal(rows[good], np.concatenate([expected, expected])[good])
    assert [failure.index for chunk in chunks for failure in chunk.failures] == [2, 9]
    assert not any(re.search(r"image \d", str(failure.error)) for chunk in chunks for failure in chunk.failures)
    kept = [at for chunk in model.encode_stream(items, chunk_size=5, on_error="skip") for at in chunk.indices]
    assert kept == good
    stream = model.encode_stream(items[3:], chunk_size=5, on_error="raise")
    np.testing.assert_array_equal(next(stream), expected[[3, 4, 5, 0, 1]])
    with pytest.raises(bvl.ImageError) as caught:
        next(stream)
    assert caught.value.index == 6 and "row 6, 6" in caught.value.__notes__

    table = dataset.dataset(model.encode_to(tmp_path / "null", items, rows_per_file=5).folder).to_table()
    errors = table["error"].to_pylist()
    assert [at for at, error in enumerate(errors) if error] == [2, 9] and "cannot be decoded" in errors[2]
    assert table["key"].to_pylist() == [str(at) for at in range(12)] and not table["vector"].null_count
    np.testing.assert_array_equal(vectors(table)[good], rows[good])
    written = model.encode_to(tmp_path / "skip", items, on_error="skip", rows_per_file=5)
    assert written.rows == 12 and [(f.index, f.source) for f in written.failures] == [(2, "2"), (9, "9")]
    np.testing.assert_array_equal(vectors(dataset.dataset(written.folder).to_table()), rows[good])
    with pytest.raises(bvl.ImageError):
        model.encode_to(tmp_path / "raise", items, on_error="raise", rows_per_file=2)
    items[2] = BYTES[2]
    items[9] = BYTES[3]
    written = model.encode_to(tmp_path / "raise", items, on_error="raise", rows_per_file=2)
    np.testing.assert_array_equal(vectors(dataset.dataset(written.folder).to_table())[good], rows[good])


def vectors(table) -> np.ndarray:
    column = table["vector"].combine_chunks()
    return np.asarray(column.flatten()).reshape(len(column), column.type.list_size)


# files


def test_formats(model, expected, tmp_path):
    items = [*BYTES, b"none"]
    whole = np.concatenate([expected, np.full((1, 384), np.nan, np.float32)])
    for form in ("parquet", "arrow"):
        written = model.encode_to(tmp_path / form, items, format=form, rows_per_file=3)
        assert [path.name for path in written.files] == [f"part-0000{n}.{form}" for n in range(3)]
        table = dataset.dataset(written.folder, format="ipc" if form == "arrow" else form).to_table()
        assert table.schema.field("vector").type.list_size == 384
        np.testing.assert_array_equal(vectors(table), whole)
        facts = json.loads(table.schema.metadata[b"beyondvl"])
        assert facts["model"] == "default" and len(facts["fingerprint"]) == 32 and facts["dimensions"] == 384
    written = model.encode_to(tmp_path / "npy", items, format="npy", rows_per_file=3)
    np.testing.assert_array_equal(np.load(written.files[0], mmap_mode="r"), whole)
    assert [json.loads(line) for line in written.files[1].read_text().splitlines()] == list("0123456")
    assert {path.name for path in written.folder.iterdir()} == {
        "embeddings.npy",
        "keys.jsonl",
        "_job.json",
        "_parts.jsonl",
    }
    written = model.encode_to(tmp_path / "clip", items, format="clip-retrieval", rows_per_file=4, precision="float16")
    parts = [np.load(tmp_path / f"clip/img_emb/img_emb_{n}.npy") for n in range(2)]
    np.testing.assert_array_equal(np.concatenate(parts), expected.astype(np.float16))
    names = [
        parquet.read_table(tmp_path / f"clip/metadata/metadata_{n}.parquet")["image_path"].to_pylist() for n in range(2)
    ]
    assert names == [list("0123"), list("45")] and len(written.files) == 4
    texts = model.encode_to(tmp_path / "texts", ["a cat", "a dog"], format="clip-retrieval", modality="text")
    assert [path.name for path in texts.files] == ["metadata_0.parquet", "text_emb_0.npy"]
    for form in ("npy", "parquet"):
        written = model.encode_to(tmp_path / f"none-{form}", [], format=form)
        rows = np.load(written.files[0]) if form == "npy" else vectors(dataset.dataset(written.folder).to_table())
        assert written.rows == 0 and rows.shape == (0, 384)
    for name, value in (("format", "csv"), ("precision", "int4"), ("on_error", "ignore"), ("rows_per_file", 0)):
        with pytest.raises(ValueError, match=f"{name}: found {value!r}, expected "):
            model.encode_to(tmp_path / "x", items, **{name: value})
    with pytest.raises(ValueError, match="modality: found 'audio', expected one that clip-retrieval has: image, text"):
        model.encode_to(tmp_path / "x", items, format="clip-retrieval", modality="audio")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("precision", ["float16", "int8", "uint8", "binary", "ubinary"])
def test_precisions(model, expected, tmp_path, precision):
    items = [*BYTES[:3], b"none", *BYTES[3:]]
    written = model.encode_to(tmp_path / "out", items, precision=precision, rows_per_file=4, truncate_dim=80)
    table = dataset.dataset(written.folder).to_table()
    rows, first = vectors(table), expected[:3, :80]
    wanted = bvl.quantize_embeddings(expected[:, :80], precision, np.stack([first.min(0), first.max(0)]))
    assert rows.dtype == wanted.dtype
    np.testing.assert_array_equal(rows[[0, 1, 2, 4, 5, 6]], wanted)
    assert (np.isnan(rows[3]).all() if precision == "float16" else not rows[3].any()) and table["error"][3].is_valid
    ranges = json.loads(table.schema.metadata[b"beyondvl"]).get("ranges")
    assert (ranges is not None) == ("int8" in precision)


# jobs that were stopped


def test_another_job_is_refused(model, tmp_path):
    texts = [f"text {number}" for number in range(10)]
    out = tmp_path / "out"
    before = model.encode_to(out, texts, rows_per_file=4)
    again = model.encode_to(out, texts, rows_per_file=4)
    assert again == before
    for other, match in (
        ({"inputs": texts[:-1]}, "rows 8 to 9 are not those of before"),
        ({"inputs": [*texts, "more"]}, "more rows than the 10 of before"),
        ({"inputs": ["x", *texts[1:]]}, "rows 0 to 3 are not those of before"),
        ({"rows_per_file": 5}, "a job of rows_per_file 4, expected 5"),
        ({"truncate_dim": 8}, "a job of dimensions 384, expected 8"),
        ({"prompt": "a "}, "a job of prompt None, expected 'a '"),
    ):
        options = {"inputs": texts, "rows_per_file": 4, **other}
        with pytest.raises(ValueError, match=match):
            model.encode_to(out, **options)
    assert model.encode_to(out, texts[:3], rows_per_file=4, overwrite=True).rows == 3
    assert len(list(out.glob("part-*"))) == 1
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"holds mine\.txt, expected a new or empty folder"):
            model.encode_to(tmp_path / "other", texts, overwrite=overwrite)


def test_an_interrupted_job_goes_on(model, tmp_path):
    texts = [f"text {number}" for number in range(30)]
    read = []

    def stopped(at: int):
        for number, text in enumerate(texts):
            read.append(number)
            if number == at:
                raise KeyboardInterrupt
            yield text

    with pytest.raises(KeyboardInterrupt):
        model.encode_to(tmp_path / "a", stopped(17), rows_per_file=5)
    assert len(list((tmp_path / "a").glob("part-*"))) == 3
    with (tmp_path / "a" / "_parts.jsonl").open("a") as file:
        file.write('{"part": 3, "rows": 5, "ke')  # torn
    encoded = []
    encode = type(model).encode
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            type(model), "encode", lambda self, items, **o: (encoded.extend(items), encode(self, items, **o))[1]
        )
        model.encode_to(tmp_path / "a", stopped(-1), rows_per_file=5)
    assert encoded == texts[15:]
    model.encode_to(tmp_path / "b", stopped(-1), rows_per_file=5)
    assert content(tmp_path / "a") == content(tmp_path / "b")


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


JOB = """
import sys
import beyondvl as bvl
out, source, form = sys.argv[1:]
bvl.AutoModel.from_pretrained("beyond-vl-model").encode_to(out, source, format=form, rows_per_file=8, precision="int8")
"""


def test_killed_at_any_moment(model, tmp_path):
    """kill -9 in the middle: what a job leaves when it ends is what one leaves that nobody killed."""
    samples = [{"jpg": BYTES[at % 6] if at % 10 else b"bad", "txt": b"x"} for at in range(70)]
    source = write_shard(tmp_path / "s.tar", samples)
    rng, kills = random.Random(0), 0
    for form in ("parquet", "npy"):
        folder = tmp_path / form
        while True:
            job = subprocess.Popen([sys.executable, "-P", "-c", JOB, folder, source, form])
            while job.poll() is None and not (folder / "_job.json").exists():
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 1.2) if kills < 8 else 60 if job.poll() is None and job.wait() else 0)
            if job.poll() is not None:
                break
            job.send_signal(signal.SIGKILL)
            job.wait()
            kills += 1
        assert job.returncode == 0
        whole = tmp_path / f"whole-{form}"
        model.encode_to(whole, source, format=form, rows_per_file=8, precision="int8")
        assert content(folder) == content(whole)
    assert kills


def test_one_process_at_a_time(model, tmp_path):
    def slow():
        yield "a text"
        with pytest.raises(BlockingIOError, match="another process writes there"):
            model.encode_to(tmp_path / "out", ["a text"])
        yield "another"

    assert model.encode_to(tmp_path / "out", slow()).rows == 2
    assert os.listdir(tmp_path) == ["out"]
