"""Stage 2 on a VQCT first stage: taming's own transformer over the joint vocabulary, and ours over positions."""

import math

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("pytorch_lightning", reason="the hosts are LightningModules")
pytest.importorskip("taming", reason="taming-transformers is not installed")

from tests.conftest import assert_close, make_prior
from tests.hosts.toy import dd_config, fit, params
from vqct_plugin.compat.filtering import filter_logits, top_k_top_p_filtering
from vqct_plugin.compat.lightning import for_installed_lightning
from vqct_plugin.stage_2 import transformer as stage_2
from vqct_plugin.stage_2.cache import CachedBlocks
from vqct_plugin.stage_2.layout import get_layout
from vqct_plugin.stage_2.sampling import sample_tokens
from vqct_plugin.stage_2.tokens import Token, interleave, list_tokens, separate
from vqct_plugin.stage_2.transformer import Net2NetTransformer, PartsGPT

HostTransformer = for_installed_lightning(stage_2._cond_transformer.Net2NetTransformer)
LABELATOR = {"target": "taming.modules.util.Labelator", "params": {"n_classes": 5}}


COORDINATES = {"target": "taming.modules.misc.coord.CoordStage", "params": {"n_embed": 8, "down_factor": 2}}


def first_stage(**options):
    options = {**params(), "prior": make_prior(), "dropout": 0.0, **options}
    return {"target": "vqct_plugin.VQModel", "params": options}


def label_stage():
    loss = {"target": "taming.modules.losses.segmentation.BCELossWithQuant"}
    options = {"ddconfig": dd_config(out_ch=5), "n_embed": 40, "embed_dim": 16, "prior": make_prior(), "dropout": 0.0}
    options.update(image_key="segmentation", sane_index_shape=True, n_labels=5, lossconfig=loss)
    return {"target": "vqct_plugin.VQSegmentationModel", "params": options}


def ours(stage=None, cond="__is_unconditional__", block_size=200, gpt=(), **options):
    gpt = {"block_size": block_size, "n_layer": 2, "n_head": 2, "n_embd": 16, **dict(gpt)}
    return Net2NetTransformer({"params": gpt}, stage or first_stage(), cond, **options)


def shortened(model):
    """With a block that is shorter than the model was built for."""
    model.transformer.block_size = 63
    return model


def hosts(stage=None, cond="__is_unconditional__", block_size=200, vocab_size=40, **options):
    gpt = {"vocab_size": vocab_size, "block_size": block_size, "n_layer": 2, "n_head": 2, "n_embd": 16}
    config = {"target": "taming.modules.transformer.mingpt.GPT", "params": gpt}
    return HostTransformer(config, stage or first_stage(), cond, **options)


def batch(number=2):
    generator = torch.Generator().manual_seed(3)
    return {
        "image": torch.rand(number, 16, 16, 3, generator=generator) * 2 - 1,
        "class_label": torch.arange(number) % 5,
        "segmentation": F.one_hot(torch.randint(0, 5, (number, 16, 16), generator=generator), 5).float(),
    }


CONDITIONS = [
    ("__is_unconditional__", {}),
    (LABELATOR, {"cond_stage_key": "class_label"}),
    (label_stage(), {"cond_stage_key": "segmentation"}),
]
STAGES = [{}, {"topk": 2}, {"parts_of_speech": "joint"}]


@pytest.mark.parametrize("stage", STAGES)
def test_tamings_own_transformer_takes_the_joint_vocabulary(stage):
    """Untouched: vocab_size = n_e, all tokens of an image in one sequence, images decode to the reconstruction."""
    model = hosts(first_stage(**stage)).eval()
    x, c = model.get_xc(batch())
    quantized, z = model.encode_to_z(x)
    t = model.first_stage_model.quantize.tokens_per_position
    assert z.shape == (2, t * 64)
    assert_close(model.decode_to_img(z, quantized.shape), model.first_stage_model(x)[0], atol=1e-5)
    logits, target = model(x, c)
    assert logits.shape == (2, t * 64, 40)
    assert torch.equal(target, z)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("cond", "options"), CONDITIONS)
