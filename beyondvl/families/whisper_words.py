"""The words of Whisper beside its vocabulary: languages, tasks, and a tokenizer whose ids hold times (Radford et al.,
2023).

A transcript is <|startoftranscript|> <|en|> <|transcribe|> <|notimestamps|> text <|endoftext|>; a time is a token after
all others, 0.02 s from one to the next.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from ..config import Config
from ..errors import ConfigError
from ..folder import Folder
from ..outputs import from_numpy, to_numpy
from ..processing.text import Tokenizer
from .tokens import BYTE_LEVEL, TokenizerKind

__all__ = ["ALIASES", "LANGUAGES", "PRECISION", "TASKS", "WHISPER_TOKENS", "WhisperTokenizer", "language_code"]

PRECISION = 0.02  # seconds a timestamp counts
TASKS = ("transcribe", "translate")
# the languages by the code in their token, in the order of the vocabulary
LANGUAGES = dict(
    pair.split(":")
    for pair in """
    en:english zh:chinese de:german es:spanish ru:russian ko:korean fr:french ja:japanese pt:portuguese tr:turkish
    pl:polish ca:catalan nl:dutch ar:arabic sv:swedish it:italian id:indonesian hi:hindi fi:finnish vi:vietnamese
    he:hebrew uk:ukrainian el:greek ms:malay cs:czech ro:romanian da:danish hu:hungarian ta:tamil no:norwegian
    th:thai ur:urdu hr:croatian bg:bulgarian lt:lithuanian la:latin mi:maori ml:malayalam cy:welsh sk:slovak
    te:telugu fa:persian lv:latvian bn:bengali sr:serbian az:azerbaijani sl:slovenian kn:kannada et:estonian
    mk:macedonian br:breton eu:basque is:icelandic hy:armenian ne:nepali mn:mongolian bs:bosnian kk:kazakh
    sq:albanian sw:swahili gl:galician mr:marathi pa:punjabi si:sinhala km:khmer sn:shona yo:yoruba so:somali
    af:afrikaans oc:occitan ka:georgian be:belarusian tg:tajik sd:sindhi gu:gujarati am:amharic yi:yiddish lo:lao
    uz:uzbek fo:faroese ht:haitian ps:pashto tk:turkmen nn:nynorsk mt:maltese sa:sanskrit lb:luxembourgish
    my:myanmar bo:tibetan tl:tagalog mg:malagasy as:assamese tt:tatar haw:hawaiian ln:lingala ha:hausa ba:bashkir
    jw:javanese su:sundanese yue:cantonese
    """.split()
)


ALIASES = {"burmese": "my", "valencian": "ca", "flemish": "nl", "haitian creole": "ht", "letzeburgesch": "lb",
           "pushto": "ps", "panjabi": "pa", "moldavian": "ro", "moldovan": "ro", "sinhalese": "si", "castilian": "es",
           "mandarin": "zh"}  # fmt: skip

END, START, PREVIOUS, PLAIN = "<|endoftext|>", "<|startoftranscript|>", "<|startofprev|>", "<|notimestamps|>"
TIME = re.compile(r"<\|(\d+\.\d+)\|>")
SEGMENT = 1500  # times of a window of 30 s


def language_code(language: str) -> str:
    """The code of a language's name, code ("en") or token ("<|en|>"); what is none of them comes back as it is."""
    text = str(language).lower().removeprefix("<|").removesuffix("|>")
    return ALIASES.get(text) or next((code for code, name in LANGUAGES.items() if name == text), text)


def prompt_frame(backend: Any, settings: Config, special: dict[str, str | None]) -> Any:
    """The tokens around a transcript: of a language and a task where the settings name them."""
    from tokenizers import processors

    tokens = prompt_tokens(backend, *(settings.get(name) for name in ("language", "task", "predict_timestamps")))
    end = special.get("eos_token") or END
    begin = " ".join(f"{token}:0" for token in tokens)
    known = {token: backend.token_to_id(token) for token in (end, *tokens)}
    if missing := [token for token, i in known.items() if i is None]:
        raise ValueError(f"tokenizer: {missing[0]} is missing from the vocabulary")
    return processors.TemplateProcessing(
        single=f"{begin} $A:0 {end}:0", pair=f"{begin} $A:0 $B:1 {end}:1", special_tokens=list(known.items())
    )


def prompt_tokens(backend: Any, language: Any, task: Any, predict_timestamps: Any) -> list[str]:
    """What a transcript begins with. ValueError for a language or task there is none of."""
    tokens = [START] if backend.token_to_id(START) is not None else []
    if language is not None:
        code = language_code(language)
        if code not in LANGUAGES:
            raise ValueError(f"language: found {language!r}, expected one of {', '.join(LANGUAGES)}")
        tokens.append(f"<|{code}|>")
    if task is not None:
        if task not in TASKS:
            raise ValueError(f"task: found {task!r}, expected one of {', '.join(TASKS)}")
        tokens.append(f"<|{task}|>")
    return tokens + ([] if predict_timestamps or not tokens else [PLAIN])


