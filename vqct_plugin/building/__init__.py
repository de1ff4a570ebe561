"""Captions and a language model in, a prior file out."""
