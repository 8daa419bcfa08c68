"""Pictures of any size in one call: how they become patches, what the stem makes of these, and that none of them knows
of the others. Whole models are compared in test_families.py."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from parity import worst_cosine
from PIL import Image

import beyondvl as bvl
import models
import pictures
from beyondvl import _C
from beyondvl.processing.image import image_class

CONFIG = {
    "model_type": "siglip2", "architectures": ["Siglip2Model"],
    "text_config": {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3,
                    "vocab_size": 99, "max_position_embeddings": 16},
    "vision_config": {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3,
                      "num_patches": 16, "patch_size": 4},
}  # fmt: skip
FILES = {
    "preprocessor_config": {"image_processor_type": "Siglip2ImageProcessor", "patch_size": 4, "max_num_patches": 36}
}
SIZES = [(200, 150), (150, 200), (37, 91), (16, 16), (640, 30), (3, 500), (1, 1), (64, 64)]
CLOSE = {"float32": 2e-6, "bfloat16": 1e-2, "int8": 1e-2}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = models.write(tmp_path_factory.mktemp("siglip2") / "model", CONFIG, **FILES)
    return bvl.AutoModel.from_pretrained(folder, num_threads=2)


# ---- the processor


@pytest.mark.parametrize("fields", [{}, {"max_num_patches": 49, "patch_size": 14}, {"max_num_patches": 1024},
                                    {"resample": 3, "do_normalize": False}, {"patch_size": 3, "max_num_patches": 7}])  # fmt: skip
def test_patches_are_those_of_transformers(fields):
    """Bitwise, in type and in place, alone and in a batch of all."""
    transformers = pytest.importorskip("transformers", reason="parity needs transformers: pip install 'beyondvl[test]'")
    theirs = transformers.Siglip2ImageProcessorPil(**fields)
    ours = image_class("Siglip2ImageProcessor")(**fields)
    images = [pictures.photo(*size) for size in SIZES]
    expected, found = theirs(images, return_tensors="np"), ours(images)
    assert list(found) == list(expected) == list(ours.model_input_names)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    assert len({tuple(shape) for shape in found["spatial_shapes"]}) >= 4
    alone = ours(images[2])
    np.testing.assert_array_equal(alone["pixel_values"][0], found["pixel_values"][2])


def test_fields_of_the_processor():
    kind = image_class("Siglip2ImageProcessor")
    image = pictures.photo(48, 32)
    assert kind()(image, max_num_patches=8)["spatial_shapes"].tolist() == [[2, 3]]
    assert kind(do_resize=False)(image)["spatial_shapes"].tolist() == [[2, 3]]
    with pytest.raises(bvl.ImageError, match="image 0: 50 x 32 pixels, expected at most 256 whole patches of 16 x 16"):
        kind(do_resize=False)(pictures.photo(50, 32))
    with pytest.raises(bvl.ImageError, match="image 0: 48 x 32 pixels, expected at most 5 whole patches"):
        kind(do_resize=False, max_num_patches=5)(image)
    with pytest.raises(bvl.ConfigError, match="patch_size: found 0, expected a whole number from 1 to 256"):
        kind(patch_size=0)
    with pytest.raises(TypeError, match="unexpected arguments: size; an image processor has do_convert_rgb"):
        kind(size=3)
    again = kind.from_dict(kind(max_num_patches=9).to_dict())
    assert again.max_num_patches == 9 and again.to_dict()["image_processor_type"] == "Siglip2ImageProcessor"


@pytest.mark.parametrize("resample", [1, 2, 3])
@pytest.mark.parametrize("size", [(200, 150), (37, 91), (640, 363)])
def test_pictures_of_torchvision(size, resample):
    """DINOv3's are rescaled, resized as floats and then normalised; here beside torch's own resize."""
    torch = pytest.importorskip("torch", reason="parity needs torch: pip install 'beyondvl[test]'")
    image = pictures.photo(*size)
    processor = image_class("DINOv3ViTImageProcessor")(resample=resample)
    found = processor(image)["pixel_values"][0]
    assert found.shape == (3, 224, 224) and processor.to_dict()["size"] == {"height": 224, "width": 224}
    assert image_class("DINOv3ViTImageProcessor")(size=99).size == {"height": 99, "width": 99}
    x = np.asarray(image, np.float32).transpose(2, 0, 1) * np.float32(1 / 255)
    if resample == 1:  # torch has no such filter on the CPU; Pillow's, a channel of floats at a time
        bands = [Image.fromarray(band).resize((224, 224), Image.Resampling.LANCZOS) for band in x]
        resized_floats = np.stack([np.asarray(band) for band in bands])
    else:
        mode = {2: "bilinear", 3: "bicubic"}[resample]
        resized_floats = torch.nn.functional.interpolate(
            torch.from_numpy(x)[None], (224, 224), mode=mode, antialias=True
        )
        resized_floats = resized_floats[0].numpy()
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (processor.image_mean, processor.image_std))
    np.testing.assert_allclose(found, (resized_floats - mean) / std, atol=2e-5)  # whose weights are float32
    assert np.abs(found).max() > 1.5


# ---- the stem


def keys(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic kernel."""
    x = np.abs(x)
    near, far = ((a + 2) * x - (a + 3)) * x * x + 1, ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


