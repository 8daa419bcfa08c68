"""Words out: greedy search, sampling and beam search over a decoder, with transformers' names and meanings.

A decoder's program gives the logits of the next token for a batch of sequences; keys and values of the tokens so far
stay in a `_C.Cache`. Everything here is NumPy on (B, vocabulary) rows: the time goes into the program.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from . import _C
from .hub import open_folder
from .outputs import check_allowed, from_numpy, to_numpy

__all__ = ["Decoder", "GenerationConfig", "GenerationSettings", "generate", "stream"]

# accepted for the sake of callers of transformers, at the values that change nothing
NEUTRAL = {
    "use_cache": (None, True, False),
    "return_dict_in_generate": (None, False),
    "output_scores": (None, False),
    "interpolate_pos_encoding": (None, False),
}
# what None says of a setting, as in transformers: that there is none, whatever the checkpoint has
NOTHING = {"suppress_tokens": (), "begin_suppress_tokens": (), "logits_processor": (), "stopping_criteria": (),
           "temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0,
           "min_length": 0, "min_new_tokens": 0, "do_sample": False, "num_beams": 1, "length_penalty": 1.0,
           "early_stopping": False, "num_return_sequences": 1}  # fmt: skip
# of a GenerationConfig, what changes nothing here
ELSEWHERE = ("transformers_version", "bos_token_id", "decoder_start_token_id", "cache_implementation", "cache_config",
             "return_legacy_cache", "compile_config", "disable_compile", "output_attentions", "output_hidden_states",
             "output_logits", "remove_invalid_values", "renormalize_logits", "max_matching_ngram_size",
             "prompt_lookup_num_tokens", "target_lookbehind", "assistant_lookbehind", "token_healing")  # fmt: skip
NEVER = np.float32(-1e9)  # the score of what must not win, as transformers' beam search has it


def _is_id(value: Any) -> bool:
    return type(value) is not bool and isinstance(value, int | np.integer) and 0 <= value < 1 << 22


@dataclass(frozen=True)
class GenerationSettings:
    """How tokens are chosen; names and defaults are transformers'.

    Args:
        max_new_tokens: at most so many tokens after the prompt; None: max_length counts.
        max_length: tokens in all, the prompt included; None, like max_new_tokens: 20 new ones.
        min_new_tokens, min_length: no end of text before so many new tokens, or tokens in all.
        num_beams: 1 is greedy search or sampling; more is beam search.
        do_sample: draws the next token instead of taking the likeliest; of beams, which ones go on.
        temperature, top_k, top_p: shape the distribution that is drawn from; top_k 0 and top_p 1 change nothing, and
            where nothing is drawn neither does any of them.
        repetition_penalty: above 1, tokens already there become less likely (Keskar et al., 2019).
        no_repeat_ngram_size: no so many tokens in a row come twice; 0 allows it.
        length_penalty, early_stopping: how finished beams are scored, and when the search ends (True, False, "never").
        num_return_sequences: the best so many beams of each item, or so many samples.
        suppress_tokens, begin_suppress_tokens: ids that never come, or not as the first.
        logits_processor: functions (ids (B, T), scores (B, vocabulary)) -> scores, called in their order: of arrays, or
            of torch tensors where they are transformers'.
        stopping_criteria: functions of the same -> True, or (B,) of them, where a sequence is to end.
        streamer: is given the prompts (B, T) and each step's tokens (B,) by `put`, and told of the `end()`, as
            transformers' TextStreamer; greedy or sampled, no beams.
        eos_token_id, pad_token_id: what ends a sequence (one id or several) and what fills it up; set by the model.
        seed: of sampling; None draws a fresh one.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    min_new_tokens: int = 0
    min_length: int = 0
    num_beams: int = 1
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    num_return_sequences: int = 1
    eos_token_id: int | tuple[int, ...] = 0
    pad_token_id: int = 0
    seed: int | None = None
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    logits_processor: tuple[Callable[[Any, Any], Any], ...] = ()
    stopping_criteria: tuple[Callable[[Any, Any], Any], ...] = ()
    no_repeat_ngram_size: int = 0
    streamer: Any = None

    def __post_init__(self):
        sampled = self.do_sample is True and self.num_beams == 1
        whole = {"min_new_tokens": (0, 1 << 20), "min_length": (0, 1 << 20), "num_beams": (1, 1024),
                 "top_k": (0, 1 << 22), "no_repeat_ngram_size": (0, 1 << 20),
                 "num_return_sequences": (1, 1024 if sampled else self.num_beams),
                 "pad_token_id": (0, 1 << 22)}  # fmt: skip
        whole |= {n: (1, 1 << 20) for n in ("max_new_tokens", "max_length") if getattr(self, n) is not None}
        for name, (low, high) in whole.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise ValueError(f"{name}: found {value!r}, expected a whole number from {low} to {high}")
        for name, high in {"temperature": 1e6, "top_p": 1.0, "repetition_penalty": 1e6}.items():
            value, bound = getattr(self, name), "from"
            if name == "repetition_penalty" or (name == "temperature" and self.do_sample):
                bound = "above"
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 <= value <= high or (bound == "above" and value == 0):
                raise ValueError(f"{name}: found {value!r}, expected a number {bound} 0, at most {high:g}")
        if type(self.do_sample) is not bool:
            raise ValueError(f"do_sample: found {self.do_sample!r}, expected True or False")
        penalty = self.length_penalty
        if isinstance(penalty, bool) or not isinstance(penalty, int | float) or not -50 <= penalty <= 50:
            raise ValueError(f"length_penalty: found {penalty!r}, expected a number from -50 to 50")
        if type(self.early_stopping) is not bool and self.early_stopping != "never":
            raise ValueError(f"early_stopping: found {self.early_stopping!r}, expected True, False or 'never'")
        if not self.ends:
            raise ValueError("eos_token_id: found no ids, expected at least one")
        if self.seed is not None and (type(self.seed) is not int or self.seed < 0):
            raise ValueError(f"seed: found {self.seed!r}, expected a whole number from 0, or None")
        for name, value in self._ids.items():
            if not isinstance(value, list | tuple | np.ndarray) or not all(map(_is_id, value)):
                raise ValueError(f"{name}: found {value!r}, expected token ids")
        if self.streamer is not None:
            if self.num_beams > 1:
                raise ValueError(f"streamer: found one and num_beams {self.num_beams}, expected no beams")
            if not all(callable(getattr(self.streamer, name, None)) for name in ("put", "end")):
                raise ValueError(f"streamer: found {self.streamer!r:.100}, expected an object with put and end")
        for name in ("logits_processor", "stopping_criteria"):
            functions = getattr(self, name)
            if not isinstance(functions, list | tuple) or not all(map(callable, functions)):
                raise ValueError(f"{name}: found {functions!r}, expected functions of ids and scores")

    @property
    def ends(self) -> tuple[int, ...]:
        """Every id that ends a sequence."""
        value = self.eos_token_id
        return tuple(value) if isinstance(value, list | tuple | np.ndarray) else (value,)

    @property
    def _ids(self) -> dict[str, Any]:
        """Every setting that holds token ids which the decoder gives scores to."""
        names = ("suppress_tokens", "begin_suppress_tokens")
        return {name: getattr(self, name) for name in names} | {"eos_token_id": self.ends}

    def updated(self, changes: dict[str, Any]) -> GenerationSettings:
        """With some settings changed: those of a `generation_config` (transformers', or a dictionary), then the others.
        None says that there is none; of a length, an id and a seed it leaves what was. TypeError names an unknown one,
        ValueError one of transformers' that is not available here."""
        known = [f.name for f in fields(self)]
        changes = config_settings(changes.get("generation_config"), known) | changes
        changes.pop("generation_config", None)
        for name in (name for name in changes if name in NEUTRAL):
            check_allowed(name, changes[name], NEUTRAL[name])
        changes = {name: NOTHING.get(name) if value is None else value for name, value in changes.items()}
        changes = {name: value for name, value in changes.items() if name not in NEUTRAL and value is not None}
        unknown = [name for name in changes if name not in known]
        if unknown:
            raise TypeError(f"generate() got unexpected arguments: {', '.join(unknown)}; known: {', '.join(known)}")
        plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in changes.items()}
        return replace(self, **plain)

    def check_ids(self, vocab: int) -> None:
        """ValueError for an id beyond the decoder's vocabulary."""
        for name, ids in self._ids.items():
            if beyond := [i for i in ids if i >= vocab]:
                raise ValueError(f"{name}: found {beyond[0]}, expected at most {vocab - 1} (the vocabulary)")

    def lengths(self, prompt: int, positions: int) -> tuple[int, int]:
        """Least and most tokens in all, after a prompt of that many; ValueError beyond the decoder's positions."""
        if self.max_new_tokens is not None:
            most = prompt + self.max_new_tokens
        else:
            most = min(prompt + 20, positions) if self.max_length is None else self.max_length
        least = max(self.min_length, prompt + self.min_new_tokens if self.min_new_tokens else 0)
        if most <= prompt:
            raise ValueError(f"max_length: found {most} and a prompt of {prompt} tokens, expected room for one more")
        if most > positions:
            raise ValueError(
                f"a prompt of {prompt} tokens and {most - prompt} new ones: found {most} in all, expected at most "
                f"{positions} (its positions)"
            )
        return least, most


