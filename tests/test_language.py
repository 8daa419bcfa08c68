"""Language models that read what a Q-Former drew from a picture, against transformers: OPT, T5 and Llama under BLIP-2 and
InstructBLIP."""

from __future__ import annotations

import json

import numpy as np
import pytest
from language import CASES, CLIPS, IMAGE, QUERIES, TEXT, TOKENS, build, instructions, prompts, seeing
from parity import close

import beyondvl as bvl
from beyondvl.families.language import t5_buckets

torch = pytest.importorskip("torch", reason="parity needs torch and transformers: pip install 'beyondvl[test]'")
transformers = pytest.importorskip("transformers", reason="parity needs transformers: pip install 'beyondvl[test]'")

_made: dict = {}
DECODED = torch.tensor([[0, 4, 9, 33, 7], [0, 1, 2, 3, 4], [0, 9, 88, 100, 100]])
by_case = pytest.mark.parametrize("case", CASES, ids=" ".join)
by_any_case = pytest.mark.parametrize("case", CASES + CLIPS, ids=" ".join)


@pytest.fixture(scope="module")
def captioner(tmp_path_factory):
    """(model, folder, pixel_values, greedy ids) of a case."""

    def make(case):
        if case not in _made:
            model, pixels, ids = seeing(*case)
            folder = tmp_path_factory.mktemp("lm")
            model.save_pretrained(folder)
            _made[case] = model, folder, pixels, ids
        return _made[case]

    return make


def decoded(kind):
    return {"decoder_input_ids": DECODED} if kind == "t5" else {}


def kept(kind, inputs):
    """Rows of logits that mean something: all of a decoder's, those that the mask keeps of a prompt's."""
    return np.ones(DECODED.shape, bool) if kind == "t5" else np.asarray(inputs["attention_mask"]).astype(bool)


@by_any_case
def test_forward_and_greedy_search(isa, captioner, case):
    model, folder, pixels, expected = captioner(case)
    ours = bvl.AutoModel.from_pretrained(folder, strict=True)
    assert type(ours).__name__ == f"{case[0]}ForConditionalGeneration"
    inputs = {"pixel_values": pixels, **prompts(case[0]), **decoded(case[1])}
    with torch.no_grad():
        reference = model(**inputs)
    found = ours(**inputs)
    close(found.vision_outputs.last_hidden_state, reference.vision_outputs.last_hidden_state)
    hidden = [r.qformer_outputs.last_hidden_state[:, :QUERIES] for r in (found, reference)]
    close(*hidden)
    keep = kept(case[1], inputs)
    close(found.logits, reference.logits, keep)
    for part in ("vision_outputs", "qformer_outputs"):
        close(found[part].pooler_output, reference[part].pooler_output)
    written = reference.language_model_outputs
    close(found.language_model_outputs.logits, written.logits, keep)
    if case[1] == "t5":
        read = np.asarray(inputs["attention_mask"]).astype(bool)
        close(found.language_model_outputs.encoder_last_hidden_state, written.encoder_last_hidden_state, read)
    ids = ours.generate(pixel_values=pixels, **instructions(case[0]), max_new_tokens=TOKENS)
    assert np.array_equal(ids.numpy(), expected)


@pytest.mark.parametrize("search", [{}, {"num_beams": 3}, {"repetition_penalty": 1.2}], ids=str)
@by_any_case
def test_prompts(captioner, case, search):
    """Batches with padding; and a prompt alone is the prompt in a batch."""
    model, folder, pixels, greedy = captioner(case)
    ours = bvl.AutoModel.from_pretrained(folder)
    inputs = prompts(case[0])
    with torch.no_grad():
        expected = model.generate(pixel_values=pixels, **inputs, max_new_tokens=TOKENS, **search)
    found = ours.generate(pixel_values=pixels, **inputs, max_new_tokens=TOKENS, **search)
    assert np.array_equal(found.numpy(), expected.numpy())
    assert not np.array_equal(found.numpy()[:, -5:], greedy[:, -5:]), "the prompts change nothing"
    one = {name: array[1:2] for name, array in inputs.items()}
    one |= {name: one[name][:, 2:] for name in ("input_ids", "attention_mask")}
    alone = ours.generate(pixel_values=pixels[1:2], **one, max_new_tokens=TOKENS, **search)
    if case[1] == "t5":
        assert np.array_equal(found[1, : alone.shape[1]].numpy(), alone[0].numpy()), "padding counts"
        return
    start = one["input_ids"].shape[1]
    assert np.array_equal(found[1, start + 2 :].numpy()[: alone.shape[1] - start], alone[0, start:].numpy()), (
        "padding counts"
    )


