"""Codes that are added: the search by a second method, what the quantizer promises, averages in turn, refusals."""

import pytest
import torch
import torch.nn.functional as F

from tests.test_quantizer import make
from vqct_plugin import CodebookTransferQuantizer
from vqct_plugin.additive import BEAM, add_codes, find_nearest_sum
from vqct_plugin.lookup import find_nearest
from vqct_plugin.slices import Slice

SIZES = (6, 50, 40)


def slices_of(*sizes):
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [Slice(str(n), end - n, end, 1) for n, end in zip(sizes, ends)]


def draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def squares(z, codes, indices):
    return (z - add_codes(codes, indices)).pow(2).sum(dim=1)


def distance_to_nearest(rows, others):
    return (rows.unsqueeze(1) - others.unsqueeze(0)).norm(dim=2).min(dim=1)[0].max()


def one_after_another(z, codes, slices):
    left, found = z, []
    for s in slices:
        found.append(find_nearest(left, codes[s.first : s.last]) + s.first)
        left = left - codes[found[-1][:, 0]]
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_all_first_codes_are_candidates_the_search_is_exhaustive(dtype):
    slices = slices_of(6, 50)
    assert slices[0].last <= BEAM
    z, codes = draw(200, 5).to(dtype), draw(56, 5, seed=2).to(dtype)
    pairs = (codes[:6].unsqueeze(1) + codes[6:].unsqueeze(0)).reshape(-1, 5).double()
    best = torch.cdist(z.double(), pairs).argmin(dim=1)
    expected = torch.stack([best // 50, best % 50 + 6], dim=1)
    assert torch.equal(find_nearest_sum(z, codes, slices), expected)


@pytest.mark.parametrize("sizes", [(30, 50), (30, 50, 40)])
def test_the_search_is_nearer_than_one_code_after_another(sizes):
    slices = slices_of(*sizes)
    z, codes = draw(300, 8), draw(sum(sizes), 8, seed=2)
    indices = find_nearest_sum(z, codes, slices)
    for s, own in zip(slices, indices.unbind(dim=1)):
        assert int(own.min()) >= s.first
        assert int(own.max()) < s.last
    found, plain = squares(z, codes, indices), squares(z, codes, one_after_another(z, codes, slices))
    assert found.mean() < 0.95 * plain.mean()
    if len(sizes) == 2:  # with three, what is best may leave the beam on the way
        assert (found <= plain + 1e-5).all()


def test_blocks_of_vectors_are_searched_as_the_whole(monkeypatch):
    z, codes, slices = draw(100, 5), draw(96, 5, seed=2), slices_of(*SIZES)
    whole = find_nearest_sum(z, codes, slices)
    monkeypatch.setattr("vqct_plugin.additive._COPIED", 64 * 5 * 7)
    assert torch.equal(find_nearest_sum(z, codes, slices), whole)


@pytest.mark.parametrize("transfer", ["graph", "mlp", "table", "averages"])
@pytest.mark.parametrize("sane_index_shape", [False, True])
def test_a_position_is_an_adjective_plus_a_noun_and_indices_go_back(transfer, sane_index_shape):
    quantizer = make("two", transfer=transfer, combine="sum", sane_index_shape=sane_index_shape)
    for seed in range(3):
        quantizer(draw(2, 24, 3, 5, seed=seed))
    quantizer.eval()
    z = draw(2, 24, 3, 5, seed=9)
    z_q, _, (_, _, indices) = quantizer(z)
    assert quantizer.embedding.weight.shape == (quantizer.n_e, 24)
    adjectives, nouns = indices.reshape(2, 2, -1).unbind(dim=1)
    added = quantizer.embedding(adjectives) + quantizer.embedding(nouns)
    assert torch.equal(z_q, added.view(2, 3, 5, 24).permute(0, 3, 1, 2))
    assert torch.equal(quantizer.get_codebook_entry(indices, (2, 3, 5, 24)), z_q)
    with pytest.raises(ValueError, match="expected one of"):
        quantizer.get_codebook_entry(torch.cat([nouns, adjectives], dim=1), (2, 3, 5, 24))
    again = CodebookTransferQuantizer.from_state_dict(quantizer.state_dict()).eval()
    assert again.combine == "sum"
    assert torch.equal(again(z)[0], z_q)


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
def test_loss_and_gradients_are_those_of_the_formula(legacy, channels_last):
    quantizer = make("two", combine="sum", dropout=0.0, legacy=legacy, channels_last=channels_last).double()
    z = draw(2, 3, 5, 24).double() if channels_last else draw(2, 24, 3, 5).double()
    z.requires_grad_()
    z_q, loss, (_, _, indices) = quantizer(z)
    weights = draw(*z.shape, seed=4).double()
    ours = torch.autograd.grad((z_q * weights).sum() + loss, [z, *quantizer.transfer.parameters()])
    codes, tokens = quantizer.transfer(), indices.view(2, 2, 15)
    q = (codes[tokens[:, 0]] + codes[tokens[:, 1]]).view(2, 3, 5, 24)
    q = q if channels_last else q.permute(0, 3, 1, 2)
    of_z, of_codes = F.mse_loss(z, q.detach()), F.mse_loss(q, z.detach())
    expected = of_z + 0.25 * of_codes if legacy else 0.25 * of_z + of_codes
    assert torch.allclose(loss, expected)
    theirs = torch.autograd.grad((z * weights).sum() + expected, [z, *quantizer.transfer.parameters()])
    for a, b in zip(ours, theirs):
        assert torch.allclose(a, b, atol=1e-10)


def test_one_part_has_nothing_to_be_added_to():
    z = draw(2, 24, 3, 5)
    added, plain = make("joint", combine="sum").eval(), make("joint").eval()
    plain.transfer.load_state_dict(added.transfer.state_dict())
    assert torch.equal(added(z)[0], plain(z)[0])


def test_terms_of_the_loss_meet_what_the_first_part_leaves_over():
    quantizer = make("two", combine="sum", loss_terms={"commitment": 1.0}, beta=0.0).eval()
    z = draw(2, 24, 3, 5)
    z_q, loss, (_, _, indices) = quantizer(z)
    first = quantizer.embedding(indices.view(2, 2, 3, 5)[:, 0]).permute(0, 3, 1, 2)
    assert torch.allclose(loss, F.mse_loss(z, z_q) + F.mse_loss(z, first) + F.mse_loss(z, z_q), rtol=1e-5)


def test_averages_of_nouns_begin_with_what_adjectives_leave_over():
    params = {"arrange_steps": 0, "relatives": 2}
    quantizer = make("two", combine="sum", transfer={"target": "averages", "params": params})
    first = quantizer.slices[0]
    z = draw(8, 24, 4, 4)
    rows = z.permute(0, 2, 3, 1).reshape(-1, 24)
    quantizer(z)
    adjectives = quantizer.embedding.weight[: first.last]
    assert distance_to_nearest(adjectives, rows) < 1e-4
    _, _, (_, _, indices) = quantizer(z)
    left = rows - adjectives[indices.view(8, 2, 16)[:, 0].reshape(-1)]
    assert distance_to_nearest(quantizer.embedding.weight[first.last :], left) < 1e-4


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"combine": "product"}, "combine is 'product'; expected one of concat, sum"),
        ({"combine": "sum", "topk": 2}, "combine='sum' adds one code of each part as it is; with topk 2"),
        ({"combine": "sum", "l2_normalize": True}, "with l2_normalize, use combine='concat'"),
    ],
)
def test_what_cannot_be_added_is_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        make("two", **options)


