"""The module that replaces vector-quantize-pytorch's ``VectorQuantize``: its contract, codes from words.

It needs nothing of that package. Source of the contract: lucidrains/vector-quantize-pytorch 1.32 (MIT); of the
codebook: Zhang et al., CVPR 2024.

This file is long: a quarter of it is that package's arguments, each with what it means here.
"""

import difflib
import inspect
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple, Union

import torch
import torch.nn as nn
from torch import Tensor

from vqct_plugin.averages import AveragesTransfer
from vqct_plugin.hosts.base import list_options
from vqct_plugin.quantizer import CodebookTransferQuantizer
from vqct_plugin.slices import check_flag, check_weight
from vqct_plugin.terms import GradientLike

__all__ = ["LossBreakdown", "VectorQuantize"]

#: options of its constructor that there is nothing to obey for here: the values that ask for nothing, and what to do
_NOT_HERE: Dict[str, Tuple[Tuple[Any, ...], str]] = {
    "eps": ((1e-5,), "counts are not smoothed here; leave it out"),
    "kmeans_init": ((False,), "codes begin as the words have them; leave it out"),
    "kmeans_iters": ((10,), "codes begin as the words have them; leave it out"),
    "sync_kmeans": ((True,), "there are no k-means; leave it out"),
    "threshold_ema_dead_code": ((0,), "with averages it is restart: transfer={'target': 'averages', 'params': ...}"),
    "commitment_use_cross_entropy_loss": ((False,), "the commitment is a squared error; leave it out"),
    "orthogonal_reg_weight": ((0,), "write the term as a function and name it in loss_terms"),
    "orthogonal_reg_active_codes_only": ((False,), "leave it out"),
    "orthogonal_reg_max_codes": ((None,), "leave it out"),
    "codebook_diversity_loss_weight": ((0,), "write the term as a function and name it in loss_terms"),
    "codebook_diversity_temperature": ((100.0,), "leave it out"),
    "stochastic_sample_codes": ((False,), "the nearest code is taken; GumbelTransferQuantizer draws codes"),
    "sample_codebook_temp": ((1.0, None), "the nearest code is taken; GumbelTransferQuantizer draws codes"),
    "straight_through": ((False,), "it draws codes there; for the plain gradient write rotation_trick=False"),
    "directional_reparam": ((False,), "write rotation_trick=False, or a gradient of your own"),
    "directional_reparam_variance": ((5e-3,), "leave it out"),
    "sync_codebook": ((None, True), "the codebook is one in all processes; leave it out"),
    "sync_affine_param": ((False,), "leave it out"),
    "vq_bridge": ((None,), "the codes come from transfer, which takes a module of your own"),
    "manual_ema_update": ((False,), "averages move at each training step; leave it out"),
    "in_place_codebook_optimizer": ((None,), "the model's optimizer moves the transfer; leave it out"),
    "manual_in_place_optimizer_update": ((False,), "leave it out"),
    "affine_param": ((False,), "leave it out"),
    "affine_param_batch_decay": ((0.99,), "leave it out"),
    "affine_param_codebook_decay": ((0.9,), "leave it out"),
    "sync_update_v": ((0,), "leave it out"),
    "route_gradients_to_input": ((True,), "detach the result instead"),
}
#: arguments of our quantizer that the options of this module decide
_DECIDED = ("beta", "remap", "unknown_index", "sane_index_shape", "legacy", "l2_normalize", "channels_last", "gradient")


class LossBreakdown(NamedTuple):
    """What makes up the loss, under the names of vector-quantize-pytorch; 0-d tensors, the last three always 0."""

    commitment: Tensor
    codebook_diversity: Tensor
    orthogonal_reg: Tensor
    inplace_optimize: Tensor


class _Codes(NamedTuple):
    """What vector-quantize-pytorch's ``ResidualVQ`` reads of a layer's codebook."""

    embed: Tensor
    codebook_size: int


