"""``VectorQuantize`` with the contract of vector-quantize-pytorch's; that package is not needed."""

import copy
import doctest
import inspect
import io

import pytest
import torch

from tests.conftest import assert_close, make_prior
from vqct_plugin import CodebookTransferQuantizer
from vqct_plugin.hosts import vector_quantize
from vqct_plugin.hosts.vector_quantize import VectorQuantize

TRANSFERS = ["graph", {"target": "averages", "params": {"relatives": 3}}]


def make(dim=16, codebook_size=40, **options):
    return VectorQuantize(dim, codebook_size, **{"prior": make_prior(), "transfer": "graph", **options})


#: options, the shape of x, and that of the indices
LAYOUTS = [
    ({}, (2, 6, 16), (2, 6)),
    ({}, (3, 16), (3,)),
    ({}, (2, 3, 4, 16), (2, 3, 4)),
    ({}, (2, 3, 4, 2, 16), (2, 3, 4, 2)),
    ({"channel_last": False}, (2, 16, 6), (2, 6)),
    ({"channel_last": False}, (2, 16, 3, 4), (2, 3, 4)),
    ({"accept_image_fmap": True}, (2, 16, 3, 4), (2, 3, 4)),
    ({"accept_3d_fmap": True}, (2, 16, 3, 4, 2), (2, 3, 4, 2)),
    ({"heads": 2, "codebook_dim": 8}, (2, 6, 16), (2, 6, 2)),
    ({"heads": 2, "codebook_dim": 8, "separate_codebook_per_head": True}, (2, 6, 16), (2, 6, 2)),
    ({"heads": 2, "codebook_dim": 4, "accept_image_fmap": True}, (2, 16, 3, 4), (2, 3, 4, 2)),
    ({"codebook_dim": 4, "layernorm_after_project_in": True}, (2, 6, 16), (2, 6)),
    ({"parts_of_speech": ["adjective", "noun"]}, (2, 6, 16), (2, 6, 2)),
    ({"parts_of_speech": ["adjective", "noun"], "topk": 2, "heads": 2, "codebook_dim": 8}, (2, 6, 16), (2, 6, 6)),
    ({"parts_of_speech": ["adjective", "noun"], "accept_image_fmap": True}, (2, 16, 3, 4), (2, 3, 4, 2)),
    ({"use_cosine_sim": True}, (2, 6, 16), (2, 6)),
    ({"topk": 2}, (2, 6, 16), (2, 6, 2)),
]


@pytest.mark.parametrize("transfer", TRANSFERS)
@pytest.mark.parametrize(("options", "shape", "indices_shape"), LAYOUTS)
def test_indices_give_the_output_back(options, shape, indices_shape, transfer):
    vq = make(**options, transfer=transfer)
    vq(torch.randn(shape))
    vq.eval()
    x = torch.randn(shape)
    quantized, indices, loss = vq(x)
    assert quantized.shape == x.shape
    assert quantized.is_contiguous()
    assert tuple(indices.shape) == indices_shape
    assert indices.dtype == torch.int64
    assert indices.max() < vq.codebook_size == 40
    assert loss == 0
    assert_close(vq.get_output_from_indices(indices), quantized)
    assert torch.equal(vq.indices_to_codes(indices), vq.get_output_from_indices(indices))
    codes = vq.get_codes_from_indices(indices)
    at = 1 if vq.accept_image_fmap or vq.accept_3d_fmap or not vq.channel_last else -1
    assert codes.shape[at] == vq.heads * vq.codebook_dim
    assert codes.dim() == x.dim()


def test_each_vector_has_its_nearest_code():
    vq = make().eval()
    x = torch.randn(2, 6, 16)
    quantized, indices, _ = vq(x)
    assert torch.equal(torch.cdist(x, vq.codebook).argmin(-1), indices)
    assert torch.equal(vq.codebook[indices], quantized)


def test_heads_of_one_codebook_are_each_a_vector_of_it():
    vq = make(heads=2, codebook_dim=8).eval()
    x = torch.randn(2, 6, 16)
    _, indices, _ = vq(x)
    assert tuple(vq.codebook.shape) == (40, 8)
    assert torch.equal(torch.cdist(x.reshape(2, 12, 8), vq.codebook).argmin(-1).reshape(2, 6, 2), indices)


def test_heads_of_their_own_have_their_own_codebooks():
    vq = make(heads=2, codebook_dim=8, separate_codebook_per_head=True).eval()
    x = torch.randn(2, 6, 16)
    quantized, indices, _ = vq(x)
    first, second = vq.codebook
    assert not torch.equal(first, second)
    assert torch.equal(torch.cat([first[indices[..., 0]], second[indices[..., 1]]], dim=-1), quantized)


