"""One row per family and configuration: how to make the reference model, and which of its outputs we must equal.

Configurations keep the real widths with two layers, odd ones (head sizes 16, 72, 80, 88, odd picture sizes, both
end-of-text rules), and once each the full depth. Weights are random, rescaled until the reference tells inputs apart.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Row:
    name: str
    cls: str  # of transformers
    config: str
    values: dict = field(default_factory=dict)
    text: dict | None = None  # None: no text tower
    vision: dict | None = None
    full: bool = False  # real depth, run at the best level only
    vocab: int = 1000
    legacy_eos: bool = False


def clip(name, text=None, vision=None, **kwargs) -> Row:
    base = {"num_hidden_layers": 2, "vocab_size": 1000, "eos_token_id": 999, "bos_token_id": 998}
    return Row(name, "CLIPModel", "CLIPConfig", text=base | (text or {}),
               vision={"num_hidden_layers": 2} | (vision or {}), **kwargs)  # fmt: skip


def siglip(name, text=None, vision=None, **kwargs) -> Row:
    return Row(name, "SiglipModel", "SiglipConfig", text={"num_hidden_layers": 2, "vocab_size": 1000} | (text or {}),
               vision={"num_hidden_layers": 2} | (vision or {}), **kwargs)  # fmt: skip


def chinese_clip(name, text=None, vision=None, **kwargs) -> Row:
    return Row(name, "ChineseCLIPModel", "ChineseCLIPConfig",
               text={"num_hidden_layers": 2, "vocab_size": 1000} | (text or {}),
               vision={"num_hidden_layers": 2, "patch_size": 16} | (vision or {}), **kwargs)  # fmt: skip


def heads(hidden: int, count: int, inner: int, layers: int = 2) -> dict:
    return {"hidden_size": hidden, "num_attention_heads": count, "intermediate_size": inner,
            "num_hidden_layers": layers}  # fmt: skip


ROWS = [
    clip("clip ViT-B/32"),
    clip("clip ViT-L/14", text=heads(768, 12, 3072), vision=heads(1024, 16, 4096) | {"patch_size": 14},
         values={"projection_dim": 768}),
    clip("clip gelu, head size 80", vision=heads(160, 2, 320) | {"hidden_act": "gelu", "patch_size": 14},
         text=heads(80, 5, 99) | {"hidden_act": "gelu"}, values={"projection_dim": 48}),
    clip("clip head size 88, odd picture", vision=heads(88, 1, 170) | {"image_size": 45, "patch_size": 14},
         text=heads(88, 1, 50), values={"projection_dim": 17}),
    clip("clip head size 104", vision=heads(208, 2, 300) | {"patch_size": 56}, text=heads(104, 1, 120)),
    clip("clip legacy end of text", text=heads(64, 4, 128) | {"eos_token_id": 2}, vision=heads(64, 4, 128),
         legacy_eos=True),
    clip("clip ViT-B/32, full depth", text={"num_hidden_layers": 12}, vision={"num_hidden_layers": 12}, full=True),
    siglip("siglip base/16", vision={"patch_size": 16}),
    siglip("siglip so400m/14, head size 72", text=heads(1152, 16, 4304),
           vision=heads(1152, 16, 4304) | {"patch_size": 14, "image_size": 70}),
    siglip("siglip odd", text=heads(48, 3, 64) | {"max_position_embeddings": 16, "projection_size": 80},
           vision=heads(80, 5, 90) | {"patch_size": 7, "image_size": 50}),
    siglip("siglip base/16, full depth", text={"num_hidden_layers": 12}, vision={"num_hidden_layers": 12}, full=True),
    chinese_clip("chinese_clip base/16"),
    chinese_clip("chinese_clip odd", text=heads(72, 1, 100), vision=heads(48, 3, 60) | {"image_size": 33}),
    chinese_clip("chinese_clip full depth", text={"num_hidden_layers": 12}, vision={"num_hidden_layers": 12},
                 full=True),
    Row("siglip2", "Siglip2Model", "Siglip2Config", text={"num_hidden_layers": 2, "vocab_size": 1000},
        vision={"num_hidden_layers": 2, "num_patches": 16, "patch_size": 16}),
    Row("siglip2 odd", "Siglip2Model", "Siglip2Config",
        text=heads(48, 3, 64) | {"max_position_embeddings": 16, "projection_size": 80, "vocab_size": 1000},
        vision=heads(80, 5, 90) | {"num_patches": 25, "patch_size": 7}),
    Row("dinov2, scale and positions of another size", "Dinov2Model", "Dinov2Config",
        vision=heads(96, 3, 0, 3) | {"image_size": 70, "layerscale_value": 0.7}),
    Row("dinov2 gated", "Dinov2Model", "Dinov2Config",
        vision=heads(80, 5, 0) | {"image_size": 42, "patch_size": 7, "use_swiglu_ffn": True, "qkv_bias": False}),
    Row("dinov2 base/14", "Dinov2Model", "Dinov2Config", vision={"num_hidden_layers": 2, "image_size": 518}),
    Row("dinov2 with registers", "Dinov2WithRegistersModel", "Dinov2WithRegistersConfig",
        vision=heads(96, 3, 0) | {"image_size": 112, "num_register_tokens": 3}),
    Row("dinov3_vit", "DINOv3ViTModel", "DINOv3ViTConfig",
        vision=heads(96, 3, 160, 3) | {"image_size": 64, "num_register_tokens": 4}),
    Row("dinov3_vit gated, biases", "DINOv3ViTModel", "DINOv3ViTConfig",
        vision=heads(80, 5, 90) | {"patch_size": 7, "use_gated_mlp": True, "hidden_act": "silu", "key_bias": True,
                                   "mlp_bias": False, "proj_bias": False}),
    Row("dinov3_vit small/16, full depth", "DINOv3ViTModel", "DINOv3ViTConfig",
        vision={"num_register_tokens": 4}, full=True),
    Row("metaclip_2", "MetaClip2Model", "MetaClip2Config",
        text=heads(64, 4, 128) | {"vocab_size": 1000, "eos_token_id": 2},
        vision=heads(80, 5, 90) | {"image_size": 45, "patch_size": 14}),
    Row("chinese_clip text tower", "ChineseCLIPTextModel", "ChineseCLIPTextConfig",
        text={"num_hidden_layers": 2, "vocab_size": 1000}),
    Row("chinese_clip vision tower", "ChineseCLIPVisionModel", "ChineseCLIPVisionConfig",
        vision={"num_hidden_layers": 2, "patch_size": 16}),
    Row("siglip2 full depth", "Siglip2Model", "Siglip2Config", text={"vocab_size": 1000},
        vision={"num_patches": 196, "patch_size": 16}, full=True),
    Row("blip", "BlipModel", "BlipConfig", text={"num_hidden_layers": 2, "vocab_size": 1000},
        vision={"num_hidden_layers": 2, "image_size": 96}),
    Row("blip odd", "BlipModel", "BlipConfig",
        text=heads(72, 3, 100) | {"vocab_size": 1000, "encoder_hidden_size": 48},
        vision=heads(48, 4, 60) | {"image_size": 45, "patch_size": 14}, values={"projection_dim": 40}),
    Row("bert base", "BertModel", "BertConfig", text={"num_hidden_layers": 2, "vocab_size": 1000}),
    Row("bert head size 16", "BertModel", "BertConfig",
        text=heads(48, 3, 77) | {"vocab_size": 1000, "max_position_embeddings": 40}),
    Row("bert base, full depth", "BertModel", "BertConfig", text={"vocab_size": 1000}, full=True),
    Row("embedding_gemma2_text", "EmbeddingGemma2TextModel", "EmbeddingGemma2TextConfig",
        text={"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_key_value_heads": 2, "head_dim": 16,
              "hidden_size_per_layer_input": 24, "embedding_dim": 40, "sliding_window": 2, "sliding_window_pattern": 2,
              "global_head_dim": 32, "num_global_key_value_heads": 1, "vocab_size": 1000}),
    Row("embedding_gemma2_text at its widths", "EmbeddingGemma2TextModel", "EmbeddingGemma2TextConfig",
        text={"num_hidden_layers": 12, "vocab_size": 1000}, full=True),
    Row("embedding_gemma2 without its other towers", "EmbeddingGemma2Model", "EmbeddingGemma2Config",
        values={"text_config": {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_key_value_heads": 2,
                                "head_dim": 16, "hidden_size_per_layer_input": 24, "embedding_dim": 40,
                                "sliding_window": 2, "sliding_window_pattern": 2, "global_head_dim": 32,
                                "num_global_key_value_heads": 1, "vocab_size": 1000},
                "vision_config": None, "audio_config": None}, text={"initializer_range": 0.02}),
    Row("gemma3_text, both ways", "Gemma3TextModel", "Gemma3TextConfig",
        text=heads(72, 4, 100, 4) | {"num_key_value_heads": 2, "head_dim": 24, "query_pre_attn_scalar": 20,
                                     "sliding_window": 6, "sliding_window_pattern": 2, "vocab_size": 1000,
                                     "use_bidirectional_attention": True}),
    Row("gemma3_text, one way", "Gemma3TextModel", "Gemma3TextConfig",
        text=heads(64, 2, 96, 3) | {"num_key_value_heads": 1, "head_dim": 32, "sliding_window": 3, "vocab_size": 1000,
                                    "sliding_window_pattern": 3}),
    Row("gemma3_text at EmbeddingGemma's widths", "Gemma3TextModel", "Gemma3TextConfig",
        text=heads(768, 3, 1152, 6) | {"num_key_value_heads": 1, "vocab_size": 1000, "sliding_window": 512,
                                       "use_bidirectional_attention": True}, full=True),
    Row("modernbert", "ModernBertModel", "ModernBertConfig",
        text=heads(72, 3, 100, 5) | {"vocab_size": 1000, "local_attention": 6, "pad_token_id": 0, "bos_token_id": 1,
                                     "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}),
    Row("modernbert, biased", "ModernBertModel", "ModernBertConfig",
        text=heads(48, 2, 77, 4) | {"vocab_size": 1000, "local_attention": 4, "pad_token_id": 0, "bos_token_id": 1,
                                    "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2, "norm_bias": True,
                                    "attention_bias": True, "mlp_bias": True, "hidden_activation": "gelu_pytorch_tanh"}),
    Row("modernbert base", "ModernBertModel", "ModernBertConfig",
        text={"vocab_size": 1000, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1,
              "sep_token_id": 2, "local_attention": 16}, full=True),
    Row("roberta", "RobertaModel", "RobertaConfig",
        text=heads(48, 3, 77) | {"vocab_size": 1000, "max_position_embeddings": 40}),
    Row("xlm-roberta", "XLMRobertaModel", "XLMRobertaConfig",
        text=heads(72, 2, 100) | {"vocab_size": 1000, "max_position_embeddings": 40}),
    Row("clip text tower", "CLIPTextModelWithProjection", "CLIPTextConfig",
        text={"num_hidden_layers": 2, "vocab_size": 1000, "eos_token_id": 999}),
    Row("clip vision tower", "CLIPVisionModelWithProjection", "CLIPVisionConfig", vision={"num_hidden_layers": 2}),
    Row("clip bare vision tower", "CLIPVisionModel", "CLIPVisionConfig", vision={"num_hidden_layers": 2}),
    Row("clip bare text tower", "CLIPTextModel", "CLIPTextConfig",
        text={"num_hidden_layers": 2, "vocab_size": 1000, "eos_token_id": 999}),
    Row("siglip text tower", "SiglipTextModel", "SiglipTextConfig", text={"num_hidden_layers": 2, "vocab_size": 1000}),
    Row("blip vision tower", "BlipVisionModel", "BlipVisionConfig", vision={"num_hidden_layers": 2, "image_size": 96}),
    Row("blip text tower", "BlipTextModel", "BlipTextConfig", text={"num_hidden_layers": 2, "vocab_size": 1000}),
    Row("siglip vision tower", "SiglipVisionModel", "SiglipVisionConfig",
        vision={"num_hidden_layers": 2, "patch_size": 16}),
]  # fmt: skip


def build(row: Row):
    """The transformers model with random weights of a useful size, in float32 and inference mode."""
    import torch
    import transformers

    torch.manual_seed(0)
    config_class = getattr(transformers, row.config)
    if row.text is not None and row.vision is not None:
        config = config_class(text_config=row.text, vision_config=row.vision, **row.values)
    else:
        config = config_class(**(row.text or row.vision), **row.values)
    config._attn_implementation = "eager"
    return getattr(transformers, row.cls)(config).eval()


GAINS = (1.0, 1.5, 2.0, 3.0, 0.5, 0.25)


def rescale(model, gain: float, tower: str = "") -> None:
    """Weights of unit gain times `gain`, biases and norms off their initial values; of one tower by its name."""
    import torch

    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if name.startswith("logit_") or not name.startswith(tower):
                continue
            if "norm" in name.lower() and name.endswith("weight"):
                # of heads, whose scores are not scaled, less: attention would be of single tokens
                mean = 0.4 if "q_norm" in name or "k_norm" in name else 1
                p.copy_(mean - ("Gemma3" in type(model).__name__) + 0.1 * noise)  # whose gains are stored less 1
            elif "layer_scale" in name:
                p.copy_(0.8 + 0.3 * noise)
            elif p.ndim < 2:
                p.copy_(0.05 * noise)
            elif "embedding" in name and "patch" not in name:
                p.copy_((0.3 if "position" in name or "type" in name else 1.0) * noise)
            else:
                p.copy_(gain * noise / p[0].numel() ** 0.5)


def inputs(row: Row, model, batch: int = 5, seed: int = 0):
    """Torch inputs of the row's towers: texts of several lengths with padding, pictures of several kinds."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    found = {}
    if row.text is not None:
        section = getattr(model.config, "text_config", model.config)
        length = min(12, section.max_position_embeddings)
        ids = torch.randint(3, 900, (batch, length), generator=generator)
        mask = torch.ones_like(ids)
        lengths = [length, length, length - 3, 4, length][:batch]
        eos = row.vocab - 1 if row.legacy_eos or "CLIP" in row.cls else 2 if "MetaClip" in row.cls else 1
        for i, n in enumerate(lengths):
            ids[i, n - 1 :] = eos
            mask[i, n:] = 0
        found |= {"input_ids": ids, "attention_mask": mask}
    if row.vision is not None:
        section = getattr(model.config, "vision_config", model.config)
        if "Siglip2" in row.cls:
            return found | patches_of_several_sizes(generator, section, batch)
        size = (section.image_size,) * 2
        if "dino" in row.cls.lower():  # no square, no multiple of the patch
            size = (3 * section.patch_size + 2, 5 * section.patch_size)
        coarse = 3 * torch.randn(batch, 3, 4, 4, generator=generator) + 4 * torch.randn(
            batch, 3, 1, 1, generator=generator
        )
        smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")
        found["pixel_values"] = smooth + torch.randn(batch, 3, *size, generator=generator)
    return found


