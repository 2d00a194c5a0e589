"""A callback for the `Trainer` of Hugging Face's transformers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from guyot.core.errors import MisconfiguredError, UnsupportedError
from guyot.core.inputs import Inputs
from guyot.core.packages import needed
from guyot.core.storage import read_tree, write_tree
from guyot.discovery.integrations.host import STATE_FILE, HostedDiscovery
from guyot.discovery.optimizers import inner_optimizer

with needed("guyot.discovery.integrations.transformers needs", "transformers"):
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

if TYPE_CHECKING:
    from transformers import Trainer


_OPTIMIZER = "optimizer.pt"


class DiscoveryCallback(HostedDiscovery, TrainerCallback):
    """Let a model find its structure while the `Trainer` trains it.

    Give it to the constructor of the `Trainer`. Gates move after every step of the optimiser, also
    with accumulated gradients, clipping and a gradient scaler. When training ends the model is a
    plain one.

    Checkpoints of the `Trainer` get two files, `guyot.json` and `guyot.safetensors`, with the
    discovery and the states of optimiser and scheduler; `optimizer.pt` goes, since the `Trainer`
    would read it before the model is small. `trainer.train(resume_from_checkpoint=...)` resumes.

    What the `Trainer` logs gets MACs, parameters, phase, undecided gates and nu, see
    `Discovery.log`: in `trainer.state.log_history`, and for callbacks after this one. Those of
    `report_to` come before; `front(trainer)` puts this one before them.

    Several processes, started by `torchrun` or `accelerate launch`, find one structure together.
    The model must return its loss, as those of transformers do, so that residual branches are
    measured.

    Args:
        example_inputs: keyword arguments of the model's `forward` without labels, shaped as in a
            training batch.
        resume_from: the checkpoint's folder, when it is not in `output_dir` of the arguments.
        **dials: `nu` or `target`, `alpha`, `beta` and `config` of `guyot.Discovery`.

    Attributes:
        discovery: of the present or last training; None before.

    Raises:
        MisconfiguredError: a name that is no dial.

    Example:
        >>> callback = DiscoveryCallback({"x": torch.zeros(2, 4)}, target=0.5)
        >>> callback.discovery is None
        True
    """

    def __init__(
        self, example_inputs: Inputs, resume_from: str | Path | None = None, **dials: Any
    ) -> None:
        super().__init__(dials)
        self._inputs, self._resume_from = example_inputs, resume_from
        self._wrappers: list[DistributedDataParallel] = []
        self._hook: RemovableHandle | None = None

    def on_init_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: nn.Module,
        **_: Any,
    ) -> None:
        """Withhold weights of a smaller network, which may come before it is small.

        Raises:
            MisconfiguredError: `load_best_model_at_end`.
            UnsupportedError: several devices in one process.
        """
        if args.n_gpu > 1:
            raise UnsupportedError(
                f"the Trainer would copy the model to {args.n_gpu} devices in every step, where "
                "gates do not reach: start a process per device with torchrun, or show it one by "
                "CUDA_VISIBLE_DEVICES=0"
            )
        if args.load_best_model_at_end:
            raise MisconfiguredError(
                "load_best_model_at_end=True: the best checkpoint can have another size than the "
                "network at the end; leave it out and choose among the checkpoints afterwards"
            )
        self._withhold(model)
        if args.world_size > 1 and self._hook is None:
            self._hook = register_module_module_registration_hook(self._see)

    def _see(self, outer: nn.Module, name: str, inner: nn.Module | None) -> None:
        """Note what the `Trainer` puts around the model: it does not tell its callbacks."""
        if isinstance(outer, DistributedDataParallel):
            self._wrappers.append(outer)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: Any,
        **_: Any,
    ) -> None:
        """Make the discovery; resume the one of the checkpoint.

        Raises:
            MisconfiguredError: the checkpoint holds no discovery, or the callback came late.
            UnsupportedError: several processes without `DistributedDataParallel`.
        """
        if not self._withheld and self.discovery is None:
            raise MisconfiguredError(
                "the callback was added after the Trainer was made: give it to the constructor, "
                "Trainer(..., callbacks=[callback])"
            )
        wrapper = self._around(model) if args.world_size > 1 else None
        self._begin(model, self._inputs, optimizer, state.max_steps, wrapper)
        if state.global_step:
            tree = read_tree(self._checkpoint(args, state), STATE_FILE)
            self._resume(tree["discovery"])
            inner_optimizer(optimizer).load_state_dict(tree["optimizer"])
            lr_scheduler.load_state_dict(tree["scheduler"])
        self._stop_withholding()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note by what the loss was multiplied, before that changes."""
        self._scaled(getattr(kwargs["optimizer"], "scaler", None))

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Move the gates."""
        self._step()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Add where the discovery is to what the `Trainer` logs, and to its history."""
        if self.discovery is None:
            return
        for figures in (logs, state.log_history[-1] if state.log_history else None):
            if figures is not None:
                figures.update(self.discovery.log())

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: Any,
        **_: Any,
    ) -> None:
        """Add the discovery to the checkpoint that was just written."""
        folder = _folder(args, state)
        if self.discovery is None or not state.is_world_process_zero or not folder.is_dir():
            return
        tree = {
            "discovery": self.discovery.state_dict(),
            "optimizer": inner_optimizer(optimizer).state_dict(),
            "scheduler": lr_scheduler.state_dict(),
        }
        write_tree(folder, STATE_FILE, tree)
        (folder / _OPTIMIZER).unlink(missing_ok=True)

    def front(self, trainer: Trainer) -> None:
        """Come before the callbacks of `report_to`, so that they log the discovery, too.

        Args:
            trainer: has this callback.

        Raises:
            MisconfiguredError: it has not.
        """
        callbacks = trainer.callback_handler.callbacks
        if self not in callbacks:
            raise MisconfiguredError(
                "the Trainer does not have this callback: give it to the constructor, "
                "Trainer(..., callbacks=[callback])"
            )
        callbacks.remove(self)
        callbacks.insert(0, self)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Make the model plain."""
        self._finish()

    def _around(self, model: nn.Module) -> DistributedDataParallel:
        """Return the wrapper that was seen around a model.

        Raises:
            UnsupportedError: there is no `DistributedDataParallel`.
        """
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        self._wrappers = [wrapper for wrapper in self._wrappers if wrapper.module is model]
        if not self._wrappers:
            raise UnsupportedError(
                f"the Trainer trains {type(model).__name__} in several processes without "
                "DistributedDataParallel, which surgery cannot follow: leave out FSDP and DeepSpeed"
            )
        return self._wrappers[-1]

    def _checkpoint(self, args: TrainingArguments, state: TrainerState) -> Path:
        """Return the folder that training resumes from."""
        given = [self._resume_from, args.resume_from_checkpoint, _folder(args, state)]
        folders = [Path(folder) for folder in given if folder is not None]
        for folder in folders:
            if (folder / f"{STATE_FILE}.json").is_file():
                return folder
        raise MisconfiguredError(
            f"training resumes from step {state.global_step}, but there is no {STATE_FILE}.json in "
            f"{' or '.join(map(str, folders))}: give resume_from=FOLDER of a checkpoint that was "
            "written with a DiscoveryCallback"
        )


def _folder(args: TrainingArguments, state: TrainerState) -> Path:
    """Return where the `Trainer` puts the checkpoint of the present step."""
    return Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"
