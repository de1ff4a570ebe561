"""The drop-in quantizer: taming's ``VectorQuantizer2`` outside, codes from a language model's words inside.

Source: Zhang et al., *Codebook Transfer with Part-of-Speech for Vector-Quantized Image Modeling*, CVPR 2024. The
interface is that of ``taming.modules.vqvae.quantize.VectorQuantizer2``.
"""

import json
import os
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vqct_plugin._deferred import DeferredErrors
from vqct_plugin._torch import at_least_float32, compiling, without_autocast
from vqct_plugin.lookup import nearest, nearest_as_taming
from vqct_plugin.prior import CodebookPrior, PriorError
from vqct_plugin.transfer import build_transfer

Quantized = Tuple[Tensor, Tensor, Tuple[None, None, Tensor]]
PriorLike = Union[str, "os.PathLike[str]", CodebookPrior]


class Slice(NamedTuple):
    """One slice of the channels and the codes it may take: one part of speech, or all of them when they are joint."""

    name: str
    first: int  # its codes are [first, last) of the codebook
    last: int
    topk: int


class Table(NamedTuple):
    """What ``quantizer.embedding`` gives: ``weight`` (n_e, e_dim / parts), as of an ``nn.Embedding``."""

    weight: Tensor


class CodebookTransferQuantizer(nn.Module):
    """Vector quantization with a codebook transferred from words, in place of taming's ``VectorQuantizer2``.

    The channels are split into one equal slice for each part of speech. Each vector of a slice takes the nearest codes
    of that part: the mean of the ``topk`` nearest adjectives, the nearest noun. The codes are words' vectors from a
    language model, passed through a graph network, of which only the weights are learned; a step on one code moves its
    relatives, so that codes do not die alone.

    Args:
        n_e: the number of codes, all parts together (a host's ``n_embed``): the most frequent words of the prior,
            shared between the parts as they occur there. A mapping, ``{"adjective": 300, "noun": 724}``, sets it by
            hand.
        e_dim: the number of channels of z, all parts together (a host's ``embed_dim``).
        beta: the weight of one of the two terms of the loss, see ``legacy``.
        remap: a ``.npy`` file of the indices in use; indices are then those into this list, as in taming. For one
            token per position only.
        unknown_index: what an index that is not in ``remap`` becomes: ``"random"``, ``"extra"`` or an integer.
        sane_index_shape: return indices as (B, H, W), or (B, T, H, W) with T tokens per position.
        legacy: True, taming's default and the authors': ``mean((sg(q) - z)^2) + beta * mean((q - sg(z))^2)``. False:
            beta on the first term instead.
        prior: a prior file, a :class:`CodebookPrior`, or ``"default"``, the one in the package.
        parts_of_speech: the parts that have a slice each, or ``"joint"``: one codebook over all words and one token per
            position (the paper's ablation without part of speech; for stage 2 code that assumes one token).
        topk: how many of the nearest codes are averaged in the first part (adjectives; the paper's reconstruction
            models use 2), the other parts take their nearest; or a mapping from parts to numbers.
        transfer: ``"graph"`` (the paper's), or for its ablations ``"mlp"``, ``"linear"``, ``"table"``.
        dropout: the probability of the dropout inside the graph network while training.
        edge_weight: the graph's edges weigh ``"count"``, ``"binary"`` or ``"log"``.

    Attributes:
        n_e, e_dim: the true number of codes, and of channels.
        words: n_e words; parts: the names of the parts; part_of_speech: (n_e,) index into ``parts``.
        tokens_per_position: T, the sum of topk over the parts.

    Shapes: z (B, e_dim, H, W) floating point; z_q as z, contiguous; loss a 0-d tensor; indices int64 in [0, n_e),
    adjectives first: (B*T*H*W,), per image all positions of the first token, then of the next.

    >>> quantizer = CodebookTransferQuantizer(512, 64)
    >>> z_q, loss, (_, _, indices) = quantizer(torch.randn(2, 64, 4, 4))
    >>> z_q.shape, loss.shape, indices.shape
    (torch.Size([2, 64, 4, 4]), torch.Size([]), torch.Size([64]))
    >>> quantizer.eval().get_codebook_entry(indices, (2, 4, 4, 64)).shape
    torch.Size([2, 64, 4, 4])
    """

    prior_identity: Tensor
    part_of_speech: Tensor
    used: Tensor

    def __init__(
        self,
        n_e: Union[int, Mapping[str, int]],
        e_dim: int,
        beta: float = 0.25,
        remap: Optional[str] = None,
        unknown_index: Union[str, int] = "random",
        sane_index_shape: bool = False,
        legacy: bool = True,
        *,
        prior: PriorLike = "default",
        parts_of_speech: Union[str, Sequence[str]] = ("adjective", "noun"),
        topk: Union[int, Mapping[str, int]] = 1,
        transfer: str = "graph",
        dropout: float = 0.5,
        edge_weight: str = "count",
    ) -> None:
        super().__init__()
        if isinstance(beta, bool) or not isinstance(beta, (int, float)) or not 0 <= beta < float("inf"):
            raise ValueError(f"beta is {beta!r}; expected a number of 0 or more, such as 0.25")
        for name, flag in (("legacy", legacy), ("sane_index_shape", sane_index_shape)):
            if not isinstance(flag, bool):  # the text "False" would be true
                raise ValueError(f"{name} is {flag!r}; expected true or false")
        joint = parts_of_speech == "joint"
        if isinstance(parts_of_speech, str) and not joint:
            parts_of_speech = (parts_of_speech,)
        whole = prior if isinstance(prior, CodebookPrior) else CodebookPrior.load(prior)
        selected = whole.select(n_e, None if joint else list(parts_of_speech))
        self.n_e = len(selected)
        self.e_dim = e_dim
        self.beta = beta
        self.legacy = legacy
        self.words = list(selected.words)
        self.parts = selected.parts
        self.slices = _slices(selected, joint, topk)
        self.topk = topk
        self.tokens_per_position = sum(s.topk for s in self.slices)
        if not isinstance(e_dim, int) or e_dim < 1 or e_dim % len(self.slices):
            raise ValueError(
                f"e_dim is {e_dim!r}; expected a positive multiple of {len(self.slices)}, so that each of "
                f"{', '.join(s.name for s in self.slices)} gets an equal slice of the channels (a host's embed_dim)"
            )
        self.transfer = build_transfer(transfer, selected, e_dim // len(self.slices), dropout, edge_weight)
        # A learned table with one part is VectorQuantizer2, and then it is to the last bit.
        self._as_taming = transfer == "table" and self.tokens_per_position == 1
        self.register_buffer("part_of_speech", torch.tensor(selected.part_of_speech.tolist()), persistent=False)
        self.register_buffer("prior_identity", _identity_bytes(selected))
        self.sane_index_shape = sane_index_shape
        self._init_remap(remap, unknown_index)
        self._frozen: Optional[_FrozenCodebook] = None
        self._errors = DeferredErrors()

    def forward(
        self, z: Tensor, temp: Optional[float] = None, rescale_logits: bool = False, return_logits: bool = False
    ) -> Quantized:
        """Quantize z (B, e_dim, H, W): ``(z_q, loss, (None, None, indices))``, shapes as in the class's docstring.

        ``temp``, ``rescale_logits`` and ``return_logits`` are there for callers that also serve taming's Gumbel
        quantizer, and have to be at their defaults.
        """
        if temp not in (None, 1.0) or rescale_logits or return_logits:
            raise ValueError("temp, rescale_logits and return_logits are for a Gumbel quantizer; leave them out here")
        z_q, commitment, codebook, chosen = self._quantized(z)
        loss = commitment + self.beta * codebook if self.legacy else self.beta * commitment + codebook
        b, _, h, w = z.shape
        return z_q, loss, (None, None, self._laid_out(chosen, b, h, w))

    def get_codebook_entry(
        self, indices: Tensor, shape: Optional[Sequence[int]] = None, channel_first: bool = False
    ) -> Tensor:
        """The quantized map of some indices: the exact inverse of :meth:`forward`, for every ``topk`` and layout.

        Always by the codebook without dropout, the one of evaluation.

        Args:
            indices: integers, in either layout of :meth:`forward` (flat, or with the positions spelled out).
            shape: the map's (B, H, W, C), or (B, C, H, W) with ``channel_first`` (LlamaGen's order).

        Returns:
            (B, C, H, W). Without ``shape``, the positions as they came and the channels last: (B, H, W) with one token
            per position gives (B, H, W, C), and so do (B, T, H, W) with T; (B, T*L) gives (B, L, C).
        """
        if indices.is_floating_point() or indices.dtype == torch.bool:
            raise ValueError(f"indices have dtype {indices.dtype}; expected integers")
        if self.remap is not None:
            indices = self._unmapped(indices)
        if indices.device.type == "cpu" and indices.numel():
            low, high = int(indices.min()), int(indices.max())
            if low < 0 or high >= self.n_e:
                raise ValueError(f"indices run from {low} to {high}; expected 0 to {self.n_e - 1}")
        if shape is None:
            return self._entries(*self._spelled_out(indices))
        b, h, w, c = (shape[0], shape[2], shape[3], shape[1]) if channel_first else tuple(shape)
        t = self.tokens_per_position
        if c != self.e_dim or indices.numel() != b * t * h * w:
            order = "(B, C, H, W)" if channel_first else "(B, H, W, C)"
            raise ValueError(
                f"{indices.numel()} indices for shape {tuple(shape)}; expected B * {t} * H * W of them (with {t} "
                f"token(s) per position) and C = {self.e_dim}, the shape being {order}"
            )
        return rearrange(self._entries(indices.reshape(b, t, h * w), (b, h, w)), "b h w c -> b c h w").contiguous()

    def words_of(self, indices: Tensor) -> Any:
        """The words of some codes, as lists nested like ``indices.tolist()``: integers as :meth:`forward` gives them.

        >>> quantizer = CodebookTransferQuantizer(512, 64, sane_index_shape=True)
        >>> _, _, (_, _, indices) = quantizer(torch.randn(1, 64, 4, 4))
        >>> adjectives, nouns = quantizer.words_of(indices[0])  # 4 rows of 4 words each
        >>> len(nouns), len(nouns[0]), nouns[0][0] in quantizer.words
        (4, 4, True)
        """
        if indices.is_floating_point() or indices.dtype == torch.bool:
            raise ValueError(f"indices have dtype {indices.dtype}; expected integers")
        if self.remap is not None:
            indices = self._unmapped(indices)
        if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < self.n_e:
            raise ValueError(
                f"indices run from {int(indices.min())} to {int(indices.max())}; expected 0 to {self.n_e - 1}"
            )
        return _named(indices.tolist(), self.words)

    def embed_code(self, code: Tensor) -> Tensor:
        """The quantized map (B, C, H, W) of a code, for the hosts' ``decode_code``: (B, H, W), with T tokens per
        position (B, T, H, W), or (B, T*L) where L positions make a square."""
        if code.dim() == 2:
            side = round((code.shape[1] / self.tokens_per_position) ** 0.5)
            if side * side * self.tokens_per_position != code.shape[1]:
                raise ValueError(
                    f"code has shape {tuple(code.shape)}, whose {code.shape[1]} tokens are no square of positions with "
                    f"{self.tokens_per_position} token(s) each; use get_codebook_entry(code, shape)"
                )
            return self.get_codebook_entry(code, (code.shape[0], side, side, self.e_dim))
        return rearrange(self.get_codebook_entry(code), "b h w c -> b c h w").contiguous()

    @property
    def embedding(self) -> Table:
        """``embedding.weight``: the codebook in use (n_e, e_dim / parts), without dropout."""
        return Table(self._codes_in_use(dropout=False))

    def export_codebook(self, part: Optional[str] = None) -> Dict[str, Tensor]:
        """The state of a plain ``VectorQuantizer2(n, e_dim / parts, beta)``: ``{"embedding.weight": (n, ...)}``.

        ``part``: only the codes of this part of speech. Each slice of the channels meets the codes of its part alone,
        so with several parts it takes one ``VectorQuantizer2`` for each to give the same reconstructions.
        """
        weight = self.embedding.weight.detach().clone()
        if part is not None:
            if part not in self.parts:
                raise ValueError(f"unknown part of speech {part!r}; expected one of {', '.join(self.parts)}")
            weight = weight[self.part_of_speech == self.parts.index(part)]
        return {"embedding.weight": weight}

    def freeze_codebook(self) -> "CodebookTransferQuantizer":
        """Compute the codebook once, and use it from now on: faster inference. Returns the quantizer itself.

        For evaluation only. If a weight changes afterwards, by an optimizer, a checkpoint or swapped-in averages, the
        next call is refused (on a GPU a later one, since the host does not wait): freeze it again, or unfreeze.
        """
        self._frozen = None
        with torch.no_grad():
            codes = self._codes_in_use(dropout=False).clone()
            self._frozen = _FrozenCodebook(codes, [p.detach().clone() for p in self.transfer.parameters()])
        return self

    def unfreeze_codebook(self) -> "CodebookTransferQuantizer":
        """Compute the codebook at every call again. Returns the quantizer itself."""
        self._frozen = None
        return self

    def constant_buffers(self) -> Iterable[str]:
        """Names of the buffers that never change: what DDP need not send round at every step."""
        return ["part_of_speech", "prior_identity", *(f"transfer.{name}" for name in self.transfer.constants)]

    def _codes_in_use(self, dropout: Optional[bool] = None) -> Tensor:
        if self._frozen is not None:
            return self._still_frozen(self._frozen)
        with without_autocast(self.part_of_speech.device):
            codes: Tensor = self.transfer(dropout=self.training if dropout is None else dropout)
        return codes

    def _still_frozen(self, frozen: "_FrozenCodebook") -> Tensor:
        if self.training:
            raise RuntimeError("the codebook is frozen for inference; call unfreeze_codebook() before training")
        device = self.part_of_speech.device
        if frozen.codes.device != device:
            self._frozen = frozen = _FrozenCodebook(frozen.codes.to(device), [w.to(device) for w in frozen.weights])
        unchanged = torch.stack(
            [(now.detach() == then).all() for now, then in zip(self.transfer.parameters(), frozen.weights)]
        ).all()
        self._errors.unless(
            unchanged,
            "the weights behind a frozen codebook have changed; call freeze_codebook() again, or unfreeze_codebook()",
            RuntimeError,
        )
        return frozen.codes

    def _quantized(self, z: Tensor) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
        """z_q, the sums over the parts of ``mean((sg(q) - z)^2)`` and ``mean((q - sg(z))^2)``, indices (B*H*W, T)."""
        self._check_input(z)
        codes = self._codes_in_use()
        commitment = codebook = torch.zeros((), dtype=codes.dtype, device=z.device)
        quantized, chosen = [], []
        # One slice goes without chunk and cat, and all in four dimensions: so the gradient has the strides it has in
        # VectorQuantizer2, and the convolution before it adds up its bias in the same order, to the last bit.
        alone = len(self.slices) == 1
        for s, channels in zip(self.slices, [z] if alone else z.chunk(len(self.slices), dim=1)):
            vectors = at_least_float32(rearrange(channels, "b c h w -> b h w c").contiguous())
            indices = self._nearest(vectors.view(-1, vectors.shape[-1]), codes, s)
            q = _mean_of(codes, indices).view(vectors.shape)
            commitment = commitment + torch.mean((q.detach() - vectors) ** 2)
            codebook = codebook + torch.mean((q - vectors.detach()) ** 2)
            quantized.append(rearrange(self._straight_through(vectors, q), "b h w c -> b c h w"))
            chosen.append(indices)
        z_q = (quantized[0] if alone else torch.cat(quantized, dim=1)).to(z.dtype).contiguous()
        return z_q, commitment, codebook, torch.cat(chosen, dim=1)

    def _nearest(self, vectors: Tensor, codes: Tensor, s: Slice) -> Tensor:
        """(N, topk) indices into the whole codebook."""
        own = codes.detach()[s.first : s.last]
        if self._as_taming:
            return nearest_as_taming(vectors.detach(), own).unsqueeze(1)
        return nearest(vectors, own, s.topk) + s.first

    def _straight_through(self, vectors: Tensor, q: Tensor) -> Tensor:
        if self._as_taming:
            return vectors + (q - vectors).detach()
        # The value is q to the last bit, so that indices decode to exactly what forward gave; a NaN stays one.
        return (vectors - vectors.detach()) + q.detach()

    def _check_input(self, z: Tensor) -> None:
        if not z.is_floating_point():
            raise ValueError(f"z has dtype {z.dtype}; expected floating point")
        if z.dim() != 4 or z.shape[1] != self.e_dim:
            raise ValueError(
                f"z has shape {tuple(z.shape)}; expected (B, {self.e_dim}, H, W): e_dim is the total number of "
                f"channels, {len(self.slices)} slice(s) together"
            )
        if z.numel() == 0:
            raise ValueError(f"z has shape {tuple(z.shape)}, which holds no vector; expected B, H and W >= 1")
        if compiling():
            return  # a NaN still shows, in z_q and in the loss
        z = at_least_float32(z.detach())
        if z.device.type == "cpu" and torch.isfinite(z.sum()):
            return  # one pass; the sum of finite values may overflow, and then the second pass decides
        finite = torch.isfinite(z).all()
        self._errors.unless(
            finite, "z holds NaN or infinite values: the encoder diverged; lower the learning rate or clip gradients"
        )

    def _laid_out(self, chosen: Tensor, b: int, h: int, w: int) -> Tensor:
        """Indices (B*H*W, T) as the caller gets them."""
        t = self.tokens_per_position
        if self.remap is not None:
            chosen = self._remapped(chosen.reshape(b, h * w)).reshape(-1, 1)
            return chosen.reshape(b, h, w) if self.sane_index_shape else chosen
        tokens = rearrange(chosen, "(b l) t -> b t l", b=b)
        if not self.sane_index_shape:
            return tokens.reshape(-1).contiguous()
        return tokens.reshape((b, h, w) if t == 1 else (b, t, h, w)).contiguous()

    def _spelled_out(self, indices: Tensor) -> Tuple[Tensor, Tuple[int, ...]]:
        """Indices that came without a map's shape as tokens (B, T, L), and the shape of their positions."""
        t, shape = self.tokens_per_position, tuple(indices.shape)
        if t == 1:
            return indices.reshape(1, 1, -1), shape
        if len(shape) >= 3 and shape[1] == t:
            return indices.reshape(shape[0], t, -1), (shape[0], *shape[2:])
        if len(shape) == 2 and shape[1] % t == 0:
            return indices.reshape(shape[0], t, -1), (shape[0], shape[1] // t)
        raise ValueError(
            f"indices of shape {shape} do not say which {t} tokens make a position; expected (B, {t}, ...) or "
            f"(B, {t}*L), or pass shape=(B, H, W, C)"
        )

    def _entries(self, tokens: Tensor, positions: Tuple[int, ...]) -> Tensor:
        """The vectors (*positions, C) of tokens (B, T, L)."""
        codes = self._codes_in_use(dropout=False)
        at = rearrange(tokens, "b t l -> (b l) t")
        ends = np.cumsum([s.topk for s in self.slices])
        vectors = [_mean_of(codes, at[:, end - s.topk : end]) for s, end in zip(self.slices, ends)]
        return torch.cat(vectors, dim=1).reshape(*positions, self.e_dim)

    def _init_remap(self, remap: Optional[str], unknown_index: Union[str, int]) -> None:
        self.remap = remap
        self.unknown_index = unknown_index
        self.re_embed = self.n_e
        if remap is None:
            return
        if self.tokens_per_position != 1:
            raise ValueError(
                f"remap renames the one token of a position, and here a position has {self.tokens_per_position}; use "
                "parts_of_speech='joint' with topk=1, or leave remap out"
            )
        used = np.load(remap, allow_pickle=False)
        if used.ndim != 1 or used.dtype.kind not in "iu" or used.size == 0 or used.min() < 0 or used.max() >= self.n_e:
            raise ValueError(f"{remap} holds {used.dtype} {used.shape}; expected indices in [0, {self.n_e}) in one row")
        self.register_buffer("used", torch.tensor(used))
        self.re_embed = len(used)
        if unknown_index == "extra":
            self.unknown_index = self.re_embed
            self.re_embed += 1
        elif unknown_index != "random" and not (isinstance(unknown_index, int) and 0 <= unknown_index < self.re_embed):
            raise ValueError(
                f"unknown_index is {unknown_index!r}; expected 'random', 'extra', or an integer in [0, {self.re_embed})"
            )
        print(f"Remapping {self.n_e} indices to {self.re_embed}, unknown ones to {self.unknown_index}.")

    def _remapped(self, indices: Tensor) -> Tensor:
        """Places in ``used`` of indices (B, L); ``unknown_index`` for those not in it."""
        matches = indices[:, :, None] == self.used.to(indices)
        places = matches.long().argmax(-1)
        unknown = ~matches.any(-1)
        if self.unknown_index == "random":  # drawn on the CPU, as taming draws
            random = torch.randint(0, self.re_embed, size=places[unknown].shape)
            places[unknown] = random.to(places.device)
        else:
            places[unknown] = int(self.unknown_index)
        return places

    def _unmapped(self, places: Tensor) -> Tensor:
        """Indices of places in ``used``; the extra token becomes the first of them, as in taming."""
        return self.used.to(places)[torch.where(places >= len(self.used), torch.zeros_like(places), places)]

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        key = f"{prefix}prior_identity"
        if key in state_dict:
            theirs, ours = _read_identity(state_dict[key]), _read_identity(self.prior_identity)
            if theirs["fingerprint"] != ours["fingerprint"]:
                raise PriorError(
                    f"the checkpoint's codebook was made from another prior: {theirs['description']}; this quantizer "
                    f"has {ours['description']}. Build it with the prior, n_e and parts_of_speech of the checkpoint"
                )
            state_dict[key] = self.prior_identity.detach().clone()  # only the description may differ
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        slices = ", ".join(f"{s.name}: {s.last - s.first} codes, topk {s.topk}" for s in self.slices)
        return f"n_e={self.n_e}, e_dim={self.e_dim}, beta={self.beta}, legacy={self.legacy}, {slices}"


class _FrozenCodebook(NamedTuple):
    codes: Tensor
    weights: List[Tensor]  # the parameters it was computed from


def _named(indices: Any, words: Sequence[str]) -> Any:
    return [_named(i, words) for i in indices] if isinstance(indices, list) else words[indices]


def _mean_of(codes: Tensor, indices: Tensor) -> Tensor:
    """(N, D): the mean of the codes at indices (N, k)."""
    if indices.shape[1] == 1:
        return F.embedding(indices.squeeze(1), codes)
    return F.embedding(indices, codes).mean(dim=1)


def _slices(prior: CodebookPrior, joint: bool, topk: Union[int, Mapping[str, int]]) -> List[Slice]:
    names = ("joint",) if joint else prior.parts
    if isinstance(topk, Mapping):
        unknown = sorted(set(map(str, topk)) - set(names))
        if unknown:
            raise ValueError(f"topk names {', '.join(unknown)}; expected a number for some of {', '.join(names)}")
        numbers = [topk.get(name, 1) for name in names]
    else:
        numbers = [topk] + [1] * (len(names) - 1)
    sizes = [len(prior)] if joint else [prior.sizes[name] for name in names]
    slices, first = [], 0
    for name, size, number in zip(names, sizes, numbers):
        if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= size:
            raise ValueError(f"topk is {number!r} for {name}, which has {size} codes; expected an integer, 1 to {size}")
        slices.append(Slice(name, first, first + size, number))
        first += size
    return slices


def _identity_bytes(prior: CodebookPrior) -> Tensor:
    identity = {"fingerprint": prior.fingerprint, "description": prior.describe()}
    return torch.tensor(list(json.dumps(identity, sort_keys=True).encode()), dtype=torch.uint8)


def _read_identity(identity: Tensor) -> Dict[str, str]:
    try:
        read = json.loads(bytes(identity.detach().cpu().to(torch.uint8).tolist()).decode())
        return {"fingerprint": str(read["fingerprint"]), "description": str(read["description"])}
    except (ValueError, KeyError, TypeError) as error:
        raise PriorError(f"the checkpoint does not say which prior its codebook was made from: {error}") from error
