"""Pictures and texts in one stream."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..modeling import check_neutral, given_inputs, prepared
from ..outputs import ModelOutput, from_numpy, kind_of, to_numpy
from .base import TaskModel

__all__ = ["JointModel"]


class JointModel(TaskModel):
    """Fuses pictures and texts in one stream: encoders of both, and a C-Former over the features of both."""

    def _features(self, modality: str, inputs: dict[str, Any]) -> Any:
        """The projection of every row (B, n, D), as transformers' FlavaModel has it; row 0 is what `encode` gives."""
        found = self.run_tower(modality, inputs, ["projected"])["projected"]
        return from_numpy(found, kind_of(*inputs.values()))

    def fuse(self, features: dict[str, Any], wanted: list[str] | None = None) -> dict[str, np.ndarray]:
        """Runs the C-Former over the features of any subset of inputs, in the order given.

        Args:
            features: name -> features (B, n, hidden_size) float32, or (features, mask (B, n)); the names ("image",
                "text", "video", "audio", ...) only order the stream and tell what is wrong.
            wanted: outputs; default last_hidden_state (B, class token + all n, hidden_size) and pooler_output.

        What a mask hides changes nothing. Raises ValueError naming the input, what was found and what was expected.
        """
        if not features or not isinstance(features, dict):
            found = "none" if features == {} else type(features).__name__
            raise ValueError(f"features: found {found}, expected a dictionary of at least one input")
        wanted = wanted or ["last_hidden_state", "pooler_output"]
        self.tower("fusion").check_outputs(wanted)
        encoder = self.tower("fusion").encoder
        arrays, masks = [], []
        for name, value in features.items():
            array, mask = value if isinstance(value, tuple) else (value, None)
            array = np.ascontiguousarray(to_numpy(array, name), np.float32)
            batch = len(arrays[0] if arrays else array)
            if array.ndim != 3 or array.shape[2] != encoder.hidden_size or len(array) != batch:
                raise ValueError(f"{name}: found shape {array.shape}, expected ({batch}, n, {encoder.hidden_size})")
            mask = np.ones(array.shape[:2], np.int64) if mask is None else prepared("attention_mask", mask)
            if mask.shape != array.shape[:2]:
                raise ValueError(f"{name}: found a mask of shape {mask.shape}, expected {array.shape[:2]}")
            arrays.append(array)
            masks.append(mask)
        lead = 0 if encoder.stem.class_token is None else 1
        masks.insert(0, np.ones((len(arrays[0]), lead), np.int64))
        inputs = {"features": np.concatenate(arrays, 1), "attention_mask": np.concatenate(masks, 1)}
        return self.tower("fusion").run(inputs, wanted, self.num_threads)

    def __call__(
        self,
        input_ids: Any = None,
        pixel_values: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        skip_multimodal_encoder: bool | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        """transformers' FlavaModel.

        Returns those of `image_embeddings`, `image_output`, `text_embeddings`, `text_output`, `multimodal_embeddings`,
        `multimodal_output` that the inputs allow; embeddings are all hidden states (B, n, hidden_size), outputs hold
        them and `pooler_output`. With a matching head also `itm_logits` (B, 2). Both inputs together must be pairs.
        """
        check_neutral(kwargs)
        given = given_inputs((input_ids, attention_mask, token_type_ids), pixel_values)
        kind = kind_of(input_ids, pixel_values)
        wanted = ["last_hidden_state", "pooler_output"]
        output, features = ModelOutput(), {}
        for tower, name in (("vision", "image"), ("text", "text")):  # the order of the fused stream
            if tower in given:
                found = self.run_tower(tower, given[tower], [*wanted, "features"])
                features[name] = (found.pop("features"), given[tower].get("attention_mask"))
                put_states(output, name, found, kind)
        if len(features) < 2 or skip_multimodal_encoder:
            return output
        if len(output.image_embeddings) != len(output.text_embeddings):
            raise ValueError(
                f"pixel_values, input_ids: found {len(output.image_embeddings)} pictures and "
                f"{len(output.text_embeddings)} texts, expected pairs"
            )
        head = ["itm_score"] if "itm_score" in self.tower("fusion").outputs else []
        found = self.fuse(features, wanted + head)
        if head:
            output["itm_logits"] = from_numpy(found.pop("itm_score"), kind)
        put_states(output, "multimodal", found, kind)
        return output


def put_states(output: ModelOutput, name: str, found: dict[str, np.ndarray], kind: str) -> None:
    states = {n: from_numpy(array, kind) for n, array in found.items()}
    output[f"{name}_embeddings"] = states["last_hidden_state"]
    output[f"{name}_output"] = ModelOutput(states)
