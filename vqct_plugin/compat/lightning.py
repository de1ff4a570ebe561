"""taming's LightningModules on the installed Lightning: ``for_installed_lightning``.

The host was written for Lightning 1.0.8. What it meant there is kept:

- *Two optimizers.* Each batch goes through the host's ``training_step`` once for every optimizer, in the host's order,
  each time with a forward pass of its own; only that optimizer's parameters take gradients. Lightning 2 gave this up,
  so from 1.6 on (which counts optimizer steps) it is done here, in Lightning's manual optimization.
- *Steps are batches.* ``global_step``, and so ``max_steps``, ``every_n_train_steps`` and the loss's ``disc_start``,
  counts once for each batch (each group of accumulated batches), after the last optimizer: both optimizers see the
  same number.
- *The loss trains in train mode.* 1.0.8 called ``model.train()`` before fitting and after each validation, so the
  dropout in LPIPS was active in every VQGAN trained with it, although its constructor calls ``eval()``. From 2.2 on
  Lightning leaves modules in the mode they are in; here the model is put in train mode before fitting, as before.
- *A name logged twice.* The host's validation logs ``val/rec_loss`` twice, with different flags, which Lightning
  refuses from 1.4 on. The first call counts.
"""

import math
import re
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Optional, Sequence, Set, Tuple

import torch

from vqct_plugin.compat.checkpoints import load_into
from vqct_plugin.compat.taming_imports import import_taming

ADAPTER_OPTIONS = ("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm", "reuse_forward")


