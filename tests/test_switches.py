"""What users of a GPU turn on: torch.compile, gradient checkpointing, averaged weights, lower precision, torch.func.

Everything here runs on a CPU. ``inductor`` compiles for the CPU then; the partitioner that decides what the backward
pass computes again is the same one. tests/gpu does it on a GPU.

This file is long: a section for each switch, which share what compares gradients.
"""

import copy
import pickle
import shutil

import pytest
import torch

from tests.test_quantizer import make

needs_compile = pytest.mark.skipif(not hasattr(torch, "compile"), reason="torch.compile needs torch 2")
needs_func = pytest.mark.skipif(not hasattr(torch, "func"), reason="torch.func came with torch 2")
IN_ONE_PIECE = hasattr(getattr(torch, "library", None), "custom_op")  # before torch 2.4 the quantizer is left as it is
BACKENDS = ["aot_eager_decomp_partition"]
if shutil.which("g++") or shutil.which("clang++"):
    BACKENDS.append("inductor")


def gradients(module):
    return [p.grad.clone() for p in module.parameters()]


def close(ours, theirs, tolerance=1e-5):
    return all((a - b).norm() <= tolerance * b.norm() for a, b in zip(ours, theirs))


# ----------------------------------------------------------------------------------------------------- torch.compile


@needs_compile
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_in_one_piece_gives_the_values_and_gradients_of_eager(backend, training):
    """Above all of W1 and b1, which lie behind the dropout's mask: the backward pass must not draw another."""
    torch._dynamo.reset()
    quantizer = make("two", topk=2).train(training)
    reference = copy.deepcopy(quantizer)
    compiled = torch.compile(quantizer, backend=backend, fullgraph=IN_ONE_PIECE)
    for _ in range(3):
        z = torch.randn(2, 24, 4, 4, requires_grad=True)
        z2 = z.detach().clone().requires_grad_()
        for module, at in ((compiled, z), (reference, z2)):
            z_q, loss, (_, _, indices) = module(at)
            (loss + z_q.pow(2).sum()).backward()
            if module is compiled:
                got = z_q, loss, indices
        assert torch.allclose(got[0], z_q, atol=1e-6)
        assert torch.allclose(got[1], loss, rtol=1e-6)
        assert torch.equal(got[2], indices)
        assert close(gradients(quantizer), gradients(reference))
        assert torch.allclose(z.grad, z2.grad, atol=1e-6)
        quantizer.zero_grad()
        reference.zero_grad()
    assert int(quantizer.transfer.dropout.draws) == (3 if training else 0)


@needs_compile
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("frozen", [True, False])
def test_decoding_and_a_frozen_codebook_compile_in_one_piece(backend, frozen):
    torch._dynamo.reset()
    quantizer = make("two", topk=2).eval()
    if frozen:
        quantizer.freeze_codebook()
    z = torch.randn(2, 24, 4, 4)
    z_q, _, (_, _, indices) = quantizer(z)
    assert torch.allclose(torch.compile(quantizer, backend=backend, fullgraph=IN_ONE_PIECE)(z)[0], z_q, atol=1e-6)
    entry = torch.compile(lambda i, s: quantizer.get_codebook_entry(i, s), backend=backend, fullgraph=IN_ONE_PIECE)
    assert torch.allclose(entry(indices, (2, 4, 4, 24)), z_q, atol=1e-6)
    code = torch.compile(lambda i: quantizer.embed_code(i), backend=backend, fullgraph=IN_ONE_PIECE)
    assert torch.allclose(code(indices.view(2, -1)), z_q, atol=1e-6)


@needs_compile
def test_compiled_codes_of_the_wrong_part_decode_to_nothing_that_looks_right():
    torch._dynamo.reset()
    quantizer = make("two").eval()
    decode = torch.compile(lambda i: quantizer.get_codebook_entry(i, (1, 4, 4, 24)), backend="aot_eager")
    indices = quantizer(torch.randn(1, 24, 4, 4))[2][2]
    assert torch.isfinite(decode(indices)).all()
    if IN_ONE_PIECE:
        indices[3] = 50
        wrong = torch.isnan(decode(indices))
        assert wrong[0, :, 0, 3].all()
        assert wrong.sum() == 24