KERNELS = {"bilinear": lambda x: np.maximum(0, 1 - np.abs(x)), "bicubic": lambda x: keys(x, -0.5)}


def axis_weights(size: int, wanted: int, filter: str) -> np.ndarray:
    """[wanted, size]: the kernel about each output sample's centre, as wide as an output sample is at least; or at a
    point, the samples at the edges repeated."""
    scale = size / wanted
    centres = (np.arange(wanted)[:, None] + 0.5) * scale - 0.5
    if filter == "bicubic_point":
        places = np.arange(-9, size + 9)
        spread = np.clip(places, 0, size - 1)[:, None] == np.arange(size)
        return keys(places - centres, -0.75) @ spread
    weights = KERNELS[filter]((np.arange(size) - centres) / max(scale, 1))
    return weights / weights.sum(1, keepdims=True)


def resized(table: np.ndarray, rows: int, cols: int, filter: str) -> np.ndarray:
    """[height, width, D] -> [rows * cols, D]"""
    down, right = axis_weights(table.shape[0], rows, filter), axis_weights(table.shape[1], cols, filter)
    return np.einsum("yi,xj,ijd->yxd", down, right, table).reshape(rows * cols, -1)


FILTERS = ["bilinear", "bicubic", "bicubic_point"]


@pytest.mark.parametrize("shape", [(4, 6), (9, 7), (1, 30), (2, 2), (13, 2), (3, 11)])
@pytest.mark.parametrize("filter", FILTERS)
def test_positions_are_resized_as_torch_does(shape, filter):
    """Which, antialiased and one column wide, gives every row the first one's, and is not followed there."""
    torch = pytest.importorskip("torch", reason="parity needs torch: pip install 'beyondvl[test]'")
    table = np.random.default_rng(0).standard_normal((4, 6, 8))
    grid = torch.from_numpy(table).permute(2, 0, 1)[None]
    options = {"mode": filter.removesuffix("_point"), "antialias": not filter.endswith("_point")}
    done = torch.nn.functional.interpolate(grid, shape, align_corners=False, **options)
    np.testing.assert_allclose(resized(table, *shape, filter), done[0].permute(1, 2, 0).reshape(-1, 8), atol=1e-6)


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("precision", CLOSE)
def test_the_stem(isa, precision, filter):
    """A product, and positions resized to grids larger, smaller, equal and one patch high."""
    rng = np.random.default_rng(0)
    height, width, D, K, shapes = 4, 6, 40, 27, [(4, 6), (9, 7), (1, 30), (2, 2), (13, 1), (3, 11)]
    weight, bias, table = (rng.standard_normal(shape).astype(np.float32) for shape in ((D, K), D, (height * width, D)))
    program = _C.Program(precision=precision)
    slot = program.slot("x", 0, D, _C.ROW_KINDS.index("patches"))
    arrays = {"weight": weight, "bias": bias, "position": table}
    params = {"grid_height": height, "grid_width": width, "filter": _C.FILTERS.index(filter), "channels": 0,
              "patch_height": 0, "patch_width": 0, "centred": 0, "offset": 0,
              "per_axis": 0}  # fmt: skip
    program.add("embed_patches", slot, slot, params, arrays, 1)
    patches = rng.standard_normal((len(shapes), 63, K)).astype(np.float32)
    for i, (rows, cols) in enumerate(shapes):
        patches[i, rows * cols :] = np.nan  # nobody reads what comes after
    inputs = {"pixel_values": patches, "spatial_shapes": np.array(shapes)}
    for threads in (1, 2, 3):
        found = program.run(inputs, ["x"], threads)["x"]
        for i, (rows, cols) in enumerate(shapes):
            wanted = patches[i, : rows * cols].astype(np.float64) @ weight.T + bias
            wanted += resized(table.reshape(height, width, D), rows, cols, filter)
            assert np.abs(found[i, : rows * cols] - wanted).max() <= CLOSE[precision] * np.abs(wanted).max()
            assert not found[i, rows * cols :].any()


