"""Top-k and top-p (nucleus) filtering of logits."""

from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor


def filter_logits(logits: Tensor, top_k: Optional[int], top_p: Optional[float]) -> Tensor:
    """Logits (B, n), those that are not to be drawn at minus infinity."""
    if top_k is not None and top_k < logits.shape[-1]:
        smallest = torch.topk(logits, top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, float("-inf"))
    if top_p is not None and top_p < 1:
        ordered, order = torch.sort(logits, dim=-1, descending=True)
        probabilities = F.softmax(ordered, dim=-1)
        before = probabilities.cumsum(dim=-1) - probabilities  # of those that are likelier
        out = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= top_p)
        logits = logits.masked_fill(out, float("-inf"))
    return logits


def top_k_top_p_filtering(
    logits: Tensor, top_k: int = 0, top_p: float = 1.0, filter_value: float = -float("inf"), **unused: Any
) -> Tensor:
    """What taming's ``mingpt.py`` imports from transformers, where it is no more: logits (B, n), filtered."""
    kept = filter_logits(logits, top_k or None, top_p)
    return kept if filter_value == -float("inf") else kept.masked_fill(kept == -float("inf"), filter_value)
