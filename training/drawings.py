"""Drawings and class names, which are contrasted beside photographs: their sentence vectors, and the losses.

Targets are soft: captions that mean the same share the mass. The names of ImageNet's classes are contrasted with features
that a class's own classifier weights point to.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from words import class_names, minilm

import beyondvl as bvl
from beyondvl.weights import open_checkpoint
from data import one_per_caption


def sentence_vectors(texts: list[str]) -> torch.Tensor:
    """Unit vectors (n, 384) by the text tower."""
    model = bvl.AutoModel.from_pretrained(minilm())
    return torch.from_numpy(model.encode([{"text": t} for t in texts], batch_size=64, normalize_embeddings=True))


class Drawings:
    """The items of data.py, the vectors of what they may be called, the vectors of class names by template, and the
    classifier of the published tower."""

    def __init__(self, work: Path):
        self.items = json.loads((work / "items.json").read_text())
        tower = open_checkpoint(work / "tower")
        self.fc = torch.from_numpy(tower.read("_fc.weight", (1000, 1280)))
        self.fc_bias = torch.from_numpy(tower.read("_fc.bias", (1000,)))
        texts, self.variants = [], []
        for item in self.items:
            keywords = item["keywords"][:6]
            forms = list(dict.fromkeys(item["captions"]))
            forms += [", ".join([forms[0], *keywords[:3]])] if keywords else []
            forms += [f"a picture of {forms[0]}", f"{forms[0]} clip art", *keywords[:2]]
            self.variants.append(list(range(len(texts), len(texts) + len(forms))))
            texts += forms
        cache = work / "sentences.npy"
        if not cache.exists():
            np.save(cache, sentence_vectors(texts).numpy())
        self.sentences = torch.from_numpy(np.load(cache))
        names = class_names()
        templates = ["{}", "a photo of a {}"]
        cache = work / "classes.npy"
        if not cache.exists():
            np.save(cache, np.stack([sentence_vectors([t.format(n) for n in names]).numpy() for t in templates]))
        self.class_sentences = torch.from_numpy(np.load(cache))
        self.train = np.array([i for i, item in enumerate(self.items) if item["part"] == "train"])
        self.validation = np.array(one_per_caption(self.items, "validation"))

    def probabilities(self, features: torch.Tensor) -> torch.Tensor:
        return (features @ self.fc.T + self.fc_bias).softmax(-1)

    def captions(self, at: np.ndarray) -> torch.Tensor:
        """The vectors of the first caption of each."""
        return self.sentences[[self.variants[i][0] for i in at]]

    def any_words(self, at: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
        """The vectors of what each may be called."""
        return self.sentences[[rng.choice(self.variants[i]) for i in at]]


def soft_loss(seen: torch.Tensor, texts: torch.Tensor, meant: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Contrast both ways of unit rows; `meant` are the vectors by which they may be alike."""
    target = (meant @ meant.T / 0.05).softmax(1)
    logits = scale * seen @ texts.T
    return -0.5 * ((target * logits.log_softmax(1)).sum(1).mean() + (target * logits.T.log_softmax(1)).sum(1).mean())


def synthetic(drawings: Drawings, usual: torch.Tensor, classes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Features that the classifier's weights of classes point to, and their class probabilities: features as usual (n,
    1280), noise, and a push along the weights."""
    push = torch.rand(len(classes), 1) * 12 + 4
    direction = F.normalize(drawings.fc[classes].clamp(min=0), dim=-1)
    noise = torch.randn(len(classes), usual.shape[1]) * usual.std(0) * 0.7
    features = (usual.mean(0) + noise + push * direction * 0.8).clamp(0, 6)
    return features, drawings.probabilities(features)
