"""The drop-in quantizer: its formula, its inverse, its layouts, and its refusals."""

import copy
import pickle

import numpy as np
import pytest
import torch

from tests.conftest import make_prior
from vqct_plugin import CodebookTransferQuantizer, Quantizer
from vqct_plugin.prior import CodebookPrior, PriorError

SLICES = {"joint": 1, "one": 1, "two": 2, "three": 3}


def make(parts="two", e_dim=24, n_e=60, seed=0, **options):
    """A small quantizer of the paper's kind with that many slices: ``joint``, ``one``, ``two`` or ``three``."""
    sizes = {"joint": (30, 50), "one": (30, 50), "two": (30, 50), "three": (20, 30, 25)}[parts]
    prior = make_prior(sizes, seed=seed)
    chosen = {"joint": "joint", "one": ("noun",), "two": prior.parts, "three": prior.parts}[parts]
    n_e = min(n_e, 50) if parts == "one" else n_e
    options = {"transfer": "graph", "combine": "concat", **options}
    return CodebookTransferQuantizer(n_e, e_dim, prior=prior, parts_of_speech=chosen, **options)


def dense_reference(quantizer, z, legacy):
    """The whole forward from its definition, in float64: every distance, no shared code with the quantizer."""
    codes = quantizer.embedding.weight.detach().double().numpy()
    z = z.detach().double().numpy()
    b, c = z.shape[:2]
    dim = c // len(quantizer.slices)
    z_q, loss, tokens, channel, code = np.empty_like(z), 0.0, [], 0, 0
    for size, k in [(s.last - s.first, s.topk) for s in quantizer.slices]:
        own = codes[code : code + size]
        vectors = z[:, channel : channel + dim].transpose(0, 2, 3, 1)
        distance = ((vectors[..., None, :] - own) ** 2).sum(-1)
        order = np.argsort(distance, axis=-1, kind="stable")[..., :k]
        q = own[order].mean(-2)
        error = ((q - vectors) ** 2).mean()
        commitment_weight, codebook_weight = (1, quantizer.beta) if legacy else (quantizer.beta, 1)
        loss += (commitment_weight + codebook_weight) * error
        z_q[:, channel : channel + dim] = q.transpose(0, 3, 1, 2)
        tokens += [order[..., i] + code for i in range(k)]
        channel, code = channel + dim, code + size
    return z_q, loss, np.stack(tokens, axis=1).reshape(b, -1)


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("topk", [1, 2, 4])
@pytest.mark.parametrize("parts", SLICES)
def test_the_forward_is_its_definition(parts, topk, legacy):
    quantizer = make(parts, topk=topk, legacy=legacy, beta=0.4, dropout=0)
    z = torch.randn(3, 24, 5, 4, requires_grad=True)
    z_q, loss, (perplexity, encodings, indices) = quantizer(z)
    expected_z_q, expected_loss, expected_tokens = dense_reference(quantizer, z, legacy)
    assert (perplexity, encodings) == (None, None)
    assert torch.allclose(z_q.double(), torch.from_numpy(expected_z_q), atol=1e-6)
    assert loss.item() == pytest.approx(expected_loss, rel=1e-5)
    assert torch.equal(indices.view(3, -1), torch.from_numpy(expected_tokens))


@pytest.mark.parametrize("legacy", [True, False])
def test_the_gradients_are_those_of_the_definition(legacy):
    """Straight through to z plus the commitment, and to the codes the other term: written out."""
    quantizer = make("two", topk=2, legacy=legacy, dropout=0)
    z = torch.randn(2, 24, 3, 3, requires_grad=True)
    direction = torch.randn(2, 24, 3, 3)
    z_q, loss, _ = quantizer(z)
    (loss + (z_q * direction).sum()).backward()
    commitment_weight = 1 if legacy else 0.25
    per_slice = z[0, :12].numel() * 2
    expected = direction + commitment_weight * 2 * (z - z_q).detach() / per_slice
    assert torch.allclose(z.grad, expected, atol=1e-6)

    from_loss = {name: p.grad.clone() for name, p in quantizer.named_parameters()}
    quantizer.zero_grad()
    codes = quantizer.transfer()
    indices = quantizer(z)[2][2].view(2, 3, 9)
    vectors = z.detach().reshape(2, 24, 9)
    adjectives = (codes[indices[:, 0]] + codes[indices[:, 1]]) / 2
    terms = (
        (adjectives.permute(0, 2, 1) - vectors[:, :12]) ** 2,
        (codes[indices[:, 2]].permute(0, 2, 1) - vectors[:, 12:]) ** 2,
    )
    ((0.25 if legacy else 1) * sum(term.mean() for term in terms)).backward()
    for name, p in quantizer.named_parameters():
        assert torch.allclose(p.grad, from_loss[name], atol=1e-5), name