class Adapted:
    """What every adapted class has, on any Lightning.

    Args:
        accumulate_grad_batches: how many batches make one step of the optimizers, see :func:`for_installed_lightning`.
        gradient_clip_val: the bound of the gradients of each optimizer; None for none.
        gradient_clip_algorithm: ``"norm"`` or ``"value"``.
        reuse_forward: the discriminator's pass takes the reconstruction of the first pass.
        All others are the host's.
    """

    host: type
    trainer: Any
    _gives_indices = False  # whether the host's forward takes return_pred_indices, as latent-diffusion's does
    _pass: Optional[int] = None  # the optimizer whose pass is running
    _logged: Optional[Set[str]] = None  # names logged in the step that is running

    def __init__(
        self,
        *args: Any,
        accumulate_grad_batches: int = 1,
        gradient_clip_val: Optional[float] = None,
        gradient_clip_algorithm: str = "norm",
        reuse_forward: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.accumulate_grad_batches = accumulate_grad_batches
        self.gradient_clip_val = gradient_clip_val
        self.gradient_clip_algorithm = gradient_clip_algorithm
        self.reuse_forward = reuse_forward
        self._outputs: List[Any] = []
        self._check_options()

    def init_from_ckpt(self, path: Any, ignore_keys: Any = ()) -> None:
        """Load a checkpoint's weights, leaving out the keys that begin with one of ``ignore_keys``.

        No code in the checkpoint is run, whichever torch or Lightning wrote it.

        Raises:
            CheckpointError: it cannot be read, or does not fit: with the key and both shapes.
        """
        load_into(self, path, ignore_keys)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not self._gives_indices:
            # GumbelVQ's validation asks for indices that no forward of taming's has ever returned
            kwargs.pop("return_pred_indices", None)
        if not self.reuse_forward or self._pass is None:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        if self._pass > 0 and self._outputs:
            return self._outputs.pop(0)
        output = super().forward(*args, **kwargs)  # type: ignore[misc]
        if self._pass == 0:
            self._outputs.append(_detach(output))
        return output

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        with self._log_each_name_once():
            output = super().validation_step(batch, batch_idx)  # type: ignore[misc]
        # VQModel returns its method log_dict, which says nothing and which Lightning should not have to keep
        return None if callable(output) and not isinstance(output, torch.Tensor) else output

    def log(self, name: str, *args: Any, **kwargs: Any) -> None:
        if self._logged is not None and lightning_version() >= (1, 4):
            if name in self._logged:
                return
            self._logged.add(name)
        super().log(name, *args, **kwargs)  # type: ignore[misc]

    def on_fit_start(self) -> None:
        super().on_fit_start()  # type: ignore[misc]
        if lightning_version() >= (2, 2):
            self.train()  # type: ignore[attr-defined]

    def _host_training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> Any:
        if optimizer_idx == 0:
            self._outputs = []
        self._pass = optimizer_idx
        try:
            return super().training_step(batch, batch_idx, optimizer_idx)  # type: ignore[misc]
        finally:
            self._pass = None

    @contextmanager
    def _log_each_name_once(self) -> Iterator[None]:
        self._logged = set()
        try:
            yield
        finally:
            self._logged = None

    def _check_options(self) -> None:
        k, clip = self.accumulate_grad_batches, self.gradient_clip_val
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ValueError(f"accumulate_grad_batches is {k!r}; expected an integer of 1 or more")
        if clip is not None and not (isinstance(clip, (int, float)) and clip >= 0 and math.isfinite(clip)):
            raise ValueError(f"gradient_clip_val is {clip!r}; expected a number of 0 or more, or None")
        if self.gradient_clip_algorithm not in ("norm", "value"):
            raise ValueError(f"gradient_clip_algorithm is {self.gradient_clip_algorithm!r}; expected 'norm' or 'value'")
        if not isinstance(self.reuse_forward, bool):
            raise ValueError(f"reuse_forward is {self.reuse_forward!r}; expected true or false")

    def __reduce_ex__(self, protocol: Any) -> Any:
        # A class made by for_installed_lightning is in no module for pickle to find: it is made again.
        if type(self).__dict__.get("host") is None:
            return super().__reduce_ex__(protocol)
        return _make_again, (self.host,), self.__dict__


class ByLightning(Adapted):
    """One optimizer, or two on a Lightning before 1.6: Lightning's own loop does what the host means."""

    def setup(self, stage: Optional[str] = None) -> None:
        super().setup(stage)  # type: ignore[misc]
        self._check_options()

    def _check_options(self) -> None:
        super()._check_options()
        wrong = [
            f"{name}={value!r}"
            for name, value, default in (
                ("accumulate_grad_batches", self.accumulate_grad_batches, 1),
                ("gradient_clip_val", self.gradient_clip_val, None),
                ("gradient_clip_algorithm", self.gradient_clip_algorithm, "norm"),
            )
            if value != default
        ]
        if wrong:
            raise ValueError(
                f"{', '.join(wrong)}: for {self.host.__name__} on Lightning {_import_lightning().__version__} these "
                "are arguments of the Trainer (lightning.trainer in the YAML), not of the model"
            )


class OneOptimizer(ByLightning):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        with self._log_each_name_once():
            return super().training_step(batch, batch_idx)  # type: ignore[misc]

    def _check_options(self) -> None:
        super()._check_options()
        if self.reuse_forward:
            raise ValueError(f"reuse_forward: {self.host.__name__} has one optimizer, and so one forward pass")


class TwoOptimizersByLightning(ByLightning):
    def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> Any:
        with self._log_each_name_once():
            return self._host_training_step(batch, batch_idx, optimizer_idx)


class TwoOptimizersByHand(Adapted):
    """Several optimizers on Lightning 1.6 and later: the loop of Lightning 1.0.8, in manual optimization."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.automatic_optimization = False
        self._accumulating = False

    def setup(self, stage: Optional[str] = None) -> None:
        super().setup(stage)  # type: ignore[misc]
        self._check_options()
        if stage != "fit":
            return
        # The Trainer refuses this argument from its user, but reads the attribute: for the loggers' step, for
        # gradients kept during validation, and for estimated_stepping_batches.
        self.trainer.accumulate_grad_batches = self.accumulate_grad_batches
        # In a pass, the other optimizer's parameters are unused. Lightning 1 had DDP look for those by default.
        ddp_options = getattr(self.trainer.strategy, "_ddp_kwargs", None)
        if isinstance(ddp_options, dict):
            ddp_options.setdefault("find_unused_parameters", True)

    def teardown(self, stage: Optional[str] = None) -> None:
        super().teardown(stage)  # type: ignore[misc]
        self.trainer.accumulate_grad_batches = 1

    def on_train_start(self) -> None:
        super().on_train_start()  # type: ignore[misc]
        for config in self.trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
                raise ValueError(
                    "configure_optimizers returned ReduceLROnPlateau, which needs the Trainer to step it, and with "
                    "several optimizers the Trainer does not; use a scheduler of steps or epochs (LambdaLR)"
                )

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()  # type: ignore[misc]
        self.trainer.accumulate_grad_batches = self.accumulate_grad_batches  # Lightning 1 sets it back at each epoch

    def zero_grad(self, *args: Any, **kwargs: Any) -> None:
        # Lightning before 2.2 does this before each validation, also to gradients that are still being accumulated
        if not (self._accumulating and self.trainer.validating):
            super().zero_grad(*args, **kwargs)  # type: ignore[misc]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizers = self.optimizers()  # type: ignore[attr-defined]
        if not isinstance(optimizers, (list, tuple)):
            raise ValueError(
                f"{self.host.__name__}.training_step takes optimizer_idx, but configure_optimizers gave one "
                "optimizer; expected two or more"
            )
        is_last = self.trainer.is_last_batch or batch_idx + 1 == self.trainer.num_training_batches
        stepping = is_last or (batch_idx + 1) % self.accumulate_grad_batches == 0
        self._accumulating = not stepping
        # Lightning counts each optimizer's step; these hooks count. They are called once, after the last optimizer.
        begin_count, end_count = optimizers[0]._on_before_step, optimizers[0]._on_after_step
        with self._log_each_name_once():
            for index, optimizer in enumerate(optimizers):
                optimizer._on_before_step = optimizer._on_after_step = _do_nothing
                with optimizer.toggle_model(sync_grad=stepping):
                    loss = self._host_training_step(batch, batch_idx, index)
                    loss = loss["loss"] if isinstance(loss, dict) else loss
                    if loss is not None:
                        self.manual_backward(loss / self.accumulate_grad_batches)  # type: ignore[attr-defined]
                    if stepping:
                        self._step(optimizer, optimizers[index + 1 :])
                        optimizer.zero_grad()
        if stepping:
            begin_count()
            end_count()
            self._step_schedulers(batch_idx, is_last)

    def on_before_optimizer_step(self, optimizer: Any, *args: Any) -> None:
        super().on_before_optimizer_step(optimizer, *args)  # type: ignore[misc]
        if self.gradient_clip_val:  # here, since a GradScaler has scaled the gradients back by now
            self.clip_gradients(  # type: ignore[attr-defined]
                optimizer,
                gradient_clip_val=self.gradient_clip_val,
                gradient_clip_algorithm=self.gradient_clip_algorithm,
            )

    def _step(self, optimizer: Any, later: Sequence[Any]) -> None:
        if not any(p.grad is not None for group in optimizer.param_groups for p in group["params"]):
            return  # the host skipped every batch of this step by returning None
        # A GradScaler may change its scale after a step. What the next optimizers have accumulated has the old one.
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        accumulating = scaler is not None and self.accumulate_grad_batches > 1 and bool(later)
        before = scaler.get_scale() if accumulating else 1.0  # type: ignore[union-attr]
        with self.trainer.profiler.profile("optimizer_step"):
            optimizer.step()
        change = scaler.get_scale() / before if accumulating else 1.0  # type: ignore[union-attr]
        if change != 1.0:
            for parameter in (p for other in later for group in other.param_groups for p in group["params"]):
                if parameter.grad is not None:
                    parameter.grad.mul_(change)

    def _step_schedulers(self, batch_idx: int, is_last: bool) -> None:
        """Learning-rate schedulers, when Lightning would step them were the optimization automatic."""
        done = {"step": batch_idx + 1}
        if is_last:
            done["epoch"] = self.trainer.current_epoch + 1
        for config in self.trainer.lr_scheduler_configs:
            if done.get(config.interval, 1) % config.frequency == 0 and config.interval in done:
                if lightning_version() >= (2, 0):
                    self.lr_scheduler_step(config.scheduler, None)  # type: ignore[attr-defined]
                else:
                    config.scheduler.step()


_ADAPTED: Dict[type, type] = {}


def for_installed_lightning(cls: Any) -> Any:
    """A subclass of a taming LightningModule (VQModel, VQSegmentationModel, GumbelVQ) for the installed Lightning.

    One that trains there as on Lightning 1.0.8, see the module's docstring; a class already adapted is returned as it
    is. ``trainer.fit(model)`` is all it takes.

    A model with two optimizers on Lightning >= 1.6 takes three attributes, also as keywords of its constructor, and so
    in ``model.params``, since Lightning refuses them on the Trainer there: ``accumulate_grad_batches=1`` (a step every
    k batches and at an epoch's last one, each loss divided by k), ``gradient_clip_val=None`` and
    ``gradient_clip_algorithm="norm"`` (each optimizer's gradients apart). Elsewhere they belong on the Trainer.

    ``reuse_forward=True`` lets the discriminator's pass use the reconstruction of the first pass, detached, in place of
    a second forward pass after the generator's step. Training then differs slightly from the host's. It saves 12% of
    the time of a batch on a CPU, for 64x64 images and a loss without LPIPS (``benchmarks/reuse_forward.py``).
    """
    if issubclass(cls, Adapted):
        return cls
    if cls.__module__ == "taming.models.cond_transformer":
        # its constructor imports the transformer that its config names, and transformers 5 lacks what that imports
        import_taming("taming.modules.transformer.mingpt")
    if cls not in _ADAPTED:
        two = "optimizer_idx" in cls.training_step.__code__.co_varnames[: cls.training_step.__code__.co_argcount]
        by_hand = lightning_version() >= (1, 6)
        base = (TwoOptimizersByHand if by_hand else TwoOptimizersByLightning) if two else OneOptimizer
        gives_indices = "return_pred_indices" in cls.forward.__code__.co_varnames
        members = {"host": cls, "_gives_indices": gives_indices, "__module__": cls.__module__, "__doc__": cls.__doc__}
        _ADAPTED[cls] = type(cls.__name__, (base, cls), members)
    return _ADAPTED[cls]


def lightning_version() -> Tuple[int, int]:
    """(major, minor) of the installed pytorch-lightning."""
    major, minor = re.findall(r"\d+", _import_lightning().__version__)[:2]
    return int(major), int(minor)


def _import_lightning() -> Any:
    import pytorch_lightning

    return pytorch_lightning


def _make_again(host: type) -> Any:
    cls = for_installed_lightning(host)
    return cls.__new__(cls)


def _detach(output: Any) -> Any:
    if isinstance(output, torch.Tensor):
        return output.detach()
    if type(output) in (list, tuple):
        return type(output)(_detach(item) for item in output)
    return output


def _do_nothing() -> None:
    return None
