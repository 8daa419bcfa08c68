"""Image processors of published checkpoints, by the class their files name: what each assumes where these do not say.
Several families share each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["BIT", "BLIP", "CLIP", "DINOV3", "FLAVA", "GEMMA4", "IDEFICS3", "SIGLIP", "SIGLIP2", "VIDEO_MAE"]

OPENAI = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
IMAGE_NET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
LANCZOS, BILINEAR, BICUBIC = 1, 2, 3  # Pillow's numbers
CROP = {"crop_size": {"height": 224, "width": 224}, "do_center_crop": True}

CLIP: Mapping[str, Any] = {"size": {"shortest_edge": 224}, "resample": BICUBIC, "do_convert_rgb": True} | CROP | OPENAI
SIGLIP: Mapping[str, Any] = {"size": {"height": 224, "width": 224}, "resample": BICUBIC, "do_convert_rgb": True} | HALF
BIT = CLIP  # transformers' class that DINOv2 goes with
# transformers has it by torchvision alone
DINOV3: Mapping[str, Any] = IMAGE_NET | {
    "size": {"height": 224, "width": 224}, "default_to_square": True, "resample": BILINEAR, "backend": "torchvision"
}  # fmt: skip
SIGLIP2: Mapping[str, Any] = {"resample": BILINEAR, "max_num_patches": 256, "patch_size": 16} | HALF
GEMMA4: Mapping[str, Any] = {
    "resample": BICUBIC, "do_convert_rgb": True, "do_normalize": False, "image_mean": [0.0, 0.0, 0.0],
    "image_std": [1.0, 1.0, 1.0], "patch_size": 16, "max_soft_tokens": 280, "pooling_kernel_size": 3,
}  # fmt: skip
IDEFICS3: Mapping[str, Any] = HALF | {
    "size": {"longest_edge": 4 * 364}, "max_image_size": {"longest_edge": 364}, "resample": LANCZOS,
    "do_convert_rgb": True,
}  # fmt: skip
FLAVA: Mapping[str, Any] = (
    {"size": {"height": 224, "width": 224}, "resample": BICUBIC, "default_to_square": True} | CROP | OPENAI
)
BLIP: Mapping[str, Any] = {"size": {"height": 384, "width": 384}, "resample": BICUBIC, "default_to_square": True,
                           "do_convert_rgb": True} | OPENAI  # fmt: skip
VIDEO_MAE: Mapping[str, Any] = {"size": {"shortest_edge": 224}, "resample": BILINEAR} | CROP | HALF
