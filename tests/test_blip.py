"""BLIP against transformers: hidden states, heads, and generated text token for token; and the state it keeps."""

from __future__ import annotations

import collections
import itertools
import threading

import blips
import numpy as np
import pytest
from parity import close

import beyondvl as bvl
from beyondvl import _C

torch = pytest.importorskip("torch", reason="parity needs torch and transformers: pip install 'beyondvl[test]'")
transformers = pytest.importorskip("transformers", reason="parity needs transformers: pip install 'beyondvl[test]'")

CAPTION, MATCH, ANSWER = "BlipForConditionalGeneration", "BlipForImageTextRetrieval", "BlipForQuestionAnswering"
TOKENS = 30
SEARCHES = {"greedy": {}, "beams": {"num_beams": 3},
            "penalties": {"num_beams": 4, "length_penalty": 0.3, "early_stopping": True, "num_return_sequences": 2},
            "repetition": {"repetition_penalty": 1.3, "min_new_tokens": 9}}  # fmt: skip
_made: dict = {}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(reference, folder, pixel_values, greedy ids) of a class and a row of blips.ROWS, made once."""

    def make(cls, name="head size 12"):
        if (cls, name) not in _made:
            text, vision = blips.FULL if name == "full" else blips.ROWS[name]
            if cls == MATCH:
                model, pixels, ids = *blips.build(cls, text, vision), None
            else:
                model, pixels, ids = blips.seeing(cls, text, vision, max_new_tokens=TOKENS)
            folder = tmp_path_factory.mktemp("blip")
            model.save_pretrained(folder)
            _made[cls, name] = model, folder, pixels, ids
        return _made[cls, name]

    return make


def same_text(found, expected):
    assert found.shape == tuple(expected.shape) and (np.asarray(found) == np.asarray(expected)).all(), (found, expected)


@pytest.mark.parametrize("name", blips.ROWS)
def test_captions(isa, made, name):
    model, folder, pixels, ids = made(CAPTION, name)
    ours = bvl.AutoModel.from_pretrained(folder, strict=True)
    assert type(ours) is bvl.BlipForConditionalGeneration
    prompt, mask = blips.prompts(300)
    with torch.no_grad():
        expected = model(pixel_values=pixels, input_ids=prompt, attention_mask=mask)
    found = ours(pixel_values=pixels, input_ids=prompt, attention_mask=mask)
    assert isinstance(found.logits, torch.Tensor)
    close(found.last_hidden_state.numpy(), expected.last_hidden_state)
    keep = mask.numpy().astype(bool)
    close(found.logits.numpy()[keep], expected.logits.numpy()[keep])
    same_text(ours.generate(pixel_values=pixels.numpy(), max_new_tokens=TOKENS), ids)


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("prompted", ["no prompt", "padded prompts", "padded prompts without mask"])
def test_searches(made, search, prompted):
    """Also that a prompt drops its last token and begins with [DEC]: transformers does so, and the ids show it."""
    model, folder, pixels, plain = made(CAPTION)
    ours = bvl.AutoModel.from_pretrained(folder)
    ids, mask = blips.prompts(300)
    inputs = {"pixel_values": pixels}
    if prompted != "no prompt":
        inputs |= {"input_ids": ids, "attention_mask": mask if prompted == "padded prompts" else None}
    settings = {"max_new_tokens": TOKENS} | SEARCHES[search]
    with torch.no_grad():
        expected = model.generate(**{k: v.clone() if v is not None else v for k, v in inputs.items()}, **settings)
    found = ours.generate(**inputs, **settings)
    same_text(found.numpy(), expected)
    if prompted != "no prompt":
        assert (found[:, 0] == 298).all() and (found[0, 1:5] == ids[0, 1:5]).all() and found[0, 5] != 102
        if search == "greedy":
            assert (found[:, 5:].numpy() != plain[:, 1 : 1 + found.shape[1] - 5]).any(), "the prompt changed nothing"


def test_full_base_captions(made):
    """BLIP-base as published: 384 px, 12 layers, 30 tokens, greedy and three beams."""
    model, folder, pixels, ids = made(CAPTION, "full")
    ours = bvl.AutoModel.from_pretrained(folder)
    pixels = pixels.numpy()
    same_text(ours.generate(pixel_values=pixels, max_new_tokens=TOKENS), ids)
    with torch.no_grad():
        beams = model.generate(pixel_values=torch.from_numpy(pixels[:1]), max_new_tokens=TOKENS, num_beams=3)
    same_text(ours.generate(pixel_values=pixels[:1], max_new_tokens=TOKENS, num_beams=3), beams)


@pytest.mark.parametrize("name", blips.ROWS)
def test_matching(isa, made, name):
    check_matching(made, name)


def test_full_base_matching(made):
    check_matching(made, "full")


def check_matching(made, name):
    model, folder, pixels, _ = made(MATCH, name)
    ours = bvl.AutoModel.from_pretrained(folder, strict=True)
    ids, mask = blips.prompts(300)
    keep = mask.numpy().astype(bool)
    for use_itm_head in (True, False):
        inputs = {"pixel_values": pixels, "input_ids": ids, "attention_mask": mask, "use_itm_head": use_itm_head}
        with torch.no_grad():
            expected = model(**inputs)
        found = ours(**inputs)
        close(found.itm_score.numpy(), expected.itm_score)
        close(found.question_embeds.numpy()[keep], expected.question_embeds.numpy()[keep])
        assert np.ptp(found.itm_score.numpy(), axis=0).min() > 1e-3, "all pictures look alike"


@pytest.mark.parametrize("name", blips.ROWS)
def test_answers(isa, made, name):
    check_answers(made, name)


def test_full_base_answers(made):
    check_answers(made, "full")


def check_answers(made, name):
    """Greedy and beams; the decoder attends to a question's padding, so that a batch differs from its rows alone."""
    model, folder, pixels, expected = made(ANSWER, name)
    ours = bvl.AutoModel.from_pretrained(folder, strict=True)
    ids, mask = blips.prompts(300)
    inputs = {"input_ids": ids, "pixel_values": pixels, "attention_mask": mask, "max_new_tokens": TOKENS}
    same_text(ours.generate(**inputs).numpy(), expected)
    with torch.no_grad():
        beams = model.generate(**inputs, num_beams=3)
    same_text(ours.generate(**inputs, num_beams=3).numpy(), beams)


