"""``pyroae train``: train a recipe, score and draw the model, and write everything to a new folder."""

import contextlib
import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from pyro.infer import ELBO

from .. import data, plots, storage
from ..bounded import build_for_training
from ..checks import whole_number
from ..data import DataSet, record
from ..data.limits import check_size
from ..evaluation.particles import as_data
from ..files import atomic
from ..fitted_priors import fit_prior
from ..model.autoencoder import Autoencoder
from ..model.posteriors import Delta
from ..objectives import Penalised
from ..pretraining import pretrain
from ..recipes import RECIPES
from ..registry import Part
from ..training import distributed
from ..training.checkpoints import Checkpoints
from ..training.fit import History, check_arguments, fit
from ..training.options import Run, Step, Validation
from . import figures
from .callbacks import Callback, ELBOTerms, TensorBoard
from .folder import load_data, new_folder, write_json
from .output import CommandOutput, command
from .scoring import gain_over_independent, results_of, score, write_rows
from .settings import ROLES, arguments_of

Settings = dict[str, Any]
_INITIAL = 100_000  # rows for the initial values of a prior
_CALLERS = "out", "limit"  # settings that are not recorded in the run folder
_STEPS = 4000  # enough for a small data set
_RATE = 3e-3  # default learning rate for tables of few columns: as good as 1e-3 in half the epochs
_FEW = 100  # columns
_HELD_OUT = 0.1  # fraction of the user's training data for early stopping
_SAMPLE = 500  # test examples scored at the end of a run
_FITTED_SAMPLE = 100  # of a point posterior whose prior was fitted: each needs a proposal of its own
_LEVELS = 1000  # rows whose distinct values are counted
_STEP = 16.0  # least memory of a step in bytes, per entry of x and particle
_EVALUATIONS = 50  # of the two terms of the ELBO, per run


def train(settings: Settings, written: Settings, resumed: str | None = None, print_only: bool = False) -> CommandOutput:
    """Train a recipe, score and draw the model, and write a run folder.

    Args:
        settings: of ``settings.check``, with their parts made.
        written: the same as plain data, for the folder.
        resumed: the folder of the run to resume.
        print_only: only return the settings, as YAML.

    Raises:
        ValueError: wrong settings or data, a folder that is in use, or a loss that is not finite. If not one epoch was
            completed, the new folder is removed.
    """
    if print_only:
        return CommandOutput(yaml.safe_dump(written, sort_keys=False).rstrip(), written)
    torch.manual_seed(settings["seed"] or 0)
    dataset, note, raw = _load_data(settings, written, resumed)
    if dataset.table and distributed.is_main():
        print(dataset.table, file=sys.stderr)
    ae = _build(settings, dataset)
    _set_defaults(settings, written, dataset)
    _check(settings, dataset)
    folder = distributed.run_on_main(lambda: _prepare_folder(settings, written, _name(settings, dataset), resumed))
    if distributed.is_main() and not record.is_there(folder):
        record.save(folder, raw, written["data"])
    with _explain_stop(folder, resumed):
        return _train_and_score(settings, ae, dataset, note, folder, resumed)