@pytest.mark.parametrize("search", [{}, {"num_beams": 3}, {"num_beams": 2, "early_stopping": True}], ids=str)
@by_case
def test_several_ids_may_end_a_sequence(captioner, tmp_path, case, search):
    """Of the call, or of the config."""
    model, folder, pixels, _ = captioner(case)
    ours = bvl.AutoModel.from_pretrained(folder)
    given = {"pixel_values": pixels, **instructions(case[0]), "max_new_tokens": TOKENS}
    plain = ours.generate(**given, **search).numpy()
    ends = [50, *{[int(t) for t in row[8:] if t not in (1, 50)][2] for row in plain[:2]}]
    with torch.no_grad():
        expected = model.generate(**given, eos_token_id=ends, **search).numpy()
    found = ours.generate(**given, eos_token_id=ends, **search).numpy()
    assert np.array_equal(found, expected)
    assert not np.array_equal(found, plain), "the ends change nothing"
    again = bvl.AutoModel.from_pretrained(changed(folder, tmp_path, eos_token_id=ends))
    assert again.tokens["eos_token_id"] == tuple(ends)
    assert np.array_equal(again.generate(**given, **search).numpy(), expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@by_any_case
def test_cache_equals_recomputing(isa, captioner, case, dtype):
    _, folder, pixels, ids = captioner(case)
    ours = bvl.AutoModel.from_pretrained(folder, dtype=dtype)
    encoded = ours.encode_image(pixel_values=pixels)
    asked = instructions(case[0])
    source, _, _ = ours._prompted(None, None, None, encoded, **asked)
    program = ours.tower("decoder").program
    length = 14 if case in CASES or case[1] == "t5" else 29
    ids = np.ascontiguousarray(ids[:, :length])
    whole = program.run({"input_ids": ids, **source}, ["logits"], 2)["logits"]
    cache = bvl._C.Cache(program, 3, length)
    parts = []
    for part in np.split(ids, [length - 7, length - 6, length - 5], axis=1):
        inputs = {"input_ids": np.ascontiguousarray(part), "cache": cache, **source}
        parts.append(program.run(inputs, ["logits"], 2)["logits"])
        source.pop("features", None)
    assert np.array_equal(np.concatenate(parts, 1), whole)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@by_any_case
def test_items_and_threads(isa, captioner, case, dtype):
    """An item alone is bitwise the item in a batch, at any number of threads; what a mask hides changes nothing."""
    _, folder, pixels, _ = captioner(case)
    inputs = {"pixel_values": pixels, **prompts(case[0]), **decoded(case[1])}
    inputs = {name: array.numpy() for name, array in inputs.items()}
    mask, first = inputs["attention_mask"], None
    keep = kept(case[1], inputs)
    for threads in (1, 2, 3):
        ours = bvl.AutoModel.from_pretrained(folder, dtype=dtype, num_threads=threads)
        found = ours(**inputs).logits
        alone = [ours(**{name: array[i : i + 1] for name, array in inputs.items()}).logits for i in range(3)]
        assert np.array_equal(found, np.concatenate(alone))
        assert first is None or np.array_equal(found, first)
        first = found
    hidden = {"input_ids": np.where(mask == 0, 7, inputs["input_ids"])}
    if "qformer_input_ids" in inputs:
        hidden["qformer_input_ids"] = np.where(inputs["qformer_attention_mask"] == 0, 7, inputs["qformer_input_ids"])
    assert all((array != inputs[name]).any() for name, array in hidden.items())
    assert np.array_equal(ours(**inputs | hidden).logits[keep], first[keep])
    assert not np.array_equal(ours(**inputs | {"attention_mask": np.ones_like(mask)}).logits[1], first[1])


PARTS = {"opt": ["query_tokens"], "t5": ["relative_attention_bias", "EncDecAttention.o", "wi_1"], "llama": ["up_proj"]}


@pytest.mark.parametrize(("kind", "part"), [(kind, part) for kind, parts in PARTS.items() for part in parts])
def test_the_suite_would_notice(captioner, tmp_path, kind, part):
    model, folder, pixels, _ = captioner(("Blip2", kind))
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    for name in (k for k in weights if part in k):
        weights[name].zero_()
    model.save_pretrained(tmp_path, state_dict=weights)
    inputs = {"pixel_values": pixels, **prompts("Blip2"), **decoded(kind)}
    found, whole = (bvl.AutoModel.from_pretrained(f)(**inputs).logits for f in (tmp_path, folder))
    assert (found - whole).abs().max() > 1e-2


def test_the_instruction_matters(captioner):
    """Queries read the instruction: another one draws something else from the same picture."""
    model, folder, pixels, greedy = captioner(("InstructBlip", "llama"))
    ours = bvl.AutoModel.from_pretrained(folder)
    asked = instructions("InstructBlip")
    asked["qformer_input_ids"] = asked["qformer_input_ids"].flip(1)
    with torch.no_grad():
        expected = model.generate(pixel_values=pixels, **asked, max_new_tokens=TOKENS).numpy()
    assert not np.array_equal(expected, greedy)
    assert np.array_equal(ours.generate(pixel_values=pixels, **asked, max_new_tokens=TOKENS).numpy(), expected)


def test_qformer_features(captioner):
    model, folder, pixels, _ = captioner(("Blip2", "opt"))
    ours = bvl.Blip2Model.from_pretrained(folder)
    with torch.no_grad():
        reference = transformers.Blip2Model.from_pretrained(folder).get_qformer_features(pixels)
    close(ours.get_qformer_features(pixels), reference)
    model, folder, pixels, _ = captioner(("InstructBlip", "llama"))
    asked, prompt = instructions("InstructBlip"), prompts("InstructBlip")
    with torch.no_grad():
        reference = model(pixels, **prompt | asked).qformer_outputs.last_hidden_state
    found = bvl.AutoModel.from_pretrained(folder).get_qformer_features(pixels, **asked)
    close(found, reference[:, :QUERIES])


@by_case
def test_asks_again_without_the_picture(captioner, case, monkeypatch):
    """No vision block runs for a second question, and one picture serves several."""
    _, folder, pixels, expected = captioner(case)
    ours = bvl.AutoModel.from_pretrained(folder)
    encoded = ours.encode_image(pixel_values=pixels)
    for name in ("vision", "queries") if case[0] == "Blip2" else ("vision",):
        monkeypatch.setattr(ours.tower(name), "run", None)
    asked = instructions(case[0])
    assert np.array_equal(ours.generate(images=encoded, **asked, max_new_tokens=TOKENS), expected)
    one = {name: array[1:2] for name, array in asked.items()}
    alone = ours.generate(images=encoded[1], **one, max_new_tokens=TOKENS)[0]
    assert np.array_equal(alone, expected[1][: len(alone)])
    inputs = prompts(case[0])
    first = [ours.generate(images=encoded[0], **inputs, max_new_tokens=5)]
    first.append(ours.generate(images=encoded[[0, 0, 0]], **inputs, max_new_tokens=5))
    assert np.array_equal(*first)
    steps = np.stack(list(ours.stream(images=encoded, **asked, max_new_tokens=5)), 1)
    start = 1 if case[1] == "t5" else QUERIES + 1
    assert np.array_equal(steps, expected[:, start : start + 5])


WIDE = {
    "opt": {"hidden_size": 2560, "ffn_dim": 10240, "num_attention_heads": 32, "word_embed_proj_dim": 2560,
            "num_hidden_layers": 1},
    "t5": {"d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_heads": 32, "num_layers": 1, "num_decoder_layers": 1,
           "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128},
    "llama": {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_key_value_heads": 32,
              "num_hidden_layers": 1},
}  # fmt: skip


@pytest.mark.parametrize("kind", WIDE)
def test_published_widths(tmp_path, kind):
    """One layer of OPT-2.7b, Flan-T5-XL, Vicuna-7b; a prompt longer than half of T5's buckets."""
    model, pixels = build("Blip2", kind, **WIDE[kind])
    inputs = {"pixel_values": pixels, **prompts("Blip2"), **decoded(kind)}
    words = torch.randint(3, 170, (3, 40), generator=torch.Generator().manual_seed(4))
    inputs["input_ids"] = torch.cat([inputs["input_ids"], words], 1)
    inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(words)], 1)
    with torch.no_grad():
        reference = model(**inputs).logits
    model.save_pretrained(tmp_path)
    del model
    keep = kept(kind, inputs)
    close(bvl.AutoModel.from_pretrained(tmp_path)(**inputs).logits, reference, keep)