def patchified(pixels, side: int = 16, most: int | None = None):
    """Pictures (B, C, H, W) as Siglip2Model takes them: patches in the order row, column, channel, noise after them up
    to `most`."""
    import torch

    b, c, h, w = pixels.shape
    x = pixels.reshape(b, c, h // side, side, w // side, side).permute(0, 2, 4, 3, 5, 1)
    x = x.reshape(b, -1, side * side * c)
    noise = torch.randn(b, (most or x.shape[1]) - x.shape[1], x.shape[2], generator=torch.Generator().manual_seed(9))
    mask = torch.cat([torch.ones(x.shape[:2]), torch.zeros(noise.shape[:2])], 1).long()
    shapes = torch.tensor([[h // side, w // side]] * b)
    return {"pixel_values": torch.cat([x, noise], 1), "pixel_attention_mask": mask, "spatial_shapes": shapes}


def patches_of_several_sizes(generator, section, batch: int):
    """Of pictures that are smaller and larger than the grid of positions, wide, high, and of one row of patches."""
    import torch

    most, side, each = 40, section.patch_size, []
    for rows, cols in [(5, 8), (4, 4), (1, 9), (13, 3), (2, 2)][:batch]:
        coarse = 3 * torch.randn(1, 3, 4, 4, generator=generator) + 4 * torch.randn(1, 3, 1, 1, generator=generator)
        size = (rows * side, cols * side)
        smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")
        each.append(patchified(smooth + torch.randn(1, 3, *size, generator=generator), side, most))
    return {name: torch.cat([one[name] for one in each]) for name in each[0]}


def mean_cosine(x: np.ndarray) -> float:
    """Mean cosine between different rows."""
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    n = len(x)
    return float(((unit @ unit.T).sum() - n) / (n * (n - 1)))


def tell_apart(model, run) -> dict[str, np.ndarray]:
    """Rescales each tower until the reference's pooled outputs of different inputs have mean cosine < 0.5.

    `run()` gives the reference outputs by name; returned at the end. Asserts that it succeeded.
    """
    rescale(model, 1.0)
    for tower, output in (("text", "text_embeds"), ("vis", "image_embeds"), ("", "pooler_output")):
        if output not in run() or (not tower and "text_embeds" in run()):
            continue
        found = {}
        for gain in GAINS:
            rescale(model, gain, tower if any(n.startswith(tower) for n, _ in model.named_parameters()) else "")
            found[gain] = mean_cosine(run()[output])
            if found[gain] < 0.5:
                break
        assert min(found.values()) < 0.5, f"the reference does not tell the inputs apart: {output} {found}"
    return run()
