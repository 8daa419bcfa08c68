"""The command line: output on stdout, errors on stderr, exit codes 0, 1, 2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import beyondvl as bvl
import models
import pictures
from beyondvl.processing.image import ImageProcessor
from beyondvl.verify import agrees, compared_rows, verify_model

ROOT = Path(bvl.__file__).parent.parent
HERE = Path(__file__).parent
PHOTOS = pictures.EXAMPLES


def cli(*arguments: str, **env: str) -> subprocess.CompletedProcess:
    full = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    command = [sys.executable, "-m", "beyondvl", *map(str, arguments)]
    # not from the root of the checkout, where Python would find the sources before the installed package
    return subprocess.run(command, capture_output=True, text=True, env=full, timeout=300, cwd=HERE)


def test_similarity_table():
    done = cli("similarity", PHOTOS / "cat.jpg", PHOTOS / "coffee.jpg", "--text", "a cat", "a cup of coffee")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "a cat" in lines[0] and lines[1].startswith("cat.jpg")
    assert lines[-2].split("->")[1].strip() == "a cat" and lines[-1].split("->")[1].strip() == "a cup of coffee"


def test_similarity_json_of_a_folder():
    done = cli("similarity", "--json", PHOTOS, "--text", "a cat", "a rocket")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == len(list(PHOTOS.glob("*.jpg")))
    assert {r["best"] for r in rows if "cat" in r["image"]} == {"a cat"}


def test_embed(tmp_path):
    done = cli("embed", "--normalize", "a cat", PHOTOS / "cat.jpg")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and len(rows) == 2
    assert abs(np.linalg.norm(rows[0]["embedding"]) - 1) < 1e-3
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    done = cli("embed", "a cat", tmp_path / "bad.jpg", "a dog")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1 and "error" in rows[1] and "embedding" in rows[2]


def test_dtype_and_pack(tmp_path):
    folder = models.write(tmp_path / "clip")
    assert json.loads(cli("info", "--json", "--dtype", "int8", folder).stdout)["dtype"] == "int8"
    done = cli("pack", folder, tmp_path / "packed", "--dtype", "bfloat16")
    assert done.returncode == 0 and "MB of bfloat16" in done.stderr
    assert json.loads(cli("info", "--json", tmp_path / "packed").stdout)["dtype"] == "bfloat16"
    assert json.loads(cli("info", "--json", "--dtype", "float16", folder).stdout)["dtype"] == "float32"
    done = cli("info", "--dtype", "float64", folder)
    assert done.returncode == 1 and "found 'float64', expected one of" in done.stderr


def test_embed_takes_any_text_and_folders():
    done = cli("embed", "a cat " * 100, PHOTOS)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[0]["input"].startswith("a cat a cat") and len(lines) == 1 + len(list(Path(PHOTOS).glob("*.jpg")))


def test_embed_writes_files(tmp_path):
    (tmp_path / "in").mkdir()
    for name, data in (("a.jpg", (PHOTOS / "cat.jpg").read_bytes()), ("b.jpg", b"none")):
        (tmp_path / "in" / name).write_bytes(data)
    done = cli("embed", tmp_path / "in", "--output", tmp_path / "out", "--format", "npy", "--precision", "float16")
    assert done.returncode == 1 and not done.stdout
    assert "b.jpg: " in done.stderr and "2 rows, of which 1 could not be read, in 2 files in " in done.stderr
    rows = np.load(tmp_path / "out" / "embeddings.npy")
    wanted = bvl.AutoModel.from_pretrained("beyond-vl-model").encode(PHOTOS / "cat.jpg", precision="float16")
    np.testing.assert_array_equal(rows[0], wanted)
    assert rows.shape == (2, 384) and np.isnan(rows[1]).all()


@pytest.mark.parametrize("value", ["abc", "0", "99999", "1.5", "-1", "2 "])
def test_a_number_of_threads_that_is_none(value):
    done = cli("embed", "a cat", BEYONDVL_NUM_THREADS=value)
    assert done.returncode == 1 and not done.stdout
    assert f"BEYONDVL_NUM_THREADS: found '{value}', expected a number from 1 to 1024" in done.stderr


def test_info_and_convert(tmp_path):
    folder = models.write(tmp_path / "clip")
    facts = json.loads(cli("info", "--json", folder).stdout)
    assert facts["class"] == "CLIPModel" and facts["text"]["hidden_size"] == 48
    assert cli("convert", folder, tmp_path / "out").returncode == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]
    again = cli("convert", folder, tmp_path / "out")
    assert again.returncode == 1 and "holds files, expected a new or empty folder" in again.stderr
    expected = bvl.AutoModel.from_pretrained(folder)(**models.inputs()).image_embeds
    found = bvl.AutoModel.from_pretrained(tmp_path / "out")(**models.inputs()).image_embeds
    np.testing.assert_array_equal(found, expected)


def test_doctor():
    done = cli("doctor", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["beyondvl"] == bvl.__version__
    assert "isa" in cli("doctor").stdout


def test_verify(tmp_path):
    """Side by side with transformers on a folder that holds everything."""
    pytest.importorskip("torch", reason="verify needs torch")
    transformers = pytest.importorskip("transformers", reason="verify needs transformers")
    folder = models.write(tmp_path / "vision", {"model_type": "clip_vision_model", "architectures": ["CLIPVisionModel"],
                                                "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
                                                "num_attention_heads": 4, "image_size": 32, "patch_size": 8})  # fmt: skip
    config = transformers.CLIPVisionConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=2,
                                           num_attention_heads=4, image_size=32, patch_size=8)  # fmt: skip
    transformers.CLIPVisionModelWithProjection(config).save_pretrained(folder)
    transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        folder
    )
    # conftest: transformers' Pillow path, whatever torchvision there is
    code = "import conftest, sys; from beyondvl.cli import main; sys.exit(main(sys.argv[1:]))"
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)])}
    done = subprocess.run([sys.executable, "-c", code, "verify", str(folder)], capture_output=True, text=True, env=paths,
                          timeout=300, cwd=HERE)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "image_embeds" in done.stdout and "agrees" in done.stdout
    assert "pixel_values (input)" in done.stdout


def test_verify_finds_what_differs(tmp_path, capsys, monkeypatch):
    """Another picture is told, and an output of another shape."""
    pytest.importorskip("torch", reason="verify needs torch")
    transformers = pytest.importorskip("transformers", reason="verify needs transformers")
    config = transformers.CLIPVisionConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=2,
                                           num_attention_heads=4, image_size=32, patch_size=8)  # fmt: skip
    transformers.CLIPVisionModelWithProjection(config).save_pretrained(tmp_path)
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path)
    assert verify_model(str(tmp_path), as_json=True)
    whole = json.loads(capsys.readouterr().out)
    assert whole["agrees"] and [row["output"] for row in whole["inputs"]] == ["pixel_values"] and not whole["note"]
    call = ImageProcessor.__call__
    monkeypatch.setattr(ImageProcessor, "__call__", lambda self, images, **k: call(self, images[::-1], **k))
    assert not verify_model(str(tmp_path), as_json=True)
    assert json.loads(capsys.readouterr().out)["inputs"][0]["max_difference"] > 0.1
    monkeypatch.undo()
    rows = compared_rows({"a": {"b": np.ones((2, 3))}, "c": np.ones(3)}, {"a": {"b": np.zeros((2, 3))}, "d": 1})
    assert [row["output"] for row in rows] == ["a.b"] and rows[0]["max_difference"] == 1
    same = np.eye(4, 8)
    rows = compared_rows(
        {"text_embeds": same, "image_embeds": same}, {"text_embeds": same, "image_embeds": np.eye(4, 9)}
    )
    assert rows[1]["shapes"] == [[4, 8], [4, 9]] and not agrees(rows) and agrees(rows[:1])


@pytest.mark.parametrize("arguments,code,message", [
    ((), 2, "usage"), (("dance",), 2, "invalid choice"), (("similarity", "x.jpg"), 2, "--text"),
    (("similarity", "/no/such.jpg", "--text", "a"), 1, "no such file"), (("info", "/no/such/folder"), 1, "no such folder"),
    (("similarity", str(HERE), "--text", "a"), 1, "no pictures"),
])  # fmt: skip
def test_exit_codes(arguments, code, message):
    done = cli(*arguments)
    assert done.returncode == code and message in done.stderr and not done.stdout
