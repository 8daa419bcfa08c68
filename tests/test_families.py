"""Every family against transformers: embeddings, logits and hidden states at every instruction set."""

from __future__ import annotations

import json

import numpy as np
import pytest

import beyondvl as bvl
import families
from beyondvl import _C

torch = pytest.importorskip("torch", reason="parity needs torch and transformers: pip install 'beyondvl[test]'")
pytest.importorskip("transformers", reason="parity needs transformers: pip install 'beyondvl[test]'")

ROWS = {row.name: row for row in families.ROWS}
_made: dict = {}


def reference_outputs(row, model, inputs):
    with torch.no_grad():
        out = model(**inputs)
    names = ("text_embeds", "image_embeds", "logits_per_image", "logits_per_text", "last_hidden_state", "pooler_output")
    return {name: out[name].numpy() for name in names if name in out and out[name] is not None}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, inputs, reference outputs) of a row; the weights are rescaled until inputs are told apart."""

    def make(row):
        if row.name in _made:
            return _made[row.name]
        model = families.build(row)
        for seed in range(8):  # five pictures may happen to be alike to a tiny model: other ones then
            inputs = families.inputs(row, model, seed=seed)
            try:
                reference = families.tell_apart(model, lambda inputs=inputs: reference_outputs(row, model, inputs))
                break
            except AssertionError:
                if seed == 7:
                    raise
        folder = tmp_path_factory.mktemp("model")
        model.save_pretrained(folder)
        _made[row.name] = folder, inputs, reference
        return _made[row.name]

    return make


def compare(found, expected, name):
    assert found.shape == expected.shape
    if name.endswith("_embeds"):
        a, b = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (found, expected))
        assert (a * b).sum(-1).min() >= 0.99999
        np.testing.assert_allclose(a, b, atol=2e-5)
    else:
        scale = max(1.0, np.abs(expected).max())
        np.testing.assert_allclose(found / scale, expected / scale, atol=1e-4)


def check(row, made):
    folder, inputs, expected = made(row)
    model = bvl.AutoModel.from_pretrained(folder)
    assert type(model).__name__ == row.cls
    out = model(**inputs)
    for name, value in expected.items():
        assert isinstance(out[name], torch.Tensor)
        found = out[name].numpy()
        if name == "last_hidden_state" and "attention_mask" in inputs:  # padding rows mean nothing
            keep = inputs["attention_mask"].numpy().astype(bool)
            found, value = found[keep], value[keep]
        compare(found, value, name)
    return model, inputs, out


@pytest.mark.parametrize("name", [r.name for r in families.ROWS if not r.full])
def test_family(isa, made, name):
    check(ROWS[name], made)


@pytest.mark.parametrize("name", [r.name for r in families.ROWS if r.full])
def test_family_at_full_depth(made, name):
    check(ROWS[name], made)


@pytest.mark.parametrize("name", ["clip gelu, head size 80", "siglip odd", "siglip2 odd", "chinese_clip odd",
                                  "bert head size 16", "clip vision tower", "clip bare text tower", "dinov2 gated",
                                  "dinov2 with registers", "dinov3_vit", "metaclip_2", "embedding_gemma2_text",
                                  "gemma3_text, both ways", "xlm-roberta", "modernbert"])  # fmt: skip
def test_hidden_states(isa, made, name):
    """Of every layer, in a call that gives the same bits as without them; workers alone and as a team."""
    row = ROWS[name]
    folder, inputs, _ = made(row)
    model = bvl.AutoModel.from_pretrained(folder, num_threads=2)
    reference = getattr(__import__("transformers"), row.cls).from_pretrained(folder).eval()
    with torch.no_grad():
        expected = reference(**inputs, output_hidden_states=True)
    plain, out = model(**inputs), model(**inputs, output_hidden_states=True)
    sides = [name for name in plain if name.endswith("_model_output")]
    for side in sides or [None]:
        found, wanted, same = ((each[side] if side else each) for each in (out, expected, plain))
        assert len(found.hidden_states) == len(wanted.hidden_states) > 1 and "hidden_states" not in same
        for name, value in same.items():
            assert not isinstance(value, torch.Tensor) or torch.equal(value, found[name])
        mask = inputs.get("pixel_attention_mask" if side == "vision_model_output" else "attention_mask")
        keep = ... if mask is None else mask.bool()
        for layer, (a, b) in enumerate(zip(found.hidden_states, wanted.hidden_states, strict=True)):
            compare(a[keep].numpy(), b[keep].detach().numpy(), f"layer {layer}")
        states = [state for state in found.hidden_states if state.shape == found.hidden_states[0].shape]
        states = torch.stack(states)
        assert float((states[1:] - states[:-1]).abs().flatten(1).amax(1).min()) > 1e-3


def test_hidden_states_that_are_not_there():
    default = bvl.AutoModel.from_pretrained("beyond-vl-model")
    inputs = default.processor(text=["a cat"], images=np.zeros((9, 9, 3), np.uint8), return_tensors="np")
    with pytest.raises(ValueError, match="output_hidden_states: found True, and layers of the vision tower differ"):
        default(pixel_values=inputs["pixel_values"], output_hidden_states=True)
    with pytest.raises(ValueError, match="output_hidden_states: found 3, expected True or False"):
        default(input_ids=inputs["input_ids"], output_hidden_states=3)
    states = default(input_ids=inputs["input_ids"], output_hidden_states=True)["text_model_output"]["hidden_states"]
    assert len(states) == 7 and {state.shape for state in states} == {(1, inputs["input_ids"].shape[1], 384)}


@pytest.mark.parametrize("name", ["clip gelu, head size 80", "siglip odd", "chinese_clip odd", "bert head size 16"])
def test_openblas(made, name, monkeypatch):
    """Whole models on OpenBLAS."""
    monkeypatch.setenv("BEYONDVL_GEMM", "openblas")
    check(ROWS[name], made)
    assert _C.config()["openblas"]


@pytest.mark.parametrize("name", ["clip legacy end of text", "siglip odd", "chinese_clip odd"])
def test_features_are_the_projected_embeddings(made, name):
    folder, inputs, _ = made(ROWS[name])
    model = bvl.AutoModel.from_pretrained(folder)
    reference = getattr(__import__("transformers"), ROWS[name].cls).from_pretrained(folder).eval()
    pixels = {"pixel_values": inputs["pixel_values"]}
    text = {k: v for k, v in inputs.items() if k != "pixel_values"}
    with torch.no_grad():
        expected = (
            reference.get_image_features(**pixels).pooler_output,
            reference.get_text_features(**text).pooler_output,
        )
    found = model.get_image_features(inputs["pixel_values"].numpy()), model.get_text_features(**text)
    compare(found[0].pooler_output, expected[0].numpy(), "features")
    compare(found[1].numpy(), expected[1].numpy(), "features")
    assert isinstance(found[1], torch.Tensor)


def to_open_clip(folder, target, quick_gelu):
    """The weights of an HF CLIP folder under OpenCLIP's names and layouts."""
    from safetensors.numpy import load_file, save_file

    source = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    out = {"logit_scale": source["logit_scale"], "visual.proj": source["visual_projection.weight"].T,
           "text_projection": source["text_projection.weight"].T}  # fmt: skip
    names = {
        "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
        "vision_model.embeddings.class_embedding": "visual.class_embedding",
        "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
    }
    norms = {"vision_model.pre_layrnorm": "visual.ln_pre", "vision_model.post_layernorm": "visual.ln_post",
             "text_model.final_layer_norm": "ln_final"}  # fmt: skip
    inner = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
             "self_attn.out_proj": "attn.out_proj"}  # fmt: skip
    out |= {new: source[old] for old, new in names.items()}
    for kind in ("weight", "bias"):
        out |= {f"{new}.{kind}": source[f"{old}.{kind}"] for old, new in norms.items()}
        for tower, prefix in (("vision", "visual."), ("text", "")):
            for i in range(config[f"{tower}_config"]["num_hidden_layers"]):
                old, new = f"{tower}_model.encoder.layers.{i}", f"{prefix}transformer.resblocks.{i}"
                out |= {f"{new}.{b}.{kind}": source[f"{old}.{a}.{kind}"] for a, b in inner.items()}
                parts = [source[f"{old}.self_attn.{p}_proj.{kind}"] for p in "qkv"]
                out[f"{new}.attn.in_proj_{kind}"] = np.concatenate(parts)
    save_file({k: np.ascontiguousarray(v) for k, v in out.items()}, target / "open_clip_model.safetensors")
    text, vision = config["text_config"], config["vision_config"]
    cfg = {
        "embed_dim": config["projection_dim"], "quick_gelu": quick_gelu,
        "vision_cfg": {"image_size": vision["image_size"], "layers": vision["num_hidden_layers"],
                       "width": vision["hidden_size"], "patch_size": vision["patch_size"],
                       "head_width": vision["hidden_size"] // vision["num_attention_heads"],
                       "mlp_ratio": vision["intermediate_size"] / vision["hidden_size"]},
        "text_cfg": {"context_length": text["max_position_embeddings"], "vocab_size": text["vocab_size"],
                     "width": text["hidden_size"], "heads": text["num_attention_heads"],
                     "layers": text["num_hidden_layers"], "mlp_ratio": text["intermediate_size"] / text["hidden_size"]},
    }  # fmt: skip
    (target / "open_clip_config.json").write_text(json.dumps({"model_cfg": cfg, "preprocess_cfg": {}}))


@pytest.mark.parametrize("name,quick", [("clip ViT-B/32", True), ("clip gelu, head size 80", False)])
def test_open_clip_format(isa, made, tmp_path, name, quick):
    folder, inputs, expected = made(ROWS[name])
    to_open_clip(folder, tmp_path, quick)
    model = bvl.AutoModel.from_pretrained(tmp_path, strict=True)
    out = model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"])
    for key in ("text_embeds", "image_embeds", "logits_per_image"):
        compare(out[key].numpy(), expected[key], key)


def test_wrong_activation_is_seen(made, tmp_path):
    """quick_gelu for gelu loads without an error: only numbers tell, so this suite must notice."""
    folder, inputs, expected = made(ROWS["clip gelu, head size 80"])
    to_open_clip(folder, tmp_path, True)
    out = bvl.AutoModel.from_pretrained(tmp_path)(pixel_values=inputs["pixel_values"])
    assert np.abs(out.image_embeds.numpy() - expected["image_embeds"]).max() > 1e-3
