"""Image processors against transformers' PIL processors: every byte of pixel_values equal, on every kind of picture."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import beyondvl as bvl
import beyondvl.config
import pictures
from beyondvl import _C
from beyondvl.processing.image import image_class
from beyondvl.processing.loading import MAX_PIXELS, load_image, load_pixels

CONFIGS = {
    "clip": ("CLIPImageProcessorPil", {}),
    "siglip": ("SiglipImageProcessorPil", {}),
    "chinese_clip": ("ChineseCLIPImageProcessorPil", {}),
    "flava": ("FlavaImageProcessorPil", {}),
    "odd crop": ("CLIPImageProcessorPil", {"size": {"shortest_edge": 61}, "crop_size": {"height": 75, "width": 44}}),
    "crop larger than picture": ("CLIPImageProcessorPil", {"do_resize": False, "crop_size": {"height": 223, "width": 301}}),
    "no crop, no normalise": ("CLIPImageProcessorPil",
                              {"size": {"height": 50, "width": 33}, "do_center_crop": False, "do_normalize": False}),
    "no rescale": ("CLIPImageProcessorPil", {"do_rescale": False}),
    "other factor": ("CLIPImageProcessorPil", {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3}),
    **{f"resample {n}": ("CLIPImageProcessorPil", {"resample": n}) for n in range(6)},
}  # fmt: skip
MODES, FILES = pictures.modes(), pictures.files()


def reference(name):
    transformers = pytest.importorskip("transformers", reason="parity needs transformers: pip install 'beyondvl[test]'")
    cls, fields = CONFIGS[name]
    found = getattr(transformers, cls)
    return found(**fields), image_class(cls).from_dict(fields)


def expected_pixels(processor, image):
    return np.stack(processor([image], return_tensors="np")["pixel_values"])


@pytest.mark.parametrize("config", CONFIGS)
def test_configs(config):
    theirs, ours = reference(config)
    for size in ((200, 150), (150, 200), (37, 91), (224, 224), (640, 363)):
        image = pictures.photo(*size)
        np.testing.assert_array_equal(ours(image)["pixel_values"], expected_pixels(theirs, image))


@pytest.mark.parametrize("mode", MODES)
def test_pil_modes(mode):
    theirs, ours = reference("clip")
    np.testing.assert_array_equal(ours(MODES[mode])["pixel_values"], expected_pixels(theirs, MODES[mode]))


@pytest.mark.parametrize("name", FILES)
def test_files(name, tmp_path):
    """A path gives what transformers makes of a path; bytes give the same."""
    theirs, ours = reference("clip")
    path = tmp_path / name.replace("/", "_")
    path.write_bytes(FILES[name])
    from transformers.image_utils import load_image as their_load

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = their_load(str(path))
        except Exception as error:
            with pytest.raises(bvl.ImageError):
                ours(str(path))
            pytest.skip(f"transformers refuses it as well: {str(error)[:60]}")
        found = ours(str(path))["pixel_values"]
        np.testing.assert_array_equal(found, expected_pixels(theirs, image))
        np.testing.assert_array_equal(ours(FILES[name])["pixel_values"], found)


def test_exif_rule():
    """A file is turned upright, a PIL image the caller opened is not."""
    _, ours = reference("clip")
    turned = ours(FILES["exif6.jpg"])["pixel_values"]
    opened = ours(Image.open(io.BytesIO(FILES["exif6.jpg"])))["pixel_values"]
    assert not np.array_equal(turned, opened)
    np.testing.assert_array_equal(opened, ours(Image.open(io.BytesIO(FILES["exif1.jpg"])))["pixel_values"])


@pytest.mark.parametrize("shape", ["HWC", "CHW", "RGBA", "gray", "float", "float RGBA", "torch", "strided"])
def test_arrays(shape):
    theirs, ours = reference("clip")
    rgb = np.asarray(pictures.photo())
    rgba = np.asarray(pictures.with_alpha(pictures.photo()))
    array = {
        "HWC": rgb, "CHW": np.ascontiguousarray(rgb.transpose(2, 0, 1)), "RGBA": rgba, "gray": rgb[:, :, :1],
        "float": (rgb / 255).astype(np.float32), "float RGBA": (rgba / 255).astype(np.float32),
        "torch": rgb.transpose(2, 0, 1), "strided": rgb[::-1, ::2],
    }[shape]  # fmt: skip
    if shape == "torch":
        torch = pytest.importorskip("torch")
        array = torch.from_numpy(np.ascontiguousarray(array))
    np.testing.assert_array_equal(ours(array)["pixel_values"], expected_pixels(theirs, array))


@pytest.mark.parametrize("filter", [1, 2, 3, 4, 5])
def test_resize_is_pillows(isa, filter):
    """The core's resampling against Pillow's, every filter, up and down, every number of channels."""
    rng = np.random.default_rng(1)
    for (h, w), (oh, ow) in (
        ((40, 60), (17, 23)),
        ((7, 5), (40, 33)),
        ((64, 1), (3, 9)),
        ((1, 1), (5, 4)),
        ((300, 200), (224, 149)),
        ((91, 37), (50, 33)),
        ((60, 60), (30, 50)),
        ((60, 60), (30, 45)),
        ((200, 50), (20, 80)),
    ):
        for channels, mode in ((1, "L"), (2, "LA"), (3, "RGB"), (4, "CMYK")):
            pixels = rng.integers(0, 256, (h, w, channels), dtype=np.uint8)
            if mode == "LA":
                expected = np.stack(
                    [np.asarray(Image.fromarray(pixels[..., c]).resize((ow, oh), filter)) for c in (0, 1)], -1
                )
            else:
                image = Image.frombytes(mode, (w, h), pixels.tobytes())
                expected = np.asarray(image.resize((ow, oh), filter)).reshape(oh, ow, channels)
            np.testing.assert_array_equal(_C.resize(pixels, oh, ow, filter, 0, 0), expected)


def test_batches_and_threads_agree():
    images = [pictures.photo(100 + 13 * i, 90 + 7 * i, seed=i) for i in range(9)]
    one = bvl.CLIPImageProcessor(num_threads=1)
    many = bvl.CLIPImageProcessor(num_threads=4)
    batch = many(images)["pixel_values"]
    np.testing.assert_array_equal(batch, one(images)["pixel_values"])
    for i, image in enumerate(images):
        np.testing.assert_array_equal(batch[i], one(image)["pixel_values"][0])


BAD = {
    "empty": (b"", "empty"),
    "html": (b"<html><body>404</body></html>", "not one of the formats"),
    "truncated jpeg": (FILES["jpeg.jpg"][: len(FILES["jpeg.jpg"]) // 2], "decoded"),
    "truncated png": (FILES["png.png"][:2000], "decoded"),
    "broken png": (FILES["png.png"][:500] + b"\0" * 64 + FILES["png.png"][564:], "decoded"),
    "jpeg header only": (b"\xff\xd8\xff", "decoded"),
    "tiff is not allowed": (pictures.encoded(pictures.photo(), "TIFF"), "not one of the formats"),
    "url": ("https://example.com/cat.jpg", "URLs are not fetched"),
    "missing file": ("/no/such/file.jpg", "No such file"),
    "number": (7, "expected a path"),
    "array of rank 1": (np.zeros(5, np.uint8), "expected [H, W]"),
    "array of 2 channels": (np.zeros((5, 6, 2), np.uint8), "channels"),
    "empty array": (np.zeros((0, 6, 3), np.uint8), "no empty axis"),
    "floats out of range": (np.full((5, 6, 3), 1.5, np.float32), "from 0 to 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_pictures_are_named(name):
    ours = bvl.CLIPImageProcessor()
    source, message = BAD[name]
    good = pictures.photo()
    with pytest.raises(ValueError, match="(?s).*" + message.replace("[", r"\[")) as caught:
        ours([good, good, source])
    assert isinstance(caught.value, bvl.ImageError)
    if name != "floats out of range":
        assert caught.value.index == 2 and "image 2" in str(caught.value)
    assert ours(good)["pixel_values"].shape == (1, 3, 224, 224)


def test_huge_pictures_are_refused_before_decoding():
    """A small file that claims 50,000 x 50,000 pixels."""
    header = bytearray(pictures.encoded(Image.new("1", (8, 8)), "PNG"))
    import struct
    import zlib

    header[16:24] = struct.pack(">II", 50_000, 50_000)
    header[29:33] = struct.pack(">I", zlib.crc32(bytes(header[12:29])))
    with pytest.raises(bvl.ImageError, match=r"pixels|bomb"):
        load_image(bytes(header))
    jpeg = bytearray(pictures.encoded(pictures.photo(16, 16), "JPEG"))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", 60_000, 60_000)
    with pytest.raises(bvl.ImageError, match="pixels"):
        load_image(bytes(jpeg))
    assert MAX_PIXELS == 89_478_485


def test_empty_list():
    with pytest.raises(ValueError, match="empty"):
        bvl.CLIPImageProcessor()([])


@pytest.mark.skipif(_C.config()["stb"] is None, reason="stb_image is not built in (no header, or older than 2.30)")
def test_stb_decodes_png_exactly_and_jpeg_closely():
    png = load_image(FILES["png.png"], "stb")
    np.testing.assert_array_equal(png, np.asarray(Image.open(io.BytesIO(FILES["png.png"]))))
    jpeg = load_image(FILES["jpeg444.jpg"], "stb").astype(int)
    assert np.abs(jpeg - np.asarray(Image.open(io.BytesIO(FILES["jpeg444.jpg"])), int)).mean() < 1
    for bad in (b"", FILES["gif.gif"], FILES["jpeg.jpg"][:20]):
        with pytest.raises(bvl.ImageError):
            load_image(bad, "stb")


def test_same_pixels_as_pillow():
    """simplejpeg and Pillow decode to the same bytes."""
    for name in ("jpeg.jpg", "jpeg444.jpg", "jpeg422.jpg", "progressive.jpg", "gray.jpg", "odd.jpg", "tiny.jpg"):
        np.testing.assert_array_equal(load_image(FILES[name]), load_image(FILES[name], "pillow"))


def test_fast_decoding_is_close_and_says_so():
    """`fast=True` shrinks large JPEGs while decoding: close to the exact pixels, but not them; small ones are untouched."""
    exact, fast = (bvl.AutoImageProcessor.from_pretrained("beyond-vl-model", fast=f) for f in (False, True))
    large = [pictures.encoded(pictures.photo(1920, 1080, seed), "JPEG", quality=85) for seed in range(4)]
    a, b = (p(large)["pixel_values"].reshape(4, -1) for p in (exact, fast))
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosines.min() > 0.999 and (a != b).any()
    small = [pictures.encoded(pictures.photo(500, 400), "JPEG")]
    np.testing.assert_array_equal(exact(small)["pixel_values"], fast(small)["pixel_values"])


def test_a_pil_image_is_read_in_place():
    """Its own memory, four bytes a pixel, kept alive by the array; equal to a copy, and to an image in several blocks."""
    image = pictures.photo(640, 480)
    pixels = load_pixels(image)
    assert pixels.shape == (480, 640, 4) and not pixels.flags.writeable
    expected = np.asarray(image).copy()
    del image
    np.testing.assert_array_equal(pixels[:, :, :3], expected)
    public = load_image(Image.fromarray(expected))
    assert public.flags.c_contiguous and public.flags.writeable and public.shape == (480, 640, 3)

    huge = Image.fromarray(np.tile(expected, (6, 6, 1)))
    assert load_pixels(huge).shape == (2880, 3840, 3)
    processor = bvl.AutoImageProcessor.from_pretrained("beyond-vl-model")
    np.testing.assert_array_equal(processor(huge)["pixel_values"], processor(np.asarray(huge))["pixel_values"])
    with pytest.raises(ValueError, match="arrow_pixels: expected 7 pixels"):
        _C.arrow_pixels(Image.new("RGB", (3, 2)).__arrow_c_array__()[1], 7, 1)


PIXELS = """
import hashlib, sys
from PIL import Image
import PIL, beyondvl as bvl, pictures
seen, process = hashlib.sha256(), bvl.CLIPImageProcessor()
for path in sorted(pictures.EXAMPLES.glob("*.jpg"))[:4]:
    seen.update(process([str(path), Image.open(path)])["pixel_values"].tobytes())
for picture in [*(pictures.photo(*size) for size in ((600, 120), (131, 277), (3, 3))), *pictures.modes().values()]:
    for resample in range(6):
        seen.update(bvl.CLIPImageProcessor(resample=resample)(picture)["pixel_values"].tobytes())
print(PIL.__version__, seen.hexdigest())
"""


def test_pixels_do_not_depend_on_pillow():
    """The oldest Pillow that is allowed gives the same bits as the one that is installed."""
    oldest = os.environ.get("BEYONDVL_OLDEST_PILLOW")
    if not oldest:
        pytest.skip(
            "BEYONDVL_OLDEST_PILLOW names no folder with Pillow 11 (pip install --target FOLDER pillow==11.0.0)"
        )
    found = []
    for first in ([], [oldest]):
        paths = os.pathsep.join([*first, str(Path(bvl.__file__).parent.parent), str(Path(__file__).parent)])
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", PIXELS], capture_output=True, text=True, timeout=300,
                              env={**os.environ, "PYTHONPATH": paths}, cwd=Path(__file__).parent)  # fmt: skip
        assert done.returncode == 0, done.stderr
        found.append(done.stdout.split())
    (new, expected), (old, pixels) = found
    assert old.startswith("11.") and new != old and pixels == expected
