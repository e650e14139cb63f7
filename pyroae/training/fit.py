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
from ..objectives.base import Objective, check_elbo, default_elbo
from ..programs import Program
from ..threads import one_at_a_time
from . import distributed
from .batches import Batches, checks_data, measure
from .checkpoints import Checkpoints
from .devices import resolve_device
from .epoch import Epoch
from .loop import Training
from .options import Mode, Run, Step, Validation
from .step.svi import SVI


@dataclass
class History:
    """The rows of training, one per epoch; losses in nats per example.

    >>> History("Trace_ELBO", [{"epoch": 1, "loss": 2.5, "lr": 1e-3, "seconds": 0.1}]).loss
    [2.5]
    """

    objective: str  # name of the ELBO
    rows: list[dict[str, float]] = field(default_factory=list)

    def __getitem__(self, column: str) -> list[float]:
        return [row[column] for row in self.rows]

    @property
    def loss(self) -> list[float]:
        """Training loss of each epoch."""
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
    validation: Any | Validation = None,
    device: str = "auto",
    seed: int | None = None,
    compile: Mode | Step = "auto",
    run: str | Path | Run | None = None,
    progress: bool = True,
    callbacks: Iterable[Callable[[Epoch], None]] = (),
) -> History:
    """Train a model and its guide; on return they are on the device and in evaluation mode.

    Args:
        model: an Autoencoder, or a Pyro model of a batch, ``model(x)`` or ``model(x, y)``, with ``guide``.
        data: an array or tensor ``(N, *event)``, a DataFrame, a tuple ``(x, y)``, a split of ``pa.data.load(...)``,
            a Dataset or a DataLoader.
        guide: the model's guide, unless ``model`` is an Autoencoder.
        elbo: a Pyro ELBO; by default the Autoencoder's objective, else by the guide's latent sites: TraceMeanField_ELBO for one, Trace_ELBO
            for several, TraceEnum_ELBO if one is enumerated, TraceGraph_ELBO if one is not reparameterised.
        epochs: passes over the data.
        batch_size: examples per step (a DataLoader has its own). With batch normalisation a last batch of one example is left out.
        lr: learning rate; by default 1e-3, or the optimizer's default. Gradients are of the loss summed over the batch, as in Pyro:
            Adam's steps hardly depend on that, SGD's do.
        optimizer: called with the parameters, and with lr if that is given; by default torch.optim.Adam (fused).
        scheduler: called with the optimizer; its ``step`` is called after every epoch.
        validation: held-out data, whose loss is computed after every epoch; with ``pa.Validation`` also early stopping.
        device: ``"auto"`` (CUDA if available; the CPU for functions, which create their tensors there), ``"cpu"`` or ``"cuda"``.
        seed: makes the run reproducible; the caller's random state is restored on exit.
        compile: ``"auto"``, ``"eager"``, ``"traced"`` or ``"compiled"``, or a ``pa.Step`` with precision, gradient clipping,
            micro-batches and retries.
        run: a folder for checkpoints; with ``pa.Run`` also resuming.
        progress: whether to show a progress bar.
        callbacks: called after every epoch with its row, a dict with attributes ``model``, ``guide`` and ``step``; they may
            add values to the row, or ``raise pa.StopTraining``.

    Returns:
        A row per epoch: epoch, loss and validation_loss in nats per example, lr, seconds since the start.

    Raises:
        ValueError: invalid arguments or data, a folder that another process uses, no valid checkpoint, or a loss that becomes
            infinite or NaN: the message names the first bad step and site, and the last finite weights are restored.
        ConnectionError: another process of a distributed run (``pa.distributed``) has died.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after the current step; the weights are those of that step, or with
            ``patience`` the best so far.

    >>> x = torch.rand(256, 16).round()
    >>> len(fit(vae, x, epochs=3, progress=False).loss)
    3
    """
    if torch.is_inference_mode_enabled():
        raise ValueError("fit: expected a call outside torch.inference_mode(), which has no gradients")
    step, validation, run = Step.of(compile), Validation.of(validation), Run.of(run)
    callbacks = _callbacks(callbacks)
    target = check_arguments(epochs, batch_size, lr, device)
    checkpoints = None if run.folder is None else Checkpoints(run.folder)
    own = getattr(model, "objective", None)  # an Autoencoder's
    elbo = own if elbo is None and isinstance(own, ELBO) else elbo
    arguments = model, guide
    model, guide = programs.pair(model, guide)
    pair = programs.modules(arguments[0], model, guide)
    if device == "auto" and not pair:
        target = torch.device("cpu")
    with contextlib.ExitStack() as stack:
        stack.enter_context(one_at_a_time())
        saved = distributed.run_on_main(lambda: _open(checkpoints, run.resume, stack))
        _enter_training(stack, model, pair, seed, target)
        train = Batches(data, batch_size, target, shuffle=True, model=model, sharded=True, min_rows=_min_rows(pair))
        measure(model, train)
        held_out = None
        if validation.data is not None:
            held_out = Batches(validation.data, batch_size, target, shuffle=False, model=model, sharded=True)
        elbo, parameters = _prepare_elbo(model, guide, pair, train, elbo)
        optimizer = _optimizer(optimizer, parameters, lr)
        steps = epochs * len(train) - (saved["step"] if saved else 0)
        svi = SVI(model, guide, optimizer, elbo, compile=step, sync=False, steps=max(1, steps))
        svi.on_new_parameter = lambda name, parameter: optimizer.add_param_group({"params": [parameter]})
        training = Training(
            svi=svi,
            pair=pair,
            elbo=elbo,
            train=train,
            held_out=held_out,
            schedule=_scheduler(scheduler, optimizer),
            epochs=epochs,
            patience=validation.patience,
            retries=step.retries,
            callbacks=callbacks,
            arguments=arguments,
            checkpoints=checkpoints if distributed.is_main() else None,
            save_every=run.save_every,
        )
        try:
            training.start(saved)
            training.run(progress and distributed.is_main())
        finally:
            training.restore_best()
    return History(type(elbo).__name__, training.rows)


