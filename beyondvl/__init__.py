"""beyondvl: vision-language models on ordinary computers, with the Hugging Face workflow and no torch at run time.

import beyondvl as bvl
model = bvl.AutoModel.from_pretrained("beyond-vl-model")
processor = bvl.AutoProcessor.from_pretrained("beyond-vl-model")
inputs = processor(text=["a cat", "a dog"], images=image, return_tensors="np", padding=True)
outputs = model(**inputs)
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

# libgomp reads this once, when it is loaded: between calls its workers are to spin for microseconds, not milliseconds,
# on a processor that somebody else could use
_SPIN = None if "GOMP_SPINCOUNT" in os.environ or "OMP_WAIT_POLICY" in os.environ else "10000"
if _SPIN:
    os.environ["GOMP_SPINCOUNT"] = _SPIN
try:
    from . import _C
except ImportError as error:
    if (Path(__file__).parent.parent / "setup.py").exists():
        raise ImportError(
            "beyondvl is imported from its source folder, where the extension is not built: use the `beyondvl` "
            "command, run Python from another folder, or build in place with `pip install -e .`"
        ) from error
    raise
finally:
    if _SPIN:
        os.environ.pop("GOMP_SPINCOUNT", None)

__version__ = "0.1.0"

_C.set_openblas_path(str(Path(__file__).parent / "_libs" / "libscipy_openblas.so"))

# name -> module; imported when first asked for, so that `import beyondvl` stays quick
_LAZY = {
    "Adapted": "pairs",
    "AudioError": "errors",
    "AutoConfig": "models.auto",
    "AutoFeatureExtractor": "processing.features",
    "AutoImageProcessor": "processing.image",
    "AutoModel": "models.auto",
    "AutoProcessor": "processing.processor",
    "AutoTokenizer": "processing.text",
    "BatchFeature": "outputs",
    "CheckpointError": "errors",
    "ConfigError": "errors",
    "Embeddings": "outcomes",
    "EncodedImages": "tasks.base",
    "Failure": "outcomes",
    "GenerationConfig": "generation",
    "GenerationSettings": "generation",
    "ImageError": "errors",
    "ImageProcessor": "processing.image",
    "Index": "search.index",
    "ModelOutput": "outputs",
    "NoSoundError": "errors",
    "PreTrainedModel": "models.model",
    "Processor": "processing.processor",
    "Said": "tasks.confidence",
    "Tokenizer": "processing.text",
    "SentenceTransformer": "models.auto",
    "VideoError": "errors",
    "adapt": "pairs",
    "community_detection": "similarity",
    "cos_sim": "similarity",
    "dot_score": "similarity",
    "euclidean_sim": "similarity",
    "load_audio": "processing.audio",
    "load_image": "processing.loading",
    "load_video": "processing.video",
    "manhattan_sim": "similarity",
    "maxsim": "similarity",
    "normalize_embeddings": "similarity",
    "pairwise_cos_sim": "similarity",
    "pairwise_dot_score": "similarity",
    "pairwise_euclidean_sim": "similarity",
    "pairwise_manhattan_sim": "similarity",
    "paraphrase_mining_embeddings": "similarity",
    "pipeline": "pipelines",
    "plot_attention": "plots",
    "pytorch_cos_sim": "similarity",
    "quantize_embeddings": "similarity",
    "semantic_search": "similarity",
    "show_config": "show_config",
    "truncate_embeddings": "similarity",
}

__all__ = ["__version__", *_LAZY]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    elif name[:1].isupper():
        value = _named_class(name)
    else:
        raise AttributeError(f"module 'beyondvl' has no attribute {name!r}")
    globals()[name] = value
    return value


def _named_class(name: str) -> Any:
    """CLIPModel, SiglipProcessor and the other names of transformers."""
    from .models.auto import AUTO_NAMES, AutoModel, model_class
    from .processing.processor import processor_class

    if name in AUTO_NAMES:
        return AutoModel
    for find in (model_class, processor_class):
        try:
            return find(name)
        except KeyError:
            continue
    raise AttributeError(f"module 'beyondvl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