def test_ours_goes_there_and_back(stage, cond, options):
    model = ours(first_stage(**stage), cond, **options).eval()
    x, c = model.get_xc(batch())
    quantized, z = model.encode_to_z(x)
    assert_close(model.decode_to_img(z, quantized.shape), model.first_stage_model(x)[0], atol=1e-5)
    logits, target = model(x, c)
    assert torch.equal(interleave(target), z)
    for its, token, plane in zip(logits, model.tokens, target.unbind(1)):
        assert its.shape == (2, 64, token.last - token.first)
        assert ((plane >= token.first) & (plane < token.last)).all()


@pytest.mark.parametrize(
    ("cond", "options", "number"),
    [
        ("__is_unconditional__", {"sos_token": 6}, 7),
        (LABELATOR, {"cond_stage_key": "class_label"}, 5),
        (label_stage(), {"cond_stage_key": "segmentation"}, 40),
        (COORDINATES, {"cond_stage_key": "coord"}, 9),  # rounds to 0 ... 8
    ],
)
def test_the_transformer_knows_the_conditions_there_are(cond, options, number):
    assert ours(cond=cond, **options).transformer.cond_emb.num_embeddings == number


def test_pkeep_puts_random_codes_of_the_same_part_into_training_alone(monkeypatch):
    model = ours(pkeep=0.0)
    x, c = model.get_xc(batch())
    seen = []
    transformer = model.transformer.forward
    monkeypatch.setattr(model.transformer, "forward", lambda c, *z: [seen.append(z[1]), transformer(c, *z)][1])
    for training in (True, False):
        _, target = model.train(training)(x, c)
        assert target.shape == seen[-1].shape
        for plane, token in zip(seen[-1].unbind(1), model.tokens):
            assert ((plane >= token.first) & (plane < token.last)).all()
    assert torch.equal(seen[1], target)
    assert (seen[0] != target).float().mean() > 0.8


def test_a_code_of_no_probability_is_never_drawn(monkeypatch):
    """Not even for a random number of exactly 0."""
    model = ours().eval()
    monkeypatch.setattr(torch, "rand", lambda *size, **options: torch.zeros(*size, dtype=options.get("dtype")))
    c = torch.zeros(2, 1, dtype=torch.long)
    drawn = sample_tokens(model, c, 4, top_k=1)
    likeliest = sample_tokens(model, c, 4, draw=False)
    assert torch.equal(drawn, likeliest)


@pytest.mark.parametrize("given_previous", [True, False])
def test_a_token_sees_what_is_before_it_and_nothing_else(given_previous):
    model = ours(gpt={"given_previous": given_previous}).eval()
    z = separate(model.encode_to_z(model.get_xc(batch())[0])[1], 2)
    c = torch.zeros(2, 1, dtype=torch.long)

    def logits(z):
        return model.transformer(c, z[:, :, :-1], z)

    before = logits(z)
    for place, slot in ((20, 0), (20, 1)):
        changed = z.clone()
        token = model.tokens[slot]
        changed[:, slot, place] = token.first + (changed[:, slot, place] - token.first + 1) % (token.last - token.first)
        for t, (now, then) in enumerate(zip(logits(changed), before)):
            moved = ((now - then).abs().amax(dim=(0, 2)) > 1e-7).nonzero().squeeze(1).tolist()
            here = [place] if slot == 0 and t == 1 and given_previous else []
            assert moved == here + list(range(place + 1, 64))


