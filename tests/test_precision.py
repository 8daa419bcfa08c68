"""bfloat16 and int8 models against the same model in float32: cosines of centred embeddings, planted outliers,
determinism. What float32 is worth is test_families.py's matter."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from parity import worst_cosine

import beyondvl as bvl
import families
import models
from beyondvl import _C
from beyondvl.weights import save_safetensors

LEAST = {
    "bfloat16": 0.9995,
    "int8": 0.995,
    "bfloat16x3": 0.999999,
}  # cosine to float32, after the mean of the float32 batch is taken off
GAINS = (1.5, 1.0, 2.0, 3.0, 0.5, 0.25)
SHARP = r"\b(q_proj|k_proj|query|key)\b"


def tower(hidden, heads, inner, layers, **more):
    return families.heads(hidden, heads, inner, layers) | more


def clip(text, vision):
    text = {"vocab_size": 600, "max_position_embeddings": 20, "eos_token_id": 599} | text
    return {"model_type": "clip", "architectures": ["CLIPModel"], "projection_dim": 64, "text_config": text,
            "vision_config": vision}  # fmt: skip


CONFIGS = {
    "clip ViT-B/32": clip(tower(512, 8, 2048, 12), tower(768, 12, 3072, 12, image_size=224, patch_size=32)),
    "clip odd": clip(tower(48, 3, 99, 3), tower(88, 1, 170, 4, image_size=45, patch_size=14)),
    "siglip": {
        "model_type": "siglip", "architectures": ["SiglipModel"],
        "text_config": tower(144, 2, 304, 4, vocab_size=600, max_position_embeddings=16, projection_size=144),
        "vision_config": tower(144, 2, 304, 4, image_size=70, patch_size=14),
    },
    "siglip2": {
        "model_type": "siglip2", "architectures": ["Siglip2Model"],
        "text_config": tower(144, 2, 304, 4, vocab_size=600, max_position_embeddings=16, projection_size=144),
        "vision_config": tower(144, 2, 304, 4, num_patches=25, patch_size=14),
    },
    "dinov2": {"model_type": "dinov2", "architectures": ["Dinov2Model"], "image_size": 70, "patch_size": 14}
    | tower(144, 2, 0, 4),
    "dinov3_vit": {"model_type": "dinov3_vit", "architectures": ["DINOv3ViTModel"], "num_register_tokens": 2, "patch_size": 14}
    | tower(144, 2, 304, 4),
    "chinese_clip": {
        "model_type": "chinese_clip", "architectures": ["ChineseCLIPModel"], "projection_dim": 48,
        "text_config": tower(96, 3, 384, 2, vocab_size=600, max_position_embeddings=20),
        "vision_config": tower(96, 3, 200, 3, image_size=48, patch_size=8),
    },
    "bert": {"model_type": "bert", "architectures": ["BertModel"], "vocab_size": 600, "max_position_embeddings": 20}
    | tower(96, 3, 384, 4),
    "open_clip": {
        "model_type": "open_clip",
        "model_cfg": {
            "embed_dim": 64,
            "vision_cfg": {"image_size": 48, "layers": 3, "width": 96, "head_width": 32, "patch_size": 8},
            "text_cfg": {"context_length": 12, "vocab_size": 600, "width": 96, "heads": 3, "layers": 3},
        },
    },
}  # fmt: skip
# random convnets send all pictures to one point: the shipped default stands for them (test_default.py)
# heads that do not fill the words of a bfloat16 operand, and that a tile reads past
ODD_HEADS = {
    "33": clip(tower(48, 3, 99, 2), tower(66, 2, 128, 2, image_size=45, patch_size=14)),
    "8 alone": clip(tower(16, 4, 99, 2), tower(8, 1, 99, 2, image_size=45, patch_size=14)),
    "2": clip(tower(16, 8, 99, 2), tower(8, 4, 99, 2, image_size=45, patch_size=14)),
}
CONVNET = {"model_type": "efficientnet_lite", "variant": "efficientnet-lite0", "image_size": 96}


def weights(config: dict, gains: dict[str, float]) -> dict[str, np.ndarray]:
    """Matrices of each tower's gain, norms near one, small biases. Queries and keys keep gain 1: sharper ones make attention of
    random weights pick single tokens, which no published model does."""
    rng = np.random.default_rng(1)
    found = models.tensors(config)
    for name, array in found.items():
        if "word_embeddings" in name or "token_embedding" in name:
            array *= 4.0
        elif "position" in name or "token_type" in name:
            array *= 0.3
        elif array.ndim == 2 and "embedding" not in name:
            gain, sharp = gains["vision" if name.startswith("vis") else "text"], re.search(SHARP, name)
            values = 2 * len(array) // 3 if "in_proj" in name else len(array) if sharp else 0
            array[values:] *= gain
        elif array.ndim == 1 and "layer_scale" not in name:
            norm = re.search(r"norm|\bln_", name.lower()) and name.endswith("weight")
            array[:] = (1 if norm else 0) + (0.1 if norm else 0.05) * rng.normal(size=array.shape)
    return found


def plant(found: dict[str, np.ndarray], factor: float) -> None:
    """Six channels of every norm inside a block times `factor`, the columns that read them divided: the same function."""
    rng = np.random.default_rng(2)
    planted = 0
    for name in list(found):
        if not name.endswith(("layer_norm1.weight", "layer_norm2.weight")):
            continue
        block, norm = name.rsplit(".", 2)[0], name.rsplit(".", 2)[1]
        channels = rng.choice(found[name].size, 6, replace=False)
        readers = [f"self_attn.{p}_proj" for p in "qkv"] if norm == "layer_norm1" else ["mlp.fc1"]
        for part in ("weight", "bias"):
            found[f"{block}.{norm}.{part}"][channels] *= factor
        for reader in readers:
            found[f"{block}.{reader}.weight"][:, channels] /= factor
        planted += 1
    assert planted


def inputs(model, count: int = 64) -> dict[str, dict[str, np.ndarray]]:
    """Varied inputs of each tower: pictures coarse and fine, texts of one length."""
    rng = np.random.default_rng(3)
    found = {}
    if "text" in model.towers:
        size = model.tower("text").program.info()["vocab_size"]
        ids = rng.integers(3, size - 2, (count, 9))
        ids[:, -1] = size - 1
        found["text"] = {"input_ids": ids}
    if "vision" in model.towers:
        facts = model.tower("vision").program.info()
        if "spatial_shapes" in facts["inputs"]:
            return found | {"vision": patches(rng, count, facts["image"][1])}
        _, height, width = (5 * n if "dino" in model.family.model_type else n for n in facts["image"])
        coarse = rng.normal(size=(count, 3, 4, 4)) * 2 + 3 * rng.normal(size=(count, 3, 1, 1))
        y, x = (np.arange(n) * 4 // n for n in (height, width))
        pixels = coarse[:, :, y][:, :, :, x] + rng.normal(size=(count, 3, height, width))
        found["vision"] = {"pixel_values": pixels.astype(np.float32)}
    return found


def patches(rng, count: int, numbers: int) -> dict[str, np.ndarray]:
    """Of pictures of several sizes, each patch of a colour of its own or of its picture's."""
    values = 2 * rng.normal(size=(count, 40, 1)) + 3 * rng.normal(size=(count, 1, 1))
    pixels = (values + rng.normal(size=(count, 40, numbers))).astype(np.float32)
    return {"pixel_values": pixels, "spatial_shapes": rng.integers([2, 2], [6, 8], (count, 2))}


