"""Step 5 of the recipe: the Q-Former, the C-Former, the decoder and the ears, over the tower of step 3.

    python training/joint.py --data shared/data --work training/work --seed 0

First the decoder learns words alone: captions without pictures, out of the row that stands for an input's embedding.
Then every step takes captions of photographs and questions, which the Q-Former reads, and every other one the rest
(lessons.py): captions of drawings, sounds and clips; narrations of clips with sounds; whether a text fits a photograph;
and sounds contrasted with what they mean. Heads and tower of step 3 stay as they are.

Writes WORK/joint-SEED.pt every --keep steps, from where a run that was stopped goes on. --begin takes the weights of
another run, also of one that lacked a part. --only takes some lessons alone, at every step; --twin trains the same
without what it is to be compared with (ablate.py); both go into the file's name.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lessons import HEARD, Lessons
from torch import Tensor, nn
from torch.nn import functional as F
from twin import BeyondVL, mixed
from words import PAD, minilm, plain

FIXED = ("vision_head", "text_projection", "logit_scale")
WEIGHTS = {"captions": 1.0, "imagined": 0.3, "drawings": 0.2, "questions": 0.7, "sounds": 0.4, "asked": 0.3, "heard": 0.6, "classes": 0.3,
           "clips": 0.5, "moved": 0.5, "match": 0.6, "silent": 0.3, "fused": 0.1}  # fmt: skip


def configuration(
    vocabulary: list[int], queries: int, layers: tuple[int, int, int], inner: int, head_size: int
) -> dict[str, Any]:
    """config.json of the model."""
    text = json.loads((minilm() / "config.json").read_text())
    kept = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act",
            "layer_norm_eps", "vocab_size", "max_position_embeddings", "type_vocab_size")  # fmt: skip
    former = {
        f"{name}_config": {"num_hidden_layers": count, "intermediate_size": inner}
        for name, count in zip(("qformer", "cformer", "decoder"), layers, strict=True)
    }
    former["video_rows_config"] = {"num_hidden_layers": 1, "intermediate_size": 384}
    former["decoder_config"] |= {"max_position_embeddings": 64, "token_ids": vocabulary}
    return {
        "model_type": "beyond_vl",
        "architectures": ["BeyondVLForConditionalGeneration"],
        "hidden_size": 384, "num_query_tokens": queries, "num_attention_heads": 6, "head_size": head_size, "num_frames": 8,
        "audio_pooling": 4, **former,
        "text_config": {name: text[name] for name in kept},
        "vision_config": {"model_type": "efficientnet_lite", "variant": "efficientnet-lite2", "image_size": 260,
                          "num_labels": 1000},
        "audio_config": {"model_type": "whisper", "d_model": 384, "encoder_attention_heads": 6, "encoder_layers": 4,
                         "encoder_ffn_dim": 1536, "decoder_layers": 4, "decoder_attention_heads": 6,
                         "max_source_positions": 500, "num_mel_bins": 80},
    }  # fmt: skip


class Learner:
    """The model and what is made of each batch. A `twin` goes without something: without "instruction" the Q-Former
    never sees any, without "pictures" all are blank, and "shuffled" shows each question the picture of another."""

    def __init__(
        self, model: BeyondVL, lessons: Lessons, twin: str | None = None, dropout: float = 0.3, smoothing: float = 0.1
    ):  # fmt: skip
        self.model, self.lessons, self.dropout, self.smoothing = model, lessons, dropout, smoothing
        self.twin = twin

    @cached_property
    def kinds(self) -> Tensor:
        """Unit embeddings of what real sounds are."""
        return self.meant([lines[0] for lines in HEARD.values()])

    @cached_property
    def sentences(self) -> tuple[Tensor, Tensor]:
        """Sentence vectors and unit embeddings of all that a sound may mean: each is contrasted with the whole of it."""
        texts = list(dict.fromkeys([plain(f["text"]) for f in self.lessons.speech.facts]))
        texts += [line for lines in HEARD.values() for line in lines]
        return self.lessons.read.vectors(texts), self.meant(texts)

    # inputs to rows

    @torch.no_grad()
    def embedded(self, means: Tensor, classes: Tensor, known: Tensor | None = None) -> Tensor:
        """Unit embeddings of pictures, of the last ones as they are known, in training with a little noise."""
        head = self.model.vision_head
        training = head.training
        head.eval()
        embeds = head(means[:, None], classes.softmax(-1))
        head.train(training)
        if known is not None:
            embeds = torch.cat([embeds[: len(embeds) - len(known)], known])
        return F.normalize(embeds + 0.02 * torch.randn_like(embeds), dim=-1) if training else embeds

    def pictures(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Embeddings and rows of pictures."""
        states, classes = batch["states"], batch["classes"]
        embeds = self.embedded(batch["means"], classes, batch.get("embeds"))
        if self.twin == "pictures":
            embeds, states, classes = (torch.zeros_like(x) for x in (embeds, states, classes))
        rows = self.model.placed(self.model.image_rows.project(states, self.dropout), classes.softmax(-1))
        return (embeds.roll(1, 0), rows.roll(1, 0)) if self.twin == "shuffled" else (embeds, rows)

    def clips(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings and rows of clips, and how things move; the cells were normed before they were averaged."""
        rows, model = self.model.image_rows, self.model
        embeds = self.embedded(batch["means"].flatten(0, 1), batch["classes"].flatten(0, 1))
        embeds = F.normalize(embeds.unflatten(0, batch["means"].shape[:2]).mean(1), dim=-1)
        cells = rows.projection(batch["cells"] * rows.norm.weight + rows.norm.bias)
        return embeds, model.moving(cells), model.motion(cells)

    def sounds(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Embeddings, rows, mask and uninstructed queries of sounds."""
        mask = batch["heard_mask"]
        embeds, rows = self.model.audio(batch["heard"], mask, 0.1)
        queries, more = self.model.drawn("audio", rows, mask)
        return F.normalize((embeds + more).float(), dim=-1), rows, mask, queries

    def stream(self, seen: dict[str, tuple], texts: list[str] | None = None) -> tuple[Tensor, Tensor]:
        """The C-Former's stream over inputs (embeddings, rows, mask or None, of clips how things move) and texts."""
        text, whole = (), ()
        if texts is not None:
            states, mask = self.lessons.read.batch(texts)
            text = (self.model.text_rows.project(states), mask)
            whole = (*text, self.meant(texts))
        drawn = {}
        for name, (embeds, rows, mask, *ways) in seen.items():
            queries = self.model.qformer(name, rows, mask, *(() if self.twin == "instruction" else text))
            count = len(queries) if texts is None else len(texts)
            parts = [x.repeat_interleave(count // len(x), 0) for x in (embeds.detach()[:, None], queries, *ways)]
            if texts is not None:
                parts.append(self.model.agreement(parts[0][:, 0], whole[-1]))
            drawn[name] = torch.cat([part.to(queries.dtype) for part in parts], 1)
        return self.model.cformer(drawn, *whole)

    @torch.no_grad()
    def meant(self, texts: list[str]) -> Tensor:
        """Unit embeddings of texts."""
        return F.normalize(self.model.text_projection(self.lessons.read.vectors(texts)).float(), dim=-1)

    def said(self, stream: tuple[Tensor, Tensor], texts: list[str]) -> Tensor:
        """How unlikely the texts are, a token; several of each item of the stream where there are more texts."""
        ids = self.lessons.vocabulary.batch([self.lessons.vocabulary.ids(text) for text in texts])
        model, target = self.model.decoder, ids[:, 1:]
        kept = target != PAD
        hidden = model.hidden(ids[:, :-1], *stream)[kept]
        return F.cross_entropy(
            F.linear(hidden, model.embed_tokens.weight).float(), target[kept], label_smoothing=self.smoothing
        )

    # lessons

    def captions(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        stream = self.stream({"image": (*self.pictures(batch), None)})
        losses = {"captions": self.said(stream, batch["texts"])}
        fused = F.normalize(self.model.fused_projection(stream[0][:, 0]).float(), dim=-1)
        each = len(batch["texts"]) // len(fused)
        vectors = self.lessons.read.vectors(batch["texts"][::each])
        meant = (vectors @ vectors.T / 0.05).softmax(1)
        return losses | {"fused": -(meant * (20 * fused @ vectors.T).log_softmax(1)).sum(1).mean()}

    def described(self, name: str, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Pictures that are not photographs, drawings or imagined ones: what is said of them."""
        return {name: self.said(self.stream({"image": (*self.pictures(batch), None)}), batch["texts"])}

    def questions(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        stream = self.stream({"image": (*self.pictures(batch), None)}, batch["questions"])
        return {"questions": self.said(stream, batch["texts"])}

    def heard(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Sounds: contrast with what they mean, captions, answers."""
        embeds, rows, mask, queries = self.sounds(batch)
        vectors = self.lessons.read.vectors(batch["meant"])
        known, known_meant = self.sentences
        among = (vectors @ known.T / 0.03).softmax(1)
        scores = 20 * embeds @ self.meant(batch["meant"]).T
        back = (vectors @ vectors.T / 0.03).softmax(1)
        contrast = -0.5 * (
            (among * (25 * embeds @ known_meant.T).log_softmax(1)).sum(1).mean()
            + (back * scores.T.log_softmax(1)).sum(1).mean()
        )
        real = batch["kinds"] >= 0
        classes = F.cross_entropy(20 * embeds[real] @ self.kinds.T, batch["kinds"][real])
        drawn = {"audio": torch.cat([embeds.detach()[:, None].to(queries.dtype), queries], 1)}
        losses = {"heard": contrast, "classes": classes, "sounds": self.said(self.model.cformer(drawn), batch["texts"])}
        asked = self.stream({"audio": (embeds, rows, mask)}, batch["questions"])
        return losses | {"asked": self.said(asked, batch["answers"])}

    def moved(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Clips: captions, of the last with their sounds, and answers."""
        embeds, rows, ways = self.clips(batch)
        narrated = len(batch["heard"])
        begun = len(rows) - narrated
        losses = []
        if begun:
            seen = (embeds[:begun], rows[:begun], None, ways[:begun])
            losses.append(self.said(self.stream({"video": seen}), batch["texts"][:begun]))
        if narrated:
            sound, heard, mask, _ = self.sounds(batch)
            both = {"video": (embeds[begun:], rows[begun:], None, ways[begun:]), "audio": (sound, heard, mask)}
            losses.append(self.said(self.stream(both), batch["texts"][begun:]))
        asked = self.stream({"video": (embeds, rows, None, ways)}, batch["questions"])
        return {"clips": torch.stack(losses).mean(), "moved": self.said(asked, batch["answers"])}

    def matched(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Which of a photograph's texts, of which the first is its own, fit: each by itself, and among each other."""
        embeds, rows = self.pictures(batch)
        texts = batch["questions"]
        stream, _ = self.stream({"image": (embeds, rows, None)}, texts)
        each = len(texts) // len(embeds)
        logits = self.model.matched(stream[:, 0], [embeds.repeat_interleave(each, 0)], self.meant(texts))
        fits = (torch.arange(len(texts)) % each == 0).long()
        alone = F.cross_entropy(logits, fits, torch.tensor([1.0, each - 1.0]))
        among = F.cross_entropy((logits[:, 1] - logits[:, 0]).view(-1, each), torch.zeros(len(embeds)).long())
        return {"match": 0.5 * (alone + among)}

    def silent(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Words alone, out of a noised sentence vector in the place of a picture's embedding, as the text tower of
        step 3 projects it."""
        with torch.no_grad():
            embeds = F.normalize(self.model.text_projection(batch["vectors"]), dim=-1)
            embeds = F.normalize(embeds + 0.03 * torch.randn_like(embeds), dim=-1)
        return {"silent": self.said(self.model.cformer({"image": embeds[:, None]}), batch["texts"])}


def find_near(model: BeyondVL, lessons: Lessons) -> None:
    """Of each photograph, others whose captions might be its own."""
    photographs = lessons.photographs
    with torch.no_grad():
        embeds = torch.from_numpy(photographs.pictures.arrays["embeds"][0]).float()
        vectors = lessons.read.vectors([words[0] for words in photographs.captions])
        photographs.find_near(embeds, vectors, F.normalize(model.text_projection(vectors), dim=-1))


def to_train(model: BeyondVL) -> list[nn.Parameter]:
    """What is trained here; the rest is held."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(FIXED))
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def plan(learner: Learner, rng: np.random.Generator, step: int, alone: int, only: list[str] | None) -> list[tuple]:
    """The lessons of a step and their batches."""
    lessons = learner.lessons
    if step < alone:
        return [(learner.silent, lessons.silent_batch(rng, 256))]
    photographs = lessons.photographs
    made = {
        "silent": lambda: (learner.silent, lessons.silent_batch(rng, 48)),
        "captions": lambda: (learner.captions, photographs.caption_batch(rng, 56, 4)),
        "imagined": lambda: (partial(learner.described, "imagined"), lessons.imagined.caption_batch(rng, 24, 2)),
        "questions": lambda: (learner.questions, lessons.question_batch(rng, 36, 32, 12)),
        "match": lambda: (learner.matched, photographs.match_batch(rng, 24)),
        "drawings": lambda: (partial(learner.described, "drawings"), lessons.drawing_batch(rng, 24)),
        "sounds": lambda: (learner.heard, lessons.sound_batch(rng, 24, 32)),
        "clips": lambda: (learner.moved, lessons.clip_batch(rng, 24, 10)),
    }
    odd = "silent" if photographs is lessons.imagined else "imagined"
    turn = ["captions", "questions", *([odd, "match"] if step % 2 else ["drawings", "sounds", "clips"])]
    return [made[name]() for name in only or turn]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fold", type=int, help="sounds of this fold are left out")
    parser.add_argument("--steps", type=int, default=1800)
    parser.add_argument("--alone", type=int, default=300, help="steps on words alone, before")
    parser.add_argument("--lr", type=float, default=7e-4)
    parser.add_argument("--queries", type=int, default=16)
    parser.add_argument("--layers", type=int, nargs=3, default=(2, 2, 3))
    parser.add_argument("--inner", type=int, default=1024)
    parser.add_argument("--keep", type=int, default=200)
    parser.add_argument("--only", nargs="+", help="lessons, by their names in `plan`")
    parser.add_argument("--begin", help="a file of this step in WORK to begin with; what it lacks begins anew")
    parser.add_argument("--open", action="store_true", help="without Flickr8k and DAQUAR, on imagined pictures")
    parser.add_argument("--twin", choices=("instruction", "pictures", "shuffled"))
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    lessons = Lessons(options.data, options.work, options.seed, options.fold, options.open)
    fixed = torch.load(options.work / f"heads-{options.seed}.pt", weights_only=True)
    head_size = len(fixed["vision_head.fc1.bias"])
    values = configuration(
        lessons.vocabulary.token_ids, options.queries, tuple(options.layers), options.inner, head_size
    )
    model = BeyondVL(values)
    model.load_state_dict({n: v for n, v in fixed.items() if n.startswith(FIXED)}, strict=False)
    learner = Learner(model, lessons, options.twin)
    find_near(model, lessons)
    if options.begin:
        model.load_state_dict(torch.load(options.work / options.begin, weights_only=False)["model"], strict=False)
    trained = to_train(model)
    print(f"{sum(p.numel() for p in trained) / 1e6:.1f} M parameters", flush=True)
    optimizer = torch.optim.AdamW(trained, lr=options.lr, weight_decay=0.05, betas=(0.95, 0.98))  # 0.85 at the top
    total = options.alone + options.steps
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, total, pct_start=0.1)
    tags = [str(options.seed), *([] if options.fold is None else [f"fold{options.fold}"]), *(options.only or [])]
    tags += [f"without-{options.twin}"] if options.twin else []
    path, first = options.work / f"joint-{'-'.join(tags)}.pt", 0
    if path.exists():
        saved = torch.load(path, weights_only=False)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        first = saved["step"]
        if saved["total"] != total:
            raise SystemExit(f"{path}: begun for {saved['total']} steps, expected {total}: name as many, or remove it")
    model.train()
    start, sums = time.time(), {}
    for step in range(first, total):
        rng = np.random.default_rng([options.seed, step])
        torch.manual_seed(options.seed << 20 | step)
        for lesson, batch in plan(learner, rng, step, options.alone, options.only):
            with mixed():
                losses = lesson(batch)
            sum(WEIGHTS[name] * loss for name, loss in losses.items()).backward()
            for name, loss in losses.items():
                sums.setdefault(name, []).append(loss.item())
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if (step + 1) % 50 == 0:
            print(f"step {step + 1}/{total}", {n: round(float(np.mean(v)), 3) for n, v in sums.items()},
                  f"{(time.time() - start) / (step + 1 - first):.2f} s a step", flush=True)  # fmt: skip
            sums = {}
        if (step + 1) % options.keep == 0 or step + 1 == total:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "config": values,
                        "schedule": schedule.state_dict(), "step": step + 1, "total": total}, path)  # fmt: skip


if __name__ == "__main__":
    main()
