"""`on_error`: of every item of `encode` there is a row or a failure, and good rows are as if the bad ones were not there."""

from __future__ import annotations

import io
import threading

import numpy as np
import pytest
from PIL import Image

import beyondvl as bvl
import pictures
from beyondvl.outcomes import ITEM_ERRORS

CAT = str(pictures.EXAMPLES / "cat.jpg")


@pytest.fixture(scope="module")
def model():
    return bvl.AutoModel.from_pretrained("beyond-vl-model")


def jpeg(seed: int, side: int = 40) -> bytes:
    data = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(data, "jpeg")
    return data.getvalue()


def bad_items(folder) -> dict[str, object]:
    """A dozen kinds of what no row comes of, and a word of what is said of each."""
    (folder / "page.jpg").write_bytes(b"<html><body>404</body></html>")
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.txt.png").write_text("no picture")
    (folder / "half.jpg").write_bytes(jpeg(0)[:300])
    (folder / "cut.wav").write_bytes(b"RIFF\x24\x00\x00\x00WAVEfmt ")
    png = io.BytesIO()
    Image.new("RGB", (30, 30), "red").save(png, "png")
    data = bytearray(png.getvalue())
    data[45] ^= 255
    bomb = bytearray(png.getvalue())
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2
    return {
        "page": str(folder / "page.jpg"), "empty": str(folder / "empty.png"), "text": folder / "text.txt.png",
        "half": str(folder / "half.jpg"), "gone": str(folder / "gone.jpg"), "sound": str(folder / "cut.wav"),
        "checksum": bytes(data), "bomb": bytes(bomb), "none": None, "number": 7, "infinite": np.full((9, 9, 3), np.inf),
        "keys": {"image": CAT, "text": "both"}, "rateless": {"audio": np.zeros(100, np.float32)}, "clip": {"video": b"none"},
        "no text": {"text": 5}, "flat": np.zeros((3, 0, 3), np.uint8),
    }  # fmt: skip


def mixed(folder, count: int) -> tuple[list[object], list[int]]:
    """Good pictures and texts with bad items among them, and where these are."""
    rng = np.random.default_rng(1)
    items: list[object] = [jpeg(i) if i % 3 else f"a text of number {i}" for i in range(count)]
    bad = list(bad_items(folder).values())
    places = sorted(rng.choice(count, len(bad), replace=False).tolist())
    for place, item in zip(places, bad, strict=True):
        items[place] = item
    return items, places


@pytest.mark.filterwarnings("ignore")
def test_skip(model, tmp_path):
    items, places = mixed(tmp_path, 150)
    rows = model.encode(items, on_error="skip", batch_size=16)
    assert [failure.index for failure in rows.failures] == places
    assert rows.indices.tolist() == [i for i in range(150) if i not in places]
    expected = model.encode([item for i, item in enumerate(items) if i not in places])
    np.testing.assert_array_equal(np.asarray(rows), expected)
    for failure in rows.failures:
        assert str(failure).startswith(f"item {failure.index}, {failure.source}: ")
    said = {str(failure.index): failure for failure in rows.failures}
    for name, (place, item) in zip(bad_items(tmp_path), ((p, items[p]) for p in places), strict=True):
        failure = said[str(place)]
        assert isinstance(failure.error, ITEM_ERRORS), name
        if isinstance(item, str):
            assert repr(item) == failure.source
    assert rows[:3].failures == () and rows[:3].indices is None
    scores = model.similarity(rows, rows[:2])
    assert scores.shape == (len(rows), 2)


@pytest.mark.filterwarnings("ignore")
def test_null(model, tmp_path):
    items, places = mixed(tmp_path, 60)
    rows = model.encode(items, on_error="null", normalize_embeddings=True, truncate_dim=100)
    assert rows.shape == (60, 100) and rows.indices.tolist() == list(range(60))
    assert np.isnan(rows[places]).all()
    good = [i for i in range(60) if i not in places]
    expected = model.encode([items[i] for i in good], normalize_embeddings=True, truncate_dim=100)
    np.testing.assert_array_equal(np.asarray(rows[good]), expected)
    nothing = model.encode([None, 7], on_error="null")
    assert nothing.shape == (2, 384) and np.isnan(nothing).all()
    assert model.encode([None], on_error="skip").shape == (0, 384)
    assert model.encode([], on_error="skip").failures == ()


