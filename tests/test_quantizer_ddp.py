"""Two processes under DDP have one codebook: the gradients of half a batch each are those of the whole batch."""

import os
import socket

import pytest
import torch
import torch.multiprocessing
from torch.nn.parallel import DistributedDataParallel

from tests.test_quantizer import make

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 24, 1)
        self.quantize = make("two", topk=2)

    def forward(self, x):
        z_q, loss, (_, _, indices) = self.quantize(self.conv(x))
        return loss + (z_q**2).mean(), indices


def _batches():
    torch.manual_seed(5)
    return [torch.randn(4, 3, 4, 4) for _ in range(3)]


def _train(model, batches):
    """Losses and indices of a few steps, and the weights after them."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    chosen = []
    for x in batches:
        loss, indices = model(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        chosen.append(indices)
    return chosen, {name.replace("module.", ""): p.detach().clone() for name, p in model.named_parameters()}


def _one_process(rank, port, folder):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    torch.manual_seed(100 + rank)  # another seed on each: DDP starts all with rank 0's
    model = DistributedDataParallel(Model())
    result = _train(model, [x[2 * rank : 2 * rank + 2] for x in _batches()])
    torch.save((result, model.module.quantize.embedding.weight.detach()), os.path.join(folder, f"{rank}.pt"))
    torch.distributed.destroy_process_group()


def _one_process_after_one_alone(rank, port, folder):
    """The first process has loaded a checkpoint, or made a training pass, which the other has not."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    results = []
    for what in ("load", "pass", "pass, in a DDP once more"):
        torch.manual_seed(100 + rank)
        model = Model()
        if rank == 0 and what == "load":
            trained = Model()
            _train(trained, _batches())
            model.load_state_dict(trained.state_dict())
        elif rank == 0:
            model(_batches()[0])
        wrapped = DistributedDataParallel(model)
        if "once more" in what:
            wrapped(_batches()[0])[0].backward()
            if rank == 0:
                model(_batches()[0])
            wrapped = DistributedDataParallel(model)
        result = _train(wrapped, [x[2 * rank : 2 * rank + 2] for x in _batches()])
        dropout = model.quantize.transfer.dropout
        results.append((*result, int(dropout.seed), int(dropout.draws)))
    torch.save(results, os.path.join(folder, f"{rank}.pt"))
    torch.distributed.destroy_process_group()


def test_what_one_process_did_alone_leaves_the_masks_alike(tmp_path):
    torch.multiprocessing.spawn(_one_process_after_one_alone, args=(free_port(), str(tmp_path)), nprocs=2)
    ours, theirs = (torch.load(str(tmp_path / f"{rank}.pt")) for rank in (0, 1))
    for (_, weights, *numbers), (_, other_weights, *other_numbers) in zip(ours, theirs):
        assert numbers == other_numbers
        assert all(torch.equal(value, other_weights[name]) for name, value in weights.items())
    assert [draws for *_, draws in ours] == [6, 4, 6]  # the checkpoint's three masks go on, none is drawn twice


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_two_processes_train_the_model_of_one(tmp_path):
    torch.multiprocessing.spawn(_one_process, args=(free_port(), str(tmp_path)), nprocs=2)
    ((first, weights), table), ((second, other_weights), other_table) = (
        torch.load(str(tmp_path / f"{rank}.pt")) for rank in (0, 1)
    )
    assert torch.equal(table, other_table)
    torch.manual_seed(100)
    chosen, expected = _train(Model(), _batches())
    for name, value in expected.items():
        assert torch.equal(weights[name], other_weights[name]), name
        assert torch.allclose(weights[name], value, atol=1e-6), name
    for whole, a, b in zip(chosen, first, second):  # the same codes, though dropout was on
        assert torch.equal(whole.view(4, -1), torch.cat([a.view(2, -1), b.view(2, -1)]))
