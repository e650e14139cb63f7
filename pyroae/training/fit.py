"""``fit``: train any (model, guide) with any Pyro ELBO and any torch optimizer."""

import contextlib
import csv
import functools
import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .. import programs
from ..checks import whole_number
from ..files import target_of
from ..objectives.base import Objective, check_elbo, default_elbo
from ..programs import Program
from ..threads import one_at_a_time
from . import distributed
from .batches import Batches, checks_data, measure
from .checkpoints import Checkpoints
from .devices import resolve_device
from .epoch import Epoch
from .loop import Training
from .precision import Precision, check_precision
from .step.svi import SVI
from .step.tracing import Mode


@dataclass
class History:
    """What training saw: a row for each epoch, losses in nats per example.

    >>> History("Trace_ELBO", [{"epoch": 1, "loss": 2.5, "lr": 1e-3, "seconds": 0.1}]).loss
    [2.5]
    """

    objective: str  # the ELBO it was trained with
    rows: list[dict[str, float]] = field(default_factory=list)

    def __getitem__(self, column: str) -> list[float]:
        return [row[column] for row in self.rows]

    @property
    def loss(self) -> list[float]:
        """The training loss of each epoch."""
        return self["loss"]

    def to_csv(self, path: str | Path):
        """Write the rows with a header."""
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(self.rows[0]) if self.rows else ["epoch", "loss"])
            writer.writeheader()
            writer.writerows(self.rows)

    def __repr__(self) -> str:
        if not self.rows:
            return "History(no epochs)"
        last = self.rows[-1]
        return f"History({len(self.rows)} epochs of {self.objective}, {last['seconds']:.1f} s, loss {last['loss']:.2f} nats per example)"


