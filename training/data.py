"""Step 1 of the recipe: pictures with words out of Debian packages, and the split.

    apt-get download openclipart-png openclipart-svg fonts-noto-color-emoji unicode-cldr-core
    for p in *.deb; do dpkg -x $p root; done
    python training/data.py --root root --work training/work

Writes WORK/items.json (id, file, captions, keywords, group, part), WORK/pictures/*.png (RGBA, trimmed) and, with
--commit-split, training/split.json: the ids of each part, sha256 of each list and the baselines of the test part.

Groups are never split: (1) an emoji without skin tone and gender; (2) equal normalised captions over all sources;
(3) 8x8 colour thumbnails with an RMS difference below 6/255; (4) whole series (keycaps, clocks, flags, cards, letters,
signs of one kind). crc32(group) % 100 below 10 is test, 10 to 14 validation.
"""

from __future__ import annotations

import argparse
import hashlib
import html
import io
import json
import re
import zlib
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 384  # longest side kept
GENERIC = frozenset(
    "icon icons theme hash computer menu clip art clipart collection unchecked image button buttons sign signs_and_symbols"
    " svg png flat lemon etiquette gnome kde the and of part from".split()
)
SKIPPED = ("/shapes/stars/", "/special/gradients/", "/special/patterns/", "/shapes/jigsaw", "/special/examples")
NOISE = re.compile(
    r"(?:^|[_\- ])(?:archi\w*|franc\w*|jesper\w*|zedlitz|nicu\w*|r\d+|v\d+|\d+|ganson|01)(?=$|[_\- ])", re.I
)
SERIES = (
    ("keycap", re.compile(r"keycap")),
    ("clock", re.compile(r"o.clock|thirty|\bclock ?\d|^clock\b")),
    ("flag", re.compile(r"\bflag\b|^flag of|\bflags\b")),
    ("card", re.compile(r"\b(ace|king|queen|jack|ten|nine|eight|seven|six|five|four|three|two|\d+) of (clubs|hearts|spades|diamonds)|\bcards?\b")),
    ("letter", re.compile(r"^(letter )?[a-z0-9]$|\bletter\b|\bregional indicator\b|\bsquared\b|\binput\b")),
    ("hotel", re.compile(r"^hotel|\bhotel\b")),
    ("zodiac", re.compile(r"aries|taurus|gemini|cancer|\bleo\b|virgo|libra|scorpius|sagittarius|capricorn|aquarius|pisces|ophiuchus")),
    ("moon phase", re.compile(r"moon")),
    ("domino", re.compile(r"domino|\bdice\b|\bdie\b")),
    ("chess", re.compile(r"chess")),
    ("map", re.compile(r"\bmap\b|\bmaps\b")),
    ("family", re.compile(r"^family\b")),
    ("arrow", re.compile(r"\barrow\b")),
)  # fmt: skip


def words(text: str) -> str:
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", html.unescape(text))
    return re.sub(r"\s+", " ", re.sub(r"[^\w']+", " ", text.replace("_", " "))).strip().lower()


def normal(caption: str) -> str:
    return " ".join(sorted(set(re.sub(r"[^a-z0-9 ]", "", caption.lower()).split())))


def field(svg: str, name: str) -> str:
    found = re.search(rf"<dc:{name}[^>]*>([^<]*)</dc:{name}>", svg)
    return html.unescape(found[1]).strip() if found else ""


def openclipart(root: Path) -> list[dict]:
    folder = root / "usr/share/openclipart"
    rows, titles = [], Counter()
    for png in sorted((folder / "png").rglob("*.png")):
        name = png.relative_to(folder / "png").with_suffix("").as_posix()
        svg_path = folder / "svg" / f"{name}.svg"
        if any(part in f"/{name}" for part in SKIPPED) or not svg_path.exists():
            continue
        svg = svg_path.read_text("utf-8", "replace")
        if re.search(r"licenses/GPL|General Public", svg):
            continue
        title = field(svg, "title")
        titles[title] += 1
        keywords = [words(k) for k in re.findall(r"<rdf:li>([^<]*)</rdf:li>", svg)]
        rows.append({"id": f"openclipart/{name}", "file": png, "title": title, "keywords": keywords,
                     "description": field(svg, "description")})  # fmt: skip
    for row in rows:
        boilerplate = (
            not row["title"]
            or titles[row["title"]] > 3
            or re.search(r"clipart|collection|theme|submission", row["title"], re.I)
        )
        stem = words(NOISE.sub(" ", NOISE.sub(" ", row["id"].rsplit("/", 1)[1])))
        from_title = words(NOISE.sub(" ", row["title"]))
        caption = stem if boilerplate else from_title
        row["keywords"] = sorted({k for k in row["keywords"] if k and k not in GENERIC and len(k) > 2})
        row["captions"] = [
            c for c in dict.fromkeys([caption, stem, from_title if not boilerplate else stem]) if len(c) > 2
        ]
        description = words(row.pop("description"))
        if 8 < len(description) < 90 and "clip" not in description:
            row["captions"].append(description)
    return [row for row in rows if row["captions"] and not set(row["captions"][0].split()) <= GENERIC]


