"""`adapt`: words that a model cannot know, learned from pairs; what is saved is a checkpoint as any other."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import beyondvl as bvl
import models
from beyondvl.models.saving import write_changed
from beyondvl.pairs import Pairs, _folded, projection_of, read_pairs

WORDS = {"a zalu": (220, 40, 40), "a brimo": (40, 200, 60), "a tekka": (50, 60, 210), "an oofle": (230, 220, 60),
         "a quont": (20, 20, 20), "a vissy": (240, 240, 240)}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return bvl.AutoModel.from_pretrained("beyond-vl-model")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Discs of some colours before others, whose names nobody knows: 20 of each."""
    folder = tmp_path_factory.mktemp("pictures")
    rng, lines = np.random.default_rng(0), ["image,text"]
    y, x = np.mgrid[:96, :96]
    for word, colour in WORDS.items():
        for number in range(20):
            pixels = np.full((96, 96, 3), rng.integers(90, 150), np.uint8)
            disc = (y - rng.integers(30, 66)) ** 2 + (x - rng.integers(30, 66)) ** 2 < rng.integers(20, 30) ** 2
            pixels[disc] = np.clip(np.array(colour) + rng.integers(-15, 16, 3), 0, 255)
            name = f"{word.split()[1]}-{number}.png"
            Image.fromarray(pixels).save(folder / name)
            lines.append(f"{name},{word}")
    (folder / "pairs.csv").write_text("\n".join(lines))
    return folder


def test_words_that_nobody_knows(model, pictures, tmp_path):
    images, texts = read_pairs(pictures / "pairs.csv")
    (pictures / "none.png").write_bytes(b"none")
    done = bvl.adapt(model, [*images, str(pictures / "none.png")], [*texts, "a zalu"], tmp_path / "mine")
    assert [failure.index for failure in done.failures] == [120] and done.held_out == 18 and done.pictures == 102
    assert done.after[0] >= 80 and done.after[0] >= done.before[0] + 30  # chance is 17
    adapted = bvl.AutoModel.from_pretrained(tmp_path / "mine", strict=True)
    assert type(adapted) is type(model) and (tmp_path / "mine" / "model.safetensors").stat().st_size < 2_000_000
    np.testing.assert_array_equal(adapted.encode(images[:3]), model.encode(images[:3]))
    rows, words = (
        adapted.encode(images, normalize_embeddings=True),
        adapted.encode(list(WORDS), normalize_embeddings=True),
    )
    right = np.repeat(np.arange(6), 20)
    assert ((rows @ words.T).argmax(1) == right).mean() > 0.85
    before = model.encode(list(WORDS), normalize_embeddings=True)
    assert ((rows @ before.T).argmax(1) == right).mean() < 0.5
    again = bvl.adapt(model, images, texts, tmp_path / "again")
    twice = bvl.adapt(model, images, texts, tmp_path / "twice")
    assert again[1:5] == twice[1:5]
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "twice" / "model.safetensors"
    ).read_bytes()
    more = bvl.adapt(adapted, images, texts, tmp_path / "more")  # goes on from what was adapted
    assert more.before[0] >= 60
    assert json.loads((tmp_path / "more" / "config.json").read_text())["base_model_name_or_path"] == "beyond-vl-model"
    assert adapted.caption(images[0]) == model.caption(images[0])


def test_a_matrix_that_is_there_is_learned():
    rng = np.random.default_rng(0)
    texts = rng.standard_normal((600, 32)).astype(np.float32)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    turn = np.linalg.qr(np.eye(32) + 0.35 * rng.standard_normal((32, 32)))[0].astype(np.float32)
    images = texts @ turn.T + 0.05 * rng.standard_normal(texts.shape).astype(np.float32)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    pairs = Pairs(images, texts, np.stack([np.arange(600), np.arange(600)], 1), 0)
    assert len({*pairs.held_out, *pairs.chosen_on, *pairs.learned}) == 600
    before = pairs.recall(pairs.held_out, None)
    after = pairs.recall(pairs.held_out, pairs.learn(20.0))
    assert max(before) < 60 and min(after) > max(before) + 25
    noise = rng.standard_normal((600, 32)).astype(np.float32)
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    nothing = Pairs(noise, texts, np.stack([np.arange(600), np.arange(600)], 1), 0)
    assert max(nothing.recall(nothing.held_out, nothing.learn(20.0))) < 8