@needs_compile
def test_a_compiled_frozen_codebook_that_is_stale_gives_nothing_that_looks_right():
    torch._dynamo.reset()
    quantizer = make("two").eval().freeze_codebook()
    compiled = torch.compile(quantizer, backend="aot_eager", fullgraph=IN_ONE_PIECE)
    z = torch.randn(2, 24, 4, 4)
    assert torch.isfinite(compiled(z)[0]).all()
    quantizer.transfer.layer2.weight.data.add_(1)
    if IN_ONE_PIECE:
        assert torch.isnan(compiled(z)[0]).all()
    else:
        with pytest.raises(RuntimeError, match="have changed"):
            compiled(z)


# ------------------------------------------------------------------------------------------- gradient checkpointing


def encoded(quantizer, convolution):
    return lambda x: quantizer(convolution(x))[:2]


def backward_of(*passes):
    sum(power * z_q.pow(2).sum() + loss for power, (z_q, loss) in enumerate(passes, start=1)).backward()


def checkpointed(function, x, reentrant):
    from torch.utils.checkpoint import checkpoint

    old = not hasattr(torch, "compile")  # before 1.11 there is the reentrant way only
    return checkpoint(function, x) if old else checkpoint(function, x, use_reentrant=reentrant)


KEEPS = "_get_current_graph_task_keep_graph"
WAYS = [True, False] if hasattr(torch, "compile") else [True]


@pytest.mark.parametrize("reentrant", WAYS)
@pytest.mark.parametrize("outstanding", [1, 2, 3])
def test_checkpointing_gives_the_gradients_of_no_checkpointing(reentrant, outstanding):
    """Also where several forward passes wait for one backward pass: each is computed again with its own mask."""
    quantizer, convolution = make("two"), torch.nn.Conv2d(3, 24, 1)
    reference = copy.deepcopy(quantizer)
    for _ in range(2):
        xs = [torch.randn(2, 3, 4, 4, requires_grad=True) for _ in range(outstanding)]
        backward_of(*(checkpointed(encoded(quantizer, convolution), x, reentrant) for x in xs))
        backward_of(*(encoded(reference, convolution)(x) for x in xs))
    assert close(gradients(quantizer), gradients(reference), 1e-6)
    assert int(quantizer.transfer.dropout.draws) == int(reference.transfer.dropout.draws) == 2 * outstanding


@pytest.mark.parametrize("reentrant", WAYS)
def test_passes_that_nothing_tells_apart_are_refused(reentrant):
    quantizer, convolution = make("two"), torch.nn.Conv2d(3, 24, 1)
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    passes = [checkpointed(encoded(quantizer, convolution), x, reentrant) for _ in range(2)]
    with pytest.raises(RuntimeError, match="it cannot be told which"):
        backward_of(*passes)


@pytest.mark.parametrize("reentrant", WAYS)
def test_a_forward_pass_between_two_backward_passes_does_not_confuse_them(reentrant):
    """As with a discriminator's step between the generator's."""
    quantizer, convolution = make("two"), torch.nn.Conv2d(3, 24, 1)
    reference = copy.deepcopy(quantizer)
    for _ in range(3):
        x = torch.randn(2, 3, 4, 4, requires_grad=True)
        backward_of(checkpointed(encoded(quantizer, convolution), x, reentrant))
        backward_of(encoded(reference, convolution)(x))
        for module in (quantizer, reference):
            module(convolution(x).detach() * 2)
    assert close(gradients(quantizer), gradients(reference), 1e-6)


ORDERS = ["F0 B0 F1 B1", "F0 F1 B0 F2 B1 F3 B2 B3", "F0 F1 B1 F2 B0 B2", "F0 F1 F2 B1 B2 B0", "F0 F1 B0 B0 B1"]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("reentrant", WAYS)
def test_backward_passes_in_any_order_find_their_masks(order, reentrant):
    """As in a pipeline, where the next forward pass begins before the last backward pass; and one of them twice."""
    twice = order.count("B0") == 2
    if twice and reentrant:
        pytest.skip("the reentrant way cannot go back twice")
    quantizer, convolution = make("two"), torch.nn.Conv2d(3, 24, 1)
    reference = copy.deepcopy(quantizer)
    xs = [torch.randn(2, 3, 4, 4, requires_grad=True) for _ in range(4)]
    for module, run in ((quantizer, checkpointed), (reference, lambda f, x, _: f(x))):
        passes = {}
        for action, i in ((word[0], int(word[1])) for word in order.split()):
            if action == "F":
                passes[i] = run(encoded(module, convolution), xs[i], reentrant)
            else:
                z_q, loss = passes[i]
                (z_q.pow(2).sum() + loss).backward(retain_graph=twice)
    assert close(gradients(quantizer), gradients(reference), 1e-6)


