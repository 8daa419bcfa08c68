"""Folders that are searched: by words, pictures and sounds, as files come, change and go."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import clips
import numpy as np
import pytest
from PIL import Image

import beyondvl as bvl
import models
import pictures

PHOTOS, SOUND = pictures.EXAMPLES, pictures.EXAMPLES.parent / "sounds" / "query.flac"


@pytest.fixture(scope="module")
def model():
    return bvl.AutoModel.from_pretrained("beyond-vl-model")


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "photos"
    (root / "deep" / "er").mkdir(parents=True)
    for name, at in (
        ("cat", "cat.jpg"),
        ("coffee", "deep/coffee.jpg"),
        ("bricks", "deep/er/wall.jpg"),
        ("coins", "coins.jpg"),
    ):
        (root / at).write_bytes((PHOTOS / f"{name}.jpg").read_bytes())
    (root / "query.flac").write_bytes(SOUND.read_bytes())
    (root / "bad.png").write_bytes(b"none")
    (root / "readme.md").write_text("no picture")
    return root


def test_only_what_changed_is_read(model, folder, tmp_path, monkeypatch):
    read: list[str] = []
    encode = type(model).encode

    def watched(self, items, *options, **named):
        read.extend(items if isinstance(items, list) else [])
        return encode(self, items, *options, **named)

    monkeypatch.setattr(type(model), "encode", watched)
    index = bvl.Index.for_model(model, path=tmp_path / "index")
    done = index.update(model, folder)
    assert done[:4] == (6, 0, 0, 0) and [failure.source for failure in done.failures] == ["bad.png"]
    assert not re.search(r"image \d", str(done.failures[0].error)) and len(index) == 5
    assert index.search_items(model, "a cup of coffee", 1)[0] == ["deep/coffee.jpg"]
    assert index.search_items(model, folder / "cat.jpg", 1)[0] == ["cat.jpg"]
    assert index.search_items(model, [SOUND, "a brick wall"], 1)[0] == [["query.flac"], ["deep/er/wall.jpg"]]
    read.clear()
    assert index.update(model, folder)[:4] == (0, 0, 0, 6) and not read
    (folder / "cat.jpg").write_bytes((PHOTOS / "rocket.jpg").read_bytes())
    (folder / "deep" / "er" / "wall.jpg").unlink()
    (folder / "bad.png").write_bytes((PHOTOS / "cat.jpg").read_bytes())
    (folder / "deep" / "new.jpg").write_bytes((PHOTOS / "galaxies.jpg").read_bytes())
    index = bvl.Index.open(tmp_path / "index")
    done = index.update(model, folder)
    assert done == (1, 2, 1, 3, ()) and {os.path.basename(path) for path in read} == {"cat.jpg", "bad.png", "new.jpg"}
    assert set(index.keys()) == {"cat.jpg", "deep/coffee.jpg", "coins.jpg", "query.flac", "bad.png", "deep/new.jpg"}
    assert index.search_items(model, PHOTOS / "cat.jpg", 1)[0] == ["bad.png"]
    (folder / "cat.jpg").write_bytes(b"now it is none")
    assert [failure.source for failure in index.update(model, folder).failures] == ["cat.jpg"]
    assert "cat.jpg" not in index and len(index) == 5
    with pytest.raises(FileNotFoundError, match="no such folder"):
        index.update(model, folder / "gone")
    assert len(index) == 5


def test_an_index_is_of_one_model(model, folder, tmp_path):
    index = bvl.Index.for_model(model)
    assert index.facts["model"]["name"] == "beyond-vl-model"
    index.update(bvl.AutoModel.from_pretrained("beyond-vl-model", dtype="int8"), folder)  # the same, computed in int8
    other = bvl.AutoModel.from_pretrained(models.write(tmp_path / "clip"))
    for call in (
        lambda: index.update(other, folder),
        lambda: index.search_items(other, "a cat"),
        lambda: index.add_items(other, ["a cat"]),
    ):
        with pytest.raises(ValueError, match=r"model: found .*clip \([0-9a-f]{32}\), the index is of beyond-vl-model"):
            call()
    with pytest.raises(ValueError, match=r"found one of no model, expected one that Index\.for_model made"):
        bvl.Index(384).search_items(model, "a cat")
    assert len(index) == 5


def test_items_of_any_source(model):
    index = bvl.Index.for_model(model)
    texts = [f"a text of number {number}" for number in range(600)]
    texts[300] = {"image": b"none"}
    (failure,) = index.add_items(model, texts, modality=None)
    assert failure.index == 300 and len(index) == 599
    assert index.search_items(model, texts[599], 1)[0] == [texts[599]]


def test_the_nearest_are_matched(model, folder):
    index = bvl.Index.for_model(model)
    index.update(model, folder)
    keys, scores = index.search_items(model, "a cup of coffee", 2, rerank=5, root=folder)
    paths = [str(folder / key) for key in index.search_items(model, "a cup of coffee", 5)[0]]
    assert {Path(path).suffix for path in paths} == {".jpg", ".flac"}  # items of two kinds
    wanted = np.array([model.match(path, "a cup of coffee") for path in paths], np.float32).reshape(-1)
    best = np.argsort(-wanted)[:2]
    assert [str(folder / key) for key in keys] == [paths[at] for at in best]
    np.testing.assert_allclose(scores, wanted[best], atol=1e-5)
    assert keys[0].endswith("coffee.jpg")
    for query in (["a cup"], str(folder / "cat.jpg")):
        with pytest.raises(ValueError, match="rerank: found a query"):
            index.search_items(model, query, 2, rerank=5, root=folder)
    plain = bvl.AutoModel.from_pretrained(models.write(folder.parent / "clip"))
    other = bvl.Index.for_model(plain)
    with pytest.raises(ValueError, match="rerank: found a CLIPModel, expected a model that matches"):
        other.search_items(plain, "a cat", 1, rerank=1)


def test_clips_have_thumbnails(tmp_path):
    from beyondvl.search.page import thumbnail

    pytest.importorskip("av", reason="clips need PyAV: pip install 'beyondvl[video]'")
    clip = clips.write(tmp_path / "clip.mp4")
    data = thumbnail(str(clip))
    image = Image.open(io.BytesIO(data))
    assert image.size == (96, 64) and 90 < np.asarray(image)[40, 40].mean() < 150  # frame 60 of 120, of grey 2 i
    (tmp_path / "bad.mp4").write_bytes(b"none")
    assert thumbnail(str(tmp_path / "bad.mp4")) is None and thumbnail("x.wav") is None


def test_duplicates(model, folder):
    (folder / "deep" / "cat again.jpg").write_bytes((folder / "cat.jpg").read_bytes())
    image = bvl.load_image(folder / "cat.jpg")
    from PIL import Image

    Image.fromarray(image).resize((300, 300)).save(folder / "small.png")
    (folder / "coins2.jpg").write_bytes((folder / "coins.jpg").read_bytes())
    index = bvl.Index.for_model(model, "int8")
    index.update(model, folder)
    assert index.duplicates(0.9) == [["cat.jpg", "deep/cat again.jpg", "small.png"], ["coins.jpg", "coins2.jpg"]]
    assert index.duplicates(1.1) == []
    rng = np.random.default_rng(0)
    chain = bvl.Index(16)
    rows = rng.standard_normal((500, 16)).astype(np.float32)
    chain.add(range(1000), np.concatenate([rows, rows * 2])[rng.permutation(1000)])
    assert sorted(map(len, chain.duplicates(0.9999))) == [2] * 500


def run(*arguments, cwd=None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-P", "-m", "beyondvl", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=300,
    )


def test_commands(folder, tmp_path):
    done = run("search", "a cat", folder)
    assert done.returncode == 1 and f"not indexed, nor is a folder above it: beyondvl index {folder}" in done.stderr
    done = run("index", folder)
    assert done.returncode == 0 and done.stderr.startswith("bad.png: ")
    assert done.stdout == f"6 new, 0 changed, 0 gone, 0 as before, 1 not read; 5 in {folder}/.beyondvl\n"
    done = run("search", "a cup of coffee", folder, "-k", 2, "--html", tmp_path / "page.html")
    assert done.stdout.split()[1] == f"{folder}/deep/coffee.jpg"
    assert len(done.stdout.splitlines()) == 2
    page = (tmp_path / "page.html").read_text()
    assert (
        page.count("<figure>") == 2
        and page.count("data:image/jpeg;base64,") >= 1
        and "<h1>a cup of coffee</h1>" in page
    )
    done = run("search", folder / "cat.jpg", "--json", cwd=folder / "deep")
    first = json.loads(done.stdout.splitlines()[0])
    assert Path(first["file"]).samefile(folder / "cat.jpg") and first["score"] > 0.999
    (folder / "two.jpg").write_bytes((folder / "cat.jpg").read_bytes())
    facts = json.loads(run("index", ".", "--json", cwd=folder).stdout)
    assert facts["new"] == 1 and facts["same"] == 6 and facts["count"] == 6 and facts["failures"] == {}
    assert run("dedupe", cwd=folder).stdout == "cat.jpg\ntwo.jpg\n"
    empty = folder.parent / "empty"
    empty.mkdir()
    for _ in range(2):  # an index of nothing is one
        assert run("index", empty).stdout == f"0 new, 0 changed, 0 gone, 0 as before; 0 in {empty}/.beyondvl\n"
    done = run("index", folder, "--approximate")
    assert done.returncode == 1 and "an index without graphs, expected an approximate one" in done.stderr
    done = run("index", folder, "--rows", "int8")
    assert done.returncode == 1 and "an index of float32 rows, expected int8: remove it first" in done.stderr
    done = run("index", folder, "--rows", "int8", "--index", tmp_path / "elsewhere")
    assert done.returncode == 0 and "6 in " in done.stdout
    assert run("search", "coins", folder, "--index", tmp_path / "elsewhere").stdout.split()[1] == f"{folder}/coins.jpg"


def test_pages_escape_what_files_are_called(tmp_path):
    from beyondvl.search.page import write_page

    name = "<script>alert('&')</script>\".jpg"
    write_page(tmp_path / "p.html", "<b>", [(name, str(tmp_path / "gone.jpg"), 0.5)])
    page = (tmp_path / "p.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page and "<h1>&lt;b&gt;</h1>" in page