SAID = {
    "spatial_shapes: not given": {"spatial_shapes": None},
    r"spatial_shapes: found shape \(3, 3\), expected \(3, 2\)": {"spatial_shapes": np.ones((3, 3), int)},
    r"spatial_shapes\[1\]: found 5 x 8 patches, expected 1 to 36 in all": {"spatial_shapes": [[6, 6], [5, 8], [6, 6]]},
    r"spatial_shapes\[2\]: found 0 x 4 patches": {"spatial_shapes": [[6, 6], [9, 4], [0, 4]]},
    r"spatial_shapes\[0\]: found 4611686018427387904 x 4": {"spatial_shapes": [[1 << 62, 4], [6, 6], [6, 6]]},
    r"pixel_attention_mask\[1, 4\]: found 1, expected 1 for the first 4 alone": {
        "spatial_shapes": [[6, 6], [2, 2], [6, 6]]},
    r"pixel_values: found shape \(3, 36, 47\), expected \(B, N, 48\)": {"pixel_values": np.ones((3, 36, 47), "f")},
    r"pixel_values: found 4 dimensions, expected 3": {"pixel_values": np.ones((3, 3, 24, 24), "f")},
}  # fmt: skip


@pytest.mark.parametrize("said", SAID)
def test_bad_inputs_are_named(model, said):
    inputs = {
        "pixel_values": np.ones((3, 36, 48), np.float32),
        "pixel_attention_mask": np.ones((3, 36), int),
        "spatial_shapes": np.array([[6, 6]] * 3),
    }
    model.get_image_features(**inputs)
    with pytest.raises(ValueError, match=said):
        model.get_image_features(**inputs | SAID[said])
    model.get_image_features(**inputs)


# ---- whole models


