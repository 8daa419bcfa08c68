"""Pictures and texts in one stream."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..modalities import of_tower
from ..models.model import check_neutral, split_inputs
from ..models.tower import prepared
from ..outputs import ModelOutput, check_allowed, from_numpy, kind_of, to_numpy
from .base import STATES, TaskModel, with_pooled

__all__ = ["FusedModel", "JointModel", "PretrainingModel"]


LABELS = ("mim_labels", "mlm_labels", "itm_labels")


class JointModel(TaskModel):
    """Fuses pictures and texts in one stream: encoders of both, and a C-Former over the features of both."""

    @property
    def _lead(self) -> int:
        """Class tokens that the fused stream begins with."""
        return 0 if self.tower("fusion").encoder.stem.class_token is None else 1

    def _features(self, modality: str, inputs: dict[str, Any]) -> Any:
        """The projection of every row (B, n, D), as transformers' FlavaModel has it; row 0 is what `encode` gives."""
        rows = self.run_tower(modality, inputs, ["projected"])["projected"]
        return from_numpy(rows, kind_of(*inputs.values()))

    def fuse(self, features: dict[str, Any], wanted: list[str] | None = None) -> dict[str, np.ndarray]:
        """Runs the C-Former over the features of any subset of inputs, in the order given.

        Args:
            features: name -> features (B, n, size) float32, or (features, mask (B, n)). Of a name ("image", "text",
                "video", "audio", ...) that the model projects (a tower of that name and "_features"), what that takes;
                else as wide as the stream.
            wanted: outputs; default last_hidden_state (B, class token + all n, hidden_size) and pooler_output.

        What a mask hides changes nothing. Raises ValueError naming the input, what was found and what was expected.
        """
        if not features or not isinstance(features, dict):
            kind = "none" if features == {} else type(features).__name__
            raise ValueError(f"features: found {kind}, expected a dictionary of at least one input")
        wanted = wanted or STATES
        self.tower("fusion").check_outputs(wanted)
        parts, batch = [], None
        for name, value in features.items():
            array, mask = value if isinstance(value, tuple) else (value, None)
            parts.append(self._projected(name, array, mask, batch))
            batch = len(parts[0][0])
        lead = np.ones((batch, self._lead), np.int64)
        arrays, masks, types = zip(*parts, strict=True)
        inputs = {"features": np.concatenate(arrays, 1), "attention_mask": np.concatenate([lead, *masks], 1)}
        if self.tower("fusion").encoder.stem.type:
            inputs["token_type_ids"] = np.concatenate([0 * lead, *types], 1)
        return self.tower("fusion").run(inputs, wanted, self.num_threads)

    def _projected(
        self, name: str, array: Any, mask: Any, batch: int | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Features of one input as wide as the stream, its mask, and its type row by row. ValueError names it where one
        does not fit, or the stream knows no such input."""
        fusion, tower = self.tower("fusion").encoder, self.towers.get(f"{name}_features")
        size = tower.encoder.hidden_size if tower else fusion.hidden_size
        array = np.ascontiguousarray(to_numpy(array, name), np.float32)
        batch = len(array) if batch is None else batch
        if array.ndim != 3 or array.shape[2] != size or len(array) != batch:
            raise ValueError(f"{name}: found shape {array.shape}, expected ({batch}, n, {size})")
        mask = np.ones(array.shape[:2], np.int64) if mask is None else prepared("attention_mask", mask)
        if mask.shape != array.shape[:2]:
            raise ValueError(f"{name}: found a mask of shape {mask.shape}, expected {array.shape[:2]}")
        if fusion.stem.type and name not in fusion.stem.inputs:
            raise ValueError(f"features: found {name!r}, expected some of {', '.join(fusion.stem.inputs)}")
        kind = fusion.stem.inputs.index(name) if fusion.stem.type else 0
        if tower:
            array = tower.run({"features": array}, ["features"], self.num_threads)["features"]
        return array, mask, np.full_like(mask, kind)

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
        them and `pooler_output`. Both inputs together must be pairs.
        """
        check_neutral(kwargs)
        sides = split_inputs(
            {
                "input_ids": input_ids,
                "attention_mask": attention_mask,
                "token_type_ids": token_type_ids,
                "pixel_values": pixel_values,
            }
        )
        outputs, features = self._towers(sides, {"vision": STATES, "text": STATES})
        if len(features) == 2 and not skip_multimodal_encoder:
            outputs["multimodal"] = self.fuse(features)
        return put_states(ModelOutput(), outputs, kind_of(input_ids, pixel_values))

    def _towers(
        self, sides: dict[str, dict[str, Any]], wanted: dict[str, list[str]]
    ) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Any]]:
        """Those outputs of each side that is given, by its name, and the features and mask of each for the fused
        stream, in its order. ValueError where both are given and are no pairs."""
        outputs, features = {}, {}
        for tower in (tower for tower in ("vision", "text") if tower in sides):
            name = of_tower(tower).name
            outputs[name] = self.run_tower(tower, sides[tower], [*wanted[tower], "features"])
            features[name] = (outputs[name].pop("features"), sides[tower].get("attention_mask"))
        if len({len(rows) for rows, _ in features.values()}) > 1:
            pictures, texts = (len(features[name][0]) for name in ("image", "text"))
            raise ValueError(f"pixel_values, input_ids: found {pictures} pictures and {texts} texts, expected pairs")
        return outputs, features


