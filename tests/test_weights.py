"""Checkpoint files: every dtype, shards, torch files, and a table of malformed ones with the error each gets."""

from __future__ import annotations

import contextlib
import json
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import beyondvl as bvl
from beyondvl import weights
from beyondvl.weights import open_checkpoint, save_safetensors

SOURCE = Path(bvl.__file__).parent


def raw(header, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype="F32", shape=(2, 3), begin=0, end=24, **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end], **more}


ZEROS = bytes(24)
MALFORMED = {
    "empty file": (b"", "expected a header length"),
    "seven bytes": (b"1234567", "expected a header length"),
    "header longer than file": (raw({"a": entry()}, ZEROS, 10_000), "expected at most"),
    "header of 2^63": (struct.pack("<Q", 1 << 63) + b"{}", "expected at most"),
    "header of 2^64 - 1": (b"\xff" * 8 + b"{}", "expected at most"),
    "git lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n" + b" " * 80, "Git LFS"),
    "not json": (raw(b"{nope"), "not valid JSON"),
    "json array": (raw(b"[1,2]"), "begins with"),
    "leading space": (raw(b" {}"), "begins with"),
    "not utf-8": (raw(b'{"\xff": 1}'), "not valid JSON"),
    "deep json": (raw(b'{"a":' * 100_000), "not valid JSON"),
    "duplicate name": (raw(b'{"a":%b,"a":%b}' % ((json.dumps(entry()).encode(),) * 2), ZEROS), "duplicate key 'a'"),
    "entry is a number": (raw({"a": 3}), "expected the fields"),
    "unknown field": (raw({"a": entry(extra=1)}, ZEROS), "expected the fields"),
    "missing field": (raw({"a": {"dtype": "F32", "shape": [1]}}), "expected the fields"),
    "unknown dtype": (raw({"a": entry("F31")}, ZEROS), "dtype 'F31'"),
    "dtype is a list": (raw({"a": entry(["F32"])}, ZEROS), "dtype"),
    "lower-case dtype": (raw({"a": entry("f32")}, ZEROS), "dtype 'f32'"),
    "negative size": (raw({"a": entry(shape=(-2, -3))}, ZEROS), "shape"),
    "float size": (raw({"a": entry(shape=(2.0, 3))}, ZEROS), "shape"),
    "bool size": (raw({"a": entry(shape=(True, 6))}, ZEROS), "shape"),
    "huge size": (raw({"a": entry(shape=(1 << 62, 4))}, ZEROS), "shape"),
    "product overflow": (raw({"a": entry(shape=(1 << 40, 1 << 40))}, ZEROS), "span 24 bytes"),
    "rank 9": (raw({"a": entry(shape=(1,) * 9, end=4)}, ZEROS), "shape"),
    "shape is text": (raw({"a": entry(shape="ab")}, ZEROS), "shape"),
    "offsets too short": (raw({"a": entry(end=20)}, ZEROS), "span 20 bytes"),
    "offsets reversed": (raw({"a": entry(begin=24, end=0)}, ZEROS), "span -24"),
    "offsets negative": (raw({"a": entry(begin=-24, end=0)}, ZEROS), "data_offsets"),
    "offsets past the file": (raw({"a": entry(begin=24, end=48)}, ZEROS), "hole"),
    "data truncated": (raw({"a": entry()}, ZEROS[:-1]), "truncated or trailing"),
    "trailing data": (raw({"a": entry()}, ZEROS + b"x"), "truncated or trailing"),
    "hole": (raw({"a": entry(), "b": entry(begin=32, end=56)}, bytes(56)), "hole"),
    "overlap": (raw({"a": entry(), "b": entry(begin=12, end=36)}, bytes(36)), "overlap"),
    "same bytes twice": (raw({"a": entry(), "b": entry()}, ZEROS), "overlap"),
    "empty name": (raw({"": entry()}, ZEROS), "tensor name"),
    "control byte in name": (raw({"a\0b": entry()}, ZEROS), "tensor name"),
    "metadata of numbers": (raw({"__metadata__": {"a": 1}}), "__metadata__"),
    "metadata is a list": (raw({"__metadata__": []}), "__metadata__"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_safetensors(tmp_path, name):
    content, message = MALFORMED[name]
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(bvl.CheckpointError, match=re.escape(message)) as caught:
        open_checkpoint(tmp_path)
    assert "model.safetensors" in str(caught.value)


def test_every_truncation_is_refused(tmp_path):
    whole = raw({"a": entry(), "b": entry("F16", (3,), 24, 30)}, bytes(30))
    path = tmp_path / "model.safetensors"
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with pytest.raises(bvl.CheckpointError):
            open_checkpoint(tmp_path)


def test_what_we_accept_safetensors_accepts(tmp_path):
    """Random damage to a good file: whatever opens here opens there, with the same names, shapes and values."""
    reference = pytest.importorskip("safetensors.numpy", reason="differential test needs safetensors")
    rng = np.random.default_rng(0)
    good = raw({"a": entry(), "b": entry("F32", (3,), 24, 36)}, rng.bytes(36))
    path, accepted = tmp_path / "model.safetensors", 0
    for _ in range(3000):
        data = bytearray(good)
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(len(data))] = rng.integers(256)
        path.write_bytes(data)
        try:
            found = open_checkpoint(tmp_path)
        except bvl.CheckpointError:
            continue
        accepted += 1
        theirs = reference.load(bytes(data))
        assert set(theirs) == set(found.names())
        for name, array in theirs.items():
            if array.dtype == np.float32:
                np.testing.assert_array_equal(found.read(name, array.shape), array)
    assert accepted > 100


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
def test_stored_floats(tmp_path, dtype):
    values = np.array([[1.5, -2.25, 0.0], [3e-5, 65504.0, -0.125]], np.float32)
    if dtype == "BF16":
        stored = (values.view(np.uint32) >> 16).astype(np.uint16)
        expected = (stored.astype(np.uint32) << 16).view(np.float32)
    else:
        stored = values.astype({"F64": "f8", "F32": "f4", "F16": "f2"}[dtype])
        expected = stored.astype(np.float32)
    header = {"w": {"dtype": dtype, "shape": [2, 3], "data_offsets": [0, stored.nbytes]}}
    (tmp_path / "model.safetensors").write_bytes(raw(header, stored.tobytes()))
    np.testing.assert_array_equal(open_checkpoint(tmp_path).read("w", (2, 3)), expected)


