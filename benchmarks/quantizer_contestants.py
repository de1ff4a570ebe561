"""What benchmarks/quantizer.py measures: ours and its peers, and the steps they make."""

import contextlib
import sys
from typing import Any, Callable, Dict, List, Sequence, Tuple

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from vqct_plugin import CodebookPrior, CodebookTransferQuantizer
from vqct_plugin.lookup import find_nearest

ADJECTIVES, NOUNS = 1949, 4258  # the paper's

Step = Callable[[], None]


def made_up_prior(codes: int, occurrences: int, dim: int, seed: int = 0) -> CodebookPrior:
    """Words whose frequencies fall as 1 / rank, and bigrams drawn from them; CLIP's 512 dimensions in the paper."""
    rng = np.random.default_rng(seed)
    adjectives = round(codes * ADJECTIVES / (ADJECTIVES + NOUNS))
    sizes = (adjectives, codes - adjectives)
    frequencies = [1 / np.arange(1, n + 1) for n in sizes]
    ends = np.stack([rng.choice(n, occurrences, p=f / f.sum()) for n, f in zip(sizes, frequencies)])
    ends[1] += adjectives
    return CodebookPrior(
        words=[f"a{i}" for i in range(sizes[0])] + [f"n{i}" for i in range(sizes[1])],
        part_of_speech=np.repeat([0, 1], sizes),
        count=np.concatenate([np.round(1e6 * f) for f in frequencies]).astype(np.int64),
        vectors=rng.standard_normal((codes, dim), dtype=np.float32).astype(np.float16),
        edges=ends,
        edge_count=np.ones(occurrences, dtype=np.int64),
    )


