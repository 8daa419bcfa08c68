"""Checkpoints by the key lists of the versions that published them, buffers, twins and prefixes included.

Each file in published_keys/ is what a version of transformers (or open_clip) lists for a small model: its config.json,
then a line for every key: name, dtype, shape. Weights of those names must load with none missing and none left over,
and give what today's transformers makes of the same file.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from parity import close

import beyondvl as bvl
from families import patchified

torch = pytest.importorskip("torch", reason="parity needs torch and transformers: pip install 'beyondvl[test]'")
transformers = pytest.importorskip("transformers", reason="parity needs transformers: pip install 'beyondvl[test]'")

LISTS = {path.stem: path for path in sorted((Path(__file__).parent / "published_keys").glob("*.txt"))}
# configs of those versions lack a field that their repositories were given later
GIVEN_LATER = {
    "Blip2ForConditionalGeneration-4.27.4": {"image_token_index": 59},
    "Blip2ForConditionalGeneration-4.30.2": {"image_token_index": 59},
    "InstructBlipForConditionalGeneration-4.37.2": {"image_token_index": 59},
}


def tensor(name, dtype, shape, generator):
    """A value that a parameter or a buffer of that name may have."""
    if dtype == "int64":
        return torch.arange(int(np.prod(shape))).reshape(shape)
    noise = torch.randn(shape, generator=generator)
    if "running_var" in name:
        return noise.abs() + 0.5
    if len(shape) < 2:
        return 0.1 * noise + ("norm" in name.lower() and name.endswith("weight"))
    return noise / shape[-1] ** 0.5


def read(name):
    """The config, and a tensor for every key; those that share one memory in the model share it here."""
    config, *lines = LISTS[name].read_text().splitlines()
    generator, found = torch.Generator().manual_seed(0), {}
    for line in lines:
        key, dtype, *shape = line.split()
        found[key] = tensor(key, dtype, [int(n) for n in shape[0].split("x")] if shape else [], generator)
    return json.loads(config), found


def shared(tensors, reference):
    """Twins as the model ties them, and its own tables of indices."""
    state = reference.state_dict()
    first = {}
    for key in tensors:
        if key in state and tensors[key].dtype == torch.int64:
            tensors[key] = state[key]
        elif key in state:
            tensors[key] = tensors[first.setdefault(state[key].data_ptr(), key)]
    return tensors


def write(folder, name):
    config, tensors = read(name)
    config |= GIVEN_LATER.get(name, {})
    if "model_cfg" in config:
        (folder / "open_clip_config.json").write_text(json.dumps(config))
        torch.save(tensors, folder / "open_clip_pytorch_model.bin")
        return None
    (folder / "config.json").write_text(json.dumps(config))
    cls = getattr(transformers, config["architectures"][0])
    blank = cls(transformers.AutoConfig.from_pretrained(folder))
    torch.save(shared(tensors, blank), folder / "pytorch_model.bin")
    return cls.from_pretrained(folder).eval()


def inputs(config):
    """For any of the families; each takes those its class knows."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 57, (2, 7), generator=generator)
    pixels = torch.randn(2, 3, 32, 32, generator=generator)
    kind = config["model_type"]
    if kind == "whisper":
        return {"input_features": torch.randn(2, 8, 40, generator=generator), "decoder_input_ids": ids}
    if kind == "audio-spectrogram-transformer":
        return {"input_values": torch.randn(2, 48, 32, generator=generator)}
    if kind == "clap":
        sound = torch.randn(2, 1, 100, 16, generator=generator)
        return {"input_ids": ids, "input_features": sound, "is_longer": torch.zeros(2, 1, dtype=torch.bool)}
    if kind == "xclip":
        return {"input_ids": ids, "pixel_values": torch.randn(2, 4, 3, 32, 32, generator=generator)}
    if kind == "bert":
        return {"input_ids": ids}
    if kind == "clip_vision_model":
        return {"pixel_values": pixels}
    if kind in ("blip-2", "instructblip", "instructblipvideo") and "Retrieval" not in config["architectures"][0]:
        frames = 4 if kind == "instructblipvideo" else 1
        ids = torch.cat([torch.full((2, 4 * frames), 59), ids], 1)
        pixels = torch.randn(2, 4, 3, 32, 32, generator=generator) if frames > 1 else pixels
        t5 = config["text_config"]["model_type"] == "t5"
        more = {"decoder_input_ids": ids[:, -3:]} if t5 else {}
        asked = {"qformer_input_ids": ids[:, -5:]} if kind.startswith("instruct") else {}
        return {"input_ids": ids, "pixel_values": pixels, "attention_mask": torch.ones_like(ids)} | more | asked
    if config["architectures"][0] == "BlipForQuestionAnswering":
        return {"input_ids": ids, "pixel_values": pixels, "decoder_input_ids": ids[:, :4]}
    if config["architectures"][0] == "FlavaForPreTraining":
        return {"input_ids": ids, "pixel_values": pixels, "return_loss": False}
    if kind == "clip":
        ids[:, 5] = 59  # the end of text
    return {"input_ids": ids, "pixel_values": pixels}


