"""The C-Former beyond what the families' published configs use: a projection and a type for each of four inputs in one
stream, and a text that attends to the picture from a layer on. References in torch."""

from __future__ import annotations

import json

import blips
import numpy as np
import pytest
from parity import close

import beyondvl as bvl
from beyondvl.config import Config
from beyondvl.families import flava
from beyondvl.families.blocks import linear
from beyondvl.families.registry import Family, Head
from beyondvl.folder import Folder
from beyondvl.models.classes import class_named
from beyondvl.models.load import load_towers
from beyondvl.spec import Encoder, Project, Step, ref, replace
from beyondvl.stems import JoinStem
from beyondvl.tasks.joint import JointModel
from beyondvl.weights import save_safetensors

torch = pytest.importorskip("torch", reason="parity needs torch and transformers: pip install 'beyondvl[test]'")
transformers = pytest.importorskip("transformers", reason="parity needs transformers: pip install 'beyondvl[test]'")

SIZES = {"text": 40, "image": 56, "video": 24, "audio": 33}
LENGTHS = {"text": 5, "image": 9, "video": 12, "audio": 7}
SECTION = {"hidden_size": 48, "num_attention_heads": 3, "intermediate_size": 80, "num_hidden_layers": 2}


def projection(name):
    stem = JoinStem()
    step = Step("features", "hidden", Project(linear(f"{name}_projection", SECTION["hidden_size"], SIZES[name])))
    return lambda config: Encoder(hidden_size=SIZES[name], stem=stem, layers=(), steps=(step,))


def stream(config):
    encoder = flava.fusion(config)
    types = ref("type_embeddings.weight", len(SIZES), SECTION["hidden_size"])
    return replace(encoder, stem=JoinStem(encoder.stem.class_token, types, tuple(SIZES)))


TOWERS = {f"{name}_features": projection(name) for name in SIZES} | {"fusion": stream}
FAMILY = Family("four inputs", towers={}, classes={}, heads={"FourInputs": Head("joint", TOWERS)})