@pytest.mark.parametrize("kind", TEXT)
def test_precisions(captioner, kind):
    _, folder, pixels, _ = captioner(("Blip2", kind))
    inputs = {"pixel_values": pixels, **prompts("Blip2"), **decoded(kind)}
    keep = kept(kind, inputs)
    exact = bvl.AutoModel.from_pretrained(folder)(**inputs).logits.numpy()[keep]
    for dtype, bound in (("bfloat16", 0.995), ("int8", 0.97)):
        found = bvl.AutoModel.from_pretrained(folder, dtype=dtype)(**inputs).logits.numpy()[keep]
        cosines = (found * exact).sum(-1) / np.linalg.norm(found, axis=-1) / np.linalg.norm(exact, axis=-1)
        assert cosines.min() > bound, dtype


VARIANTS = {
    "T5 1.0": ("t5", {"feed_forward_proj": "relu", "dense_act_fn": "relu", "tie_word_embeddings": True}),
    "T5 1.1's gate": ("t5", {"dense_act_fn": "gelu_new"}),
    "OPT after norms": ("opt", {"do_layer_norm_before": False}),
    "Llama with biases, one head of keys": ("llama", {"num_key_value_heads": 1, "attention_bias": True,
                                                      "mlp_bias": True, "head_dim": 10}),
    "Llama, linear scaling": ("llama", {"rope_scaling": {"type": "linear", "factor": 3.0}, "rope_theta": 500.0}),
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(tmp_path, name):
    kind, changes = VARIANTS[name]
    model, pixels = build("Blip2", kind, **changes)
    model.save_pretrained(tmp_path)
    if name == "T5 1.1's gate":  # the activation follows from the kind of feed-forward
        assert model.config.text_config.dense_act_fn == "gelu_new"
        config = json.loads((tmp_path / "config.json").read_text())
        del config["text_config"]["dense_act_fn"]
        (tmp_path / "config.json").write_text(json.dumps(config))
    inputs = {"pixel_values": pixels, **prompts("Blip2"), **decoded(kind)}
    with torch.no_grad():
        reference = model(**inputs).logits
    keep = kept(kind, inputs)
    close(bvl.AutoModel.from_pretrained(tmp_path, strict=True)(**inputs).logits, reference, keep)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("count", "reach"), [(32, 128), (8, 12), (64, 100)])
