"""A callback for Lightning: `Trainer(callbacks=[DiscoveryCallback(target=0.5)])`."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Generator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from guyot.core.errors import MisconfiguredError, UnsupportedError
from guyot.core.inputs import Inputs
from guyot.core.packages import needed
from guyot.core.warning import warn
from guyot.discovery.integrations.host import HostedDiscovery
from guyot.discovery.layer_benefits import Loss, untouched

with needed("guyot.discovery.integrations.lightning needs", "lightning"):
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.callbacks import WeightAveraging
    from lightning.pytorch.strategies import ModelParallelStrategy
    from torchmetrics import Metric


_RESUMABLE = 'give strategy="ddp", or train with your own loop and a guyot.Checkpointer'


class DiscoveryCallback(HostedDiscovery, Callback):
    """Let the network of a `LightningModule` find its structure while Lightning trains it.

    Gates move after every step of the optimiser, also with accumulated gradients, clipping and a
    gradient scaler. With manual optimisation of one or more optimisers, they move once after every
    batch in which one made a step. When training ends the module is a plain one. Lightning's
    checkpoints hold the discovery: `trainer.fit(..., ckpt_path=...)` resumes with the smaller
    network. Averages of `WeightAveraging` are cut along. The trainer's loggers get MACs,
    parameters, phase, undecided gates and nu, see `Discovery.log`. Several devices train with the
    strategy `ddp`, or with `ModelParallelStrategy` and `fully_shard` in `configure_model`. What the
    latter saves cannot be resumed.

    To measure what residual branches earn, the callback calls `training_step` on the batch of the
    step again now and then: without gradients, and without logging by `log` and `log_dict`. The
    states of torchmetrics and buffers are as before afterwards. If `training_step` does more than
    that, such as counting batches, give `loss`.

    Args:
        module: qualified name of the network in the `LightningModule`; "" is all of it. Training
            must call it, not only parts of it.
        example_inputs: arguments of its `forward`; None: the `example_input_array` of the
            `LightningModule`.
        loss: gives the mean loss of a batch, nats, from the `LightningModule` and the batch. None:
            that of `training_step`; with manual optimisation there is none.
        **dials: `nu` or `target`, `alpha`, `beta` and `config` of `guyot.Discovery`.

    Attributes:
        discovery: of the present or last `fit`; None before.

    Raises:
        MisconfiguredError: a name that is no dial.

    Example:
        >>> callback = DiscoveryCallback("net", target=0.5)
        >>> callback.discovery is None
        True
    """

    def __init__(
        self,
        module: str = "",
        example_inputs: Inputs | None = None,
        loss: Callable[[Any, Any], Tensor] | None = None,
        **dials: Any,
    ) -> None:
        super().__init__(dials)
        self._module, self._inputs, self._loss = module, example_inputs, loss
        self._state: dict[str, Any] | None = None
        self._steps = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Withhold weights of a smaller network, which may come before it is small."""
        if stage == "fit":
            self._state = None
            self._withhold(pl_module, *_averages(trainer))

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Withhold those of averages that were not there in `setup`."""
        if self._withheld:
            self._withhold(*_averages(trainer))

    def state_dict(self) -> dict[str, Any]:
        """Return what Lightning writes into its checkpoint."""
        return {} if self.discovery is None else {"discovery": self.discovery.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what Lightning read until the optimiser is there."""
        self._state = state_dict.get("discovery")

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Warn that shards of a network that shrinks cannot be resumed."""
        if isinstance(trainer.strategy, ModelParallelStrategy):
            warn(
                "Lightning saved a checkpoint of a sharded network that shrinks, which training "
                f"cannot resume: {_RESUMABLE}"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the discovery; resume the one of the checkpoint.

        Raises:
            MisconfiguredError: no example inputs, no such module, or a checkpoint without a
                discovery.
            UnsupportedError: several devices with a strategy that surgery cannot follow.
        """
        wrapper = trainer.strategy.model
        sharded = isinstance(trainer.strategy, ModelParallelStrategy)
        if sharded and trainer.ckpt_path is not None:
            raise UnsupportedError(
                f"ckpt_path={str(trainer.ckpt_path)!r} with ModelParallelStrategy: a discovery "
                f"does not resume from shards; {_RESUMABLE}"
            )
        if trainer.world_size == 1 or sharded:
            wrapper = None
        elif not isinstance(wrapper, DistributedDataParallel):
            raise UnsupportedError(
                f"Lightning trains on {trainer.world_size} devices with "
                f"{type(trainer.strategy).__name__}, which surgery cannot follow: give "
                'Trainer(strategy="ddp"), or ModelParallelStrategy and fully_shard'
            )
        network, optimizers = self._network(pl_module), trainer.optimizers
        steps = int(trainer.estimated_stepping_batches)
        if trainer.max_steps > 0:  # Lightning counts the steps of each optimiser
            steps = min(steps, trainer.max_steps // len(optimizers))
        discovery = self._begin(network, self._example(pl_module), optimizers, steps, wrapper)
        for average in _averages(trainer):
            discovery.follow(average.module.get_submodule(self._module))
        self._resume(self._state)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count steps from here."""
        self._steps = trainer.global_step

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        """Note by what the loss was multiplied, before that changes."""
        self._scaled(getattr(trainer.precision_plugin, "scaler", None))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the gates if the optimiser made a step, and log where the discovery is."""
        if trainer.global_step > self._steps:
            self._steps = trainer.global_step
            self._step(self._again(trainer, pl_module, batch, batch_idx))
            every: int = vars(trainer)["log_every_n_steps"]
            if self.discovery is not None and self._steps % every == 0:
                pl_module.log_dict(self.discovery.log())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the network plain."""
        self._finish()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave nothing behind."""
        self._stop_withholding()

    def _again(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> Loss | None:
        """Return what computes the loss of a batch once more; None if nothing does."""
        own = self._loss
        if own is None and not pl_module.automatic_optimization:
            return None
        takes = inspect.signature(pl_module.training_step).parameters
        if own is None and "dataloader_iter" in takes:
            return None

        def loss() -> Tensor:
            with (
                trainer.precision_plugin.train_step_context(),
                untouched(pl_module),
                _unseen(pl_module),
            ):
                if own is not None:
                    return own(pl_module, batch)
                index = (batch_idx,) if len(takes) > 1 else ()
                found: Any = pl_module.training_step(batch, *index)
            found = found["loss"] if isinstance(found, Mapping) else found
            if not isinstance(found, Tensor):
                raise MisconfiguredError(
                    f"training_step returned {type(found).__name__} when it was called again: give "
                    "DiscoveryCallback(loss=...)"
                )
            return found

        return loss

    def _network(self, pl_module: LightningModule) -> nn.Module:
        try:
            return pl_module.get_submodule(self._module)
        except AttributeError as error:
            names = [name for name, _ in pl_module.named_children()]
            raise MisconfiguredError(
                f"module={self._module!r} is not in {type(pl_module).__name__}, which has {names}"
            ) from error

    def _example(self, pl_module: LightningModule) -> Inputs:
        inputs: Any = self._inputs
        if inputs is None:
            inputs = pl_module.example_input_array
        if inputs is None:
            raise MisconfiguredError(
                f"example_inputs=None, and {type(pl_module).__name__} has no example_input_array: "
                "give one of them, with the shapes of a training batch"
            )
        return inputs if isinstance(inputs, tuple | list | dict) else (inputs,)


@contextlib.contextmanager
def _unseen(pl_module: LightningModule) -> Generator[None]:
    """Let calls of `training_step` log nothing and leave torchmetrics as they were."""
    metrics = [module for module in pl_module.modules() if isinstance(module, Metric)]
    states = [{name: _copied(value) for name, value in vars(metric).items()} for metric in metrics]
    names = ("log", "log_dict")
    vars(pl_module).update(dict.fromkeys(names, _ignore))
    try:
        yield
    finally:
        for name in names:
            del vars(pl_module)[name]
        for metric, state in zip(metrics, states, strict=True):
            vars(metric).update(state)


def _ignore(*_: Any, **__: Any) -> None:
    pass


def _copied(value: Any) -> Any:
    """Copy a state of a metric: a tensor, or a list of tensors; all else is as it is."""
    if isinstance(value, Tensor):
        return value.clone()
    return list(value) if isinstance(value, list) else value


def _averages(trainer: Trainer) -> list[AveragedModel]:
    """Return the averaged models of the trainer's callbacks."""
    callbacks: list[Any] = getattr(trainer, "callbacks", [])
    averages = [
        getattr(callback, "_average_model", None)
        for callback in callbacks
        if isinstance(callback, WeightAveraging)
    ]
    return [average for average in averages if isinstance(average, AveragedModel)]
