"""Recommendation that people can read: multimodal keywords, similar moments and a ranker, on Ray."""

__version__ = "0.1.0"
