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
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "training"))  # its tools import each other by name
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
questions, moving = tool("questions"), tool("moving")


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


CROWD = [
    "Two dogs are running through the snow .",
    "two brown dogs run in the snow",
    "A brown dog and a red ball",
    "Two dogs with a ball , one in a red coat .",
    "The brown dogs are playing .",
]


def test_questions_that_captions_answer():
    said = {(kind, about): answer for kind, about, answer in questions.answers(CROWD)}
    assert said[("how many", "dogs")] == "two" and said[("where", "")] == "snow" and said[("animal", "")] == "dog"
    assert ("colour", "dogs") in said and said[("colour", "dogs")] == "brown"
    assert ("colour", "ball") not in said  # of one caption alone
    assert questions.answers(["a man", "a woman"]) == []
    others = ["a man on a bench", "the man sits on a bench", "a bench", "a man", "a man"]
    rows = [questions.made_questions([CROWD, others], np.random.default_rng(i), unseen=True) for i in range(8)]
    asked = [row for each in rows for row in each if row[1] == "is there"]
    assert {answer for *_, answer in asked} == {"yes", "no"}
    for at, _, question, answer in asked:  # every yes has its no, of the other photograph
        assert (1 - at, "is there", question, {"yes": "no", "no": "yes"}[answer]) in asked
        assert (question == "is a bench here?") <= ((at == 1) == (answer == "yes"))
    seen = {q for each in (questions.made_questions([CROWD, others], np.random.default_rng(i)) for i in range(30))
            for _, _, q, _ in each}  # fmt: skip
    assert not seen & {row[2] for each in rows for row in each}  # wordings apart


def test_a_swapped_word_is_of_the_same_kind():
    rng = np.random.default_rng(0)
    changed = {questions.swapped("Two dogs run past a red car .", rng) for _ in range(40)}
    for text in changed:
        words, own = text.split(), "two dogs run past a red car".split()
        (at,) = (i for i, word in enumerate(words) if word != own[i])
        assert own[at] in ("two", "red", "car") and any({own[at], words[at]} <= set(kind) for kind in questions.SWAPS)
    assert len({text.split()[0] for text in changed}) > 1 and questions.swapped("hello there", rng) is None


def test_clips_move_as_they_say():
    ground = [(Image.new("RGB", (50, 40), "white"), "a wall")]
    sprites = [(Image.new("RGBA", (20, 20), "red"), "apple"), (Image.new("RGBA", (20, 20), "blue"), "ball")]
    kinds, rng = set(), np.random.default_rng(4)
    for _ in range(60):
        frames, facts = moving.clip(rng, ground, sprites)
        assert frames.shape == (moving.FRAMES, moving.SIZE, moving.SIZE, 3) and frames.dtype == np.uint8
        kinds.add(facts["kind"])
        red = (frames[..., 0] > 200) & (frames[..., 2] < 60)
        blue = (frames[..., 2] > 200) & (frames[..., 0] < 60)
        shown = {"apple": red, "ball": blue}
        if facts["kind"] in ("move", "cross"):
            for noun, way in zip(facts["nouns"], facts["ways"], strict=True):
                first, last = (np.argwhere(shown[noun][i]).mean(0) for i in (0, -1))
                down, right = last - first
                assert {"right": right, "left": -right, "down": down, "up": -down}[way] > 50
                assert all(noun in caption and moving.FROM[way] in caption for caption in facts["captions"])
                assert all(answer in (way, noun) for question, answer in facts["questions"] if noun in question)
        if facts["kind"] in ("appear", "vanish"):
            there = shown[facts["nouns"][0]].any((1, 2))
            assert (there[0], there[-1]) == ((False, True) if facts["kind"] == "appear" else (True, False))
    assert kinds == {"move", "cross", "appear", "vanish", "pan", "zoom"}
    gradient = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None] * 4, (64, 64, 3))
    frames, facts = moving.panned(np.random.default_rng(0), Image.fromarray(gradient.copy()), "a wall")
    brighter = float(frames[-1].mean()) - float(frames[0].mean())  # the right side is brighter
    assert {"right": brighter > 20, "left": brighter < -20}.get(facts["ways"][0], abs(brighter) < 20)


def test_confidences_are_fitted_and_held_out():
    """A regression whose weights are known is found again, and what it says of others is calibrated."""
    pytest.importorskip("torch", reason="the tools of training need torch: pip install 'beyondvl[training]'")
    calibrate, metrics = tool("calibrate"), tool("metrics")
    rng = np.random.default_rng(0)
    features = rng.normal(size=(20_000, 2))
    right = rng.random(20_000) < 1 / (1 + np.exp(-(features @ [1.5, -0.5] + 0.7)))
    np.testing.assert_allclose(calibrate.fit(features, right, 0.0), [1.5, -0.5, 0.7], atol=0.08)
    assert metrics.calibration_error(calibrate.held_out(features, right), right) < 0.02
    assert metrics.calibration_error(1 - calibrate.held_out(features, right), right) > 0.3


def test_names_have_their_articles():
    pytest.importorskip("torch", reason="the tools of training need torch: pip install 'beyondvl[training]'")
    calibrate = tool("calibrate")
    names = calibrate.names()
    assert {"a dog", "an apple", "an airplane", "coins", "a cup of coffee"} <= set(names)
    assert len(names) == len(set(names)) > 800
    assert calibrate.subject_right("Two dogs run on the beach", {"dog"})
    assert not calibrate.subject_right("a man with a dog", {"dog"})  # what it names first counts
    assert not calibrate.subject_right("running fast", {"running"})


