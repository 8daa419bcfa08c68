"""BLIP-2's Q-Former against transformers: queries alone, text alone, and both together."""

from __future__ import annotations

import json

import numpy as np
import pytest
from parity import close, unit_gain

import beyondvl as bvl

torch = pytest.importorskip("torch", reason="parity needs torch and transformers: pip install 'beyondvl[test]'")
transformers = pytest.importorskip("transformers", reason="parity needs transformers: pip install 'beyondvl[test]'")

RETRIEVAL, VISION, TEXT = (
    "Blip2ForImageTextRetrieval",
    "Blip2VisionModelWithProjection",
    "Blip2TextModelWithProjection",
)
# name -> changes of the vision and the Q-Former section, queries
ROWS = {
    "published widths": ({"hidden_size": 1408, "intermediate_size": 6144, "num_attention_heads": 16, "image_size": 56},
                         {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 3}, 32),
    "odd": ({"hidden_size": 40, "num_attention_heads": 5, "image_size": 45},
            {"hidden_size": 36, "num_attention_heads": 3, "cross_attention_frequency": 3, "hidden_act": "relu"}, 5),
}  # fmt: skip
TABLES = ("embed", "query_tokens")
_made: dict = {}


def build(cls: str, name: str, **values):
    vision, qformer, queries = ROWS[name]
    vision = {"hidden_size": 40, "intermediate_size": 64, "num_hidden_layers": 2, "patch_size": 14} | vision
    qformer = {"vocab_size": 300, "num_hidden_layers": 4, "intermediate_size": 50, "max_position_embeddings": 40,
               "encoder_hidden_size": vision["hidden_size"], "use_qformer_text_input": cls != VISION} | qformer  # fmt: skip
    text = {"model_type": "opt", "vocab_size": 50, "hidden_size": 16, "ffn_dim": 16, "num_hidden_layers": 1,
            "num_attention_heads": 1, "word_embed_proj_dim": 16}  # fmt: skip
    torch.manual_seed(0)
    config = transformers.Blip2Config(vision_config=vision, qformer_config=qformer, text_config=text,
                                      num_query_tokens=queries, image_text_hidden_size=24)  # fmt: skip
    config.image_token_index = values.get("image_token_index")
    model = getattr(transformers, cls)(config).eval()
    unit_gain(model, gain=1.6, tables=0.6, bias=0.1, table_names=TABLES)
    size = vision["image_size"]
    ids = torch.randint(1, 290, (3, 8))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return model, torch.randn(3, 3, size, size), ids, mask


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    def make(cls, name="odd"):
        if (cls, name) not in _made:
            model, *inputs = build(cls, name)
            folder = tmp_path_factory.mktemp("blip2")
            model.save_pretrained(folder)
            _made[cls, name] = model, folder, *inputs
        return _made[cls, name]

    return make


@pytest.mark.parametrize("name", ROWS)
def test_retrieval(isa, made, name):
    """Matching scores are the mean over the queries, contrastive ones the largest."""
    model, folder, pixels, ids, mask = made(RETRIEVAL, name)
    ours = bvl.AutoModel.from_pretrained(folder, strict=True)
    for head in (True, False):
        inputs = {
            "pixel_values": pixels,
            "input_ids": ids,
            "attention_mask": mask,
            "use_image_text_matching_head": head,
        }
        with torch.no_grad():
            expected = model(**inputs)
        found = ours(**inputs)
        close(found.logits_per_image, expected.logits_per_image)
        close(found.logits_per_text, expected.logits_per_text)
        close(found.image_embeds, expected.image_embeds)
        assert np.ptp(found.logits_per_image.numpy(), axis=0).min() > 1e-3, "all pictures look alike"
    close(found.text_embeds, expected.text_embeds)
    queries = ROWS[name][2]
    hidden = ours(pixels, ids, mask, use_image_text_matching_head=True).text_embeds
    with torch.no_grad():
        expected = model(pixels, ids, attention_mask=mask, use_image_text_matching_head=True).text_embeds
    keep = np.concatenate([np.ones((3, queries), bool), mask.numpy().astype(bool)], 1)
    close(hidden, expected, keep)


