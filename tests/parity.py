"""What comparisons with transformers share: weights that matter, and what counts as equal."""

from __future__ import annotations

import numpy as np


def unit_gain(model, gain: float, tables: float, bias: float, table_names: tuple[str, ...] = ("embedding",)) -> None:
    """Random weights that neither fade nor explode: matrices of that gain, tables of that deviation, biases and norms
    moved a little. FLAVA's codebook stays as it is."""
    import torch

    with torch.no_grad():
        for name, p in model.named_parameters():
            if "codebook" in name:
                continue
            if p.ndim < 2:
                p.add_(torch.randn_like(p) * bias)
            elif any(part in name for part in table_names):
                p.normal_(0, tables)
            else:
                p.normal_(0, gain / np.prod(p.shape[1:]) ** 0.5)


def close(found, expected, keep=None) -> None:
    """Within 1e-4 of the larger of 1 and the largest expected value; `keep` picks the rows that mean something."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    if keep is not None:
        found, expected = found[keep], expected[keep]
    np.testing.assert_allclose(found, expected, atol=1e-4 * max(1.0, float(np.abs(expected).max())), rtol=0)


def worst_cosine(found, expected) -> float:
    """The least cosine between rows, after the mean of the expected ones is taken off."""
    a, b = (np.asarray(x) - np.asarray(expected).mean(0) for x in (found, expected))
    return ((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min()