class GenerationConfig:
    """Settings by transformers' names, as generation_config.json holds them: `generate(generation_config=...)` takes
    those it knows, and refuses by name what it cannot do."""

    def __init__(self, **settings: Any):
        self.__dict__.update(settings)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> GenerationConfig:
        """Of a folder or a hub id. ConfigError where it has no generation_config.json."""
        folder = open_folder(pretrained_model_name_or_path, kwargs)
        return cls(**(folder.json("generation_config.json") | kwargs))

    def to_dict(self) -> dict[str, Any]:
        """All of them."""
        return dict(self.__dict__)

    def __repr__(self) -> str:
        return f"GenerationConfig({', '.join(f'{name}={value!r}' for name, value in self.__dict__.items())})"


def stated_settings(config: Any) -> dict[str, Any]:
    """All that a GenerationConfig says, transformers' or ours, or a dictionary; nothing of None."""
    if config is None:
        return {}
    stated = config if isinstance(config, dict) else getattr(config, "to_diff_dict", getattr(config, "to_dict", None))
    stated = stated() if callable(stated) else stated
    if not isinstance(stated, dict):
        raise ValueError(f"generation_config: found {type(config).__name__}, expected a GenerationConfig")
    return {name: value for name, value in stated.items() if value is not None}


def config_settings(config: Any, known: list[str]) -> dict[str, Any]:
    """The settings that a GenerationConfig states. ValueError for one that would change something and is not known."""
    stated = {name: value for name, value in stated_settings(config).items() if name not in ELSEWHERE}
    names = {name for name in stated if name in known or name in NEUTRAL}
    if unknown := sorted(name for name in set(stated) - names if stated[name] is not False and name[0] != "_"):
        raise ValueError(f"generation_config: found {unknown[0]}, which is not available here")
    return {name: stated[name] for name in names}


