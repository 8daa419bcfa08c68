"""Step 3 of the recipe: the heads that align the two frozen towers, and the default checkpoint.

    python training/train.py --work training/work --seed 0 [--write beyondvl/default]

Picture side: norm, MLP 1280 -> H -> 384 on the tower's features, normalised, plus one vector per ImageNet class weighted
by the class probabilities, which starts as the class name's sentence vector; each path is now and then trained alone,
so that the classes carry photographs and the MLP what no class names. Text side: a 384 x 384 projection of the
MiniLM sentence vector. Loss: contrastive both ways with soft targets (captions that mean the same share the mass).
Two more sources keep what photographs need: class names against pure class probabilities, and synthetic features
that a class's own classifier weights point to. Everything is chosen on the validation part; --test reads the test
part once.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from pathlib import Path

import numpy as np
import torch
from drawings import Drawings, soft_loss, synthetic
from torch import nn
from torch.nn import functional as F
from words import minilm

from beyondvl.weights import open_checkpoint, save_safetensors
from data import one_per_caption, ranks_metrics

WIDTH = 384


class Heads(nn.Module):
    def __init__(self, inner: int, class_vectors: torch.Tensor, dropout: float, drop: float = 0.0):
        super().__init__()
        self.drop = drop
        self.norm = nn.LayerNorm(1280)
        self.fc1, self.fc2 = nn.Linear(1280, inner), nn.Linear(inner, WIDTH)
        self.classes = nn.Parameter(class_vectors.T.clone())
        self.text = nn.Linear(WIDTH, WIDTH)
        self.scale = nn.Parameter(torch.tensor(math.log(20.0)))
        self.dropout = dropout
        with torch.no_grad():
            self.text.weight.copy_(torch.eye(WIDTH))
            self.text.bias.zero_()

    def picture(self, features: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
        x = F.dropout(self.norm(features), self.dropout * 0.4, self.training)
        x = F.dropout(F.gelu(self.fc1(x)), self.dropout, self.training)
        learned, named = F.normalize(self.fc2(x), dim=-1), probabilities @ self.classes.T
        if self.training:
            kept = torch.rand(len(x), 1)
            learned, named = learned * (kept > self.drop), named * (kept < 1 - self.drop)
        return F.normalize(learned + named, dim=-1)

    def sentence(self, vectors: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.text(vectors), dim=-1)


class Data(Drawings):
    """With the features of features.py."""

    def __init__(self, work: Path, views: int):
        super().__init__(work)
        self.features = np.load(work / "features.npy", mmap_mode="r")[:views]


@torch.no_grad()
def scores(heads: Heads, data: Data, part: str) -> np.ndarray:
    heads.eval()
    gallery = one_per_caption(data.items, part)
    features = torch.from_numpy(data.features[0, gallery].astype(np.float32))
    pictures = heads.picture(features, data.probabilities(features))
    texts = heads.sentence(data.sentences[[data.variants[i][0] for i in gallery]])
    heads.train()
    return (pictures @ texts.T).numpy()


def train(data: Data, options: argparse.Namespace) -> Heads:
    torch.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    index = data.train
    features = torch.from_numpy(data.features[:, index].astype(np.float32))  # [views, n, 1280]
    probabilities = torch.stack([data.probabilities(v) for v in features])
    usual = features[0]
    heads = Heads(options.inner, data.class_sentences[1] * options.class_gain, options.dropout, options.drop)
    decayed = [p for n, p in heads.named_parameters() if p.ndim > 1 and n != "classes"]
    rest = [p for n, p in heads.named_parameters() if p.ndim <= 1 or n == "classes"]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": options.decay}, {"params": rest, "weight_decay": 0}], lr=options.lr
    )
    steps = options.epochs * (len(index) // options.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, total_steps=steps, pct_start=0.1)
    identity = torch.eye(WIDTH)
    for step in range(steps):
        rows = torch.from_numpy(rng.choice(len(index), options.batch, replace=False))
        views = torch.from_numpy(rng.integers(0, len(features), options.batch))
        chosen = torch.tensor([data.variants[index[r]][rng.integers(len(data.variants[index[r]]))] for r in rows])
        raw = data.sentences[chosen]
        main = data.sentences[[data.variants[index[r]][0] for r in rows]]
        x, p = features[views, rows], probabilities[views, rows]
        texts = heads.sentence(raw)
        scale = heads.scale.exp().clamp(max=50)
        loss = soft_loss(heads.picture(x, p), texts, main, scale)
        classes = torch.from_numpy(rng.integers(0, 1000, options.batch // 2))
        fake, chances = synthetic(data, usual, classes)
        names = data.class_sentences[rng.integers(2), classes]
        loss = loss + options.classes * soft_loss(
            heads.picture(fake, chances), heads.sentence(names), data.class_sentences[0, classes], scale
        )
        loss = loss + options.hold * ((heads.text.weight - identity) ** 2).sum() / WIDTH
        loss = (
            loss + options.hold * ((heads.classes.T - options.class_gain * data.class_sentences[1]) ** 2).sum(1).mean()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % (steps // 5) == 0:
            print(
                f"step {step + 1}/{steps} loss {loss.item():.3f}",
                ranks_metrics(scores(heads, data, "validation")),
                flush=True,
            )
    return heads.eval()


def write(heads: Heads, data: Data, work: Path, folder: Path) -> None:
    """The default checkpoint: matrices in float16, word embeddings in int8, tokenizer and processor files beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, np.ndarray] = {}
    for prefix, source in (("vision_model.", work / "tower"), ("text_model.", minilm())):
        checkpoint = open_checkpoint(source)
        for name in checkpoint.names():
            if not name.startswith("pooler.") and not name.endswith("position_ids"):
                array = checkpoint.read(name, checkpoint.entries[name].shape)
                tensors[prefix + name] = array.astype(np.float16 if array.ndim > 1 else np.float32)
    words = "text_model.embeddings.word_embeddings.weight"  # the largest tensor: int8 with one scale per row
    scale = np.abs(tensors[words].astype(np.float32)).max(1, keepdims=True) / 127
    tensors[f"{words}_scale"] = scale
    tensors[words] = np.round(tensors[words] / scale).astype(np.int8)
    state = {n: p.detach().numpy() for n, p in heads.named_parameters()}
    for part in ("norm", "fc1", "fc2"):
        tensors |= {f"vision_head.{part}.{k}": state[f"{part}.{k}"] for k in ("weight", "bias")}
    tensors["vision_head.class_embeddings"] = np.ascontiguousarray(state["classes"])
    tensors |= {f"text_projection.{k}": state[f"text.{k}"] for k in ("weight", "bias")}
    tensors = {
        n: t.astype(np.float16) if t.ndim > 1 and n.startswith(("vision_head", "text_proj")) else t
        for n, t in tensors.items()
    }
    tensors["logit_scale"] = state["scale"]
    save_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    text_config = json.loads((minilm() / "config.json").read_text())
    keep = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "layer_norm_eps",
            "vocab_size", "max_position_embeddings", "type_vocab_size")  # fmt: skip
    config = {
        "model_type": "beyond_vl",
        "architectures": ["BeyondVLModel"],
        "projection_dim": WIDTH,
        "head_size": heads.fc1.out_features,
        "text_config": {name: text_config[name] for name in keep},
        "vision_config": {"variant": "efficientnet-lite2", "image_size": 260, "num_labels": 1000},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    processor = {
        "image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": 260}, "resample": 3,
        "do_center_crop": True, "crop_size": {"height": 260, "width": 260}, "do_rescale": True,
        "rescale_factor": 1 / 128, "do_normalize": True, "image_mean": [127 / 128] * 3, "image_std": [1.0] * 3,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=1) + "\n")
    shutil.copyfile(minilm() / "tokenizer.json", folder / "tokenizer.json")
    settings = {"tokenizer_class": "BertTokenizer", "model_max_length": 256, "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--views", type=int, default=11)
    parser.add_argument("--inner", type=int, default=1536)
    parser.add_argument("--dropout", type=float, default=0.6)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--decay", type=float, default=0.2)
    parser.add_argument("--classes", type=float, default=0.3)
    parser.add_argument("--hold", type=float, default=0.5)
    parser.add_argument("--drop", type=float, default=0.1, help="share of pictures that see one path alone, each way")
    parser.add_argument("--class-gain", type=float, default=2.0)
    parser.add_argument("--test", action="store_true", help="read the test part: once, at the end")
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    data = Data(options.work, options.views)
    heads = train(data, options)
    print("validation", ranks_metrics(scores(heads, data, "validation")))
    if options.test:
        print("test", ranks_metrics(scores(heads, data, "test")))
    if options.write:
        write(heads, data, options.work, options.write)


if __name__ == "__main__":
    main()