MAIN = ("logits", "logits_per_image", "itm_score", "itm_logits", "logits_per_audio", "logits_per_video",
        "multimodal_embeddings", "image_embeds", "last_hidden_state", "mmm_text_logits", "contrastive_logits_per_image")  # fmt: skip


@pytest.mark.parametrize("name", [name for name in LISTS if "open_clip" not in name])
def test_loads_and_agrees(tmp_path, name):
    reference = write(tmp_path, name)
    ours = bvl.AutoModel.from_pretrained(tmp_path, strict=True)
    config = json.loads((tmp_path / "config.json").read_text())
    assert type(ours).__name__ == config["architectures"][0]
    given = inputs(config)
    if "Siglip2" in name:
        given |= patchified(given["pixel_values"])
    with torch.no_grad():
        expected = reference(**given)
    found = ours(**given)
    names = [n for n in MAIN if n in found and expected.get(n) is not None]
    assert names
    for output in names:
        close(found[output], expected[output])
        assert np.ptp(found[output].numpy()) > 1e-2, f"{output}: all alike"


@pytest.mark.parametrize("name", GIVEN_LATER)
def test_configs_without_their_placeholder(tmp_path, name):
    config, tensors = read(name)
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    with pytest.raises(bvl.ConfigError, match="image_token_index is missing, expected the id of the token"):
        bvl.AutoModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", [name for name in LISTS if "open_clip" in name])
def test_open_clip(tmp_path, name):
    """Its towers as CLIP's of transformers, whose keys are those of the same layers under other names."""
    write(tmp_path, name)
    ours = bvl.AutoModel.from_pretrained(tmp_path, strict=True)
    _, weights = read(name)
    sizes = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
             "hidden_act": "gelu"}  # fmt: skip
    text = sizes | {"vocab_size": 60, "max_position_embeddings": 12, "eos_token_id": 2}
    reference = transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=sizes | {"image_size": 32, "patch_size": 16},
                                projection_dim=8)
    ).eval()  # fmt: skip
    weights = {key.removeprefix("text."): value for key, value in weights.items()}
    state = reference.state_dict()
    for key in state:
        if not key.endswith("position_ids"):
            state[key] = open_clip_tensor(key, weights).reshape(state[key].shape)
    reference.load_state_dict(state)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 57, (3, 12), generator=generator)
    ids[:, 8] = 59  # the largest id ends a text
    pixels = torch.randn(3, 3, 32, 32, generator=generator)
    with torch.no_grad():
        expected = reference(input_ids=ids, pixel_values=pixels)
    found = ours(input_ids=ids, pixel_values=pixels)
    for output in ("text_embeds", "image_embeds", "logits_per_image"):
        close(found[output], expected[output])


