"""The errors guyot raises, all of them a `GuyotError`."""


class GuyotError(Exception):
    """The base class of all errors of guyot."""


class MisconfiguredError(GuyotError, ValueError):
    """Arguments are wrong: each line of the message names one, its value and the way out.

    Attributes:
        args: one text per mistake, as they are given.
    """

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


class TooFewStepsError(MisconfiguredError):
    """A run is too short for its phases.

    Attributes:
        total_steps: of the run.
        enough: the fewest steps that do.
    """

    def __init__(self, total_steps: int, shortest: int, enough: int) -> None:
        super().__init__(
            f"total_steps={total_steps} is too small for warm-up, discovery and fine-tuning of at "
            f"least {shortest} steps each: train for at least {enough} steps."
        )
        self.total_steps, self.enough = total_steps, enough


class NoWeightsError(MisconfiguredError):
    """A model is on the meta device, and its structures cannot be verified without weights."""


class UnsupportedError(GuyotError, NotImplementedError):
    """The model, operator or optimiser does something guyot cannot handle safely."""


class SequenceError(GuyotError, RuntimeError):
    """A method was called at the wrong moment (twice in a step, after `finish`, ...)."""


class StorageError(GuyotError, OSError):
    """A file could not be written; what was there before is still there."""


class DivergedError(GuyotError, ArithmeticError):
    """The loss of a run was not finite for too many steps in a row."""


class ParallelError(GuyotError, RuntimeError):
    """Processes that train one model differ in what must be the same, or one does not answer."""


class GuyotWarning(UserWarning):
    """Something was left out or skipped; the run continues."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error."""
    text = str(getattr(error, "strerror", None) or error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
