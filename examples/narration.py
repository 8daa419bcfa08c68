"""Narration: what a clip shows and what is heard in it, from its pictures and its sound.

python examples/narration.py [CLIP ...]      files with pictures, and sound where they have it
"""

import sys
from pathlib import Path

import numpy as np

import beyondvl as bvl

HERE = Path(__file__).parent


def pan(path: Path, frames: int = 8, share: float = 0.6) -> np.ndarray:
    """(frames, side, side, 3): the camera moves over a photograph, from left to right."""
    picture = np.asarray(bvl.load_image(str(path)))
    side = int(share * min(picture.shape[:2]))
    top, room = (picture.shape[0] - side) // 2, picture.shape[1] - side
    lefts = np.linspace(0, room, frames).astype(int)
    return np.stack([picture[top : top + side, left : left + side] for left in lefts])


def main(clips: list[str]) -> None:
    model = bvl.AutoModel.from_pretrained("beyond-vl-model")
    for clip in clips:
        print(f"{Path(clip).name}: {model.narrate(clip, max_new_tokens=30)}")
    if not clips:
        frames, sound = pan(HERE / "photos" / "rocket.jpg"), bvl.load_audio(str(HERE / "sounds" / "query.flac"), 16_000)
        print("pictures alone:", model.narrate(frames, max_new_tokens=30))
        print("with its sound:", model.narrate({"video": frames, "audio": (sound, 16_000)}, max_new_tokens=30))


if __name__ == "__main__":
    main(sys.argv[1:])
