"""``fit``: train any (model, guide) with any Pyro ELBO and any torch optimizer."""

import csv
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from tqdm.auto import tqdm

from ..checks import whole_number
from . import programs
from .batches import Batches, resolve_device
from .compiling import Mode
from .objective import Objective, check_elbo, default_elbo
from .precision import Precision, check_precision, multiplying
from .programs import Program
from .svi import SVI

_GLANCE = 0.5  # seconds between two looks at the running loss


@dataclass
class History:
    """What training saw: a row for each epoch, losses in nats a datum."""

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
        return f"History({len(self.rows)} epochs of {self.objective}, {last['seconds']:.1f} s, loss {last['loss']:.2f} nats a datum)"


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
    progress: bool = True,
    callbacks: Iterable[Callable[[dict], None]] = (),
) -> History:
    """Train a model and its guide; afterwards they are on the device, in evaluation mode.

    Args:
        model: an Autoencoder, or a Pyro model of a batch, ``model(x)`` or ``model(x, y)``, with ``guide``.
        data: a tensor ``(N, *event)``, a tuple ``(x, y)``, a split of ``pa.data.load(...)``, a Dataset or a DataLoader.
        guide: the model's guide, where ``model`` is not an Autoencoder.
        elbo: any Pyro ELBO; by default the Autoencoder's own objective, else TraceMeanField_ELBO (Trace_ELBO for several latent sites).
        epochs: passes over the data.
        batch_size: data in a step (a DataLoader brings its own).
        lr: learning rate; by default 1e-3, or the given optimizer's own.
        optimizer: called with the parameters, and lr where that is given; by default torch.optim.Adam (fused).
        scheduler: called with the optimizer; its ``step`` is called after every epoch.
        validation: data whose loss is computed after every epoch, in evaluation mode.
        patience: stop after so many epochs without a better validation loss, and go back to the best weights.
        device: ``"auto"`` (CUDA where there is one), ``"cpu"`` or ``"cuda"``.
        seed: makes the run repeatable and leaves the caller's random state alone.
        compile: ``"auto"`` traces and compiles the programs where the run is long enough to repay it, ``"eager"`` never does,
            ``"traced"`` and ``"compiled"`` do at once. The results differ by rounding.
        precision: of float32 matrix products, in the words of ``torch.set_float32_matmul_precision``; ``"auto"`` is the
            fastest that is measured to be as exact as float32 on this device. The caller's own setting is left alone.
        progress: show a progress bar.
        callbacks: each is called with the row of every epoch.

    Returns:
        A row for each epoch: epoch, loss and validation_loss in nats a datum, lr, seconds since the start.

    Raises:
        ValueError: bad arguments or data, or a loss that is no longer finite.

    >>> import pyroae as pa
    >>> x = torch.rand(256, 16).round()
    >>> vae = pa.Autoencoder(pa.priors.Normal(2), pa.likelihoods.Bernoulli(16), pa.posteriors.Normal(), pa.nets.MLP(8), pa.nets.MLP(8))
    >>> len(fit(vae, x, epochs=3, progress=False).loss)
    3
    """
    place = check_arguments(epochs, batch_size, lr, patience, validation, device)
    check_precision(precision)
    elbo, whole = getattr(model, "objective", None) if elbo is None else elbo, model
    model, guide = programs.pair(model, guide)
    pair = programs.modules(whole, model, guide)
    with programs.seeded(seed, place), pyro.validation_enabled(False):
        for module in pair:
            module.to(place)
        train = Batches(data, batch_size, place, shuffle=True, model=model)
        held_out = None if validation is None else Batches(validation, batch_size, place, shuffle=False, model=model)
        for module in pair:
            module.train()
        with torch.no_grad():
            seen = programs.traces(model, guide, *next(iter(train)))
        latent = programs.sites(seen[1], observed=False).values()
        elbo = default_elbo(latent) if elbo is None else elbo
        check_elbo(elbo, latent)
        if isinstance(elbo, Objective):
            elbo.settle(latent)
        optimizer = _optimizer(optimizer, programs.parameters(pair, seen), lr)
        svi = SVI(model, guide, optimizer, elbo, compile, epochs * len(train))
        best = _Best(patience, [*svi.parameters, *(buffer for module in pair for buffer in module.buffers())])
        history = History(type(elbo).__name__)
        try:
            for row in _epochs(svi, train, held_out, pair, epochs, scheduler, precision, progress):
                history.rows.append(row)
                _check_finite(row)
                for callback in callbacks:
                    callback(row)
                if best.exhausted(row):
                    break
        finally:
            best.restore()
            for module in pair:
                module.eval()
    return history


