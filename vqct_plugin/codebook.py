"""The codebook that words make: which codes there are, how indices become vectors again, and what a checkpoint holds.

Source: Zhang et al., *Codebook Transfer with Part-of-Speech for Vector-Quantized Image Modeling*, CVPR 2024.

This file is long: a third of it is what its methods promise to hosts, and they read each other.
"""

import inspect
import json
import math
import os
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple, Type, TypeVar, Union

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vqct_plugin._deferred import DeferredErrors
from vqct_plugin._torch import (
    at_least_float32,
    batched_by_vmap,
    compiling,
    eager_before_2_4,
    in_dynamo,
    in_func_transform,
    is_fake,
    on_the_host,
    tracing,
    without_autocast,
)
from vqct_plugin.additive import add_codes
from vqct_plugin.dropout import move_like
from vqct_plugin.frozen import FrozenCodebook
from vqct_plugin.pretrained import Pretrained
from vqct_plugin.prior import CodebookPrior, PriorError
from vqct_plugin.slices import check_flag, make_slices, token_bounds
from vqct_plugin.state import QuantizerState, read_prior, read_settings
from vqct_plugin.table import Table, average_codes, check_range
from vqct_plugin.terms import name_of, record, was_given
from vqct_plugin.transfer import TransferLike, build_transfer, is_averages

PriorLike = Union[str, "os.PathLike[str]", CodebookPrior]
COMBINATIONS = ("concat", "sum")
Self = TypeVar("Self", bound="TransferredCodebook")