def test_buckets(count, reach, causal):
    from transformers.models.t5.modeling_t5 import T5Attention

    distances = torch.arange(-reach - 50, reach + 51)
    expected = T5Attention._relative_position_bucket(distances, not causal, count, reach)
    found = np.array(t5_buckets(count, reach, causal))[np.clip(distances.numpy(), -reach, reach) + reach]
    assert np.array_equal(found, expected.numpy())


def test_bad_input(captioner, tmp_path):
    _, folder, pixels, expected = captioner(("Blip2", "opt"))
    ours = bvl.AutoModel.from_pretrained(folder)
    ids = prompts("Blip2")["input_ids"]
    with pytest.raises(ValueError, match=r"row 0 has 4 placeholders \(id 180\), expected 5"):
        ours.generate(pixels, ids[:, 1:], max_new_tokens=3)
    with pytest.raises(ValueError, match="found 71 in all, expected at most 64"):
        ours.generate(pixels, ids, max_new_tokens=60)
    with pytest.raises(ValueError, match=r"features: found shape \(3, 5, 47\)"):
        program = ours.tower("decoder").program
        program.run({"input_ids": ids.numpy(), "features": np.ones((3, 5, 47), np.float32)}, ["logits"], 1)
    assert np.array_equal(ours.generate(pixels, max_new_tokens=TOKENS).numpy(), expected)


