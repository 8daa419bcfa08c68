"""A page of results for a browser: one file that needs no other, pictures in it as thumbnails."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from html import escape
from pathlib import Path
from urllib.parse import quote

from ..modalities import IMAGE, VIDEO
from ..processing.items import modality_of
from ..processing.loading import load_image
from ..processing.video import load_video

__all__ = ["thumbnail", "write_page"]

SIDE = 320
STYLE = """
body { font: 16px/1.4 system-ui, sans-serif; margin: 1.5rem; color: #222; background: #fafafa }
main { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)) }
figure { margin: 0; padding: .5rem; background: #fff; border: 1px solid #ddd; border-radius: .4rem }
img { width: 100%; height: 13rem; object-fit: contain; display: block }
figcaption { overflow-wrap: anywhere; font-size: .85rem }
b { float: right; font-weight: 600; margin-left: .5rem }
"""


def thumbnail(path: str) -> bytes | None:
    """A small JPEG of a picture or of a clip's middle; None of a sound and what cannot be read."""
    from PIL import Image

    kind = modality_of(path)
    try:
        if kind == IMAGE.name:
            image = Image.fromarray(load_image(path))
        elif kind == VIDEO.name:
            image = Image.fromarray(load_video(path, num_frames=2)[-1])
        else:
            return None
    except (ValueError, ImportError):  # clips need PyAV
        return None
    image.thumbnail((SIDE, SIDE))
    data = io.BytesIO()
    image.save(data, "jpeg", quality=80)
    return data.getvalue()


def write_page(path: Path, title: str, results: Iterable[tuple[str, str, float]]) -> None:
    """Writes results (name, path, score), the best first, under a title."""
    figures = []
    for name, file, score in results:
        data = base64.b64encode(thumbnail(file) or b"").decode()
        shown = f'<img src="data:image/jpeg;base64,{data}" alt="{escape(name, quote=True)}">' if data else ""
        link = Path(file).absolute().as_uri() if Path(file).exists() else quote(file)
        figures.append(
            f'<figure><a href="{link}">{shown}</a><figcaption><b>{score:.3f}</b>{escape(name)}</figcaption></figure>'
        )
    path.write_text(
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">\n'
        f"<title>{escape(title)}</title><style>{STYLE}</style>\n<h1>{escape(title)}</h1>\n"
        f"<main>{''.join(figures)}</main></html>\n",
        encoding="utf-8",
    )
