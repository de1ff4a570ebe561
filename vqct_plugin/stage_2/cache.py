"""minGPT's blocks with a key-value cache, so that a step of drawing computes only what is new."""

from typing import Any, List

import torch.nn.functional as F
from torch import Tensor


class CachedBlocks:
    """Runs minGPT's blocks over the next elements of a sequence, and keeps the keys and values of those before."""

    def __init__(self, blocks: Any, batch: int, length: int) -> None:
        self.blocks = list(blocks)
        self.batch, self.capacity, self.length = batch, length, 0
        self._keys: List[Tensor] = []
        self._values: List[Tensor] = []

    def __call__(self, x: Tensor) -> Tensor:
        """x (B, t, C), the elements after those seen so far, through all blocks."""
        begin, end = self.length, self.length + x.shape[1]
        for i, block in enumerate(self.blocks):
            attention = block.attn
            h = block.ln1(x)
            query, key, value = (
                layer(h).view(self.batch, x.shape[1], attention.n_head, -1).transpose(1, 2)
                for layer in (attention.query, attention.key, attention.value)
            )
            if len(self._keys) == i:
                shape = (*key.shape[:2], self.capacity, key.shape[3])
                self._keys.append(key.new_empty(shape))
                self._values.append(value.new_empty(shape))
            self._keys[i][:, :, begin:end] = key
            self._values[i][:, :, begin:end] = value
            scores = query @ self._keys[i][:, :, :end].transpose(-2, -1) * key.shape[-1] ** -0.5
            if x.shape[1] > 1:  # a single new element sees all before it
                scores = scores.masked_fill(attention.mask[:, :, begin:end, :end] == 0, float("-inf"))
            attended = F.softmax(scores, dim=-1) @ self._values[i][:, :, :end]
            x = x + attention.proj(attended.transpose(1, 2).reshape(*x.shape))
            x = x + block.mlp(block.ln2(x))
        self.length = end
        return x