def test_bad_input_of_encoder_and_decoder(captioner):
    _, folder, pixels, expected = captioner(("Blip2", "t5"))
    ours = bvl.AutoModel.from_pretrained(folder)
    inputs = prompts("Blip2")
    with pytest.raises(ValueError, match="decoder_input_ids: not given"):
        ours(pixels, **inputs)
    with pytest.raises(ValueError, match=r"row 0 has 4 placeholders \(id 180\), expected 5"):
        ours.generate(pixels, inputs["input_ids"][:, 1:], max_new_tokens=3)
    with pytest.raises(ValueError, match=r"attention_mask: found shape \(3, 10\), expected \(3, 11\)"):
        ours.generate(pixels, inputs["input_ids"], inputs["attention_mask"][:, 1:], max_new_tokens=3)
    assert np.array_equal(ours.generate(pixels, max_new_tokens=TOKENS).numpy(), expected)


def test_bad_input_of_instructions(captioner):
    _, folder, pixels, expected = captioner(("InstructBlip", "llama"))
    ours, asked = bvl.AutoModel.from_pretrained(folder), instructions("InstructBlip")
    ids = asked["qformer_input_ids"]
    with pytest.raises(ValueError, match="qformer_input_ids: not given"):
        ours.generate(pixels, max_new_tokens=3)
    with pytest.raises(ValueError, match="qformer_input_ids: found 42 tokens, expected at most 40"):
        ours.generate(pixels, ids.repeat(1, 6), max_new_tokens=3)
    with pytest.raises(ValueError, match="qformer_input_ids: found 2 instructions, expected 3"):
        ours.generate(pixels, ids[:2], max_new_tokens=3)
    with pytest.raises(ValueError, match="prompt: not given, expected an instruction"):
        ours.caption("a.png")
    assert np.array_equal(ours.generate(pixels, **asked, max_new_tokens=TOKENS).numpy(), expected)


BAD_CONFIGS = [
    ("opt", {"model_type": "gpt2"}, "model_type: found 'gpt2', expected one of opt, t5, llama"),
    ("opt", {"word_embed_proj_dim": 47}, "word_embed_proj_dim: found 47, expected 48"),
    ("t5", {"dense_act_fn": "mish"}, "dense_act_fn: found 'mish', expected one of"),
    ("t5", {"feed_forward_proj": "gated-mish"}, "feed_forward_proj: found 'gated-mish'"),
    ("t5", {"num_heads": None}, "num_heads is missing"),
    ("t5", {"d_kv": 13}, "SelfAttention.q.weight"),
    ("llama", {"num_key_value_heads": 4}, "6 heads of 8 and 4 of keys"),
    ("llama", {"rope_parameters": {"rope_type": "linear"}}, "factor is missing, expected it beside rope_type linear"),
    ("llama", {"rope_parameters": {"rope_type": "yarn"}}, "rope_type: found 'yarn', expected one of default, linear"),
    ("llama", {"num_attention_heads": None}, "num_attention_heads is missing"),
]