def test_answers_without_the_padding(made):
    """The quirk is named, and ignore_padding=True makes a padded question equal itself alone."""
    _, folder, pixels, _ = made(ANSWER)
    ours = bvl.AutoModel.from_pretrained(folder)
    ids, mask = (x.numpy() for x in blips.prompts(300))
    encoded = ours.encode_image(pixel_values=pixels)
    asked = {pad: ours._question_contexts({"input_ids": ids, "attention_mask": mask}, list(encoded.contexts), not pad)
             for pad in (True, False)}  # fmt: skip
    with pytest.raises(ValueError, match="attention_mask: row 2 keeps no token"):
        ours.generate(ids, attention_mask=mask * [[1], [1], [0]], images=encoded, ignore_padding=True)
    assert [c.rows for c in asked[True]] == [6, 6, 6] and [c.rows for c in asked[False]] == [6, 4, 6]
    alone = {"input_ids": ids[1:2, :4], "attention_mask": mask[1:2, :4]}
    batch = ours.generate(ids, attention_mask=mask, images=encoded, ignore_padding=True, max_new_tokens=9)
    same_text(ours.generate(**alone, images=encoded[1], max_new_tokens=9), batch[1:2])
    logits = ours(ids, pixels.numpy(), ids[:, :3], attention_mask=mask).logits
    single = ours(alone["input_ids"], pixels.numpy()[1:2], ids[1:2, :3], attention_mask=alone["attention_mask"]).logits
    assert np.array_equal(logits[1], single[0])