def _train_and_score(settings: Settings, ae: Autoencoder, dataset: DataSet, note: str, folder: Path, resumed: str | None) -> CommandOutput:
    history = _train(ae, dataset, settings, folder, resumed)
    if settings["fit_prior"] is not None:
        ae = fit_prior(ae, dataset.train, settings["fit_prior"], seed=settings["seed"], device=settings["device"])
    if distributed.is_main():
        storage.save(ae, folder / "model.safetensors")
        with atomic(folder / "history.csv") as path:
            history.to_csv(path)
    sample = (_FITTED_SAMPLE if settings["fit_prior"] is not None else 0) if isinstance(ae.posterior, Delta) else _SAMPLE
    terms, estimate, report = score(ae, dataset.test, settings["particles"], sample=sample)
    if not distributed.is_main():
        return CommandOutput("", {})
    seconds, loss = history["seconds"][-1], history.loss[-1]
    gain, gain_lines = gain_over_independent(dataset, estimate)
    results = results_of(terms, estimate) | gain | {"training_seconds": seconds, "objective": history.objective}
    write_json(folder / "results.json", results)
    write_rows(folder / "results.csv", terms, estimate)
    plots.save(plots.training, folder / "training.png", history)
    files = ["settings.json", "data.safetensors", "model.safetensors", "history.csv", "results.json", "results.csv", "training.png"]
    files += figures.draw(ae, dataset, folder)
    lines = [
        f"data           {dataset!r}{note}",
        f"trained        {settings['recipe']}, {len(history.rows)} epochs of {history.objective} in {seconds:.1f} s on {ae.device.type}, "
        f"last training loss {loss:.2f} nats/example",
        *([] if settings["fit_prior"] is None else [f"prior          {type(ae.prior).__name__}, fitted to the codes"]),
        *report,
        *gain_lines,
        f"run folder     {folder}: {', '.join(files)}",
        f"next           {command()} report {folder} writes a page about it; {command()} evaluate {folder} computes all scores",
    ]
    summary = {"run": str(folder), "recipe": settings["recipe"], "epochs": len(history.rows), "loss": loss}
    return CommandOutput("\n".join(lines), {**summary, **results, "files": files})


def _name(settings: Settings, dataset: DataSet) -> str:
    """The name of a run: recipe, data and chosen parts."""
    changed = [type(settings[role]).__name__ for role in ROLES if settings[role] is not None]
    return "-".join([settings["recipe"], dataset.name, *changed])


def _prepare_folder(settings: Settings, written: Settings, name: str, resumed: str | None) -> Path:
    """Create the run's folder and write its settings."""
    folder = Path(resumed) if resumed else new_folder(settings["out"], name)
    with Checkpoints(folder).locked():
        write_json(folder / "settings.json", {name: value for name, value in written.items() if name not in _CALLERS})
    return folder


def _train(ae: Autoencoder, dataset: DataSet, settings: Settings, folder: Path, resumed: str | None) -> History:
    """Train, with checkpoints in the run folder."""
    options: Settings = arguments_of(fit, settings) | {"compile": Step(**arguments_of(Step, settings))}
    callbacks = _callbacks(ae, dataset, settings, folder)
    if settings["pretrain"] and not distributed.run_on_main(Checkpoints(folder).paths):
        penalty = ae.objective.penalty if isinstance(ae.objective, Penalised) else None
        pretrain(ae, dataset.train, corruption=ae.corruption, penalty=penalty, **options | {"epochs": settings["pretrain"]})
    return fit(
        ae,
        dataset.train,
        validation=Validation(dataset.validation, **arguments_of(Validation, settings)),
        run=Run(folder, resumed is not None, **arguments_of(Run, settings)),
        callbacks=callbacks,
        **options,
    )


@contextlib.contextmanager
def _explain_stop(folder: Path, resumed: str | None) -> Iterator[None]:
    """Add to an interrupt or a full disk how to resume the run; remove a new folder in which no epoch was completed."""
    try:
        yield
    except BaseException as error:
        how = f"the last checkpoint is kept: {command()} train --resume {folder} continues"
        trained = (folder / "model.safetensors").exists() or any(int(path.stem) for path in Checkpoints(folder).paths())
        if not trained and resumed is None and distributed.is_main():
            shutil.rmtree(folder)
        elif isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"stopped; {how}") from error
        elif isinstance(error, OSError) and not isinstance(error, ConnectionError):
            raise OSError(f"{error}; {how}") from error
        raise


