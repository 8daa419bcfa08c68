"""BLIP checkpoints with random weights that see: three pictures give three texts, and a prompt changes them."""

from __future__ import annotations

from parity import unit_gain

TEXT = {"hidden_size": 64, "encoder_hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "vocab_size": 300, "bos_token_id": 298, "sep_token_id": 102, "pad_token_id": 0,
        "max_position_embeddings": 64}  # fmt: skip
VISION = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
          "image_size": 48, "patch_size": 16}  # fmt: skip

# name -> changes of the text and the vision section
ROWS = {
    "base widths": ({"hidden_size": 768, "encoder_hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
                    {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "image_size": 96}),
    "head sizes 72 and 88": ({"hidden_size": 72, "encoder_hidden_size": 88, "num_attention_heads": 1},
                             {"hidden_size": 88, "num_attention_heads": 1, "image_size": 45, "patch_size": 14}),
    "head size 12": ({"hidden_size": 48, "encoder_hidden_size": 48, "hidden_act": "relu"},
                     {"hidden_size": 48, "num_attention_heads": 3}),
}  # fmt: skip
FULL = ({"hidden_size": 768, "encoder_hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12,
         "num_hidden_layers": 12, "vocab_size": 30524, "bos_token_id": 30522, "max_position_embeddings": 512},
        {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12,
         "image_size": 384})  # fmt: skip


def build(cls: str, text: dict, vision: dict, seed: int = 0):
    """A model of transformers with weights of unit gain, and pixel_values of three pictures."""
    import torch
    import transformers

    torch.manual_seed(seed)
    text, vision = TEXT | text, VISION | vision
    if cls == "BlipForQuestionAnswering":  # its decoder attends to the question
        vision["hidden_size"], vision["num_attention_heads"] = text["hidden_size"], text["num_attention_heads"]
    config = transformers.BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=40)
    model = getattr(transformers, cls)(config).eval()
    unit_gain(model, gain=1.6, tables=0.6, bias=0.1)
    size = vision["image_size"]
    return model, torch.randn(3, 3, size, size)


def prompts(vocab: int):
    """Three prompts [CLS] ... [SEP], the second one shorter and padded; ids and mask."""
    import torch

    ids = torch.randint(110, min(vocab, 290), (3, 6), generator=torch.Generator().manual_seed(3))
    ids[:, 0], ids[:, -1] = 101, 102
    mask = torch.ones_like(ids)
    ids[1, 3], ids[1, 4:], mask[1, 4:] = 102, 0, 0
    return ids, mask


def generated(model, **inputs):
    """Token ids, and whether every step was decided by more than 1e-3."""
    import torch

    with torch.no_grad():
        found = model.generate(**inputs, return_dict_in_generate=True, output_logits=True)
    margins = [torch.topk(step, 2).values.diff().abs().min() for step in found.logits]
    return found.sequences.numpy(), float(min(margins)) > 1e-3


def seeing(cls: str, text: dict, vision: dict, seeds: int = 20, **generation):
    """(model, pixel_values, greedy ids) of the first seed whose model tells three pictures apart, with clear margins."""
    for seed in range(seeds):
        model, pixels = build(cls, text, vision, seed)
        inputs = {"pixel_values": pixels}
        if cls == "BlipForQuestionAnswering":
            inputs["input_ids"], inputs["attention_mask"] = prompts(TEXT["vocab_size"])
        ids, clear = generated(model, **inputs, **generation)
        if clear and len({tuple(row) for row in ids}) == 3:
            return model, pixels, ids
    raise AssertionError(f"{cls}: no seed of {seeds} gives three texts with clear margins")
