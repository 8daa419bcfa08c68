"""The open set beside the default: formers that no photograph with words taught, over the default's towers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import beyondvl as bvl
import pictures
from beyondvl.hub import shipped_folder
from beyondvl.weights import open_checkpoint

NAME = "beyond-vl-model-open"
SENTENCES = json.loads((Path(__file__).parent.parent / "examples" / "photos.json").read_text())


@pytest.fixture(scope="module")
def model():
    return bvl.AutoModel.from_pretrained(NAME, strict=True)


@pytest.fixture(scope="module")
def default():
    return bvl.AutoModel.from_pretrained("beyond-vl-model")


def photo(name: str) -> str:
    return str(pictures.EXAMPLES / f"{name}.jpg")


def test_both_are_small():
    sizes = [sum(p.stat().st_size for p in shipped_folder(name).iterdir()) for name in ("beyond-vl-model", NAME)]
    assert sizes[1] <= 20_000_000 and sum(sizes) <= 80_000_000


def test_the_towers_of_text_and_sound_are_lent(model, default):
    own = open_checkpoint(shipped_folder(NAME)).entries
    assert not any(name.startswith(("text_model.", "audio_model.encoder.")) for name in own)
    assert any(name.startswith("decoder") for name in own) and "text_projection.weight" in own
    texts = ["a cup of coffee", "two dogs"]
    inner = [m.encode(texts, output_value="token_embeddings") for m in (model, default)]
    for one, other in zip(*inner, strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.abs(model.encode(texts) - default.encode(texts)).max() > 0.01


def test_photographs(model):
    """Top-1 of the committed sentence among all of them."""
    names = sorted(SENTENCES)
    images = model.encode([str(pictures.EXAMPLES / n) for n in names], normalize_embeddings=True)
    texts = model.encode([{"text": SENTENCES[n]} for n in names], normalize_embeddings=True)
    hits = model.similarity(images, texts).argmax(1) == np.arange(len(names))
    assert hits.sum() >= 8, dict(zip(names, hits, strict=True))


def test_it_says_something_of_each(model):
    said = model.caption([photo(name) for name in ("cat", "coffee", "rocket", "officer")])
    assert len(set(said)) >= 3 and all(0 < text.confidence < 1 for text in said)
    assert model.answer(photo("cat"), "is there a cat in the picture?") == "yes"
    answers = model.answer(photo("coffee"), ["is there a cup in the picture?", "how many dogs are there?"])
    assert len(answers) == 2 and all(answers)
    match = model.match(photo("cat"), ["a cat", "a rocket"])
    assert match[0] > match[1]


def test_saved_elsewhere_it_is_the_same(model, tmp_path):
    model.save_pretrained(tmp_path / "copy")
    copy = bvl.AutoModel.from_pretrained(tmp_path / "copy", strict=True)
    np.testing.assert_array_equal(copy.encode([photo("cat"), "a cat"]), model.encode([photo("cat"), "a cat"]))
    assert copy.caption(photo("coffee")) == model.caption(photo("coffee"))


def test_it_is_adapted(model, tmp_path):
    rng = np.random.default_rng(0)
    images = [pictures.photo(int(side), 60, seed=at) for at, side in enumerate(rng.integers(50, 90, 40))]
    bvl.adapt(model, images, [f"number {at % 8}" for at in range(40)], tmp_path / "mine")
    adapted = bvl.AutoModel.from_pretrained(tmp_path / "mine", strict=True)
    np.testing.assert_array_equal(adapted.encode(images[:2]), model.encode(images[:2]))
    assert np.abs(adapted.encode(["number 1"]) - model.encode(["number 1"])).max() > 1e-3
    assert adapted.caption(photo("cat")) == model.caption(photo("cat"))


def test_indices_of_both_are_told_apart(model, default, tmp_path):
    index = bvl.Index.for_model(default, path=tmp_path / "index")
    with pytest.raises(ValueError, match=r"model: found .*open"):
        index.search_items(model, "a cat")
