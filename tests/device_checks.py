"""What has to hold on every device, each by a second way: run on the CPU by test_fake_devices, on a GPU by tests/gpu.

A function here takes the device, and asserts. It uses the public API alone.
"""

import contextlib
import copy

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from tests.conftest import make_prior
from vqct_plugin import CodebookTransferQuantizer
from vqct_plugin.lookup import find_nearest


def small(device, **options):
    """A quantizer of 60 codes on a device, and the shape of a map for it."""
    options = {"n_e": 60, "e_dim": 24, "prior": make_prior(), "topk": 2, "transfer": "graph", **options}
    return CodebookTransferQuantizer(**options).to(device), (2, options["e_dim"], 4, 4)


def usual(device, **options):
    """A quantizer of usual size, with the default prior, and the shape of a map for it."""
    options = {"n_e": 1024, "e_dim": 256, "transfer": "graph", **options}
    return CodebookTransferQuantizer(**options).to(device), (4, options["e_dim"], 16, 16)


def averages(device, **options):
    """A small quantizer as it is by default: moving averages, whose codes are added."""
    return small(device, **{"topk": 1, "transfer": "averages", **options})


def loss_of(quantizer, z):
    """A number to which every output that has a gradient adds."""
    z_q, loss, _ = quantizer(z)
    weights = torch.linspace(-1, 1, z_q.shape[1], device=z.device).view(-1, 1, 1)
    return loss + (z_q * weights).pow(2).mean()


def gradients(module, *more):
    return [leaf.grad.detach().clone() for leaf in (*module.parameters(), *more)]


def assert_alike(ours, theirs, tolerance=1e-4, what="gradient"):
    """Relative to the whole of each tensor: a wrong dropout mask is off by about 1."""
    assert len(ours) == len(theirs)
    for i, (a, b) in enumerate(zip(ours, theirs)):
        off = float((a.double().cpu() - b.double().cpu()).norm() / b.double().cpu().norm().clamp_min(1e-30))
        assert off < tolerance, f"{what} {i} of shape {tuple(a.shape)} is off by {off:.2g} of its size"


def twice(quantizer, shape, device, number=3):
    """The quantizer and its equal, and maps to feed both."""
    return quantizer, copy.deepcopy(quantizer), [torch.randn(shape, device=device) for _ in range(number)]


def compiled_gradients_are_eagers(device, make, backend):
    """Several steps, so that the mask of a later step is the right one too."""
    quantizer, reference, maps = twice(*make(device), device)
    torch._dynamo.reset()
    compiled = torch.compile(quantizer, backend=backend)
    for z in maps:
        ours, theirs = z.clone().requires_grad_(), z.clone().requires_grad_()
        quantizer.zero_grad()
        reference.zero_grad()
        loss, expected = loss_of(compiled, ours), loss_of(reference, theirs)
        loss.backward()
        expected.backward()
        assert_alike([loss.detach()], [expected.detach()], what="loss")
        assert_alike(gradients(quantizer, ours), gradients(reference, theirs))


def entries_compile_in_one_piece(device, make, backend):
    """``get_codebook_entry`` and a frozen quantizer's forward pass, without a break of the graph."""
    quantizer, shape = make(device)
    quantizer.eval().freeze_codebook()
    b, c, h, w = shape
    with torch.no_grad():
        z = torch.randn(shape, device=device)
        expected, _, (_, _, indices) = quantizer(z)
        torch._dynamo.reset()
        decode = torch.compile(lambda i: quantizer.get_codebook_entry(i, (b, h, w, c)), backend=backend, fullgraph=True)
        assert torch.equal(decode(indices), expected)
        encode = torch.compile(lambda x: quantizer(x), backend=backend, fullgraph=True)
        assert torch.equal(encode(z)[2][2], indices)


