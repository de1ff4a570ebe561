"""The drop-in quantizer: taming's ``VectorQuantizer2`` outside, codes from a language model's words inside.

Source: Zhang et al., *Codebook Transfer with Part-of-Speech for Vector-Quantized Image Modeling*, CVPR 2024. The
interface is that of ``taming.modules.vqvae.quantize.VectorQuantizer2``.
"""

import inspect
import numbers
from typing import TYPE_CHECKING, Any, ClassVar, FrozenSet, List, Mapping, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from vqct_plugin._torch import (
    at_least_float32,
    compiling,
    eager_before_2_4,
    in_func_transform,
    is_fake,
    tracing,
    without_autocast,
)
from vqct_plugin.additive import add_codes, find_nearest_sum, list_targets
from vqct_plugin.averages import AveragesTransfer
from vqct_plugin.codebook import PriorLike, TransferredCodebook
from vqct_plugin.fused import Quantize, split_slices
from vqct_plugin.lookup import find_nearest, find_nearest_as_taming
from vqct_plugin.remap import Remap
from vqct_plugin.slices import Slice, check_flag, check_weight
from vqct_plugin.table import average_codes
from vqct_plugin.terms import GradientLike, LossTermsLike, gradient_of, loss_terms_of, name_of, record, straight_through
from vqct_plugin.transfer import TransferLike

__all__ = ["CodebookTransferQuantizer"]

Quantized = Tuple[Tensor, Tensor, Tuple[None, None, Tensor]]


class _SignatureOfInit:
    """``inspect.signature`` of a class is that of its ``__init__``, which its ``__new__`` would hide."""

    def __get__(self, instance: Any, owner: Any) -> inspect.Signature:
        if instance is not None:
            raise AttributeError("__signature__")  # that of an instance is its __call__'s
        signature = inspect.signature(owner.__init__)
        return signature.replace(parameters=list(signature.parameters.values())[1:])


