"""What comparisons with transformers share: weights that matter, and what counts as equal."""

from __future__ import annotations

import numpy as np

from beyondvl.models.load import _named
from beyondvl.reader import BATCH_NORM_PARTS, Reader
from beyondvl.spec import BatchNormConv, Spec, refs
from beyondvl.stems import SpectrogramStem
from beyondvl.weights import Checkpoint, Entry


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


def needed(cls, config):
    """Every parameter that a class reads, as (ref or batch norm's convolution)."""
    return [r for encoder in cls.encoders(config).values() for r in refs(encoder)]


def batch_norms(spec):
    """Prefixes of the batch norms that a spec names alone."""
    if isinstance(spec, tuple):
        return [name for item in spec for name in batch_norms(item)]
    own = [spec.norm] if isinstance(spec, SpectrogramStem) else []
    return own + [n for value in vars(spec).values() for n in batch_norms(value)] if isinstance(spec, Spec) else []


def compare_parameters(name, cls, config, shapes):
    """Each parameter is there in the shape it is read in, and nothing is left over."""
    checkpoint = _named(Checkpoint({n: Entry(None, "F32", tuple(s or ()), 0) for n, s in shapes.items()}, name), cls)
    reader, used = Reader(checkpoint), set()
    for r in needed(cls, config):
        if isinstance(r, BatchNormConv):
            used |= {*(r.weight.names if r.weight else ()), *(f"{r.norm}.{part}" for part in BATCH_NORM_PARTS)}
            used |= set(r.bias.names) if r.bias else set()
            continue
        if r.scaled_by:
            assert checkpoint.entries[r.scaled_by].shape in (r.shape[:1], (*r.shape[:1], 1, 1), ())
            used.add(r.scaled_by)
        for part, rows in zip(r.names, r.stored_rows, strict=True):
            if not part or not reader.has(r):
                continue
            stored = reader.stored(r, part)
            assert stored in checkpoint, f"{name}: {stored} is missing"
            used.add(stored)
            entry = checkpoint.entries[stored]
            if None not in shapes.values() and not r.stored_as:
                count = rows * int(np.prod(r.shape[1:], dtype=int))
                assert entry.count == count, f"{name}: {stored}: {entry.shape}, expected {(rows, *r.shape[1:])}"
    for encoder in cls.encoders(config).values():
        used |= {f"{prefix}.{part}" for prefix in batch_norms(encoder) for part in BATCH_NORM_PARTS}
    used |= reader.used | {cls.family.scale, cls.family.bias, cls.family.text_scale}
    left = [n for n in checkpoint.names() if n not in used and not cls.family.is_ignored(n)]
    if len(cls.towers) < len(cls.family.towers):
        left = [n for n in left if not cls.family.belongs_elsewhere(n, cls.towers)]
    return left