FIXED_MAP = {
    "trained": ("F0 B0 S F1 B1 S F2 B2", False, None),
    "gradients added up": ("F0 B0 F1 B1 F2 B2", False, None),
    "trained, graphs kept": ("F0 B0 S F1 B1 S F2 B2", True, None),
    "back again after another pass": ("F0 B0 F1 B0", True, "cannot be told"),
}


@pytest.mark.parametrize("case", FIXED_MAP)
@pytest.mark.parametrize("reentrant", WAYS)
def test_one_map_in_every_pass_finds_its_masks_or_is_refused(case, reentrant):
    """As a test of overfitting has it. Forward and backward passes, and S, an optimizer's step."""
    order, retain, refusal = FIXED_MAP[case]
    if retain and reentrant:
        pytest.skip("the reentrant way cannot go back twice")
    if case == "gradients added up" and not reentrant and not hasattr(torch._C._autograd, KEEPS):
        pytest.skip("a torch that does not say whether a graph is kept refuses it")
    quantizer = make("two")
    reference = copy.deepcopy(quantizer)
    x = torch.randn(2, 24, 4, 4, requires_grad=True)

    def train(module, run):
        passes = {}
        for action in order.split():
            if action == "S":
                with torch.no_grad():
                    for p in module.parameters():
                        p.sub_(0.1 * p.grad)
            elif action[0] == "F":
                passes[action[1]] = run(lambda x: module(x)[:2], x, reentrant)
            else:
                z_q, loss = passes[action[1]]
                (z_q.pow(2).sum() + loss).backward(retain_graph=retain)

    if refusal:
        with pytest.raises(RuntimeError, match=refusal):
            train(quantizer, checkpointed)
        return
    train(quantizer, checkpointed)
    train(reference, lambda f, x, _: f(x))
    assert close(gradients(quantizer), gradients(reference), 1e-5)


@pytest.mark.parametrize("reentrant", WAYS)
def test_an_input_that_comes_out_otherwise_is_refused_in_the_first_pass_too(reentrant):
    quantizer, calls = make("two"), []

    def noisy(x):
        calls.append(1)
        return quantizer(x * len(calls))[:2]

    x = torch.randn(2, 24, 4, 4, requires_grad=True)
    with pytest.raises(RuntimeError, match="its input came out otherwise"):
        backward_of(checkpointed(noisy, x, reentrant))


@pytest.mark.skipif(not hasattr(torch, "compile"), reason="the reentrant way alone cannot nest so")
@pytest.mark.parametrize("inner", [True, False])
def test_checkpoints_in_checkpoints_find_their_masks(inner):
    quantizer = make("two")
    reference = copy.deepcopy(quantizer)
    x = torch.randn(2, 24, 4, 4, requires_grad=True)
    for _ in range(3):
        outer = checkpointed(lambda x: checkpointed(lambda x: quantizer(x * 2)[:2], x * 3, inner), x, False)
        backward_of(outer)
        backward_of(reference(x * 3 * 2)[:2])
    assert close(gradients(quantizer), gradients(reference), 1e-5)


@needs_compile
def test_checkpointing_inside_a_compiled_part_is_right_and_around_one_is_refused():
    torch._dynamo.reset()
    quantizer = make("two")
    reference = copy.deepcopy(quantizer)
    x = torch.randn(2, 24, 4, 4, requires_grad=True)
    inside = torch.compile(
        lambda x: checkpointed(lambda x: quantizer(x)[:2], x, False), backend="aot_eager_decomp_partition"
    )
    for _ in range(2):
        backward_of(inside(x))
        backward_of(reference(x)[:2])
    assert close(gradients(quantizer), gradients(reference))
    if IN_ONE_PIECE:
        compiled = torch.compile(quantizer, backend="aot_eager_decomp_partition")

        def train():
            for _ in range(2):
                backward_of(checkpointed(lambda x: compiled(x)[:2], x, False))

        with pytest.raises(RuntimeError, match="gradient checkpointing computes"):
            train()


