"""Options of ``fit`` that belong together: how a step runs, when to stop, where the run is stored."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from ..checks import whole_number
from .precision import Precision, check_precision

Mode = Literal["auto", "eager", "traced", "compiled"]


@dataclass(frozen=True)
class Step:
    """How an optimizer step runs.

    Args:
        compile: ``"eager"`` runs the program's Python in every step. ``"traced"`` replays its tensor operations as a graph,
            ``"compiled"`` compiles that graph with Inductor. ``"auto"`` starts eagerly and changes to a graph when the remaining steps
            repay the cost of making it; where there is a core to spare another process compiles meanwhile. Losses differ only by rounding.
        precision: of float32 matrix products, as in ``torch.set_float32_matmul_precision``. ``"auto"`` is the fastest one
            that is measured to be as exact as float32 on this device; ``"bf16"`` is mixed precision; ``None`` keeps the caller's setting.
        clip: maximum norm of the gradient of the mean loss per example.
        accumulate: micro-batches per step, whose gradients are summed; a step takes the memory of one of them.
        retries: how often ``fit`` restores an earlier state and halves the learning rate when the loss becomes infinite or NaN.

    Raises:
        ValueError: an unknown mode or precision, or a number out of range.

    >>> Step("eager", clip=1.0)
    Step(compile='eager', precision='auto', clip=1.0, accumulate=1, retries=0)
    """

    compile: Mode = "auto"
    precision: Precision | None = "auto"
    clip: float | None = None
    accumulate: int = 1
    retries: int = 0

    def __post_init__(self):
        if self.compile not in get_args(Mode):
            raise ValueError(f"expected compile as 'auto', 'eager', 'traced' or 'compiled', got {self.compile!r}")
        if self.precision is not None:
            check_precision(self.precision)
        if self.clip is not None:
            _check_positive("Step", clip=self.clip)
        whole_number("Step", accumulate=self.accumulate)
        if not isinstance(self.retries, int) or self.retries < 0:
            raise ValueError(f"Step: expected retries as a whole number of at least 0, got {self.retries!r}")

    @classmethod
    def of(cls, step: "Mode | Step") -> "Step":
        """Options from a mode or options."""
        return step if isinstance(step, Step) else cls(step)


@dataclass(frozen=True)
class Validation:
    """Held-out data, whose loss is computed after every epoch in evaluation mode, and early stopping.

    Args:
        data: data accepted by ``fit``.
        patience: stop after this many epochs without a better validation loss, and restore the weights of the best epoch. While a
            schedule changes the objective every epoch counts as an improvement, since losses cannot be compared.

    Raises:
        ValueError: no data, or a patience below 1.

    >>> import torch
    >>> Validation(torch.zeros(2, 3), patience=5).patience
    5
    """

    data: Any
    patience: int | None = None

    def __post_init__(self):
        if self.data is None and self.patience is not None:
            raise ValueError(
                "Validation: patience stops by the loss of held-out data, but there are none; "
                "give validation=pa.Validation(data, patience=...) (on the command line --validation .1)"
            )
        if self.patience is not None:
            whole_number("Validation", patience=self.patience)

    @classmethod
    def of(cls, validation: Any) -> "Validation":
        """Options from data or options; ``None`` is no validation."""
        return validation if isinstance(validation, Validation) else cls(validation)


@dataclass(frozen=True)
class Run:
    """The folder of a run's checkpoints.

    Args:
        folder: new, or that of the run to resume. The newest two checkpoints are kept, in its subfolder ``checkpoints``.
        resume: continue from the newest checkpoint, with the same arguments except ``epochs``. On a CPU the result is equal bit
            for bit to an uninterrupted run (with ``compile="auto"`` if nothing was compiled, which depends on the clock).
            A callback may be called twice for the last epoch before the checkpoint.
        save_every: seconds between checkpoints. There is also one at the end, on Ctrl-C, and after an epoch if writing takes less
            than a twentieth of the time.

    Raises:
        ValueError: no folder to resume, or an interval that is not positive.

    >>> Run("runs/mine").save_every
    60.0
    """

    folder: str | Path | None
    resume: bool = False
    save_every: float = 60.0

    def __post_init__(self):
        _check_positive("Run", save_every=self.save_every)
        if self.resume and (self.folder is None or not Path(self.folder).is_dir()):
            raise ValueError(f"Run: expected the folder of a run to resume, got {self.folder}, which is not a folder")

    @classmethod
    def of(cls, run: "str | Path | Run | None") -> "Run":
        """Options from a path or options; ``None`` writes no checkpoints."""
        return run if isinstance(run, Run) else cls(run)


def _check_positive(owner: str, **arguments: Any):
    for name, value in arguments.items():
        if not (isinstance(value, (int, float)) and 0.0 < value < math.inf):
            raise ValueError(f"{owner}: expected {name} as a positive number, got {value!r}")
