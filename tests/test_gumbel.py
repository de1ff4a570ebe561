import pytest
import torch

from tests.conftest import assert_close, make_prior
from vqct_plugin.gumbel import GumbelTransferQuantizer

KIND = {"prior": make_prior(), "dropout": 0.0}


def test_a_table_with_one_part_is_tamings_gumbel_quantizer_to_the_last_bit():
    quantize = pytest.importorskip("taming.modules.vqvae.quantize")
    theirs = quantize.GumbelQuantize(16, 16, 40, kl_weight=0.1, temp_init=0.7)
    ours = GumbelTransferQuantizer(
        40, 16, kl_weight=0.1, temp_init=0.7, prior=make_prior(), parts_of_speech="joint", transfer="table"
    )
    ours.heads[0].load_state_dict(theirs.proj.state_dict())
    with torch.no_grad():
        ours.embedding.weight.copy_(theirs.embed.weight)
        next(ours.transfer.parameters()).copy_(theirs.embed.weight)
    for training in (True, False):
        ours.train(training), theirs.train(training)
        for straight_through in (True, False):
            ours.straight_through = theirs.straight_through = straight_through
            results = []
            for quantizer in (ours, theirs):
                z = torch.randn(2, 16, 3, 3, generator=torch.Generator().manual_seed(1), requires_grad=True)
                torch.manual_seed(2)
                z_q, loss, (_, _, indices) = quantizer(z)
                (z_q.square().sum() + loss).backward()
                results.append((z_q, loss, indices, z.grad))
            assert all(torch.equal(a, b) for a, b in zip(*results))


def test_each_head_draws_codes_of_its_part():
    quantizer = GumbelTransferQuantizer({"adjective": 10, "noun": 20}, 16, **KIND)
    _, _, (_, _, indices) = quantizer(torch.randn(4, 16, 8, 8))
    assert indices.shape == (4, 2, 8, 8)
    assert set(indices[:, 0].unique().tolist()) == set(range(10))
    assert set(indices[:, 1].unique().tolist()) == set(range(10, 30))


@pytest.mark.parametrize("parts", [("adjective", "noun"), "joint"])
def test_in_evaluation_the_indices_decode_to_the_map(parts):
    quantizer = GumbelTransferQuantizer(40, 16, parts_of_speech=parts, **KIND).eval()
    z_q, _, (_, _, indices) = quantizer(torch.randn(2, 16, 3, 5))
    assert_close(quantizer.get_codebook_entry(indices, (2, 3, 5, 16)), z_q)
    assert_close(quantizer.embed_code(indices), z_q)


def test_uniform_logits_cost_nothing_and_certain_ones_the_entropy():
    quantizer = GumbelTransferQuantizer({"adjective": 10, "noun": 20}, 16, kl_weight=2.0, **KIND)
    for head in quantizer.heads:
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    z = torch.randn(2, 16, 3, 3)
    assert float(quantizer(z)[1]) == pytest.approx(0, abs=1e-6)
    for head in quantizer.heads:
        head.bias.data[3] = 100.0
    assert float(quantizer(z)[1]) == pytest.approx(2 * (torch.log(torch.tensor(10.0)) + torch.log(torch.tensor(20.0))))
    _, _, (_, _, indices) = quantizer(z)
    assert (indices[:, 0] == 3).all()
    assert (indices[:, 1] == 13).all()


def test_logits_are_the_distribution_that_is_drawn_from():
    quantizer = GumbelTransferQuantizer({"adjective": 3, "noun": 5}, 4, **KIND)
    z = torch.randn(1, 4, 1, 1).expand(1, 4, 200, 200)
    _, _, (_, _, indices), logits = quantizer(z, return_logits=True)
    for part, (first, last) in enumerate([(0, 3), (3, 8)]):
        expected = torch.softmax(logits[0, first:last, 0, 0], 0)
        seen = torch.bincount(indices[:, part].reshape(-1) - first, minlength=last - first) / 40_000
        assert_close(seen, expected, atol=0.01, rtol=0)


def test_the_graph_and_the_heads_learn():
    quantizer = GumbelTransferQuantizer(40, 16, kl_weight=1.0, **KIND)
    z_q, loss, _ = quantizer(torch.randn(2, 16, 4, 4))
    (z_q.square().mean() + loss).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in quantizer.parameters())


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: GumbelTransferQuantizer(40, 16, kl_weight=-1.0, **KIND), "kl_weight is -1.0; expected"),
        (lambda: GumbelTransferQuantizer(40, 16, **KIND)(torch.randn(1, 16, 2, 2), temp=0.0), "temperature is 0.0"),
        (lambda: GumbelTransferQuantizer(40, 16, **KIND)(torch.randn(1, 8, 2, 2)), "expected \\(B, 16, H, W\\)"),
        (
            lambda: GumbelTransferQuantizer(40, 16, **KIND)(torch.randn(1, 16, 2, 2), rescale_logits=True),
            "rescale_logits is not implemented",
        ),
    ],
)
def test_bad_input_is_refused(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