@needs_compile
@pytest.mark.skipif(not IN_ONE_PIECE, reason="before torch 2.4 the quantizer is left as it is")
@pytest.mark.parametrize("again", ["built", "copied", "pickled", "loaded"])
def test_checkpointing_around_a_compiled_quantizer_is_refused_in_the_second_run_of_a_seed_too(again):
    """The first run has drawn the masks of these numbers already; that is another quantizer's, or was before a load."""
    quantizer = make("two")
    start = {key: value.clone() for key, value in quantizer.state_dict().items()}
    for _ in range(5):
        quantizer(torch.randn(2, 24, 4, 4))
    ran_before = quantizer
    if again == "built":
        torch.manual_seed(0)
        quantizer = make("two")
    elif again == "copied":
        quantizer = copy.deepcopy(quantizer)
    elif again == "pickled":
        quantizer = pickle.loads(pickle.dumps(quantizer))
    quantizer.load_state_dict(start)
    torch._dynamo.reset()
    compiled = torch.compile(quantizer, backend="aot_eager_decomp_partition")
    x = torch.randn(2, 24, 4, 4, requires_grad=True)
    with pytest.raises(RuntimeError, match="gradient checkpointing computes"):
        backward_of(checkpointed(lambda x: compiled(x)[:2], x, False))
    assert again == "loaded" or ran_before.transfer.dropout.owner != quantizer.transfer.dropout.owner


# ------------------------------------------------------------------------------------------------- averaged weights


def trained_a_little(quantizer, steps=3):
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        quantizer(torch.randn(2, 24, 4, 4))[1].backward()
        optimizer.step()