def open_clip_tensor(key, weights):
    """What transformers' CLIP calls `key`, out of OpenCLIP's weights."""
    plain = {"logit_scale": "logit_scale", "visual_projection.weight": "visual.proj", "text_projection.weight": "text_projection",
             "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
             "text_model.embeddings.position_embedding.weight": "positional_embedding",
             "text_model.final_layer_norm.weight": "ln_final.weight", "text_model.final_layer_norm.bias": "ln_final.bias",
             "vision_model.embeddings.class_embedding": "visual.class_embedding",
             "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
             "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding"}  # fmt: skip
    if key in plain:
        value = weights[plain[key]]
        return value.T if key.endswith("projection.weight") else value
    side, rest = key.split(".", 1)
    for ours, theirs in (("pre_layrnorm", "ln_pre"), ("post_layernorm", "ln_post")):
        if rest.startswith(ours):
            return weights[f"visual.{theirs}.{rest.rsplit('.', 1)[1]}"]
    _, _, layer, *part, kind = rest.split(".")
    prefix = f"{'visual.' if side == 'vision_model' else ''}transformer.resblocks.{layer}"
    part = ".".join(part)
    if part in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
        at = "qkv".index(part[10])
        return weights[f"{prefix}.attn.in_proj_{kind}"].chunk(3)[at]
    names = {"self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc",
             "mlp.fc2": "mlp.c_proj"}  # fmt: skip
    return weights[f"{prefix}.{names[part]}.{kind}"]


def test_the_older_section_counts_alone(tmp_path):
    """What a text_config_dict leaves out is the class's default, whatever text_config says; X-CLIP ends at the largest
    id all the same."""
    for name in ("CLIPModel-4.10.3", "XCLIPModel-4.25.1"):
        folder = tmp_path / name
        folder.mkdir()
        reference = write(folder, name)
        config = json.loads((folder / "config.json").read_text())
        section = config["text_config"]
        sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
                 "max_position_embeddings")  # fmt: skip
        config["text_config_dict"] = {n: section[n] for n in sizes} | {"eos_token_id": 59}
        config["text_config"] = section | {"hidden_act": "relu", "vocab_size": 7}
        (folder / "config.json").write_text(json.dumps(config))
        reference = type(reference).from_pretrained(folder).eval()
        given = inputs(config)
        with torch.no_grad():
            expected = reference(**given).text_embeds
        found = bvl.AutoModel.from_pretrained(folder, strict=True)(**given).text_embeds
        close(found.reshape(expected.shape), expected)


@pytest.mark.parametrize("name,cls", [
    ("CLIPModel-4.10.3", "CLIPTextModel"), ("CLIPModel-4.10.3", "CLIPModel"), ("FlavaModel-4.20.1", "FlavaModel"),
    ("ChineseCLIPModel-4.25.1", "ChineseCLIPModel"),
])  # fmt: skip
def test_which_section_a_class_reads(tmp_path, name, cls):
    """The older one counts for whole models; a lone tower, read out of the same folder, knows its section alone."""
    write(tmp_path, name)
    config = json.loads((tmp_path / "config.json").read_text())
    section = config["text_config"]
    config["text_config_dict"] = {n: section[n] for n in section if n != "hidden_act"} | {"hidden_act": "relu"}
    config["text_config"] = section | {"hidden_act": "gelu"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    reference = getattr(transformers, cls).from_pretrained(tmp_path).eval()
    ours = getattr(bvl, cls).from_pretrained(tmp_path)
    given = inputs(config)
    given = given if len(ours.towers) > 1 else {"input_ids": given["input_ids"]}
    with torch.no_grad():
        expected = reference(**given)
    found, output = ours(**given), next(n for n in (*MAIN, "text_embeddings") if expected.get(n) is not None)
    close(found[output], expected[output])
    both = {}
    for text in ("relu", "gelu"):
        changed = config | {"text_config": section | {"hidden_act": text}, "text_config_dict": None}
        (tmp_path / "config.json").write_text(json.dumps(changed))
        both[text] = getattr(bvl, cls).from_pretrained(tmp_path)(**given)[output]
    assert np.abs(np.asarray(both["relu"] - both["gelu"])).max() > 1e-3, "the section changes nothing"
