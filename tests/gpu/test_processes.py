"""Two processes with a card each: one codebook."""

import os
import socket

import pytest
import torch
import torch.multiprocessing
from torch.nn.parallel import DistributedDataParallel

from tests import device_checks as checks


def _one_process(rank, port, folder, kind, make):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    device = torch.device(kind, rank) if kind != "cpu" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if kind == "cuda" else "gloo", rank=rank, world_size=2)
    torch.manual_seed(100 + rank)  # another seed on each: DDP starts all with rank 0's
    quantizer, shape = make(device)
    if rank == 0:  # a checkpoint that the first process alone loads: its masks were counted
        trained, _ = make(device)
        for _ in range(3):
            trained(torch.randn(shape).to(device))
        quantizer.load_state_dict(trained.state_dict())
    model = DistributedDataParallel(
        checks.Autoencoder(quantizer).to(device), device_ids=None if kind == "cpu" else [rank]
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    torch.manual_seed(7 + rank)  # other images on each
    masked = []
    for _ in range(5):
        optimizer.zero_grad()
        model(checks.images_for(shape, device)).backward()
        optimizer.step()
        # the loss of one map by the codebook with dropout: two masks that differ differ in it
        torch.manual_seed(0)
        with torch.no_grad():
            masked.append(quantizer(torch.randn(shape).to(device))[1].cpu())
    codebook = quantizer.eval().embedding.weight.detach().cpu()
    torch.save((codebook, torch.stack(masked)), os.path.join(folder, f"{rank}.pt"))
    torch.distributed.destroy_process_group()


def test_two_processes_have_one_codebook_and_the_same_masks(device, rehearsal, tmp_path):
    if device.type == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("NCCL needs a card for each process, and there is one")
    if device.type not in ("cuda", "cpu"):
        pytest.skip(f"no processes on {device.type} here")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    make = checks.small if rehearsal else checks.usual
    torch.multiprocessing.spawn(_one_process, (port, str(tmp_path), device.type, make), nprocs=2)
    (codebook, masked), (other, other_masked) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert torch.equal(codebook, other)
    assert torch.equal(masked, other_masked)
    assert len(set(masked.tolist())) == len(masked)