@pytest.mark.parametrize("part", ["cross-attention", "vision"])
def test_the_suite_would_notice(made, tmp_path, part):
    """Without what ties text to picture the texts change: equality above means something."""
    model, _, pixels, ids = made(CAPTION)
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    broken = [
        k for k in weights if ("crossattention.output.dense" in k if part == "cross-attention" else "vision" in k)
    ]
    for name in broken:
        weights[name].zero_()
    model.save_pretrained(tmp_path, state_dict=weights)
    found = bvl.AutoModel.from_pretrained(tmp_path).generate(pixel_values=pixels.numpy(), max_new_tokens=TOKENS)
    assert found.shape != ids.shape or (found != ids).any()
    assert (found == found[:1]).all(), "nothing of a picture is left"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_cache_equals_recomputing(isa, made, dtype):
    """Token by token with a cache, all at once without one: bitwise."""
    _, folder, pixels, ids = made(CAPTION, "head sizes 72 and 88")
    ours = bvl.AutoModel.from_pretrained(folder, dtype=dtype)
    contexts = list(ours.encode_image(pixel_values=pixels).contexts)
    program = ours.tower("decoder").program
    ids = np.ascontiguousarray(ids[:, :12])
    whole = program.run({"input_ids": ids, "contexts": contexts}, ["logits"], 2)["logits"]
    cache = _C.Cache(program, 3, 12)
    parts = [
        program.run({"input_ids": np.ascontiguousarray(part), "contexts": contexts, "cache": cache}, ["logits"], 2)
        for part in np.split(ids, [1, 2, 5, 6], axis=1)
    ]
    assert cache.length == 12
    assert np.array_equal(np.concatenate([p["logits"] for p in parts], 1), whole)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_rows_and_threads(isa, made, dtype):
    """An item of a batch is bitwise the item alone, for pictures, matching and decoding, at 1 to 3 threads."""
    _, folder, pixels, _ = made(MATCH)
    ids, mask = (x.numpy() for x in blips.prompts(300))
    first = None
    for threads in (1, 2, 3):
        ours = bvl.AutoModel.from_pretrained(folder, dtype=dtype, num_threads=threads)
        found = ours(ids, pixels.numpy(), attention_mask=mask).itm_score
        alone = [ours(ids[i : i + 1], pixels.numpy()[i : i + 1], attention_mask=mask[i : i + 1]) for i in range(3)]
        assert np.array_equal(found, np.concatenate([a.itm_score for a in alone]))
        assert first is None or np.array_equal(found, first)
        first = found


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_precisions(made, dtype):
    """Logits stay near those of float32, and cosines of the matching embeddings too."""
    _, folder, pixels, ids = made(CAPTION, "base widths")
    exact, ours = (bvl.AutoModel.from_pretrained(folder, dtype=d) for d in ("float32", dtype))
    assert ours.packed_bytes < 0.75 * exact.packed_bytes
    a, b = (m(pixels.numpy(), ids[:, :9]).logits.reshape(-1, 300) for m in (exact, ours))
    a, b = a - a.mean(0), b - a.mean(0)
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    # over 400 rows: 0.9996 and 0.9983; 0.994 and 0.983
    mean, least = (0.9993, 0.997) if dtype == "bfloat16" else (0.99, 0.98)
    assert cosine.mean() > mean and cosine.min() > least


