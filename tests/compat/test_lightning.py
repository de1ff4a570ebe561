"""Training on the installed Lightning is the training of Lightning 1.0.8."""

import copy
import pickle

import pytest
import torch

pytest.importorskip("pytorch_lightning", reason="the hosts are LightningModules")
pytest.importorskip("taming", reason="taming-transformers is not installed")

from tests.compat.test_taming_imports import ROOT, python
from tests.hosts.toy import BY_HAND, dd_config, fit, images, make_trainer, params, vqct_params
from vqct_plugin.compat.lightning import for_installed_lightning, lightning_version
from vqct_plugin.compat.taming_imports import import_taming
from vqct_plugin.hosts.taming import VQModel

vqgan = import_taming()
Stock = for_installed_lightning(vqgan.VQModel)
by_hand = pytest.mark.skipif(not BY_HAND, reason="Lightning before 1.6 takes several optimizers itself")


class PlainDescent(vqgan.VQModel):
    """The host with SGD: a step is as large as its gradient, where Adam's blows rounding errors up."""

    def configure_optimizers(self):
        generator = [p for name, p in self.named_parameters() if not name.startswith("loss.")]
        return [torch.optim.SGD(group, lr=1.0) for group in (generator, self.loss.discriminator.parameters())], []


def steps(model, split="train"):
    return [(optimizer_idx, step) for name, optimizer_idx, step, _, _ in model.loss.calls if name == split]


def losses(model):
    return torch.tensor([value for split, _, _, _, value in model.loss.calls if split == "train"])


def old_loop(model, batches, accumulate, lr, n):
    """The losses of 1.0.8's loop, written out: for each optimizer a forward pass, a backward pass, a step."""
    generator = [p for name, p in model.named_parameters() if not name.startswith("loss.")]
    optimizers = [
        torch.optim.Adam(group, lr=lr, betas=(0.5, 0.9)) for group in (generator, model.loss.discriminator.parameters())
    ]
    own = [[p for group in optimizer.param_groups for p in group["params"]] for optimizer in optimizers]
    held = [[torch.zeros_like(p) for p in group] for group in own]
    model.train()
    values, step = [], 0
    for i, batch in enumerate(batches):
        x = batch["image"].permute(0, 3, 1, 2)
        stepping = (i + 1) % accumulate == 0 or i + 1 == n
        for index, optimizer in enumerate(optimizers):
            reconstruction, codebook_loss = model(x)
            loss, _ = model.loss(codebook_loss, x, reconstruction, index, step, model.get_last_layer(), split="by hand")
            for total, gradient in zip(held[index], torch.autograd.grad(loss / accumulate, own[index])):
                total += gradient
            if stepping:
                for p, total in zip(own[index], held[index]):
                    p.grad = total.clone()
                    total.zero_()
                optimizer.step()
            values.append(loss.item())
        step += stepping
    return torch.tensor(values)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("cls", ["stock", "vqct"])
def test_losses_are_those_of_the_loop_written_out(cls, accumulate):
    model = (
        Stock(**params(loss={"disc_start": 1}))
        if cls == "stock"
        else VQModel(**vqct_params(transfer="graph", loss={"disc_start": 1}))
    )
    by_torch = copy.deepcopy(model)
    fit(model, images(5), lr=1e-4, accumulate=accumulate)
    expected = old_loop(by_torch, images(5), accumulate, 1e-4, 5)
    assert torch.allclose(losses(model), expected, rtol=1e-5, atol=1e-6)
    assert (expected[1::2] > 0).any()
    assert torch.allclose(model.decoder.conv_out.weight, by_torch.decoder.conv_out.weight, atol=1e-5)


@pytest.mark.parametrize(("accumulate", "seen", "in_all"), [(1, [0, 1, 2, 3, 4], 5), (2, [0, 0, 1, 1, 2], 3)])
def test_a_step_is_a_batch_for_both_optimizers(accumulate, seen, in_all):
    model = VQModel(**vqct_params(loss={"disc_start": 2}))
    trainer = fit(model, images(5), accumulate=accumulate)
    assert steps(model) == [(optimizer_idx, step) for step in seen for optimizer_idx in (0, 1)]
    assert trainer.global_step == in_all
    before_start = [value for _, index, step, _, value in model.loss.calls if index == 1 and step < 2]
    assert before_start == [0.0] * sum(step < 2 for step in seen)
    assert all(value > 0 for _, index, step, _, value in model.loss.calls if index == 1 and step >= 2)


def test_steps_go_on_over_epochs_and_max_steps_counts_batches():
    model = Stock(**params())
    trainer = fit(model, images(3), max_epochs=5, max_steps=7)
    assert steps(model) == [(index, step) for step in range(7) for index in (0, 1)]
    assert trainer.global_step == 7 or not BY_HAND  # 1.0.8 leaves off before it counts the last one