@pytest.mark.parametrize("sane", [False, True])
@pytest.mark.parametrize("topk", [1, 2, 3, 4])
@pytest.mark.parametrize("parts", SLICES)
def test_indices_decode_to_exactly_what_forward_gave(parts, topk, sane):
    """The inverse, in each call form of the hosts: bit for bit."""
    quantizer = make(parts, topk=topk, sane_index_shape=sane).eval()
    z = torch.randn(2, 24, 4, 4)
    z_q, _, (_, _, indices) = quantizer(z)
    t = quantizer.tokens_per_position
    assert t == topk + SLICES[parts] - 1
    assert indices.shape == (((2, 4, 4) if t == 1 else (2, t, 4, 4)) if sane else (2 * t * 16,))
    shape = (2, 4, 4, 24)
    channels_last = z_q.permute(0, 2, 3, 1)
    sequence = indices.reshape(2, -1)
    for form in (
        quantizer.get_codebook_entry(indices.reshape(-1), shape=shape),  # taming: decode_to_img
        quantizer.get_codebook_entry(indices, torch.Size(shape)),
        quantizer.get_codebook_entry(sequence, shape=list(shape)),  # IBQ: (B, L)
        quantizer.get_codebook_entry(sequence, (2, 24, 4, 4), True),  # LlamaGen: channel_first
        quantizer.embed_code(sequence),
        quantizer.embed_code(indices.reshape((2, 4, 4) if t == 1 else (2, t, 4, 4))),  # decode_code
    ):
        assert torch.equal(form, z_q)
        assert form.is_contiguous()
    # latent-diffusion: no shape, then 'b h w c -> b c h w'
    spelled_out = indices.reshape((2, 4, 4) if t == 1 else (2, t, 4, 4))
    assert torch.equal(quantizer.get_codebook_entry(spelled_out, shape=None), channels_last)
    if t == 1:
        assert torch.equal(quantizer.get_codebook_entry(indices.reshape(-1), None), channels_last.reshape(-1, 24))
    else:
        assert torch.equal(quantizer.get_codebook_entry(sequence), channels_last.reshape(2, 16, 24))


def test_one_image_alone_decodes_as_in_its_batch():
    quantizer = make("two", topk=2).eval()
    z_q, _, (_, _, indices) = quantizer(torch.randn(3, 24, 4, 4))
    sequences = indices.view(3, -1)
    assert torch.equal(quantizer.get_codebook_entry(sequences[1:2], (1, 4, 4, 24)), z_q[1:2])
    assert quantizer.get_codebook_entry(sequences[1:2].reshape(1, 3, 4, 4)).shape == (1, 4, 4, 24)


def test_what_hosts_rely_on():
    quantizer = make("two", topk=1)
    z_q, loss, (_, _, indices) = quantizer(torch.randn(2, 24, 3, 5).to(memory_format=torch.channels_last))
    assert z_q.shape == (2, 24, 3, 5)
    assert z_q.is_contiguous()
    assert loss.shape == ()
    assert indices.dtype == torch.int64
    assert indices.is_contiguous()
    adjectives, nouns = indices.view(2, 2, 15).unbind(1)  # per image all adjectives, then all nouns
    first_noun = quantizer.slices[0].last
    assert adjectives.max() < first_noun <= nouns.min()
    assert nouns.max() < quantizer.n_e == 60
    indices.zero_()  # a host writes into it
    assert (quantizer.e_dim, quantizer.re_embed, quantizer.remap) == (24, 60, None)
    assert quantizer.embedding.weight.shape == (60, 12)
    assert len(quantizer.words) == len(quantizer.part_of_speech) == 60
    assert Quantizer is CodebookTransferQuantizer