def test_one_picture_many_questions(made, monkeypatch):
    """A second question runs no vision block, and gives what asking anew gives."""
    _, folder, pixels, _ = made(CAPTION)
    ours = bvl.AutoModel.from_pretrained(folder)
    ids, mask = (x.numpy() for x in blips.prompts(300))
    encoded = ours.encode_image(pixel_values=pixels.numpy()[:1])
    calls, vision = [], ours.tower("vision")
    run = vision.run
    monkeypatch.setattr(vision, "run", lambda *args: calls.append(1) or run(*args))
    found = ours.generate(images=encoded, input_ids=ids, attention_mask=mask, max_new_tokens=9)
    assert not calls
    expected = ours.generate(pixels.numpy()[[0, 0, 0]], ids, mask, max_new_tokens=9)
    assert calls
    same_text(found, expected)
    assert next(ours.stream(images=encoded, max_new_tokens=4)).shape == (1,)
    steps = np.stack(list(ours.stream(images=encoded, max_new_tokens=9)), 1)
    same_text(steps, ours.generate(images=encoded, max_new_tokens=9)[:, 1:])
    assert encoded.nbytes > 0 and len(ours.encode_image(pixel_values=pixels)[1:]) == 2


def test_sampling_is_seeded_and_shaped(made):
    _, folder, pixels, ids = made(CAPTION)
    ours = bvl.AutoModel.from_pretrained(folder)
    encoded = ours.encode_image(pixel_values=pixels)
    draw = {"images": encoded, "do_sample": True, "max_new_tokens": 12}
    a, b = (ours.generate(**draw, seed=5, temperature=2.0) for _ in range(2))
    same_text(a, b)
    assert (ours.generate(**draw, seed=6, temperature=2.0) != a).any()
    for only in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}):  # nothing but the likeliest is left
        same_text(ours.generate(**draw, **only), ids[:, :13])