def _epochs(
    svi: SVI, train: Batches, held_out: Batches | None, pair: list, epochs: int, scheduler, precision: Precision, progress: bool
) -> Iterator[dict]:
    """Train epoch by epoch; a row for each."""
    schedule, start = scheduler(svi.optimizer) if scheduler else None, time.perf_counter()
    with tqdm(total=epochs * len(train), disable=not progress, unit="step", dynamic_ncols=True) as bar:
        for epoch in range(1, epochs + 1):
            bar.set_description(f"epoch {epoch}/{epochs}", refresh=False)
            with multiplying(precision, svi.parameters, train.batch_size):
                row = {"epoch": epoch, "loss": _train(svi, train, bar)}
                if held_out is not None:
                    row["validation_loss"] = _validate(svi, held_out, pair)
            row |= {"lr": svi.optimizer.param_groups[0]["lr"], "seconds": time.perf_counter() - start}
            _advance(schedule, row)
            yield row


def _train(svi: SVI, batches: Batches, bar: tqdm) -> float:
    """One epoch; the loss stays on the device and is looked at twice a second."""
    total, rows, glanced = torch.zeros((), dtype=torch.float64, device=batches.device), 0, time.perf_counter()
    for batch in batches:
        total += svi.step(*batch)
        rows += len(batch[0])
        bar.update()
        if not bar.disable and time.perf_counter() - glanced > _GLANCE:
            glanced = time.perf_counter()
            bar.set_postfix_str(f"loss {total.item() / rows:.2f} nats/datum", refresh=False)
    loss = total.item() / rows
    bar.set_postfix_str(f"loss {loss:.2f} nats/datum", refresh=False)
    return loss


def _validate(svi: SVI, batches: Batches, pair: list) -> float:
    """The loss of held-out data, with the same noise after every epoch."""
    total, rows = torch.zeros((), dtype=torch.float64, device=batches.device), 0
    with programs.looking(*pair, seed=0):
        for batch in batches:
            total += svi.evaluate_loss(*batch)
            rows += len(batch[0])
    return total.item() / rows


class _Best:
    """The best weights so far, kept while early stopping waits for better ones."""

    def __init__(self, patience: int | None, tensors: list[Tensor]):
        self.patience, self.tensors = patience, tensors
        self.loss, self.epoch, self.kept = math.inf, 0, None

    def exhausted(self, row: dict) -> bool:
        if self.patience is None:
            return False
        if row["validation_loss"] < self.loss:
            self.loss, self.epoch = row["validation_loss"], row["epoch"]
            self.kept = [tensor.detach().clone() for tensor in self.tensors]
        return row["epoch"] - self.epoch >= self.patience

    def restore(self):
        if self.kept is not None:
            with torch.no_grad():
                for tensor, kept in zip(self.tensors, self.kept):
                    tensor.copy_(kept)


def _optimizer(optimizer, free: list[Tensor], lr: float | None) -> Optimizer:
    if isinstance(optimizer, Optimizer):
        if lr is not None or not {id(p) for group in optimizer.param_groups for p in group["params"]} & {id(p) for p in free}:
            raise ValueError(
                "fit: expected an optimizer made with this model's parameters, and no lr beside it; or torch.optim.Adam itself"
            )
        return optimizer
    if not free:
        raise ValueError("fit: expected a model or guide with parameters to train, got none; register plain networks with pyro.module(...)")
    make = optimizer or functools.partial(torch.optim.Adam, fused=True, capturable=free[0].is_cuda)
    try:
        made = make(free) if lr is None else make(free, lr=lr)
    except TypeError as error:
        raise ValueError(f"fit: expected optimizer as a function of the parameters, and of lr where that is given: {error}") from error
    if not isinstance(made, Optimizer) or isinstance(made, (torch.optim.LBFGS, torch.optim.SparseAdam)):
        raise ValueError(f"fit: expected optimizer to make a torch optimizer for dense gradients, got {type(made).__name__}")
    return made


def _advance(schedule: LRScheduler | None, row: dict):
    if isinstance(schedule, ReduceLROnPlateau):
        schedule.step(row.get("validation_loss", row["loss"]))
    elif schedule is not None:
        schedule.step()


def _check_finite(row: dict):
    for name in ("loss", "validation_loss"):
        if not math.isfinite(row.get(name, 0.0)):
            raise ValueError(
                f"fit: the {name.replace('_', ' ')} is {row[name]} in epoch {row['epoch']}; "
                f"try a lower lr, and look at the data's range and the penalty's domain"
            )


def check_arguments(epochs: int, batch_size: int, lr: float | None, patience: int | None, validation: Any, device: str) -> torch.device:
    """``ValueError`` for arguments that ``fit`` would refuse; otherwise the device it would use."""
    whole_number("fit", epochs=epochs, batch_size=batch_size, patience=1 if patience is None else patience)
    if lr is not None and not (isinstance(lr, (int, float)) and 0.0 < lr < math.inf):
        raise ValueError(f"fit: expected lr as a positive number, got {lr!r}")
    if patience is not None and validation is None:
        raise ValueError("fit: patience waits for a better validation loss, but there are no validation data; give validation=...")
    return resolve_device(device)
