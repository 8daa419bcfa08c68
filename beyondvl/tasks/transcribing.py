"""Speech to text: prompts, rules of timestamps and windows (Radford et al., 2023)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ..config import Config
from ..errors import ConfigError
from ..families.registry import Speech
from ..generation import GenerationSettings, generate, log_softmax
from ..models.model import check_neutral
from ..outputs import ModelOutput, check_count, from_numpy, kind_of, to_numpy
from ..processing.audio import MOST_SECONDS
from .base import TaskModel, text_inputs

__all__ = ["TranscribingModel"]

Segment = tuple[float, float | None, list[int]]  # begin, end, tokens
WHOLE = {"truncation": False, "padding": "longest"}  # features of a sound of any length


@dataclass
class Track:
    """A sound that is heard window by window."""

    sound: np.ndarray
    features: np.ndarray | None = None  # (1, mels, frames)
    frames: int = 0
    at: int = 0  # where the next window begins
    spoken: list[int] = field(default_factory=list)  # the language's token, where there are languages
    segments: list[Segment] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return 0 < self.frames <= self.at


class TranscribingModel(TaskModel):
    """Writes down, or translates into English, what is said in a sound; with the times of its segments."""

    # ---- what the checkpoint says

    @property
    def speech(self) -> Speech:
        """The family's words."""
        return self.head.speech

    @cached_property
    def _stated(self) -> Config:
        """Fields of generation_config.json over those of the model's own config, where older checkpoints keep them."""
        stated = self.files.config("generation_config.json")
        return stated.over(self.config) if "generation_config.json" in self.files else self.config

    @cached_property
    def tokens(self) -> dict[str, int]:
        """Ids that generation begins, ends and pads with."""
        return self.head.tokens(self._stated)

    @cached_property
    def _vocab(self) -> int:
        return self.config.integer("vocab_size", 51865, 1, 1 << 20)

    def _token(self, stated: Config, name: str, token: str) -> int:
        """A token's id: stated under that name, or what the tokenizer has it under."""
        if stated.get(name) is not None:
            return stated.integer(name, None, 0, self._vocab - 1)
        found = self.tokenizer.get_vocab().get(token)
        if found is None:
            raise ConfigError(f"generation_config.json: {name} is missing, and the tokenizer has no {token}")
        return found

    @cached_property
    def languages(self) -> dict[str, int]:
        """Language code -> its token; empty for English-only checkpoints."""
        stated = self._stated.section("lang_to_id")
        if names := list(stated.to_dict()):
            return {str(token)[2:-2]: stated.integer(token, None, 0, self._vocab - 1) for token in names}
        if self._stated.get("is_multilingual", self._vocab >= 51865) is not True:
            return {}
        known = self.tokenizer.get_vocab()
        return {code: known[f"<|{code}|>"] for code in self.speech.languages if f"<|{code}|>" in known}

    def _task_token(self, task: str) -> int:
        if task not in self.speech.tasks:
            raise ValueError(f"task: found {task!r}, expected one of {', '.join(self.speech.tasks)}")
        return self._token(self._stated.section("task_to_id"), task, f"<|{task}|>")

    @cached_property
    def _no_timestamps(self) -> int:
        """The token after which the timestamps lie."""
        found = self._token(self._stated, "no_timestamps_token_id", "<|notimestamps|>")
        if found + 1 >= self._vocab:
            raise ConfigError(
                f"generation_config.json: no_timestamps_token_id: found {found}, expected timestamps after it"
            )
        return found

    def _ids(self, name: str) -> tuple[int, ...]:
        """A list of ids; those below 0 mean nothing."""
        value = self._stated.get(name)
        if value is not None and (
            not isinstance(value, list) or not all(type(i) is int and i < self._vocab for i in value)
        ):
            raise ConfigError(f"generation_config.json: {name}: found {value!r}, expected ids below {self._vocab}")
        return tuple(i for i in value or () if i >= 0)

    def _language_token(self, language: str) -> int:
        """Of a code ("en"), a name ("english") or a token ("<|en|>")."""
        code = self.speech.code(language)
        if code not in self.languages:
            known = ", ".join(self.languages) or "none: this checkpoint is English-only"
            raise ValueError(f"language: found {language!r}, expected one of {known}")
        return self.languages[code]

    @cached_property
    def _forced(self) -> tuple[str | None, str | None]:
        """Language and task that the checkpoint asks for where the caller does not: by name, or as older ones have it,
        as the tokens at places 1 and 2."""
        language, task = self._stated.get("language"), self._stated.get("task")
        places = self._stated.get("forced_decoder_ids")
        if language is None and task is None and isinstance(places, list):
            at = {row[0]: row[1] for row in places if isinstance(row, list) and len(row) == 2}
            language = next((code for code, token in self.languages.items() if token == at.get(1)), None)
            tasks = self.speech.tasks if self.languages else ()
            task = next((name for name in tasks if self._task_token(name) == at.get(2)), None)
        return language, task

    @cached_property
    def generation_settings(self) -> GenerationSettings:
        """The defaults of `generate`: transformers', the checkpoint's, and as many tokens as it has positions."""
        ids = {name: self.tokens[name] for name in ("eos_token_id", "pad_token_id")}
        most = self.config.integer("max_target_positions", 448, 1, 1 << 16)
        most = min(most, self._stated.integer("max_length", most, 2, 1 << 20))
        return GenerationSettings(**ids, max_length=most, num_beams=self._stated.integer("num_beams", 1, 1, 1024),
                                  suppress_tokens=self._ids("suppress_tokens"),
                                  begin_suppress_tokens=self._ids("begin_suppress_tokens"))  # fmt: skip

    # ---- the encoder and the decoder

    def _heard(self, input_features: Any, wanted: tuple[str, ...] = ("context",)) -> dict[str, Any]:
        if input_features is None:
            raise ValueError("input_features: not given, expected (B, mels, frames) float32")
        return self.run_tower("audio", {"input_features": input_features}, list(wanted))

    def __call__(
        self,
        input_features: Any = None,
        decoder_input_ids: Any = None,
        decoder_attention_mask: Any = None,
        **kwargs: Any,
    ) -> ModelOutput:
        """`logits` (B, L, vocabulary) of the token after each of decoder_input_ids (B, L), and
        `encoder_last_hidden_state` (B, frames / 2, d_model)."""
        check_neutral(kwargs)
        if decoder_input_ids is None:
            raise ValueError("decoder_input_ids: not given, expected (B, L) integers; `generate` needs none")
        text = text_inputs(decoder_input_ids, decoder_attention_mask)
        heard = self._heard(input_features, ("last_hidden_state", "context"))
        if len(heard["context"]) != len(text["input_ids"]):
            raise ValueError(f"decoder_input_ids: found {len(text['input_ids'])} texts and {len(heard['context'])} "
                             "sounds, expected as many")  # fmt: skip
        kind = kind_of(input_features, decoder_input_ids)
        return ModelOutput(
            logits=from_numpy(self._logits(text, {"contexts": heard["context"]}), kind),
            encoder_last_hidden_state=from_numpy(heard["last_hidden_state"], kind),
        )

    def detect_language(self, input_features: Any) -> Any:
        """Tokens (B,) int64 of the languages spoken: the likeliest of those the checkpoint knows."""
        return from_numpy(self._spoken(self._heard(input_features)["context"]), kind_of(input_features))

    def _spoken(self, contexts: list[Any]) -> np.ndarray:
        if not self.languages:
            raise ValueError("language: this checkpoint is English-only, it tells no languages apart")
        known = np.array(list(self.languages.values()))
        ids = np.full((len(contexts), 1), self.tokens["decoder_start_token_id"], np.int64)
        return known[self._logits({"input_ids": ids}, {"contexts": contexts})[:, 0, known].argmax(1)]

    def generate(
        self,
        input_features: Any = None,
        *,
        language: str | list[str] | None = None,
        task: str | None = None,
        return_timestamps: bool | None = None,
        attention_mask: Any = None,
        **settings: Any,
    ) -> Any:
        """Token ids (B * num_return_sequences, length) int64 of what is said in each spectrogram, without the prompt
        and the end.

        Args:
            input_features: (B, mels, 3000) float32, of the processor.
            language: a code, a name, or one for each item; None: what the checkpoint asks for, else the likeliest
                (English-only checkpoints have none).
            task: "transcribe" or "translate", into English; None: what the checkpoint asks for, else the former.
            return_timestamps: with tokens for the times between which each segment is said; None: as the checkpoint
                says, else without.
            attention_mask: changes nothing, as in transformers: the encoder hears the silence too.
            settings: see GenerationSettings; and prompt_ids, of `get_prompt_ids`: what was said before.
        """
        if return_timestamps is None:
            return_timestamps = self._stated.get("return_timestamps", False)
        contexts = self._heard(input_features)["context"]
        found = self._written(contexts, self._spoken_or(contexts, language), task, return_timestamps, settings)
        settings.pop("prompt_ids", None)
        most, pad = max(map(len, found)), self.generation_settings.updated(settings).pad_token_id
        ids = np.array([row + [pad] * (most - len(row)) for row in found], np.int64).reshape(len(found), most)
        return from_numpy(ids, kind_of(input_features))

    def _spoken_or(self, contexts: list[Any], language: str | list[str] | None) -> list[int]:
        """A token of language for each item; none where the checkpoint has no languages."""
        if not self.languages and language is None:
            return []
        language = self._forced[0] if language is None else language
        if language is None:
            return self._spoken(contexts).tolist()
        if not isinstance(language, str | list | tuple):
            raise ValueError(f"language: found {language!r}, expected a language, or a list of them")
        given = [language] * len(contexts) if isinstance(language, str) else list(language)
        if len(given) != len(contexts):
            raise ValueError(f"language: found {len(given)}, expected one, or {len(contexts)}")
        return [self._language_token(each) for each in given]

    def _written(
        self, contexts: list[Any], languages: list[int], task: str | None, timestamps: bool, settings: dict[str, Any]
    ) -> list[list[int]]:
        """Tokens of each item, without the prompt and the end."""
        if timestamps not in (True, False):
            raise ValueError(f"return_timestamps: found {timestamps!r}, expected True or False: of segments, not words")
        if task is not None and not languages:
            self._task_token(task)
            raise ValueError(f"task: found {task!r}, and this checkpoint is English-only: it transcribes")
        settings = dict(settings)
        before = self._before(settings.pop("prompt_ids", None))
        start = self.tokens["decoder_start_token_id"]
        task = task or self._forced[1] or self.speech.tasks[0]
        rest = ([self._task_token(task)] if languages else []) + ([] if timestamps else [self._no_timestamps])
        ids = np.array([[*before, start, *languages[i : i + 1], *rest] for i in range(len(contexts))], np.int64)
        chosen = self.generation_settings.updated(settings)
        if timestamps:
            first = self._stated.get("max_initial_timestamp_index")
            first = None if first is None else self._stated.integer("max_initial_timestamp_index", None, 0, self._vocab)
            rule = timestamp_rule(self._no_timestamps, chosen.ends[0], ids.shape[1], first)
            chosen = chosen.updated({"logits_processor": (rule, *chosen.logits_processor)})
        found = generate(self.tower("decoder"), {"contexts": contexts}, ids, None, chosen, self.num_threads)
        rows = [row[ids.shape[1] :] for row in found.tolist()]
        return [list(itertools.takewhile(lambda token: token not in chosen.ends, row)) for row in rows]

    def _before(self, prompt_ids: Any) -> list[int]:
        """What was said before, as `get_prompt_ids` of the processor gives it. ValueError for what is no such thing."""
        if prompt_ids is None:
            return []
        found = to_numpy(prompt_ids, "prompt_ids")
        if found.ndim != 1 or found.dtype.kind not in "iu" or not found.size or not (found >= 0).all():
            raise ValueError(f"prompt_ids: found {prompt_ids!r:.100}, expected ids (n,) of get_prompt_ids")
        return found.tolist()

    # ---- sounds of any length

    def transcribe(
        self,
        audio: Any,
        *,
        sampling_rate: int | None = None,
        language: str | None = None,
        task: str | None = None,
        return_timestamps: bool = False,
        chunk_length_s: float | None = None,
        stride_length_s: float | tuple[float, float] | None = None,
        batch_size: int = 8,
        **settings: Any,
    ) -> Any:
        """{"text"} of a sound (see `load_audio`), or a list of them for a list; with `return_timestamps` also "chunks",
        a list of {"timestamp": (start, end), "text"} in seconds.

        Sounds longer than the model hears at once (30 s) are heard window by window, each from where the segments of
        the one before end (Radford et al., 2023). With `chunk_length_s` they are cut in pieces of that length that
        overlap by `stride_length_s` on either side (default a sixth), run several at a time, and joined where their
        texts agree; timestamps need the first way. `settings` as those of `generate`; prompt_ids come before the first
        window of each sound.

        Raises AudioError naming the sound that cannot be read; ValueError for settings that make no sense.
        """
        rate, most = self.feature_extractor.sampling_rate, self.feature_extractor.n_samples
        check_transcription(return_timestamps, chunk_length_s, stride_length_s, batch_size, settings, most / rate)
        sounds = self.feature_extractor.sounds(audio, sampling_rate)
        single = len(sounds) == 1 and not isinstance(audio, list)
        pieces: list[tuple[int, np.ndarray]] = []
        for i, sound in enumerate(sounds):
            if return_timestamps:
                continue
            if chunk_length_s and len(sound) > chunk_length_s * rate:
                pieces += [(i, part) for part in cut(sound, chunk_length_s, stride_length_s, rate)]
            elif len(sound) <= most:
                pieces.append((i, sound))
        texts: dict[int, list[list[int]]] = {}
        for start in range(0, len(pieces), batch_size):
            batch = pieces[start : start + batch_size]
            contexts = self._heard(self._features_of([piece for _, piece in batch]))["context"]
            rows = self._written(contexts, self._spoken_or(contexts, language), task, False, settings)
            for (i, _), row in zip(batch, rows, strict=True):
                texts.setdefault(i, []).append(row)
        long = [i for i in range(len(sounds)) if i not in texts]
        windows = self._by_windows([sounds[i] for i in long], language, task, settings, batch_size)
        segments = dict(zip(long, windows, strict=True)) | {i: [(0.0, None, joined(texts[i]))] for i in texts}
        results = [self._result(segments[i], return_timestamps) for i in range(len(sounds))]
        return results[0] if single else results

    def _features_of(self, sounds: list[np.ndarray], **how: Any) -> np.ndarray:
        extract = self.feature_extractor
        return extract(sounds, sampling_rate=extract.sampling_rate, return_tensors="np", **how).input_features

    def _result(self, segments: list[Segment], timestamps: bool) -> dict[str, Any]:
        chunks = [{"timestamp": (start, end), "text": self._text(tokens)} for start, end, tokens in segments]
        found: dict[str, Any] = {"text": "".join(chunk["text"] for chunk in chunks)}
        return found | {"chunks": chunks} if timestamps else found

    def _text(self, tokens: list[int]) -> str:
        return self.tokenizer.decode([t for t in tokens if t <= self._no_timestamps], skip_special_tokens=True)

    def _segments(self, tokens: list[int], offset: float) -> list[Segment]:
        """(start, end, tokens) of what lies between two times; the last one may have no end."""
        first = self._no_timestamps + 1
        found, start, words = [], None, []
        for token in tokens:
            if token < first:
                words.append(token)
                continue
            time = round(offset + (token - first) * self.speech.precision, 2)
            if start is not None and words:
                found.append((start, time, words))
                start, words = None, []
            else:
                start = time
        if words:
            found.append((offset if start is None else start, None, words))
        return found

    def _by_windows(
        self,
        sounds: list[np.ndarray],
        language: str | None,
        task: str | None,
        settings: dict[str, Any],
        batch_size: int,
    ) -> list[list[Segment]]:
        """Segments of sounds of any length, so many sounds at a time: each window begins where the last whole segment
        of the one before ends."""
        size = self.tower("audio").program.info()["image"][1]
        second = self.feature_extractor.sampling_rate / self.feature_extractor.hop_length  # frames of one
        tracks = [Track(sound) for sound in sounds]
        while waiting := [track for track in tracks if not track.done][:batch_size]:
            contexts = self._heard(np.concatenate([self._window(track, size) for track in waiting]))["context"]
            new = [i for i, track in enumerate(waiting) if track.at == 0]
            spoken = self._spoken_or([contexts[i] for i in new], language) if new else []
            for i, token in zip(new, spoken, strict=bool(spoken)):
                waiting[i].spoken = [token]
            languages = [token for track in waiting for token in track.spoken]
            later = {name: value for name, value in settings.items() if name != "prompt_ids"}
            groups = [(new, settings), ([i for i in range(len(waiting)) if i not in new], later)]
            for group, said in groups if later.keys() < settings.keys() else [(range(len(waiting)), settings)]:
                spoken = [languages[i] for i in group if languages]
                rows = self._written([contexts[i] for i in group], spoken, task, True, said) if group else []
                for i, row in zip(group, rows, strict=True):
                    track = waiting[i]
                    self._take(track, row, min(size, track.frames - track.at), second)
        return [track.segments for track in tracks]

    def _window(self, track: Track, size: int) -> np.ndarray:
        """The next frames (1, mels, size): those of the whole sound, whose loudest one counts for all."""
        if track.features is None:
            extract = self.feature_extractor
            long = len(track.sound) > extract.n_samples
            track.features = self._features_of([track.sound], **(WHOLE if long else {}))
            track.frames = track.features.shape[2] if long else -(-len(track.sound) // extract.hop_length)
        window = track.features[:, :, track.at : track.at + size]
        return np.pad(window, ((0, 0), (0, 0), (0, size - window.shape[2])))

    def _take(self, track: Track, tokens: list[int], here: int, second: float) -> None:
        """Adds what was written of a window of `here` frames, and moves on to where the next one begins."""
        first = self._no_timestamps + 1
        times, step = [token >= first for token in tokens], here
        pairs = [i for i in range(1, len(tokens)) if times[i] and times[i - 1]]
        if pairs and not (times[-1] and not times[-2]):  # what follows the last pair is heard again
            tokens = tokens[: pairs[-1]]
            step = round((tokens[-1] - first) * self.speech.precision * second)
        last = round((track.at + here) / second, 2)
        for start, end, words in self._segments(tokens, track.at / second):
            track.segments.append((start, last if end is None else end, words))
        track.at += step if step > 0 else here
        if track.done:
            track.features = None


def check_transcription(
    timestamps: Any, length: Any, stride: Any, batch_size: Any, settings: dict[str, Any], most: float
) -> None:
    """ValueError for what `transcribe` cannot do."""
    if timestamps not in (True, False):
        raise ValueError(f"return_timestamps: found {timestamps!r}, expected True or False: of segments, not words")
    check_count("batch_size", batch_size)
    if settings.get("num_return_sequences", 1) not in (1, None):
        raise ValueError(f"num_return_sequences: found {settings['num_return_sequences']}, expected 1 here")
    if length in (None, 0):
        return
    if timestamps and length != most:
        raise ValueError(f"chunk_length_s: found {length!r} and return_timestamps, expected none, or {most:g}: times "
                         "are told of windows of that length")  # fmt: skip
    given = (length, *strides(length, stride))
    if not all(
        isinstance(n, int | float) and not isinstance(n, bool) and -MOST_SECONDS <= n <= MOST_SECONDS for n in given
    ) or not (0 < length <= most and min(given) >= 0 and given[1] + given[2] < length):
        raise ValueError(f"chunk_length_s, stride_length_s: found {length!r}, {stride!r}, expected at most {most:g} s, "
                         "and both sides together below that")  # fmt: skip


def strides(length: Any, stride: Any) -> tuple[Any, Any]:
    """Seconds that a piece shares with the one before and the one after."""
    if stride is None and isinstance(length, int | float) and abs(length) <= MOST_SECONDS:
        return length / 6, length / 6
    return tuple(stride) if isinstance(stride, list | tuple) and len(stride) == 2 else (stride, stride)


def timestamp_rule(
    no_timestamps: int, end: int, begin: int, most_initial: int | None
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Which tokens may follow where times are written (Radford et al., 2023): they come in pairs and never go back, a
    text begins with one, and one is written wherever all of them together are likelier than any word."""
    first = no_timestamps + 1

    def rule(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        scores[:, no_timestamps] = -np.inf
        written = ids[:, begin:]
        for row, tokens in zip(scores, written, strict=True):
            last = len(tokens) >= 1 and tokens[-1] >= first
            before = len(tokens) < 2 or tokens[-2] >= first
            if last and before:
                row[first:] = -np.inf
            elif last:
                row[:end] = -np.inf
            if (times := tokens[tokens >= first]).size:
                row[first : times[-1] + (not last or before)] = -np.inf
        if not written.shape[1]:
            scores[:, :first] = -np.inf
            if most_initial is not None:
                scores[:, first + most_initial + 1 :] = -np.inf
        shares = log_softmax(scores)
        top = shares[:, first:].max(1)
        with np.errstate(divide="ignore", invalid="ignore"):
            together = top + np.log(np.exp(shares[:, first:] - top[:, None]).sum(1))
        scores[together > shares[:, :first].max(1), :first] = -np.inf
        return scores

    return rule


def cut(sound: np.ndarray, length: float, stride: Any, rate: int) -> Iterator[np.ndarray]:
    """Pieces of `length` seconds, each beginning where the one before ends, less what they share."""
    size, before, after = (round(seconds * rate) for seconds in (length, *strides(length, stride)))
    for start in range(0, len(sound), max(1, size - before - after)):
        if start == 0 or len(sound) - start > before:
            yield sound[start : start + size]
        if start + size >= len(sound):
            return


def joined(parts: list[list[int]]) -> list[int]:
    """Tokens of overlapping pieces as one text: neighbours are laid over each other where most tokens agree for the
    length of the overlap, and meet in its middle (transformers' rule)."""
    whole, left = [], parts[0]
    for right in parts[1:]:
        best, meet = 0.0, (len(left), 0)
        for shift in range(1, len(left) + len(right)):
            begin, end = max(0, len(left) - shift), min(len(left), len(left) + len(right) - shift)
            other = max(0, shift - len(left))
            same = sum(a == b for a, b in zip(left[begin:end], right[other:shift], strict=False))
            score = same / shift + shift / 10000
            if same > 1 and score > best:
                best, meet = score, ((begin + end) // 2, (other + min(len(right), shift)) // 2)
        whole += left[: meet[0]]
        left = right[meet[1] :]
    return whole + left