def test_the_gradient_is_that_of_the_contrast():
    torch = pytest.importorskip("torch", reason="the reference is torch's")
    rng = np.random.default_rng(0)
    images, texts = (rng.standard_normal((n, 8)).astype(np.float32) for n in (50, 30))
    images, texts = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, texts))
    pairs = Pairs(images, texts, np.stack([np.arange(50), np.arange(50) % 30], 1), 0)
    matrix = np.eye(8, dtype=np.float32) + 0.1 * rng.standard_normal((8, 8)).astype(np.float32)
    batch = np.arange(40)
    weight = torch.tensor(matrix, requires_grad=True)
    chosen = batch % 30
    unit = torch.nn.functional.normalize(torch.tensor(texts[chosen]) @ weight.T, dim=-1)
    scores = 7 * torch.tensor(images[batch]) @ unit.T
    right = torch.tensor((chosen[:, None] == chosen[None]).astype(np.float32))
    right = right / right.sum(1, keepdim=True)
    loss = 0.5 * (torch.nn.functional.cross_entropy(scores, right) + torch.nn.functional.cross_entropy(scores.T, right))
    loss.backward()
    np.testing.assert_allclose(pairs.gradient(matrix, batch, 7.0), weight.grad.numpy(), atol=1e-6)


def test_published_checkpoints_are_adapted(tmp_path):
    """Another family, whose weights are all written."""
    rng = np.random.default_rng(0)
    source = bvl.AutoModel.from_pretrained(models.write(tmp_path / "clip"))
    size = source.get_embedding_dimension()
    matrix = np.eye(size) + 0.1 * rng.standard_normal((size, size))
    write_changed(source, tmp_path / "adapted", _folded(source, projection_of(source), matrix))
    adapted = bvl.AutoModel.from_pretrained(tmp_path / "adapted", strict=True)
    one, other = source(**models.inputs()), adapted(**models.inputs())
    wanted = one.text_embeds @ matrix.T
    np.testing.assert_allclose(other.text_embeds, wanted / np.linalg.norm(wanted, axis=1, keepdims=True), atol=1e-5)
    np.testing.assert_array_equal(other.image_embeds, one.image_embeds)


def test_what_is_refused(model, pictures, tmp_path):
    images, texts = read_pairs(pictures / "pairs.csv")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    pictures_alone = bvl.AutoModel.from_pretrained(models.write(tmp_path / "clip")).vision_model
    for call, match in (
        (lambda: bvl.adapt(model, images, texts[:-1], tmp_path / "x"), "texts: found 119, expected 120"),
        (
            lambda: bvl.adapt(model, images[:20], texts[:20], tmp_path / "x"),
            "images: found 20 that can be read, expected 40",
        ),
        (lambda: bvl.adapt(model, images, texts, tmp_path / "full"), "holds files, expected a new or empty folder"),
        (lambda: bvl.adapt(pictures_alone, images, texts, tmp_path / "x"), "has no text tower"),
        (
            lambda: read_pairs(pictures / "pairs.csv", image="photo"),
            "image column: found photo, expected one of image, text",
        ),
    ):
        with pytest.raises(ValueError, match=match):
            call()
    assert not (tmp_path / "x").exists()
    (tmp_path / "p.tsv").write_text("\ufefffilepath\ttitle\nsub/a.jpg\ta, cat\n\tnone\n", encoding="utf-8")
    assert read_pairs(tmp_path / "p.tsv") == ([str(tmp_path / "sub/a.jpg")], ["a, cat"])


def test_command(pictures, tmp_path):
    command = [sys.executable, "-P", "-m", "beyondvl", "adapt", pictures / "pairs.csv", tmp_path / "mine"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "picture -> text: R@1 " in done.stdout and "of 18 held-out pictures" in done.stdout
    assert (
        "learned from 102 pictures in " in done.stdout and f"the adapted model is in {tmp_path / 'mine'}" in done.stdout
    )
