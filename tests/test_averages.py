"""Codes as moving averages: by a second method, over processes, resumed, recomputed, cast, compiled, refused."""

import copy
import os
import socket

import numpy as np
import pytest
import torch
import torch.multiprocessing

from tests.conftest import make_prior
from tests.test_quantizer import make
from vqct_plugin import CodebookTransferQuantizer
from vqct_plugin.averages import AveragesTransfer
from vqct_plugin.gumbel import GumbelTransferQuantizer


def averages(layout="two", topk=1, **params):
    params = {"relatives": 2, "arrange_steps": 0, **params}
    return make(layout, topk=topk, transfer={"target": "averages", "params": params})


def batches(number=4, size=4, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 24, 4, 4, generator=generator) for _ in range(number)]


def by_the_formula(quantizer, maps):
    """Counts and sums after some steps, code by code in float64 with dense matrices; no restarts but the first."""
    transfer = quantizer.transfer
    counts, sums = (x.detach().double().numpy().copy() for x in (transfer.counts, transfer.sums))
    for z in maps:  # the first step was taken before
        codes = sums / counts[:, None]
        new_counts, new_sums = np.zeros_like(counts), np.zeros_like(sums)
        for s, rows in zip(
            quantizer.slices, z.double().numpy().transpose(0, 2, 3, 1).reshape(-1, 2, 12).swapaxes(0, 1)
        ):
            own = codes[s.first : s.last]
            order = ((rows[:, None] - own[None]) ** 2).sum(axis=2).argsort(axis=1)[:, : s.topk]
            for row, chosen in zip(rows, order):
                for code in chosen:
                    new_counts[s.first + code] += 1 / s.topk
                    new_sums[s.first + code] += row / s.topk
        counts = 0.9 * counts + 0.1 * new_counts
        sums = 0.9 * sums + 0.1 * new_sums
    return counts, sums


@pytest.mark.parametrize("topk", [1, 2])
def test_the_averages_are_those_of_the_formula(topk):
    quantizer = averages(topk=topk, decay=0.9, restart=0.0)
    first, *others = batches()
    quantizer(first)
    expected = by_the_formula(quantizer, others)
    for z in others:
        quantizer(z)
    for found, wanted in zip((quantizer.transfer.counts, quantizer.transfer.sums), expected):
        np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-4, atol=1e-5)
    codes = expected[1] / expected[0][:, None]
    np.testing.assert_allclose(quantizer.embedding.weight.numpy(), codes, rtol=1e-3, atol=1e-4)


def test_evaluation_changes_nothing_and_there_is_no_gradient_but_z_s():
    quantizer = averages()
    z = batches()[0].requires_grad_()
    quantizer(z)
    before = copy.deepcopy(quantizer.state_dict())
    quantizer.eval()
    z_q, loss, _ = quantizer(z)
    (loss + z_q.sum()).backward()
    assert z.grad is not None
    assert list(quantizer.parameters()) == []
    assert all(torch.equal(value, quantizer.state_dict()[name]) for name, value in before.items())


def test_after_the_first_step_codes_are_vectors_of_the_batch():
    quantizer = averages()
    (z,) = batches(1)
    quantizer(z)
    rows = z.permute(0, 2, 3, 1).reshape(-1, 2, 12)
    for i, s in enumerate(quantizer.slices):
        codes = quantizer.embedding.weight[s.first : s.last]
        distances = (codes[:, None] - rows[None, :, i]).norm(dim=2)
        nearest, which = distances.min(dim=1)
        assert nearest.max() < 1e-5
        assert len(which.unique()) == s.last - s.first  # each another one


def test_a_code_that_nothing_chooses_jumps_and_without_restart_it_stays():
    for restart, moves in ((0.05, True), (0.0, False)):
        quantizer = averages(restart=restart)
        (z,) = batches(1)
        quantizer(z)
        with torch.no_grad():  # far from everything, and almost forgotten
            quantizer.transfer.counts[0] = 1e-3
            quantizer.transfer.sums[0] = 1.0
        far = quantizer.embedding.weight[0].clone()
        quantizer(z)
        assert torch.allclose(quantizer.embedding.weight[0], far) is not moves