def test_raise_keeps_what_was_finished(model):
    items = [jpeg(i) for i in range(10)]
    items[7] = b"no picture"
    with pytest.raises(bvl.ImageError, match="image 7") as caught:
        model.encode(items, batch_size=2)
    error = caught.value
    assert error.index == 7 and error.source == "bytes 10" and error.results.indices.tolist() == list(range(6))
    np.testing.assert_array_equal(np.asarray(error.results), model.encode(items[:6]))
    assert "6 of 10 items are finished" in error.__notes__[0]
    with pytest.raises(bvl.ImageError) as caught:
        model.encode(items[7:])
    assert not hasattr(caught.value, "results")
    with pytest.raises(ValueError, match="item 1") as caught:
        model.encode(["a text", {"audio": np.zeros(9)}])
    assert caught.value.index == 1 and len(caught.value.results) == 1
    with pytest.raises(TypeError, match="expected str") as caught:
        model.encode(["a text", {"text": 5}])
    assert caught.value.index == 1 and caught.value.source == "int"


def test_an_interrupted_call_keeps_what_was_finished(model, monkeypatch):
    embed, calls = model._embed, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return embed(*args)

    monkeypatch.setattr(model, "_embed", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        model.encode([jpeg(i) for i in range(10)], batch_size=2)
    assert caught.value.results.indices.tolist() == [0, 1, 2, 3]
    calls.clear()
    with pytest.raises(KeyboardInterrupt) as caught:
        model.encode(["a word"] * 10, batch_size=2)
    assert caught.value.results.indices.tolist() == [0, 1, 2, 3]


def test_tensors(model):
    torch = pytest.importorskip("torch", reason="tensors need torch: pip install 'beyondvl[test]'")
    rows = model.encode([jpeg(1), None, jpeg(2)], on_error="null", convert_to_tensor=True)
    assert torch.isnan(rows[1]).all() and rows.failures[0].index == 1 and rows.indices.tolist() == [0, 1, 2]
    small = model.encode([jpeg(1), None, jpeg(2)], on_error="skip", precision="ubinary")
    assert small.shape == (2, 48) and small.failures[0].source == "NoneType"


def test_many_threads_keep_their_failures_apart(model):
    items, found = [jpeg(1), b"bad", jpeg(2), b"worse"], {}

    def run(at: int) -> None:
        rows = model.encode(items[at % 2 :], on_error="skip")
        found[at] = [failure.index for failure in rows.failures]

    threads = [threading.Thread(target=run, args=(at,)) for at in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found[at] == ([0, 2] if at % 2 else [1, 3]) for at in range(10))


@pytest.mark.parametrize(
    "options,said",
    [
        ({"on_error": "ignore"}, "on_error: found 'ignore', expected one of raise, skip, null"),
        ({"on_error": "null", "precision": "int8"}, "has no NaN"),
        ({"on_error": "skip", "output_value": "token_embeddings"}, "expected a list of items and an array"),
        ({"on_error": "skip", "convert_to_numpy": False}, "expected a list of items and an array"),
        ({"on_error": "skip", "inputs": "one text"}, "expected a list of items and an array"),
    ],
)
def test_options_that_make_no_sense(model, options, said):
    with pytest.raises(ValueError, match=said):
        model.encode(**{"inputs": ["a text"]} | options)


def test_a_model_of_varying_sizes(tmp_path):
    """Pictures whose results depend on them: those that cannot be read do not matter to the others' size."""
    processor = bvl.AutoImageProcessor.from_pretrained(
        "beyond-vl-model", size={"shortest_edge": 32}, do_center_crop=False
    )
    failed = {}
    square = Image.new("RGB", (64, 64), "blue")
    pixels = processor.inputs([square, b"bad", square], [4, 5, 6], failed.__setitem__)["pixel_values"]
    assert pixels.shape == (2, 3, 32, 32) and list(failed) == [5]
    with pytest.raises(bvl.ImageError, match="image 5"):
        processor.inputs([square, b"bad", square], [4, 5, 6])
    with pytest.raises(ValueError, match="different sizes"):
        processor.inputs([square, b"bad", Image.new("RGB", (64, 99))], [4, 5, 6], failed.__setitem__)
