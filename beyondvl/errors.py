"""Errors of the package; each is also the built-in class a caller would expect."""

from __future__ import annotations

__all__ = [
    "AudioError",
    "CheckpointError",
    "ConfigError",
    "ImageError",
    "MissingWeightError",
    "NoSoundError",
    "VideoError",
]


class ConfigError(ValueError):
    """A configuration file has a missing, ill-typed or absurd value; the message names the field."""


class CheckpointError(ValueError):
    """A weights file is truncated, lies about its sizes, or does not fit the configuration."""


class MissingWeightError(CheckpointError):
    """A weights file lacks a tensor that the model needs."""


class ImageError(ValueError):
    """A picture could not be read. `index` is its place in the batch."""

    def __init__(self, message: str, index: int = 0):
        super().__init__(message)
        self.index = index


class VideoError(ValueError):
    """A clip could not be read."""


class AudioError(ValueError):
    """A sound could not be read."""


class NoSoundError(AudioError):
    """A clip holds pictures alone."""
