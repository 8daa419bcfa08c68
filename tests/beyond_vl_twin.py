"""What the torch twin of Beyond VL makes of inputs, to compare the core with."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from beyondvl.families import beyond_vl as family

sys.path.insert(0, str(Path(__file__).parent.parent / "training"))
import twin

__all__ = ["expected", "twin", "twin_of"]


def twin_of(config: dict[str, Any], weights: dict[str, np.ndarray]) -> twin.BeyondVL:
    """The twin of a config over the weights of a checkpoint, of which those are left out that it has no place for: the
    towers', and what a lender has beyond it."""
    other = twin.BeyondVL(config, dropout=0.0).eval()
    own = {
        n: torch.from_numpy(weights[n].copy()).reshape(p.shape) for n, p in other.state_dict().items() if n in weights
    }
    other.load_state_dict(own)
    return other


@torch.no_grad()
def expected(model, other, given: dict[str, np.ndarray], decoder_ids: np.ndarray) -> dict[str, np.ndarray]:
    """What the twin makes of the states that the model's own towers give."""
    out, drawn, text, whole, seen = {}, {}, (), (), {}

    def states(name, **arrays):
        slots = ["last_hidden_state", *(["logits"] if "logits" in model.tower(name).outputs else [])]
        arrays = model.run_tower(name, arrays, slots)
        return [torch.from_numpy(arrays[slot]) if slot in arrays else None for slot in ("last_hidden_state", "logits")]

    if "input_ids" in given:
        mask = torch.from_numpy(given["attention_mask"]).bool()
        rows = states("text", input_ids=given["input_ids"], attention_mask=given["attention_mask"])[0]
        out["text_embeds"], rows = other.text(rows, mask)
        text = (rows, mask)
        whole = (*text, out["text_embeds"])
    if "pixel_values" in given:
        embeds, rows, _ = other.image(*states("vision", pixel_values=given["pixel_values"]))
        seen["image"] = (embeds, rows, None)
    if "pixel_values_videos" in given:
        clips = given["pixel_values_videos"]
        embeds, _, rows = other.image(*states("vision", pixel_values=clips.reshape(-1, *clips.shape[2:])))
        embeds = torch.nn.functional.normalize(embeds.unflatten(0, clips.shape[:2]).mean(1), dim=-1)
        rows, ways = other.video(rows.unflatten(0, clips.shape[:2]))
        seen["video"] = (embeds, rows, None, ways)
    if "input_features" in given:
        features, there = given["input_features"], torch.from_numpy(given["feature_attention_mask"]).bool()
        tower = model.tower("audio")
        _, window, mels = tower.program.info()["image"]
        pooling = model.config.audio_pooling
        there = there.unflatten(1, (-1, window * pooling // family.places(tower.encoder))).any(2)
        windows = features.reshape(len(features), mels, -1, window).transpose(0, 2, 1, 3).reshape(-1, mels, window)
        layers = tower.run({"input_features": np.ascontiguousarray(windows)}, list(tower.states), 1)
        rows = torch.from_numpy(np.concatenate(list(layers.values()), 2))
        rows = rows.unflatten(1, (-1, pooling)).mean(2).unflatten(0, (len(features), -1)).flatten(1, 2)
        embeds, rows = other.audio(rows, there)
        embeds = torch.nn.functional.normalize(embeds + other.drawn("audio", rows, there)[1], dim=-1)
        seen["audio"] = (embeds, rows, there)
    for name, (embeds, rows, mask, *ways) in seen.items():
        queries, _ = other.drawn(name, rows, mask, *text)
        agreement = [other.agreement(embeds, out["text_embeds"])] if text else []
        drawn[name] = torch.cat([embeds[:, None], queries, *ways, *agreement], 1)
        out[f"{name}_embeds"] = embeds
        out[f"{name}_query_embeds"] = torch.nn.functional.normalize(other.query_projection(queries), dim=-1)
    stream, mask = other.cformer(drawn, *whole)
    first = stream[:, 0]
    out["fused_embeds"] = torch.nn.functional.normalize(other.fused_projection(first), dim=-1)
    out["match_logits"] = other.matching_head(first)
    if text and seen:
        out["match_logits"] = other.matched(first, [embeds for embeds, *_ in seen.values()], out["text_embeds"])
    out["logits"] = other.decoder(torch.from_numpy(decoder_ids), stream, mask)
    out["fused_hidden_state"] = stream * mask[..., None]
    return {name: array.numpy() for name, array in out.items()}
