"""Frames of clips: which are taken, from what, and what is said when that does not work."""

from __future__ import annotations

import io
import json
import threading
import time
from fractions import Fraction

import clips
import numpy as np
import pytest
import refusals
from PIL import Image

import beyondvl as bvl
from beyondvl.cli import main
from beyondvl.processing import video
from beyondvl.processing.video import Sampling, video_frames

av = pytest.importorskip("av", reason="video files need PyAV: pip install 'beyondvl[video]'")

CODECS = {"mp4": "libx264", "mkv": "libx264", "webm": "libvpx-vp9", "avi": "mpeg4"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for extension, codec in CODECS.items():
        clips.write(folder / f"clip.{extension}", codec=codec)
    return folder


@pytest.mark.parametrize("extension", CODECS)
def test_files(folder, extension):
    path = folder / f"clip.{extension}"
    tolerance = 2.5 if extension == "avi" else 0.8  # of the codec
    for settings, expected in (
        ({}, range(0, 120, 15)),
        ({"num_frames": 120}, range(120)),
        ({"num_frames": 1}, [0]),
        ({"num_frames": 240}, np.arange(240) // 2),
        ({"fps": 1}, [0, 30, 60, 90]),
        ({"fps": 4, "start": 1, "end": 2.5}, [30, 37, 45, 52, 60, 67]),
        ({"num_frames": 3, "start": 3.2}, [96, 104, 112]),
    ):
        for source in (path, str(path), path.read_bytes()):
            frames = bvl.load_video(source, **settings)
            assert frames.shape == (len(expected), 64, 96, 3) and frames.dtype == np.uint8
            np.testing.assert_allclose(clips.places(frames), expected, atol=tolerance)
            assert (frames[:, :6] > 230).all()


def test_the_sampling_is_transformers():
    utils = pytest.importorskip("transformers.video_utils", reason="parity needs transformers")
    for total, count in ((120, 8), (100, 7), (9, 8), (33, 32), (5, 5)):
        expected = utils.default_sample_indices_fn(utils.VideoMetadata(total, fps=30.0), num_frames=count)
        assert Sampling(count).indices(total, 30.0) == expected.tolist()


def test_seeking(tmp_path, monkeypatch):
    """A long clip is not decoded as a whole, and one with few key frames not over and over; what is found is the same."""
    decoded = []

    class Counted(video._Reader):
        """Counts the frames it decodes."""

        def _decode(self, promised):
            before = len(self.decoded)
            more = super()._decode(promised)
            decoded.extend(list(self.decoded)[before:])
            return more

    monkeypatch.setattr(video, "_Reader", Counted)
    path = clips.write(tmp_path / "long.mp4", count=128, rate=4, gop=8)
    np.testing.assert_allclose(clips.places(bvl.load_video(path, num_frames=4)), [0, 32, 64, 96], atol=0.6)
    assert 4 <= len(decoded) < 40
    decoded.clear()
    path = clips.write(tmp_path / "sparse.mp4", count=120, rate=2, gop=1000)
    np.testing.assert_allclose(clips.places(bvl.load_video(path, num_frames=20)), range(0, 120, 6), atol=0.6)
    assert 115 <= len(decoded) < 400
    decoded.clear()
    path = clips.write(tmp_path / "steps.mp4", count=120, rate=30, gop=30)
    np.testing.assert_allclose(clips.places(bvl.load_video(path, fps=2)), range(0, 120, 15), atol=0.6)
    assert 8 <= len(decoded) < 70, "half of the frames come after the last one asked for, many show what nobody sees"


SKIPPED_FRAMES = {
    "b.mp4": ("libx264", {"bf": "3"}),
    "b.ts": ("libx264", {"bf": "3"}),
    "open.mkv": ("libx264", {"bf": "3", "x264-params": "open-gop=1"}),
    "refresh.ts": ("libx264", {"x264-params": "intra-refresh=1"}),
    "hidden.webm": ("libvpx", {"auto-alt-ref": "1", "lag-in-frames": "16"}),
    "b2.mkv": ("mpeg2video", {"bf": "2"}),
    "b.mkv": ("mpeg4", {"bf": "2"}),
    "h265.mp4": ("libx265", {}),
}


@pytest.mark.parametrize("name", SKIPPED_FRAMES)
@pytest.mark.parametrize("lost", [False, True])
def test_what_is_not_decoded_changes_nothing(tmp_path, monkeypatch, name, lost):
    """To the bit what decoding every frame gives; also where a promised frame does not come."""
    codec, options = SKIPPED_FRAMES[name]
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    path = clips.write(tmp_path / name, codec=codec, gop=24, options=options)
    with av.open(str(path)) as container:
        every = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    if lost:
        kept = video._Reader._promised
        monkeypatch.setattr(video._Reader, "_promised", lambda self, limit: (kept(self, limit) or 0) + 1)
    slack = 1e-3
    for settings in ({"fps": 1}, {"fps": 7}, {"num_frames": 120}, {"num_frames": 5, "start": 1.3, "end": 3.1}):
        places = Sampling.of(settings).indices(len(every), 30.0)
        times = [every[0][0] + place / 30 for place in places]
        expected = [max(k for k, (time, _) in enumerate(every) if time <= at + slack) for at in times]
        found = bvl.load_video(path, **settings)
        for frame, k in zip(found, expected, strict=True):
            np.testing.assert_array_equal(frame, every[k][1], err_msg=f"{name} {settings}: frame {k}")


def write_times(path, times, rate=1000, gop=12, sound=0.0, **options):
    """A clip whose frame i begins at times[i] seconds, with so many seconds of sound."""
    with av.open(str(path), "w", options={k: str(v) for k, v in options.items()}) as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 96, 64, "yuv420p", gop
        stream.codec_context.time_base = Fraction(1, rate)
        noise = container.add_stream("pcm_s16le", rate=8000, layout="mono") if sound else None
        for i, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((64, 96, 3), 2 * i, np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(time * rate), Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if noise:
            frame = av.AudioFrame.from_ndarray(np.zeros((1, int(8000 * sound)), np.int16), layout="mono")
            frame.sample_rate = 8000
            container.mux(noise.encode(frame))
            container.mux(noise.encode())
    return path


EVEN = np.arange(100) / 25
TIMES = {
    "sound that goes on": ("a.mkv", EVEN, {"sound": 8.0}, {"num_frames": 4}, [0, 25, 50, 75]),
    "a later start": ("a.mkv", EVEN + 5, {}, {"num_frames": 4}, [0, 25, 50, 75]),
    "no length in the header": ("a.mkv", EVEN, {"live": 1}, {"num_frames": 4}, [0, 25, 50, 75]),
    "packets without an index": ("a.ts", EVEN, {"gop": 50}, {"num_frames": 2, "start": 3.0}, [75, 87]),
    "a picture that stays": ("a.mkv", [0, 0.1, 0.2, 0.3, 4.0, 4.1], {}, {"num_frames": 4}, [0, 3, 3, 3]),
    "frames further and further apart": ("a.mkv", [0, 1, 3, 6, 10], {}, {"num_frames": 4}, [0, 1, 2, 3]),
}


@pytest.mark.parametrize("name", TIMES)
def test_times(tmp_path, name):
    """A frame is shown from its time on until the next one begins."""
    file, times, options, settings, expected = TIMES[name]
    path = write_times(tmp_path / file, times, **options)
    np.testing.assert_allclose(clips.places(bvl.load_video(path, **settings)), expected, atol=1.0)


def test_a_turned_clip(folder, tmp_path):
    """As telephones write them: the header says how to turn the frames."""
    data = bytearray((folder / "clip.mp4").read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    matrix = np.frombuffer(bytes(data[at : at + 36]), ">i4").copy()
    assert matrix[0] == 1 << 16
    turned = np.array([0, 1 << 16, 0, -(1 << 16), 0, 0, *matrix[6:]], ">i4")
    data[at : at + 36] = turned.tobytes()
    (tmp_path / "turned.mp4").write_bytes(data)
    frames = bvl.load_video(tmp_path / "turned.mp4", num_frames=2, start=1)
    assert frames.shape == (2, 96, 64, 3)
    assert (frames[:, :, -6:] > 230).all(), "the matrix turns a quarter to the right: what was up is right"


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_animations(tmp_path, kind):
    """By the time each picture stays: the second one three times as long."""
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    images = [Image.new("RGB", (20, 10), colour) for colour in colours]
    path = tmp_path / f"moving.{kind.lower()}"
    options = {"lossless": True} if kind == "WEBP" else {}
    images[0].save(path, save_all=True, append_images=images[1:], duration=[100, 300, 100], **options)
    for source in (path, path.read_bytes()):
        frames = bvl.load_video(source, fps=10)
        assert [tuple(frame[0, 0]) for frame in frames] == [colours[i] for i in (0, 1, 1, 1, 2)]
    assert bvl.load_video(path, num_frames=3).shape == (3, 10, 20, 3)


def test_frames_in_memory(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 14, 3), dtype=np.uint8)
    expected = pixels[[0, 3, 6, 9]]
    buffer = io.BytesIO()
    Image.fromarray(pixels[0]).save(buffer, "PNG")
    for source in (pixels, list(pixels), pixels.transpose(0, 3, 1, 2), [Image.fromarray(frame) for frame in pixels]):
        assert np.array_equal(bvl.load_video(source, num_frames=4), expected)
    assert np.array_equal(bvl.load_video([buffer.getvalue()], num_frames=1), pixels[:1])
    with pytest.raises(ValueError, match="fps, start, end: given for frames without times"):
        bvl.load_video(pixels, fps=2)
    with pytest.raises(bvl.VideoError, match="frame 2: found 14 x 9 pixels, expected those of the first, 14 x 10"):
        bvl.load_video([pixels[0], pixels[1], pixels[2, 1:]], num_frames=3)
    with pytest.raises(bvl.VideoError, match=r"frame 1: nothing\.jpg: cannot be read"):
        bvl.load_video([pixels[0], "nothing.jpg"], num_frames=2)
    with pytest.raises(bvl.VideoError, match=r"array of shape \(12, 10, 14\)"):
        bvl.load_video(pixels[..., 0])
    with pytest.raises(bvl.VideoError, match="the list of frames is empty"):
        bvl.load_video([])
    with pytest.raises(bvl.VideoError, match="found int, expected a path"):
        bvl.load_video(3)


def bad_files(folder):
    """name -> (contents, what the error says)."""
    whole = (folder / "clip.mkv").read_bytes()
    mp4 = (folder / "clip.mp4").read_bytes()
    audio = io.BytesIO()
    with av.open(audio, "w", format="matroska") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    raw = io.BytesIO()
    with av.open(raw, "w", format="avi") as container:
        stream = container.add_stream("rawvideo", rate=30)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "bgr24"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="bgr24")))
        container.mux(stream.encode())
    huge = bytearray(raw.getvalue())
    at = huge.index(b"strf") + 12
    huge[at : at + 8] = (40000).to_bytes(4, "little") * 2  # a header of 40000 x 40000 pixels
    long = bytearray(whole)
    at = long.index(b"\x44\x89\x88") + 3
    long[at : at + 8] = np.array(1e15, ">f8").tobytes()  # milliseconds
    return {
        "cut.mkv": (whole[: len(whole) // 2], "ends after"),
        "cut.mp4": (mp4[: len(mp4) // 2], "cut.mp4: Invalid data"),
        "empty.mp4": (b"", "empty.mp4: the file is empty"),
        "text.mp4": (b"no clip at all " * 40, "text.mp4: Invalid data"),
        "list.m3u8": (
            b"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\nclip.mp4\n#EXT-X-ENDLIST\n",
            "list.m3u8: not a format among",
        ),
        "script.mp4": (b"ffconcat version 1.0\nfile clip.mp4\n", "not a format among"),
        "sound.mkv": (audio.getvalue(), "sound.mkv: no video stream"),
        "huge.avi": (bytes(huge), "huge.avi: "),
        "long.mkv": (bytes(long), "long.mkv: a length of 1e[+]12 s, expected"),
        "broken.gif": (b"GIF89a" + bytes(30), "broken.gif"),
    }


def test_cut_animations(tmp_path):
    """Whatever Pillow's readers meet, the error is ours."""
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)) for _ in range(4)]
    for kind in ("GIF", "WEBP"):
        buffer = io.BytesIO()
        images[0].save(buffer, kind, save_all=True, append_images=images[1:], duration=100)
        data = buffer.getvalue()
        for end in range(1, len(data), 7):
            try:
                assert bvl.load_video(data[:end]).shape[1:] == (12, 16, 3)
            except bvl.VideoError:
                continue
    bomb = bytearray(b"GIF89a" + bytes(40))
    bomb[6:10] = b"\xff\xff\xff\xff"
    with pytest.raises(bvl.VideoError, match="video bytes: "):
        bvl.load_video(bytes(bomb))


def test_bad_files(folder, tmp_path):
    """Each gives one error that names the file, soon and without memory for what the header promises."""
    start, paths = time.perf_counter(), []
    for name, (data, message) in bad_files(folder).items():
        paths.append(tmp_path / name)
        paths[-1].write_bytes(data)
        with pytest.raises(bvl.VideoError, match=message) as found:
            bvl.load_video(paths[-1])
        assert str(found.value).startswith(str(paths[-1])), found.value
    assert time.perf_counter() - start < 5
    assert refusals.peak_kib("load_video", "VideoError", paths) < 300 * 1024
    with pytest.raises(bvl.VideoError, match=r"nothing.mp4: No such file"):
        bvl.load_video(tmp_path / "nothing.mp4")
    with pytest.raises(bvl.VideoError, match="URLs are not fetched"):
        bvl.load_video("https://example.org/clip.mp4")


def test_bad_settings(folder):
    path = folder / "clip.mp4"
    for settings, message in (
        ({"num_frames": 0}, "num_frames: found 0, expected a whole number from 1 to 4096"),
        ({"fps": 0}, "fps: found 0, expected frames a second"),
        ({"fps": float("nan")}, "fps: found nan"),
        ({"fps": 1e9}, "which takes 4000000000 frames, expected at most 4096"),
        ({"start": -1}, "start: found -1, expected seconds"),
        ({"start": 4}, "start: found 4 s, expected less than the clip's 4 s"),
        ({"start": 2, "end": 1}, "end: found 1, expected seconds above 2"),
        ({"frames": 3}, "found frames, expected some of num_frames, fps, start, end"),
    ):
        with pytest.raises(ValueError, match=message):
            bvl.load_video(path, **settings)


def test_a_clip_that_ends_early_leaves_no_thread(folder, tmp_path):
    """What goes wrong while the model runs beside the decoder is said, and nothing goes on behind it."""
    cut = tmp_path / "cut.mkv"
    whole = (folder / "clip.mkv").read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    model, before = bvl.AutoModel.from_pretrained("beyond-vl-model"), threading.active_count()
    with pytest.raises(bvl.VideoError, match=r"cut\.mkv"):
        model.encode([{"video": cut, "fps": 10}])
    with pytest.raises(ValueError, match="fps"):
        model.encode([{"video": folder / "clip.mp4", "fps": -1}])
    assert threading.active_count() == before
    assert model.encode([{"video": folder / "clip.mkv"}]).shape == (1, 384)


def test_embeddings(folder, capsys):
    """A clip is the mean of its frames' unit embeddings, in any company, at any batch size; of the model that takes
    clips itself its unit vector."""
    whole = bvl.AutoModel.from_pretrained("beyond-vl-model")
    model = bvl.BeyondVLModel.from_pretrained("beyond-vl-model")
    path = str(folder / "clip.mp4")
    item = {"video": path, "num_frames": 5, "end": 2}
    frames = list(video_frames(path, Sampling(5, end=2)))
    expected = model.encode(frames, normalize_embeddings=True, modality="image").mean(0)
    found = model.encode(["a red car", item, frames[0], path], batch_size=2)
    np.testing.assert_allclose(found[1], expected, atol=1e-6)
    np.testing.assert_allclose(whole.encode(item), expected / np.linalg.norm(expected), atol=1e-6)
    assert np.array_equal(found[1], model.encode(item))
    assert np.array_equal(found[2], model.encode(frames[0])) and np.array_equal(
        found[3], model.encode(folder / "clip.mp4")
    )
    assert np.array_equal(found[3], model.encode([path], modality="video")[0])
    assert np.array_equal(model.encode([{"image": frames[0]}])[0], found[2])
    with pytest.raises(ValueError, match="modality: found 'sound', expected one of text, image, video"):
        model.encode([path], modality="sound")
    with pytest.raises(ValueError, match="found frames, expected some of"):
        model.encode([{"video": path, "frames": 3}])
    with pytest.raises(ValueError, match="item: found keys video, expected image alone"):
        model.encode([{"video": path}], modality="image")
    with pytest.raises(ValueError, match="item: found keys image, num_frames, expected image alone"):
        model.encode([{"image": frames[0], "num_frames": 3}])
    assert np.array_equal(model.encode(np.stack(frames), modality="video"), model.encode([np.stack(frames)])[0])
    with pytest.raises(SystemExit):
        main(["embed", path, str(folder / "none.mp4")])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    embedding = np.array(lines[0]["embedding"])
    assert np.abs(embedding - whole.encode(path)).max() < 1e-5 and "none.mp4" in lines[1]["error"]
    assert main(["similarity", str(folder), "--text", "a gray wall", "--json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(CODECS)
