"""Stage 2 on a VQCT first stage: a transformer over positions, each of several tokens, with a head for each of them.

taming's own ``Net2NetTransformer`` works on a VQCT first stage too, as one sequence over the joint vocabulary
(``vocab_size`` = n_e), all adjectives of an image and then all its nouns: twice as long. Here a position is one element
of the sequence, its tokens go in as the sum of their embeddings, and come out by one head each: first p(adjective |
what is before), then p(noun | what is before, adjective). The authors drew the two independently
(``given_previous: false``).

Source: Zhang et al., CVPR 2024 (VQCT), supplementary and published code, for two heads; Esser et al., CVPR 2021, for
everything around them.
"""

from typing import Any, Callable, List, Mapping, Optional, Sequence, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vqct_plugin.compat.containers import to_plain
from vqct_plugin.compat.lightning import for_installed_lightning
from vqct_plugin.compat.taming_imports import import_taming
from vqct_plugin.compat.taming_stage_2 import count_condition_tokens, count_tokens
from vqct_plugin.stage_2.layout import PositionLayout
from vqct_plugin.stage_2.sampling import sample_tokens
from vqct_plugin.stage_2.tokens import Token, interleave, list_tokens, separate

__all__ = ["Net2NetTransformer", "PartsGPT"]

_mingpt: Any = import_taming("taming.modules.transformer.mingpt")
_cond_transformer: Any = import_taming("taming.models.cond_transformer")
_Host: Any = for_installed_lightning(_cond_transformer.Net2NetTransformer)


class PartsGPT(nn.Module):
    """minGPT, as taming has it, over positions of several tokens.

    Args:
        tokens: the tokens of a position.
        cond_vocab_size: how many tokens the conditioning may take; it has a table of its own.
        block_size: the longest sequence: conditioning tokens and positions together, less one.
        n_layer, n_head, n_embd, embd_pdrop, resid_pdrop, attn_pdrop, n_unmasked: as in taming's GPT.
        given_previous: each token of a position is predicted given those before it in the same position; False: each
            independently, as the authors did.

    Shapes: see :meth:`forward`.
    """

    def __init__(
        self,
        tokens: Sequence[Token],
        cond_vocab_size: int,
        block_size: int,
        n_layer: int = 12,
        n_head: int = 8,
        n_embd: int = 256,
        embd_pdrop: float = 0.0,
        resid_pdrop: float = 0.0,
        attn_pdrop: float = 0.0,
        n_unmasked: int = 0,
        given_previous: bool = True,
    ) -> None:
        super().__init__()
        if n_embd % n_head:
            raise ValueError(f"n_embd is {n_embd}; expected a multiple of n_head, {n_head}")
        self.tokens = list(tokens)
        self.given_previous = given_previous
        self.block_size = block_size
        self.config = _mingpt.GPTConfig(
            vocab_size=max(token.last for token in tokens),
            block_size=block_size,
            embd_pdrop=embd_pdrop,
            resid_pdrop=resid_pdrop,
            attn_pdrop=attn_pdrop,
            n_layer=n_layer,
            n_head=n_head,
            n_embd=n_embd,
            n_unmasked=n_unmasked,
        )
        sizes = [token.last - token.first for token in tokens]
        self.cond_emb = nn.Embedding(cond_vocab_size, n_embd)
        self.tok_emb = nn.ModuleList([nn.Embedding(size, n_embd) for size in sizes])
        self.pos_emb = nn.Parameter(torch.zeros(1, block_size, n_embd))
        self.drop = nn.Dropout(embd_pdrop)
        self.blocks = nn.Sequential(*[_mingpt.Block(self.config) for _ in range(n_layer)])
        self.ln_f = nn.LayerNorm(n_embd)
        # what a later token of the position sees of the earlier ones
        self.previous = nn.ModuleList(
            [
                nn.Sequential(
                    nn.LayerNorm(n_embd), nn.Linear(n_embd, 4 * n_embd), nn.GELU(), nn.Linear(4 * n_embd, n_embd)
                )
                for _ in sizes[1:]
            ]
            if given_previous
            else []
        )
        self.heads = nn.ModuleList([nn.Linear(n_embd, size, bias=False) for size in sizes])
        self.apply(self._init_weights)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def get_block_size(self) -> int:
        return self.block_size

    def embed(self, z: Tensor) -> Tensor:
        """(B, L, n_embd) of tokens z (B, T, L) that are codes of the whole codebook."""
        tables = zip(self.tokens, self.tok_emb, z.unbind(dim=1))
        return torch.stack([table(indices - token.first) for token, table, indices in tables]).sum(dim=0)

    def forward(self, c: Tensor, z: Tensor, targets: Tensor) -> List[Tensor]:
        """The logits of every token of every position.

        Args:
            c: (B, C) conditioning tokens, C >= 1.
            z: (B, T, L - 1) the tokens before the last position, as the model sees them.
            targets: (B, T, L) the tokens as they are, for the later tokens of a position.

        Returns:
            for each token (B, L, its codes).
        """
        x = torch.cat([self.cond_emb(c), self.embed(z)], dim=1)
        if x.shape[1] > self.block_size:
            raise ValueError(
                f"a sequence has {c.shape[1]} conditioning tokens and {z.shape[2] + 1} positions; block_size "
                f"{self.block_size} should be {x.shape[1]} or more"
            )
        x = self.blocks(self.drop(x + self.pos_emb[:, : x.shape[1]]))
        h = self.ln_f(x[:, c.shape[1] - 1 :])
        return [self.logits(h, targets[:, :t], t) for t in range(len(self.tokens))]

    def logits(self, h: Tensor, previous: Tensor, t: int) -> Tensor:
        """The logits of a position's t-th token from the transformer's output h (B, L, n_embd), given the tokens
        before it, previous (B, t, L)."""
        if t and self.given_previous:
            seen = h
            for token, table, indices in zip(self.tokens, self.tok_emb, previous.unbind(dim=1)):
                seen = seen + table(indices - token.first)
            h = h + self.previous[t - 1](seen)
        logits: Tensor = self.heads[t](h)
        return logits