@pytest.mark.parametrize("settings", [
    {"temperature": 0.7}, {"top_k": 4, "temperature": 1.5}, {"top_k": 1}, {"top_p": 0.3}, {"top_p": 0.05, "top_k": 0},
    {"num_return_sequences": 2, "length_penalty": 2.0}, {"repetition_penalty": 1.3},
], ids=str)  # fmt: skip
def test_sampled_beams(made, monkeypatch, settings):
    """Token for token where both draw the likeliest: what shapes the distribution, and what is done with the draws."""
    model, folder, pixels, _ = made(CAPTION)
    ours = bvl.AutoModel.from_pretrained(folder)
    ids, mask = blips.prompts(300)
    given = {"pixel_values": pixels, "input_ids": ids, "attention_mask": mask}
    how = {"num_beams": 3, "do_sample": True, "max_new_tokens": 12, "top_k": 50} | settings
    found = [ours.generate(**given, **how, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(found[0], found[1])
    if how.get("temperature", 1) > 1:
        assert found[2].shape != found[0].shape or (found[2] != found[0]).any(), "the draws change nothing"

    class Still:
        gumbel = staticmethod(lambda size: np.zeros(size))

    monkeypatch.setattr(np.random, "default_rng", lambda seed=None: Still)
    monkeypatch.setattr(torch, "multinomial", lambda shares, num_samples: torch.topk(shares, num_samples)[1])
    # transformers sorts by shares, where those that are left out are all alike: it draws at least as many as there are
    same_text(ours.generate(**given, **how), model.generate(**given, **how))


def test_sampled_beams_are_drawn_by_their_shares(made):
    """Of one token each, what is returned is the likeliest of three draws without replacement."""
    model, folder, pixels, _ = made(CAPTION)
    ours = bvl.AutoModel.from_pretrained(folder)
    encoded = ours.encode_image(pixel_values=pixels[:1])
    how = {"images": encoded, "do_sample": True, "max_new_tokens": 1, "num_beams": 3, "top_k": 8, "temperature": 3.0}
    found = [int(ours.generate(**how, seed=seed)[0, 1]) for seed in range(600)]
    with torch.no_grad():
        logits = model(pixels[:1], torch.tensor([[blips.TEXT["bos_token_id"]]])).logits[0, -1].double()
    tokens = logits.topk(8)[1].tolist()
    shares = torch.softmax(logits[tokens] / 3.0, 0).tolist()
    expected = dict.fromkeys(tokens, 0.0)
    for a, b, c in itertools.permutations(range(8), 3):
        chance = shares[a] * shares[b] / (1 - shares[a]) * shares[c] / (1 - shares[a] - shares[b])
        expected[tokens[min(a, b, c)]] += chance
    counts = collections.Counter(found)
    assert set(counts) <= set(tokens) and len(counts) > 2
    assert max(abs(counts[t] / len(found) - expected[t]) for t in tokens) < 0.07


def test_packed(made, tmp_path):
    """The packed weights of three programs, contexts and all, give the same answers."""
    _, folder, pixels, expected = made(ANSWER)
    bvl.AutoModel.from_pretrained(folder).save_packed(tmp_path / "packed")
    ours = bvl.AutoModel.from_pretrained(tmp_path / "packed")
    ids, mask = blips.prompts(300)
    same_text(ours.generate(ids, pixels, mask, max_new_tokens=TOKENS).numpy(), expected)


BAD = {
    "pairs": (lambda m, x: m(x["ids"][:2], x["pixels"]), ValueError, "found 3 pictures and 2 texts, expected pairs"),
    "no pixels": (lambda m, x: m(x["ids"]), ValueError, "pixel_values"),
    "no ids": (lambda m, x: m(pixel_values=x["pixels"]), ValueError, "input_ids: not given"),
    "mask": (lambda m, x: m(x["ids"], x["pixels"], attention_mask=x["ids"][:, :4]), ValueError, r"attention_mask: found shape \(3, 4\), expected \(3, 6\)"),
    "too long": (lambda m, x: m(np.ones((3, 65), np.int64), x["pixels"]), ValueError, "65 tokens, expected 1 to 64"),
    "pictures": (lambda m, x: m.match(m.encode_image(pixel_values=x["pixels"]), ["a", "b"]), ValueError, "found 2 texts and 3 pictures"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input(made, case):
    _, folder, pixels, _ = made(MATCH)
    ours = bvl.AutoModel.from_pretrained(folder)
    call, error, message = BAD[case]
    given = {"ids": blips.prompts(300)[0].numpy(), "pixels": pixels.numpy()}
    with pytest.raises(error, match=message):
        call(ours, given)
    assert ours(given["ids"], given["pixels"]).itm_score.shape == (3, 2)


BAD_GENERATION = {
    "beyond the positions": ({"max_new_tokens": 64}, ValueError, "found 65 in all, expected at most 64"),
    "unknown": ({"max_tokens": 3}, TypeError, "unexpected arguments: max_tokens"),
    "no beams": ({"num_beams": 0}, ValueError, "num_beams: found 0"),
    "temperature": (
        {"temperature": 0.0, "do_sample": True},
        ValueError,
        "temperature: found 0.0, expected a number above 0",
    ),
    "too many": ({"num_return_sequences": 2}, ValueError, "num_return_sequences: found 2"),
    "prompt": ({"input_ids": np.array([[101], [101], [101]])}, ValueError, "expected a prompt between"),
    "early stopping": ({"early_stopping": 1, "num_beams": 2}, ValueError, "early_stopping: found 1"),
    "length penalty": ({"length_penalty": "1"}, ValueError, "length_penalty: found '1'"),
    "no room": ({"max_length": 1}, ValueError, "max_length: found 1 and a prompt of 1"),
}


@pytest.mark.parametrize("case", BAD_GENERATION)
def test_bad_generation(made, case):
    _, folder, pixels, ids = made(CAPTION)
    ours = bvl.AutoModel.from_pretrained(folder)
    settings, error, message = BAD_GENERATION[case]
    with pytest.raises(error, match=message):
        ours.generate(pixel_values=pixels.numpy(), **settings)
    same_text(ours.generate(pixel_values=pixels.numpy(), max_new_tokens=TOKENS), ids)


def test_bad_state(made):
    """Contexts and caches of another model, too full, or of another number of items: said, and nothing is lost."""
    _, folder, pixels, ids = made(CAPTION)
    other = bvl.AutoModel.from_pretrained(made(CAPTION, "head sizes 72 and 88")[1])
    ours = bvl.AutoModel.from_pretrained(folder)
    program = ours.tower("decoder").program
    contexts = list(ours.encode_image(pixel_values=pixels).contexts)
    ids = np.ascontiguousarray(ids[:, :4])
    cache = _C.Cache(program, 3, 5)

    def run(error, message, **inputs):
        with pytest.raises(error, match=message):
            program.run({"input_ids": ids, "contexts": contexts, "cache": cache} | inputs, ["logits"], 1)

    strange = other.encode_image(pixel_values=np.zeros((3, 3, 45, 45), np.float32)).contexts
    run(ValueError, r"contexts\[0\]: 2 layers of 1 heads of 72, expected 2 of 4 of 12", contexts=list(strange))
    run(ValueError, "expected a list of 3", contexts=contexts[:2])
    run(TypeError, "expected a Context", contexts=[1, 2, 3])
    run(TypeError, "expected a Cache", cache=3)
    run(ValueError, "cache: of 3 items of another model", cache=_C.Cache(other.tower("decoder").program, 3, 9))
    run(ValueError, "cache: of 2 items", cache=_C.Cache(program, 2, 9))
    run(ValueError, r"position_ids\[0, 0\]: 64, expected 0 to 63", position_ids=np.full((3, 4), 64))
    assert cache.length == 0
    program.run({"input_ids": ids, "contexts": contexts, "cache": cache}, ["logits"], 1)
    run(ValueError, "cache: room for 5 tokens, found 4 more after 4")
    with pytest.raises(ValueError, match="reorder: item 3, expected 0 to 2"):
        cache.reorder(np.array([0, 1, 3]))
    with pytest.raises(ValueError, match="reorder: found 2 items"):
        cache.reorder(np.array([0, 1]))
    for arguments in ((program, 0, 3), (program, 3, 0), (program, 1 << 19, 1 << 19)):
        with pytest.raises((ValueError, MemoryError)):
            _C.Cache(*arguments)
    with pytest.raises(TypeError):
        _C.Context()
    with pytest.raises(ValueError, match="the program makes none"):
        program.run({"input_ids": ids}, ["context"], 1)


def test_missing_head_is_named(made):
    """A captioning checkpoint has no matching head: the error says which class it is for."""
    folder = made(CAPTION)[1]
    with pytest.raises(bvl.CheckpointError, match="use BlipForConditionalGeneration"):
        bvl.BlipForImageTextRetrieval.from_pretrained(folder)


def test_ten_threads_share_a_picture(made):
    _, folder, pixels, ids = made(CAPTION)
    ours = bvl.AutoModel.from_pretrained(folder)
    encoded = ours.encode_image(pixel_values=pixels)
    found: list = [None] * 10

    def work(i):
        found[i] = ours.generate(images=encoded, max_new_tokens=TOKENS)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in found:
        same_text(result, ids)


def test_every_allocation_of_a_search_may_fail(made):
    """The n-th allocation fails: MemoryError, nothing leaks, and the next call works."""
    _, folder, pixels, _ = made(CAPTION)
    ours = bvl.AutoModel.from_pretrained(folder)
    pixels = pixels.numpy()
    expected = ours.generate(pixels, num_beams=2, max_new_tokens=6)
    live = _C.alloc_live()
    for n in range(1, 200):
        _C.alloc_fail_at(n)
        try:
            found = ours.generate(pixels, num_beams=2, max_new_tokens=6)
            break
        except MemoryError:
            pass
        finally:
            _C.alloc_fail_at(0)
        assert _C.alloc_live() <= live  # the exception, and what its frames held, is gone by now
    assert n > 5
    same_text(found, expected)