def distances_of_relatives(quantizer):
    """The mean distance of a word's code from those of its two relatives, over that of any two words of a part."""
    found = []
    for s in quantizer.slices:
        x = torch.tensor(quantizer.prior.vectors[s.first : s.last].astype(np.float64))
        x = torch.nn.functional.normalize(x - x.mean(dim=0), dim=1)
        near = (x @ x.t() - 4 * torch.eye(len(x), dtype=x.dtype)).topk(2, dim=1)[1]
        codes = quantizer.embedding.weight[s.first : s.last].double()
        apart = (codes.unsqueeze(1) - codes.unsqueeze(0)).norm(dim=2)
        found.append(float(apart.gather(1, near).mean() / apart.sum() * (len(x) * (len(x) - 1))))
    return found


def test_arranging_changes_which_word_has_a_code_and_no_code():
    """The same maps out, the same codes in each part, and relatives nearer to each other."""
    plain, arranged = averages(), averages(arrange_steps=1000)
    for z in batches(60):
        (of_plain, loss, _), (of_arranged, other, _) = plain(z), arranged(z)
        assert torch.allclose(of_plain, of_arranged, atol=1e-4)
        assert torch.allclose(loss, other, rtol=1e-4)
    for s in plain.slices:
        rows = [q.embedding.weight[s.first : s.last] for q in (plain, arranged)]
        a, b = (x[x[:, 0].argsort()] for x in rows)
        assert torch.allclose(a, b, atol=1e-4)
        assert not torch.allclose(*rows, atol=1e-4)
    before, after = distances_of_relatives(plain), distances_of_relatives(arranged)
    assert all(b < a - 0.05 for a, b in zip(before, after)), (before, after)


def test_after_its_last_step_words_keep_their_codes():
    arranged = averages(restart=0.0, arrange_steps=3)
    orders = []
    for z in [batches(1)[0]] * 6:
        arranged(z)
        orders.append(arranged.embedding.weight.clone())
    moved = [float((b - a).norm(dim=1).median()) for a, b in zip(orders, orders[1:])]
    assert max(moved[2:]) < 0.1 < max(moved[:2]), moved


def test_a_resumed_training_is_the_same_to_the_bit():
    whole, maps = averages(), batches(6)
    part = copy.deepcopy(whole)
    for z in maps:
        whole(z)
    for z in maps[:3]:
        part(z)
    resumed = CodebookTransferQuantizer.from_state_dict(part.state_dict())
    for z in maps[3:]:
        resumed(z)
    assert torch.equal(whole.embedding.weight, resumed.embedding.weight)
    assert resumed.settings["transfer"] == whole.settings["transfer"]


@pytest.mark.skipif(not hasattr(torch, "compile"), reason="torch 2")
def test_checkpointing_computes_the_same_forward_pass_again_and_learns_once():
    from torch.utils.checkpoint import checkpoint

    plain, again = averages(), averages()
    again.load_state_dict(plain.state_dict())
    for z in batches(3):
        gradients = []
        for quantizer, run in ((plain, lambda f, x: f(x)), (again, lambda f, x: checkpoint(f, x, use_reentrant=False))):
            x = z.clone().requires_grad_()
            z_q, loss, _ = run(quantizer, x)
            ((z_q**2).sum() + loss).backward()
            gradients.append(x.grad)
        assert torch.equal(*gradients)
    assert torch.equal(plain.transfer.sums, again.transfer.sums)
    outstanding = [checkpoint(again, z.requires_grad_(), use_reentrant=False)[1] for z in batches(2)]
    with pytest.raises(RuntimeError, match="run each backward pass before the next forward pass"):
        outstanding[0].backward()


@pytest.mark.parametrize("cast", [torch.float16, torch.bfloat16, torch.float64])
def test_a_cast_leaves_counts_and_sums_in_float32(cast):
    quantizer = averages()
    quantizer(batches(1)[0])
    before = quantizer.embedding.weight.clone()
    quantizer.to(cast)
    assert {buffer.dtype for buffer in quantizer.buffers()} == {torch.float32}
    assert torch.equal(quantizer.embedding.weight, before)