class PretrainingModel(JointModel):
    """As JointModel, with the heads it was trained with: matching, contrast, and what is masked."""

    def __call__(
        self,
        input_ids: Any = None,
        input_ids_masked: Any = None,
        pixel_values: Any = None,
        codebook_pixel_values: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        skip_unmasked_multimodal_encoder: bool | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        """transformers' FlavaForPreTraining, without losses: no labels, no codebook, no masked patches.

        What JointModel returns, and with "masked" in their names the same of `input_ids_masked` (`input_ids` where they
        are not given). `mim_logits` (B, 1 + patches, kinds) of pictures alone, `mlm_logits` (B, L, vocabulary) of texts
        alone; of pairs `itm_logits` (B, 2), `contrastive_logits_per_image` and `_per_text` (B, B),
        `mmm_image_logits` (B, patches, kinds), `mmm_text_logits` (B, L, vocabulary).
        """
        for name in (name for name in ("bool_masked_pos", "image_attention_mask", *LABELS) if name in kwargs):
            check_allowed(name, kwargs.pop(name), (None,))
        check_allowed("codebook_pixel_values", codebook_pixel_values, (None,))
        check_neutral(kwargs)
        if input_ids is None and input_ids_masked is not None:
            raise ValueError("input_ids_masked: given without input_ids, expected both")
        sides = split_inputs(
            {
                "input_ids": input_ids,
                "attention_mask": attention_mask,
                "token_type_ids": token_type_ids,
                "pixel_values": pixel_values,
            }
        )
        pairs, kind = len(sides) == 2, kind_of(input_ids, pixel_values)
        alone = ["unit_embeds"] if pairs else []
        wanted = {"vision": STATES + (alone or ["mim_logits"]), "text": STATES + (alone or ["mlm_logits"])}
        seen = wanted | ({} if input_ids_masked is None else {"text": STATES + alone})  # the masked text is predicted
        outputs, features = self._towers(sides, seen)
        masked, masked_features = dict(outputs), dict(features)
        if input_ids_masked is not None:
            text = {"text": sides["text"] | {"input_ids": input_ids_masked}}
            (masked["text"],), (masked_features["text"],) = (part.values() for part in self._towers(text, wanted))
        if skip_unmasked_multimodal_encoder is None:
            skip_unmasked_multimodal_encoder = self.config.boolean("skip_unmasked_multimodal_encoder", True)
        if pairs:
            heads = ["itm_score", "mmm_image_logits", "mmm_text_logits"]
            masked["multimodal"] = self.fuse(masked_features, STATES + heads)
            if not skip_unmasked_multimodal_encoder:
                outputs["multimodal"] = self.fuse(features, STATES)
        output = put_states(ModelOutput(), outputs, kind)
        put_states(output, masked, kind, "_masked")
        logits = self._pair_logits(outputs, masked) if pairs else {}
        logits |= {n: a for arrays in masked.values() for n, a in arrays.items() if n in ("mim_logits", "mlm_logits")}
        return ModelOutput(output | {name: from_numpy(np.ascontiguousarray(a), kind) for name, a in logits.items()})

    def _pair_logits(
        self, sides: dict[str, dict[str, np.ndarray]], masked: dict[str, dict[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """What the heads say of pairs."""
        cosines = sides["image"]["unit_embeds"] @ sides["text"]["unit_embeds"].T * np.float32(self.logit_scale)
        both, patches = masked["multimodal"], masked["image"]["last_hidden_state"].shape[1] - 1
        words = masked["text"]["last_hidden_state"].shape[1]
        return {
            "itm_logits": both["itm_score"],
            "contrastive_logits_per_image": cosines,
            "contrastive_logits_per_text": cosines.T,
            "mmm_image_logits": both["mmm_image_logits"][:, 2 : 2 + patches],  # two class tokens come first
            "mmm_text_logits": both["mmm_text_logits"][:, -words:],
        }


class FusedModel(JointModel):
    """The fused stream alone, over features that are given."""

    def __call__(self, hidden_states: Any = None, attention_mask: Any = None, **kwargs: Any) -> ModelOutput:
        """transformers' FlavaMultimodalModel: `last_hidden_state` and `pooler_output` of hidden_states
        (B, n, hidden_size); attention_mask (B, n), or (B, 1 + n) where the model puts a class token first."""
        check_neutral(kwargs)
        if hidden_states is None:
            raise ValueError("hidden_states: not given, expected (B, n, hidden_size) floats")
        states = to_numpy(hidden_states, "hidden_states")
        mask = None if attention_mask is None else prepared("attention_mask", attention_mask)
        if mask is not None and states.ndim == 3 and mask.shape[1] == states.shape[1] + self._lead:
            if not mask[:, : self._lead].all():
                raise ValueError("attention_mask: found 0 for the class token, expected 1")
            mask = mask[:, self._lead :]
        outputs = self.fuse({"hidden_states": (states, mask)})
        return ModelOutput({name: from_numpy(array, kind_of(hidden_states)) for name, array in outputs.items()})


def put_states(output: ModelOutput, sides: dict[str, dict[str, np.ndarray]], kind: str, what: str = "") -> ModelOutput:
    """Adds the hidden states and pooled outputs of each part."""
    for name, arrays in sides.items():
        states = with_pooled(arrays, kind)
        output[f"{name}{what}_embeddings"] = states.last_hidden_state
        output[f"{name}{what}_output"] = states
    return output