def test_int8_with_scales(tmp_path):
    q = np.array([[127, -128, 3], [5, 0, -7]], np.int8)
    scales = np.array([0.5, 2.0], np.float32)
    save_safetensors(tmp_path / "model.safetensors", {
        "a.weight": q, "a.weight_scale": scales[:, None], "b.weight": q, "b.weight_scale": np.float32([0.25]),
        "c.weight": q, "c.SCB": scales, "d.weight": q})  # fmt: skip
    found = open_checkpoint(tmp_path)
    np.testing.assert_allclose(found.read("a.weight", (2, 3)), q * scales[:, None])
    np.testing.assert_allclose(found.read("b.weight", (2, 3)), q * np.float32(0.25))
    np.testing.assert_allclose(found.read("c.weight", (2, 3)), q * scales[:, None] / 127, rtol=1e-6)
    assert found.companions({"a.weight", "c.weight"}) == {"a.weight_scale", "c.SCB"}
    with pytest.raises(bvl.CheckpointError, match="without scales"):
        found.read("d.weight", (2, 3))


def shards(folder, weight_map, files):
    for name, tensors in files.items():
        save_safetensors(folder / name, tensors)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_shards(tmp_path):
    a, b = np.arange(6, dtype=np.float32), np.ones(3, np.float16)
    shards(
        tmp_path,
        {"a": "x-1.safetensors", "b": "x-2.safetensors"},
        {"x-1.safetensors": {"a": a}, "x-2.safetensors": {"b": b}},
    )
    found = open_checkpoint(tmp_path)
    np.testing.assert_array_equal(found.read("a", (6,)), a)
    np.testing.assert_array_equal(found.read("b", (3,)), b)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/../b.safetensors", "a\\b.safetensors", "", "x\0.safetensors",
                                  "/dev/zero", "model.pt", 3, None])  # fmt: skip
def test_shard_names_stay_in_the_folder(tmp_path, name):
    shards(tmp_path, {"a": name}, {})
    with pytest.raises(bvl.CheckpointError, match="plain file name"):
        open_checkpoint(tmp_path)


