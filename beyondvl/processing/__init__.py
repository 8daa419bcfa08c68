"""Inputs: tokenizers, image processors, and the two together."""
