"""What is moved from one record into another before both are packed."""

from __future__ import annotations

import numpy as np

__all__ = ["fold_norm"]


def fold_norm(weights: dict[str, np.ndarray | None], norm: str, linear: str) -> None:
    """Moves a norm's gain g and offset b into the product W x + c that alone reads it: W g / s, c + W b.

    The function is unchanged. What is left as the norm's gain, s, is sqrt(m / median(m)) for the column maxima m of
    W g, which shares unequal columns out between the two sides (SmoothQuant, Xiao et al., 2023, at alpha 1/2, from
    the weights alone).
    """
    gain, offset = weights[f"{norm}_weight"], weights[f"{norm}_bias"]
    weight, bias = weights[f"{linear}_weight"], weights[f"{linear}_bias"]
    if offset is not None:
        shift = weight @ offset.astype(np.float64)
        weights[f"{linear}_bias"] = (shift if bias is None else bias + shift).astype(np.float32)
        weights[f"{norm}_bias"] = np.zeros_like(offset)
    weight = weight * gain
    most = np.abs(weight).max(0)
    smooth = np.sqrt(most / max(np.median(most), 1e-30)).clip(1 / 16, 16).astype(np.float32)
    weights[f"{linear}_weight"], weights[f"{norm}_weight"] = weight / smooth, smooth
    if f"{linear}_reads" in weights:  # bounds of g x + b become those of s x
        bounds = weights[f"{linear}_reads"].reshape(-1, 2, len(gain)) - (0 if offset is None else offset)
        bounds = np.sort(bounds * (smooth / np.where(gain == 0, 1, gain)), 1)
        bounds = np.where(gain == 0, np.float32([[-np.inf], [np.inf]]), bounds)
        weights[f"{linear}_reads"] = bounds.reshape(-1, len(gain)).astype(np.float32)