@pytest.mark.skipif(not hasattr(torch, "compile"), reason="torch 2")
@pytest.mark.filterwarnings("ignore")
def test_compiled_it_learns_what_eager_does():
    eager, compiled = averages(), averages()
    compiled.load_state_dict(eager.state_dict())
    step = torch.compile(compiled, backend="aot_eager_decomp_partition")
    for z in batches(3):
        one, other = eager(z), step(z)
        assert torch.equal(one[2][2], other[2][2])
    torch.testing.assert_close(compiled.transfer.sums, eager.transfer.sums)
    torch.testing.assert_close(compiled.embedding.weight, eager.embedding.weight)


def _one_process(rank, port, folder):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    quantizer = averages(restart=0.0)
    for z in batches():
        quantizer(z[2 * rank : 2 * rank + 2])
    torch.save(quantizer.state_dict(), os.path.join(folder, f"{rank}.pt"))
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_two_processes_learn_one_codebook(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_one_process, args=(port, str(tmp_path)), nprocs=2)
    one, other = (torch.load(str(tmp_path / f"{rank}.pt")) for rank in range(2))
    for name in ("counts", "sums", "steps"):
        assert torch.equal(one[f"transfer.{name}"], other[f"transfer.{name}"])
    assert float(one["transfer.counts"].sum()) > 0.1


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({"decay": 1.5}, "decay is 1.5; expected a share"),
        ({"decay": -0.1}, "decay is -0.1"),
        ({"restart": True}, "restart is True"),
        ({"relatives": 0}, "relatives is 0; expected an integer, 1 to"),
        ({"arrange_steps": -1}, "arrange_steps is -1; expected an integer, 0 to"),
        ({"decays": 0.9}, "averages have no argument 'decays'; expected some of decay, restart"),
    ],
)
def test_wrong_params_are_refused(params, sentence):
    with pytest.raises(ValueError, match=sentence):
        averages(**params)


def test_what_cannot_have_averages_says_so():
    with pytest.raises(ValueError, match="transfer 'mlp' has no params of its own, but width came"):
        make("two", transfer={"target": "mlp", "params": {"width": 3}})
    with pytest.raises(ValueError, match="a Gumbel quantizer draws codes by weights"):
        GumbelTransferQuantizer(512, 64, transfer="averages")


def test_a_part_of_few_words_has_as_many_relatives_as_there_are():
    for sizes in ((1, 3), (4, 60)):
        prior = make_prior(sizes)
        quantizer = CodebookTransferQuantizer(sum(sizes), 24, prior=prior)
        for z in batches(3):
            quantizer(z)
        assert quantizer.embedding.weight.isfinite().all()
        assert quantizer.transfer.relatives_of_each == min(sizes) - 1


def test_it_is_the_default_and_its_codes_are_added_where_they_can_be():
    prior = make_prior((30, 50))
    for options, combine in (
        ({}, "sum"),
        ({"parts_of_speech": "joint"}, "sum"),
        ({"topk": 2}, "concat"),
        ({"topk": {"adjective": 1, "noun": 2}}, "concat"),
        ({"l2_normalize": True}, "concat"),
        ({"combine": "concat"}, "concat"),
        ({"transfer": {"target": "averages", "params": {"decay": 0.9}}}, "sum"),
        ({"transfer": "graph"}, "concat"),
        ({"transfer": "graph", "combine": "sum"}, "sum"),
    ):
        quantizer = CodebookTransferQuantizer(60, 24, prior=prior, **options)
        assert isinstance(quantizer.transfer, AveragesTransfer) is (options.get("transfer") != "graph")
        assert quantizer.combine == combine
        assert type(quantizer).from_state_dict(quantizer.state_dict()).combine == combine


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("combine", ["sum", "concat"])
def test_beta_weighs_the_commitment_which_is_all_of_the_loss(legacy, combine):
    quantizer = make(transfer="averages", combine=combine, legacy=legacy, beta=0.4)
    first, z = batches(2)
    quantizer(first)
    z.requires_grad_()
    z_q, loss, _ = quantizer(z)
    parts = 1 if combine == "sum" else 2  # the parts' means are added
    expected = 0.4 * parts * (z - z_q.detach()).pow(2).mean()
    assert torch.allclose(loss, expected)
    gradient, wanted = torch.autograd.grad(loss, z)[0], torch.autograd.grad(expected, z)[0]
    assert torch.allclose(gradient, wanted)
