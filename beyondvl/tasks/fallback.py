"""When a window of sound is decoded again at a higher temperature, and when it holds no speech (Radford et al., 2023,
section 4.5).

A text is doubtful where its mean log-probability is below `logprob_threshold`, or its tokens compress so well that they
repeat themselves: bytes / zlib's bytes above `compression_ratio_threshold`. It is no speech where it is improbable and
the token for no speech, right after the start, has a probability above `no_speech_threshold`.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..config import Config
from ..generation import GenerationSettings, log_softmax, shaped

__all__ = ["OPTIONS", "Decoded", "Fallback", "LogProbs", "decode"]

THRESHOLDS = ("compression_ratio_threshold", "logprob_threshold", "no_speech_threshold")
OPTIONS = (*THRESHOLDS, "condition_on_prev_tokens", "prompt_condition_type")
PROMPTS = ("first-segment", "all-segments")
LOW = 0.5  # a text drawn at or above this temperature is no context for the next one


@dataclass(frozen=True)
class Fallback:
    """Names are transformers'; `temperatures` are tried one after the other, none: as the settings say."""

    temperatures: tuple[float, ...] = ()
    compression_ratio_threshold: float | None = None
    logprob_threshold: float | None = None
    no_speech_threshold: float | None = None
    condition_on_prev_tokens: bool = False
    prompt_condition_type: str = "first-segment"

    def __post_init__(self):
        for name in THRESHOLDS:
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name))
        for temperature in self.temperatures:
            check_number("temperature", temperature, 0)
        if type(self.condition_on_prev_tokens) is not bool:
            raise ValueError(
                f"condition_on_prev_tokens: found {self.condition_on_prev_tokens!r}, expected True or False"
            )
        if self.prompt_condition_type not in PROMPTS:
            raise ValueError(
                f"prompt_condition_type: found {self.prompt_condition_type!r}, expected one of {', '.join(PROMPTS)}"
            )
        if self.prompt_condition_type == PROMPTS[1] and not self.condition_on_prev_tokens:
            raise ValueError("prompt_condition_type: found 'all-segments', expected condition_on_prev_tokens=True too")
        if self.no_speech_threshold is not None and self.logprob_threshold is None:
            raise ValueError("no_speech_threshold: found no logprob_threshold, expected both")

    @classmethod
    def take(cls, settings: dict[str, Any], stated: Config) -> Fallback:
        """Out of a caller's settings, which lose them, over what generation_config.json states. A temperature above 0
        alone means that tokens are drawn. ValueError for what makes no sense."""
        chosen = {name: settings.pop(name, None) for name in OPTIONS}
        chosen = {name: stated.get(name) if value is None else value for name, value in chosen.items()}
        temperature = settings.get("temperature")
        several = isinstance(temperature, list | tuple | np.ndarray)
        if several or (temperature and settings.get("do_sample") is None):
            del settings["temperature"]
            chosen["temperatures"] = tuple(temperature) if several else (temperature,)
            if not chosen["temperatures"]:
                raise ValueError("temperature: found no number, expected one at least")
        return cls(**{name: value for name, value in chosen.items() if value is not None})

    @property
    def again(self) -> bool:
        """Whether any text is judged."""
        return any(getattr(self, name) is not None for name in THRESHOLDS)

    def at(self, settings: GenerationSettings, temperature: float | None) -> GenerationSettings:
        """The settings of an attempt."""
        if temperature is None:
            return settings
        if temperature == 0:
            return replace(settings, do_sample=False, temperature=1.0)
        return replace(settings, do_sample=True, temperature=float(temperature), num_beams=1)

    def judge(self, tokens: list[int], logprob: float | None, silence: float | None, vocab: int) -> tuple[bool, bool]:
        """Whether a text is doubtful, and whether it is no speech."""
        ratio, least, most = (getattr(self, name) for name in THRESHOLDS)
        unlikely = least is not None and logprob < least
        if most is not None and unlikely and silence > most:
            return False, True
        return unlikely or (ratio is not None and compression_ratio(tokens, vocab) > ratio), False


