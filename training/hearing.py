"""Step 2 of the recipe: what whisper-tiny's encoder makes of sounds: real ones, and captions spoken by espeak-ng.

    python training/hearing.py --data shared/data --work training/work

Writes WORK/<set>.npy, float16 [rows, 5 * 384] (the states after the stem and after each block, four positions to a row:
12.5 a second), and WORK/<set>.json: of each sound where its rows begin, what is said or heard, and what made it. Sounds
are worked on in windows of ten seconds; rows of silence that fills a window up are left out.

ESC-10: every clip as it is and in versions (moved, cut, louder, with noise), by fold. Speech is synthetic: captions of
Flickr8k's photographs in espeak-ng's voices at several speeds and pitches, with noise; the voices in UNHEARD speak the
photographs that are chosen and reported on, and no others.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import whisper_tiny
from splits import Archive, esc10, flickr8k
from words import captions

from beyondvl.compile import compile_encoder
from beyondvl.config import Config
from beyondvl.families.beyond_vl import BeyondVLFeatureExtractor
from beyondvl.families.whisper import audio
from beyondvl.models.tower import Tower
from beyondvl.reader import Reader
from beyondvl.spec import replace
from beyondvl.weights import open_checkpoint

RATE, POOLING, POSITIONS = 16_000, 4, 500
ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-029", "en-gb-x-gbclan")
TIMBRES = ("", "+m1", "+m2", "+m3", "+m4", "+m5", "+f1", "+f2", "+f3", "+klatt2", "+Andy", "+Annie")
UNHEARD = ("en-gb-x-rp+f4", "en-gb-x-gbcwmd+m7", "en-gb-x-rp+m6", "en-gb-x-gbcwmd+f5")


def ears(folder: Path) -> Tower:
    """whisper-tiny's encoder over windows of ten seconds."""
    if not (folder / "model.safetensors").exists():
        folder.mkdir(parents=True, exist_ok=True)
        whisper_tiny.write(folder)
    values = json.loads((folder / "config.json").read_text())
    encoder = replace(audio(Config(values)), context=None)
    stem = encoder.stem
    size = (2 * POSITIONS, stem.size[1])
    position = replace(stem.position, shape=(POSITIONS, 384), rows=(0, POSITIONS), packed_rows=1500)
    stem = replace(stem, size=size, position=position, source=replace(stem.source, size=(size[0], 80)))
    encoder = replace(encoder, stem=stem)
    return Tower(encoder, compile_encoder(encoder, Reader(open_checkpoint(folder)), 2, precision="bfloat16"))


def spoken(text: str, voice: str, speed: int, pitch: int) -> np.ndarray:
    """Samples at RATE of a text in a voice of espeak-ng."""
    command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", text]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    samples, rate = soundfile.read(io.BytesIO(done.stdout), dtype="float32")
    return soxr.resample(samples, rate, RATE)