@pytest.mark.parametrize("parts", ["joint", ["adjective", "noun"]])
def test_the_loss_is_the_squared_error_with_both_gradients(parts):
    """As theirs with ``learnable_codebook``: value and gradient of ``w * mse(q, z)``, of z and of the codes."""
    vq = make(commitment_weight=0.7, dropout=0.0, rotation_trick=False, parts_of_speech=parts)
    x = torch.randn(2, 6, 16, requires_grad=True)
    quantized, indices, loss = vq(x)
    loss.backward()
    gradients = [x.grad.clone(), *(p.grad.clone() for p in vq.parameters())]
    assert_close(loss, 0.7 * (x - quantized).pow(2).mean())
    x.grad = None
    vq.zero_grad()
    again = 0.7 * (x - vq.get_output_from_indices(indices)).pow(2).mean()
    again.backward()
    for ours, expected in zip(gradients, [x.grad, *(p.grad for p in vq.parameters())]):
        assert_close(ours, expected)


@pytest.mark.parametrize("combine", ["sum", "concat"])
@pytest.mark.parametrize("heads", [1, 2])
def test_the_loss_of_averages_is_the_squared_error_too(combine, heads):
    vq = VectorQuantize(16, 40, prior=make_prior(), parts_of_speech=["adjective", "noun"], combine=combine, heads=heads,
                        codebook_dim=16 // heads, commitment_weight=0.7)  # fmt: skip
    vq(torch.randn(2, 60, 16))
    x = torch.randn(2, 6, 16, requires_grad=True)
    quantized, _, loss = vq(x)
    assert_close(loss, 0.7 * (x - quantized).pow(2).mean())


def test_the_gradient_passes_by_rotation_unless_told_otherwise():
    x, back = torch.randn(1, 6, 16), torch.randn(1, 6, 16)

    def gradient(**options):
        torch.manual_seed(0)
        given = x.clone().requires_grad_()
        make(dropout=0.0, **options)(given)[0].backward(back)
        return given.grad

    assert torch.equal(gradient(rotation_trick=False), back)
    assert not torch.allclose(gradient(), back)
    assert torch.equal(gradient(), gradient(rotation_trick=True))
    assert torch.equal(gradient(), gradient(gradient="rotation"))


@pytest.mark.parametrize("transfer", TRANSFERS)
@pytest.mark.parametrize("how", ["mask", "lens"])
def test_what_is_masked_is_in_no_loss_and_moves_no_code(transfer, how):
    first = make(transfer=transfer)
    second = copy.deepcopy(first)
    short = torch.randn(2, 4, 16)
    long = torch.cat([short, 1e4 * torch.randn(2, 3, 16)], dim=1)
    quantized, indices, loss = first(short)
    mask = torch.arange(7).expand(2, 7) < 4
    masked, its, its_loss = second(long, **({"mask": mask} if how == "mask" else {"lens": torch.tensor([4, 4])}))
    assert_close(masked[:, :4], quantized)
    assert torch.equal(its[:, :4], indices)
    assert_close(its_loss, loss)
    assert (masked[:, 4:] == 0).all()
    assert (its[:, 4:] == -1).all()
    assert_close(first.codebook, second.codebook)
    second.eval()
    masked, its, _ = second(long, mask=mask)
    assert torch.equal(second.get_output_from_indices(its), masked)


def test_padding_may_stay_as_it_is_and_a_map_may_have_a_mask():
    vq = make(accept_image_fmap=True, return_zeros_for_masked_padding=False, codebook_dim=4).eval()
    x, mask = torch.randn(2, 16, 3, 4), torch.rand(2, 3, 4) < 0.5
    quantized, indices, _ = vq(x, mask=mask)
    whole, all_indices, _ = vq(x)
    assert_close(quantized, torch.where(mask[:, None], whole, x))
    assert torch.equal(indices, torch.where(mask, all_indices, torch.full_like(indices, -1)))


def test_nothing_but_padding_is_no_loss():
    vq = make()
    quantized, indices, loss = vq(torch.randn(2, 4, 16), mask=torch.zeros(2, 4, dtype=torch.bool))
    loss.backward()
    assert loss == 0
    assert (quantized == 0).all()
    assert (indices == -1).all()


@pytest.mark.parametrize("transfer", TRANSFERS)
@pytest.mark.parametrize("where", ["constructor", "call"])
def test_a_frozen_codebook_learns_nothing(transfer, where):
    vq = make(transfer=transfer, freeze_codebook=where == "constructor")
    call = {} if where == "constructor" else {"freeze_codebook": True}
    before = {name: value.clone() for name, value in vq.state_dict().items()}
    x = torch.randn(2, 6, 16, requires_grad=True)
    quantized, indices, loss = vq(x, **call)
    (loss + quantized.sum()).backward()
    assert loss > 0
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None or not p.grad.any() for p in vq.parameters())
    assert all(torch.equal(before[name], value) for name, value in vq.state_dict().items())
    assert torch.equal(vq.get_output_from_indices(indices), quantized), "dropout in a frozen codebook"
    assert vq.quantizer.training


