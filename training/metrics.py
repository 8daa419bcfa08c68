"""What results are worth: captions, retrieval, answers, confidence; with intervals.

BLEU-n (Papineni et al., 2002) over the whole set: clipped counts of n-grams, the closest reference's length; CIDEr
(Vedantam et al., 2015) as the COCO server has it: tf-idf vectors of 1- to 4-grams, counts clipped to the reference's, a
penalty exp(-d^2 / 72) for a length that differs by d, times ten. Words are letters and figures in lower case, apart from
punctuation, as in the numbers that are published for Flickr8k.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Sequence

import numpy as np

__all__ = ["Cider", "bleu", "calibration_error", "cider", "interval", "recalls", "tokens"]

ORDER, SIGMA = 4, 6.0
WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")


def tokens(caption: str) -> list[str]:
    """The words of a caption."""
    return WORD.findall(caption.lower())


def ngrams(words: Sequence[Hashable], order: int = ORDER) -> Counter[tuple[Hashable, ...]]:
    """How often each run of up to `order` words comes."""
    return Counter(tuple(words[at : at + n]) for n in range(1, order + 1) for at in range(len(words) - n + 1))


def bleu(captions: Sequence[str], references: Sequence[Sequence[str]], order: int = ORDER) -> list[float]:
    """BLEU-1 to BLEU-`order` of captions, each beside its references, from 0 to 1."""
    right, guessed, length, closest = [0] * order, [0] * order, 0, 0
    for caption, others in zip(captions, references, strict=True):
        words = tokens(caption)
        counts, most = ngrams(words, order), Counter()
        for other in others:
            most |= ngrams(tokens(other), order)
        for gram, count in counts.items():
            right[len(gram) - 1] += min(count, most[gram])
        for n in range(order):
            guessed[n] += max(0, len(words) - n)
        length += len(words)
        closest += min((abs(size - len(words)), size) for size in (len(tokens(other)) for other in others))[1]
    brevity = 1.0 if length >= closest else math.exp(1 - closest / max(length, 1))
    scores, product = [], 1.0
    for n in range(order):
        product *= right[n] / guessed[n] if guessed[n] else 0.0
        scores.append(brevity * product ** (1 / (n + 1)))
    return scores


class Cider:
    """How alike captions and references are, all of them words or ids; the references say how rare a run of them is."""

    def __init__(self, references: Sequence[Sequence[Sequence[Hashable]]]):
        self.documents: Counter[tuple[Hashable, ...]] = Counter()
        for others in references:
            self.documents.update({gram for other in others for gram in ngrams(other)})
        self.scale = math.log(len(references))
        self.references = [[self.vector(other) for other in others] for others in references]

    def vector(self, words: Sequence[Hashable]) -> tuple[list[dict[tuple[Hashable, ...], float]], list[float], int]:
        parts: list[dict[tuple[Hashable, ...], float]] = [{} for _ in range(ORDER)]
        for gram, count in ngrams(words).items():
            parts[len(gram) - 1][gram] = count * (self.scale - math.log(max(1, self.documents[gram])))
        norms = [math.sqrt(sum(value**2 for value in part.values())) for part in parts]
        return parts, norms, max(0, len(words) - 1)

    def score(self, words: Sequence[Hashable], at: int) -> float:
        """CIDEr of a caption beside the references of one item."""
        parts, norms, length = self.vector(words)
        total = 0.0
        for theirs, their_norms, their_length in self.references[at]:
            penalty = math.exp(-((length - their_length) ** 2) / (2 * SIGMA**2))
            for part, norm, their, their_norm in zip(parts, norms, theirs, their_norms, strict=True):
                dot = sum(min(value, their.get(gram, 0.0)) * their.get(gram, 0.0) for gram, value in part.items())
                total += penalty * (dot / (norm * their_norm) if norm and their_norm else dot)
        return 10 * total / ORDER / len(self.references[at])


def cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """CIDEr of each caption (n,); their mean is the score. References of all of them say how rare a run of words is."""
    whole = Cider([[tokens(other) for other in others] for others in references])
    return np.array([whole.score(tokens(caption), at) for at, caption in enumerate(captions)])


def recalls(scores: np.ndarray, owners: np.ndarray, at: Sequence[int] = (1, 5, 10)) -> dict[str, dict[str, float]]:
    """Recall at k, in percent, of scores (pictures, texts) whose text j is of picture owners[j]: of each picture whether
    one of its texts is among the best k, of each text whether its picture is."""
    best = np.sort(np.where(owners[None] == np.arange(len(scores))[:, None], scores, -np.inf), 1)[:, -1]
    of_pictures = (scores > best[:, None]).sum(1)
    right = scores[owners, np.arange(len(owners))]
    of_texts = (scores > right[None]).sum(0)
    return {
        name: {f"R@{k}": float(100 * (ranks < k).mean()) for k in at}
        for name, ranks in (("picture -> text", of_pictures), ("text -> picture", of_texts))
    }


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error (Guo et al., 2017): how far confidence (n,) and the share that is right (n,) lie apart,
    over bins of equal width, weighted by what is in them."""
    at = np.minimum((confidence * bins).astype(int), bins - 1)
    apart = [
        abs(confidence[at == bin_].mean() - right[at == bin_].mean()) * (at == bin_).mean()
        for bin_ in range(bins)
        if (at == bin_).any()
    ]
    return float(sum(apart))


def interval(
    count: int, statistic: Callable[[np.ndarray], float], draws: int = 1000, share: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """The bootstrap interval of a statistic of items chosen with replacement; of two systems' difference it is paired
    where both are read at the same items."""
    rng = np.random.default_rng(seed)
    values = [statistic(rng.integers(0, count, count)) for _ in range(draws)]
    low, high = np.quantile(values, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)
