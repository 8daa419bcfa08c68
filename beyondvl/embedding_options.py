"""What a model keeps between calls of `encode`, with sentence-transformers' names: prompts, widths, how to compare."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from .modalities import TEXT
from .outputs import check_count
from .sentences import PROMPTS, Options, Sentences
from .similarity import SIMILARITIES, THREADED

__all__ = ["EmbeddingOptions"]


class ModelCardData:
    """What evaluators of sentence-transformers tell a model.

    Attributes:
        eval_results_dict: figures by name, of each evaluator.
    """

    def __init__(self) -> None:
        self.eval_results_dict: dict[Any, dict[str, float]] = {}

    def set_evaluation_metrics(self, evaluator: Any, metrics: dict[str, float], epoch: int = 0, step: int = 0) -> None:
        """Keeps an evaluator's figures, the last ones it had."""
        self.eval_results_dict[evaluator] = dict(metrics)


class EmbeddingOptions:
    """The options of `encode` that belong to the model.

    Attributes:
        prompts: texts put before a text, by name; "query" and "document" at least.
        default_prompt_name: the prompt before every text where none is named, or None.
        truncate_dim: how many numbers of an embedding are kept, or None for all.
        similarity_fn_name: "cosine", "dot", "euclidean" or "manhattan".
        max_seq_length: tokens of the longest text, its special ones among them.
        model_card_data: figures that evaluators of sentence-transformers found.
    """

    prompts: dict[str, str]
    default_prompt_name: str | None
    truncate_dim: int | None

    def _set_options(self, sentences: Sentences | None) -> None:
        """Of a folder of sentence-transformers, or the defaults."""
        said = sentences.options if sentences else Options()
        self.prompts = dict.fromkeys(PROMPTS, "") | said.prompts
        self.default_prompt_name, self.truncate_dim = said.default_prompt, said.truncate_dim
        self._similarity_fn_name, self._max_seq_length = said.similarity, said.max_length
        self.model_card_data = ModelCardData()

    @property
    def options(self) -> dict[str, Any]:
        """All of them, as a pickle keeps them."""
        names = ("prompts", "default_prompt_name", "truncate_dim", "_similarity_fn_name", "_max_seq_length")
        return {name: getattr(self, name) for name in names}

    def with_options(self, **options: Any) -> Any:
        """The model itself, with those that are not None; `prompts` are added to its own. ValueError for one that makes
        no sense."""
        if options.get("prompts") is not None:
            prompts = options["prompts"]
            if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
                raise ValueError(f"prompts: found {prompts!r:.200}, expected texts by name")
            options["prompts"] = self.prompts | prompts
        if options.get("truncate_dim") is not None:
            check_count("truncate_dim", options["truncate_dim"])
        for name, value in options.items():
            if value is not None:
                setattr(self, name, value)
        if self.default_prompt_name is not None:
            self._prompt_named(self.default_prompt_name, "default_prompt_name")
        return self

    @property
    def similarity_fn_name(self) -> str:
        """How `similarity` compares."""
        return self._similarity_fn_name

    @similarity_fn_name.setter
    def similarity_fn_name(self, name: Any) -> None:
        name = "cosine" if name is None else getattr(name, "value", name)
        if name not in SIMILARITIES:
            raise ValueError(f"similarity_fn_name: found {name!r}, expected one of {', '.join(SIMILARITIES)}")
        self._similarity_fn_name = name

    def similarity(self, a: Any, b: Any) -> Any:
        """Similarities (n, m) of two sets of embeddings (n, D) and (m, D), by `similarity_fn_name`: cosines as a
        rule."""
        compare = SIMILARITIES[self.similarity_fn_name][0]
        return compare(a, b, self.num_threads) if compare in THREADED else compare(a, b)

    def similarity_pairwise(self, a: Any, b: Any) -> Any:
        """Similarity (n,) of row i of a with row i of b, as `similarity`."""
        return SIMILARITIES[self.similarity_fn_name][1](a, b)

    @property
    def max_seq_length(self) -> int | None:
        """Tokens of the longest text; what is longer is cut. None for a model that reads no texts."""
        if TEXT.tower not in self.towers:
            return None
        most = min(self.tower(TEXT.tower).max_positions, self.tokenizer.model_max_length)
        return min(most, self._max_seq_length or most)

    @max_seq_length.setter
    def max_seq_length(self, length: int | None) -> None:
        if length is not None:
            check_count("max_seq_length", length)
        self._max_seq_length = length

    def tokenize(self, texts: list[str], **options: Any) -> Any:
        """Ids and masks (n, tokens) of texts, padded to the longest and cut at `max_seq_length`; `options` as those of
        its tokenizer."""
        how = {"padding": True, "truncation": True, "max_length": self.max_seq_length, "return_tensors": "np"}
        return self.tokenizer(list(texts), **how | options)

    def get_max_seq_length(self) -> int | None:
        """`max_seq_length`."""
        return self.max_seq_length

    @contextlib.contextmanager
    def truncate_embeddings(self, truncate_dim: int | None) -> Iterator[None]:
        """Within it `encode` keeps so many numbers of an embedding, in every thread."""
        before, self.truncate_dim = self.truncate_dim, truncate_dim
        try:
            yield
        finally:
            self.truncate_dim = before

    def start_multi_process_pool(self, target_devices: list[str] | None = None) -> dict[str, Any]:
        """What `encode(pool=)` takes, for the sake of callers of sentence-transformers. It holds no process: a call
        uses all processors as it is, by threads that share the weights."""
        return {"input": None, "output": None, "processes": []}

    @staticmethod
    def stop_multi_process_pool(pool: dict[str, Any]) -> None:
        """Nothing to stop."""

    def encode_query(self, inputs: Any, **options: Any) -> Any:
        """`encode` with the prompt named "query"."""
        return self.encode(inputs, **self._with_prompt(options, "query"))

    def encode_document(self, inputs: Any, **options: Any) -> Any:
        """`encode` with the prompt named "document", "passage" or "corpus", the first that the model has."""
        return self.encode(inputs, **self._with_prompt(options, "document", "passage", "corpus"))

    def _with_prompt(self, options: dict[str, Any], *names: str) -> dict[str, Any]:
        """Options with the prompt of the first of those names, unless they say one."""
        name = next((name for name in names if name in self.prompts), None)
        if name is None or options.get("prompt") is not None or options.get("prompt_name") is not None:
            return options
        return options | {"prompt_name": name}

    def _prompt(self, name: str | None, prompt: str | None) -> str:
        """What stands before every text."""
        if prompt is None:
            return (
                self._prompt_named(name, "prompt_name")
                if name
                else self.prompts.get(self.default_prompt_name or "", "")
            )
        if not isinstance(prompt, str):
            raise ValueError(f"prompt: found {type(prompt).__name__}, expected str")
        if name is not None:
            import logging  # loading a model does not wait for it

            logging.getLogger("beyondvl").warning("prompt and prompt_name: found both, prompt_name is ignored")
        return prompt

    def _prompt_named(self, name: str, argument: str) -> str:
        if name not in self.prompts:
            raise ValueError(f"{argument}: found {name!r}, expected one of {', '.join(self.prompts)}")
        return self.prompts[name]