def emoji_names(root: Path, language: str) -> tuple[dict[str, str], dict[str, str]]:
    """Of each emoji its name and its keywords ("a | b") in a language of Unicode CLDR ("en", "zh")."""
    names: dict[str, str] = {}
    keys: dict[str, str] = {}
    for file in ("annotations", "annotationsDerived"):
        text = (root / f"usr/share/unicode/cldr/common/{file}/{language}.xml").read_text("utf-8")
        for cp, kind, value in re.findall(r'<annotation cp="([^"]+)"( type="tts")?>([^<]*)<', text):
            (names if kind else keys)[cp.replace("\ufe0f", "")] = html.unescape(value)
    return names, keys


def emoji(root: Path) -> list[dict]:
    from fontTools.ttLib import TTFont

    names, keys = emoji_names(root, "en")
    font = TTFont(root / "usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
    bitmaps = font["CBDT"].strikeData[0]
    by_glyph = {glyph: chr(cp) for cp, glyph in font.getBestCmap().items()}
    rows = []
    for glyph, bitmap in bitmaps.items():
        points = re.findall(r"[0-9A-Fa-f]{4,6}", glyph.removeprefix("u"))
        text = by_glyph.get(glyph) or "".join(chr(int(p, 16)) for p in points)
        text = text.replace("\ufe0f", "")
        if text not in names or any("\U0001f3fb" <= c <= "\U0001f3ff" for c in text):
            continue
        keywords = [k.strip() for k in keys.get(text, "").split("|") if k.strip()]
        rows.append({"id": "emoji/" + "-".join(f"{ord(c):x}" for c in text), "png": bitmap.imageData,
                     "captions": [names[text].replace(":", "")], "keywords": keywords, "text": text})  # fmt: skip
    return rows


def trimmed(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    image.thumbnail((SIDE * 2, SIDE * 2))
    box = image.getchannel("A").point(lambda a: 255 * (a > 8)).getbbox()
    image = image.crop(box) if box else image
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return image


def on_white(image: Image.Image, side: int) -> Image.Image:
    """The picture centred on a white square."""
    scale = side / max(image.size)
    size = [max(1, round(n * scale)) for n in image.size]
    square = Image.new("RGBA", (side, side), "white")
    square.alpha_composite(image.resize(size, Image.Resampling.BICUBIC), tuple((side - n) // 2 for n in size))
    return square.convert("RGB")


class Groups:
    """Union-find over item numbers."""

    def __init__(self, count: int):
        self.parent = list(range(count))

    def find(self, i: int) -> int:
        while self.parent[i] != i:
            self.parent[i] = self.parent[self.parent[i]]
            i = self.parent[i]
        return i

    def union(self, i: int, j: int) -> None:
        self.parent[max(self.find(i), self.find(j))] = min(self.find(i), self.find(j))


def group(items: list[dict], thumbs: np.ndarray) -> None:
    groups = Groups(len(items))
    first: dict[str, int] = {}

    def same(key: str, i: int) -> None:
        groups.union(first.setdefault(key, i), i)

    for i, item in enumerate(items):
        if "text" in item:
            base = re.sub("[\u200d\u2640\u2642\U0001f468\U0001f469\U0001f9d1]", "", item["text"]) or item["text"]
            same("emoji " + base, i)
        same("caption " + normal(item["captions"][0]), i)
        for name, pattern in SERIES:
            if pattern.search(item["captions"][0]):
                same("series " + name, i)
    squares = (thumbs**2).sum(1)
    for i in range(len(items)):
        distance = squares[i] + squares[i + 1 :] - 2 * thumbs[i + 1 :] @ thumbs[i]
        for j in np.flatnonzero(distance / thumbs.shape[1] < (6 / 255) ** 2):
            groups.union(i, i + 1 + int(j))
    for i, item in enumerate(items):
        item["group"] = items[groups.find(i)]["id"]
        bucket = zlib.crc32(item["group"].encode()) % 100
        item["part"] = "test" if bucket < 10 else "validation" if bucket < 15 else "train"


def ranks_metrics(scores: np.ndarray) -> dict[str, float]:
    """R@1/5/10 in percent and the median rank of the diagonal, both ways; ties count against the model."""
    result = {}
    for way, s in (("image_to_text", scores), ("text_to_image", scores.T)):
        rank = (s >= np.diag(s)[:, None]).sum(1)
        result[way] = {f"R@{k}": round(100 * float((rank <= k).mean()), 2) for k in (1, 5, 10)}
        result[way]["median_rank"] = float(np.median(rank))
    result["gallery"] = len(scores)
    return result


def one_per_caption(items: list[dict], part: str) -> list[int]:
    """The first item of each normalised caption of a part: the gallery."""
    seen: dict[str, int] = {}
    for i, item in enumerate(items):
        if item["part"] == part:
            seen.setdefault(normal(item["captions"][0]), i)
    return sorted(seen.values())


def thumbnail_baseline(items: list[dict], thumbs: np.ndarray, part: str) -> np.ndarray:
    """4x4 colour thumbnail, 10 nearest training pictures vote for the words of their captions, weighted by idf."""
    train = [i for i, item in enumerate(items) if item["part"] == "train"]
    gallery = one_per_caption(items, part)
    counts = Counter(w for i in train for w in set(items[i]["captions"][0].split()))
    small = thumbs.reshape(-1, 4, 2, 4, 2, 3).mean((2, 4)).reshape(len(thumbs), -1)
    postings = defaultdict(list)
    for column, i in enumerate(gallery):
        for word in set(items[i]["captions"][0].split()):
            postings[word].append(column)
    scores = np.zeros((len(gallery), len(gallery)))
    for row, i in enumerate(gallery):
        distance = ((small[train] - small[i]) ** 2).sum(1)
        near = np.argpartition(distance, 10)[:10]
        for j in near:
            for word in set(items[train[j]]["captions"][0].split()):
                for column in postings[word]:
                    scores[row, column] += np.log(len(train) / counts[word]) / (0.01 + distance[j])
    return scores + 1e-9 * np.random.default_rng(0).random(scores.shape)


def split_record(items: list[dict], thumbs: np.ndarray) -> dict:
    parts = {}
    for part in ("validation", "test"):
        ids = [items[i]["id"] for i in one_per_caption(items, part)]
        parts[part] = {"ids": ids, "sha256": hashlib.sha256("\n".join(ids).encode()).hexdigest(),
                       "thumbnail_baseline": ranks_metrics(thumbnail_baseline(items, thumbs, part))}  # fmt: skip
    train = [item["id"] for item in items if item["part"] == "train"]
    parts["train"] = {"count": len(train), "sha256": hashlib.sha256("\n".join(train).encode()).hexdigest()}
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--commit-split", action="store_true")
    options = parser.parse_args()
    Image.MAX_IMAGE_PIXELS = 30_000_000
    folder = options.work / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    kept, thumbs = [], []
    for item in openclipart(options.root) + emoji(options.root):
        try:
            image = trimmed(Image.open(io.BytesIO(item["png"]) if "png" in item else item["file"]))
        except (OSError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            print("left out", item["id"], error)
            continue
        if min(image.size) < 3:
            continue
        item["picture"] = f"{len(kept):05d}.png"
        image.save(folder / item["picture"])
        thumbs.append(
            np.asarray(on_white(image, 64).resize((8, 8), Image.Resampling.BOX), np.float32).reshape(-1) / 255
        )
        kept.append({k: v for k, v in item.items() if k not in ("png", "file", "title")})
    thumbnails = np.stack(thumbs)
    group(kept, thumbnails)
    (options.work / "items.json").write_text(json.dumps(kept, indent=0, ensure_ascii=False))
    np.save(options.work / "thumbnails.npy", thumbnails)
    record = split_record(kept, thumbnails)
    for part in ("validation", "test"):
        print(part, record[part]["thumbnail_baseline"])
    print(Counter(item["part"] for item in kept), len({item["group"] for item in kept}), "groups")
    if options.commit_split:
        Path(__file__).with_name("split.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