def test_bad_shards(tmp_path):
    one = {"a": np.ones(2, np.float32)}
    shards(tmp_path, {"a": "x.safetensors", "b": "x.safetensors"}, {"x.safetensors": one})
    with pytest.raises(bvl.CheckpointError, match="b lies in no shard"):
        open_checkpoint(tmp_path)
    shards(tmp_path, {"a": "x.safetensors", "b": "y.safetensors"}, {"y.safetensors": one})
    with pytest.raises(bvl.CheckpointError, match="a lies in two shards"):
        open_checkpoint(tmp_path)
    shards(tmp_path, {"a": "gone.safetensors"}, {})
    with pytest.raises(bvl.CheckpointError, match=r"gone\.safetensors is missing"):
        open_checkpoint(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(bvl.CheckpointError, match="not a shard index"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("kind", ["folder", "fifo"])
def test_only_regular_files(tmp_path, kind):
    import os

    path = tmp_path / "model.safetensors"
    os.mkfifo(path) if kind == "fifo" else path.mkdir()
    with pytest.raises(bvl.CheckpointError, match="regular file"):
        open_checkpoint(tmp_path)


def test_missing_and_misshapen(tmp_path):
    save_safetensors(tmp_path / "model.safetensors", {"a": np.ones((2, 3), np.float32), "i": np.ones(2, np.int64)})
    found = open_checkpoint(tmp_path)
    with pytest.raises(bvl.CheckpointError, match=r"b is missing, expected a tensor of shape \[4\]"):
        found.read("b", (4,))
    with pytest.raises(bvl.CheckpointError, match=r"a: found shape \[2, 3\], the config expects \[3, 2\]"):
        found.read("a", (3, 2))
    with pytest.raises(bvl.CheckpointError, match="dtype I64"):
        found.read("i", (2,))
    with pytest.raises(bvl.CheckpointError, match="no weights found"):
        open_checkpoint(tmp_path / "..")


def test_truncated_after_opening(tmp_path):
    path = tmp_path / "model.safetensors"
    save_safetensors(path, {"a": np.ones(100_000, np.float32)})
    found = open_checkpoint(tmp_path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(bvl.CheckpointError, match="truncated"):
        found.read("a", (100_000,))


def test_torch_files(tmp_path):
    torch = pytest.importorskip("torch", reason="needs torch to write such a file")
    tensors = {"a": torch.randn(4, 5), "b": torch.randn(3).half(), "c": torch.randn(7).bfloat16(), "s": torch.tensor(2.5),
               "i": torch.arange(3), "part": torch.randn(10, 4)[2:5], "p": torch.nn.Parameter(torch.randn(2, 2))}  # fmt: skip
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    found = open_checkpoint(tmp_path)
    for name, tensor in tensors.items():
        if name != "i":
            np.testing.assert_array_equal(found.read(name, tuple(tensor.shape)), tensor.detach().float().numpy())
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    torch.save(module.state_dict(), tmp_path / "pytorch_model.bin")
    found = open_checkpoint(tmp_path)
    np.testing.assert_array_equal(found.read("0.weight", (4, 3)), module[0].weight.detach().numpy())


def test_torch_files_that_would_run_code_are_refused_by_name(tmp_path):
    torch = pytest.importorskip("torch", reason="needs torch to write such a file")

    class Evil:
        def __reduce__(self):
            return (print, ("never printed",))

    torch.save({"a": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(bvl.CheckpointError, match=r"mentions (__builtin__|builtins)\.print, which is not allowed"):
        open_checkpoint(tmp_path)
    torch.save(torch.nn.Linear(2, 2), tmp_path / "pytorch_model.bin")
    with pytest.raises(bvl.CheckpointError, match=r"mentions torch\.nn"):
        open_checkpoint(tmp_path)


def test_a_torch_file_with_a_name_that_is_no_text(tmp_path):
    """A tuple of tuples doubles with every step, and so does what printing it takes."""
    program = b"\x80\x02K\x01" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(40)) + b"K\x01\x93."
    with zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w") as archive:
        archive.writestr("x/data.pkl", program)
    with pytest.raises(bvl.CheckpointError, match="mentions something whose name is no text"):
        open_checkpoint(tmp_path)


def test_malformed_torch_files(tmp_path):
    torch = pytest.importorskip("torch", reason="needs torch to write such a file")
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.randn(64, 64)}, path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for cut in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(bvl.CheckpointError):
            open_checkpoint(tmp_path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/readme", "no program here")
    with pytest.raises(bvl.CheckpointError, match=r"no data\.pkl"):
        open_checkpoint(tmp_path)
    for _ in range(300):  # damaged programs: an error of ours or a good answer, nothing else
        program = bytearray(zipfile.ZipFile(__import__("io").BytesIO(whole)).read("pytorch_model/data.pkl"))
        for _ in range(rng.integers(1, 4)):
            program[rng.integers(len(program))] = rng.integers(256)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("pytorch_model/data.pkl", bytes(program))
            archive.writestr("pytorch_model/data/0", bytes(64 * 64 * 4))
        with contextlib.suppress(bvl.CheckpointError):
            open_checkpoint(tmp_path)


def test_source_never_unpickles():
    for path in SOURCE.rglob("*.py"):
        text = path.read_text()
        assert not re.search(
            r"^\s*(import|from) (pickle|marshal|shelve|dill|cloudpickle)\b|allow_pickle=True", text, re.M
        ), path
        assert not re.search(r"(?<![.\w])(?<!def )(eval|exec)\(", text), path


def test_opening_allocates_little_for_a_lying_header(tmp_path):
    """A header that claims 2^47 bytes costs nothing."""
    (tmp_path / "model.safetensors").write_bytes(raw({"a": entry(shape=(1 << 45,), end=1 << 47)}, ZEROS))
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))\n"
        "from pathlib import Path; from beyondvl.weights import open_checkpoint; from beyondvl import CheckpointError\n"
        f"try: open_checkpoint(Path({str(tmp_path)!r}))\nexcept CheckpointError as e: print(e)"
    )
    env = {"OPENBLAS_NUM_THREADS": "1", "PATH": "/usr/bin", "PYTHONPATH": str(SOURCE.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=60, cwd=tmp_path
    )
    assert "truncated or trailing" in done.stdout, done.stderr


def test_save_is_atomic_and_reads_back(tmp_path):
    path = tmp_path / "model.safetensors"
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array(2.5, np.float32),
        "c": np.ones(3, np.int8),
    }
    save_safetensors(path, arrays, {"format": "pt"})
    found = open_checkpoint(tmp_path)
    np.testing.assert_array_equal(found.read("a", (2, 3)), arrays["a"])
    assert found.read("b", ()) == 2.5
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    assert weights.MAX_HEADER_BYTES == 100_000_000