class VectorQuantize(nn.Module):
    """``quantized, indices, loss = vq(x)``, in place of vector-quantize-pytorch's module of this name.

    One line of the constructor changes. The arguments are that module's, by the same names, and the first six in the
    same order; those that have no meaning for codes from words are refused where they ask for something. The loss is
    ``commitment_weight * mean((z - q)^2)`` while training, with the gradient of z and, where the transfer learns by
    gradient, of the codes, as there with ``learnable_codebook``; in evaluation it is 0.

    Args:
        dim: the number of channels of x.
        codebook_size: the number of codes: the most frequent words of the prior.
        codebook_dim: channels of a head's codes; where ``heads * codebook_dim`` is not ``dim``, a linear layer before
            and one behind. ``dim`` by default.
        heads: how many codes make a position, each of its own slice of the channels.
        separate_codebook_per_head: a transfer of its own for each head, over the same words.
        decay: of the moving averages, with the transfer ``"averages"``. None leaves the transfer's own.
        freeze_codebook: the codebook does not learn; a call's argument of that name takes precedence.
        use_cosine_sim: codes and vectors are scaled to length 1.
        layernorm_after_project_in: where there is a linear layer before.
        channel_last: x is (B, ..., dim); False: (B, dim, ...).
        accept_image_fmap, accept_3d_fmap: x is (B, dim, H, W), or (B, dim, D, H, W).
        commitment_weight: the weight of the whole loss.
        rotation_trick: how the gradient passes: True, also where it is None, by rotation, see
            :func:`vqct_plugin.terms.rotation`; False by straight-through.
        ema_update, learnable_codebook: None; or what the transfer does, so that a line that relies on it is refused
            where it is otherwise.
        return_zeros_for_masked_padding: what stands where the mask is False: 0, or x itself.
        parts_of_speech: ``"joint"``, one code for a head and position; with several parts a position has T tokens, in
            the last dimension of the indices, and ``codebook_size`` is the number of all codes together.
        gradient: a gradient of :class:`vqct_plugin.CodebookTransferQuantizer`, in place of ``rotation_trick``.
        options: ``prior``, ``topk``, ``transfer``, ``dropout``, ``edge_weight`` and ``loss_terms`` of
            :class:`vqct_plugin.CodebookTransferQuantizer`; and the other arguments of vector-quantize-pytorch's.

    Attributes:
        quantizer: the :class:`vqct_plugin.CodebookTransferQuantizer` inside, with its words and its state; of the first
            head, where each has its own, and ``quantizers`` has all.

    Shapes: x (B, N, dim), with one to three dimensions between, or (B, dim) for one position; quantized as x; indices
    int64 (B, N), and (B, N, heads * T) where that is more than one, -1 where the mask is False; loss a 0-d tensor.

    Raises:
        ValueError: an option of vector-quantize-pytorch's asks for what is not here; it says what to do.
        TypeError: an option of neither; it names those that are close.

    >>> vq = VectorQuantize(dim=64, codebook_size=512, transfer="graph")
    >>> quantized, indices, loss = vq(torch.randn(2, 100, 64))
    >>> quantized.shape, indices.shape, loss.shape
    (torch.Size([2, 100, 64]), torch.Size([2, 100]), torch.Size([]))
    >>> quantized, indices, _ = vq.eval()(torch.randn(2, 100, 64))
    >>> torch.equal(vq.indices_to_codes(indices), quantized)
    True
    """

    def __init__(
        self,
        dim: int,
        codebook_size: Union[int, Mapping[str, int]],
        codebook_dim: Optional[int] = None,
        heads: int = 1,
        separate_codebook_per_head: bool = False,
        decay: Optional[float] = None,
        *,
        freeze_codebook: bool = False,
        use_cosine_sim: bool = False,
        layernorm_after_project_in: bool = False,
        channel_last: bool = True,
        accept_image_fmap: bool = False,
        accept_3d_fmap: bool = False,
        commitment_weight: float = 1.0,
        rotation_trick: Optional[bool] = None,
        ema_update: Optional[bool] = None,
        learnable_codebook: Optional[bool] = None,
        return_zeros_for_masked_padding: bool = True,
        parts_of_speech: Any = "joint",
        gradient: Optional[GradientLike] = None,
        **options: Any,
    ) -> None:
        super().__init__()
        codebook_dim = dim if codebook_dim is None else codebook_dim
        for name, value in (("dim", dim), ("codebook_dim", codebook_dim), ("heads", heads)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} is {value!r}; expected an integer of 1 or more")
        for name, value in (("separate_codebook_per_head", separate_codebook_per_head), ("channel_last", channel_last),
                            ("accept_image_fmap", accept_image_fmap), ("accept_3d_fmap", accept_3d_fmap),
                            ("freeze_codebook", freeze_codebook), ("use_cosine_sim", use_cosine_sim),
                            ("layernorm_after_project_in", layernorm_after_project_in),
                            ("return_zeros_for_masked_padding", return_zeros_for_masked_padding),
                            ("rotation_trick", rotation_trick is not None and rotation_trick)):  # fmt: skip
            check_flag(name, value)
        check_weight("commitment_weight", commitment_weight)
        if accept_image_fmap and accept_3d_fmap:
            raise ValueError("accept_image_fmap and accept_3d_fmap are both true; x has one number of dimensions")
        options = _sort_options(options)
        self.dim, self.heads, self.codebook_dim = dim, heads, codebook_dim
        self.separate_codebook_per_head = separate_codebook_per_head
        inside = self.codebook_dim * heads
        self.has_projections = inside != dim
        if layernorm_after_project_in and not self.has_projections:
            raise ValueError("layernorm_after_project_in has no meaning without codebook_dim; leave it out")
        self.project_in: nn.Module = nn.Linear(dim, inside) if self.has_projections else nn.Identity()
        if layernorm_after_project_in:
            self.project_in = nn.Sequential(self.project_in, nn.LayerNorm(inside))
        self.project_out: nn.Module = nn.Linear(inside, dim) if self.has_projections else nn.Identity()
        self.quantizers = nn.ModuleList(
            CodebookTransferQuantizer(
                codebook_size, self.codebook_dim, channels_last=True, sane_index_shape=True,
                parts_of_speech=parts_of_speech, l2_normalize=use_cosine_sim,
                gradient=_gradient_of(gradient, rotation_trick, self.codebook_dim),
                **_with_decay(options, decay),
            )
            for _ in range(heads if separate_codebook_per_head else 1)
        )  # fmt: skip
        self.codebook_size = self.quantizer.n_e
        self.ema_update = isinstance(self.quantizer.transfer, AveragesTransfer)
        self.learnable_codebook = not self.ema_update
        for name, asked in (("ema_update", ema_update), ("learnable_codebook", learnable_codebook)):
            if asked is not None and asked != getattr(self, name):
                learns = "by averages, without a gradient" if self.ema_update else "by gradient"
                raise ValueError(
                    f"{name} is {asked!r}, but this transfer learns {learns}; leave it out, or set transfer"
                )
        self.use_cosine_sim = use_cosine_sim
        self.freeze_codebook = freeze_codebook
        self.channel_last, self.accept_image_fmap, self.accept_3d_fmap = channel_last, accept_image_fmap, accept_3d_fmap
        self.commitment_weight = commitment_weight
        self.return_zeros_for_masked_padding = return_zeros_for_masked_padding

    @property
    def quantizer(self) -> CodebookTransferQuantizer:
        return next(self._all())

    @property
    def codebook(self) -> Tensor:
        """The codes (codebook_size, codebook_dim), without dropout; (heads, ...) where each head has its own. With
        several parts a code has the channels of its part alone."""
        embed = self._codebook.embed
        return embed if self.separate_codebook_per_head else embed[0]

    @property
    def _codebook(self) -> _Codes:
        return _Codes(torch.stack([q.embedding.weight for q in self._all()]), self.codebook_size)

    def forward(
        self,
        x: Tensor,
        indices: Optional[Tensor] = None,
        mask: Optional[Tensor] = None,
        lens: Optional[Tensor] = None,
        topk: Optional[int] = None,
        sample_codebook_temp: Optional[float] = None,
        freeze_codebook: Optional[bool] = None,
        return_loss_breakdown: bool = False,
        **others: Any,
    ) -> Any:
        """Quantize x: ``(quantized, indices, loss)``, and with ``return_loss_breakdown`` a :class:`LossBreakdown`.

        Args:
            x: see the class.
            mask: (B, ...), the shape of the positions: True where one counts. The others are in no loss and move no
                code.
            lens: (B,), instead of a mask: how many positions of each sequence count.
            freeze_codebook: in place of the constructor's.
            indices, topk, sample_codebook_temp, others: of vector-quantize-pytorch's; refused unless None or False.
        """
        asked = {"indices": indices, "topk": topk, "sample_codebook_temp": sample_codebook_temp, **others}
        for name, value in asked.items():
            if value is not None and value is not False:
                raise ValueError(
                    f"{name} is given; the nearest code of each position is what there is here, leave it out"
                )
        rows, shape = self._rows_of(x)
        mask = self._mask_of(mask, lens, shape)
        z = self.project_in(rows).reshape(-1, self.heads, self.codebook_dim)
        kept = z if mask is None else z[mask.reshape(-1)]
        frozen = self.freeze_codebook if freeze_codebook is None else freeze_codebook
        check_flag("freeze_codebook", frozen)
        q, chosen, error, more = self._quantize(kept, frozen)
        loss = self.commitment_weight * error + more
        if mask is not None:
            q = torch.zeros_like(z).index_put((mask.reshape(-1),), q)
            chosen = chosen.new_full((len(z), chosen.shape[1]), -1).index_put((mask.reshape(-1),), chosen)
        quantized = self.project_out(q.reshape(*shape, self.heads * self.codebook_dim))
        if mask is not None:
            padding = torch.zeros_like(rows) if self.return_zeros_for_masked_padding else rows
            quantized = torch.where(mask.unsqueeze(-1), quantized, padding.to(quantized.dtype))
        tokens = () if chosen.shape[1] == 1 else chosen.shape[1:]
        result = self._as_x(quantized, x), chosen.reshape(*shape, *tokens), loss
        if not return_loss_breakdown:
            return result
        zero = torch.zeros_like(error)
        return (*result, LossBreakdown(error, zero, zero, zero))

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """The codes (..., heads * codebook_dim) of some indices, before the linear layer behind; with a map's channels
        first where x has them there. An index of -1, which masked positions have, gives zeros."""
        return self._as_x(self._codes_of(indices)[0])

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """What ``forward`` returned with these indices in evaluation: its exact inverse. Masked positions are 0."""
        codes, valid = self._codes_of(indices)
        weight = next(self.project_out.parameters(), codes)
        return self._as_x(self.project_out(codes.to(weight.dtype)) * valid)

    def indices_to_codes(self, indices: Tensor) -> Tensor:
        """:meth:`get_output_from_indices`, by the name that it has in the other modules of vector-quantize-pytorch."""
        return self.get_output_from_indices(indices)

    def _all(self) -> Iterator[CodebookTransferQuantizer]:
        found: Any = self.quantizers
        return iter(found)

    def _quantize(self, z: Tensor, frozen: bool) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
        """q like z (M, heads, D), indices (M, heads * T), the mean squared error with its gradients, and further terms
        of the loss. Both are 0 in evaluation."""
        t = self.quantizer.tokens_per_position
        if z.shape[0] == 0:  # every position is masked
            zero = 0 * (z.sum() + self._codebook.embed.sum())  # with every gradient that a loss has
            return z, torch.zeros(0, self.heads * t, dtype=torch.int64, device=z.device), zero, zero
        found: List[Tuple[Tensor, ...]] = []
        for quantizer, own in zip(self._all(), z.split(1, dim=1) if len(self.quantizers) > 1 else [z]):
            learns = quantizer.training and frozen
            if learns:
                quantizer.eval()  # no dropout, and no averages that move
            try:
                q, commitment, codebook, more, chosen = quantizer._quantize_map(own.reshape(1, -1, self.codebook_dim))
            finally:
                if learns:
                    quantizer.train()
            error = commitment if frozen else commitment + (codebook - codebook.detach())
            error = error / quantizer._channel_slices  # the mean over all channels: the slices' means are added up
            zero = torch.zeros_like(error)
            others = zero if more is None else more
            if not self.training:
                error, others = zero, zero
            found.append((q.reshape(own.shape), chosen.reshape(len(z), -1), error, others))
        qs, indices, errors, terms = zip(*found)
        return torch.cat(qs, dim=1), torch.cat(indices, dim=1), torch.stack(errors).mean(), torch.stack(terms).mean()

    def _codes_of(self, indices: Tensor) -> Tuple[Tensor, Tensor]:
        """Codes (..., heads * D) of indices, and where they are none of a masked position, (..., 1)."""
        if not isinstance(indices, Tensor):
            raise ValueError(f"indices are a {type(indices).__name__}; expected a tensor")
        t, indices = self.quantizer.tokens_per_position, self.quantizer._as_indices(indices)
        shape = tuple(indices.shape) if self.heads * t == 1 else tuple(indices.shape[:-1])
        if self.heads * t > 1 and indices.shape[-1] != self.heads * t:
            raise ValueError(
                f"indices have shape {tuple(indices.shape)}; expected {self.heads * t} in the last dimension, "
                f"{self.heads} head(s) with {t} token(s) each"
            )
        tokens = indices.reshape(-1, self.heads, t)
        valid = (tokens != -1).all(dim=2).all(dim=1)
        any_tokens = self.quantizer.token_bounds[0].to(tokens)  # (T,), that a position can have
        tokens = torch.where(valid[:, None, None], tokens, any_tokens)
        codes = []
        for quantizer, own in zip(self._all(), tokens.split(1, dim=1) if len(self.quantizers) > 1 else [tokens]):
            length = own.shape[0] * own.shape[1]
            entries = quantizer.get_codebook_entry(own.reshape(length, t).t(), (1, length, self.codebook_dim))
            codes.append(entries.reshape(own.shape[0], own.shape[1] * self.codebook_dim))
        found = torch.cat(codes, dim=1)
        return (found * valid[:, None]).reshape(*shape, found.shape[1]), valid.reshape(*shape, 1)

    def _rows_of(self, x: Tensor) -> Tuple[Tensor, Tuple[int, ...]]:
        """x with its channels last, and the shape of its positions."""
        if not isinstance(x, Tensor):
            raise ValueError(f"x is a {type(x).__name__}; expected a tensor")
        spatial = 2 if self.accept_image_fmap else 3 if self.accept_3d_fmap else None
        first = not self.channel_last or spatial is not None
        rows = x.movedim(1, -1) if first and x.dim() > 2 else x
        wrong = not 0 <= x.dim() - 2 <= 3 if spatial is None else x.dim() != 2 + spatial
        if wrong or rows.shape[-1] != self.dim or not x.is_floating_point():
            names = {None: "...", 2: "H, W", 3: "D, H, W"}[spatial]
            expected = f"(B, {self.dim}, {names})" if first else f"(B, ..., {self.dim})"
            raise ValueError(
                f"x has shape {tuple(x.shape)} and dtype {x.dtype}; expected floating point, {expected}, with at most "
                "three dimensions of positions"
            )
        return rows, tuple(rows.shape[:-1])

    def _as_x(self, rows: Tensor, x: Optional[Tensor] = None) -> Tensor:
        """Rows (B, ..., C) as x has its channels."""
        first = not self.channel_last or self.accept_image_fmap or self.accept_3d_fmap
        moved = rows.movedim(-1, 1).contiguous() if first and rows.dim() > 2 else rows
        return moved if x is None else moved.to(x.dtype)

    def _mask_of(self, mask: Optional[Tensor], lens: Optional[Tensor], shape: Tuple[int, ...]) -> Optional[Tensor]:
        for name, value in (("mask", mask), ("lens", lens)):
            if not (value is None or isinstance(value, Tensor)):
                raise ValueError(f"{name} is a {type(value).__name__}; expected a tensor")
        if lens is not None:
            if mask is not None or len(shape) != 2:
                raise ValueError("lens are for sequences (B, N, dim), and instead of a mask")
            mask = torch.arange(shape[1], device=lens.device) < lens.unsqueeze(-1)
        if mask is not None and (mask.dtype != torch.bool or tuple(mask.shape) != shape):
            raise ValueError(f"mask has shape {tuple(mask.shape)} and {mask.dtype}; expected {shape}, torch.bool")
        return mask

    def extra_repr(self) -> str:
        return f"dim={self.dim}, codebook_size={self.codebook_size}, heads={self.heads}"