SMALL_INTEGERS = [torch.uint8, torch.int16, torch.int32] + [
    getattr(torch, name) for name in ("uint16",) if hasattr(torch, name)
]


@pytest.mark.parametrize("dtype", SMALL_INTEGERS)
def test_tokens_stored_in_few_bytes_decode_too(dtype):
    quantizer = make("two").eval()
    z_q, _, (_, _, indices) = quantizer(torch.randn(2, 24, 4, 4))
    stored = torch.from_numpy(indices.numpy().astype(str(dtype).replace("torch.", "")))
    assert stored.dtype == dtype
    assert torch.equal(quantizer.get_codebook_entry(stored, (2, 4, 4, 24)), z_q)
    assert torch.equal(quantizer.embedding(stored), quantizer.embedding.weight[indices])


@pytest.mark.parametrize("sane", [False, True])
@pytest.mark.parametrize("spatial", [(7,), (3, 5), (2, 3, 4)])
@pytest.mark.parametrize("topk", [1, 2])
def test_maps_of_one_two_and_three_dimensions_and_sequences(topk, spatial, sane):
    """Audio, images, video; and with the channels last, (B, L, C): the same numbers as one long map."""
    options = {"topk": topk, "sane_index_shape": sane, "dropout": 0}
    quantizer, last = make("two", **options), make("two", channels_last=True, **options)
    last.load_state_dict({k: v for k, v in quantizer.state_dict().items() if k != "settings"}, strict=False)
    z = torch.randn(2, 24, *spatial)
    z_q, loss, (_, _, indices) = quantizer(z)
    flat_q, flat_loss, (_, _, flat_indices) = quantizer(z.reshape(2, 24, -1, 1))
    assert z_q.shape == z.shape
    assert torch.equal(z_q, flat_q.view(z.shape))
    assert torch.allclose(loss, flat_loss)
    assert torch.equal(indices.reshape(-1), flat_indices.reshape(-1))
    t = topk + 1
    assert indices.shape == ((2, t, *spatial) if sane else (2 * t * z[0, 0].numel(),))
    assert torch.equal(quantizer.get_codebook_entry(indices.reshape(-1), (2, *spatial, 24)), z_q)
    assert torch.equal(quantizer.get_codebook_entry(indices.reshape(-1), (2, 24, *spatial), channel_first=True), z_q)

    sequence_q, sequence_loss, (_, _, sequence_indices) = last(z.movedim(1, -1))
    assert torch.equal(sequence_q, z_q.movedim(1, -1))
    assert sequence_q.is_contiguous()
    assert torch.allclose(sequence_loss, loss)
    assert torch.equal(sequence_indices, indices)
    assert torch.equal(last.get_codebook_entry(indices.reshape(-1), (2, *spatial, 24)), sequence_q)


@pytest.mark.parametrize("topk", [1, 2])
def test_codes_on_the_sphere_are_the_nearest_by_cosine(topk):
    quantizer = make("two", topk=topk, l2_normalize=True).eval()
    table = quantizer.embedding.weight
    assert torch.allclose(table.norm(dim=1), torch.ones(60))
    z = torch.randn(2, 24, 4, 4, requires_grad=True)
    z_q, loss, (_, _, indices) = quantizer(z)
    nouns = z[:, 12:].permute(0, 2, 3, 1).reshape(-1, 12)
    cosine = torch.nn.functional.cosine_similarity(nouns[:, None], table[None, quantizer.slices[1].first :], dim=-1)
    assert torch.equal(indices.view(2, topk + 1, 16)[:, -1].reshape(-1), cosine.argmax(1) + quantizer.slices[1].first)
    assert torch.equal(quantizer.get_codebook_entry(indices, (2, 4, 4, 24)), z_q)
    assert torch.allclose(quantizer(3 * z)[0], z_q)  # lengths do not matter
    loss.backward()
    along = (z.grad * z).reshape(2, 2, 12, 16).sum(2)  # and have no gradient
    assert torch.allclose(along, torch.zeros_like(along), atol=1e-6)


def test_words_name_the_codes():
    prior = make_prior()
    quantizer = CodebookTransferQuantizer({"adjective": 7, "noun": 4}, 24, prior=prior)
    adjectives = [prior.words[i] for i in range(7)]
    nouns = [prior.words[30 + i] for i in range(4)]
    assert quantizer.words == adjectives + nouns
    assert quantizer.part_of_speech.tolist() == [0] * 7 + [1] * 4