def test_an_odd_number_of_channels_can_be_added():
    quantizer = CodebookTransferQuantizer(512, 33, combine="sum")
    assert quantizer(draw(1, 33, 2, 2))[0].shape == (1, 33, 2, 2)


@pytest.mark.skipif(not hasattr(torch, "compile"), reason="torch.compile came with torch 2.0")
def test_compiled_it_is_what_eager_is():
    quantizer = make("two", combine="sum", dropout=0.0)
    compiled = torch.compile(quantizer, backend="aot_eager")
    for z in (draw(2, 24, 3, 5), draw(2, 24, 4, 4)):
        a, b = z.clone().requires_grad_(), z.clone().requires_grad_()
        (of_a, loss_a, (_, _, i_a)), (of_b, loss_b, (_, _, i_b)) = quantizer(a), compiled(b)
        assert torch.equal(i_a, i_b)
        assert torch.allclose(of_a, of_b)
        assert torch.allclose(loss_a, loss_b)
        (of_a.pow(2).sum() + loss_a).backward(), (of_b.pow(2).sum() + loss_b).backward()
        assert torch.allclose(a.grad, b.grad)


@pytest.mark.skipif(not hasattr(torch, "export"), reason="torch.export came with torch 2.1")
def test_exported_it_needs_nothing_of_this_package():
    quantizer = make("two", combine="sum").eval().freeze_codebook()
    z = draw(2, 24, 3, 5)
    exported = torch.export.export(quantizer, (z,))
    assert torch.allclose(exported.module()(z)[0], quantizer(z)[0])
    assert "vqct_plugin" not in str(exported.graph)