@pytest.mark.parametrize("transfer", TRANSFERS)
def test_it_learns(transfer):
    vq = make(transfer=transfer, dim=8)
    optimizer = torch.optim.Adam(vq.parameters(), 1e-2) if list(vq.parameters()) else None
    x = torch.randn(10, 8)[torch.randint(10, (4, 32))] + 0.05 * torch.randn(4, 32, 8)
    losses = []
    for _ in range(30):
        _, _, loss = vq(x)
        if optimizer is not None:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    assert vq.ema_update is (transfer != "graph")
    assert vq.learnable_codebook is (transfer == "graph")


def test_the_example_in_the_docstring_runs():
    assert doctest.testmod(vector_quantize, extraglobs={"torch": torch}).failed == 0


@pytest.mark.skipif(not hasattr(torch, "compile"), reason="a CPU multiplies in bfloat16 since torch 2")
def test_half_precision_comes_back_as_it_came():
    vq = make(codebook_dim=4).to(torch.bfloat16).eval()
    x = torch.randn(2, 6, 16, dtype=torch.bfloat16)
    quantized, indices, _ = vq(x)
    assert quantized.dtype == torch.bfloat16
    assert_close(vq.get_output_from_indices(indices).float(), quantized.float())


def test_the_state_goes_there_and_back_and_stands_alone():
    vq, other = make(codebook_dim=8).eval(), make(codebook_dim=8).eval()
    file = io.BytesIO()
    torch.save(vq.state_dict(), file)
    file.seek(0)
    state = torch.load(file)
    other.load_state_dict(state)
    x = torch.randn(2, 6, 16)
    assert torch.equal(other(x)[0], vq(x)[0])
    alone = CodebookTransferQuantizer.from_state_dict(state, "quantizers.0.")
    assert torch.equal(alone.embedding.weight, vq.codebook)
    assert vq.quantizer.words_of(vq(x)[1])[0][0] in alone.words


def test_the_breakdown_has_the_loss_without_its_weight():
    *_, loss, parts = make(commitment_weight=0.5)(torch.randn(2, 6, 16), return_loss_breakdown=True)
    assert_close(loss, 0.5 * parts.commitment)
    assert parts.codebook_diversity == parts.orthogonal_reg == parts.inplace_optimize == 0


def test_further_terms_keep_their_own_weight():
    options = {"dropout": 0.0, "commitment_weight": 0.5}
    plain = make(**options)
    more = make(**options, loss_terms={"commitment": 3.0})
    more.load_state_dict(plain.state_dict())
    x = torch.randn(2, 6, 16)
    assert_close(more(x)[2], 7 * plain(x)[2])