def test_export_is_the_table_of_plain_quantizers():
    quantizer = make("two").eval()
    z = torch.randn(2, 24, 4, 4)
    z_q = quantizer(z)[0]
    for half, part in enumerate(quantizer.parts):
        table = quantizer.export_codebook(part)["embedding.weight"]
        vectors = z[:, 12 * half : 12 * half + 12].permute(0, 2, 3, 1).reshape(-1, 12)
        chosen = table[torch.cdist(vectors, table).argmin(1)].reshape(2, 4, 4, 12).permute(0, 3, 1, 2)
        assert torch.equal(chosen, z_q[:, 12 * half : 12 * half + 12])
    assert torch.equal(quantizer.export_codebook()["embedding.weight"], quantizer.embedding.weight)
    with pytest.raises(ValueError, match="unknown part of speech 'verb'"):
        quantizer.export_codebook("verb")


def test_training_drops_out_and_evaluation_does_not():
    quantizer = make("two")
    z = torch.randn(2, 24, 4, 4)
    assert not torch.equal(quantizer(z)[0], quantizer(z)[0])
    tokens = torch.tensor([0, quantizer.slices[1].first]).repeat_interleave(16).repeat(2)
    entry = quantizer.get_codebook_entry(tokens, (2, 4, 4, 24))
    quantizer.eval()
    assert torch.equal(quantizer(z)[0], quantizer(z)[0])
    assert torch.equal(quantizer.get_codebook_entry(tokens, (2, 4, 4, 24)), entry)


@pytest.mark.parametrize("transfer", ["graph", "mlp", "linear", "table"])
def test_a_few_steps_bring_the_codes_to_the_vectors(transfer):
    """Every parameter of every transfer has a gradient and learns."""
    quantizer = make("two", transfer=transfer)
    z = torch.randn(4, 24, 4, 4)
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = quantizer(z)[1]
        loss.backward()
        assert all(p.grad is not None for p in quantizer.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


@pytest.mark.parametrize("make_copy", [copy.deepcopy, lambda q: pickle.loads(pickle.dumps(q))])
@pytest.mark.parametrize("frozen", [False, True])
def test_copies_agree(make_copy, frozen):
    quantizer = make("two", topk=2).eval()
    z = torch.randn(2, 24, 4, 4)
    if frozen:
        quantizer.freeze_codebook()
    other = make_copy(quantizer)
    assert torch.equal(other(z)[0], quantizer(z)[0])
    assert other.words == quantizer.words


def test_state_dict_there_and_back_over_the_same_prior():
    first, second = make("two"), make("two")
    first.train()(torch.randn(2, 24, 4, 4))
    second.load_state_dict(first.state_dict())
    z = torch.randn(2, 24, 4, 4)
    for a, b in zip(first(z), second(z)):  # the dropout too goes on where it was
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else torch.equal(a[2], b[2])


@pytest.mark.parametrize("strict", [True, False])
def test_a_checkpoint_over_another_prior_is_refused_with_both_named(strict):
    first, second = make("two", seed=1), make("two", seed=2)
    before = copy.deepcopy(second.state_dict())
    with pytest.raises(PriorError, match=r"made up from seed 1.*made up from seed 2"):
        second.load_state_dict(first.state_dict(), strict=strict)
    assert all(torch.equal(before[key], value) for key, value in second.state_dict().items())


def test_a_frozen_codebook_gives_the_same_and_is_never_stale():
    quantizer = make("two", topk=2).eval()
    z = torch.randn(2, 24, 4, 4)
    expected = quantizer(z)
    quantizer.freeze_codebook()
    got = quantizer(z)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])
    quantizer.transfer.layer2.weight.data.copy_(torch.randn(12, 12))  # as an exponential average is swapped in
    with pytest.raises(RuntimeError, match="freeze_codebook\\(\\) again, or unfreeze_codebook"):
        quantizer(z)
    changed = quantizer.unfreeze_codebook()(z)[0]
    assert not torch.equal(changed, expected[0])
    assert torch.equal(quantizer.freeze_codebook()(z)[0], changed)
    with pytest.raises(RuntimeError, match="before training"):
        quantizer.train()(z)


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double"])
def test_a_frozen_codebook_that_is_cast_stays_as_it_was(cast):
    quantizer = make("two").eval().freeze_codebook()
    codes = quantizer.embedding.weight.clone()
    getattr(quantizer, cast)()
    assert torch.equal(quantizer.embedding.weight, codes)
    quantizer.transfer.layer2.bias.data.add_(1)
    with pytest.raises(RuntimeError, match="have changed"):
        _ = quantizer.embedding