def outcome(function: Callable[[Any, Any], Any], ids: np.ndarray, scores: np.ndarray) -> Any:
    """What a caller's function makes of ids and scores: arrays, but torch tensors for classes of transformers."""
    if not any(base.__module__.partition(".")[0] == "transformers" for base in type(function).__mro__):
        return function(ids, scores)
    result = function(from_numpy(ids, "pt"), from_numpy(scores, "pt"))
    return to_numpy(result, "logits_processor") if hasattr(result, "detach") else result


def stopped(settings: GenerationSettings, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Which sequences (B,) a caller's criterion ends."""
    ended = np.zeros(len(ids), bool)
    for criterion in settings.stopping_criteria:
        ended |= np.asarray(outcome(criterion, ids, scores), bool)
    return ended


def repeats(ids: np.ndarray, size: int) -> list[np.ndarray]:
    """Of each row the tokens that would make its last `size` ones come a second time."""
    if ids.shape[1] < size:
        return [ids[:0, 0]] * len(ids)
    runs = np.lib.stride_tricks.sliding_window_view(ids, size, axis=1)
    same = (runs[:, :, : size - 1] == ids[:, None, ids.shape[1] - size + 1 :]).all(2)
    return [row[at] for row, at in zip(runs[:, :, -1], same, strict=True)]


class Decoder:
    """A decoder's program over a batch of sequences: `next_logits` appends tokens and says what may follow.

    `source` is what the sequences are about: a `_C.Context` for each ("contexts"), or features (B, n, D) that stand in
    for the prompt's placeholders ("features"), where these differ in number a list of (n, D).
    """

    def __init__(self, tower: Any, source: dict[str, Any], batch: int, capacity: int, num_threads: int):
        self.tower, self.num_threads = tower, num_threads
        self.source = {
            n: np.concatenate(v) if n == "features" and isinstance(v, list) else v for n, v in source.items()
        }
        self.cache = _C.Cache(tower.program, batch, capacity)

    def next_logits(self, ids: np.ndarray, mask: np.ndarray | None, positions: np.ndarray | None) -> np.ndarray:
        """(B, vocabulary) float32 after ids (B, T); mask (B, tokens so far + T), positions (B, T)."""
        inputs = {"input_ids": np.ascontiguousarray(ids, np.int64), "cache": self.cache, **self.source}
        for name, value in (("attention_mask", mask), ("position_ids", positions)):
            inputs[name] = None if value is None else np.ascontiguousarray(value, np.int64)
        logits = self.tower.run(inputs, ["next_logits"], self.num_threads)["next_logits"]
        self.source.pop("features", None)  # the placeholders are all in the prompt
        return logits

    def reorder(self, items: np.ndarray) -> None:
        """Sequence i goes on from where sequence items[i] was."""
        self.cache.reorder(np.ascontiguousarray(items, np.int64))


class Prompt:
    """Ids, mask and positions of the tokens so far, growing by one a step.

    Positions count the tokens a mask keeps; of a masked token the position is 0, and the next one counts on from the
    last column, whatever it holds: transformers' rule for padding on the right. `padding` (B, 1) counts that on the
    left.
    """

    def __init__(self, ids: np.ndarray, mask: np.ndarray | None):
        self.ids, self.fresh, self.length = ids, ids, ids.shape[1]
        self.mask = None if mask is None or mask.all() else mask.astype(np.int64)
        self.positions = None
        self.padding = np.zeros((len(ids), 1), np.int64)
        if self.mask is not None:
            self.positions = np.where(self.mask == 0, 0, self.mask.cumsum(1) - 1)
            self.padding = (self.mask != 0).argmax(1)[:, None]

    def append(self, tokens: np.ndarray) -> None:
        self.fresh = tokens[:, None]
        if self.mask is not None:
            self.mask = np.concatenate([self.mask, np.ones_like(self.fresh)], axis=1)
            self.positions = self.positions[:, -1:] + 1

    def repeated(self, times: int) -> Prompt:
        return Prompt(self.ids.repeat(times, 0), None if self.mask is None else self.mask.repeat(times, 0))


def log_softmax(rows: np.ndarray) -> np.ndarray:
    shifted = rows - rows.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def processed(
    scores: np.ndarray, ids: np.ndarray, prompt: Prompt, settings: GenerationSettings, least: int
) -> np.ndarray:
    """Scores (B, vocabulary) after the repetition penalty, which the padding before a prompt does not call for, without
    what is suppressed, nor an end of text before its time, and after the caller's own functions."""
    if settings.repetition_penalty != 1:
        padding = prompt.padding
        said = np.where(np.arange(ids.shape[1]) < padding, np.take_along_axis(ids, padding, 1), ids)
        seen = np.take_along_axis(scores, said, 1)
        penalty = np.float32(settings.repetition_penalty)
        np.put_along_axis(scores, said, np.where(seen < 0, seen * penalty, seen / penalty), 1)
    if settings.no_repeat_ngram_size:
        for row, tokens in zip(scores, repeats(ids, settings.no_repeat_ngram_size), strict=True):
            row[tokens] = -np.inf
    if ids.shape[1] == prompt.length:
        scores[:, list(settings.begin_suppress_tokens)] = -np.inf
    scores[:, list(settings.suppress_tokens)] = -np.inf
    if ids.shape[1] < least:
        scores[:, list(settings.ends)] = -np.inf
    for process in settings.logits_processor:
        shape = scores.shape
        scores = outcome(process, ids, scores)
        if not isinstance(scores, np.ndarray) or scores.shape != shape:
            raise ValueError(f"logits_processor: returned {type(scores).__name__}, expected scores of shape {shape}")
    return scores


def shaped(scores: np.ndarray, settings: GenerationSettings) -> np.ndarray:
    """Scores (B, vocabulary) float64 of what temperature, top_k and top_p leave: of beams one more than may end."""
    scores = scores.astype(np.float64) / settings.temperature
    least = 1 if settings.num_beams == 1 else 1 + len(settings.ends)
    top_k = max(settings.top_k, least)
    if settings.top_k and top_k < scores.shape[1]:
        kth = np.partition(scores, -top_k, 1)[:, -top_k, None]
        scores[scores < kth] = -np.inf
    if settings.top_p < 1:
        order = np.argsort(scores, 1)
        below = np.exp(log_softmax(np.take_along_axis(scores, order, 1))).cumsum(1) <= 1 - settings.top_p
        below[:, -least:] = False
        np.put_along_axis(scores, order, np.where(below, -np.inf, np.take_along_axis(scores, order, 1)), 1)
    return scores


def drawn(scores: np.ndarray, settings: GenerationSettings, rng: np.random.Generator) -> np.ndarray:
    """One token a row from the distribution that is left."""
    scores = shaped(scores, settings)
    shares = np.exp(log_softmax(scores)).cumsum(1)
    at = (shares < rng.random((len(shares), 1)) * shares[:, -1:]).sum(1)
    return np.minimum(at, scores.shape[1] - 1)


def stream(decoder: Decoder, prompt: Prompt, settings: GenerationSettings, positions: int) -> Iterator[np.ndarray]:
    """Tokens (B,) one step after the other, by greedy search or sampling; a finished row gives the pad id."""
    least, most = settings.lengths(prompt.ids.shape[1], positions)
    rng = np.random.default_rng(settings.seed)
    ids, running = prompt.ids, np.ones(len(prompt.ids), bool)
    while ids.shape[1] < most and running.any():
        logits = decoder.next_logits(prompt.fresh, prompt.mask, prompt.positions)
        scores = processed(logits, ids, prompt, settings, least)
        tokens = drawn(scores, settings, rng) if settings.do_sample else scores.argmax(1)
        tokens = np.where(running, tokens, settings.pad_token_id)
        running &= ~np.isin(tokens, settings.ends)
        ids = np.concatenate([ids, tokens[:, None]], axis=1)
        running &= ~stopped(settings, ids, scores)
        prompt.append(tokens)
        yield tokens.copy()  # the next step reads these


def take(rows: np.ndarray, at: np.ndarray) -> np.ndarray:
    """rows[b, at[b, i]] for rows (B, n, ...) and at (B, k)."""
    return np.take_along_axis(rows, at.reshape(*at.shape, *[1] * (rows.ndim - 2)), 1)


def best(scores: np.ndarray, count: int) -> np.ndarray:
    """Places of the `count` largest of each row, largest first; the first of equals comes first."""
    if count < scores.shape[1]:
        few = np.sort(np.argpartition(-scores, count - 1, 1)[:, :count], 1)
        return np.take_along_axis(few, np.argsort(-np.take_along_axis(scores, few, 1), 1, kind="stable"), 1)
    return np.argsort(-scores, 1, kind="stable")[:, :count]


def beam_search(decoder: Decoder, prompt: Prompt, settings: GenerationSettings, positions: int) -> np.ndarray:
    """The best sequences of a beam search, (B * num_return_sequences, length), padded.

    Twice as many continuations as beams are kept each step (more where several ids end a sequence), so that enough
    unfinished ones remain when some end. A finished sequence scores its log-probability / length ** length_penalty; the
    search of an item is over when its best running beam can no longer beat its worst finished one. With `do_sample` the
    continuations kept are drawn without replacement: the largest after noise of Gumbel's distribution (Kool et al.,
    2019).
    """
    rng = np.random.default_rng(settings.seed)
    beams, kept_each = settings.num_beams, max(2, 1 + len(settings.ends)) * settings.num_beams
    B, start = len(prompt.ids) // beams, prompt.ids.shape[1]
    least, most = settings.lengths(start, positions)
    # transformers fills with the end of text where the pad id is 0
    running = np.full((B, beams, most), settings.pad_token_id or settings.ends[0], np.int64)
    running[:, :, :start] = prompt.ids.reshape(B, beams, start)
    finished, scores = running.copy(), np.zeros((B, beams), np.float32)
    scores[:, 1:] = NEVER  # all beams are alike at first: only one may go on
    finished_scores = np.full((B, beams), NEVER, np.float32)
    done, improvable = np.zeros((B, beams), bool), np.ones((B, 1), bool)
    lengths = np.zeros((B, beams), np.int64)
    length = start
    while True:
        logits = decoder.next_logits(prompt.fresh, prompt.mask, prompt.positions)
        ids = running[:, :, :length].reshape(B * beams, length)
        step = processed(log_softmax(logits), ids, prompt, settings, least)
        vocabulary = step.shape[1]
        if settings.do_sample:
            step = shaped(step, settings).astype(np.float32)
        step = (step.reshape(B, beams, -1) + scores[:, :, None]).reshape(B, -1)
        places = best(step + rng.gumbel(size=step.shape) if settings.do_sample else step, kept_each)
        candidates = np.take_along_axis(step, places, 1)
        source, tokens = places // vocabulary, places % vocabulary
        grown = take(running, source)
        grown[:, :, length] = tokens
        ends = np.isin(tokens, settings.ends) | (length + 1 >= most)
        if settings.stopping_criteria:
            flat = grown[:, :, : length + 1].reshape(-1, length + 1)
            ends |= stopped(settings, flat, step).reshape(ends.shape)

        kept = best(candidates + ends * NEVER, beams)
        running, scores = take(grown, kept), take(candidates + ends * NEVER, kept)

        just = ends & (np.arange(kept_each) < beams)
        value = candidates / np.float32((length + 1 - start) ** settings.length_penalty)
        value += (done.all(1, keepdims=True) & (settings.early_stopping is True)) * NEVER
        value += ~improvable * NEVER + ~just * NEVER
        merged = np.concatenate([finished_scores, value.astype(np.float32)], 1)
        chosen = best(merged, beams)
        finished = take(np.concatenate([finished, grown], 1), chosen)
        lengths = take(np.concatenate([lengths, np.full(just.shape, length + 1 - start)], 1), chosen)
        done, finished_scores = take(np.concatenate([done, just], 1), chosen), take(merged, chosen)

        length += 1
        hope = most - start if settings.early_stopping == "never" and settings.length_penalty > 0 else length - start
        worst = np.where(done, finished_scores.min(1, keepdims=True), NEVER)
        improvable &= (scores[:, :1] / hope**settings.length_penalty > worst).any(1, keepdims=True)
        full = done.all() and settings.early_stopping is True
        if not improvable.any() or full or ends.all():
            break
        decoder.reorder((take(source, kept) + np.arange(B)[:, None] * beams).reshape(-1))
        prompt.append(running[:, :, length - 1].reshape(-1))
    wanted = settings.num_return_sequences
    return finished[:, :wanted, : start + lengths[:, :wanted].max()].reshape(B * wanted, -1)


def generate(
    tower: Any,
    source: dict[str, Any],
    ids: np.ndarray,
    mask: np.ndarray | None,
    settings: GenerationSettings,
    num_threads: int,
) -> np.ndarray:
    """Prompts and what follows them, (B * num_return_sequences, length) int64; what ended early is padded."""
    positions, vocab = (tower.program.info()[name] for name in ("max_positions", "vocab_size"))
    _, most = settings.lengths(ids.shape[1], positions)
    settings.check_ids(vocab)
    times = settings.num_beams if settings.num_beams > 1 else settings.num_return_sequences
    prompt, source = Prompt(ids, mask).repeated(times), _repeated(source, times)
    decoder = Decoder(tower, source, len(ids) * times, most, num_threads)
    if settings.num_beams > 1:
        return beam_search(decoder, prompt, settings, positions)
    steps = [prompt.ids]
    if settings.streamer is not None:
        settings.streamer.put(prompt.ids)
    for tokens in stream(decoder, prompt, settings, positions):
        steps.append(tokens[:, None])
        if settings.streamer is not None:
            settings.streamer.put(tokens)
    if settings.streamer is not None:
        settings.streamer.end()
    return np.concatenate(steps, axis=1)


def _repeated(source: dict[str, Any], times: int) -> dict[str, Any]:
    """What each sequence is about, so many times in a row."""
    if times == 1:
        return source
    return {
        name: [item for item in value for _ in range(times)] if isinstance(value, list) else value.repeat(times, 0)
        for name, value in source.items()
    }