class FourInputs(JointModel):
    spec = class_named("FourInputs", FAMILY)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A function of features and masks in torch, and the folder of the same weights."""
    torch.manual_seed(0)
    stack = transformers.FlavaMultimodalModel(transformers.FlavaMultimodalConfig(**SECTION)).eval()
    projections = {name: torch.nn.Linear(size, SECTION["hidden_size"]) for name, size in SIZES.items()}
    types = torch.randn(len(SIZES), SECTION["hidden_size"]) * 0.5
    with torch.no_grad():
        for parameter in stack.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn_like(parameter) * 1.5 / parameter.shape[-1] ** 0.5)

    def reference(features, masks):
        rows = [projections[n](x) + types[list(SIZES).index(n)] for n, x in features.items()]
        token = stack.cls_token.clone()
        stack.cls_token.copy_(token + types[0])
        try:
            whole = torch.cat([torch.ones(3, 1), *(masks[n] for n in features)], 1)
            return stack(torch.cat(rows, 1), attention_mask=whole)
        finally:
            stack.cls_token.copy_(token)

    tensors = {f"multimodal_model.{n}": p.detach().numpy() for n, p in stack.named_parameters()}
    for name, layer in projections.items():
        tensors |= {f"{name}_projection.{n}": p.detach().numpy() for n, p in layer.named_parameters()}
    tensors["type_embeddings.weight"] = types.numpy()
    folder = tmp_path_factory.mktemp("four")
    save_safetensors(folder / "model.safetensors", {n: np.ascontiguousarray(a) for n, a in tensors.items()})
    return reference, folder


def load(folder, precision="float32"):
    config, files = Config({"multimodal_config": SECTION}), Folder(folder)
    return FourInputs(
        config, *load_towers(FourInputs.spec, config, files, None, 2, True, precision), files, None, 2, precision
    )


def features_and_masks():
    rng = np.random.default_rng(0)
    given = {n: rng.normal(size=(3, LENGTHS[n], SIZES[n])).astype(np.float32) for n in SIZES}
    masks = {n: np.ones((3, LENGTHS[n]), np.int64) for n in SIZES}
    for mask in masks.values():
        mask[1, 2:4] = 0
    return given, masks


@pytest.mark.parametrize("names", [list(SIZES), ["audio"], ["video", "text"], ["audio", "image", "text"]], ids="+".join)
def test_any_inputs_in_any_order(isa, made, names):
    reference, folder = made
    given, masks = features_and_masks()
    found = load(folder).fuse({n: (given[n], masks[n]) for n in names})
    with torch.no_grad():
        expected = reference({n: torch.tensor(given[n]) for n in names}, {n: torch.tensor(m) for n, m in masks.items()})
    rows = np.concatenate([np.ones((3, 1), bool), *(masks[n] == 1 for n in names)], 1)
    close(found["last_hidden_state"], expected.last_hidden_state, rows)
    close(found["pooler_output"], expected.pooler_output)
    assert np.ptp(found["pooler_output"], axis=0).max() > 1e-2, "all look alike"


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_masks_and_types(made, precision):
    """What a mask hides changes nothing, bitwise; the type of an input does."""
    ours, (given, masks) = load(made[1], precision), features_and_masks()
    found = ours.fuse({n: (given[n], masks[n]) for n in SIZES})
    changed = {n: (np.where(masks[n][..., None] == 0, 9.0, given[n]), masks[n]) for n in SIZES}
    assert np.array_equal(ours.fuse(changed)["pooler_output"], found["pooler_output"])
    alone = ours.fuse({n: (given[n][1:2], masks[n][1:2]) for n in SIZES})
    assert np.array_equal(alone["pooler_output"][0], found["pooler_output"][1])
    wide = np.random.default_rng(1).normal(size=(2, 4, 48)).astype(np.float32)
    program, mask = ours.tower("fusion").program, np.ones((2, 5), np.int64)
    first, second = (
        program.run({"features": wide, "attention_mask": mask, "token_type_ids": mask * kind}, ["pooler_output"], 1)
        for kind in (0, 3)
    )
    assert np.abs(first["pooler_output"] - second["pooler_output"]).max() > 1e-2


def test_inputs_that_do_not_fit(made):
    ours, (given, _) = load(made[1]), features_and_masks()
    for features, message in (
        ({"smell": given["text"]}, r"smell: found shape \(3, 5, 40\), expected \(3, n, 48\)"),
        ({"smell": np.zeros((3, 5, 48))}, "features: found 'smell', expected some of text, image, video, audio"),
        ({"text": given["image"]}, r"text: found shape \(3, 9, 56\), expected \(3, n, 40\)"),
        (
            {"text": given["text"], "audio": given["audio"][:2]},
            r"audio: found shape \(2, 7, 33\), expected \(3, n, 33\)",
        ),
        ({"text": [[1, 2], [3]]}, "text: found what makes no array"),
    ):
        with pytest.raises(ValueError, match=message):
            ours.fuse(features)


@pytest.mark.parametrize("first", [1, 2])
def test_a_text_that_attends_from_a_layer_on(isa, tmp_path, first):
    """ALBEF's text encoder: BLIP's, whose lower layers see the text alone."""
    model, pixels = blips.build("BlipForImageTextRetrieval", {"num_hidden_layers": 3}, {})
    layers = model.text_encoder.encoder.layer
    for layer in layers[:first]:
        forward = layer.forward

        def blind(hidden_states, encoder_hidden_states=None, forward=forward, **more):
            return forward(hidden_states, None, **more)

        layer.forward = blind
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["fusion_layer"] = first
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.warns(UserWarning, match="weights are not used"):  # those of the lower layers
        ours = bvl.AutoModel.from_pretrained(tmp_path)
    ids, mask = blips.prompts(300)
    with torch.no_grad():
        expected = model(ids, pixels, attention_mask=mask)
    found = ours(ids, pixels, attention_mask=mask)
    close(found.itm_score, expected.itm_score)
    close(found.question_embeds, expected.question_embeds, mask.numpy().astype(bool))
    config["text_config"]["fusion_layer"] = 0
    (tmp_path / "config.json").write_text(json.dumps(config))
    whole = bvl.AutoModel.from_pretrained(tmp_path)(ids, pixels, attention_mask=mask).itm_score
    assert np.abs(np.asarray(whole - found.itm_score)).max() > 1e-2
