"""What one call of each tower does, phase by phase, for small configs of every kind of family: tests/plans.json holds it.

python tests/test_plans.py   writes that file anew
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest

import beyondvl as bvl
from beyondvl.cli import main
from models import TINY_CLIP, write

GOLDEN = Path(__file__).with_name("plans.json")
SIZES = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3}
TEXT = SIZES | {"vocab_size": 60, "max_position_embeddings": 20}
VISION = SIZES | {"image_size": 48, "patch_size": 8}
LLAMA = SIZES | {
    "model_type": "llama",
    "vocab_size": 60,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS = {
    "clip": TINY_CLIP,
    "siglip": {"model_type": "siglip", "text_config": TEXT, "vision_config": VISION},
    "siglip2": {"model_type": "siglip2", "text_config": TEXT, "vision_config": SIZES | {"patch_size": 8, "num_patches": 16}},
    "bert": {"model_type": "bert", **TEXT, "type_vocab_size": 2},
    "dinov3": {"model_type": "dinov3_vit", **VISION, "num_register_tokens": 4, "hidden_size": 48},
    "gemma3": {"model_type": "gemma3_text", **TEXT, "num_key_value_heads": 1, "head_dim": 16, "sliding_window": 8},
    "blip": {"model_type": "blip", "architectures": ["BlipForConditionalGeneration"], "text_config": TEXT | {"encoder_hidden_size": 48},
             "vision_config": VISION},
    "idefics3": {"model_type": "idefics3", "architectures": ["Idefics3ForConditionalGeneration"], "text_config": LLAMA,
                 "vision_config": VISION, "scale_factor": 2, "image_token_id": 5},
    "whisper": {"model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"], "d_model": 48, "encoder_layers": 2,
                "decoder_layers": 2, "encoder_attention_heads": 3, "decoder_attention_heads": 3, "encoder_ffn_dim": 96,
                "decoder_ffn_dim": 96, "vocab_size": 60, "max_source_positions": 30, "max_target_positions": 20,
                "num_mel_bins": 16, "decoder_start_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "bos_token_id": 2},
}  # fmt: skip


def plans(name: str, folder: Path, dtype: str = "float32") -> dict[str, list[str]]:
    write(folder, CONFIGS[name])
    model = bvl.AutoModel.from_pretrained(folder, dtype=dtype, num_threads=2)
    return {tower: model.tower(tower).plan(2) for tower in model.towers}


@pytest.mark.parametrize("name", CONFIGS)
def test_plans(name, tmp_path):
    """As they were written down; they are the same in every precision, and to plan changes nothing."""
    golden = json.loads(GOLDEN.read_text())
    assert golden.keys() == CONFIGS.keys()
    for dtype in ("float32", "int8"):
        assert plans(name, tmp_path / dtype, dtype) == golden[name]


def test_to_plan_computes_nothing(tmp_path):
    write(tmp_path, CONFIGS["idefics3"])
    model = bvl.AutoModel.from_pretrained(tmp_path)
    from beyondvl import _C

    program = model.tower("decoder").program
    cache, ids = _C.Cache(program, 1, 4), np.array([[3, 4]])
    for _ in range(5):  # a plan takes no place in a cache
        assert program.plan({"input_ids": ids, "cache": cache}, ["next_logits"], 1)[0].startswith("embed_tokens")
    rows = program.run({"input_ids": ids, "cache": cache}, ["next_logits"], 1)["next_logits"]
    np.testing.assert_array_equal(rows, program.run({"input_ids": ids}, ["next_logits"], 1)["next_logits"])
    with pytest.raises(ValueError, match="100, expected 0 to 59"):
        program.plan({"input_ids": np.array([[100]])}, ["next_logits"], 1)
    with pytest.raises(ValueError, match="output 'nothing'"):
        program.plan({"input_ids": ids}, ["nothing"], 1)


def test_the_command(tmp_path, capsys):
    """`beyondvl info --plan`: phases that come again once, with their number."""
    write(tmp_path, CONFIGS["clip"])
    assert main(["info", str(tmp_path), "--plan", "--json"]) in (0, None)
    said = json.loads(capsys.readouterr().out)["text"]["plan"]
    assert said[0] == "embed_tokens -> hidden" and any("one row an item goes on" in line for line in said)
    assert main(["info", "beyond-vl-model", "--plan", "--json"]) in (0, None)
    facts = json.loads(capsys.readouterr().out)
    assert "6 times:" in facts["text"]["plan"] or "5 times:" in facts["text"]["plan"]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        made = {name: plans(name, Path(place) / name) for name in CONFIGS}
    GOLDEN.write_text(json.dumps(made, indent=1) + "\n")