def test_a_codebook_that_was_stale_before_it_was_cast_is_still_refused():
    quantizer = make("two").eval().freeze_codebook()
    quantizer.transfer.layer2.bias.data.add_(1)
    with pytest.raises(RuntimeError, match="have changed"):
        _ = quantizer.half().embedding


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_input_is_quantized_as_the_float32_it_stands_for(dtype):
    quantizer = make("two", topk=2, dropout=0)
    z = torch.randn(2, 24, 4, 4).to(dtype)
    z_q, loss, (_, _, indices) = quantizer(z)
    exact = quantizer(z.float())
    assert z_q.dtype == dtype
    assert loss.dtype == torch.float32
    assert torch.equal(z_q, exact[0].to(dtype))
    assert torch.equal(loss, exact[1])
    assert torch.equal(indices, exact[2][2])


@pytest.mark.skipif(not hasattr(torch, "autocast"), reason="autocast on the CPU needs torch 1.10")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_does_not_touch_the_codebook(dtype):
    quantizer = make("two", topk=2, dropout=0)
    conv = torch.nn.Conv2d(3, 24, 1)
    x = torch.randn(2, 3, 4, 4)
    with torch.autocast("cpu", dtype=dtype):
        z = conv(x)
        got = quantizer(z)
        table = quantizer.embedding.weight
        entry = quantizer.get_codebook_entry(got[2][2], (2, 4, 4, 24))
    assert z.dtype == dtype
    assert table.dtype == torch.float32
    expected = quantizer(z.float())
    assert torch.equal(got[2][2], expected[2][2])
    assert torch.equal(table, quantizer.embedding.weight)
    assert torch.equal(got[1], expected[1])
    assert torch.equal(entry, expected[0])
    got[1].backward()
    assert all(torch.isfinite(p.grad).all() for p in quantizer.parameters())


def test_a_module_cast_to_half_or_double_still_works():
    quantizer = make("two", dropout=0).eval()
    z = torch.randn(2, 24, 4, 4)
    expected = quantizer(z)
    double = copy.deepcopy(quantizer).double()(z.double())
    assert double[0].dtype == double[1].dtype == torch.float64
    assert torch.allclose(double[0].float(), expected[0], atol=1e-5)
    half = quantizer.half()(z.half())
    assert (half[0].dtype, half[1].dtype) == (torch.float16, torch.float32)
    assert half[1].item() == pytest.approx(expected[1].item(), rel=1e-2)


BAD_INPUTS = [
    (torch.randn(2, 23, 4, 4), "has shape \\(2, 23, 4, 4\\); expected \\(B, 24, H, W\\)"),
    (torch.randn(24, 16), "expected \\(B, 24, H, W\\), with one to three spatial dimensions"),
    (torch.zeros(2, 24, 4, 4, dtype=torch.int64), "dtype torch.int64; expected floating point"),
    (torch.randn(0, 24, 4, 4), "holds no vector"),
    (torch.full((2, 24, 4, 4), float("nan")), "NaN or infinite"),
    (torch.randn(2, 24, 4, 4).index_fill(2, torch.tensor([1]), float("inf")), "NaN or infinite"),
]


@pytest.mark.parametrize(("z", "sentence"), BAD_INPUTS)
def test_refuses_input_that_is_no_map(z, sentence):
    with pytest.raises(ValueError, match=sentence):
        make("two")(z)


def test_finite_values_whose_sum_overflows_are_welcome():
    make("two")(torch.full((2, 24, 4, 4), 1e38))