WHISPER_TOKENS = TokenizerKind(
    "BPE", ("vocab.json", "merges.txt"), BYTE_LEVEL.dress, {"unk_token": END, "bos_token": END, "eos_token": END},
    prompt_frame, options=BYTE_LEVEL.options,
)  # fmt: skip


class WhisperTokenizer(Tokenizer):
    """As Tokenizer; texts are framed as transcripts, and `decode` leaves times out, as transformers' does."""

    language: str | None = None
    task: str | None = None
    predict_timestamps: bool = False
    english_spelling_normalizer: dict[str, str] | None = None  # British words by American ones, of normalizer.json

    def __init__(self, vocabulary: Any, settings: Config, **options: Any):
        super().__init__(vocabulary, settings, **options)
        fields = settings.updated(Config(options))
        self.language, self.task = fields.get("language"), fields.get("task")
        self.predict_timestamps = fields.boolean("predict_timestamps", False)

    def read_files(self, folder: Folder) -> None:
        super().read_files(folder)
        if "normalizer.json" in folder:
            words = folder.json("normalizer.json")
            if not all(isinstance(word, str) for word in words.values()):
                raise ConfigError("normalizer.json: expected a word for each word")
            self.english_spelling_normalizer = words

    def set_prefix_tokens(
        self, language: str | None = None, task: str | None = None, predict_timestamps: bool | None = None
    ) -> None:
        """Changes the language, task or times that texts are framed with; what is None stays."""
        self.language = self.language if language is None else language
        self.task = self.task if task is None else task
        self.predict_timestamps = self.predict_timestamps if predict_timestamps is None else predict_timestamps
        fields = {"language": self.language, "task": self.task, "predict_timestamps": self.predict_timestamps}
        self.backend_tokenizer.post_processor = prompt_frame(
            self.backend_tokenizer, Config(fields), self.special_tokens
        )

    @property
    def prefix_tokens(self) -> list[int]:
        """Ids that a text begins with."""
        return self.convert_tokens_to_ids(
            prompt_tokens(self.backend_tokenizer, self.language, self.task, self.predict_timestamps)
        )

    def get_decoder_prompt_ids(
        self, task: str | None = None, language: str | None = None, no_timestamps: bool = True
    ) -> list[tuple[int, int]]:
        """(place, id) of what a transcript begins with after its first token."""
        self.set_prefix_tokens(task=task, language=language, predict_timestamps=not no_timestamps)
        return [(place + 1, token) for place, token in enumerate(self.prefix_tokens[1:])]

    def get_prompt_ids(self, text: str, return_tensors: str | None = "np") -> Any:
        """Ids of words that come before a transcript, as `generate(prompt_ids=)` takes them. ValueError where they hold
        a special token."""
        ids = self(PREVIOUS, " " + text.strip(), add_special_tokens=False)["input_ids"]
        first = self.convert_tokens_to_ids(END)
        if special := [i for i in ids[1:] if i >= first]:
            raise ValueError(f"text: found the special token {self.convert_ids_to_tokens(special[0])}, expected words")
        return from_numpy(np.array(ids, np.int64), return_tensors)

    @property
    def _first_time(self) -> int:
        """The id of the time 0, which follows all others."""
        return self.convert_tokens_to_ids(PLAIN) + 1

    def timestamp_ids(self, time_precision: float = PRECISION) -> list[int]:
        """Ids of the times of a window."""
        return self.convert_tokens_to_ids([f"<|{i * time_precision:.2f}|>" for i in range(SEGMENT + 1)])

    def _after_prompt(self, ids: list[int]) -> list[int]:
        """Without the words that came before, which <|startofprev|> begins."""
        if not ids or ids[0] != self.convert_tokens_to_ids(PREVIOUS):
            return ids
        start = self.convert_tokens_to_ids(START)
        return ids[ids.index(start) :] if start in ids else []

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        output_offsets: bool = False,
        time_precision: float = PRECISION,
        decode_with_timestamps: bool = False,
        normalize: bool = False,
        basic_normalize: bool = False,
        remove_diacritics: bool = False,
        **kwargs: Any,
    ) -> Any:
        """The text of ids, or of each row of them, without times.

        Args:
            skip_special_tokens: without special tokens and the words of a prompt.
            decode_with_timestamps: with times as they are written, "<|1.08|>".
            output_offsets: {"text", "offsets": [{"text", "timestamp": (start, end)}]} in seconds.
            basic_normalize: in lower case, without punctuation and what stands in brackets; `remove_diacritics`: nor
                diacritics. `normalize`: the same for English, see there.
        """
        rows = to_numpy(token_ids).tolist() if hasattr(token_ids, "shape") else token_ids
        if isinstance(rows, int):
            rows = [rows]
        rows = list(rows)
        options = {"clean_up_tokenization_spaces": clean_up_tokenization_spaces, **kwargs}
        shape = {"output_offsets": output_offsets, "time_precision": time_precision,
                 "decode_with_timestamps": decode_with_timestamps, "normalize": normalize,
                 "basic_normalize": basic_normalize, "remove_diacritics": remove_diacritics}  # fmt: skip
        if rows and (isinstance(rows[0], list | tuple) or (hasattr(rows[0], "shape") and np.ndim(rows[0]))):
            return [self.decode(row, skip_special_tokens, **options, **shape) for row in rows]
        rows = [int(i) for i in rows]
        ids = self._after_prompt(rows) if skip_special_tokens else rows
        if decode_with_timestamps:
            text = self._with_times(ids, skip_special_tokens, time_precision, options)
        else:
            text = TIME.sub("", super().decode(ids, skip_special_tokens, **options))
        if normalize or basic_normalize:
            text = self.normalize(text) if normalize else self.basic_normalize(text, remove_diacritics)
        return {"text": text, "offsets": self._offsets(rows, time_precision)} if output_offsets else text

    def _with_times(self, ids: list[int], skip: bool, precision: float, options: dict[str, Any]) -> str:
        """Words and times as they come; where times begin anew, a window has ended before."""
        first, parts, words = self._first_time, [], []
        last = before = offset = 0.0
        for i, token in enumerate(ids):
            if token < first:
                words.append(token)
                continue
            time = (token - first) * precision
            if time < last:
                single = i >= 2 and not (ids[i - 1] >= first and ids[i - 2] >= first)
                if single:
                    offset += precision * SEGMENT
                else:
                    offset += before
                    last = before
                    del parts[-1:]
            before, last = last, time
            parts += [super().decode(words, skip, **options) if words else "", f"<|{time + offset:.2f}|>"]
            words = []
        return "".join(parts) + (super().decode(words, skip, **options) if words else "")

    def _offsets(self, ids: list[int], precision: float) -> list[dict[str, Any]]:
        """What is said between two times."""
        first = self._first_time
        times = [i for i, token in enumerate(ids) if token >= first]
        ends = [i + 1 for i in times if i + 1 < len(ids) and ids[i + 1] >= first]
        if not ends and len(times) <= 1:
            return []
        if times[-1] + 1 not in ends:
            ends.append(times[-1] + 1)
        rows, begin, last, offset = [], times[0], 0, 0
        for end in ends:
            part = ids[begin:end]
            if len(part) > 1:
                start, stop = part[0] - first, part[-1] - first
                if start < last:
                    single = begin >= 2 and not (ids[begin - 2] >= first and ids[begin - 1] >= first)
                    offset += SEGMENT if single else last
                last = stop
                text = TIME.sub("", super().decode(part))
                rows.append({"text": text, "timestamp": ((start + offset) * precision, (stop + offset) * precision)})
            begin = end
        return rows

    @staticmethod
    def basic_normalize(text: str, remove_diacritics: bool = False) -> str:
        """Lower case, without what stands in brackets, symbols and punctuation, with single blanks."""
        return plain_text(text, remove_diacritics)

    def normalize(self, text: str) -> str:
        """As `basic_normalize`, for English: numbers as figures, contractions in full, American spelling, titles. By
        whisper-normalizer (extra `[speech]`, ImportError without it), with the checkpoint's own spellings."""
        normalizer = english_normalizer()
        if self.english_spelling_normalizer is not None:
            normalizer.standardize_spellings.mapping = self.english_spelling_normalizer
        return normalizer(text)


def english_normalizer() -> Any:
    """A new one: its spellings are set by who asked for it."""
    try:
        from whisper_normalizer.english import EnglishTextNormalizer
    except ImportError as error:
        raise ImportError(
            "normalize: English text is normalised by whisper-normalizer: pip install 'beyondvl[speech]'"
        ) from error
    return EnglishTextNormalizer()


def plain_text(text: str, remove_diacritics: bool) -> str:
    """`basic_normalize` of Whisper's own evaluation (Radford et al., 2023, appendix C)."""
    import unicodedata

    text = re.sub(r"[<\[][^>\]]*[>\]]", "", text.lower())
    text = re.sub(r"\(([^)]+?)\)", "", text)
    form = unicodedata.normalize("NFKD" if remove_diacritics else "NFKC", text)
    kept = []
    for character in form:
        category = unicodedata.category(character)
        if remove_diacritics and category == "Mn":
            continue
        kept.append(" " if category[0] in "MSP" else character)
    return re.sub(r"\s+", " ", "".join(kept).lower())