def test_questions_are_asked_evenly():
    """Kinds by their shares, rare answers oftener than they are; those that judge are of the commonest answer by half at
    most."""
    rows = [(at, "animal", "q", answer) for at, answer in enumerate(["dog"] * 16 + ["cat"] * 4)]
    rows += [(at, "how many", "q", "two") for at in range(9)]
    chances = questions.chances(rows)
    shares = [questions.SHARES[kind] for kind in ("animal", "how many")]
    assert chances.sum() == pytest.approx(1)
    assert chances[:20].sum() / chances[20:].sum() == pytest.approx(shares[0] / shares[1])
    assert chances[:16].sum() / chances[16:20].sum() == pytest.approx(2)
    even = questions.balanced(rows[:20], np.random.default_rng(0))
    assert [row[3] for row in even].count("dog") == 4 == [row[3] for row in even].count("cat")
    assert questions.balanced(even, np.random.default_rng(1)) == even


def test_imagined_pictures_are_of_their_classes(tmp_path):
    """A tower of ten classes: of the classes that a caption may mean the likeliest is one, and the first is the largest."""
    torch = pytest.importorskip("torch", reason="training needs torch: pip install 'beyondvl[training]'")
    from beyondvl.weights import save_safetensors

    imagined = tool("imagined")
    rng = np.random.default_rng(0)
    tower = {"_bn1.bias": rng.normal(-1.5, 0.3, 1280), "_bn1.weight": rng.uniform(0.5, 1.5, 1280),
             "_fc.weight": rng.normal(0, 0.05, (20, 1280)), "_fc.bias": np.zeros(20)}  # fmt: skip
    save_safetensors(tmp_path / "model.safetensors", {n: a.astype(np.float32) for n, a in tower.items()})
    names = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(20, 384))).float(), dim=-1)
    pictures = imagined.Imagined(tmp_path, names[:6].half(), names)
    assert all(at in pictures.classes[at, :1] for at in range(6))
    torch.manual_seed(0)
    seen = pictures.of_classes(torch.tensor([[3, 8, 5]] * 64))
    assert seen["states"].shape == (64, 81, 1280) and seen["means"].shape == (64, 1280)
    assert torch.allclose(seen["states"].mean(-1), torch.zeros(64, 81), atol=1e-4)
    first = seen["classes"].argmax(1)
    assert (first == 3).float().mean() > 0.6 and set(first.tolist()) <= {3, 8, 5}
    one, again = pictures.take([0, 1], ()), pictures.take([0, 1], ())
    assert one["classes"].shape == (2, 20) and not torch.equal(one["states"], again["states"])


def test_neighbours_of_captions():
    torch = pytest.importorskip("torch", reason="training needs torch: pip install 'beyondvl[training]'")
    imagined = tool("imagined")
    vectors = torch.nn.functional.normalize(torch.tensor([[1.0, 0], [1, 0.1], [0, 1], [0.1, 1]]), dim=-1)
    groups = imagined.neighbours(vectors, ["a", "b", "c", "d"], count=3)
    assert groups == [["a", "b", "a"], ["b", "a", "b"], ["c", "d", "c"], ["d", "c", "d"]]


def test_batches_of_pictures_with_captions():
    torch = pytest.importorskip("torch", reason="training needs torch: pip install 'beyondvl[training]'")
    captioned = tool("captioned")

    class Pictures:
        views = 2

        def take(self, at, views):
            return {"at": torch.tensor(list(at)), "view": torch.tensor(list(views))}

    words = [
        ["A red ball on the left", "the red ball lies on grass"],
        ["a dog runs", "a dog runs"],
        ["two cats", "cats"],
    ]
    rng = np.random.default_rng(0)
    sets = captioned.Captioned(Pictures(), words, rng)
    sets.swap_words(rng)
    batch = sets.caption_batch(rng, 60, 1)
    mirrored = [text for view, text in zip(batch["view"], batch["texts"], strict=True) if view == 1]
    assert len(batch["texts"]) == 60 and mirrored and not any("left" in text for text in mirrored)
    asked = sets.question_batch(rng, 40)
    assert len(asked["at"]) == len(asked["questions"]) == len(asked["texts"]) == 40
    assert all(at != 1 or "dog" in q + a for at, q, a in zip(asked["at"], asked["questions"], asked["texts"], strict=True)
               if a not in ("no", "running", "runs"))  # fmt: skip
    sets.near = np.array([[1, 2], [0, 2], [0, 1]])
    texts = sets.match_batch(rng, 12)["questions"]
    assert len(texts) == 48
    for own, swapped, *near in zip(*[iter(texts)] * 4, strict=True):
        assert own in sets.swaps and swapped == sets.swaps[own] != own and own not in near
    both = captioned.joined(
        [{"x": torch.zeros(2), "q": ["a"]}, {"x": torch.ones(1), "q": ["b"], "embeds": torch.ones(1)}]
    )
    assert both["x"].tolist() == [0, 0, 1] and both["q"] == ["a", "b"] and both["embeds"].tolist() == [1]