@pytest.mark.parametrize("name", ROWS)
def test_towers_alone(isa, made, name):
    model, folder, pixels, _, _ = made(VISION, name)
    with torch.no_grad():
        expected = model(pixels)
    found = bvl.AutoModel.from_pretrained(folder)(pixels)
    close(found.image_embeds, expected.image_embeds)
    close(found.last_hidden_state, expected.last_hidden_state)
    model, folder, _, ids, mask = made(TEXT, name)
    with torch.no_grad():
        expected = model(ids, mask)
    found = bvl.AutoModel.from_pretrained(folder)(ids, mask)
    keep = mask.numpy().astype(bool)
    close(found.text_embeds, expected.text_embeds, keep)
    close(found.last_hidden_state, expected.last_hidden_state, keep)


def test_image_token_index(tmp_path):
    """Texts then begin with a placeholder for each query, and the mask covers them."""
    model, pixels, ids, mask = build(RETRIEVAL, "odd", image_token_index=299)
    model.save_pretrained(tmp_path)
    ours = bvl.AutoModel.from_pretrained(tmp_path)
    ids = torch.cat([torch.full((3, 5), 299), ids], 1)
    mask = torch.cat([torch.ones(3, 5, dtype=torch.long), mask], 1)
    for head in (True, False):
        with torch.no_grad():
            expected = model(pixels, ids, attention_mask=mask, use_image_text_matching_head=head)
        close(ours(pixels, ids, mask, head).logits_per_image, expected.logits_per_image)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_rows_masks_and_threads(isa, made, dtype):
    """An item alone is bitwise the item in a batch, and what a mask hides changes nothing, bitwise."""
    _, folder, pixels, ids, mask = (x.numpy() if isinstance(x, torch.Tensor) else x for x in made(RETRIEVAL))
    first = None
    for threads in (1, 2, 3):
        ours = bvl.AutoModel.from_pretrained(folder, dtype=dtype, num_threads=threads)
        found = [ours(pixels, ids, mask, head).logits_per_image for head in (True, False)]
        alone = [ours(pixels[i : i + 1], ids[i : i + 1], mask[i : i + 1], True).logits_per_image for i in range(3)]
        assert np.array_equal(found[0], np.concatenate(alone))
        assert first is None or all(map(np.array_equal, found, first))
        first = found
    other = np.where(mask == 0, 7, ids)
    assert (other != ids).any()
    assert np.array_equal(ours(pixels, other, mask, True).logits_per_image, found[0])
    assert not np.array_equal(ours(pixels, ids, np.ones_like(mask), True).logits_per_image, found[0])


@pytest.mark.parametrize("part", ["query_tokens", "crossattention.output.dense"])
def test_the_suite_would_notice(made, tmp_path, part):
    model, _, pixels, ids, mask = made(RETRIEVAL)
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    for name in (k for k in weights if part in k):
        weights[name].zero_()
    model.save_pretrained(tmp_path, state_dict=weights)
    found = bvl.AutoModel.from_pretrained(tmp_path)(pixels, ids, mask, True).logits_per_image
    with torch.no_grad():
        whole = model(pixels, ids, attention_mask=mask, use_image_text_matching_head=True).logits_per_image
    assert (found - whole).abs().max() > 1e-2


def test_precisions(made):
    _, folder, pixels, ids, mask = made(RETRIEVAL, "published widths")
    exact = bvl.AutoModel.from_pretrained(folder)(pixels, ids, mask)
    for dtype, bound in (("bfloat16", 0.998), ("int8", 0.98)):
        found = bvl.AutoModel.from_pretrained(folder, dtype=dtype)(pixels, ids, mask)
        assert (found.image_embeds * exact.image_embeds).sum(-1).min() > bound
        assert (found.text_embeds * exact.text_embeds).sum(-1).min() > bound