def fit(
    model: Any,
    data: Any,
    *,
    guide: Program | None = None,
    elbo: ELBO | None = None,
    epochs: int = 20,
    batch_size: int = 128,
    lr: float | None = None,
    optimizer: Callable[[Iterable[Tensor]], Optimizer] | None = None,
    scheduler: Callable[[Optimizer], LRScheduler] | None = None,
    validation: Any = None,
    patience: int | None = None,
    device: str = "auto",
    seed: int | None = None,
    compile: Mode = "auto",
    precision: Precision = "auto",
    clip: float | None = None,
    accumulate: int = 1,
    retries: int = 0,
    run_dir: str | Path | None = None,
    resume: str | Path | None = None,
    save_every: float = 60.0,
    progress: bool = True,
    callbacks: Iterable[Callable[[Epoch], None]] = (),
) -> History:
    """Train a model and its guide; afterwards they are on the device, in evaluation mode.

    Args:
        model: an Autoencoder, or a Pyro model of a batch, ``model(x)`` or ``model(x, y)``, with ``guide``.
        data: an array or tensor ``(N, *event)``, a DataFrame, a tuple ``(x, y)``, a split of ``pa.data.load(...)``,
            a Dataset or a DataLoader.
        guide: the model's guide, where ``model`` is not an Autoencoder.
        elbo: any Pyro ELBO; by default the Autoencoder's own objective, else TraceMeanField_ELBO (Trace_ELBO for several latent sites).
        epochs: passes over the data.
        batch_size: data in a step (a DataLoader brings its own). A last batch of one row, on which batch normalisation cannot
            be trained, is left out of that epoch.
        lr: learning rate; by default 1e-3, or the given optimizer's own. Gradients are of the loss summed over the batch, as Pyro's
            are: Adam's steps hardly depend on that, SGD's do.
        optimizer: called with the parameters, and lr where that is given; by default torch.optim.Adam (fused).
        scheduler: called with the optimizer; its ``step`` is called after every epoch.
        validation: data whose loss is computed after every epoch, in evaluation mode.
        patience: stop after so many epochs without a better validation loss, and go back to the best weights. While a schedule
            of the objective moves, every epoch counts as better than those before: their losses are of another objective.
        device: ``"auto"`` (CUDA where there is one; the CPU for plain functions, which make their tensors there), ``"cpu"``
            or ``"cuda"``.
        seed: makes the run repeatable and leaves the caller's random state alone.
        compile: ``"auto"`` traces and compiles the programs where the run is long enough to repay it, ``"eager"`` never does,
            ``"traced"`` and ``"compiled"`` do at once. The results differ by rounding.
        clip: the longest gradient that is followed as it is, of the loss per example; a longer one is shortened to that.
        accumulate: how many parts a batch is gone through in before its one step, each with the memory of a part.
        retries: how often, where the loss is not finite any more, to go back some seconds and on with half the learning rate.
        run_dir: a folder for checkpoints, in which no other run is: the newest two are kept in ``checkpoints`` there.
        resume: the folder of a run to go on with, from its newest checkpoint; everything but ``epochs`` as it was then. On a
            CPU it ends as if it had never been stopped, to the bit (where ``compile="auto"`` has nothing compiled: that goes
            by the clock). Every callback is called for every epoch, the last one before the checkpoint possibly twice.
        save_every: seconds between two checkpoints. At the end, on Ctrl-C, and after an epoch where that takes little of the
            time, there is one too.
        precision: of float32 matrix products, in the words of ``torch.set_float32_matmul_precision``; ``"auto"`` is the
            fastest that is measured to be as exact as float32 on this device, ``"bf16"`` is mixed precision. The caller's
            own setting is left alone.
        progress: show a progress bar.
        callbacks: each is called after every epoch with its row, a dict that has ``model``, ``guide`` and ``step`` too, and may
            add numbers to it, or ``raise pa.StopTraining``.

    Returns:
        A row for each epoch: epoch, loss and validation_loss in nats per example, lr, seconds since the start.

    Raises:
        ValueError: bad arguments or data, a folder where another process trains, no checkpoint that fits, or a loss that is
            no longer finite: that names the first bad step and site, and leaves the last weights with which all was finite.
        ConnectionError: of several processes that train together (``pa.together``) another one has died.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after the step under way; the weights are those of then, with ``patience`` the best so far.

    >>> x = torch.rand(256, 16).round()
    >>> len(fit(vae, x, epochs=3, progress=False).loss)
    3
    """
    if torch.is_inference_mode_enabled():
        raise ValueError("fit: expected a call outside torch.inference_mode(), in which nothing can be trained")
    place = check_arguments(epochs, batch_size, lr, patience, validation, device)
    _check_training(clip, accumulate, retries, save_every)
    check_precision(precision)
    checkpoints = _checkpoints(run_dir, resume)
    elbo, whole = getattr(model, "objective", None) if elbo is None else elbo, model
    given = model, guide
    model, guide = programs.pair(model, guide)
    pair = programs.modules(whole, model, guide)
    if device == "auto" and not pair:
        place = torch.device("cpu")
    with contextlib.ExitStack() as around:
        around.enter_context(one_at_a_time())
        around.enter_context(torch.enable_grad())
        before = distributed.first(lambda: _opened(checkpoints, resume, around))
        around.enter_context(programs.seeded(seed, place))
        around.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "Encountered NaN", UserWarning)  # an error says where it comes from
        warnings.filterwarnings("ignore", "Failed to verify mean field restriction", UserWarning)  # said once, by check_elbo
        if checks_data(model):  # it has looked at all the data; other programs keep what is set
            around.enter_context(pyro.validation_enabled(False))
        around.enter_context(programs.leaving_no_names(pair))
        for module in pair:
            _check_dense(module)
            module.to(place)
        train = Batches(data, batch_size, place, shuffle=True, model=model, shared=True, least=_least_rows(pair))
        measure(model, train)
        held_out = None if validation is None else Batches(validation, batch_size, place, shuffle=False, model=model, shared=True)
        for module in pair:
            module.train()
        with torch.no_grad(), programs.keeping_frozen(model, guide):
            seen = programs.traces(model, guide, *train.first())
        elbo = _settled(elbo, *(list(programs.sites(trace, observed=False).values()) for trace in reversed(seen)))
        optimizer = _optimizer(optimizer, programs.parameters(pair, seen), lr)
        steps = epochs * len(train) - (before["step"] if before else 0)
        svi = SVI(
            *(model, guide, optimizer, elbo),
            **{"compile": compile, "precision": precision, "sync": False, "steps": max(1, steps), "clip": clip, "accumulate": accumulate},
        )
        svi.late = lambda name, parameter: optimizer.add_param_group({"params": [parameter]})
        run = Training(
            svi=svi,
            pair=pair,
            elbo=elbo,
            train=train,
            held_out=held_out,
            schedule=_scheduler(scheduler, optimizer),
            epochs=epochs,
            patience=patience,
            retries=retries,
            callbacks=callbacks,
            given=given,
            checkpoints=checkpoints if distributed.leads() else None,
            save_every=save_every,
        )
        try:
            if before is not None:
                run.go_on(before)
            distributed.agree(*run.weights().values())
            distributed.draw_apart()
            run.to_the_end(progress and distributed.leads())
        finally:
            run.restore_best()
            for module in pair:
                module.eval()
    return History(type(elbo).__name__, run.rows)