class CodebookTransferQuantizer(TransferredCodebook):
    """Vector quantization with a codebook transferred from words, in place of taming's ``VectorQuantizer2``.

    Each code stands for a word, an adjective or a noun, and each position's vector becomes the sum of the adjective's
    and the noun's code that together come nearest to it. Codes are moving averages of the vectors that chose them,
    unused ones jump to vectors of the batch, and words that are alike in a language model get codes that are near to
    each other: what the benchmark found best (docs/does_it_work.md).

    The paper's own is ``transfer="graph", combine="concat"``: the channels are split into one equal slice for each part
    of speech, each slice takes the nearest codes of that part (the mean of the ``topk`` nearest adjectives, the nearest
    noun), and the codes are the words' vectors, passed through a graph network of which only the weights are learned.

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
            beta on the first term instead. Averages have no second term, and ``beta * mean((sg(q) - z)^2)`` with both.
        prior: a prior file, a :class:`CodebookPrior`, or ``"default"``, the one in the package.
        parts_of_speech: the parts that give a position one code each, or ``"joint"``: one codebook over all words and
            one token per position (the paper's ablation without part of speech; for stage 2 code that assumes one
            token).
        topk: how many of the nearest codes are averaged in the first part (adjectives; the paper's reconstruction
            models use 2), the other parts take their nearest; or a mapping from parts to numbers.
        transfer: where codes come from. ``"averages"``: moving averages of what chose them, arranged by the words, see
            :class:`vqct_plugin.averages.AveragesTransfer`. ``"graph"``: the paper's graph network over words' vectors;
            for its ablations ``"mlp"``, ``"linear"``, ``"table"``; or a module of your own, see
            :class:`vqct_plugin.transfer.ModuleTransfer`.
        dropout: the probability of the dropout inside the graph network while training; for ``"graph"`` alone.
        edge_weight: for ``"graph"``: its edges weigh ``"count"``, ``"binary"`` or ``"log"``.
        l2_normalize: codes and the slices of z are scaled to length 1 first, so that the nearest is the one of the
            highest cosine, as several hosts with few channels have it. The mean of several codes is not scaled again.
        channels_last: z is (B, H, W, e_dim), or a sequence (B, L, e_dim), and z_q likewise.
        combine: how the codes of several parts make a position's vector. ``"sum"``: each code has all channels, and the
            vector is their sum, an adjective's and a noun's; both are searched for together. ``"concat"``: each part
            has a slice of the channels (the paper's). By default ``"sum"`` with ``"averages"``, unless ``topk`` takes
            several codes of a part or ``l2_normalize`` scales them, which a sum does not know; otherwise ``"concat"``.
        gradient: how z_q's gradient reaches z: ``"straight_through"`` or ``"rotation"``, see :mod:`vqct_plugin.terms`;
            or a function of your own, in a YAML ``package.module.function``.
        loss_terms: further terms of the loss with their weights, beside the two of ``beta``: a mapping from
            ``package.module.function``, or a name in :data:`vqct_plugin.terms.LOSS_TERMS`, to a number.

    Attributes:
        n_e, e_dim: the true number of codes, and of channels.
        words: n_e words; parts: the names of the parts; part_of_speech: (n_e,) index into ``parts``.
        tokens_per_position: T, the sum of topk over the parts.

    Shapes: z (B, e_dim, H, W) floating point, or with one or three spatial dimensions, (B, e_dim, L) and
    (B, e_dim, F, H, W); z_q as z, contiguous; loss a 0-d tensor; indices int64 in [0, n_e), adjectives first:
    (B*T*H*W,), per image all positions of the first token, then of the next.

    >>> quantizer = CodebookTransferQuantizer(512, 64)
    >>> z_q, loss, (_, _, indices) = quantizer(torch.randn(2, 64, 4, 4))
    >>> z_q.shape, loss.shape, indices.shape
    (torch.Size([2, 64, 4, 4]), torch.Size([]), torch.Size([64]))
    >>> quantizer.eval().get_codebook_entry(indices, (2, 4, 4, 64)).shape
    torch.Size([2, 64, 4, 4])
    """

    #: arguments of a host's model: given any of them, the class gives that model, with this quantizer in it
    OF_A_MODEL: ClassVar[FrozenSet[str]] = frozenset(
        ("ddconfig", "lossconfig", "n_embed", "embed_dim", "transformer_config", "first_stage_config")
    )

    if not TYPE_CHECKING:  # type checkers need __init__ alone
        __signature__ = _SignatureOfInit()

        def __new__(cls, *args, **arguments):
            """The quantizer; or a host's model, for ``model.target: vqct_plugin.Quantizer`` with the model's params.

            A launcher calls what ``target`` names with ``params``, and this is the only place that sees both. The core
            knows no host: the package's door does.
            """
            if cls is CodebookTransferQuantizer and not cls.OF_A_MODEL.isdisjoint(arguments):
                import vqct_plugin

                return vqct_plugin._build_model(arguments)
            return super().__new__(cls)

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
        transfer: TransferLike = "averages",
        dropout: float = 0.5,
        edge_weight: str = "count",
        l2_normalize: bool = False,
        channels_last: bool = False,
        combine: Optional[str] = None,
        gradient: GradientLike = "straight_through",
        loss_terms: LossTermsLike = None,
    ) -> None:
        check_weight("beta", beta)
        check_flag("legacy", legacy)
        its_gradient, its_terms = gradient_of(gradient), loss_terms_of(loss_terms)
        super().__init__(
            n_e,
            e_dim,
            prior=prior,
            parts_of_speech=parts_of_speech,
            topk=topk,
            transfer=transfer,
            dropout=dropout,
            edge_weight=edge_weight,
            sane_index_shape=sane_index_shape,
            l2_normalize=l2_normalize,
            channels_last=channels_last,
            combine=combine,
            others={
                "beta": beta,
                "legacy": legacy,
                "unknown_index": int(unknown_index) if isinstance(unknown_index, numbers.Integral) else unknown_index,
                "gradient": record(its_gradient),
                "loss_terms": {term.name: term.weight for term in its_terms},
            },
        )
        self.beta = beta
        self.legacy = legacy
        self._gradient = its_gradient
        self._terms = its_terms
        self._plain = its_gradient is straight_through and not its_terms and not l2_normalize
        # A learned table with one part is VectorQuantizer2, and then it is to the last bit.
        self._as_taming = transfer == "table" and self.tokens_per_position == 1 and self._plain
        self.remap = remap
        self.unknown_index = unknown_index
        self.re_embed = self.n_e
        self._remap: Optional[Remap] = None
        if remap is not None:
            if self.tokens_per_position != 1:
                raise ValueError(
                    f"remap renames the one token of a position, and here a position has {self.tokens_per_position}; "
                    "use parts_of_speech='joint' with topk=1, or leave remap out"
                )
            self._remap = Remap(remap, self.n_e, unknown_index)
            self.unknown_index, self.re_embed = self._remap.unknown_index, self._remap.re_embed

    @eager_before_2_4
    def forward(
        self, z: Tensor, temp: Optional[float] = None, rescale_logits: bool = False, return_logits: bool = False
    ) -> Quantized:
        """Quantize z (B, e_dim, H, W): ``(z_q, loss, (None, None, indices))``, shapes as in the class's docstring.

        ``temp``, ``rescale_logits`` and ``return_logits`` are there for callers that also serve taming's Gumbel
        quantizer, and have to be at their defaults.
        """
        if temp not in (None, 1.0) or rescale_logits or return_logits:
            raise ValueError("temp, rescale_logits and return_logits are for a Gumbel quantizer; leave them out here")
        z_q, commitment, codebook, more, chosen = self._quantize_map(z)
        legacy = self.legacy and not isinstance(self.transfer, AveragesTransfer)
        loss = commitment + self.beta * codebook if legacy else self.beta * commitment + codebook
        return z_q, loss if more is None else loss + more, (None, None, self._arrange_indices(chosen, z))

    @eager_before_2_4  # an adapter's forward calls it
    def _quantize_map(self, z: Tensor) -> Tuple[Tensor, Tensor, Tensor, Optional[Tensor], Tensor]:
        """z_q, the sums over the parts of ``mean((sg(q) - z)^2)``, of ``mean((q - sg(z))^2)`` and of ``loss_terms``, if
        there are any, and indices (N, T). The second is 0 with averages, which take its place."""
        fingerprint = self._check_input(z)
        codes = self._codes_in_use(fingerprint=fingerprint)
        more: Optional[Tensor] = None
        with without_autocast(z.device):
            if self._adds:
                z_q, commitment, codebook, more, chosen = self._quantize_to_sums(z, codes)
            elif self._one_by_one(z):
                z_q, commitment, codebook, more, chosen = self._quantize_one_by_one(z, codes)
            else:
                z_q, commitment, codebook, chosen = Quantize.apply(z, codes, self.slices, self.channels_last)
            if isinstance(self.transfer, AveragesTransfer):
                codebook = torch.zeros_like(codebook)
                if self.training:
                    rows = at_least_float32(split_slices(z.detach(), self._channel_slices, self.channels_last))
                    rows = rows.reshape(self._channel_slices, -1, rows.shape[-1])
                    if self._adds:
                        rows = torch.stack(list_targets(rows[0], codes, chosen))
                    self.transfer.learn(F.normalize(rows, dim=-1) if self.l2_normalize else rows, chosen)
            return z_q, commitment, codebook, more, chosen

    def _quantize_to_sums(self, z: Tensor, codes: Tensor) -> Tuple[Tensor, Tensor, Tensor, Optional[Tensor], Tensor]:
        """As :meth:`_quantize_one_by_one`, where each part's code has all channels and the codes are added."""
        more: Optional[Tensor] = None
        rows = at_least_float32((z if self.channels_last else z.movedim(1, -1)).contiguous())
        flat = rows.reshape(-1, rows.shape[-1])
        chosen = find_nearest_sum(flat, codes, self.slices)
        q = add_codes(codes, chosen).view(rows.shape)
        commitment, codebook = self._errors_of(q, rows)
        if self._terms:
            for s, target, own in zip(self.slices, list_targets(flat, codes.detach(), chosen), chosen.split(1, dim=1)):
                for term in self._terms:
                    share = term.of(target, codes[s.first : s.last], own - s.first)
                    more = share if more is None else more + share
        z_q = self._passing_gradient(rows, q)
        z_q = (z_q if self.channels_last else z_q.movedim(-1, 1)).to(z.dtype).contiguous()
        return z_q, commitment, codebook, more, chosen

    def _one_by_one(self, z: Tensor) -> bool:
        """Whether the operations come one by one, each with its own gradient: where they differ from
        :class:`vqct_plugin.fused.Quantize`, and where they are fused or written down anyway."""
        return self._as_taming or not self._plain or compiling() or tracing() or in_func_transform() or is_fake(z)

    def _quantize_one_by_one(self, z: Tensor, codes: Tensor) -> Tuple[Tensor, Tensor, Tensor, Optional[Tensor], Tensor]:
        more: Optional[Tensor] = None
        commitment = codebook = torch.zeros((), dtype=codes.dtype, device=z.device)
        quantized: List[Tensor] = []
        chosen: List[Tensor] = []
        rows = at_least_float32((z if self.channels_last else z.movedim(1, -1)).contiguous())
        # One slice goes without chunk and cat: so the gradient has the strides it has in VectorQuantizer2, and the
        # convolution before it adds up its bias in the same order, to the last bit.
        slices = [rows] if len(self.slices) == 1 else rows.chunk(len(self.slices), dim=-1)
        for s, vectors in zip(self.slices, slices):
            if self.l2_normalize:
                vectors = F.normalize(vectors, dim=-1)
            flat = vectors.reshape(-1, vectors.shape[-1])
            indices = self._nearest(flat, codes, s)
            q = average_codes(codes, indices).view(vectors.shape)
            moved_vectors, moved_codes = self._errors_of(q, vectors)
            commitment = commitment + moved_vectors
            codebook = codebook + moved_codes
            for term in self._terms:
                share = term.of(flat, codes[s.first : s.last], indices - s.first)
                more = share if more is None else more + share
            quantized.append(self._passing_gradient(vectors, q))
            chosen.append(indices)
        z_q = quantized[0] if len(quantized) == 1 else torch.cat(quantized, dim=-1)
        z_q = (z_q if self.channels_last else z_q.movedim(-1, 1)).to(z.dtype).contiguous()
        return z_q, commitment, codebook, more, torch.cat(chosen, dim=1)

    def _nearest(self, vectors: Tensor, codes: Tensor, s: Slice) -> Tensor:
        """(N, topk) indices into the whole codebook."""
        own = codes.detach()[s.first : s.last]
        if self._as_taming:
            return find_nearest_as_taming(vectors, own.to(vectors.dtype)).unsqueeze(1)
        return find_nearest(vectors, own, s.topk) + s.first

    def _errors_of(self, q: Tensor, vectors: Tensor) -> Tuple[Tensor, Tensor]:
        """The mean squared distance of vectors and codes, once with the vectors' gradient and once with the codes'."""
        if self._as_taming:  # its terms, and their gradients, to the last bit
            return torch.mean((q.detach() - vectors) ** 2), torch.mean((q - vectors.detach()) ** 2)
        q = q.to(vectors.dtype)
        commitment = F.mse_loss(vectors, q.detach())
        if not torch.is_grad_enabled():
            return commitment, commitment  # one number
        return commitment, F.mse_loss(q, vectors.detach())

    def _passing_gradient(self, vectors: Tensor, q: Tensor) -> Tensor:
        if self._as_taming:
            return vectors + (q - vectors).detach()
        z_q = self._gradient(vectors, q.detach())
        if not isinstance(z_q, Tensor) or z_q.shape != q.shape:
            got = tuple(z_q.shape) if isinstance(z_q, Tensor) else type(z_q).__name__
            raise ValueError(f"gradient {name_of(self._gradient)} returned {got}; expected z_q, {tuple(q.shape)}")
        return z_q

    def _arrange_indices(self, chosen: Tensor, z: Tensor) -> Tensor:
        """Indices (N, T) as the caller gets them."""
        t, b = self.tokens_per_position, z.shape[0]
        positions = z.shape[1:-1] if self.channels_last else z.shape[2:]
        if self._remap is not None:
            chosen = self._remap.places(chosen.reshape(b, -1)).reshape(-1, 1)
            return chosen.reshape(b, *positions) if self.sane_index_shape else chosen
        if not self.sane_index_shape:
            return chosen.reshape(b, -1, t).transpose(1, 2).reshape(-1).contiguous()
        tokens = chosen.reshape(b, -1, t).transpose(1, 2)
        return tokens.reshape((b, *positions) if t == 1 else (b, t, *positions)).contiguous()

    def _as_indices(self, indices: Tensor) -> Tensor:
        indices = super()._as_indices(indices)
        return indices if self._remap is None else self._remap.indices(indices)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._remap is not None:  # where taming's has it
            destination[f"{prefix}used"] = self._remap.used.clone()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        used = state_dict.pop(f"{prefix}used", None) if self._remap is not None else None
        if self._remap is not None and (used is None or used.shape != self._remap.used.shape):
            there = "no remap" if used is None else f"a remap of {len(used)} indices in use"
            raise ValueError(
                f"the checkpoint has {there}, this quantizer one of {len(self._remap.used)}; build it with the "
                "checkpoint's remap file"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)
        if self._remap is not None and used is not None:
            self._remap.used = used.detach().long().to(self._remap.used.device)

    def extra_repr(self) -> str:
        slices = ", ".join(f"{s.name}: {s.last - s.first} codes, topk {s.topk}" for s in self.slices)
        return f"n_e={self.n_e}, e_dim={self.e_dim}, beta={self.beta}, legacy={self.legacy}, {slices}"