@pytest.mark.parametrize(("kind", "change", "message"), BAD_CONFIGS)
def test_bad_configs(captioner, tmp_path, kind, change, message):
    folder = captioner(("Blip2", kind))[1]
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= change
    config["text_config"] = {name: value for name, value in config["text_config"].items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    with pytest.raises((bvl.ConfigError, bvl.CheckpointError), match=message):
        bvl.AutoModel.from_pretrained(tmp_path)


def test_placeholders_are_the_config_s(captioner):
    assert bvl.AutoModel.from_pretrained(captioner(("Blip2", "t5"))[1]).tokens["image_token_id"] == IMAGE


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_clips_are_run_once(captioner, monkeypatch, kind):
    """A clip's frames serve any number of instructions, and clips can be taken out of an encoded batch."""
    case = ("InstructBlipVideo", kind)
    _, folder, pixels, expected = captioner(case)
    ours = bvl.AutoModel.from_pretrained(folder)
    encoded = ours.encode_image(pixel_values=pixels)
    assert len(encoded) == 3 and len(encoded.contexts) == 12 and len(encoded[[2, 0]].contexts) == 8
    monkeypatch.setattr(ours.tower("vision"), "run", None)
    asked = instructions(case[0])
    assert np.array_equal(ours.generate(images=encoded, **asked, max_new_tokens=TOKENS), expected)
    one = {name: array[2:] for name, array in asked.items()}
    alone = ours.generate(images=encoded[2], **one, max_new_tokens=TOKENS)[0]
    assert np.array_equal(alone, expected[2][: len(alone)])
    with pytest.raises(
        ValueError, match=r"pixel_values: found shape \(3, 3, 45, 45\), expected \(B, frames, 3, H, W\)"
    ):
        ours.generate(pixels[:, 0], **asked)
    with pytest.raises(ValueError, match="found 3 and 2, expected as many instructions as pictures or clips"):
        bvl.AutoModel.from_pretrained(folder).get_qformer_features(pixels, asked["qformer_input_ids"][:2])
    with pytest.raises(ValueError, match=r"has 20 placeholders \(id 180\), expected 15"):
        bvl.AutoModel.from_pretrained(folder).generate(pixels[:, :3], **prompts(case[0]))


@by_case
def test_padding_behind_the_placeholders(captioner, case):
    """As a processor that pads on the left makes it: forward counts positions as the language model does, generate by the
    mask."""
    model, folder, pixels, _ = captioner(case)
    ours, inputs = bvl.AutoModel.from_pretrained(folder), prompts(case[0])
    inputs["input_ids"][1] = torch.cat([inputs["input_ids"][1, 2 : QUERIES + 2], torch.tensor([1, 1]),
                                        inputs["input_ids"][1, QUERIES + 2 :]])  # fmt: skip
    inputs["attention_mask"][1] = 1
    inputs["attention_mask"][1, QUERIES : QUERIES + 2] = 0
    with torch.no_grad():
        reference = model(pixels, **inputs, **decoded(case[1]))
        words = model.generate(pixels, **inputs, max_new_tokens=10)
    keep = kept(case[1], inputs)
    close(ours(pixels, **inputs, **decoded(case[1])).logits, reference.logits, keep)
    assert np.array_equal(ours.generate(pixels, **inputs, max_new_tokens=10), words)


def changed(folder, target, **text):
    """The same weights under a config whose text_config differs; None takes a field out."""
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] = {k: v for k, v in (config["text_config"] | text).items() if v is not None}
    (target / "config.json").write_text(json.dumps(config))
    if not (target / "model.safetensors").exists():
        (target / "model.safetensors").symlink_to(folder / "model.safetensors")
    return target


def test_what_generation_begins_and_ends_with(captioner, tmp_path):
    """The ids of text_config alone count, as in transformers: a generation_config.json is about the model around it."""
    _, folder, pixels, expected = captioner(("Blip2", "t5"))
    (tmp_path / "generation_config.json").write_text(json.dumps({"num_beams": 3, "max_new_tokens": 7}))
    ours = bvl.AutoModel.from_pretrained(changed(folder, tmp_path))
    assert np.array_equal(ours.generate(pixels, max_new_tokens=TOKENS), expected)
    assert ours.generate(pixels).shape == (3, 21)
    ours = bvl.AutoModel.from_pretrained(changed(folder, tmp_path, decoder_start_token_id=None))
    assert (ours.generate(pixels, max_new_tokens=3)[:, 0] == 2).all(), "without a start of its own: [bos]"
    with pytest.raises(bvl.ConfigError, match="bos_token_id is missing"):
        changed(folder, tmp_path, decoder_start_token_id=None, bos_token_id=None)
        assert bvl.AutoModel.from_pretrained(tmp_path).tokens
    assert bvl.AutoModel.from_pretrained(changed(folder, tmp_path, eos_token_id=[50])).tokens["eos_token_id"] == 50
    for absent in (-1, "null"):
        config = json.loads((changed(folder, tmp_path) / "config.json").read_text())
        config["text_config"]["pad_token_id"] = None if absent == "null" else absent
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert bvl.AutoModel.from_pretrained(tmp_path).tokens["pad_token_id"] == 50


def test_untied_output_weights_are_required(captioner, tmp_path):
    """Llama's are not the embeddings unless the config says so."""
    from safetensors.torch import load_file, save_file

    _, folder, pixels, _ = captioner(("Blip2", "llama"))
    weights = load_file(folder / "model.safetensors")
    del weights["language_model.lm_head.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(bvl.CheckpointError, match=r"language_model\.lm_head\.weight"):
        bvl.AutoModel.from_pretrained(changed(folder, tmp_path))
    ours = bvl.AutoModel.from_pretrained(changed(folder, tmp_path, tie_word_embeddings=True))
    model = transformers.Blip2ForConditionalGeneration.from_pretrained(tmp_path)
    ids = prompts("Blip2")["input_ids"]
    with torch.no_grad():
        close(ours(pixels, ids).logits, model(pixels, ids).logits)