def embeddings(model, given) -> dict[str, np.ndarray]:
    out = {}
    for modality, arrays in given.items():
        names = model.tower(modality).outputs
        name = next(n for n in ("embeds", "sentence_embedding", "pooler_output") if n in names)
        out[modality] = model.run_tower(modality, arrays, [name])[name]
    return out


_made: dict = {}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, inputs, float32 embeddings); gains are the first that tell different inputs of a tower apart."""

    def make(name, factor=1.0):
        if (name, factor) not in _made:
            tried = {"text": 0, "vision": 0}
            while True:
                found = weights(CONFIGS[name], {m: GAINS[i] for m, i in tried.items()})
                if factor != 1:
                    plant(found, factor)
                folder = tmp_path_factory.mktemp("model")
                save_safetensors(folder / "model.safetensors", found)
                (folder / "config.json").write_text(json.dumps(CONFIGS[name]))
                model = bvl.AutoModel.from_pretrained(folder)
                given = inputs(model)
                expected = embeddings(model, given)
                alike = [m for m, e in expected.items() if families.mean_cosine(e) >= 0.5]
                if not alike:
                    break
                for modality in alike:
                    tried[modality] += 1
                    assert tried[modality] < len(GAINS), f"float32 does not tell the inputs of {modality} apart"
            _made[name, factor] = folder, given, expected
        return _made[name, factor]

    return make


def skip_unless_there(precision):
    isa = _C.config()["isa"]
    if precision == "bfloat16x3" and isa != "amx":
        pytest.skip(f"{isa} has no {precision}")


def check(made, precision, *key):
    skip_unless_there(precision)
    folder, given, expected = made(*key)
    model = bvl.AutoModel.from_pretrained(folder, dtype=precision)
    assert model.dtype == precision
    found = embeddings(model, given)
    for modality in given:
        cosine = worst_cosine(found[modality], expected[modality])
        assert cosine >= LEAST[precision], f"{modality}: {cosine}"
        assert (found[modality] != expected[modality]).any(), "this is not the precision asked for"
        if precision == "bfloat16x3":  # as close as float32 is asked to be
            unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (found[modality], expected[modality])]
            np.testing.assert_allclose(*unit, atol=2e-5)


@pytest.mark.parametrize("precision", LEAST)
@pytest.mark.parametrize("name", [n for n in CONFIGS if n != "clip ViT-B/32"])
def test_precision(isa, made, name, precision):
    check(made, precision, name)


@pytest.mark.parametrize("precision", LEAST)
@pytest.mark.parametrize("factor", [1, 100])
def test_precision_at_full_depth(made, precision, factor):
    """ViT-B/32 with six outlier channels in front of every product."""
    check(made, precision, "clip ViT-B/32", factor)


@pytest.mark.parametrize("precision", LEAST)
@pytest.mark.parametrize("factor", [20, 100])
def test_planted_outliers(isa, made, precision, factor):
    check(made, precision, "siglip", factor)


@pytest.mark.parametrize("precision", LEAST)
@pytest.mark.parametrize("name", [n for n in CONFIGS if n != "clip ViT-B/32"] + ["efficientnet_lite"])
def test_rows_threads_and_batches(isa, made, name, precision, tmp_path):
    """Row i is bitwise the row alone, at any number of threads."""
    skip_unless_there(precision)
    if name == "efficientnet_lite":
        folder = models.write(tmp_path / "model", CONVNET)
        given = inputs(bvl.AutoModel.from_pretrained(folder))
    else:
        folder, given, _ = made(name)
    given = {m: {k: v[:7] for k, v in arrays.items()} for m, arrays in given.items()}
    whole = None
    for threads in (1, 2, 3, 4):
        model = bvl.AutoModel.from_pretrained(folder, dtype=precision, num_threads=threads)
        found = embeddings(model, given)
        whole = whole or found
        for modality, arrays in given.items():
            np.testing.assert_array_equal(found[modality], whole[modality])
            for i in (0, 3, 6):
                one = {k: v[i : i + 1] for k, v in arrays.items()}
                alone = embeddings(model, {modality: one})
                np.testing.assert_array_equal(alone[modality][0], whole[modality][i])


@pytest.mark.parametrize(
    ("size", "hidden", "inner", "layers"), [(66, 32, 72, 2), (38, 32, 1056, 1), (38, 32, 1060, 1), (14, 192, 1060, 1)]
)
@pytest.mark.parametrize("precision", LEAST)
def test_pictures_of_many_rows(isa, precision, size, hidden, inner, layers, tmp_path):
    """1,090 or 362 rows: few workers go through their share of them strip by strip, ten the columns or rows of each product; more
    than 1024 inner columns are parted where tiles are (amx), the last part of 1060 with a padded operand. 50 rows: two or
    three workers share the columns of both products of a part. A packed file holds the parts in their order."""
    skip_unless_there(precision)
    vision = tower(hidden, 2, inner, layers, image_size=size, patch_size=2)
    folder = models.write(tmp_path / "model", clip(tower(32, 2, 64, 1), vision))
    pixels = np.random.default_rng(0).normal(size=(2, 3, size, size)).astype(np.float32)
    loaded = {t: bvl.AutoModel.from_pretrained(folder, dtype=precision, num_threads=t) for t in (1, 2, 3, 10)}
    whole = loaded[1].get_image_features(pixels)
    assert (whole[0] != whole[1]).any()
    loaded[1].save_packed(tmp_path / "packed")
    for model in (*loaded.values(), bvl.AutoModel.from_pretrained(tmp_path / "packed")):
        np.testing.assert_array_equal(model.get_image_features(pixels[:1])[0], whole[0])
    exact = bvl.AutoModel.from_pretrained(folder).get_image_features(pixels)
    assert ((exact * whole).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(whole, axis=1)).min() > 0.999


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
@pytest.mark.parametrize("heads", ODD_HEADS)
def test_odd_heads(isa, heads, precision, tmp_path):
    """Close to float32, and independent of what ran before: no element is left unwritten or read uninitialised."""
    folder = tmp_path / "model"
    folder.mkdir()
    save_safetensors(folder / "model.safetensors", weights(ODD_HEADS[heads], {"text": 1.0, "vision": 1.0}))
    (folder / "config.json").write_text(json.dumps(ODD_HEADS[heads]))
    exact, model = (bvl.AutoModel.from_pretrained(folder, dtype=p) for p in ("float32", precision))
    given = inputs(exact, 6)
    expected, found = embeddings(exact, given), embeddings(model, given)
    for modality, arrays in given.items():
        a, b = found[modality], expected[modality]
        assert ((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min() > 0.99
        for i in range(6):  # one after another over what the others left in the scratch
            alone = embeddings(model, {modality: {k: v[i : i + 1] for k, v in arrays.items()}})[modality]
            np.testing.assert_array_equal(alone[0], a[i])


def test_weights_take_less_memory(tmp_path):
    folder = models.write(tmp_path / "model", CONFIGS["clip ViT-B/32"])
    sizes = {p: bvl.AutoModel.from_pretrained(folder, dtype=p).packed_bytes for p in ("float32", "bfloat16", "int8")}
    assert sizes["bfloat16"] < 0.52 * sizes["float32"] and sizes["int8"] < 0.29 * sizes["float32"], sizes


def test_names_of_dtypes(made, tmp_path):
    folder, _, _ = made("clip odd")
    assert bvl.AutoModel.from_pretrained(folder).dtype == "float32"
    fastest = bvl.AutoModel.from_pretrained(folder, dtype="fastest").dtype
    assert fastest == ("float32" if _C.config()["isa"] == "base" else "int8")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(folder / name)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["clip odd"] | {"dtype": "bfloat16"}))
    assert bvl.AutoModel.from_pretrained(tmp_path, dtype="auto").dtype == "bfloat16"
    assert bvl.AutoModel.from_pretrained(folder, dtype="float16").dtype == "float32"
    with pytest.raises(
        ValueError, match="dtype: found 'float64', expected one of float32, bfloat16, int8, bfloat16x3, fastest"
    ):
        bvl.AutoModel.from_pretrained(folder, dtype="float64")


def test_openblas_is_float32_only(made, monkeypatch):
    monkeypatch.setenv("BEYONDVL_GEMM", "openblas")
    with pytest.raises(ValueError, match="precision: found 'int8', expected float32 on OpenBLAS"):
        bvl.AutoModel.from_pretrained(made("clip odd")[0], dtype="int8")


def test_bfloat16x3_is_refused_without_amx(made):
    if _C.config()["isa"] == "amx":
        pytest.skip("this machine has AMX")
    with pytest.raises(ValueError, match="found 'bfloat16x3', expected one that runs without AMX"):
        bvl.AutoModel.from_pretrained(made("clip odd")[0], dtype="bfloat16x3")