class Net2NetTransformer(_Host):
    """taming's Net2NetTransformer, with a transformer over positions and a head for each token of a position.

    Args:
        transformer_config: ``params`` are those of taming's GPT (``block_size``, ``n_layer``, ``n_head``, ``n_embd``,
            ...), ``given_previous`` and ``cond_vocab_size`` (see :class:`PartsGPT`). ``vocab_size`` is left out: it is
            the first stage's. ``target`` may be left out. ``block_size`` has to be at least the conditioning tokens and
            the positions together, less one.
        first_stage_config, cond_stage_config, permuter_config, ckpt_path, ignore_keys, first_stage_key,
            cond_stage_key, downsample_cond_size, pkeep, sos_token, unconditional: as in the host. A permuter permutes
            positions.

    The losses are means over tokens, in nats, so that they compare with those of taming's own transformer;
    ``train/loss_noun`` and so on are those of each token.

    Sequences are (B, L*T), all tokens of a position one after the other.
    """

    def __init__(
        self,
        transformer_config: Mapping[str, Any],
        first_stage_config: Any,
        cond_stage_config: Any,
        permuter_config: Any = None,
        ckpt_path: Any = None,
        ignore_keys: Sequence[str] = (),
        first_stage_key: str = "image",
        cond_stage_key: str = "depth",
        downsample_cond_size: int = -1,
        pkeep: float = 1.0,
        sos_token: int = 0,
        unconditional: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(
            transformer_config={"target": "torch.nn.Identity"},
            first_stage_config=first_stage_config,
            cond_stage_config=cond_stage_config,
            permuter_config=permuter_config,
            ckpt_path=None,
            first_stage_key=first_stage_key,
            cond_stage_key=cond_stage_key,
            downsample_cond_size=downsample_cond_size,
            pkeep=pkeep,
            sos_token=sos_token,
            unconditional=unconditional,
            **options,
        )
        params = dict(to_plain(transformer_config).get("params") or {})
        tokens = list_tokens(self.first_stage_model.quantize)
        vocab_size = params.pop("vocab_size", None)
        n_e = max(token.last for token in tokens)
        if vocab_size not in (None, n_e):
            raise ValueError(f"vocab_size is {vocab_size}, and the first stage has {n_e} codes; leave vocab_size out")
        if "cond_vocab_size" not in params:
            params["cond_vocab_size"] = _count_conditions(self, vocab_size)
        self.transformer = PartsGPT(tokens, **params)
        _check_block_size(self)
        if ckpt_path is not None:
            self.init_from_ckpt(ckpt_path, ignore_keys=ignore_keys)

    @property
    def tokens(self) -> List[Token]:
        """The tokens of a position."""
        return list(self.transformer.tokens)

    @property
    def layout(self) -> PositionLayout:
        """How an image's tokens stand in the sequence, see :mod:`vqct_plugin.stage_2.layout`."""
        return PositionLayout(self.transformer)

    @torch.no_grad()
    def encode_to_z(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        quant_z, _, info = self.first_stage_model.encode(x)
        planar = info[2].reshape(quant_z.shape[0], len(self.tokens), -1)
        return quant_z, interleave(torch.stack([self._permute(plane) for plane in planar.unbind(dim=1)], dim=1))

    @torch.no_grad()
    def encode_to_c(self, c: Tensor) -> Tuple[Any, Tensor]:
        if self.downsample_cond_size > -1:
            c = F.interpolate(c, size=(self.downsample_cond_size, self.downsample_cond_size))
        quant_c, _, (_, _, indices) = self.cond_stage_model.encode(c)
        return quant_c, indices.reshape(c.shape[0], -1)

    def forward(self, x: Tensor, c: Tensor) -> Tuple[List[Tensor], Tensor]:
        """The logits of each token (B, L, its codes), and the tokens (B, T, L)."""
        _, z = self.encode_to_z(x)
        _, c = self.encode_to_c(c)
        target = separate(z, len(self.tokens))
        seen = target
        if self.training and self.pkeep < 1.0:
            keep = torch.rand(target.shape, device=target.device) < self.pkeep
            noise = [
                torch.randint(token.first, token.last, plane.shape, device=plane.device)
                for token, plane in zip(self.tokens, target.unbind(dim=1))
            ]
            seen = torch.where(keep, target, torch.stack(noise, dim=1))
        return self.transformer(c, seen[:, :, :-1], seen), target

    def shared_step(self, batch: Any, batch_idx: int) -> Tensor:
        losses = self._compute_losses(batch)
        return torch.stack(losses).mean()

    def _compute_losses(self, batch: Any) -> List[Tensor]:
        logits, target = self(*self.get_xc(batch))
        planes = zip(self.tokens, logits, target.unbind(dim=1))
        return [F.cross_entropy(its.transpose(1, 2), plane - token.first) for token, its, plane in planes]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._log_step("train", batch)

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._log_step("val", batch)

    def _log_step(self, split: str, batch: Any) -> Tensor:
        losses = self._compute_losses(batch)
        loss = torch.stack(losses).mean()
        self.log(f"{split}/loss", loss, prog_bar=True, logger=True, on_step=True, on_epoch=True)
        for name in dict.fromkeys(token.name for token in self.tokens):
            own = torch.stack([its for token, its in zip(self.tokens, losses) if token.name == name]).mean()
            self.log(f"{split}/loss_{name}", own, logger=True, on_step=False, on_epoch=True)
        return loss

    @torch.no_grad()
    def sample(
        self,
        x: Tensor,
        c: Tensor,
        steps: int,
        temperature: float = 1.0,
        sample: bool = False,
        top_k: Optional[int] = None,
        callback: Callable[[int], Any] = lambda k: None,
        top_p: Optional[float] = None,
    ) -> Tensor:
        """Continue the tokens x (B, k) by ``steps`` tokens, as the host's method does: (B, k + steps). A position of
        which x has only some tokens is drawn again."""
        t = len(self.tokens)
        start = x.shape[1] // t
        drawn = sample_tokens(
            self, c, (x.shape[1] + steps) // t, temperature, top_k, top_p, callback=callback, draw=sample,
            start=separate(x[:, : start * t], t),
        )  # fmt: skip
        return interleave(drawn)

    @torch.no_grad()
    def decode_to_img(self, index: Tensor, zshape: Sequence[int]) -> Tensor:
        planar = separate(index, len(self.tokens))
        planar = torch.stack([self._permute(plane, reverse=True) for plane in planar.unbind(dim=1)], dim=1)
        b, c, h, w = zshape
        entry = self.first_stage_model.quantize.get_codebook_entry(planar.reshape(-1), shape=(b, h, w, c))
        image: Tensor = self.first_stage_model.decode(entry)
        return image

    @torch.no_grad()
    def log_images(self, batch: Any, temperature: float = 1.0, top_k: int = 100, **unused: Any) -> Mapping[str, Tensor]:
        """Pictures (B, 3, H, W) of at most four items: inputs, their reconstructions, samples from the upper half
        (``samples_half``), from nothing (``samples_nopix``) and likeliest codes (``samples_det``), and the conditioning
        where it is a picture."""
        x, c = (item.to(self.device) for item in self.get_xc(batch, 4))
        quant_z, z = self.encode_to_z(x)
        quant_c, c_indices = self.encode_to_c(c)
        length, t = z.shape[1], len(self.tokens)
        half = z[:, : length // t // 2 * t]

        def picture(start: Tensor, **how: Any) -> Tensor:
            return self.decode_to_img(self.sample(start, c_indices, length - start.shape[1], **how), quant_z.shape)

        log = {"inputs": x, "reconstructions": self.decode_to_img(z, quant_z.shape)}
        if self.cond_stage_key != self.first_stage_key and c.dim() == 4 and hasattr(self.cond_stage_model, "decode"):
            log["conditioning"], log["conditioning_rec"] = c, self.cond_stage_model.decode(quant_c)
            if self.cond_stage_key == "segmentation":
                for name in ("conditioning", "conditioning_rec"):
                    labels = F.one_hot(log[name].argmax(dim=1), num_classes=log[name].shape[1])
                    log[name] = self.cond_stage_model.to_rgb(labels.permute(0, 3, 1, 2).float())
        log["samples_half"] = picture(half, temperature=temperature, top_k=top_k, sample=True)
        log["samples_nopix"] = picture(z[:, :0], temperature=temperature, top_k=top_k, sample=True)
        log["samples_det"] = picture(z[:, :0])
        return log

    def _permute(self, plane: Tensor, reverse: bool = False) -> Tensor:
        permuted: Tensor = self.permuter(plane, reverse=reverse)
        if permuted.shape != plane.shape:
            raise ValueError(
                f"the permuter {type(self.permuter).__name__} makes {permuted.shape[1]} positions of "
                f"{plane.shape[1]}; its H and W have to be those of the first stage's map"
            )
        return permuted


def _count_conditions(model: Any, vocab_size: Optional[int]) -> int:
    """How many values a conditioning token may take; ``vocab_size`` where the stage does not say, as taming's own
    transformer has one table for both."""
    if model.be_unconditional:
        return int(model.sos_token) + 1
    stage = model.cond_stage_model
    if hasattr(stage, "quantize"):
        return max(token.last for token in list_tokens(stage.quantize))
    if hasattr(stage, "n_classes"):  # Labelator
        return int(stage.n_classes)
    if hasattr(stage, "n_embed"):  # CoordStage rounds to 0 ... n_embed
        return int(stage.n_embed) + 1
    if vocab_size is not None:
        return int(vocab_size)
    raise ValueError(
        f"the number of tokens of {type(stage).__name__} is unknown; set transformer_config.params.cond_vocab_size (in "
        "taming's configs of scenes, no_tokens of the data)"
    )


def _check_block_size(model: Any) -> None:
    tokens, conditions = count_tokens(model.first_stage_model), count_condition_tokens(model)
    if tokens is None:
        return
    positions = tokens // len(model.transformer.tokens)
    needed = positions + max(conditions or 0, 1) - 1
    if model.transformer.block_size < needed:
        counted = "at least 1 conditioning token" if conditions is None else f"{conditions} conditioning token(s)"
        raise ValueError(
            f"block_size is {model.transformer.block_size}; expected {needed} or more: {counted} and {positions} "
            "positions of an image, less one"
        )