def test_a_head_that_sees_the_adjective_learns_a_noun_that_follows_from_it():
    """Adjectives at random, and each noun given by its adjective: 0 nats are left to the one, all to the other."""
    losses = {}
    generator = torch.Generator().manual_seed(0)
    z = torch.randint(0, 4, (8, 1, 16), generator=generator)
    for given_previous in (True, False):
        torch.manual_seed(0)
        tokens = [Token("adjective", 0, 4), Token("noun", 4, 8)]
        gpt = PartsGPT(tokens, 1, 20, 1, 2, 16, given_previous=given_previous)
        optimizer = torch.optim.Adam(gpt.parameters(), lr=1e-2)
        for _ in range(200):
            z = torch.randint(0, 4, (16, 1, 16), generator=generator)
            both = torch.cat([z, 4 + (z + 1) % 4], dim=1)
            logits = gpt(torch.zeros(16, 1, dtype=torch.long), both[:, :, :-1], both)
            nouns = F.cross_entropy(logits[1].transpose(1, 2), both[:, 1] - 4)
            optimizer.zero_grad()
            (nouns + F.cross_entropy(logits[0].transpose(1, 2), both[:, 0])).backward()
            optimizer.step()
        losses[given_previous] = float(nouns.detach())
    assert losses[True] < 0.1
    assert losses[False] > 0.9 * math.log(4)