def check_number(name: str, value: Any, low: float = -math.inf) -> None:
    """ValueError for anything but a finite number, from `low`."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not low <= value < math.inf:
        raise ValueError(f"{name}: found {value!r}, expected a number" + (f" from {low}" if low > -math.inf else ""))


@dataclass
class Decoded:
    """Tokens of a window without the end; whether later ones may go on from them; whether it holds no speech."""

    tokens: list[int]
    steady: bool = True
    silent: bool = False


class LogProbs:
    """A logits processor that changes nothing and keeps how likely the tokens were: after it, `mean(item, tokens)`.

    A search goes several ways for each of its `items`, and a step tells only where they are: totals are kept by what
    stands after the prompt of `start` tokens.
    """

    def __init__(self, items: int, start: int, settings: GenerationSettings):
        self.items, self.start, self.settings = items, start, settings
        self.totals: dict[tuple[int, bytes], float] = {}
        self.ends: dict[tuple[int, bytes], np.ndarray] = {}
        self.last: dict[tuple[int, bytes], np.ndarray] = {}

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """ids (B, T), scores (B, vocabulary)."""
        drawn = self.settings.do_sample
        shares = log_softmax(shaped(scores, self.settings) * self.settings.temperature if drawn else scores)
        before, self.last = self.last, {}
        for row, tokens in enumerate(ids[:, self.start :]):
            item = row // (len(ids) // self.items)
            key, parent = (item, tokens.tobytes()), (item, tokens[:-1].tobytes())
            self.totals[key] = self.totals[parent] + float(before[parent][tokens[-1]]) if tokens.size else 0.0
            self.ends[key], self.last[key] = shares[row, list(self.settings.ends)], shares[row]
        return scores

    def mean(self, item: int, tokens: list[int]) -> float:
        """Of the tokens of an item, its end among them."""
        *words, last = tokens
        key = (item, np.array(words, np.int64).tobytes())
        ends = self.settings.ends
        share = self.ends[key][ends.index(last)] if last in ends else self.last[key][last]
        return (self.totals[key] + float(share)) / len(tokens)


def compression_ratio(tokens: list[int], vocab: int) -> float:
    """Bytes of the tokens over those that zlib makes of them."""
    size = int(math.log2(vocab) / 8) + 1
    data = b"".join(token.to_bytes(size, "little") for token in tokens)
    return len(data) / len(zlib.compress(data))


def decode(
    attempt: Callable[[list[int], GenerationSettings], tuple[list[list[int]], list[float | None]]],
    settings: GenerationSettings,
    fallback: Fallback,
    silence: np.ndarray,
    vocab: int,
) -> list[Decoded]:
    """What each item becomes, at the first temperature whose text is not doubtful, or at the last.

    `attempt` gives for some items their tokens up to the end and the mean of their log-probabilities; `silence`
    (items,) is how likely it is that nothing is said.
    """
    results: list[Decoded] = [Decoded([]) for _ in silence]
    waiting = list(range(len(silence)))
    for temperature in fallback.temperatures or (None,):
        rows, logprobs = attempt(waiting, fallback.at(settings, temperature))
        steady = temperature is None or temperature < LOW
        if not fallback.again:  # of several sequences of one item, too
            return [Decoded(words(row, settings), steady) for row in rows]
        doubtful = []
        for item, row, logprob in zip(waiting, rows, logprobs, strict=True):
            repeat, silent = fallback.judge(row, logprob, silence[item], vocab)
            results[item] = Decoded([] if silent else words(row, settings), steady, silent)
            doubtful += [item] if repeat else []
        waiting = doubtful
        if not waiting:
            break
    return results


def words(tokens: list[int], settings: GenerationSettings) -> list[int]:
    """Without the end."""
    return tokens[:-1] if tokens and tokens[-1] in settings.ends else tokens