class AuthorsFormula(nn.Module):
    """The published formula as it is published: repeated edges, both layers over the graph, an N x n matrix."""

    def __init__(self, prior: CodebookPrior, e_dim: int, dropout: float = 0.5, beta: float = 0.25) -> None:
        from torch_geometric.nn import GCNConv

        super().__init__()
        self.beta, self.dropout = beta, dropout
        self.sizes = sizes_of(prior)
        half = e_dim // 2
        self.layer1, self.layer2 = GCNConv(prior.vectors.shape[1], half), GCNConv(half, half)
        repeated = np.repeat(prior.edges, prior.edge_count, axis=1)
        self.register_buffer("edges", torch.from_numpy(np.concatenate([repeated, repeated[::-1]], axis=1)).long())
        self.register_buffer("vectors", torch.from_numpy(prior.vectors.astype(np.float32)))

    def forward(self, z: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        hidden = F.dropout(F.relu(self.layer1(self.vectors, self.edges)), self.dropout, self.training)
        codes = self.layer2(hidden, self.edges).split(self.sizes)
        quantized, loss, indices = [], 0, []
        for part, table in zip(z.chunk(2, dim=1), codes):
            part = part.permute(0, 2, 3, 1).contiguous()
            flat = part.view(-1, part.shape[-1])
            distances = (flat**2).sum(1, keepdim=True) + (table**2).sum(1) - 2 * flat @ table.t()
            chosen = distances.argmin(1)
            q = table[chosen].view(part.shape)
            loss = loss + ((q.detach() - part) ** 2).mean() + self.beta * ((q - part.detach()) ** 2).mean()
            quantized.append((part + (q - part).detach()).permute(0, 3, 1, 2).contiguous())
            indices.append(chosen)
        return torch.cat(quantized, dim=1), loss, torch.cat(indices)


class SideBySide(nn.Module):
    """A quantizer for each half of the channels. ``loss_at``: where in its result a quantizer has its loss."""

    def __init__(self, quantizers: Sequence[nn.Module], loss_at: int) -> None:
        super().__init__()
        self.quantizers, self.loss_at = nn.ModuleList(quantizers), loss_at

    def forward(self, z: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor, None]:
        results = [quantizer(part) for quantizer, part in zip(self.quantizers, z.chunk(2, dim=1))]
        loss = sum(r[self.loss_at] for r in results)
        return torch.cat([r[0] for r in results], dim=1), loss.sum(), None  # type: ignore[union-attr]


def sizes_of(prior: CodebookPrior) -> List[int]:
    return np.bincount(prior.part_of_speech, minlength=2).tolist()  # type: ignore[no-any-return]


def contestants(prior: CodebookPrior, e_dim: int, authors: bool = False) -> Dict[str, nn.Module]:
    """Ours and what quantizes beside it, as far as it is installed."""
    made: Dict[str, nn.Module] = {"ours": CodebookTransferQuantizer(len(prior), e_dim, prior=prior, transfer="graph")}
    sizes, half = sizes_of(prior), e_dim // 2
    try:
        from taming.modules.vqvae.quantize import VectorQuantizer2
    except ImportError:
        _say_once("taming-transformers is not installed: VectorQuantizer2 is left out")
    else:
        made["two VectorQuantizer2"] = SideBySide([VectorQuantizer2(n, half, 0.25) for n in sizes], 1)
    try:
        from vector_quantize_pytorch import SimVQ, VectorQuantize
    except ImportError:
        _say_once("vector-quantize-pytorch is not installed: VectorQuantize and SimVQ are left out")
    else:
        images = [VectorQuantize(half, n, accept_image_fmap=True, rotation_trick=False) for n in sizes]
        made["two VectorQuantize"] = SideBySide(images, 2)
        simple = [SimVQ(half, n, channel_first=True, rotation_trick=False) for n in sizes]
        made["two SimVQ"] = SideBySide(simple, 2)
    if authors:
        try:
            made["authors' formula"] = AuthorsFormula(prior, e_dim)
        except ImportError:
            _say_once("torch_geometric is not installed: the authors' formula is left out")
    return made


_said = set()


def _say_once(sentence: str) -> None:
    if sentence not in _said:
        _said.add(sentence)
        print(sentence, file=sys.stderr, flush=True)


def gigabytes_needed(name: str, prior: CodebookPrior, vectors: int, dim: int) -> float:
    """What a contestant allocates at its peak, roughly: the others make an N x n matrix, and make it several times."""
    matrix = vectors * max(sizes_of(prior)) * 4
    if name.startswith("ours"):
        return 0.0
    if name == "authors' formula":  # a message for every occurrence, both ways, kept for the gradient
        return (4 * matrix + 6 * int(prior.edge_count.sum()) * dim * 4) / 1e9
    if name == "products":
        return matrix / 1e9
    if name.endswith("argmin"):  # over the codes of both parts
        return 2 * vectors * len(prior) * 4 / 1e9
    return 5 * matrix / 1e9


# The steps. Each is made with what it needs, and takes nothing.


def training_step(model: nn.Module, z: torch.Tensor, precision: str = "fp32") -> Step:
    model.train()
    parameters, z = list(model.parameters()), z.clone().requires_grad_()

    def step() -> None:
        for leaf in (*parameters, z):
            leaf.grad = None
        with autocast(precision, z.device):
            quantized, loss, _ = model(z)
        (quantized.float().mean() + loss).backward()

    return step


def evaluation(model: nn.Module, z: torch.Tensor, precision: str = "fp32") -> Step:
    model.eval()

    @torch.no_grad()
    def step() -> None:
        with autocast(precision, z.device):
            model(z)

    return step


def products(prior: CodebookPrior, z: torch.Tensor, precision: str = "fp32") -> Step:
    parts = [part.permute(0, 2, 3, 1).reshape(-1, part.shape[1]) for part in z.chunk(2, dim=1)]
    tables = [
        torch.randn(n, part.shape[1], device=z.device, dtype=z.dtype).t() for n, part in zip(sizes_of(prior), parts)
    ]

    @torch.no_grad()
    def step() -> None:
        with autocast(precision, z.device):
            for part, table in zip(parts, tables):
                part @ table

    return step


def transfer_step(model: nn.Module) -> Step:
    """The codebook of a training step, and what a gradient of the codes gives the weights."""
    model.train()
    gradient = torch.randn_like(model.embedding.weight)

    def step() -> None:
        for parameter in model.parameters():
            parameter.grad = None
        codes = model.embedding.weight
        if codes.requires_grad:
            codes.backward(gradient)

    return step


def lookups(z: torch.Tensor, codes: torch.Tensor) -> Dict[str, Callable[[], Any]]:
    """The contestants of one lookup, each giving the index of the nearest code, but the products."""
    transposed = codes.t()

    def by_addmm() -> torch.Tensor:
        return torch.addmm((codes**2).sum(1), z, transposed, alpha=-2).argmin(1)

    return {
        "ours": lambda: find_nearest(z, codes, 1),
        "addmm + argmin": by_addmm,
        "cdist + argmin": lambda: torch.cdist(z, codes).argmin(1),
        "products": lambda: z @ transposed,
    }


def codebook(state: str, quantizer: CodebookTransferQuantizer, z: torch.Tensor) -> torch.Tensor:
    """A table (n, D) in one of the three states."""
    if state == "fresh":
        return quantizer.embedding.weight.detach().clone()
    n, dim = quantizer.embedding.weight.shape
    noise = torch.randn(n, dim, device=z.device)
    if state == "trained":
        return z[torch.randint(0, len(z), (n,), device=z.device)] + 0.1 * noise
    return torch.randn(dim, device=z.device) + 1e-6 * noise / noise.norm(dim=1, keepdim=True)


def entries(models: Dict[str, nn.Module], prior: CodebookPrior, z: torch.Tensor) -> Dict[str, Step]:
    """``get_codebook_entry`` of the indices of as many positions as z has."""
    b, c, h, w = z.shape
    chosen = [torch.randint(0, n, (b, h * w), device=z.device) for n in sizes_of(prior)]
    ours = torch.stack([chosen[0], chosen[1] + sizes_of(prior)[0]], dim=1).reshape(-1)

    def of_ours(name: str) -> Step:
        return torch.no_grad()(lambda: models[name].get_codebook_entry(ours, (b, h, w, c)) is None)

    steps = {name: of_ours(name) for name in ("ours", "ours, frozen")}
    if "two VectorQuantizer2" in models:
        pair = models["two VectorQuantizer2"].quantizers
        flat = [indices.reshape(-1) for indices in chosen]

        @torch.no_grad()
        def of_theirs() -> None:
            for quantizer, indices in zip(pair, flat):
                quantizer.get_codebook_entry(indices, (b, h, w, c // 2))

        steps["two VectorQuantizer2"] = of_theirs
    return steps


def whole_step(around: nn.Module, quantizer: nn.Module, x: torch.Tensor, precision: str) -> Step:
    encoder, decoder = around
    quantizer.train()

    def step() -> None:
        for parameter in (*around.parameters(), *quantizer.parameters()):
            parameter.grad = None
        with autocast(precision, x.device):
            quantized, loss, _ = quantizer(encoder(x))
            error = (decoder(quantized) - x).abs().mean()
        (error + loss).backward()

    return step


def autocast(precision: str, device: torch.device) -> Any:
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