def disturbed(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same at another loudness, with noise of some colour, after a moment of silence."""
    samples = np.pad(samples, (int(rng.uniform(0, 0.4) * RATE), int(rng.uniform(0, 0.3) * RATE)))
    noise = rng.normal(size=len(samples)).astype(np.float32)
    if rng.random() < 0.5:  # redder
        noise = np.convolve(noise, np.ones(8, np.float32) / 8, "same")
    loud, quiet = np.sqrt((samples**2).mean()) + 1e-9, np.sqrt((noise**2).mean()) + 1e-9
    samples = samples + noise * loud / quiet * 10 ** (-rng.uniform(8, 40) / 20)
    return (samples * 10 ** (rng.uniform(-12, 3) / 20)).clip(-1, 1).astype(np.float32)


def version(samples: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    """A real sound as it is, or moved, cut, slower or faster, disturbed."""
    if number == 0:
        return samples
    samples = np.roll(samples, int(rng.integers(len(samples))))
    samples = samples[: int(len(samples) * rng.uniform(0.5, 1.0))]
    samples = soxr.resample(samples, RATE, RATE * rng.uniform(0.85, 1.18))
    return disturbed(samples, rng)


def write_rows(path: Path, sounds: Iterable[tuple[np.ndarray, dict[str, Any]]], tower: Tower, batch: int = 16) -> None:
    """The rows of all sounds, one after another, and what is known of each."""
    extract = BeyondVLFeatureExtractor()
    parts, known, at = [], [], 0

    def run(waiting: list[tuple[np.ndarray, dict[str, Any]]]) -> None:
        nonlocal at
        made = extract([samples[: 10 * RATE] for samples, _ in waiting], sampling_rate=RATE, return_tensors="np")
        layers = tower.run({"input_features": made["input_features"]}, list(tower.states), 2)
        rows = np.concatenate(list(layers.values()), 2)
        rows = rows.reshape(len(rows), -1, POOLING, rows.shape[2]).mean(2)
        kept = made["feature_attention_mask"].reshape(*rows.shape[:2], -1).any(2)
        for one, mask, (_, facts) in zip(rows, kept, waiting, strict=True):
            parts.append(one[mask].astype(np.float16))
            known.append(facts | {"first": at, "rows": int(mask.sum())})
            at += int(mask.sum())

    waiting: list[tuple[np.ndarray, dict[str, Any]]] = []
    for sound in sounds:
        waiting.append(sound)
        if len(waiting) == batch:
            run(waiting)
            waiting = []
            if len(known) % (64 * batch) == 0:
                print(path.stem, len(known), flush=True)
    if waiting:
        run(waiting)
    np.save(path, np.concatenate(parts))
    path.with_suffix(".json").write_text(json.dumps(known))


def real_sounds(data: Path, versions: int) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    with Archive(data / "esc10.tar") as archive:
        for fold, part in esc10(archive).items():
            for at, (file, name) in enumerate(zip(part.files, part.words, strict=True)):
                samples, _ = soundfile.read(io.BytesIO(archive.read(file)), dtype="float32")
                for number in range(versions):
                    made = version(samples, number, np.random.default_rng([fold, at, number]))
                    yield made, {"class": name, "fold": fold, "version": number}


def photographs_words(data: Path, part: str) -> Sequence[Sequence[str]]:
    """Captions of each photograph of a part."""
    with Archive(data / "flickr8k.tar") as archive:
        return flickr8k(archive)[part].words


def speech(words: Sequence[Sequence[str]], part: str, captions: range) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """Some captions of each photograph of a part, each in one voice."""

    def said(task: tuple[int, int]) -> tuple[np.ndarray, dict[str, Any]]:
        photograph, number = task
        rng = np.random.default_rng([photograph, number])
        text = words[photograph][number].rstrip(" .")
        voice = UNHEARD[rng.integers(len(UNHEARD))]
        if part == "train":
            voice = ACCENTS[rng.integers(len(ACCENTS))] + TIMBRES[rng.integers(len(TIMBRES))]
        samples = spoken(text, voice, int(rng.integers(130, 200)), int(rng.integers(30, 70)))
        facts = {"photograph": photograph, "caption": number, "text": text, "voice": voice}
        return disturbed(samples, rng), facts

    tasks = [(photograph, number) for photograph in range(len(words)) for number in captions]
    with ThreadPoolExecutor(2) as pool:
        for start in range(0, len(tasks), 256):
            yield from pool.map(said, tasks[start : start + 256])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--versions", type=int, default=16)
    parser.add_argument("--captions", type=int, default=3, help="spoken captions of each photograph of training")
    parser.add_argument(
        "--open", action="store_true", help="speak captions of COCO, every eighth, and none of Flickr8k"
    )
    options = parser.parse_args()
    tower = ears(options.work / "ears")
    sets = {"esc10": lambda: real_sounds(options.data, options.versions)}
    if options.open:
        free = [[text] for text in captions(options.data, "coco-val2017")[::8]]
        sets["speech-train"] = lambda: speech(free, "train", range(1))
    else:
        for part, count in (("choose", 1), ("report", 1), ("train", options.captions)):
            words = photographs_words(options.data, part)
            sets[f"speech-{part}"] = partial(speech, words, part, range(count))
    for name, sounds in sets.items():
        if not (options.work / f"{name}.json").exists():
            write_rows(options.work / f"{name}.npy", sounds(), tower)


if __name__ == "__main__":
    main()