def _callbacks(ae: Autoencoder, dataset: DataSet, settings: Settings, folder: Path) -> list[Callback]:
    every = max(1, settings["epochs"] // _EVALUATIONS)
    callbacks: list[Callback] = [ELBOTerms(ae, dataset.train, every=every)]
    if not distributed.is_main():
        return callbacks
    if settings["figures_every"]:
        callbacks.append(figures.during_training(ae, dataset, folder, settings["figures_every"]))
    if settings["tensorboard"]:
        callbacks.append(TensorBoard(folder / "tensorboard", ae, dataset, every=max(1, settings["epochs"] // 5)))
    return callbacks


def _build(settings: Settings, dataset: DataSet) -> Autoencoder:
    """The recipe's model with the chosen parts, checked against the data."""
    recipe = RECIPES[settings["recipe"]]
    changes = {name: settings[name] for name in ROLES if settings[name] is not None}
    try:
        ae = build_for_training(lambda: recipe(dataset, **arguments_of(recipe, settings)).replace(**changes), settings["limit"])
        encoded = dataset.train if ae.inputs is None else dataset.train.inputs or dataset.train
        ae.prior.measure(encoded.draw(encoded.x[:_INITIAL]))
        for split in (dataset.train, dataset.test):
            as_data(split, ae.model, ae.guide, stream=True)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError) as error:
        raise ValueError(f"train: no model can be built with these settings: {type(error).__name__}: {error}") from error
    return ae


def _set_defaults(settings: Settings, written: Settings, dataset: DataSet):
    """Choose the number of epochs, the patience and the learning rate if they are not given."""
    if settings["epochs"] is None:
        columns = len(dataset.schema.columns or ())
        if settings["lr"] is None and settings["optimizer"] is None and dataset.validation is not None and 0 < columns < _FEW:
            settings["lr"] = written["lr"] = _RATE
        settings["epochs"] = written["epochs"] = max(20, math.ceil(_STEPS / math.ceil(len(dataset.train) / max(1, settings["batch_size"]))))
        if settings["patience"] is None and dataset.validation is not None:
            settings["patience"] = written["patience"] = max(3, settings["epochs"] // 10)


def _check(settings: Settings, dataset: DataSet):
    """``ValueError`` for settings that training or scoring would refuse later."""
    every = settings["figures_every"] or 1
    whole_number("train", particles=settings["particles"], pretrain=settings["pretrain"] or 1, figures_every=every)
    check_arguments(settings["epochs"], settings["batch_size"], settings["lr"], settings["device"])
    Validation(dataset.validation, **arguments_of(Validation, settings)), Step(**arguments_of(Step, settings))
    rows, draws = min(settings["batch_size"], len(dataset.train)), _draws(settings["objective"])
    size = _STEP * draws * rows * dataset.event_shape.numel()
    check_size(size, settings["limit"], f"a step with {draws:,} particles for each of {rows:,} examples", "train")


def _draws(objective: Any) -> int:
    """The largest number of particles, or probes of a Jacobian, per example in an objective and the objects inside it."""
    inner = [value for value in getattr(objective, "__dict__", {}).values() if isinstance(value, (ELBO, Part))]
    return max([1, getattr(objective, "num_particles", 1), getattr(objective, "probes", None) or 1, *map(_draws, inner)])


def _load_data(settings: Settings, written: Settings, resumed: str | None) -> tuple[DataSet, str, DataSet]:
    """The data, a note about them, and the data before binarization. A resumed run gets its own rows again.

    Grey levels are binarized for a VAE without a chosen likelihood, as is usual; the note says so.
    """
    settings["data"] = written["data"] = record.resolved(settings["data"])
    early_stopping = settings["epochs"] is None and settings["patience"] is None
    if early_stopping and not settings["validation"] and settings["data"] not in data.NAMED:
        settings["validation"] = written["validation"] = _HELD_OUT
    raw = load_data(settings, resumed, "train", ("train", "validation", "test"))
    note = ""
    vae = settings["recipe"] in ("vae", "conditional") and settings["likelihood"] is None
    if vae and raw.domain == "unit" and _are_grey_levels(raw):
        note = "; grey levels are binarized anew at every use (choose a --likelihood to model them as they are)"
        settings["binarize"] = written["binarize"] = "dynamic"
    return (data.binarized(raw, settings["binarize"]) if settings["binarize"] else raw), note, raw


def _are_grey_levels(data: DataSet) -> bool:
    """Whether values from 0 to 1 are pixels: those of images, or with few distinct values."""
    return data.image_shape is not None or len(data.train.x[:_LEVELS].unique()) <= 256
