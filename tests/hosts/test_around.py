"""What goes on around a quantizer: averaged weights, half precision, torch.compile, stock models there and back."""

import copy

import pytest
import torch

pytest.importorskip("pytorch_lightning", reason="the hosts are LightningModules")
pytest.importorskip("taming", reason="taming-transformers is not installed")

from tests.conftest import assert_close, make_prior
from tests.hosts.toy import BY_HAND, fit, images, params, vqct_params
from vqct_plugin.compat.taming_imports import import_taming
from vqct_plugin.hosts.taming import GumbelVQ, VQModel
from vqct_plugin.quantizer import CodebookTransferQuantizer


class Averages(torch.nn.Module):
    """Exponential averages of a module's parameters, swapped in without autograd knowing, as LitEma does it."""

    def __init__(self, model, decay=0.5):
        super().__init__()
        self.decay, self.kept = decay, None
        self.shadow = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    def update(self, model):
        for name, p in model.named_parameters():
            self.shadow[name] = self.decay * self.shadow[name] + (1 - self.decay) * p.detach()

    def swap_in(self, model):
        self.kept = {name: p.detach().clone() for name, p in model.named_parameters()}
        for name, p in model.named_parameters():
            p.data.copy_(self.shadow[name].data)

    def swap_out(self, model):
        for name, p in model.named_parameters():
            p.data.copy_(self.kept[name].data)


def test_averaged_weights_give_their_own_codebook():
    quantizer = CodebookTransferQuantizer(40, 16, prior=make_prior(), transfer="graph").eval()
    averages = Averages(quantizer)
    for p in quantizer.parameters():
        p.data.mul_(3.0)
    averages.update(quantizer)
    trained = quantizer.embedding.weight.detach().clone()
    averages.swap_in(quantizer)
    expected = copy.deepcopy(quantizer).embedding.weight
    assert torch.equal(quantizer.embedding.weight, expected)
    assert not torch.equal(expected, trained)
    averages.swap_out(quantizer)
    assert torch.equal(quantizer.embedding.weight, trained)


def test_weights_swapped_under_a_frozen_codebook_are_refused_never_stale():
    quantizer = CodebookTransferQuantizer(40, 16, prior=make_prior(), transfer="graph").eval().freeze_codebook()
    averages = Averages(quantizer)
    for value in averages.shadow.values():
        value.mul_(2.0)
    z = torch.randn(1, 16, 3, 3)
    before = quantizer(z)[0]
    averages.swap_in(quantizer)
    with pytest.raises(RuntimeError, match="call freeze_codebook\\(\\) again, or unfreeze_codebook"):
        quantizer(z)
    averages.swap_out(quantizer)
    assert torch.equal(quantizer(z)[0], before)


@pytest.mark.skipif(not BY_HAND, reason="these precisions are Lightning 2's")
@pytest.mark.parametrize("cls", [VQModel, GumbelVQ])
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision_trains_every_weight_in_float32(cls, precision):
    if precision == "16-mixed" and not torch.cuda.is_available():
        pytest.skip("float16 training scales gradients on a GPU")
    options = vqct_params()
    if cls is GumbelVQ:
        schedule = {"warm_up_steps": 0, "lr_min": 0.5, "lr_max": 1.0, "lr_start": 1.0, "max_decay_steps": 4}
        target = "taming.lr_scheduler.LambdaWarmUpCosineScheduler"
        options["temperature_scheduler_config"] = {"target": target, "params": schedule}
    model = cls(**options)
    before = {name: value.detach().clone() for name, value in model.quantize.named_parameters()}
    fit(model, images(3), precision=precision)
    for name, value in model.quantize.named_parameters():
        assert value.dtype == torch.float32
        assert torch.isfinite(value).all()
        assert not torch.equal(value, before[name]), name


@pytest.mark.skipif(not hasattr(torch, "compile"), reason="torch.compile is of torch 2")
def test_a_compiled_model_agrees():
    model = VQModel(**vqct_params()).eval()
    x = next(iter(images(1)))["image"].permute(0, 3, 1, 2).contiguous()
    compiled = torch.compile(model, backend="aot_eager")
    with torch.no_grad():
        for ours, theirs in zip(model(x), compiled(x)):
            assert_close(theirs, ours, atol=1e-5)


def test_a_stock_vqgan_goes_on_as_vqct(tmp_path):
    """Everything but the codebook is the stock model's; and it trains on from there."""
    stock = import_taming().VQModel(**params())
    torch.save({"state_dict": stock.state_dict()}, str(tmp_path / "stock.ckpt"))
    model = VQModel(**vqct_params(ckpt_path=str(tmp_path / "stock.ckpt")))
    ours = model.state_dict()
    for key, value in stock.state_dict().items():
        assert key.startswith("quantize.") or torch.equal(value, ours[key])
    fit(model, images(2))


@pytest.mark.parametrize(
    "options",
    [{"parts_of_speech": "joint"}, {"parts_of_speech": "joint", "transfer": "mlp"}, {"parts_of_speech": "noun"}],
)
def test_one_codebook_goes_into_a_stock_model_that_reconstructs_the_same(options):
    if options.get("transfer") == "mlp":
        options = {**options, "dropout": 0.5}
    n_embed = 30 if options["parts_of_speech"] == "noun" else 40
    model = VQModel(**vqct_params(n_embed=n_embed, **options)).eval()
    stock = import_taming().VQModel(**params(n_embed=n_embed)).eval()
    state = {key: value for key, value in model.state_dict().items() if not key.startswith("quantize.")}
    state.update({f"quantize.{key}": value for key, value in model.quantize.export_codebook().items()})
    stock.load_state_dict(state)
    x = next(iter(images(1)))["image"].permute(0, 3, 1, 2).contiguous()
    with torch.no_grad():
        assert_close(stock(x)[0], model(x)[0], atol=1e-5)


def test_two_codebooks_are_a_stock_quantizer_for_each_part():
    quantize = pytest.importorskip("taming.modules.vqvae.quantize")
    model = VQModel(**vqct_params(combine="concat")).eval()
    z = model.encoder(next(iter(images(1)))["image"].permute(0, 3, 1, 2).contiguous())
    z = model.quant_conv(z)
    halves = []
    for part, half in zip(("adjective", "noun"), z.chunk(2, dim=1)):
        state = model.quantize.export_codebook(part)
        plain = quantize.VectorQuantizer2(*state["embedding.weight"].shape, beta=0.25)
        plain.load_state_dict(state)
        halves.append(plain(half)[0])
    assert_close(torch.cat(halves, dim=1), model.quantize(z)[0], atol=1e-5)