def test_two_accumulated_batches_are_one_of_twice_the_size():
    host = for_installed_lightning(PlainDescent)
    two = host(**params(loss={"disc_start": 100}))
    one = copy.deepcopy(two)
    fit(two, images(4, batch_size=2), accumulate=2)
    fit(one, images(2, batch_size=4))
    for (name, a), b in zip(two.state_dict().items(), one.state_dict().values()):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_clipping_bounds_each_optimizers_gradients(algorithm):
    if algorithm == "value" and not BY_HAND:
        pytest.skip("Lightning 1.0.8 clips by norm only")
    bound = 1e-2 if algorithm == "norm" else 1e-4
    model = for_installed_lightning(PlainDescent)(**params())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    fit(model, images(1), clip=bound, clip_algorithm=algorithm)
    for is_loss in (False, True):
        moved = torch.cat(
            [
                (p.detach() - before[n]).flatten()
                for n, p in model.named_parameters()
                if n.startswith("loss.") == is_loss
            ]
        )
        size = moved.norm() if algorithm == "norm" else moved.abs().max()
        assert size == pytest.approx(bound, rel=1e-3)  # SGD of rate 1: the step is the gradient


def test_validation_logs_what_the_host_logs_twice():
    model = VQModel(**vqct_params())
    trainer = fit(model, images(2), val=images(2, seed=1))
    assert {"val/rec_loss", "val/aeloss", "val/disc_loss"} <= set(trainer.callback_metrics)
    assert steps(model, "val")[:2] == ([(0, 2), (1, 2)] if BY_HAND else [(0, 1), (1, 1)])


def test_the_loss_trains_in_train_mode_also_where_its_constructor_said_eval():
    model = Stock(**params())
    model.loss.eval()  # as LPIPS().eval() in taming's loss
    fit(model, images(2), val=images(1), max_epochs=2)
    assert {training for split, _, _, training, _ in model.loss.calls if split == "train"} == {True}
    assert {training for split, _, _, training, _ in model.loss.calls if split == "val"} == {False}


def test_a_model_with_one_optimizer_keeps_lightnings_own_optimization():
    config = params(image_key="image", n_labels=4)
    config["ddconfig"] = dd_config(out_ch=4)
    config["lossconfig"] = {"target": "taming.modules.losses.segmentation.BCELossWithQuant"}
    model = for_installed_lightning(vqgan.VQSegmentationModel)(**config)
    data = images(3, channels=4)
    before = model.decoder.conv_out.weight.detach().clone()
    for batch in data.dataset:
        batch["image"] = (batch["image"] > 0).float()
    trainer = fit(model, data, val=data, accumulate=2)
    assert "val/total_loss" in trainer.callback_metrics
    assert trainer.global_step == 2
    assert not torch.equal(before, model.decoder.conv_out.weight)


def test_gumbel_vq_trains_and_validates():
    model = for_installed_lightning(vqgan.GumbelVQ)(
        **params(
            embed_dim=32,
            kl_weight=1e-4,
            temperature_scheduler_config={
                "target": "taming.lr_scheduler.LambdaWarmUpCosineScheduler",
                "params": {
                    "warm_up_steps": 0, "max_decay_steps": 100, "lr_start": 0.9, "lr_max": 0.9, "lr_min": 0.1,
                    "verbosity_interval": 0,
                },
            },
        )
    )  # fmt: skip
    trainer = fit(model, images(3), val=images(1))
    assert "val/rec_loss" in trainer.callback_metrics
    assert model.quantize.temperature < 0.9


def test_reuse_forward_saves_the_second_forward_pass_and_changes_nothing_of_the_first():
    plain = Stock(**params(), reuse_forward=False)
    saving = copy.deepcopy(plain)
    saving.reuse_forward = True
    counts = []
    for model in (plain, saving):
        calls = []
        model.encoder.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        fit(model, images(3), val=images(1))
        counts.append(len(calls))
    assert counts == [3 * 2 + 1, 3 + 1]
    assert losses(plain)[0] == losses(saving)[0]
    # the discriminator saw the reconstruction of before the generator's step
    assert losses(plain)[1] != losses(saving)[1]


@by_hand
@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_learning_rate_schedulers_step_as_in_automatic_optimization(interval):
    class Scheduled(vqgan.VQModel):
        def configure_optimizers(self):
            optimizers, _ = super().configure_optimizers()
            halve = torch.optim.lr_scheduler.LambdaLR(optimizers[0], lambda n: 0.5**n)
            return optimizers, [{"scheduler": halve, "interval": interval, "frequency": 1}]

    model = for_installed_lightning(Scheduled)(**params())
    trainer = fit(model, images(5), max_epochs=2, lr=1.0, accumulate=2)
    rates = [optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers]
    assert rates == [0.5 ** (6 if interval == "step" else 2), 1.0]