@pytest.mark.parametrize("make", [ours, hosts])
def test_the_cache_gives_the_logits_of_the_whole_sequence(make):
    model = make().eval()
    x = torch.randn(2, 70, 16)
    for block in model.transformer.blocks:
        torch.nn.init.normal_(block.attn.query.weight, std=0.5)
        torch.nn.init.normal_(block.attn.key.weight, std=0.5)
    whole = model.transformer.blocks(x)
    cache = CachedBlocks(model.transformer.blocks, 2, 70)
    pieces = torch.cat([cache(x[:, :5]), *[cache(x[:, i : i + 1]) for i in range(5, 60)], cache(x[:, 60:])], dim=1)
    assert_close(pieces, whole, atol=1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_likeliest_codes_are_those_of_the_hosts_own_loop(stage):
    """taming's sample() has no cache; with two parts it may take a code of the wrong one, so one part is compared."""
    model = hosts(first_stage(**stage)).eval()
    quantizer = model.first_stage_model.quantize
    c = torch.zeros(2, 1, dtype=torch.long)
    ours_drawn = sample_tokens(model, c, 64, draw=False)
    t = quantizer.tokens_per_position
    if t == 1:
        theirs = model.sample(c[:, :0], c, steps=64, sample=False)
        assert torch.equal(ours_drawn.reshape(2, -1), theirs)
    for plane, token in zip(ours_drawn.unbind(1), list_tokens(quantizer)):
        assert ((plane >= token.first) & (plane < token.last)).all()


def test_ours_draws_the_likeliest_codes_of_its_own_forward():
    model = ours().eval()
    for head in model.transformer.heads:
        torch.nn.init.normal_(head.weight)
    c = torch.zeros(2, 1, dtype=torch.long)
    drawn = sample_tokens(model, c, 64, draw=False)
    logits = model.transformer(c, drawn[:, :, :-1], drawn)
    for token, its, plane in zip(model.tokens, logits, drawn.unbind(1)):
        assert torch.equal(its.argmax(-1) + token.first, plane)


def test_going_on_keeps_what_was_given_and_the_seed_decides_the_rest():
    model = ours().eval()
    _, z = model.encode_to_z(model.get_xc(batch())[0])
    c = torch.zeros(2, 1, dtype=torch.long)
    torch.manual_seed(1)
    first = model.sample(z[:, :64], c, 64, sample=True)
    torch.manual_seed(1)
    assert torch.equal(model.sample(z[:, :64], c, 64, sample=True), first)
    assert torch.equal(first[:, :64], z[:, :64])
    assert not torch.equal(model.sample(z[:, :64], c, 64, sample=True), first)


def test_each_image_has_its_own_random_numbers():
    model = ours().eval()

    def generators(*seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    c = torch.zeros(3, 1, dtype=torch.long)
    together = sample_tokens(model, c, 16, generator=generators(1, 2, 3))
    alone = [sample_tokens(model, c[:1], 16, generator=generators(seed)) for seed in (1, 2, 3)]
    assert torch.equal(together, torch.cat(alone))
    assert not torch.equal(together[0], together[1])


def test_codes_are_drawn_as_often_as_they_are_likely():
    model = ours(first_stage(n_embed={"adjective": 3, "noun": 4}), gpt={"n_embd": 16}).eval()
    for parameter in model.transformer.parameters():
        torch.nn.init.zeros_(parameter)
    torch.nn.init.constant_(model.transformer.ln_f.bias, 1.0)
    model.transformer.heads[0].weight.data[:, 0] = torch.tensor([0.0, 1.0, 2.0])
    drawn = sample_tokens(model, torch.zeros(400, 1, dtype=torch.long), 64, temperature=0.5)
    seen = torch.bincount(drawn[:, 0].reshape(-1), minlength=3).float() / drawn[:, 0].numel()
    assert_close(seen, torch.softmax(torch.tensor([0.0, 2.0, 4.0]), 0), rtol=0, atol=0.01)
    seen = torch.bincount(drawn[:, 1].reshape(-1) - 3, minlength=4).float() / drawn[:, 1].numel()
    assert_close(seen, torch.full((4,), 0.25), rtol=0, atol=0.01)


def test_top_k_and_top_p_keep_the_likeliest():
    logits = torch.log(torch.tensor([[0.5, 0.05, 0.3, 0.15]]))
    kept = [
        torch.isfinite(filter_logits(logits, k, p))[0].tolist()
        for k, p in ((2, None), (None, 0.7), (None, 1.0), (9, 1e-9))
    ]
    assert kept == [[True, False, True, False], [True, False, True, False], [True] * 4, [True, False, False, False]]
    assert torch.equal(filter_logits(logits, None, None), logits)


def test_the_filter_lent_to_taming_is_that_of_transformers():
    """By hand, for a table of logits: top-k first, then the nucleus of what is left."""
    logits = torch.randn(5, 30, generator=torch.Generator().manual_seed(0)) * 3
    found = top_k_top_p_filtering(logits, top_k=10, top_p=0.8)
    for row, kept in zip(logits, found):
        ten = sorted(row.tolist(), reverse=True)[:10]
        total, nucleus, so_far = sum(math.exp(v) for v in ten), [], 0.0
        for value in ten:
            if so_far < 0.8:
                nucleus.append(value)
            so_far += math.exp(value) / total
        assert sorted(kept[torch.isfinite(kept)].tolist(), reverse=True) == pytest.approx(nucleus)
    assert torch.equal(top_k_top_p_filtering(logits, 0, 1.0), logits)


@pytest.mark.parametrize(("cond", "options"), CONDITIONS)
@pytest.mark.parametrize("make", [ours, hosts])
def test_it_trains_and_logs_pictures(make, cond, options):
    if make is hosts:
        cond_stage = cond if cond != LABELATOR else {**LABELATOR}
        if cond == LABELATOR:
            pytest.skip("the host's log_images decodes class labels, which Labelator cannot")
        model = make(cond=cond_stage, block_size=300, pkeep=0.9, **options)
    else:
        model = make(cond=cond, block_size=300, pkeep=0.9, **options)
    items = [{key: value[i] for key, value in batch(4).items()} for i in range(4)]
    before = {name: value.clone() for name, value in model.transformer.named_parameters()}
    frozen = {name: value.clone() for name, value in model.first_stage_model.state_dict().items()}
    fit(model, torch.utils.data.DataLoader(items, batch_size=2), lr=1e-2)
    after = dict(model.transformer.named_parameters())
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    # softmax does not see the keys' biases
    assert moved | {name for name in before if name.endswith("key.bias")} == set(before)
    assert all(torch.equal(value, frozen[name]) for name, value in model.first_stage_model.state_dict().items())
    model.eval()
    pictures = model.log_images(batch(), top_k=10)
    assert {"inputs", "reconstructions", "samples_half", "samples_nopix", "samples_det"} <= set(pictures)
    assert all(picture.shape[1] == 3 for picture in pictures.values())
    if cond == CONDITIONS[2][0]:
        assert "conditioning_rec" in pictures


def test_a_stage_2_overfits_a_few_images_and_draws_them():
    """The chain from pictures to drawn pictures: with four images learned by heart, what is drawn is one of them."""
    torch.manual_seed(0)
    model = ours(gpt={"n_embd": 32, "n_layer": 1})
    items = [{key: value[i] for key, value in batch(2).items()} for i in range(2)] * 4
    loader = torch.utils.data.DataLoader(items, batch_size=8)
    fit(model, loader, lr=1e-2, max_epochs=150)
    model.eval()
    with torch.no_grad():
        loss = float(model.shared_step(next(iter(loader)), 0))
    assert loss < 0.2 * math.log(20)
    _, z = model.encode_to_z(model.get_xc(batch())[0])
    drawn = interleave(sample_tokens(model, torch.zeros(8, 1, dtype=torch.long), 64, top_k=1))
    assert max(float((row == z).float().mean(1).max()) for row in drawn) > 0.9


@pytest.mark.parametrize("permuter", ["Subsample", "ZCurve"])
def test_a_permuter_that_would_drop_tokens_is_refused_and_ours_permutes_positions(permuter):
    config = {"target": f"taming.modules.transformer.permuter.{permuter}", "params": {"H": 8, "W": 8}}
    with pytest.raises(ValueError, match="would leave out all but the first of a position's 2 tokens"):
        get_layout(hosts(permuter_config=config)).check()
    get_layout(hosts(first_stage(parts_of_speech="joint"), permuter_config=config)).check()
    model = ours(permuter_config=config).eval()
    x, _ = model.get_xc(batch())
    quantized, z = model.encode_to_z(x)
    assert not torch.equal(z, ours().eval().encode_to_z(x)[1])
    assert_close(model.decode_to_img(z, quantized.shape), model.first_stage_model(x)[0], atol=1e-5)
    get_layout(model).check()
    small = {**config, "params": {"H": 4, "W": 4}}
    with pytest.raises(ValueError, match="makes 16 positions of 64; its H and W have to be those"):
        ours(permuter_config=small).encode_to_z(x)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: get_layout(hosts(vocab_size=39)).check(), "vocab_size of the transformer is 39; expected 40 or more"),
        (lambda: ours(gpt={"vocab_size": 39}), "vocab_size is 39, and the first stage has 40 codes"),
        (lambda: ours(gpt={"n_head": 3}), "n_embd is 16; expected a multiple of n_head, 3"),
        (lambda: shortened(ours())(*ours().get_xc(batch())), "block_size 63 should be 64 or more"),
        (lambda: ours(block_size=63), "block_size is 63; expected 64 or more: 1 conditioning token"),
        (
            lambda: sample_tokens(shortened(ours()), torch.zeros(1, 1, dtype=torch.long), 64),
            "make a sequence of 64, and the transformer's block_size is 63",
        ),
        (lambda: sample_tokens(ours(), torch.zeros(1, 1), 4, temperature=0), "temperature is 0; expected"),
        (lambda: sample_tokens(ours(), torch.zeros(1, 1), 4, top_k=0), "top_k is 0; expected"),
        (lambda: sample_tokens(ours(), torch.zeros(1, 1), 4, top_p=1.5), "top_p is 1.5; expected"),
    ],
)
def test_bad_input_is_refused(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_a_checkpoint_of_a_stage_2_comes_back_with_its_first_stage(tmp_path):
    torch.manual_seed(1)
    model = ours()
    torch.save({"state_dict": model.state_dict()}, str(tmp_path / "last.ckpt"))
    again = ours(ckpt_path=str(tmp_path / "last.ckpt"))
    state = again.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