def _enter_training(stack: contextlib.ExitStack, model: Any, pair: list[torch.nn.Module], seed: int | None, target: torch.device):
    """Set up the process for training until the stack is closed, and move modules to the device."""
    stack.enter_context(torch.enable_grad())
    stack.enter_context(programs.seeded(seed, target))
    stack.enter_context(warnings.catch_warnings())
    warnings.filterwarnings("ignore", "Encountered NaN", UserWarning)  # raised as an error that names the site
    warnings.filterwarnings("ignore", "Failed to verify mean field restriction", UserWarning)  # check_elbo warns once
    if checks_data(model):  # all data are checked before training; otherwise the caller's setting is kept
        stack.enter_context(pyro.validation_enabled(False))
    stack.enter_context(programs.remove_new_param_names(pair))
    for module in pair:
        _check_dense(module)
        stack.callback(module.eval)
        module.to(target)


def _prepare_elbo(
    model: Program, guide: Program, pair: list[torch.nn.Module], train: Batches, elbo: ELBO | None
) -> tuple[ELBO, list[Tensor]]:
    """Run the programs once: the ELBO for their latent sites, and the parameters to train."""
    for module in pair:
        module.train()
    with torch.no_grad(), programs.restore_requires_grad(model, guide):
        traces = programs.traces(model, guide, *train.first())
    model_latent, latent = (list(programs.sites(trace, observed=False).values()) for trace in traces)
    elbo = default_elbo(latent) if elbo is None else elbo
    check_elbo(elbo, latent, model_latent)
    if isinstance(elbo, Objective):
        elbo.finalize(latent)
    return elbo, programs.parameters(pair, traces)


def _open(checkpoints: Checkpoints | None, resume: bool, stack: contextlib.ExitStack) -> dict | None:
    """Lock the folder until the stack is closed; return the newest checkpoint of a run to resume."""
    if checkpoints is None:
        return None
    stack.enter_context(checkpoints.locked())
    if resume:
        return checkpoints.newest()
    if checkpoints.paths():
        folder = str(checkpoints.run)
        raise ValueError(f"fit: {folder} already contains a run; resume it with run=pa.Run({folder!r}, resume=True), or use another folder")
    return None


def _optimizer(optimizer, parameters: list[Tensor], lr: float | None) -> Optimizer:
    if isinstance(optimizer, Optimizer):
        if lr is not None or not {id(p) for group in optimizer.param_groups for p in group["params"]} & {id(p) for p in parameters}:
            raise ValueError("fit: expected an optimizer of this model's parameters, without lr; or a function such as torch.optim.Adam")
        return optimizer
    if not parameters:
        raise ValueError("fit: expected a model or guide with parameters to train, got none; register plain networks with pyro.module(...)")
    constructor = optimizer or functools.partial(torch.optim.Adam, fused=True)
    try:
        result = constructor(parameters) if lr is None else constructor(parameters, lr=lr)
    except (TypeError, RuntimeError, ArithmeticError, AssertionError) as error:
        raise ValueError(f"fit: expected optimizer as a function of the parameters, and of lr if that is given: {error}") from error
    if not isinstance(result, Optimizer) or isinstance(result, (torch.optim.LBFGS, torch.optim.SparseAdam)):
        raise ValueError(f"fit: expected optimizer to make a torch optimizer for dense gradients, got {type(result).__name__}")
    return result


def _scheduler(scheduler: Callable[[Optimizer], LRScheduler] | None, optimizer: Optimizer) -> LRScheduler | None:
    try:
        return None if scheduler is None else scheduler(optimizer)
    except (TypeError, RuntimeError, ArithmeticError, AssertionError, KeyError) as error:
        raise ValueError(f"fit: expected scheduler as a function of the optimizer: {type(error).__name__}: {error}") from error


def _min_rows(pair: list[torch.nn.Module]) -> int:
    """Minimum number of rows in a batch: 2 for batch normalisation."""
    batch_norm = torch.nn.modules.batchnorm._BatchNorm
    return 1 + any(isinstance(layer, batch_norm) for module in pair for layer in module.modules())


def _check_dense(module: torch.nn.Module):
    for name, layer in module.named_modules():
        if isinstance(layer, (torch.nn.Embedding, torch.nn.EmbeddingBag)) and layer.sparse:
            raise ValueError(f"fit: expected dense gradients, but those of the layer {name!r} are sparse; make it with sparse=False")


def _callbacks(callbacks: Iterable[Callable[[Epoch], None]]) -> list[Callable[[Epoch], None]]:
    functions = [] if callable(callbacks) else list(callbacks)
    if callable(callbacks) or not all(map(callable, functions)):
        raise ValueError(f"fit: expected callbacks as a list of functions, each called with an epoch, got {callbacks!r}")
    return functions


def check_arguments(epochs: int, batch_size: int, lr: float | None, device: str) -> torch.device:
    """The device to train on; ``ValueError`` for invalid arguments."""

    whole_number("fit", epochs=epochs, batch_size=batch_size)
    if lr is not None and not (isinstance(lr, (int, float)) and 0.0 < lr < math.inf):
        raise ValueError(f"fit: expected lr as a positive number, got {lr!r}")
    return resolve_device(device)