@pytest.mark.skipif(not hasattr(torch, "compile"), reason="AveragedModel(use_buffers=True) is newer")
def test_averages_with_buffers_keep_words_and_graph():
    """The average of the weights, over the graph as it is; and its state loads into a quantizer."""
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    quantizer = make("two")
    averaged = AveragedModel(quantizer, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for _ in range(30):
        trained_a_little(quantizer, 1)
        averaged.update_parameters(quantizer)
    by_hand = make("two")
    for ours, average in zip(by_hand.parameters(), averaged.module.parameters()):
        ours.data.copy_(average)
    assert torch.equal(averaged.module.embedding.weight, by_hand.embedding.weight)
    assert not torch.equal(by_hand.embedding.weight, quantizer.embedding.weight)
    state = {key[len("module.") :]: v for key, v in averaged.state_dict().items() if key.startswith("module.")}
    loaded = make("two")
    loaded.load_state_dict(state)
    assert torch.equal(loaded.embedding.weight, by_hand.embedding.weight)


def test_averages_of_whole_state_dicts_do_not_reach_the_prior():
    """timm's loop writes into what ``state_dict()`` gives: that is a copy, and the live model keeps its words."""
    quantizer = make("two")
    average = copy.deepcopy(quantizer)
    for _ in range(3):
        for mean, value in zip(average.state_dict().values(), quantizer.state_dict().values()):
            mean.copy_(0.5 * mean + 0.5 * value)
    for model in (quantizer, average):
        assert torch.equal(make("two").transfer.propagated, model.transfer.propagated)
        make("two").load_state_dict(model.state_dict())
    state = quantizer.state_dict()
    state["prior.vectors"].mul_(0.5)
    assert torch.equal(quantizer.state_dict()["prior.vectors"], make("two").state_dict()["prior.vectors"])
    with pytest.raises(ValueError, match="average only the parameters"):
        make("two").load_state_dict(state)


def test_nothing_is_a_buffer():
    """So that no average, no ``.half()`` and no broadcast of DDP reaches what never changes."""
    for transfer in ("graph", "mlp", "linear", "table"):
        assert list(make("two", transfer=transfer).named_buffers()) == []


def test_lightnings_averaging_keeps_the_codebook(tmp_path):
    pl = pytest.importorskip("pytorch_lightning")
    callbacks = pytest.importorskip("pytorch_lightning.callbacks")
    if not hasattr(callbacks, "EMAWeightAveraging"):
        pytest.skip("EMAWeightAveraging came with Lightning 2.6")

    class Model(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.quantize = make("two")

        def training_step(self, batch, _):
            return self.quantize(batch)[1]

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=1e-2)

    model, data = Model(), torch.utils.data.DataLoader(torch.randn(40, 24, 4, 4), batch_size=2)
    trainer = pl.Trainer(
        max_steps=20,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        accelerator="cpu",
        callbacks=[callbacks.EMAWeightAveraging(decay=0.9)],
        default_root_dir=tmp_path,
        enable_model_summary=False,
    )
    trainer.fit(model, data)
    trainer.save_checkpoint(tmp_path / "averaged.ckpt")
    state = torch.load(tmp_path / "averaged.ckpt", weights_only=False)["state_dict"]
    loaded = Model()
    loaded.load_state_dict(state)  # not refused: prior and graph are whole
    dense = loaded.quantize.transfer.propagated
    assert torch.equal(dense, make("two").transfer.propagated)
    assert torch.isfinite(loaded.quantize.embedding.weight).all()


def test_averages_that_hosts_keep_are_of_the_weights_alone():
    """What LlamaGen's ``update_ema`` and latent-diffusion's ``LitEma`` go through: named parameters. The real ones run
    in tests/hosts/real_hosts.py, where ``VQCT_HOSTS`` names the hosts' checkouts."""
    quantizer = make("two")
    average = copy.deepcopy(quantizer)
    trained_a_little(quantizer)
    with torch.no_grad():
        names = dict(average.named_parameters())
        for name, p in quantizer.named_parameters():
            names[name].mul_(0.9).add_(p, alpha=0.1)
    assert torch.equal(average.transfer.propagated, quantizer.transfer.propagated)
    assert set(names) == {
        "transfer.layer1.weight",
        "transfer.layer1.bias",
        "transfer.layer2.weight",
        "transfer.layer2.bias",
    }


def test_diffusers_averages():
    EMAModel = pytest.importorskip("diffusers.training_utils").EMAModel
    quantizer = make("two").eval()
    ema = EMAModel(quantizer.parameters(), decay=0.9)
    before = quantizer.embedding.weight.detach().clone()
    for _ in range(2):  # its first step takes the weights as they are
        trained_a_little(quantizer.train())
        ema.step(quantizer.parameters())
    ema.store(quantizer.parameters())
    ema.copy_to(quantizer.parameters())
    between = quantizer.embedding.weight.detach().clone()
    ema.restore(quantizer.parameters())
    assert not torch.equal(between, before)
    assert not torch.equal(between, quantizer.embedding.weight)


# ------------------------------------------------------------------------------------------------------- precision


NEWER_SWITCH = hasattr(torch._C, "_get_fp32_precision_getter")  # since torch 2.9


def set_everything_back():
    torch.set_float32_matmul_precision("highest")
    if NEWER_SWITCH:
        torch.backends.fp32_precision = "none"
        torch.backends.cuda.matmul.fp32_precision = "none"
        torch.backends.mkldnn.matmul.fp32_precision = "none"


def read_switches():
    backends = (torch.backends.cuda, torch.backends.mkldnn) if NEWER_SWITCH else ()
    found = [backend.matmul.fp32_precision for backend in backends]
    try:
        return [*found, torch.get_float32_matmul_precision()]
    except RuntimeError:
        return [*found, "cannot be read"]


SWITCHES = {
    "old": lambda: torch.set_float32_matmul_precision("high"),
    "old, medium": lambda: torch.set_float32_matmul_precision("medium"),
    "older": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "new": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "new, for all": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
    "new, of the CPU": lambda: setattr(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),
    "both": lambda: (SWITCHES["old"](), SWITCHES["new, for all"]()),
    "both, against each other": lambda: (
        SWITCHES["old"](),
        setattr(torch.backends.cuda.matmul, "fp32_precision", "ieee"),
    ),
}


@pytest.mark.skipif(not hasattr(torch, "set_float32_matmul_precision"), reason="no such switch in this torch")
@pytest.mark.parametrize("switch", SWITCHES)
def test_a_lower_precision_of_products_changes_no_choice_and_stays_as_it_was(switch):
    if switch.startswith(("new", "both")) and not NEWER_SWITCH:
        pytest.skip("torch's newer switch came with 2.9")
    from vqct_plugin._torch import exact_float32_products

    quantizer = make("two", dropout=0)
    z = torch.randn(2, 24, 4, 4)
    expected = quantizer(z)[2][2]
    set_everything_back()
    try:
        SWITCHES[switch]()
        before = read_switches()
        assert torch.equal(quantizer(z)[2][2], expected)
        with exact_float32_products():
            assert not set(read_switches()) & {"tf32", "bf16", "high", "medium"}
        assert read_switches() == before
    finally:
        set_everything_back()


# -------------------------------------------------------------------------------------------- transforms, no values


@needs_func
def test_torch_func_gives_the_gradients_of_autograd():
    quantizer = make("two").eval()
    z = torch.randn(2, 24, 4, 4)
    leaf = z.clone().requires_grad_()
    quantizer(leaf)[1].backward()
    of_z = torch.func.grad(lambda z: quantizer(z)[1])(z)
    assert torch.allclose(of_z, leaf.grad, atol=1e-6)
    weights = {name: p.detach() for name, p in quantizer.named_parameters()}
    of_weights = torch.func.grad(lambda weights: torch.func.functional_call(quantizer, weights, (z,))[1])(weights)
    for name, p in quantizer.named_parameters():
        assert torch.allclose(of_weights[name], p.grad, atol=1e-5), name


@needs_func
def test_what_torch_func_cannot_do_is_refused_in_a_sentence():
    quantizer = make("two")
    z = torch.randn(2, 24, 4, 4)
    with pytest.raises(RuntimeError, match="in evaluation mode, or build it with dropout=0"):
        torch.func.grad(lambda z: quantizer(z)[1])(z)
    with pytest.raises(ValueError, match="call the quantizer without vmap"):
        torch.vmap(lambda z: quantizer(z[None])[0])(z)


@needs_func
def test_codes_of_the_wrong_part_decode_under_vmap_to_nothing_that_looks_right():
    quantizer = make("two").eval()
    indices = quantizer(torch.randn(3, 24, 4, 4))[2][2].view(3, -1)
    indices[1, 3] = 50
    decoded = torch.vmap(lambda i: quantizer.get_codebook_entry(i, (1, 4, 4, 24)))(indices)
    expected = [quantizer.get_codebook_entry(indices[i], (1, 4, 4, 24)) for i in (0, 2)]
    assert torch.allclose(decoded[::2], torch.stack(expected), atol=1e-6)
    wrong = torch.isnan(decoded)
    assert wrong[1, 0, :, 0, 3].all()
    assert wrong.sum() == 24


@pytest.mark.skipif(not hasattr(torch, "compile"), reason="an older torch.jit.script does not ask")
def test_scripting_is_refused_in_a_sentence():
    for module in (make("two"), torch.nn.Sequential(make("two"))):
        with pytest.raises(RuntimeError, match=r"torch\.jit\.script cannot compile this quantizer; use torch\.compile"):
            torch.jit.script(module)


@needs_compile
def test_the_meta_device_gives_shapes_and_no_word_is_lost_there():
    quantizer = make("two", topk=2).eval()
    expected = quantizer.embedding.weight.detach().clone()
    state = copy.deepcopy(quantizer.state_dict())
    z_q, loss, (_, _, indices) = copy.deepcopy(quantizer).to("meta")(torch.empty(2, 24, 4, 4, device="meta"))
    assert (z_q.shape, loss.shape, indices.shape) == ((2, 24, 4, 4), (), (96,))
    assert z_q.device.type == "meta"
    if hasattr(quantizer, "to_empty"):
        back = copy.deepcopy(quantizer).to("meta").to_empty(device="cpu")
        back.load_state_dict(state)
        assert torch.equal(back.embedding.weight, expected)


@pytest.mark.skipif(not hasattr(torch.nn.Module, "to_empty"), reason="to_empty came with torch 1.8")
@needs_compile
def test_a_frozen_codebook_goes_to_the_meta_device_and_back():
    quantizer = make("two").eval().freeze_codebook()
    z = torch.randn(2, 24, 4, 4)
    expected, state = quantizer(z)[0], copy.deepcopy(quantizer.state_dict())
    quantizer.to("meta")
    for _ in range(2):
        assert quantizer(z.to("meta"))[0].shape == expected.shape
    quantizer.to("meta").to_empty(device="cpu")
    with torch.no_grad():
        for p in quantizer.parameters():
            p.fill_(1.0)  # what lay in the memory that to_empty took
    with pytest.raises(RuntimeError, match="have changed"):
        quantizer(z)
    quantizer.load_state_dict(state)
    assert torch.equal(quantizer(z)[0], expected)


@needs_compile
def test_fake_tensors_give_shapes():
    from torch._subclasses.fake_tensor import FakeTensorMode

    quantizer = make("two", topk=2)
    with FakeTensorMode(allow_non_fake_inputs=True):
        z_q, _, (_, _, indices) = quantizer.eval()(torch.empty(2, 24, 4, 4))
    assert (z_q.shape, indices.shape) == ((2, 24, 4, 4), (96,))


@pytest.mark.skipif(not hasattr(torch, "autocast"), reason="autocast on the CPU needs torch 1.10")
def test_autocast_does_not_touch_a_learned_table():
    table = make("joint", transfer="table")
    z = torch.randn(2, 24, 4, 4)
    expected = table(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = table(z)
    assert torch.equal(got[2][2], expected[2][2])
    assert torch.equal(got[1], expected[1])
