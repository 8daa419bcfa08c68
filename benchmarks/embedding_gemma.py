"""Texts of 18 tokens through EmbeddingGemma and EmbeddingGemma 2, pictures and sounds through the latter, beside
transformers: random weights at published sizes.

    python benchmarks/embedding_gemma.py [--only texts|pictures|sounds] [--rounds 7] [--threads 2]

One text alone and 32 at once, the same ids in each library, without padding; a picture of 42 x 60 patches, which are 280
tokens of a text, and one of 24 x 24, 64 tokens; a sound of 10 seconds, 250 tokens. Vocabularies are cut to 1,000 words,
which changes no time: a row of the table is read for each token. Prints the time of each in each variant, interleaved,
medians of the rounds, how alike its rows are to those of transformers in float32 (random weights have them far apart in
half the precision, in transformers too), and the machine's ceilings.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable

import numpy as np
import torch
import transformers
from bench import ceilings, interleaved_times
from peers import torch_calls

import beyondvl as bvl

TOKENS = 18
# the whole transformer, and what makes sentences of its rows
MODELS = {
    "EmbeddingGemma 2": ("EmbeddingGemma2TextModel", "EmbeddingGemma2TextConfig", {}),
    "EmbeddingGemma 300M": (
        "Gemma3TextModel",
        "Gemma3TextConfig",
        {"hidden_size": 768, "intermediate_size": 1152, "num_hidden_layers": 24, "num_attention_heads": 3,
         "num_key_value_heads": 1, "head_dim": 256, "sliding_window": 512, "use_bidirectional_attention": True},
    ),
}  # fmt: skip


class Rows(torch.nn.Module):
    """A transformer's rows alone."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model(ids).last_hidden_state


def cosines(rows: np.ndarray, exact: np.ndarray) -> float:
    """Mean cosine of rows, (B, T, D) each."""
    norms = np.linalg.norm(rows, axis=-1) * np.linalg.norm(exact, axis=-1)
    return float(((rows * exact).sum(-1) / norms).mean())


def loaded(reference: torch.nn.Module, threads: int) -> dict[str, bvl.PreTrainedModel]:
    """Our models of the same weights, by dtype."""
    with tempfile.TemporaryDirectory() as folder:
        reference.save_pretrained(folder)
        return {
            dtype: bvl.AutoModel.from_pretrained(folder, dtype=dtype, num_threads=threads)
            for dtype in ("float32", "bfloat16", "int8")
        }


def report(title: str, calls: dict[str, Callable[[], np.ndarray]], rounds: int, items: int = 1) -> None:
    """Times and likenesses of calls that make rows of the same `items`."""
    exact = calls["transformers float32"]()
    alike = {variant: cosines(call(), exact) for variant, call in calls.items()}
    times = interleaved_times(calls, rounds)
    best = min(seconds for variant, seconds in times.items() if "beyondvl" not in variant)
    print(title)
    for variant, seconds in times.items():
        print(f"  {variant:24} {1e3 * seconds / items:8.2f} ms an item   {best / seconds:5.2f} times transformers' best   "
              f"cosine {alike[variant]:.6f}")  # fmt: skip


def measure(name: str, batch: int, rounds: int, threads: int) -> None:
    cls, config_cls, sizes = MODELS[name]
    config = getattr(transformers, config_cls)(vocab_size=1000, pad_token_id=0, bos_token_id=1, eos_token_id=2, **sizes)
    torch.manual_seed(0)
    reference = getattr(transformers, cls)(config).eval()
    ids = torch.randint(3, 1000, (batch, TOKENS), generator=torch.Generator().manual_seed(1))
    ours = loaded(reference, threads)
    inputs = {"input_ids": ids.numpy()}

    def our_call(model):
        return lambda: model.run_tower("text", inputs, ["last_hidden_state"])["last_hidden_state"]

    calls = torch_calls(Rows(reference), ids, ("float32", "bfloat16"))
    calls |= {f"beyondvl {dtype}": our_call(model) for dtype, model in ours.items()}
    report(f"{name}, {batch} of {TOKENS} tokens at once", calls, rounds, batch)


class Mixed(torch.nn.Module):
    """The whole model over one picture of `grid` patches, or one sound of `frames`, alone in a text."""

    def __init__(self, model: torch.nn.Module, grid: tuple[int, int] | None, frames: int = 0):
        super().__init__()
        self.model = model
        rows, cols = grid or (0, 0)
        token, count = (7, rows * cols // 9) if grid else (9, -(-frames // 4))
        self.ids = torch.tensor([[1, 3, *[token] * count, 4, 2]])
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
        if grid:
            self.data = torch.rand((1, rows * cols, 768))
            self.beside = {"image_position_ids": torch.stack([x, y], -1).reshape(1, -1, 2)}
        else:
            self.data = torch.randn((1, frames, 128))
            self.beside = {"input_features_mask": torch.ones((1, frames), dtype=torch.bool)}
        self.name = "pixel_values" if grid else "input_features"

    def forward(self, data: torch.Tensor) -> torch.Tensor:
        given = {self.name: data, **self.beside}
        return self.model(input_ids=self.ids, attention_mask=torch.ones_like(self.ids), **given).last_hidden_state


def measure_mixed(
    what: str, grid: tuple[int, int] | None, frames: int, clipped: bool, rounds: int, threads: int
) -> None:
    towers = {"vision_config": {"model_type": "gemma4_vision", "use_clipped_linears": clipped}, "audio_config": None}
    if not grid:
        towers = {"vision_config": None, "audio_config": {"model_type": "gemma4_audio", "use_clipped_linears": clipped}}
    config = transformers.EmbeddingGemma2Config(
        text_config={"vocab_size": 1000}, image_token_id=7, video_token_id=8, audio_token_id=9, **towers
    )
    torch.manual_seed(0)
    reference = transformers.EmbeddingGemma2Model(config).eval()
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if "position_embedding_table" in name:
                parameter.normal_(0, 0.02)
        for name, buffer in reference.named_buffers():
            if name.endswith(("put_min", "put_max")):
                buffer.fill_(-20.0 if name.endswith("min") else 20.0)
    ours = loaded(reference, threads)
    module = Mixed(reference, grid, frames)
    inputs = {"input_ids": module.ids.numpy(), module.name: module.data.numpy()}
    inputs |= {name: value.numpy() for name, value in module.beside.items()}

    def our_call(model):
        return lambda: model(**inputs).last_hidden_state

    calls = torch_calls(module, module.data, ("float32", "bfloat16"))
    calls |= {f"beyondvl {dtype}": our_call(model) for dtype, model in ours.items()}
    report(f"EmbeddingGemma 2, {what}{', clipped' if clipped else ''}", calls, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=("texts", "pictures", "sounds"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for what, grid, frames in (
        ("a picture of 42 x 60 patches", (42, 60), 0),
        ("a picture of 24 x 24 patches", (24, 24), 0),
        ("a sound of 10 seconds", None, 1000),
    ):
        if options.only in (None, "sounds" if frames else "pictures"):
            measure_mixed(what, grid, frames, True, options.rounds, options.threads)
    for name in MODELS if options.only in (None, "texts") else ():
        for batch in (1, 32):
            measure(name, batch, options.rounds, options.threads)
    print({kind: round(value) for kind, value in ceilings(options.threads).items()})


if __name__ == "__main__":
    main()
