"""Clips made of photographs and drawings, with words that say what moves, and how; synthetic, and called so.

    clip(rng, photographs, drawings) -> frames (8, SIZE, SIZE, 3), {"kind", "captions", "questions"}

A drawing moves over a photograph, two cross it, one appears or goes away; or the camera pans over a photograph, nears
it or draws back. NOUNS are what drawings may show: those whose caption ends in such a word.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

SIZE, FRAMES = 260, 8
NOUNS = frozenset(
    "airplane ambulance ant apple avocado backpack ball balloon banana basketball bat bear bed bee bell bicycle bird boat "
    "book bottle bus butterfly cactus cake camel camera candle car carrot castle cat chair cherries chicken clock coconut "
    "computer cow crab crocodile crown cup deer dog dolphin donkey door dragon drum duck eagle eggplant elephant envelope "
    "eye fish flamingo flower fox frog ghost giraffe glasses goat gorilla grapes guitar hamburger hammer hat hedgehog "
    "helicopter hippopotamus horse hourglass house kangaroo key kite koala ladder lamp leaf lemon leopard lion lizard lobster "
    "lollipop magnet mango microphone moon motorcycle mouse mushroom octopus onion orange otter owl ox palm panda parrot "
    "peach peacock pear pen pencil penguin piano pig pineapple pizza potato pumpkin rabbit raccoon ram rat rhinoceros robot "
    "rocket rooster rose sailboat sandwich scissors scooter seal shark sheep ship shoe skateboard skull sloth snail snake "
    "snowman sofa spider spoon squid squirrel star strawberry sun sunflower swan sword taxi telephone tent tiger tomato "
    "tooth tractor train tree trophy truck trumpet turkey turtle umbrella unicorn violin watch watermelon whale wolf zebra".split()
)
WAYS = {"right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1)}
FROM = {"right": "from left to right", "left": "from right to left", "up": "upwards", "down": "downwards"}


def noun_of(caption: str) -> str | None:
    """What a drawing shows, where it is one of NOUNS."""
    last = caption.lower().split()[-1] if caption.split() else ""
    return last if last in NOUNS and len(caption.split()) <= 2 else None


def drawings(items: Sequence[dict[str, Any]], held_out: bool) -> list[tuple[dict[str, Any], str]]:
    """(item, noun) of the training part; a fifth of them, by crc32 of the id, are held out."""
    chosen = []
    for item in items:
        nouns = [noun for noun in map(noun_of, item["captions"]) if noun]
        if nouns and item["part"] == "train" and (zlib.crc32(item["id"].encode()) % 5 == 0) == held_out:
            chosen.append((item, nouns[0]))
    return chosen


def a(noun: str) -> str:
    return (
        f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
        if noun not in ("cherries", "grapes", "glasses", "scissors")
        else noun
    )


def track(rng: np.random.Generator, way: str | None, offset: float = 0.0) -> np.ndarray:
    """Centres (FRAMES, 2) as shares of the picture."""
    if way is None:
        return np.tile(rng.uniform(0.3, 0.7, 2), (FRAMES, 1))
    dx, dy = WAYS[way]
    start, end = rng.uniform(0.1, 0.25), rng.uniform(0.75, 0.9)
    at = np.linspace(start, end, FRAMES)
    at = at if dx + dy > 0 else 1 - at
    across = np.full(FRAMES, np.clip(rng.uniform(0.3, 0.7) + offset, 0.2, 0.8))
    return np.stack([at, across] if dx else [across, at], 1) + rng.normal(0, 0.006, (FRAMES, 2))


def paste(frames: list[Image.Image], sprite: Image.Image, centres: np.ndarray, side: float, shown: range) -> None:
    width = max(8, int(side * SIZE * sprite.width / max(sprite.size)))
    height = max(8, int(side * SIZE * sprite.height / max(sprite.size)))
    sprite = sprite.convert("RGBA").resize((width, height), Image.Resampling.BICUBIC)
    for i in shown:
        x, y = (centres[i] * SIZE).round().astype(int)
        frames[i].paste(sprite, (int(x - width // 2), int(y - height // 2)), sprite)


def clip(
    rng: np.random.Generator, photographs: Sequence[tuple[Image.Image, str]], sprites: Sequence[tuple[Image.Image, str]]
) -> tuple[np.ndarray, dict[str, Any]]:
    """One clip out of some photographs with captions and drawings with nouns; the camera moves over no photograph without
    words."""
    picture, words = photographs[rng.integers(len(photographs))]
    kind = rng.choice(["move", "cross", "appear", "vanish", "pan", "zoom"], p=[0.45, 0.2, 0.08, 0.07, 0.12, 0.08])
    whole = picture.convert("RGB")
    if not words and kind in ("pan", "zoom"):
        kind = "move"
    if kind == "pan":
        return panned(rng, whole, words)
    if kind == "zoom":
        return zoomed(rng, whole, words)
    margin = rng.uniform(0.0, 0.3)
    box = (
        margin / 2 * whole.width,
        margin / 2 * whole.height,
        (1 - margin / 2) * whole.width,
        (1 - margin / 2) * whole.height,
    )
    ground = whole.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box)
    frames = [ground.copy() for _ in range(FRAMES)]
    sprite, noun = sprites[rng.integers(len(sprites))]
    side = rng.uniform(0.22, 0.42)
    if kind in ("appear", "vanish"):
        at = int(rng.integers(2, 6))
        shown = range(at, FRAMES) if kind == "appear" else range(at)
        paste(frames, sprite, track(rng, None), rng.uniform(0.3, 0.5), shown)
        verb = "appears" if kind == "appear" else "goes away"
        facts = {"captions": [f"{a(noun)} {verb}", f"{a(noun)} {'comes into view' if kind == 'appear' else 'vanishes'}"],
                 "questions": [("what appears?" if kind == "appear" else "what goes away?", noun)]}  # fmt: skip
        return stacked(frames), {"kind": kind, "nouns": [noun], **facts}
    way = str(rng.choice(list(WAYS)))
    paste(frames, sprite, track(rng, way), side, range(FRAMES))
    if kind == "move":
        facts = {
            "captions": [
                f"{a(noun)} moves {FROM[way]}",
                f"{a(noun)} moving {FROM[way]}",
                f"{a(noun)} goes {FROM[way]}",
            ],
            "questions": [
                ("which way does it move?", way),
                (f"which way does the {noun} go?", way),
                ("what is moving?", noun),
            ],
        }
        return stacked(frames), {"kind": kind, "nouns": [noun], "ways": [way], **facts}
    other, second = sprites[rng.integers(len(sprites))]
    while second == noun:
        other, second = sprites[rng.integers(len(sprites))]
    back = {"right": "left", "left": "right", "up": "down", "down": "up"}[way]
    paste(frames, other, track(rng, back), side, range(FRAMES))
    facts = {
        "captions": [
            f"{a(noun)} moves {FROM[way]} and {a(second)} moves {FROM[back]}",
            f"{a(second)} moves {FROM[back]} and {a(noun)} moves {FROM[way]}",
        ],
        "questions": [(f"which way does the {noun} go?", way), (f"which way does the {second} go?", back)],
    }
    return stacked(frames), {"kind": kind, "nouns": [noun, second], "ways": [way, back], **facts}


def panned(rng: np.random.Generator, picture: Image.Image, words: str) -> tuple[np.ndarray, dict[str, Any]]:
    """The camera moves over a photograph."""
    way, share = str(rng.choice(list(WAYS))), rng.uniform(0.55, 0.7)
    dx, dy = WAYS[way]
    at = np.linspace(0, 1 - share, FRAMES)
    at = at if dx + dy > 0 else at[::-1]
    still = rng.uniform(0, 1 - share)
    frames = []
    for place in at:
        left, top = (place, still) if dx else (still, place)
        box = (
            left * picture.width,
            top * picture.height,
            (left + share) * picture.width,
            (top + share) * picture.height,
        )
        frames.append(picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box))
    to = {"right": "to the right", "left": "to the left", "up": "up", "down": "down"}[way]
    facts = {
        "captions": [f"the camera moves {to} over {words}", f"the view moves {to}: {words}"],
        "questions": [("which way does the camera move?", way)],
    }
    return stacked(frames), {"kind": "pan", "nouns": [], "ways": [way], **facts}


def zoomed(rng: np.random.Generator, picture: Image.Image, words: str) -> tuple[np.ndarray, dict[str, Any]]:
    """The camera nears a photograph, or draws back."""
    nearer = bool(rng.random() < 0.5)
    shares = np.linspace(1.0, rng.uniform(0.4, 0.55), FRAMES)
    frames = []
    for share in shares if nearer else shares[::-1]:
        left, top = (1 - share) / 2 * picture.width, (1 - share) / 2 * picture.height
        box = (left, top, left + share * picture.width, top + share * picture.height)
        frames.append(picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box))
    to = "closer to" if nearer else "away from"
    facts = {
        "captions": [f"the camera moves {to} {words}"],
        "questions": [("does the camera move closer or away?", "closer" if nearer else "away")],
    }
    return stacked(frames), {"kind": "zoom", "nouns": [], "ways": ["in" if nearer else "out"], **facts}


def stacked(frames: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(frame) for frame in frames])
