"""What one call of each tower does, phase by phase, for small configs of every kind of family: tests/plans.json holds it.

python tests/test_plans.py   writes that file anew
"""

from __future__ import annotations

import json
from pathlib import Path

import language
import numpy as np
import pytest

import beyondvl as bvl
from beyondvl.cli import main
from beyondvl.compile import compile_encoder
from beyondvl.config import Config
from beyondvl.families.registry import families, find_family
from beyondvl.models.classes import class_for
from beyondvl.models.tower import Tower, plans
from beyondvl.reader import Reader
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
CLAP = {"spec_size": 64, "num_mel_bins": 16, "patch_embeds_hidden_size": 24, "depths": [2, 1], "num_attention_heads": [2, 4],
        "window_size": 4, "hidden_size": 48}  # fmt: skip
GEMMA = {
    "model_type": "embedding_gemma2", "image_token_id": 7, "video_token_id": 8, "audio_token_id": 9,
    "text_config": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_key_value_heads": 2, "head_dim": 16,
                    "hidden_size_per_layer_input": 24, "embedding_dim": 40, "sliding_window": 30, "sliding_window_pattern": 3,
                    "global_head_dim": 32, "num_global_key_value_heads": 1, "vocab_size": 60},
    "vision_config": {"model_type": "gemma4_vision", "hidden_size": 60, "intermediate_size": 88, "num_hidden_layers": 2,
                      "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 20, "position_embedding_size": 300},
    "audio_config": {"model_type": "gemma4_audio", "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3,
                     "subsampling_conv_channels": [128, 6], "output_proj_dims": 40, "use_clipped_linears": False},
}  # fmt: skip
OPEN = {"embed_dim": 48, "text_cfg": {"context_length": 16, "vocab_size": 60, "width": 64, "heads": 2, "layers": 2}}
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
    "chinese_clip": {"model_type": "chinese_clip", "text_config": TEXT | {"type_vocab_size": 2}, "vision_config": VISION},
    "metaclip_2": {"model_type": "metaclip_2", "text_config": TEXT | {"eos_token_id": 2}, "vision_config": VISION},
    "roberta": {"model_type": "roberta", **TEXT, "type_vocab_size": 1, "pad_token_id": 1},
    "dinov2": {"model_type": "dinov2", **VISION},
    "dinov2_with_registers": {"model_type": "dinov2_with_registers", **VISION, "num_register_tokens": 4},
    "efficientnet_lite": {"model_type": "efficientnet_lite", "variant": "efficientnet-lite0", "image_size": 64, "num_labels": 5},
    "audio-spectrogram-transformer": {"model_type": "audio-spectrogram-transformer", "architectures": ["ASTForAudioClassification"],
                                      **SIZES, "num_mel_bins": 16, "max_length": 40, "patch_size": 8},
    "clap": {"model_type": "clap", "text_config": TEXT | {"type_vocab_size": 1}, "projection_dim": 32, "audio_config": CLAP},
    "clap, fused": {"model_type": "clap", "text_config": TEXT | {"type_vocab_size": 1}, "projection_dim": 32,
                    "audio_config": CLAP | {"enable_fusion": True}},
    "flava": {"model_type": "flava", "architectures": ["FlavaModel"], "text_config": TEXT, "image_config": VISION,
              "multimodal_config": SIZES, "projection_dim": 32},
    "xclip": {"model_type": "xclip", "architectures": ["XCLIPModel"], "text_config": TEXT, "projection_dim": 48, "prompt_layers": 1, "prompt_num_attention_heads": 3,
              "vision_config": VISION | {"num_frames": 2, "mit_hidden_size": 48, "mit_num_attention_heads": 3,
                                         "mit_intermediate_size": 96}},
    "colmodernvbert": {"model_type": "colmodernvbert", "architectures": ["ColModernVBertForRetrieval"], "embedding_dim": 24,
                       "vlm_config": {"text_config": SIZES | {"vocab_size": 60, "local_attention": 8}, "vision_config": VISION,
                                      "pixel_shuffle_factor": 2, "image_token_id": 5}},
    "modernbert": {"model_type": "modernbert", **SIZES, "vocab_size": 60, "local_attention": 8},
    "embedding_gemma2": GEMMA,
    "open_clip": {"model_type": "open_clip", "model_cfg": OPEN | {"vision_cfg": {"image_size": 48, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32}}},
    "open_clip MobileCLIP": {"model_type": "open_clip", "model_cfg": OPEN | {"vision_cfg": {"timm_model_name": "fastvit_mci0",
                             "timm_pool": "avg", "timm_proj": None, "image_size": 64}}},
    "open_clip PE-Core": {"model_type": "open_clip", "model_cfg": OPEN | {"vision_cfg": {"timm_model_name": "vit_pe_core_tiny_patch16_384",
                          "timm_pool": "map", "timm_proj": None, "image_size": 384}}},
    "beyond_vl": {"model_type": "beyond_vl", "architectures": ["BeyondVLModel"], "hidden_size": 48, "projection_dim": 32},
    **{f"blip-2 {kind}": {"model_type": "blip-2", "architectures": ["Blip2ForConditionalGeneration"], "vision_config": language.VISION,
                          "qformer_config": language.QFORMER, "text_config": text, "num_query_tokens": language.QUERIES,
                          "image_token_index": language.IMAGE} for kind, text in language.TEXT.items()},
    "blip-2 retrieval": {"model_type": "blip-2", "architectures": ["Blip2ForImageTextRetrieval"], "vision_config": language.VISION,
                         "qformer_config": language.QFORMER | {"use_qformer_text_input": True},
                         "num_query_tokens": language.QUERIES, "image_text_hidden_size": 32},
    "instructblip": {"model_type": "instructblip", "architectures": ["InstructBlipForConditionalGeneration"],
                     "vision_config": language.VISION, "qformer_config": language.QFORMER, "text_config": language.TEXT["llama"],
                     "num_query_tokens": language.QUERIES, "image_token_index": language.IMAGE},
}  # fmt: skip


class Ones:
    """A checkpoint that has whatever it is asked for."""

    def __contains__(self, name: str) -> bool:
        return True

    def read(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        return np.ones(shape, np.float32)


def planned(name: str, dtype: str = "float32") -> dict[str, list[str]]:
    config, reader = Config(CONFIGS[name]), Reader(Ones())
    encoders = class_for(config, find_family(config)).encoders(config)
    towers = {
        name: Tower(encoder, compile_encoder(encoder, reader, 2, "own", dtype)) for name, encoder in encoders.items()
    }
    return plans(towers, 2)


def test_every_family_has_one():
    assert {find_family(Config(config)) for config in CONFIGS.values()} == set(families().values())


@pytest.mark.parametrize("name", CONFIGS)
def test_plans(name):
    """As they were written down; they are the same in every precision, and to plan changes nothing."""
    golden = json.loads(GOLDEN.read_text())
    assert golden.keys() == CONFIGS.keys()
    for dtype in ("float32", "int8"):
        assert planned(name, dtype) == golden[name]


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
    GOLDEN.write_text(json.dumps({name: planned(name) for name in CONFIGS}, indent=1) + "\n")
