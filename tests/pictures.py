"""Pictures of every kind the processors must take: modes, formats, orientations, sizes. Made here, so they ship nowhere.

Where BEYONDVL_PILLOW_IMAGES names the Tests/images folder of Pillow's source, its files are used as well.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

EXAMPLES = Path(__file__).parent.parent / "examples" / "photos"


def photo(width: int = 200, height: int = 150, seed: int = 0) -> Image.Image:
    """A smooth random colour picture with some texture."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    base = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    return Image.fromarray((base + rng.integers(-20, 20, base.shape)).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, fmt: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def with_alpha(image: Image.Image) -> Image.Image:
    mask = Image.new("L", image.size, 0)
    mask.paste(255, (20, 20, image.width - 20, image.height - 10))
    image = image.convert("RGBA")
    image.putalpha(mask.filter(ImageFilter.GaussianBlur(9)))
    return image


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


def modes() -> dict[str, Image.Image]:
    """PIL images of every mode."""
    p = photo()
    gif = Image.open(io.BytesIO(encoded(p.convert("P"), "GIF")))
    transparent_palette = with_alpha(p).quantize(64)
    gray16 = Image.fromarray(np.asarray(p.convert("L")).astype(np.uint16) * 257)
    return {
        "RGB": p, "L": p.convert("L"), "1": p.convert("1"), "P": p.convert("P"), "RGBA": with_alpha(p),
        "LA": with_alpha(p).convert("LA"), "CMYK": p.convert("CMYK"), "YCbCr": p.convert("YCbCr"), "HSV": p.convert("HSV"),
        "I;16": gray16, "I": p.convert("I"), "F": p.convert("F"), "GIF": gif, "PA": transparent_palette,
    }  # fmt: skip


def files() -> dict[str, bytes]:
    """Encoded pictures by name."""
    p, rgba = photo(), with_alpha(photo())
    found = {
        "jpeg.jpg": encoded(p, "JPEG"), "jpeg444.jpg": encoded(p, "JPEG", subsampling=0, quality=95),
        "jpeg422.jpg": encoded(p, "JPEG", subsampling=1), "progressive.jpg": encoded(p, "JPEG", progressive=True),
        "gray.jpg": encoded(p.convert("L"), "JPEG"), "cmyk.jpg": encoded(p.convert("CMYK"), "JPEG"),
        "odd.jpg": encoded(photo(131, 77), "JPEG"), "tiny.jpg": encoded(photo(1, 1), "JPEG"),
        "png.png": encoded(p, "PNG"), "rgba.png": encoded(rgba, "PNG"), "palette.png": encoded(p.convert("P"), "PNG"),
        "gray16.png": encoded(modes()["I;16"], "PNG"), "la.png": encoded(rgba.convert("LA"), "PNG"),
        "bit.png": encoded(p.convert("1"), "PNG"), "gif.gif": encoded(p.convert("P"), "GIF"),
        "frames.gif": encoded(p.convert("P"), "GIF", save_all=True, append_images=[photo(seed=2).convert("P")]),
        "lossy.webp": encoded(p, "WEBP"), "alpha.webp": encoded(rgba, "WEBP", lossless=True), "bmp.bmp": encoded(p, "BMP"),
        "wide.png": encoded(photo(600, 20), "PNG"), "tall.jpg": encoded(photo(20, 500), "JPEG"),
    }  # fmt: skip
    for orientation in range(1, 9):
        found[f"exif{orientation}.jpg"] = encoded(p, "JPEG", exif=exif(orientation))
    found["exif6.png"] = encoded(p, "PNG", exif=exif(6))
    found["exif3.webp"] = encoded(p, "WEBP", exif=exif(3))
    for path in sorted(EXAMPLES.glob("*.jpg"))[:4]:
        found[path.name] = path.read_bytes()
    folder = os.environ.get("BEYONDVL_PILLOW_IMAGES")
    if folder:
        for path in sorted(Path(folder).iterdir()):
            if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp"):
                found[f"pillow/{path.name}"] = path.read_bytes()
    return found
