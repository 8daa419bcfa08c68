"""Speech to text: languages and tasks, prompts, rules of timestamps (Radford et al., 2023)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from ..config import Config
from ..errors import ConfigError
from ..families.registry import Speech
from ..generation import Decoder, GenerationSettings, Prompt, generate, log_softmax, stated_settings
from ..models.model import check_neutral
from ..outputs import ModelOutput, from_numpy, kind_of, to_numpy
from .base import TaskModel, text_inputs
from .fallback import OPTIONS, Decoded, Fallback, LogProbs, decode
from .windows import Segment, Windows, check_transcription, cut, joined

__all__ = ["TranscribingModel"]

# of a GenerationConfig: what the checkpoint says of its own words
VOCABULARY = ("alignment_heads", "forced_decoder_ids", "is_multilingual", "lang_to_id", "max_initial_timestamp_index",
              "median_filter_width", "no_timestamps_token_id", "prev_sot_token_id", "task_to_id")  # fmt: skip


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
    def _positions(self) -> int:
        return self.config.integer("max_target_positions", 448, 1, 1 << 16)

    @property
    def most_before(self) -> int:
        """How many tokens of earlier windows stand before a window's start at most."""
        return self._positions // 2 - 1

    @cached_property
    def before_token(self) -> int:
        """What stands before them."""
        return self._token(self._stated, "prev_sot_token_id", "<|startofprev|>")

    @cached_property
    def _vocab(self) -> int:
        return self.config.integer("vocab_size", 51865, 1, 1 << 20)

    def _token(self, stated: Config, name: str, token: str) -> int:
        """A token's id: stated under that name, or what the tokenizer has it under."""
        if stated.get(name) is not None:
            return stated.integer(name, None, 0, self._vocab - 1)
        known = self.tokenizer.get_vocab().get(token)
        if known is None:
            raise ConfigError(f"generation_config.json: {name} is missing, and the tokenizer has no {token}")
        return known

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
        token = self._token(self._stated, "no_timestamps_token_id", "<|notimestamps|>")
        if token + 1 >= self._vocab:
            raise ConfigError(
                f"generation_config.json: no_timestamps_token_id: found {token}, expected timestamps after it"
            )
        return token

    @property
    def first_timestamp(self) -> int:
        """The token of 0 seconds; all from it on are times."""
        return self._no_timestamps + 1

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
        most = min(self._positions, self._stated.integer("max_length", self._positions, 2, 1 << 20))
        return GenerationSettings(**ids, max_length=most, num_beams=self._stated.integer("num_beams", 1, 1, 1024),
                                  suppress_tokens=self._ids("suppress_tokens"),
                                  begin_suppress_tokens=self._ids("begin_suppress_tokens"))  # fmt: skip

    # ---- the encoder and the decoder

    def _encode(self, input_features: Any, wanted: tuple[str, ...] = ("context",)) -> dict[str, Any]:
        if input_features is None:
            raise ValueError("input_features: not given, expected (B, mels, frames) float32")
        return self.run_tower("audio", {"input_features": input_features}, list(wanted))

    def contexts(self, input_features: Any) -> list[Any]:
        """What a decoder attends to, of each spectrogram (B, mels, frames)."""
        return self._encode(input_features)["context"]

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
        encoded = self._encode(input_features, ("last_hidden_state", "context"))
        if len(encoded["context"]) != len(text["input_ids"]):
            raise ValueError(f"decoder_input_ids: found {len(text['input_ids'])} texts and {len(encoded['context'])} "
                             "sounds, expected as many")  # fmt: skip
        kind = kind_of(input_features, decoder_input_ids)
        return ModelOutput(
            logits=from_numpy(self._logits(text, {"contexts": encoded["context"]}), kind),
            encoder_last_hidden_state=from_numpy(encoded["last_hidden_state"], kind),
        )

    def detect_language(self, input_features: Any) -> Any:
        """Tokens (B,) int64 of the languages spoken: the likeliest of those the checkpoint knows."""
        return from_numpy(self._detect(self.contexts(input_features)), kind_of(input_features))

    def _detect(self, contexts: list[Any]) -> np.ndarray:
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
            settings: see GenerationSettings; prompt_ids, of `get_prompt_ids`: what was said before; and when a text is
                doubtful, and drawn again at the next `temperature` of a list: compression_ratio_threshold,
                logprob_threshold; with no_speech_threshold it is then empty where nothing is said. A temperature above
                0 draws tokens, do_sample or not. Names and rules are transformers'.
        """
        settings = dict(settings)
        language, task, return_timestamps = self.take_config(settings, language, task, return_timestamps)
        if return_timestamps is None:
            return_timestamps = self._stated.get("return_timestamps", False)
        contexts = self.contexts(input_features)
        fallback, before = self.take_options(settings)
        languages = self.language_tokens(contexts, language)
        rows = self.decode(contexts, languages, task, return_timestamps, settings, fallback, [before] * len(contexts))
        ids = [row.tokens for row in rows]
        most, pad = max(map(len, ids)), self.generation_settings.updated(settings).pad_token_id
        padded = np.array([row + [pad] * (most - len(row)) for row in ids], np.int64).reshape(len(ids), most)
        return from_numpy(padded, kind_of(input_features))

    def take_config(self, settings: dict[str, Any], *given: Any) -> tuple[Any, ...]:
        """Language, task and timestamps, the ones a caller gives before those of a GenerationConfig among the settings;
        it loses them and what it repeats of the checkpoint's vocabulary."""
        if (config := settings.get("generation_config")) is None:
            return given
        stated = {name: value for name, value in stated_settings(config).items() if name not in VOCABULARY}
        said = [stated.pop(name, None) for name in ("language", "task", "return_timestamps")]
        for name in (name for name in OPTIONS if name in stated):
            settings.setdefault(name, stated.pop(name))
        settings["generation_config"] = stated
        return tuple(one if value is None else value for value, one in zip(given, said, strict=True))

    def take_options(self, settings: dict[str, Any]) -> tuple[Fallback, list[int]]:
        """What is about windows, out of the settings, which lose it: when one is decoded again, and prompt_ids."""
        return Fallback.take(settings, self._stated), self._before(settings.pop("prompt_ids", None))

    def language_tokens(self, contexts: list[Any], language: str | list[str] | None) -> list[int]:
        """A token of language for each item; none where the checkpoint has no languages."""
        if not self.languages and language is None:
            return []
        language = self._forced[0] if language is None else language
        if language is None:
            return self._detect(contexts).tolist()
        if not isinstance(language, str | list | tuple):
            raise ValueError(f"language: found {language!r}, expected a language, or a list of them")
        listed = [language] * len(contexts) if isinstance(language, str) else list(language)
        if len(listed) != len(contexts):
            raise ValueError(f"language: found {len(listed)}, expected one, or {len(contexts)}")
        return [self._language_token(each) for each in listed]

    def decode(
        self,
        contexts: list[Any],
        languages: list[int],
        task: str | None,
        timestamps: bool,
        settings: dict[str, Any],
        fallback: Fallback,
        before: list[list[int]],
    ) -> list[Decoded]:
        """What each item becomes; `before` are tokens that stand before its start."""
        if timestamps not in (True, False):
            raise ValueError(f"return_timestamps: found {timestamps!r}, expected True or False: of segments, not words")
        if task is not None and not languages:
            self._task_token(task)
            raise ValueError(f"task: found {task!r}, and this checkpoint is English-only: it transcribes")
        task = task or self._forced[1] or self.speech.tasks[0]
        rest = ([self._task_token(task)] if languages else []) + ([] if timestamps else [self._no_timestamps])
        start = self.tokens["decoder_start_token_id"]
        starts = [[start, *languages[i : i + 1], *rest] for i in range(len(contexts))]
        chosen = self._settings(settings, len(starts[0]) + max(map(len, before)))
        ids = padded([[*b, *s] for b, s in zip(before, starts, strict=True)], chosen.pad_token_id)
        mask = padded([[1] * len(row + starts[0]) for row in before], 0)
        if timestamps:
            first = self._stated.get("max_initial_timestamp_index")
            first = None if first is None else self._stated.integer("max_initial_timestamp_index", None, 0, self._vocab)
            rule = timestamp_rule(self._no_timestamps, chosen.ends[0], ids.shape[1], first)
            chosen = replace(chosen, logits_processor=(rule, *chosen.logits_processor))
        if fallback.again and chosen.num_return_sequences > 1:
            raise ValueError(
                f"num_return_sequences: found {chosen.num_return_sequences} and thresholds, expected one of them"
            )

        def attempt(items: list[int], how: GenerationSettings) -> tuple[list[list[int]], list[float | None]]:
            kept = LogProbs(len(items), ids.shape[1], how)
            if fallback.logprob_threshold is not None:
                how = replace(how, logits_processor=(*how.logits_processor, kept))
            source = {"contexts": [contexts[i] for i in items]}
            out = generate(self.tower("decoder"), source, ids[items], mask[items], how, self.num_threads)
            rows = [until(row, how.ends) for row in out[:, ids.shape[1] :].tolist()]
            return rows, [kept.mean(i, row) if kept.last else None for i, row in enumerate(rows)]

        silence = np.zeros(len(contexts))
        if fallback.no_speech_threshold is not None:
            silence = self._silence(contexts, ids[:, : ids.shape[1] - len(starts[0]) + 1], mask)
        return decode(attempt, chosen, fallback, silence, self._vocab)

    def _settings(self, settings: dict[str, Any], prompt: int) -> GenerationSettings:
        """Over the checkpoint's own: a caller's max_length counts behind the prompt, as transformers has it here."""
        chosen = self.generation_settings.updated(settings)
        if chosen.max_new_tokens is not None or chosen.max_length is None:
            return chosen
        return replace(chosen, max_length=min(chosen.max_length + min(prompt, self.most_before), self._positions))

    def _silence(self, contexts: list[Any], ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """How likely it is (B,) that there is no speech, right after the start that ends ids (B, n)."""
        decoder = Decoder(self.tower("decoder"), {"contexts": contexts}, len(ids), ids.shape[1], self.num_threads)
        prompt = Prompt(ids, mask[:, : ids.shape[1]])
        scores = decoder.next_logits(prompt.fresh, prompt.mask, prompt.positions)
        return np.exp(log_softmax(scores)[:, self._no_timestamps - 1])

    def _before(self, prompt_ids: Any) -> list[int]:
        """What was said before, as `get_prompt_ids` of the processor gives it. ValueError for what is no such thing."""
        if prompt_ids is None:
            return []
        ids = to_numpy(prompt_ids, "prompt_ids")
        if ids.ndim != 1 or ids.dtype.kind not in "iu" or not ids.size or not (ids >= 0).all():
            raise ValueError(f"prompt_ids: found {prompt_ids!r:.100}, expected ids (n,) of get_prompt_ids")
        return ids.tolist()

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
        texts agree; timestamps need the first way. `settings` as those of `generate`; prompt_ids come before each
        window. With condition_on_prev_tokens a window goes on from what the ones before it became, prompt_ids at their
        beginning, or with prompt_condition_type "all-segments" before every window.

        Raises AudioError naming the sound that cannot be read; ValueError for settings that make no sense.
        """
        language, task, _ = self.take_config(settings, language, task, None)
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
        windows = Windows(self, task, settings, batch_size)
        rows = windows.pieces([piece for _, piece in pieces], language)
        texts: dict[int, list[list[int]]] = {}
        for (i, _), row in zip(pieces, rows, strict=True):
            texts.setdefault(i, []).append(row)
        long = [i for i in range(len(sounds)) if i not in texts]
        segments: dict[int, list[Segment]] = {i: [(0.0, None, joined(texts[i]))] for i in texts}
        segments |= zip(long, windows.segments([sounds[i] for i in long], language), strict=True)
        results = [self._result(segments[i], return_timestamps) for i in range(len(sounds))]
        return results[0] if single else results

    def _result(self, segments: list[Segment], timestamps: bool) -> dict[str, Any]:
        chunks = [{"timestamp": (start, end), "text": self._text(tokens)} for start, end, tokens in segments]
        result: dict[str, Any] = {"text": "".join(chunk["text"] for chunk in chunks)}
        return result | {"chunks": chunks} if timestamps else result

    def _text(self, tokens: list[int]) -> str:
        return self.tokenizer.decode([t for t in tokens if t <= self._no_timestamps], skip_special_tokens=True)


def padded(rows: list[list[int]], pad: int) -> np.ndarray:
    """Rows of any length as one array (B, n) int64, filled up on the left."""
    most = max(map(len, rows))
    return np.array([[pad] * (most - len(row)) + row for row in rows], np.int64)


def until(tokens: list[int], ends: tuple[int, ...]) -> list[int]:
    """Tokens up to the first end, which is one of them."""
    return tokens[: next((i + 1 for i, token in enumerate(tokens) if token in ends), len(tokens))]


def timestamp_rule(
    no_timestamps: int, end: int, begin: int, most_initial: int | None
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Which tokens may follow where times are written (Radford et al., 2023): they come in pairs and never go back, a
    text begins with one, and one is written wherever all of them together are likelier than any word."""
    first = no_timestamps + 1

    def rule(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        scores[:, no_timestamps] = -np.inf
        generated = ids[:, begin:]
        for row, tokens in zip(scores, generated, strict=True):
            last = len(tokens) >= 1 and tokens[-1] >= first
            before = len(tokens) < 2 or tokens[-2] >= first
            if last and before:
                row[first:] = -np.inf
            elif last:
                row[:end] = -np.inf
            if (times := tokens[tokens >= first]).size:
                row[first : times[-1] + (not last or before)] = -np.inf
        if not generated.shape[1]:
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
