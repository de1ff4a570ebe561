"""Codes as moving averages: by a second method, over processes, resumed, recomputed, cast, compiled, refused."""

import copy
import os
import socket

import numpy as np
import pytest
import torch
import torch.multiprocessing

from tests.test_quantizer import make
from vqct_plugin import CodebookTransferQuantizer
from vqct_plugin.gumbel import GumbelTransferQuantizer


def averages(layout="two", topk=1, **params):
    params = {"flow_steps": 5, "relatives": 2, **params}
    return make(layout, topk=topk, transfer={"target": "averages", "params": params})


def batches(number=4, size=4, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 24, 4, 4, generator=generator) for _ in range(number)]


def by_the_formula(quantizer, maps):
    """Counts and sums after some steps, code by code in float64 with dense matrices; no restarts but the first."""
    transfer = quantizer.transfer
    counts, sums = (x.detach().double().numpy().copy() for x in (transfer.counts, transfer.sums))
    flows = np.zeros((len(counts), len(counts)))
    for s in quantizer.slices:
        x = quantizer.prior.vectors[s.first : s.last].astype(np.float64)
        x = x - x.mean(axis=0)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        alike = x @ x.T - 4 * np.eye(len(x))
        for i, row in enumerate(alike):
            flows[s.first + i, s.first + np.argsort(-row)[:2]] = 1 / 2
    for step, z in enumerate(maps, 1):  # the first step was taken before
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
        share = transfer.flow * max(0, 1 - step / transfer.flow_steps)
        counts = 0.9 * counts + 0.1 * ((1 - share) * new_counts + share * flows.T @ new_counts)
        sums = 0.9 * sums + 0.1 * ((1 - share) * new_sums + share * flows.T @ new_sums)
    return counts, sums


@pytest.mark.parametrize("flow", [0.0, 0.5])
@pytest.mark.parametrize("topk", [1, 2])
def test_the_averages_are_those_of_the_formula(flow, topk):
    quantizer = averages(topk=topk, flow=flow, decay=0.9, restart=0.0)
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
        quantizer = averages(flow=0.0, restart=restart)
        (z,) = batches(1)
        quantizer(z)
        with torch.no_grad():  # far from everything, and almost forgotten
            quantizer.transfer.counts[0] = 1e-3
            quantizer.transfer.sums[0] = 1.0
        far = quantizer.embedding.weight[0].clone()
        quantizer(z)
        assert torch.allclose(quantizer.embedding.weight[0], far) is not moves


def test_relatives_of_a_chosen_code_move_and_by_the_control_without_flow_they_do_not():
    for flow, moves in ((0.5, True), (0.0, False)):
        quantizer = averages(flow=flow, restart=0.0)
        quantizer(batches(1)[0])
        before = quantizer.embedding.weight.clone()
        one = torch.ones(1, 24, 1, 1) * 3
        _, _, (_, _, chosen) = quantizer(one)
        moved = (quantizer.embedding.weight - before).abs().amax(dim=1) > 1e-4
        assert moved[chosen].all()
        assert (int(moved.sum()) > len(chosen)) is moves


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
        ({"flow": 1.5}, "flow is 1.5; expected a share"),
        ({"decay": -0.1}, "decay is -0.1"),
        ({"restart": True}, "restart is True"),
        ({"flow_steps": 0}, "flow_steps is 0; expected an integer, 1 to"),
        ({"relatives": 10_000}, "relatives is 10000"),
        ({"decays": 0.9}, "averages have no argument 'decays'; expected some of flow, flow_steps"),
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