class TransferredCodebook(Pretrained, nn.Module):
    """What all quantizers with a transferred codebook share: its codes, and the way from indices to vectors.

    The arguments are explained at :class:`vqct_plugin.CodebookTransferQuantizer`; ``others`` are further arguments of
    the class's own that its state keeps.
    """

    part_of_speech: Tensor

    def __init__(
        self,
        n_e: Union[int, Mapping[str, int]],
        e_dim: int,
        *,
        prior: PriorLike,
        parts_of_speech: Union[str, Sequence[str]],
        topk: Union[int, Mapping[str, int]],
        transfer: TransferLike,
        dropout: float,
        edge_weight: str,
        sane_index_shape: bool,
        l2_normalize: bool = False,
        channels_last: bool = False,
        combine: Optional[str] = "concat",
        others: Optional[Mapping[str, Any]] = None,
    ) -> None:
        super().__init__()
        if combine is not None and combine not in COMBINATIONS:
            raise ValueError(f"combine is {combine!r}; expected one of {', '.join(COMBINATIONS)}")
        check_flag("sane_index_shape", sane_index_shape)
        check_flag("l2_normalize", l2_normalize)
        check_flag("channels_last", channels_last)
        joint = isinstance(parts_of_speech, str) and parts_of_speech == "joint"
        given = [parts_of_speech] if isinstance(parts_of_speech, str) else parts_of_speech
        named = list(given) if isinstance(given, Iterable) else []
        if not named or not all(isinstance(part, str) for part in named):
            raise ValueError(
                f"parts_of_speech is {parts_of_speech!r}; expected names of parts, such as ('adjective', 'noun'), or "
                "'joint'"
            )
        whole = prior if isinstance(prior, CodebookPrior) else CodebookPrior.load(prior)
        self.prior = whole.select(n_e, None if joint else named)
        self.n_e = len(self.prior)
        self.e_dim = e_dim
        self.words = list(self.prior.words)
        self.parts = self.prior.parts
        self.slices = make_slices(self.prior, joint, topk)
        self.topk = topk
        self.tokens_per_position = sum(s.topk for s in self.slices)
        whole_codes = takes_whole_codes([s.topk for s in self.slices], l2_normalize)
        if combine is None:
            combine = choose_combine(transfer, whole_codes)
        self.combine = combine
        # one part has nothing to be added to
        self._adds = combine == "sum" and len(self.slices) > 1
        self._channel_slices = 1 if self._adds else len(self.slices)
        if self._adds and not whole_codes:
            what = "l2_normalize" if l2_normalize else f"topk {topk}"
            raise ValueError(f"combine='sum' adds one code of each part as it is; with {what}, use combine='concat'")
        if not isinstance(e_dim, int) or e_dim < 1 or e_dim % self._channel_slices:
            raise ValueError(
                f"e_dim is {e_dim!r}; expected a positive multiple of {self._channel_slices}, so that each of "
                f"{', '.join(s.name for s in self.slices)} gets an equal slice of the channels (a host's embed_dim)"
            )
        self.transfer = build_transfer(
            transfer,
            self.prior,
            e_dim // self._channel_slices,
            dropout,
            edge_weight,
            self.slices,
            in_turn=self._adds,
        )
        self.sane_index_shape = sane_index_shape
        self.l2_normalize = l2_normalize
        self.channels_last = channels_last
        # Constants are plain tensors, neither parameters nor buffers: see vqct_plugin.transfer.
        self.part_of_speech = torch.tensor(self.prior.part_of_speech.astype(np.int64), device="cpu")
        self.token_bounds = token_bounds(self.slices)
        self._state = QuantizerState(
            self.prior,
            {
                "n_e": self.n_e if joint else dict(self.prior.sizes),
                "e_dim": e_dim,
                "parts_of_speech": "joint" if joint else list(self.parts),
                "topk": {s.name: s.topk for s in self.slices},
                "transfer": _describe_transfer(transfer),
                "dropout": dropout,
                "edge_weight": edge_weight,
                "l2_normalize": l2_normalize,
                "channels_last": channels_last,
                "combine": combine,
                "sane_index_shape": sane_index_shape,
                **(others or {}),
            },
        )
        self._frozen: Optional[FrozenCodebook] = None
        self._errors = DeferredErrors()

    @classmethod
    def from_state_dict(cls: Type[Self], state: Mapping[str, Any], prefix: str = "", **options: Any) -> Self:
        """The quantizer whose state a checkpoint holds, where neither its prior file nor its config is at hand.

        Args:
            state: a state dict, of the quantizer or of a model that has it.
            prefix: where it stands there, as ``"quantize."`` in a VQGAN's.
            options: arguments that override those in the state.

        Raises:
            PriorError: the state does not hold the quantizer's prior (a checkpoint of an early version does not).

        >>> import vqct_plugin
        >>> first = vqct_plugin.CodebookTransferQuantizer(512, 64)
        >>> second = vqct_plugin.CodebookTransferQuantizer.from_state_dict(first.state_dict())
        >>> torch.equal(first.embedding.weight, second.embedding.weight)
        True
        """
        prior = read_prior(state, prefix)
        if prior is None:
            raise PriorError(
                f"the state has no {prefix}prior.header, so it does not say which words the codes are; build the "
                "quantizer with its prior file, and load the state into it"
            )
        if f"{prefix}used" in state and "remap" not in options:
            raise ValueError("the state is of a quantizer with a remap; pass remap, the file of the indices in use")
        known = inspect.signature(cls.__init__).parameters
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
        kept = {name: value for name, value in read_settings(state, prefix).items() if name in known or takes_all}
        settings = {"prior": prior, **kept, **options}
        missing = [name for name in ("n_e", "e_dim") if name not in settings]
        if missing:
            raise PriorError(f"the state has no {prefix}settings, which say {' and '.join(missing)}; pass them")
        for name in ("transfer", "gradient"):
            if was_given(settings.get(name)):
                raise ValueError(
                    f"the state's quantizer was made with an object as its {name}, of {settings[name]['given']}, which "
                    f"a state cannot hold; pass {name}"
                )
        quantizer = cls(settings.pop("n_e"), settings.pop("e_dim"), **settings)
        own = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
        quantizer.load_state_dict(own)
        return quantizer

    @eager_before_2_4
    def get_codebook_entry(
        self, indices: Tensor, shape: Optional[Sequence[int]] = None, channel_first: bool = False
    ) -> Tensor:
        """The quantized map of some indices: the exact inverse of ``forward``, for every ``topk`` and layout.

        Always by the codebook without dropout, the one of evaluation.

        Args:
            indices: integers of any size, in either layout of ``forward`` (flat, or with the positions spelled out).
            shape: the map's (B, H, W, C), or (B, C, H, W) with ``channel_first`` (LlamaGen's order); likewise with one
                or three spatial dimensions.

        Returns:
            (B, C, H, W); with the quantizer's ``channels_last`` (B, H, W, C). Without ``shape``, the positions as they
            came and the channels last: (B, H, W) with one token per position gives (B, H, W, C), and so do
            (B, T, H, W) with T; (B, T*L) gives (B, L, C).

        Raises:
            ValueError: the indices are not integers, do not fit the shape, or name codes that their token cannot take:
                a noun's where an adjective's has to be. On a device other than the CPU that comes at a later call.
        """
        indices = self._as_indices(indices)
        if shape is None:
            tokens, positions = self._spell_out(indices)
            return self._entries(tokens, positions)
        b, *positions_, c = (shape[0], *shape[2:], shape[1]) if channel_first else tuple(shape)
        t = self.tokens_per_position
        length = math.prod(positions_)
        if c != self.e_dim or indices.numel() != b * t * length:
            order = "(B, C, H, W)" if channel_first else "(B, H, W, C)"
            raise ValueError(
                f"{indices.numel()} indices for shape {tuple(shape)}; expected B * {t} * H * W of them (with {t} "
                f"token(s) per position) and C = {self.e_dim}, the shape being {order}"
            )
        entries = self._entries(indices.reshape(b, t, length), (b, *positions_))
        return entries if self.channels_last else entries.movedim(-1, 1).contiguous()

    @eager_before_2_4
    def embed_code(self, code: Tensor) -> Tensor:
        """The quantized map (B, C, H, W) of a code, for the hosts' ``decode_code``: (B, H, W), with T tokens per
        position (B, T, H, W), or (B, T*L) where L positions make a square."""
        if code.dim() == 2:
            side = round((code.shape[1] / self.tokens_per_position) ** 0.5)
            if side * side * self.tokens_per_position != code.shape[1]:
                raise ValueError(
                    f"code has shape {tuple(code.shape)}, whose {code.shape[1]} tokens are not a square of positions "
                    f"with {self.tokens_per_position} token(s) each; use get_codebook_entry(code, shape)"
                )
            return self.get_codebook_entry(code, (code.shape[0], side, side, self.e_dim))
        entries = self.get_codebook_entry(code)
        return entries if self.channels_last else entries.movedim(-1, 1).contiguous()

    def words_of(self, indices: Tensor) -> Any:
        """The words of some codes, as lists nested like ``indices.tolist()``: integers as ``forward`` gives them.

        >>> import vqct_plugin
        >>> quantizer = vqct_plugin.CodebookTransferQuantizer(512, 64, sane_index_shape=True)
        >>> _, _, (_, _, indices) = quantizer(torch.randn(1, 64, 4, 4))
        >>> adjectives, nouns = quantizer.words_of(indices[0])  # 4 rows of 4 words each
        >>> len(nouns), len(nouns[0]), nouns[0][0] in quantizer.words
        (4, 4, True)
        """
        indices = self._as_indices(indices)
        check_range(indices, self.n_e - 1)
        return _look_up_words(indices.tolist(), self.words)

    @property
    def settings(self) -> Dict[str, Any]:
        """The arguments that the quantizer was made with, as its state has them."""
        return dict(self._state.settings)

    @property
    def embedding(self) -> Table:
        """``embedding.weight``: the codebook in use, without dropout, (n_e, e_dim / parts), or (n_e, e_dim) with
        ``combine="sum"``; ``embedding(indices)``: its rows."""
        return Table(self._codes_in_use(dropout=False))

    def export_codebook(self, part: Optional[str] = None) -> Dict[str, Tensor]:
        """The state of a plain ``VectorQuantizer2(n, e_dim / parts, beta)``: ``{"embedding.weight": (n, ...)}``.

        ``part``: only the codes of this part of speech. Each slice of the channels meets the codes of its part alone,
        so with several parts it takes one ``VectorQuantizer2`` for each to give the same reconstructions; with
        ``combine="sum"`` the codes are (n, e_dim), and what they give is added.
        """
        weight = self.embedding.weight.detach().clone()
        if part is not None:
            if part not in self.parts:
                raise ValueError(f"unknown part of speech {part!r}; expected one of {', '.join(self.parts)}")
            weight = weight[self.part_of_speech.to(weight.device) == self.parts.index(part)]
        return {"embedding.weight": weight}

    def freeze_codebook(self: Self) -> Self:
        """Compute the codebook once, and use it from now on: faster inference. Returns the quantizer itself.

        For evaluation only. If a weight changes afterwards, by an optimizer, a checkpoint or swapped-in averages, the
        next call is refused (on a GPU a later one, since the host does not wait; under ``torch.compile`` the codes
        become NaN): freeze it again, or unfreeze. Moving the module, and casting it, is no change: the frozen codes
        stay as they are, in float32.
        """
        self._frozen = None
        with torch.no_grad():
            codes = self._codes_in_use(dropout=False).clone()
            self._frozen = FrozenCodebook.of(codes, self._sources())
        return self

    def unfreeze_codebook(self: Self) -> Self:
        """Compute the codebook at every call again. Returns the quantizer itself."""
        self._frozen = None
        return self

    @eager_before_2_4
    def _codes_in_use(self, dropout: Optional[bool] = None, fingerprint: Optional[Tensor] = None) -> Tensor:
        if self._frozen is not None:
            return self._still_frozen(self._frozen)
        device = next((p.device for p in self.transfer.parameters()), self.part_of_speech.device)
        with without_autocast(device):
            codes: Tensor = self.transfer(self.training if dropout is None else dropout, fingerprint)
            return F.normalize(codes, dim=1) if self.l2_normalize else codes

    def _sources(self) -> List[Tensor]:
        """What the codes are computed from, and may change."""
        return [*self.transfer.parameters(), *self.transfer.buffers()]

    def _still_frozen(self, frozen: FrozenCodebook) -> Tensor:
        if self.training:
            raise RuntimeError("the codebook is frozen for inference; call unfreeze_codebook() before training")
        if tracing() and not in_dynamo():
            if frozen.is_stale():
                raise RuntimeError(_STALE)
            return frozen.codes  # it becomes a constant of the graph
        sources = self._sources()
        if not compiling() and _any_fake(sources):
            return frozen.codes.to(sources[0].device)  # shapes
        unchanged = frozen.unchanged(sources)
        if compiling():
            return frozen.codes * torch.where(unchanged, 1.0, float("nan"))
        if not is_fake(unchanged):
            self._errors.unless(unchanged, _STALE, RuntimeError)
        return frozen.codes

    def _as_indices(self, indices: Tensor) -> Tensor:
        """Indices into the codebook, int64, of what a caller gives."""
        if indices.is_floating_point() or indices.dtype == torch.bool:
            raise ValueError(f"indices have dtype {indices.dtype}; expected integers")
        return indices.long()

    def _spell_out(self, indices: Tensor) -> Tuple[Tensor, Tuple[int, ...]]:
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

    def _entries(self, tokens: Tensor, positions: Sequence[int]) -> Tensor:
        """The vectors (*positions, C) of tokens (B, T, L)."""
        at = self._check_tokens(tokens.transpose(1, 2).reshape(-1, tokens.shape[1]))
        codes = self._codes_in_use(dropout=False)
        if self._adds:
            vectors = add_codes(codes, at)
        else:
            tokens_of_slices = at.split([s.topk for s in self.slices], dim=1)
            vectors = torch.cat([average_codes(codes, own) for own in tokens_of_slices], dim=1)
        if compiling() or tracing() or in_func_transform():  # nothing is raised here; what is refused elsewhere is NaN
            first, last = self._bounds_on(at.device)
            wrong = ((at < first) | (at >= last)).any(dim=1, keepdim=True)
            vectors = vectors.masked_fill(wrong, float("nan"))
        return vectors.reshape(*positions, self.e_dim)

    def _check_tokens(self, at: Tensor) -> Tensor:
        """Tokens (N, T), each one that its place can have; refused, or on a device refused later, where one is not."""
        if compiling() or tracing() or in_func_transform() or is_fake(at) or at.numel() == 0:
            return at
        first, last = self._bounds_on(at.device)
        if not on_the_host(at):
            self._errors.unless(
                ((at >= first) & (at < last)).all(), "an index is outside the range of codes that its token can take"
            )
            return torch.min(torch.max(at, first), last - 1)  # so that a kernel does not stumble before we can say it
        check_range(at, self.n_e - 1)
        wrong = torch.nonzero((at < first) | (at >= last))
        if len(wrong):
            token, bad = int(wrong[0, 1]), int(at[wrong[0, 0], wrong[0, 1]])
            raise ValueError(
                f"token {token + 1} of {len(first)} of a position is code {bad} ({self.words[bad]!r}); "
                f"expected one of {int(first[token])} to {int(last[token]) - 1}. An image's indices are all first "
                "tokens of its positions, then all second ones"
            )
        return at

    def _bounds_on(self, device: torch.device) -> Sequence[Tensor]:
        """``token_bounds`` on a device, where they stay: the first code of each token, and the one after the last."""
        bounds = self.token_bounds.to(device)
        if bounds is not self.token_bounds and not tracing() and not is_fake(bounds):
            self.token_bounds = bounds
        return bounds.unbind(0)

    def _check_input(self, z: Tensor) -> Optional[Tensor]:
        """Refuse what is not a map. Returns a number that tells this z from others, where the dropout asks for it."""
        if not z.is_floating_point():
            raise ValueError(f"z has dtype {z.dtype}; expected floating point")
        channels = z.shape[-1 if self.channels_last else 1] if z.dim() >= 2 else None
        if not 3 <= z.dim() <= 5 or channels != self.e_dim:
            expected = f"(B, ..., {self.e_dim})" if self.channels_last else f"(B, {self.e_dim}, H, W)"
            raise ValueError(
                f"z has shape {tuple(z.shape)}; expected {expected}, with one to three spatial dimensions: e_dim is "
                f"the total number of channels, {self._channel_slices} slice(s) together"
            )
        if z.numel() == 0:
            raise ValueError(f"z has shape {tuple(z.shape)}, which holds no vector; expected B, H and W >= 1")
        if batched_by_vmap(z):
            raise ValueError(
                "z is a batch of torch.vmap's; call the quantizer without vmap: its first dimension is one"
            )
        if compiling() or tracing() or in_func_transform() or is_fake(z):
            return None  # a NaN still shows, in the loss
        z = at_least_float32(z.detach())
        total = z.sum()
        if z.device.type == "cpu" and torch.isfinite(total):
            return total  # one pass; the sum of finite values may overflow, and then the second pass decides
        self._errors.unless(
            torch.isfinite(z).all(),
            "z holds NaN or infinite values: the encoder diverged; lower the learning rate or clip gradients",
        )
        return total

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        frozen = self._frozen
        current = frozen is not None and not _any_fake(self._sources()) and bool(frozen.unchanged(self._sources()))
        super()._apply(fn, *args, **kwargs)
        self.part_of_speech = move_like(fn, self.part_of_speech)
        self.token_bounds = move_like(fn, self.token_bounds)
        if frozen is not None:
            codes, sources = move_like(fn, frozen.codes), self._sources()
            known = current and not _any_fake(sources)  # the meta device has no values to compare with later
            self._frozen = (
                FrozenCodebook.of(codes, sources) if known else FrozenCodebook(codes, frozen.weights, sources)
            )
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        self._state.save(destination, prefix)

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, metadata: Any, strict: bool, missing: List[str], *args: Any
    ) -> None:
        theirs, ours = state_dict.get(f"{prefix}transfer.weights"), getattr(self.transfer, "weights", None)
        absent = self._state.take_from(state_dict, prefix)
        if theirs is not None and (
            ours is None or theirs.shape != ours.shape or not torch.allclose(theirs.cpu(), ours.cpu())
        ):
            raise PriorError(
                "the checkpoint, of an early version, has another graph than this quantizer: build it with the "
                "checkpoint's transfer and edge_weight"
            )
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, *args)
        if strict:
            missing.extend(absent)

    def __prepare_scriptable__(self) -> Any:
        raise RuntimeError(
            "torch.jit.script cannot compile this quantizer; use torch.compile to make it faster, torch.export or "
            "torch.onnx.export (after freeze_codebook()) to run it without this package"
        )