def _settled(elbo: ELBO | None, latent: list[dict], model_latent: list[dict]) -> ELBO:
    """The objective, chosen by the guide's latent sites where that was left open, and checked against them and the model's."""
    elbo = default_elbo(latent) if elbo is None else elbo
    check_elbo(elbo, latent, model_latent)
    if isinstance(elbo, Objective):
        elbo.settle(latent)
    return elbo


def _checkpoints(run_dir: str | Path | None, resume: str | Path | None) -> Checkpoints | None:
    if resume is not None and not Path(resume).is_dir():
        raise ValueError(f"fit: expected resume as the folder of a run, there is none at {resume}")
    if None not in (run_dir, resume) and target_of(run_dir) != target_of(resume):
        raise ValueError(f"fit: a run goes on in its own folder; expected run_dir as {resume} too, or left out, got {run_dir}")
    folder = resume if run_dir is None else run_dir
    return None if folder is None else Checkpoints(folder)


def _opened(checkpoints: Checkpoints | None, resume: str | Path | None, around: contextlib.ExitStack) -> dict | None:
    """Lock the folder; what the run to go on with was, ``None`` for a new one and for one stopped before its first checkpoint."""
    if checkpoints is not None:
        around.enter_context(checkpoints.locked())
    if resume is not None:
        return checkpoints.newest()
    if checkpoints is not None and checkpoints.paths():
        raise ValueError(f"fit: {checkpoints.run} holds a run already; go on with it by resume={str(checkpoints.run)!r}, or name another")
    return None


def _optimizer(optimizer, free: list[Tensor], lr: float | None) -> Optimizer:
    if isinstance(optimizer, Optimizer):
        if lr is not None or not {id(p) for group in optimizer.param_groups for p in group["params"]} & {id(p) for p in free}:
            raise ValueError(
                "fit: expected an optimizer made with this model's parameters, and no lr beside it; or torch.optim.Adam itself"
            )
        return optimizer
    if not free:
        raise ValueError("fit: expected a model or guide with parameters to train, got none; register plain networks with pyro.module(...)")
    make = optimizer or functools.partial(torch.optim.Adam, fused=True)
    try:
        made = make(free) if lr is None else make(free, lr=lr)
    except (TypeError, RuntimeError, ArithmeticError, AssertionError) as error:
        raise ValueError(f"fit: expected optimizer as a function of the parameters, and of lr where that is given: {error}") from error
    if not isinstance(made, Optimizer) or isinstance(made, (torch.optim.LBFGS, torch.optim.SparseAdam)):
        raise ValueError(f"fit: expected optimizer to make a torch optimizer for dense gradients, got {type(made).__name__}")
    return made


def _scheduler(scheduler: Callable[[Optimizer], LRScheduler] | None, optimizer: Optimizer) -> LRScheduler | None:
    try:
        return None if scheduler is None else scheduler(optimizer)
    except (TypeError, RuntimeError, ArithmeticError, AssertionError, KeyError) as error:
        raise ValueError(f"fit: expected scheduler as a function of the optimizer: {type(error).__name__}: {error}") from error


def _least_rows(pair: list[torch.nn.Module]) -> int:
    """Rows that a batch must have in training."""
    normalised = torch.nn.modules.batchnorm._BatchNorm
    return 1 + any(isinstance(layer, normalised) for module in pair for layer in module.modules())


def _check_dense(module: torch.nn.Module):
    for name, layer in module.named_modules():
        if isinstance(layer, (torch.nn.Embedding, torch.nn.EmbeddingBag)) and layer.sparse:
            raise ValueError(f"fit: expected dense gradients, but those of the layer {name!r} are sparse; make it with sparse=False")


def _check_training(clip: float | None, accumulate: int, retries: int, save_every: float):
    whole_number("fit", accumulate=accumulate)
    if not isinstance(retries, int) or retries < 0:
        raise ValueError(f"fit: expected retries as a whole number of at least 0, got {retries!r}")
    for name, value in (("clip", 1.0 if clip is None else clip), ("save_every", save_every)):
        if not (isinstance(value, (int, float)) and 0.0 < value < math.inf):
            raise ValueError(f"fit: expected {name} as a positive number, got {value!r}")


def check_arguments(epochs: int, batch_size: int, lr: float | None, patience: int | None, validation: Any, device: str) -> torch.device:
    """``ValueError`` for arguments that ``fit`` would refuse; otherwise the device it would use."""
    whole_number("fit", epochs=epochs, batch_size=batch_size, patience=1 if patience is None else patience)
    if lr is not None and not (isinstance(lr, (int, float)) and 0.0 < lr < math.inf):
        raise ValueError(f"fit: expected lr as a positive number, got {lr!r}")
    if patience is not None and validation is None:
        raise ValueError("fit: patience waits for a better validation loss, but there are no validation data; give validation=...")
    return resolve_device(device)