def _sort_options(options: Mapping[str, Any]) -> Dict[str, Any]:
    """Those of our quantizer; those of vector-quantize-pytorch's alone are checked and dropped."""
    ours = list_options(CodebookTransferQuantizer, _DECIDED)
    for name, value in options.items():
        if name in _NOT_HERE:
            nothing, instead = _NOT_HERE[name]
            if not any(value is asked or (value == asked and not callable(value)) for asked in nothing):
                raise ValueError(
                    f"{name} is {value!r}; it is an option of vector-quantize-pytorch's own codebook, which is not "
                    f"here: {instead}"
                )
        elif name not in ours:
            every = [*list(inspect.signature(VectorQuantize.__init__).parameters)[1:-1], *ours, *_NOT_HERE]
            close = difflib.get_close_matches(name, every, n=3)
            hint = f"; close to it: {', '.join(close)}" if close else f"; it takes {', '.join(every)}"
            raise TypeError(f"vqct_plugin's VectorQuantize takes no argument {name!r}{hint}")
    return {name: value for name, value in options.items() if name in ours}


def _with_decay(options: Mapping[str, Any], decay: Optional[float]) -> Dict[str, Any]:
    """The quantizer's options, with ``decay`` among those of averages."""
    default = inspect.signature(CodebookTransferQuantizer.__init__).parameters["transfer"].default
    transfer = options.get("transfer", default)
    given = transfer if isinstance(transfer, Mapping) else {"target": transfer}
    if decay is None or (given.get("target") != "averages" and decay == 0.8):  # what the line had there by default
        return dict(options)
    if given.get("target") != "averages":
        raise ValueError(
            f"decay is {decay!r}, which is of moving averages, but the transfer {transfer!r} learns by gradient; leave "
            "it out, or set transfer='averages'"
        )
    params = dict(given.get("params") or {})
    if "decay" in params:
        raise ValueError("decay is given twice, beside transfer and in its params; leave one out")
    return {**options, "transfer": {"target": "averages", "params": {**params, "decay": decay}}}


def _gradient_of(gradient: Optional[GradientLike], rotation_trick: Optional[bool], dim: int) -> GradientLike:
    if gradient is not None and rotation_trick is not None:
        raise ValueError("gradient and rotation_trick say the same; leave one out")
    if gradient is not None:
        return gradient
    rotated = dim > 1 if rotation_trick is None else rotation_trick
    return "rotation" if rotated else "straight_through"