_STALE = "the weights behind a frozen codebook have changed; call freeze_codebook() again, or unfreeze_codebook()"


def _any_fake(tensors: Sequence[Tensor]) -> bool:
    return any(map(is_fake, tensors))


def takes_whole_codes(topk: Iterable[int], l2_normalize: bool) -> bool:
    """Whether a position takes one code of each part, as it is."""
    return not l2_normalize and all(k == 1 for k in topk)


def choose_combine(transfer: TransferLike, whole_codes: bool) -> str:
    """What ``combine`` is by default."""
    return "sum" if whole_codes and is_averages(transfer) else "concat"


def _describe_transfer(transfer: TransferLike) -> Any:
    """What the state keeps of a transfer: all that makes it again, or ``{"given": name}`` of an object."""
    if isinstance(transfer, str):
        return transfer
    if isinstance(transfer, Mapping):
        try:
            return json.loads(json.dumps(dict(transfer), default=_plain))
        except TypeError:
            return {"given": str(transfer.get("target"))}
    return {"given": name_of(type(transfer))} if isinstance(transfer, nn.Module) else record(transfer)


def _plain(container: Any) -> Any:
    """A container of another library's, as of a YAML, as Python's own."""
    if isinstance(container, Mapping):
        return dict(container)
    if isinstance(container, Sequence):
        return list(container)
    raise TypeError(type(container).__name__)


def _look_up_words(indices: Any, words: Sequence[str]) -> Any:
    return [_look_up_words(i, words) for i in indices] if isinstance(indices, list) else words[indices]