def test_decay_is_that_of_averages():
    assert make(transfer="averages", decay=0.9).quantizer.transfer.decay == 0.9
    assert make(transfer=TRANSFERS[1], decay=0.8).quantizer.transfer.decay == 0.8
    assert make(transfer=TRANSFERS[1], decay=0.8).quantizer.transfer.relatives.shape[1] == 3
    make(decay=0.8)  # as theirs has it by default: nothing is asked for
    with pytest.raises(ValueError, match="learns by gradient; leave it out"):
        make(decay=0.99)
    with pytest.raises(ValueError, match="twice"):
        make(transfer={"target": "averages", "params": {"decay": 0.9}}, decay=0.9)
    default = inspect.signature(CodebookTransferQuantizer.__init__).parameters["transfer"].default
    assert isinstance(
        VectorQuantize(16, 40, prior=make_prior()).quantizer.transfer, type(make(transfer=default).quantizer.transfer)
    )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"kmeans_init": True}, "kmeans_init is True; .*codes begin as the words"),
        ({"threshold_ema_dead_code": 2}, "restart"),
        ({"vq_bridge": torch.nn.Identity()}, "the codes come from transfer"),
        ({"straight_through": True}, "rotation_trick=False"),
        ({"orthogonal_reg_weight": 0.1}, "loss_terms"),
        ({"in_place_codebook_optimizer": torch.optim.SGD}, "the model's optimizer"),
        ({"stochastic_sample_codes": True}, "GumbelTransferQuantizer"),
        ({"ema_update": True}, "this transfer learns by gradient"),
        ({"transfer": "averages", "learnable_codebook": True}, "learns by averages"),
        ({"gradient": "rotation", "rotation_trick": True}, "say the same"),
        ({"layernorm_after_project_in": True}, "without codebook_dim"),
        ({"heads": 0}, "heads is 0"),
        ({"accept_image_fmap": "yes"}, "accept_image_fmap"),
        ({"accept_image_fmap": True, "accept_3d_fmap": True}, "are both true"),
        ({"freeze_codebook": "no"}, "freeze_codebook is 'no'; expected true or false"),
        ({"use_cosine_sim": "no"}, "use_cosine_sim is 'no'; expected true or false"),
        ({"codebook_dim": 4, "layernorm_after_project_in": "no"}, "layernorm_after_project_in is 'no'"),
        ({"return_zeros_for_masked_padding": "no"}, "return_zeros_for_masked_padding is 'no'"),
        ({"rotation_trick": "no"}, "rotation_trick is 'no'; expected true or false"),
        ({"commitment_weight": "1"}, "commitment_weight is '1'; expected a number of 0 or more"),
        ({"commitment_weight": None}, "commitment_weight is None"),
        ({"commitment_weight": -1.0}, r"commitment_weight is -1\.0"),
    ],
)
def test_an_option_that_cannot_be_obeyed_is_refused_by_name(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        make(**options)


def test_what_asks_for_nothing_is_taken():
    make(kmeans_init=False, threshold_ema_dead_code=0, vq_bridge=None, sample_codebook_temp=1.0, sync_codebook=None)
    make(ema_update=False, learnable_codebook=True)


@pytest.mark.parametrize("name", ["treshold_ema_dead_code", "legacy", "n_e"])
def test_an_option_of_neither_is_refused(name):
    with pytest.raises(TypeError, match=f"takes no argument '{name}'"):
        make(**{name: 1})


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        ({"topk": 2}, "topk is given"),
        ({"indices": torch.zeros(2, 6, dtype=torch.long)}, "indices is given"),
        ({"accum_ema_update": True}, "accum_ema_update is given"),
        ({"mask": torch.ones(2, 5, dtype=torch.bool)}, "mask has shape"),
        ({"mask": torch.ones(2, 6)}, "torch.bool"),
        ({"mask": [[True] * 6] * 2}, "mask is a list; expected a tensor"),
        ({"lens": [6, 3]}, "lens is a list; expected a tensor"),
        ({"freeze_codebook": "no"}, "freeze_codebook is 'no'; expected true or false"),
        ({"lens": torch.ones(2), "mask": torch.ones(2, 6, dtype=torch.bool)}, "instead of a mask"),
    ],
)
def test_a_call_that_cannot_be_obeyed_is_refused(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()(torch.randn(2, 6, 16), **call)


@pytest.mark.parametrize(
    ("options", "shape"),
    [({}, (2, 16, 6)), ({"accept_image_fmap": True}, (2, 6, 16)), ({"channel_last": False}, (2, 6, 16))],
)
def test_another_shape_is_refused(options, shape):
    with pytest.raises(ValueError, match="x has shape"):
        make(**options)(torch.randn(shape))


def test_what_is_no_tensor_is_refused():
    with pytest.raises(ValueError, match="x is a NoneType; expected a tensor"):
        make()(None)
    for indices in (None, [1, 2]):
        with pytest.raises(ValueError, match=r"indices are a (NoneType|list); expected a tensor"):
            make().get_output_from_indices(indices)


@pytest.mark.parametrize("transfer", TRANSFERS)
@pytest.mark.parametrize(("options", "shape", "indices_shape"), LAYOUTS)
def test_a_batch_of_none_comes_back_empty(options, shape, indices_shape, transfer):
    vq = make(**options, transfer=transfer)
    before = [value.clone() for value in vq.state_dict().values()]
    for mode in (True, False):
        quantized, indices, loss = vq.train(mode)(torch.randn(0, *shape[1:]))
        assert quantized.shape == (0, *shape[1:])
        assert indices.shape == (0, *indices_shape[1:])
        assert loss == 0
    assert vq.get_output_from_indices(indices).shape == quantized.shape
    assert all(torch.equal(a, b) for a, b in zip(before, vq.state_dict().values()))


def test_indices_without_their_heads_are_refused():
    with pytest.raises(ValueError, match="expected 2 in the last dimension"):
        make(heads=2, codebook_dim=8).get_output_from_indices(torch.zeros(2, 6, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="integers"):
        make().get_output_from_indices(torch.zeros(2, 6))