def test_encoded_pictures_are_run_once(made, monkeypatch):
    _, folder, pixels, ids, mask = made(RETRIEVAL)
    ours = bvl.AutoModel.from_pretrained(folder)
    encoded = ours.encode_image(pixel_values=pixels)
    assert encoded.embeds.shape == (3, 5, 24) and encoded[1:].embeds.shape == (2, 5, 24)
    monkeypatch.setattr(ours, "texts", lambda *_: {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
    monkeypatch.setattr(ours.tower("vision"), "run", None)
    logits = bvl.AutoModel.from_pretrained(folder)(pixels, ids, mask, True).logits_per_image
    np.testing.assert_allclose(ours.match(encoded, ["a", "b", "c"]), logits.softmax(1)[:, 1].numpy(), rtol=1e-5)


def test_queries_are_not_one_embedding(made):
    """`encode` of a picture would have to choose among the queries: it says what to use instead."""
    _, folder, pixels, _, mask = made(RETRIEVAL)
    ours = bvl.AutoModel.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"encode_image\(...\).embeds"):
        ours._embed("vision", {"pixel_values": pixels.numpy()})
    features = ours.get_image_features(pixels)
    assert torch.equal(features, torch.from_numpy(ours.encode_image(pixel_values=pixels).embeds))
    contexts = list(ours.encode_image(pixel_values=pixels).contexts)
    program = ours.tower("text").program
    with pytest.raises(ValueError, match="input_ids: not given"):
        program.run({"contexts": contexts, "attention_mask": mask.numpy()}, ["hidden"], 1)
    with pytest.raises(ValueError, match="cache: 3 items of 4 tokens over 0 layers"):
        bvl._C.Cache(program, 3, 4)


def lying_programs():
    """Programs that no family builds, as a lying packed.json could: (records, call, message)."""
    block = {"num_attention_heads": 1, "activation": 0, "layer_norm_eps": 1e-5, "causal": 1, "pre_norm": 1}
    ones = {n: np.ones(s, np.float32) for n, s in {
        "qkv_weight": (24, 8), "out_weight": (8, 8), "norm1_weight": 8, "norm1_bias": 8, "fc1_weight": (8, 8),
        "fc2_weight": (8, 8), "norm2_weight": 8, "norm2_bias": 8}.items()}  # fmt: skip
    embed = ("embed_tokens", "text", "text", {"feature_token": -1},
             {"word": np.ones((9, 8), np.float32), "position": np.ones((9, 8), np.float32)})  # fmt: skip
    wide = ("transformer_block", "wide", "wide", block, ones)
    last = ("pool", "wide", "out", {"kind": bvl._C.POOLS.index("last"), "token": 0}, {})
    yield [embed, wide, last], "over 0 layers"
    plain = ("transformer_block", "text", "text", block | {"causal": 0}, ones)
    causal = ("transformer_block", "text", "text", block, ones)
    yield [embed, plain, causal, ("pool", "text", "out", last[3], {})], "do not all use one"


@pytest.mark.parametrize("case", range(2))
def test_caches_of_programs_that_do_not_fit(case):
    records, message = list(lying_programs())[case]
    program = bvl._C.Program()
    slots = {
        "text": program.slot("text", 0, 8, True),
        "wide": program.slot("wide", 4096, 8),
        "out": program.slot("out", 1, 8),
    }
    for op, src, dst, params, weights in records:
        program.add(op, slots[src], slots[dst], params, weights, 1)
    with pytest.raises(ValueError, match=message):
        cache = bvl._C.Cache(program, 1, 8)
        program.run({"input_ids": np.ones((1, 2), np.int64), "cache": cache}, ["out"], 1)


def test_bad_configs(made, tmp_path):
    """A Q-Former for another width, and a wrong number of heads, which would load without an error."""
    config = json.loads((made(RETRIEVAL)[1] / "config.json").read_text())
    for section, change, message in (
        ("qformer_config", {"encoder_hidden_size": 41}, "encoder_hidden_size: found 41, expected vision's 40"),
        ("qformer_config", {"num_attention_heads": None}, None),
        ("qformer_config", {"num_attention_heads": 5}, "hidden_size 36 is not a multiple of 5 heads"),
        ("vision_config", {"patch_size": 99}, "patch_size 99 is larger"),
    ):
        changed = config | {section: config[section] | change}
        if message is None:
            del changed[section]["num_attention_heads"]
            message = "num_attention_heads is missing"
        (tmp_path / "config.json").write_text(json.dumps(changed))
        with pytest.raises(bvl.ConfigError, match=message):
            bvl.AutoModel.from_pretrained(tmp_path)


# ---- with a language model

LM = "Blip2ForConditionalGeneration"
TOKENS, IMAGE = 30, 180
OPT = {"model_type": "opt", "vocab_size": 190, "hidden_size": 48, "ffn_dim": 96, "num_hidden_layers": 2,
       "num_attention_heads": 4, "word_embed_proj_dim": 48, "max_position_embeddings": 64, "bos_token_id": 2,
       "eos_token_id": 50, "pad_token_id": 1}  # fmt: skip


def with_opt(seed: int, **changes):
    """A model whose language model is a small OPT, with weights of unit gain; pixel_values of three pictures."""
    vision, qformer, queries = ROWS["odd"]
    vision = {"intermediate_size": 64, "num_hidden_layers": 2, "patch_size": 14} | vision
    qformer = {"num_hidden_layers": 3, "intermediate_size": 50, "encoder_hidden_size": 40} | qformer
    torch.manual_seed(seed)
    config = transformers.Blip2Config(vision_config=vision, qformer_config=qformer, text_config=OPT | changes,
                                      num_query_tokens=queries, image_token_index=IMAGE)  # fmt: skip
    model = transformers.Blip2ForConditionalGeneration(config).eval()
    unit_gain(model, gain=1.4, tables=0.4, bias=0.05, table_names=TABLES)
    return model, torch.randn(3, 3, vision["image_size"], vision["image_size"])


def prompts():
    """Placeholders, then [bos] and words; the second prompt is padded on the left, as transformers asks for."""
    words = torch.randint(3, 170, (3, 6), generator=torch.Generator().manual_seed(1))
    words[:, 0] = 2
    ids = torch.cat([torch.full((3, 5), IMAGE), words], 1)
    mask = torch.ones_like(ids)
    ids[1] = torch.cat([torch.full((2,), 1), ids[1, :-2]])
    mask[1, :2] = 0
    return ids, mask


@pytest.fixture(scope="module")
def captioner(tmp_path_factory):
    """(model, folder, pixel_values, greedy ids) of the first seed that tells three pictures apart by clear margins."""
    for seed in range(30):
        model, pixels = with_opt(seed)
        with torch.no_grad():
            found = model.generate(pixels, max_new_tokens=TOKENS, return_dict_in_generate=True, output_logits=True)
        clear = min(float(torch.topk(step, 2).values.diff().abs().min()) for step in found.logits) > 1e-3
        if clear and len({tuple(row) for row in found.sequences.tolist()}) == 3:
            folder = tmp_path_factory.mktemp("blip2lm")
            model.save_pretrained(folder)
            return model, folder, pixels, found.sequences.numpy()
    raise AssertionError("no seed tells three pictures apart")


def test_language_model(isa, captioner):
    model, folder, pixels, expected = captioner
    ours = bvl.AutoModel.from_pretrained(folder, strict=True)
    assert type(ours) is bvl.Blip2ForConditionalGeneration
    ids, mask = prompts()
    with torch.no_grad():
        reference = model(pixels, ids, attention_mask=mask)
    found = ours(pixels, ids, mask)
    keep = mask.numpy().astype(bool)
    close(found.vision_outputs.last_hidden_state, reference.vision_outputs.last_hidden_state)
    close(found.qformer_outputs.last_hidden_state, reference.qformer_outputs.last_hidden_state)
    close(found.logits, reference.logits, keep)
    assert np.array_equal(ours.generate(pixels, max_new_tokens=TOKENS).numpy(), expected)


@pytest.mark.parametrize("search", [{}, {"num_beams": 3}, {"repetition_penalty": 1.2}])
def test_language_model_with_prompts(captioner, search):
    model, folder, pixels, _ = captioner
    ours = bvl.AutoModel.from_pretrained(folder)
    ids, mask = prompts()
    with torch.no_grad():
        expected = model.generate(pixels, ids, mask, max_new_tokens=TOKENS, **search)
    found = ours.generate(pixels, ids, mask, max_new_tokens=TOKENS, **search)
    assert np.array_equal(found.numpy(), expected.numpy())
    alone = ours.generate(pixels[1:2], ids[1:2, 2:], mask[1:2, 2:], max_new_tokens=TOKENS, **search)
    assert np.array_equal(found[1, 11:].numpy()[: alone.shape[1] - 9], alone[0, 9:].numpy()), "padding counts"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_language_model_cache_equals_recomputing(isa, captioner, dtype):
    _, folder, pixels, ids = captioner
    ours = bvl.AutoModel.from_pretrained(folder, dtype=dtype)
    encoded, program = ours.encode_image(pixel_values=pixels), ours.tower("decoder").program
    ids = np.ascontiguousarray(ids[:, :14])
    whole = program.run({"input_ids": ids, "features": encoded.features}, ["logits"], 2)["logits"]
    cache = bvl._C.Cache(program, 3, 14)
    parts, features = [], {"features": encoded.features}
    for part in np.split(ids, [7, 8, 9], axis=1):
        inputs = {"input_ids": np.ascontiguousarray(part), "cache": cache, **features}
        parts.append(program.run(inputs, ["logits"], 2)["logits"])
        features = {}
    assert np.array_equal(np.concatenate(parts, 1), whole)


def test_language_model_bad_input(captioner, tmp_path):
    _, folder, pixels, expected = captioner
    ours = bvl.AutoModel.from_pretrained(folder)
    ids, _ = prompts()
    with pytest.raises(ValueError, match=r"row 0 has 4 placeholders \(id 180\), expected 5"):
        ours.generate(pixels, ids[:, 1:], max_new_tokens=3)
    with pytest.raises(ValueError, match="found 71 in all, expected at most 64"):
        ours.generate(pixels, ids, max_new_tokens=60)
    with pytest.raises(ValueError, match=r"features: found shape \(3, 5, 47\)"):
        program = ours.tower("decoder").program
        program.run({"input_ids": ids.numpy(), "features": np.ones((3, 5, 47), np.float32)}, ["logits"], 1)
    assert np.array_equal(ours.generate(pixels, max_new_tokens=TOKENS).numpy(), expected)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["model_type"] = "gpt2"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(bvl.ConfigError, match="model_type: found 'gpt2', expected one of opt"):
        bvl.AutoModel.from_pretrained(tmp_path)


def test_language_model_asks_again_without_the_picture(captioner, monkeypatch):
    _, folder, pixels, expected = captioner
    ours = bvl.AutoModel.from_pretrained(folder)
    encoded = ours.encode_image(pixel_values=pixels)
    for name in ("vision", "queries"):
        monkeypatch.setattr(ours.tower(name), "run", None)
    assert np.array_equal(ours.generate(images=encoded, max_new_tokens=TOKENS), expected)
    assert np.array_equal(ours.generate(images=encoded[1], max_new_tokens=TOKENS)[0], expected[1][: 6 + TOKENS])