def averaging_keeps_the_graph(device, make, decay=0.9999, steps=30):
    """``AveragedModel(use_buffers=True)``: its codes are those of its own weights over the graph as it was."""
    from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

    quantizer, shape = make(device)
    untouched = copy.deepcopy(quantizer)
    averaged = AveragedModel(quantizer, avg_fn=get_ema_avg_fn(decay), use_buffers=True)
    optimizer = torch.optim.Adam(quantizer.parameters(), 1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(quantizer, torch.randn(shape, device=device)).backward()
        optimizer.step()
        averaged.update_parameters(quantizer)
    graph_is_kept(averaged.module, untouched)


def graph_is_kept(averaged, untouched):
    """``untouched``: a quantizer of the same prior, which nothing has averaged; it takes the averaged weights."""
    with torch.no_grad():
        for ours, theirs in zip(untouched.parameters(), averaged.parameters()):
            ours.copy_(theirs)
        assert_alike([averaged.eval().embedding.weight], [untouched.eval().embedding.weight], 1e-6, "codebook")
        codes = averaged.embedding.weight.clone()
        untouched.load_state_dict(averaged.state_dict())  # which is refused where the prior's identity is damaged
        assert torch.equal(untouched.embedding.weight, codes)


def checkpointing_changes_nothing(device, make, use_reentrant):
    from torch.utils.checkpoint import checkpoint

    quantizer, reference, maps = twice(*make(device), device)
    for z in maps:
        ours, theirs = z.clone().requires_grad_(), z.clone().requires_grad_()
        quantizer.zero_grad()
        reference.zero_grad()
        loss = checkpoint(loss_of, quantizer, ours, use_reentrant=use_reentrant)
        expected = loss_of(reference, theirs)
        loss.backward()
        expected.backward()
        assert_alike([loss.detach()], [expected.detach()], what="loss")
        assert_alike(gradients(quantizer, ours), gradients(reference, theirs))


def two_checkpointed_forwards_are_right_or_refused(device, make, use_reentrant):
    """Two forward passes, and their backward passes only then, in both orders."""
    from torch.utils.checkpoint import checkpoint

    for backwards in (False, True):
        quantizer, reference, maps = twice(*make(device), device, number=2)
        ours = [z.clone().requires_grad_() for z in maps]
        theirs = [z.clone().requires_grad_() for z in maps]
        losses = [checkpoint(loss_of, quantizer, z, use_reentrant=use_reentrant) for z in ours]
        expected = [loss_of(reference, z) for z in theirs]
        order = (1, 0) if backwards else (0, 1)
        refusal = ""
        try:
            for i in order:
                losses[i].backward()
        except RuntimeError as error:
            refusal = str(error)
        if refusal:
            assert "dropout" in refusal or "checkpoint" in refusal  # a sentence that says why
            continue
        for i in order:
            expected[i].backward()
        assert_alike(gradients(quantizer, *ours), gradients(reference, *theirs))


def told(call, calls=5):
    """What a quantizer says in one of the next calls: at once, or when the device has answered."""
    for _ in range(calls):
        try:
            call()
        except (ValueError, RuntimeError) as error:
            return str(error)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    return f"nothing, in {calls} calls"


def a_wrong_index_is_told_of(device):
    """A code of another part, or of none; in either way to decode. Afterwards right ones are decoded as before."""
    quantizer, (b, c, h, w) = small(device)
    quantizer.eval()
    with torch.no_grad():
        expected, _, (_, _, indices) = quantizer(torch.randn(b, c, h, w).to(device))
        for bad in (quantizer.n_e - 1, quantizer.n_e, -1):  # the first token is an adjective
            wrong = torch.cat([torch.full_like(indices[:1], bad), indices[1:]])
            ways = (
                lambda i: quantizer.get_codebook_entry(i, (b, h, w, c)),
                lambda i: quantizer.embed_code(i.view(b, -1)),
            )
            for decode in ways:
                said = told(lambda decode=decode, wrong=wrong: decode(wrong))
                assert "token" in said or "expected 0 to" in said, said
                told(lambda decode=decode: decode(indices))  # what else was under way
                assert_alike([decode(indices).to("cpu")], [expected.to("cpu")], 1e-6, "map")


#: what users write to have TF32, by the old switch, the new one, and both
TF32 = {
    "old": lambda: torch.set_float32_matmul_precision("high"),
    "old, medium": lambda: torch.set_float32_matmul_precision("medium"),
    "old, cuda": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "new, cuda": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "new, all": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
    "new, mkldnn": lambda: setattr(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),
    "new, convolutions": lambda: setattr(torch.backends.cudnn.conv, "fp32_precision", "tf32"),
}
TF32_MIXES = {
    **{name: (name,) for name in TF32},
    "old, then new": ("old", "new, cuda"),
    "new, then old": ("new, cuda", "old, medium"),
    "all of them": ("old, cuda", "new, all", "new, mkldnn"),
}
needs_the_new_switch = pytest.mark.skipif(
    not hasattr(torch._C, "_get_fp32_precision_getter"), reason="this torch has the old TF32 switch only"
)


def tf32_changes_no_choice(device, make, mix):
    """A forward and a backward pass go through; each vector takes the nearest of the codes that there are; the user's
    switch stays as it was. To be run in a process of its own: the switches cannot all be put back."""
    for name in TF32_MIXES[mix]:
        with contextlib.suppress(RuntimeError):  # torch itself refuses some orders
            TF32[name]()
    before = switches()
    quantizer, shape = make(device, topk=1)
    z = torch.randn(shape, device=device, requires_grad=True)
    loss_of(quantizer, z).backward()
    assert all(torch.isfinite(g).all() for g in gradients(quantizer, z))
    quantizer.eval()
    with torch.no_grad():
        codes = quantizer.embedding.weight
        _, _, (_, _, indices) = quantizer(z)
    b, c, h, w = shape
    indices = indices.view(b, 2, h * w).permute(1, 0, 2).reshape(2, -1)
    for part, chosen in enumerate(indices):
        own = quantizer.part_of_speech == part
        first = int(own.nonzero()[0])
        vectors = z.detach().chunk(2, dim=1)[part].permute(0, 2, 3, 1).reshape(-1, c // 2)
        assert_nearest(vectors, codes[own], (chosen - first).unsqueeze(1))
    assert switches() == before


def switches():
    """What the switches of matrix products say; some may not be asked once the other way was used."""
    said = []
    for ask in (
        torch.get_float32_matmul_precision,
        lambda: torch.backends.cuda.matmul.allow_tf32,
        lambda: torch.backends.cuda.matmul.fp32_precision,
        lambda: torch.backends.fp32_precision,
        lambda: torch.backends.mkldnn.matmul.fp32_precision,
    ):
        try:
            said.append(ask())
        except (RuntimeError, AttributeError) as error:
            said.append(type(error).__name__)
    return said


def assert_nearest(z, codes, found, wrong=2e-3, further=1e-5):
    """Against every distance in float64, on the CPU: nearly always the first of the nearest, and never one that is
    further away than rounding tells apart."""
    distances = torch.cdist(z.cpu().double(), codes.cpu().double(), compute_mode="donot_use_mm_for_euclid_dist") ** 2
    best, found = distances.topk(found.shape[1], largest=False).values, found.cpu()
    taken = distances.gather(1, found)
    share = float((taken > best * (1 + 1e-9)).any(1).double().mean())
    assert share <= wrong, f"{share:.1%} of the rows have another code than the nearest"
    assert float(((taken - best) / best.clamp_min(1e-30)).max()) <= further


def lookup_is_right_far_from_the_origin(device, times, number=4096, codes=1024, dim=32):
    """Codes and vectors share an offset of so many times their spread."""
    offset = times * F.normalize(torch.randn(dim), dim=0) * dim**0.5
    z, table = torch.randn(number, dim) + offset, torch.randn(codes, dim) + offset
    for k in (1, 2):
        assert_nearest(z, table, find_nearest(z.to(device), table.to(device), k))


def equal_codes_come_lowest_first(device):
    z, codes = torch.randn(500, 8), torch.randn(20, 8)
    expected = torch.from_numpy(
        np.argsort((z.double()[:, None] - codes.double()).pow(2).sum(-1).numpy(), axis=1, kind="stable")[:, :1]
    )
    assert torch.equal(find_nearest(z.to(device), codes.repeat(2, 1).to(device), 1).cpu(), expected)


class Autoencoder(nn.Module):
    """An encoder, the quantizer and a decoder, each of one layer."""

    def __init__(self, quantizer):
        super().__init__()
        self.encoder = nn.Conv2d(3, quantizer.e_dim, 4, 4)
        self.quantize = quantizer
        self.decoder = nn.ConvTranspose2d(quantizer.e_dim, 3, 4, 4)

    def forward(self, x):
        z_q, loss, _ = self.quantize(self.encoder(x))
        return (self.decoder(z_q) - x).abs().mean() + loss


def images_for(shape, device):
    b, _, h, w = shape
    return torch.rand(b, 3, 4 * h, 4 * w, device=device) * 2 - 1


def trains_under_autocast(device, make, dtype, steps=40):
    """The loss falls, no gradient is ever infinite, and the codebook stays in float32."""
    quantizer, shape = make(device)
    model, x = Autoencoder(quantizer).to(device), images_for(shape, device)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    # Only float16 needs its gradients scaled; begun low, so that no step is lost to finding the scale.
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**10, enabled=dtype == torch.float16)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype):
            loss = model(x)
            assert quantizer.embedding.weight.dtype == torch.float32
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        assert all(torch.isfinite(g).all() for g in gradients(model))
        scaler.step(optimizer)
        scaler.update()
        losses.append(float(loss.detach()))
    assert np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])


def two_runs_are_one(device, make, steps=5):
    """With ``torch.use_deterministic_algorithms(True)``: the same weights to the last bit."""
    torch.use_deterministic_algorithms(True)
    try:
        runs = []
        for _ in range(2):
            torch.manual_seed(3)
            quantizer, shape = make(device)
            model = Autoencoder(quantizer).to(device)
            optimizer = torch.optim.Adam(model.parameters(), 1e-3)
            for _ in range(steps):
                optimizer.zero_grad()
                model(images_for(shape, device)).backward()
                optimizer.step()
            runs.append([p.detach().clone() for p in model.parameters()])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(*runs))
