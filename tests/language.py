"""BLIP-2 and InstructBLIP with small language models of each kind, and what the tests of them put in."""

from __future__ import annotations

import itertools

from parity import unit_gain

TOKENS, IMAGE, QUERIES = 30, 180, 5
TABLES = ("embed", "query_tokens", "shared", "relative")
VISION = {"hidden_size": 40, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 5,
          "image_size": 45, "patch_size": 14}  # fmt: skip
QFORMER = {"hidden_size": 36, "num_attention_heads": 3, "num_hidden_layers": 3, "intermediate_size": 50,
           "encoder_hidden_size": 40, "cross_attention_frequency": 2, "hidden_act": "relu", "vocab_size": 300,
           "max_position_embeddings": 40}  # fmt: skip
IDS = {"vocab_size": 190, "bos_token_id": 2, "eos_token_id": 50, "pad_token_id": 1}
# head sizes 12 in OPT, 12 with an inner width that is not the model's in T5, 8 with three heads to one of keys in Llama
TEXT = {
    "opt": {"model_type": "opt", "hidden_size": 48, "ffn_dim": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
            "word_embed_proj_dim": 48, "max_position_embeddings": 64, **IDS},
    "t5": {"model_type": "t5", "d_model": 48, "d_kv": 12, "d_ff": 40, "num_layers": 3, "num_decoder_layers": 2,
           "num_heads": 5, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12,
           "feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu", "tie_word_embeddings": False,
           "decoder_start_token_id": 0, **IDS},
    "llama": {"model_type": "llama", "hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 2,
              "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 64, **IDS},
}  # fmt: skip
CLASSES = {"Blip2": ("opt", "t5", "llama"), "InstructBlip": ("t5", "llama")}
CASES = [(cls, kind) for cls, kinds in CLASSES.items() for kind in kinds]
CLIPS = [("InstructBlipVideo", kind) for kind in ("t5", "llama")]


def build(cls: str, kind: str, seed: int = 0, qformer: dict | None = None, **text):
    """A model of transformers with weights of unit gain, and pixel_values of three pictures."""
    import torch
    import transformers

    torch.manual_seed(seed)
    text = TEXT[kind] | text
    video = cls == "InstructBlipVideo"
    config = getattr(transformers, f"{cls}Config")(
        vision_config=VISION,
        qformer_config=QFORMER | (qformer or {}),
        text_config=text,
        num_query_tokens=QUERIES,
        **{"video_token_index" if video else "image_token_index": IMAGE},
    )
    model = getattr(transformers, f"{cls}ForConditionalGeneration")(config).eval()
    unit_gain(model, gain=1.4, tables=0.4, bias=0.05, table_names=TABLES)
    if kind == "t5":  # which does not scale scores: its queries are small instead
        with torch.no_grad():
            for name, p in model.language_model.named_parameters():
                p.mul_(text["d_kv"] ** -0.5 if name.endswith("Attention.q.weight") else 1.0)
    size = VISION["image_size"]
    return model, torch.randn(3, *([4] if video else []), 3, size, size)


def prompts(cls: str):
    """Placeholders, then [bos] and words; the second prompt is padded on the left, as transformers asks for. InstructBLIP
    reads instructions in another vocabulary too, the third one padded on the right."""
    import torch

    rng = torch.Generator().manual_seed(1)
    words = torch.randint(3, 170, (3, 6), generator=rng)
    words[:, 0] = 2
    ids = torch.cat([torch.full((3, QUERIES * (4 if cls == "InstructBlipVideo" else 1)), IMAGE), words], 1)
    mask = torch.ones_like(ids)
    ids[1] = torch.cat([torch.full((2,), 1), ids[1, :-2]])
    mask[1, :2] = 0
    return {"input_ids": ids, "attention_mask": mask, **instructions(cls, rng)}


def instructions(cls: str, rng=None):
    import torch

    if cls == "Blip2":
        return {}
    ids = torch.randint(1, 290, (3, 7), generator=rng or torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[2, 4:] = 0
    return {"qformer_input_ids": ids, "qformer_attention_mask": mask}


def seeing(cls: str, kind: str):
    """(model, pixel_values, greedy ids) of the first seed that tells three pictures apart by clear margins."""
    import torch

    for seed in itertools.count():
        assert seed < 60, "no seed tells three pictures apart"
        model, pixels = build(cls, kind, seed)
        with torch.no_grad():
            found = model.generate(
                pixel_values=pixels,
                **instructions(cls),
                max_new_tokens=TOKENS,
                return_dict_in_generate=True,
                output_logits=True,
            )
        clear = min(float(torch.topk(step, 2).values.diff().abs().min()) for step in found.logits) > 1e-3
        words = found.sequences.tolist()
        if clear and len({tuple(row) for row in words}) == 3 and all(len(set(row)) > 3 for row in words):
            return model, pixels, found.sequences.numpy()
    return None