@by_hand
def test_a_scheduler_that_waits_for_a_metric_is_refused():
    class Plateau(vqgan.VQModel):
        def configure_optimizers(self):
            optimizers, _ = super().configure_optimizers()
            return optimizers, [torch.optim.lr_scheduler.ReduceLROnPlateau(optimizers[0])]

    with pytest.raises(ValueError, match="ReduceLROnPlateau"):
        fit(for_installed_lightning(Plateau)(**params()), images(1))


@by_hand
def test_accumulated_gradients_survive_a_validation_in_between():
    host = for_installed_lightning(PlainDescent)
    model = host(**params())
    without = copy.deepcopy(model)
    fit(model, images(4), val=images(1), accumulate=4, val_check_interval=2)
    fit(without, images(4), accumulate=4)
    assert torch.equal(model.decoder.conv_out.weight, without.decoder.conv_out.weight)


@by_hand
@pytest.mark.skipif(not hasattr(torch.amp, "GradScaler") if hasattr(torch, "amp") else True, reason="a GPU's scaler")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_grad_scaler_changes_nothing_even_when_its_scale_moves(accumulate):
    from pytorch_lightning.plugins import precision

    sixteen = "16-mixed" if lightning_version() >= (2, 0) else 16
    mixed = "MixedPrecision" if hasattr(precision, "MixedPrecision") else "MixedPrecisionPlugin"

    class Scaled(
        getattr(precision, mixed)
    ):  # the scaler of "16-mixed", with float32 left as it is so that results compare
        def autocast_context_manager(self):
            return torch.autocast("cpu", enabled=False)

    host = for_installed_lightning(PlainDescent)
    model = host(**params())
    plain = copy.deepcopy(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1)  # twice the scale after every step
    fit(model, images(4), accumulate=accumulate, clip=0.1, plugins=[Scaled(sixteen, "cpu", scaler)])
    fit(plain, images(4), accumulate=accumulate, clip=0.1)
    assert scaler.get_scale() > 2.0**10
    for (name, a), b in zip(model.state_dict().items(), plain.state_dict().values()):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6), name


@by_hand
@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_take_the_step_of_one_with_twice_the_batch(accumulate, tmp_path):
    for processes in ("one", "two"):
        arguments = ["two_processes.py", processes, accumulate, tmp_path / processes]
        done = python(ROOT / "tests" / "hosts" / arguments[0], *arguments[1:])
        assert done.returncode == 0, done.stdout
    (one_steps, one), (two_steps, two) = torch.load(tmp_path / "one"), torch.load(tmp_path / "two")
    assert one_steps == two_steps == 1
    for name, value in one.items():
        assert torch.allclose(value.float(), two[name].float(), rtol=1e-4, atol=1e-6), name


def test_an_adapted_class_is_returned_as_it_is_and_its_models_pickle():
    assert for_installed_lightning(Stock) is Stock
    assert for_installed_lightning(VQModel) is VQModel
    assert for_installed_lightning(vqgan.VQModel) is Stock
    model = Stock(**params())
    again = pickle.loads(pickle.dumps(model))
    assert type(again) is Stock
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"accumulate_grad_batches": 0}, "expected an integer of 1 or more"),
        ({"gradient_clip_val": -1.0}, "expected a number of 0 or more"),
        ({"gradient_clip_algorithm": "nrom"}, "expected 'norm' or 'value'"),
        ({"reuse_forward": "yes"}, "expected true or false"),
    ],
)
def test_options_that_make_no_sense_are_refused(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        Stock(**params(), **wrong)


def test_options_that_belong_on_the_trainer_are_refused():
    cls = for_installed_lightning(vqgan.VQSegmentationModel) if BY_HAND else Stock
    extra = {"n_labels": 3} if BY_HAND else {}
    with pytest.raises(ValueError, match="arguments of the Trainer"):
        cls(**params(**extra), accumulate_grad_batches=2)


@by_hand
def test_the_trainer_knows_how_many_steps_there_will_be():
    class Asking(vqgan.VQModel):
        def configure_optimizers(self):
            self.expected = self.trainer.estimated_stepping_batches
            return super().configure_optimizers()

    model = for_installed_lightning(Asking)(**params())
    assert fit(model, images(5), accumulate=2).global_step == model.expected == 3


@by_hand
def test_the_trainer_can_be_used_again():
    model = Stock(**params())
    trainer = make_trainer(model, accumulate=2)
    model.learning_rate = 1e-3
    trainer.fit(model, images(2))
    trainer.fit_loop.max_epochs = 2
    trainer.fit(model, images(2))
    assert trainer.global_step == 2
