"""Which codes are in use: by hand, over batches, and over processes."""

import math
import os
import socket

import pytest
import torch
import torch.multiprocessing

from vqct_plugin.usage import CodebookUsage

PARTS = ("adjective", "noun")
PART_OF_SPEECH = [0, 0, 0, 1, 1, 1, 1]


def test_by_hand():
    usage = CodebookUsage(PART_OF_SPEECH, PARTS)
    usage.update(torch.tensor([[0, 0, 0, 1], [3, 4, 5, 3]]))
    adjective, noun = usage.compute().values()
    assert adjective[:3] == (3, 2, 2 / 3)
    assert adjective.perplexity == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))
    assert adjective.dead == [2]
    assert noun[:3] == (4, 3, 3 / 4)
    assert noun.perplexity == pytest.approx(math.exp(0.5 * math.log(2) + 2 * 0.25 * math.log(4)))
    assert (noun.dead, noun.tokens) == ([6], 4)


def test_batches_add_up_and_their_order_does_not_matter():
    indices = torch.randint(0, 7, (90,))
    whole, parts = CodebookUsage(PART_OF_SPEECH, PARTS), CodebookUsage(PART_OF_SPEECH, PARTS)
    whole.update(indices)
    for batch in indices.flip(0).split(13):
        parts.update(batch)
    assert whole.compute() == parts.compute()


def test_all_alike_has_a_perplexity_of_every_code_and_one_code_of_one():
    usage = CodebookUsage(5)
    usage.update(torch.arange(5).repeat(3))
    assert usage.compute()["codes"].perplexity == pytest.approx(5)
    usage.reset()
    usage.update(torch.full((8,), 2))
    assert usage.compute()["codes"].perplexity == pytest.approx(1)
    assert usage.compute()["codes"].dead == [0, 1, 3, 4]


def test_nothing_counted_is_not_a_figure():
    nothing = CodebookUsage(3).compute()["codes"]
    assert math.isnan(nothing.perplexity)
    assert (nothing.in_use, nothing.tokens) == (0, 0)


@pytest.mark.parametrize("wrong", [torch.tensor([7]), torch.tensor([-1]), torch.tensor([0.5]), torch.tensor([True])])
def test_refuses_what_is_no_index(wrong):
    with pytest.raises(ValueError, match="expected"):
        CodebookUsage(PART_OF_SPEECH, PARTS).update(wrong)


def test_refuses_a_part_without_a_name():
    with pytest.raises(ValueError, match="the parts are"):
        CodebookUsage([0, 1, 2], PARTS)


def _count_on_one_process(rank, world, port, folder):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
    usage = CodebookUsage(PART_OF_SPEECH, PARTS)
    usage.update(torch.tensor([[0, 3, 3], [1, 3, 4]][rank]))
    torch.save({part: tuple(figures) for part, figures in usage.compute().items()}, os.path.join(folder, f"{rank}.pt"))
    torch.distributed.destroy_process_group()


def test_processes_add_their_counts(tmp_path):
    """Two processes that each see one adjective: two in use between them, and the perplexity of the sum."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_count_on_one_process, args=(2, port, str(tmp_path)), nprocs=2)
    one_process = CodebookUsage(PART_OF_SPEECH, PARTS)
    one_process.update(torch.tensor([0, 3, 3, 1, 3, 4]))
    expected = {part: tuple(figures) for part, figures in one_process.compute().items()}
    assert torch.load(str(tmp_path / "0.pt")) == torch.load(str(tmp_path / "1.pt")) == expected


@pytest.mark.skipif(not hasattr(torch, "inference_mode"), reason="torch before 1.9 has no inference mode")
def test_counting_begun_in_inference_mode_goes_on_outside():
    usage = CodebookUsage(4)
    with torch.inference_mode():
        usage.update(torch.empty(3, dtype=torch.int64, device="meta"))  # another device, as a GPU is
    assert usage.counts.device.type == "meta"
    assert not usage.counts.is_inference()
    usage.update(torch.empty(3, dtype=torch.int64, device="meta"))
