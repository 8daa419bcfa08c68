"""The tools of training: what results are worth, and the parts of the data."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
PLACES = [ROOT.parent / "shared" / "data", ROOT.parent.parent / "shared" / "data"]
CAPTIONS = [
    "a dog runs through the snow",
    "two girls play",
    "a man, a man and a man!",
    "a red car is parked by the old wall of a house",
]
REFERENCES = [
    ["A black dog is running through the snow .", "a dog in snow"],
    ["Two girls are playing outside.", "two children play in a yard", "girls"],
    ["three men stand there", "A man and another man"],
    ["a car beside a wall", "the red car is parked in front of the old house"],
]
# of pycocoevalcap 1.2 on the same words
BLEU, CIDER = [0.821429, 0.585032, 0.409069, 0.255751], 1.908519


def tool(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "training" / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


metrics, splits = tool("metrics"), tool("splits")


def data() -> Path | None:
    named = os.environ.get("BEYONDVL_DATA")
    return next((place for place in ([Path(named)] if named else PLACES) if (place / "flickr8k.tar").is_file()), None)


def test_captions_as_the_coco_server_scores_them():
    np.testing.assert_allclose(metrics.bleu(CAPTIONS, REFERENCES), BLEU, atol=1e-6)
    each = metrics.cider(CAPTIONS, REFERENCES)
    assert abs(each.mean() - CIDER) < 1e-6 and each.min() < each.max()
    perfect = [others[0] for others in REFERENCES]
    assert metrics.bleu(perfect, REFERENCES)[0] == 1 and metrics.cider(perfect, REFERENCES).mean() > CIDER
    assert metrics.bleu(["", ""], REFERENCES[:2]) == [0, 0, 0, 0]
    assert metrics.tokens("A man's 2nd dog, black-and-white!") == ["a", "man's", "2nd", "dog", "black", "and", "white"]


def test_recalls():
    rng = np.random.default_rng(0)
    scores, owners = rng.normal(size=(9, 27)), np.repeat(np.arange(9), 3)
    shares = metrics.recalls(scores, owners, (1, 5))
    for k in (1, 5):
        pictures = np.mean([bool({i} & set(owners[np.argsort(-scores[i])[:k]])) for i in range(9)])
        texts = np.mean([owners[j] in np.argsort(-scores[:, j])[:k] for j in range(27)])
        assert shares["picture -> text"][f"R@{k}"] == pytest.approx(100 * pictures)
        assert shares["text -> picture"][f"R@{k}"] == pytest.approx(100 * texts)
    right = np.where(owners[None] == np.arange(9)[:, None], 1.0, 0.0)
    assert all(row["R@1"] == 100 for row in metrics.recalls(right, owners).values())


def test_confidence_and_intervals():
    assert metrics.calibration_error(np.array([0.95, 0.95, 0.15, 0.15]), np.array([1, 1, 0, 0])) == pytest.approx(0.1)
    assert metrics.calibration_error(np.array([1.0, 1.0]), np.array([1, 0])) == pytest.approx(0.5)
    values = np.random.default_rng(1).normal(3, 1, 400)
    low, high = metrics.interval(len(values), lambda at: float(values[at].mean()))
    assert low < values.mean() < high and high - low == pytest.approx(2 * 1.96 / 20, rel=0.2)


def test_parts_of_an_archive(tmp_path):
    files = {
        "train.jsonl": [{"file": f"train/{i}.jpg", "captions": ["a", "b"]} for i in range(4)],
        "dev.jsonl": [{"file": f"dev/{i}.jpg", "captions": [f"c{i}"]} for i in range(6)],
    }
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, rows in files.items():
            content = "".join(json.dumps(row) + "\n" for row in rows).encode()
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    with splits.Archive(tmp_path / "a.tar") as archive:
        parts = splits.flickr8k(archive)
        assert {name: len(part) for name, part in parts.items()} == {"train": 4, "choose": 3, "report": 3}
        assert parts["report"].files[0] == "dev/3.jpg" and parts["report"].words[0] == ("c3",)
        with pytest.raises(KeyError):
            archive.read("dev/0.jpg")


@pytest.mark.skipif(data() is None, reason="no data of training: BEYONDVL_DATA names its folder")
def test_parts_of_the_data():
    """Nothing that is trained on is chosen or reported on."""
    counts = {"flickr8k": {"train": 6000, "choose": 500, "report": 500},
              "daquar": {"choose": 124, "report": 112, "train": 559}, "esc10": {1: 80, 2: 80, 3: 80, 4: 80}}  # fmt: skip
    for name, expected in counts.items():
        with splits.Archive(data() / f"{name}.tar") as archive:
            parts = getattr(splits, name)(archive)
            assert {part: len(each) for part, each in parts.items()} == expected
            files = [file for part in parts.values() for file in part.files]
            assert len(set(files)) == len(files) == sum(expected.values())
            assert archive.read(files[0])[:3] in (b"\xff\xd8\xff", b"Ogg")
