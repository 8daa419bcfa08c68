"""Classes by name, and `AutoModel`, which finds the one a checkpoint is of."""

from __future__ import annotations

import os
from typing import Any

from ..config import Config
from ..errors import ConfigError
from ..families.registry import Family, families, find_family, load_config
from ..hub import SHIPPED, open_folder
from ..outputs import check_device, thread_count
from ..tasks import task_model
from .classes import check_options, class_for, class_named, public_class
from .model import PreTrainedModel, open_model, tower_class
from .packed import is_packed, packed_class

__all__ = ["AUTO_NAMES", "AutoConfig", "AutoModel", "SentenceTransformer", "model_class"]

# transformers' names of classes that find the one a checkpoint is of
AUTO_NAMES = ("AutoModel", "AutoModelForImageTextToText", "AutoModelForVision2Seq", "AutoModelForSpeechSeq2Seq",
              "AutoModelForAudioClassification", "AutoModelForZeroShotImageClassification",
              "AutoModelForVisualQuestionAnswering")  # fmt: skip


def model_class(name: str, family: Family | None = None) -> type[PreTrainedModel]:
    """The public class of that name, for example CLIPModel, looked for in one family or in all, which imports them;
    KeyError when none has it."""
    known = (family,) if family else families().values()
    family = next((f for f in known if name in f.classes or name in f.heads), None)
    if family is None:
        raise KeyError(name)
    spec = class_named(name, family)
    if not spec.head:
        return tower_class(spec)
    base = task_model(spec.head.task)
    return public_class(spec, base, f"{name}. {base.__doc__}")


class AutoConfig:
    """`AutoConfig.from_pretrained(name)` gives a checkpoint's Config, whose fields are attributes."""

    @staticmethod
    def from_pretrained(pretrained_model_name_or_path: str | os.PathLike, **options: Any) -> Config:
        """Of a folder, a hub id or "beyond-vl-model". ConfigError where there is no config, or of no family here."""
        folder = open_folder(pretrained_model_name_or_path, options)
        config = load_config(folder)
        if not config.to_dict():
            raise ConfigError(f"config.json is missing from {folder}")
        find_family(config)
        return config


class AutoModel:
    """Loads a checkpoint of any family: `AutoModel.from_pretrained(name)`."""

    def __init__(self):
        raise TypeError("AutoModel is made by AutoModel.from_pretrained(name)")

    @staticmethod
    def from_pretrained(
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        dtype: Any = None,
        num_threads: int | None = None,
        strict: bool = False,
        subfolder: str = "",
        **options: Any,
    ) -> PreTrainedModel:
        """As PreTrainedModel.from_pretrained, of the class that the checkpoint's config names."""
        folder, sentences, config = open_model(pretrained_model_name_or_path, subfolder, options)
        dtype = check_options(dtype, options)
        family = find_family(config)
        name = packed_class(folder.path, family) if is_packed(folder.path) else class_for(config, family).name
        cls = model_class(name, family)
        return cls.of_folder(folder, sentences, config, dtype, thread_count(num_threads), strict)


class SentenceTransformer:
    """`SentenceTransformer(name)` gives a model, as AutoModel does, under the arguments of sentence-transformers."""

    def __new__(
        cls,
        model_name_or_path: str | os.PathLike,
        *,
        device: Any = None,
        prompts: dict[str, str] | None = None,
        default_prompt_name: str | None = None,
        similarity_fn_name: str | None = None,
        cache_folder: str | os.PathLike | None = None,
        truncate_dim: int | None = None,
        model_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Loads a checkpoint of any family; a name without an owner that is no folder is of sentence-transformers'.

        Args:
            model_name_or_path: as in AutoModel.from_pretrained.
            device: the CPU.
            prompts, default_prompt_name, similarity_fn_name, truncate_dim: see EmbeddingOptions; over what the folder
                says.
            cache_folder: where the hub's files are kept.
            model_kwargs, options: as in AutoModel.from_pretrained.

        Raises what AutoModel.from_pretrained does, and ValueError for an option that makes no sense.
        """
        check_device("cpu" if device is None else device)
        name = os.fspath(model_name_or_path)
        if "/" not in name and name not in SHIPPED and not os.path.exists(name):
            name = f"sentence-transformers/{name}"
        model = AutoModel.from_pretrained(name, cache_dir=cache_folder, **(model_kwargs or {}), **options)
        return model.with_options(
            prompts=prompts,
            default_prompt_name=default_prompt_name,
            similarity_fn_name=similarity_fn_name,
            truncate_dim=truncate_dim,
        )