def test_each_alone_and_all_together(isa, model):
    """Bitwise, at any number of threads, with room after their patches or none, and with the order of rows turned."""
    again = bvl.AutoModel.from_pretrained(model.folder)
    images = [pictures.photo(*size, seed=i) for i, size in enumerate([*SIZES, *SIZES])]
    inputs = dict(again.image_processor(images))
    wanted = again.run_tower("vision", inputs, ["last_hidden_state", "unit_embeds"], 1)
    centred = wanted["unit_embeds"] - wanted["unit_embeds"].mean(0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    assert np.median(centred @ centred.T) < 0.5  # they are told apart
    for threads in (2, 3, 5, 40):
        found = again.run_tower("vision", inputs, list(wanted), threads)
        assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
    for i in range(len(images)):
        count = int(inputs["spatial_shapes"][i].prod())
        alone = {name: array[i : i + 1, :count] for name, array in inputs.items()}
        alone["spatial_shapes"] = inputs["spatial_shapes"][i : i + 1]
        found = again.run_tower("vision", alone, list(wanted), 2)
        assert np.array_equal(found["unit_embeds"][0], wanted["unit_embeds"][i])
        assert np.array_equal(found["last_hidden_state"][0], wanted["last_hidden_state"][i, :count])
        assert not wanted["last_hidden_state"][i, count:].any()


def test_rows_and_columns_are_not_the_same(model):
    """Turning a picture's grid, or its neighbour's, changes the one alone."""
    inputs = dict(model.image_processor([pictures.photo(200, 100), pictures.photo(100, 200)]))
    turned = inputs | {"spatial_shapes": inputs["spatial_shapes"] * 1}
    turned["spatial_shapes"][0] = turned["spatial_shapes"][0, ::-1]
    a, b = (model.get_image_features(**each) for each in (inputs, turned))
    assert np.abs(a[0] - b[0]).max() > 1e-3 and np.array_equal(a[1], b[1])


def test_encode(model):
    """What the model gives of what its processor makes, in batches; bad pictures are told, the others are as before."""
    images = [pictures.photo(*size) for size in SIZES]
    features = np.asarray(model.get_image_features(**model.processor(images=images, return_tensors="np")))
    wanted = features / np.linalg.norm(features, axis=1, keepdims=True)
    found = model.encode(images, batch_size=3, normalize_embeddings=True)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    marred = model.encode([*images[:2], b"no picture", *images[2:]], on_error="skip", normalize_embeddings=True)
    assert marred.indices.tolist() == [0, 1, *range(3, 9)] and np.array_equal(marred, found)
    clip = np.stack([np.asarray(pictures.photo(64, 40, seed=i)) for i in range(3)])
    assert model.encode([{"video": clip}]).shape == (1, 48)


@pytest.mark.parametrize("dtype, least", [("bfloat16", 0.9995), ("int8", 0.995)])
def test_precision(model, dtype, least):
    """Cosines of embeddings with their mean taken off."""
    inputs = dict(model.image_processor([pictures.photo(*size, seed=s) for size in SIZES for s in range(6)]))
    exact, found = (
        np.asarray(each.get_image_features(**inputs))
        for each in (model, bvl.AutoModel.from_pretrained(model.folder, dtype=dtype))
    )
    assert worst_cosine(found, exact) >= least


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_saved_packed_and_pickled(model, tmp_path, dtype):
    """The same bits from each."""
    inputs = dict(model.image_processor([pictures.photo(*size) for size in SIZES]))
    first = bvl.AutoModel.from_pretrained(model.folder, dtype=dtype)
    first.save_packed(tmp_path / "packed")
    first.save_pretrained(tmp_path / "saved")
    others = [bvl.AutoModel.from_pretrained(tmp_path / "packed"), pickle.loads(pickle.dumps(first)), copy.copy(first),
              bvl.AutoModel.from_pretrained(tmp_path / "saved", dtype=dtype)]  # fmt: skip
    wanted = np.asarray(first.get_image_features(**inputs))
    for other in others:
        assert np.array_equal(other.get_image_features(**inputs), wanted)
    processor = bvl.AutoProcessor.from_pretrained(tmp_path / "packed")
    assert processor.max_num_patches == 36 and type(processor).__name__ == "Siglip2ImageProcessor"


# ---- models of one size in a call

VIT = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3, "image_size": 70, "patch_size": 7}
OTHERS = {
    "dinov2": {"model_type": "dinov2", "architectures": ["Dinov2Model"], **VIT},
    "dinov2_with_registers": {"model_type": "dinov2_with_registers", "num_register_tokens": 3, **VIT},
    "dinov3_vit": {"model_type": "dinov3_vit", "num_register_tokens": 2, "intermediate_size": 160, **VIT},
}
CROPS = {
    "preprocessor_config": {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 56},
                            "crop_size": {"height": 49, "width": 42}},
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_models_of_any_size(isa, tmp_path, name):
    """The same bits alone and together, at any number of threads, pooled alone or with all rows; packed and pickled; in
    two sizes."""
    first = bvl.AutoModel.from_pretrained(models.write(tmp_path / "model", OTHERS[name], **CROPS), num_threads=2)
    rng = np.random.default_rng(0)
    for size in ((49, 42), (70, 70), (8, 61)):
        pixels = 3 * rng.standard_normal((5, 3, 1, 1)) + rng.standard_normal((5, 3, *size))
        inputs = {"pixel_values": pixels.astype(np.float32)}
        out = first(**inputs)
        rows = OTHERS[name].get("num_register_tokens", 0) + 1 + (size[0] // 7) * (size[1] // 7)
        assert out.last_hidden_state.shape == (5, rows, 96)
        for threads in (1, 2, 3):
            pooled = first.run_tower("vision", inputs, ["pooler_output"], threads)["pooler_output"]
            assert np.array_equal(pooled, out.pooler_output)
        alone = first(pixel_values=inputs["pixel_values"][3:4])
        assert np.array_equal(alone.last_hidden_state[0], out.last_hidden_state[3])
        centred = out.pooler_output - out.pooler_output.mean(0)
        assert np.abs(centred).mean() > 0.02  # they are told apart
    first.save_packed(tmp_path / "packed")
    for again in (bvl.AutoModel.from_pretrained(tmp_path / "packed"), pickle.loads(pickle.dumps(first))):
        assert type(again) is type(first) and np.array_equal(again(**inputs).pooler_output, out.pooler_output)


@pytest.mark.parametrize("name", OTHERS)
def test_encode_of_any_size(tmp_path, name):
    first = bvl.AutoModel.from_pretrained(models.write(tmp_path / "model", OTHERS[name], **CROPS), num_threads=2)
    images = [pictures.photo(90, 70, seed=i) for i in range(24)]
    wanted = first(**first.image_processor(images)).pooler_output
    np.testing.assert_array_equal(first.encode(images, batch_size=7), wanted)
    with pytest.raises(
        ValueError, match=r"pixel_values: found \(1, 3, 6, 9\) float32, expected \(B, 3, H, W\) float32"
    ):
        first(pixel_values=np.ones((1, 3, 6, 9), np.float32))


def test_inputs_of_other_models_are_refused(tmp_path):
    """A mask of patches means nothing to a model of whole pictures."""
    clip = bvl.AutoModel.from_pretrained(models.write(tmp_path))
    pixels = models.inputs()["pixel_values"]
    clip(pixel_values=pixels)
    with pytest.raises(ValueError, match="pixel_attention_mask: given to a tower that takes pixel_values"):
        clip(pixel_values=pixels, pixel_attention_mask=np.ones((1, 4), int))
