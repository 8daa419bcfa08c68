"""Embedding a minute of 720p video at one frame a second, beside loops that only decode.

    python benchmarks/video.py [--seconds 60] [--dtype fastest]

The clip is written first: photographs of examples/ under a slow pan, H.264, a key frame every two seconds. The shipped default
embeds it. One loop decodes every frame with PyAV, on all processors, and turns one a second into an RGB array; the other is
our own reader, which decodes no more than it must.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

RATE, SIZE = 25, (1280, 720)


def write(path: Path, seconds: int) -> None:
    import av

    import beyondvl as bvl

    photos = sorted((Path(__file__).parent.parent / "examples").rglob("*.jpg"))
    pictures = [np.tile(bvl.load_image(photo), (4, 8, 1))[: 2 * SIZE[1], : 3 * SIZE[0]] for photo in photos]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"preset": "veryfast"})
        stream.width, stream.height = SIZE
        stream.pix_fmt, stream.gop_size = "yuv420p", 2 * RATE
        for i in range(seconds * RATE):
            picture = pictures[i // (3 * RATE) % len(pictures)]
            x = i * 4 % max(1, picture.shape[1] - SIZE[0])
            frame = np.ascontiguousarray(picture[: SIZE[1], x : x + SIZE[0]])
            frame = np.pad(frame, [(0, SIZE[1] - frame.shape[0]), (0, SIZE[0] - frame.shape[1]), (0, 0)])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def every_frame(path: Path) -> int:
    import av

    taken = 0
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            if frame.time >= taken:
                frame.to_ndarray(format="rgb24")
                taken += 1
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--dtype", default="fastest")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    import beyondvl as bvl
    from beyondvl.processing.video import Sampling, video_frames

    model = bvl.AutoModel.from_pretrained("beyond-vl-model", dtype=options.dtype)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write(path, options.seconds)
        loops = {
            "PyAV": lambda: every_frame(path),
            "decode": lambda: sum(1 for _ in video_frames(path, Sampling(fps=1))),
            "embed": lambda: model.encode([{"video": path, "fps": 1}]),
        }
        times: dict[str, list[float]] = {name: [] for name in loops}
        for _ in range(options.rounds + 1):
            for name, loop in loops.items():
                start = time.perf_counter()
                loop()
                times[name].append(time.perf_counter() - start)
    medians = {name: float(np.median(values[1:])) for name, values in times.items()}
    print(
        {name: f"{1e3 * value:.0f} ms" for name, value in medians.items()},
        f"{medians['embed'] / medians['PyAV']:.2f} x PyAV, {medians['embed'] / medians['decode']:.2f} x decode",
    )


if __name__ == "__main__":
    main()
