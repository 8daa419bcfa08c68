"""Clips and texts whose embeddings look at the clip."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..models.model import check_neutral
from ..models.tower import prepared
from ..outputs import Features, ModelOutput, from_numpy, kind_of
from .base import text_inputs
from .clips import ClipsModel

__all__ = ["ClipPromptingModel"]


class ClipPromptingModel(ClipsModel):
    """Compares clips with texts, each text's embedding shifted by what its prompt draws from the clip (Ni et al.,
    2022)."""

    @property
    def num_frames(self) -> int:
        """Frames of a clip."""
        return self.tower("mit").encoder.stem.type.shape[0]

    def _clips(self, pixel_values: Any) -> dict[str, Any]:
        """Frames, the clip and what prompts attend to, of (B, num_frames, 3, H, W)."""
        if pixel_values is None:
            raise ValueError("pixel_values: not given, expected (B, frames, 3, H, W) float32")
        array = prepared("pixel_values", pixel_values)
        channels, *size = self.tower("vision").program.info()["image"]
        wanted = (self.num_frames, channels // self.num_frames, *size)
        if array.ndim != 5 or array.shape[1:] != wanted:
            raise ValueError(f"pixel_values: found shape {array.shape}, expected (B, {', '.join(map(str, wanted))})")
        flat = array.reshape(len(array), channels, *size)
        seen = self.tower("vision").run(
            {"pixel_values": flat}, ["last_hidden_state", "pooler_output", "frame_embeds", "context"], self.num_threads
        )
        places = np.tile(np.arange(self.num_frames), (len(array), 1))
        inputs = {"features": seen["frame_embeds"], "token_type_ids": places}
        mixed = self.tower("mit").run(inputs, ["last_hidden_state"], self.num_threads)["last_hidden_state"]
        seen["mit"] = mixed + seen["frame_embeds"]
        seen["video_embeds"] = seen["mit"].mean(1)
        return seen

    def get_video_features(self, pixel_values: Any, **kwargs: Any) -> Any:
        """Embeddings (B, D) of clips (B, num_frames, 3, H, W), not normalised."""
        check_neutral(kwargs)
        embeds = self._clips(pixel_values)["video_embeds"]
        return from_numpy(embeds, "pt") if kind_of(pixel_values) == "pt" else embeds.view(Features)

    def __call__(
        self, input_ids: Any = None, pixel_values: Any = None, attention_mask: Any = None, **kwargs: Any
    ) -> ModelOutput:
        """transformers' XCLIPModel: `logits_per_video` (B, K), `logits_per_text` (K, B), `text_embeds` (B, K, D) and
        `video_embeds` (B, D) of unit norm, `text_model_output`, `vision_model_output` of all frames, `mit_output`."""
        check_neutral(kwargs)
        texts = text_inputs(input_ids, attention_mask)
        seen = self._clips(pixel_values)
        read = self.tower("text").run(texts, ["last_hidden_state", "pooler_output", "embeds"], self.num_threads)
        count, kind = len(seen["video_embeds"]), kind_of(input_ids, pixel_values)
        prompts = np.ascontiguousarray(np.broadcast_to(read["embeds"], (count, *read["embeds"].shape)))
        inputs = {"features": prompts, "contexts": seen["context"]}
        embeds = prompts + self.tower("prompts").run(inputs, ["drawn"], self.num_threads)["drawn"]
        embeds /= np.linalg.norm(embeds, axis=2, keepdims=True)
        video = seen["video_embeds"] / np.linalg.norm(seen["video_embeds"], axis=1, keepdims=True)
        logits = np.einsum("bd,bkd->bk", video, embeds) * np.float32(self.logit_scale)
        frames = seen["last_hidden_state"]
        states = {
            "text_model_output": (read["last_hidden_state"], read["pooler_output"]),
            "vision_model_output": (
                frames.reshape(count * self.num_frames, -1, frames.shape[2]),
                seen["pooler_output"].reshape(count * self.num_frames, -1),
            ),
            "mit_output": (seen["mit"], seen["video_embeds"]),
        }
        output = ModelOutput(
            logits_per_video=from_numpy(logits, kind),
            logits_per_text=from_numpy(np.ascontiguousarray(logits.T), kind),
            text_embeds=from_numpy(embeds, kind),
            video_embeds=from_numpy(video, kind),
        )
        for name, (state, pooled) in states.items():
            output[name] = ModelOutput(
                last_hidden_state=from_numpy(state, kind), pooler_output=from_numpy(pooled, kind)
            )
        return output