REFUSALS = [
    ({"n_e": 81}, "prior has only 80 words of adjective, noun.*n_embed: 80"),
    ({"n_e": 1}, "expected an integer from 2"),
    ({"n_e": {"adjective": 31, "noun": 4}}, "asks for 31 of part 'adjective'; this prior has 1 to 30"),
    ({"n_e": {"adjective": 3}}, "expected a number for each of"),
    ({"e_dim": 25}, "e_dim is 25; expected a positive multiple of 2"),
    ({"e_dim": 24.0}, "e_dim is 24.0"),
    ({"parts_of_speech": ("adjective", "verb")}, "unknown part of speech 'verb'"),
    ({"parts_of_speech": ("noun", "noun")}, "each part is named once"),
    ({"parts_of_speech": None}, "parts_of_speech is None; expected names of parts"),
    ({"parts_of_speech": 2}, "parts_of_speech is 2; expected names of parts"),
    ({"parts_of_speech": ["noun", 1]}, r"parts_of_speech is \['noun', 1\]; expected names of parts"),
    ({"parts_of_speech": ()}, r"parts_of_speech is \(\); expected names of parts"),
    ({"transfer": "gnn"}, "unknown transfer 'gnn'; expected one of graph, mlp, linear, table"),
    ({"topk": 0}, "topk is 0 for adjective"),
    ({"topk": {"verb": 2}}, "topk names verb"),
    ({"topk": {"noun": 99}}, "topk is 99 for noun"),
    ({"dropout": 1.5}, "dropout is 1.5"),
    ({"edge_weight": "sum"}, "expected one of count, binary, log"),
    ({"beta": "0.25"}, "beta is '0.25'; expected a number of 0 or more"),
    ({"beta": -1}, "beta is -1"),
    ({"legacy": "False"}, "legacy is 'False'; expected true or false"),
    ({"sane_index_shape": 1}, "sane_index_shape is 1; expected true or false"),
    ({"prior": None}, "the prior is None; expected a path, or 'default'"),
    ({"prior": "nowhere.safetensors"}, "nowhere.safetensors does not exist"),
]


@pytest.mark.parametrize(("options", "sentence"), REFUSALS)
def test_refuses_settings_that_make_no_codebook(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        CodebookTransferQuantizer(**{"n_e": 60, "e_dim": 24, "prior": make_prior(), "transfer": "graph", **options})


def test_refuses_indices_that_name_no_code():
    quantizer = make("two")
    with pytest.raises(ValueError, match="run from 0 to 60; expected 0 to 59"):
        quantizer.get_codebook_entry(torch.tensor([0, 60] * 16), (1, 4, 4, 24))
    with pytest.raises(ValueError, match="expected integers"):
        quantizer.get_codebook_entry(torch.rand(32), (1, 4, 4, 24))
    with pytest.raises(ValueError, match="31 indices for shape"):
        quantizer.get_codebook_entry(torch.zeros(31, dtype=torch.int64), (1, 4, 4, 24))
    with pytest.raises(ValueError, match="do not say which 2 tokens make a position"):
        quantizer.get_codebook_entry(torch.zeros(32, dtype=torch.int64))
    with pytest.raises(
        ValueError, match=r"token 1 of 2 of a position is code 45 \('noun.*'\); expected one of 0 to 22"
    ):
        quantizer.get_codebook_entry(torch.full((32,), 45), (1, 4, 4, 24))
    with pytest.raises(ValueError, match=r"token 2 of 2 .* is code 3 .* expected one of 23 to 59"):
        quantizer.embed_code(torch.full((1, 2, 4, 4), 3))
    with pytest.raises(ValueError, match="not a square of positions"):
        quantizer.embed_code(torch.zeros(1, 30, dtype=torch.int64))


def test_refuses_gumbel_arguments():
    with pytest.raises(ValueError, match="Gumbel"):
        make("two")(torch.randn(1, 24, 2, 2), return_logits=True)
    make("two")(torch.randn(1, 24, 2, 2), temp=1.0, rescale_logits=False, return_logits=False)


def test_a_prior_from_a_file_is_the_prior(tmp_path):
    prior = make_prior()
    prior.save(tmp_path / "p.safetensors")
    by_path = CodebookTransferQuantizer(60, 24, prior=str(tmp_path / "p.safetensors"))
    by_value = CodebookTransferQuantizer(60, 24, prior=CodebookPrior.load(tmp_path / "p.safetensors"))
    assert by_path.words == by_value.words
