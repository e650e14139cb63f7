"""Runs: train a recipe, score it, and keep everything in a folder that is never overwritten."""

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
from ..model.autoencoder import Autoencoder
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
_LOOK = 100_000  # rows that a prior may take its first guess from
_CALLERS = "out", "limit"  # settings that are not the run's
_STEPS = 4000  # what a small data set needs
_RATE = 3e-3  # learning rate of a table of few columns, where nothing is said: as good as 1e-3 in half the epochs
_FEW = 100  # columns
_HELD_OUT = 0.1  # of a person's own training data, to see when to stop
_SAMPLE = 500  # test examples whose log p(x) ends a run
_LEVELS = 1000  # rows whose different values are counted
_STEP = 16.0  # bytes of a step for each number of x and draw, at least
_LOOKS = 50  # at the two sides of the ELBO, in a run


def train(settings: Settings, written: Settings, resumed: str | None = None, print_only: bool = False) -> CommandOutput:
    """Train a recipe with the parts, data and settings asked for; write a run folder, and say what came out.

    Args:
        settings: as ``settings.check`` gives them, with their parts made.
        written: the same as plain data, for the folder.
        resumed: the folder of the run to go on with.
        print_only: only return the settings, as YAML.

    Raises:
        ValueError: bad settings or data, a folder that is already in use, or a loss that is not finite; where nothing was learned
            no folder is left.
    """
    if print_only:
        return CommandOutput(yaml.safe_dump(written, sort_keys=False).rstrip(), written)
    torch.manual_seed(settings["seed"] or 0)
    dataset, note, raw = _load(settings, written, resumed)
    if dataset.table and distributed.is_main():
        print(dataset.table, file=sys.stderr)
    ae = _built(settings, dataset)
    _settle(settings, written, dataset)
    folder = distributed.run_on_main(lambda: _prepared(settings, written, _name(settings, dataset), resumed))
    if distributed.is_main() and not record.is_there(folder):
        record.save(folder, raw, written["data"])
    with _keeping(folder, resumed):
        return _trained(settings, ae, dataset, note, folder, resumed)


def _trained(settings: Settings, ae: Autoencoder, found: DataSet, note: str, folder: Path, resumed: str | None) -> CommandOutput:
    history = _train(ae, found, settings, folder, resumed)
    if distributed.is_main():
        storage.save(ae, folder / "model.safetensors")
        with atomic(folder / "history.csv") as path:
            history.to_csv(path)
    terms, estimate, report = score(ae, found.test, settings["particles"], sample=_SAMPLE)
    if not distributed.is_main():
        return CommandOutput("", {})
    seconds, loss = history["seconds"][-1], history.loss[-1]
    more, compared = gain_over_independent(found, estimate)
    results = results_of(terms, estimate) | more | {"training_seconds": seconds, "objective": history.objective}
    write_json(folder / "results.json", results)
    write_rows(folder / "results.csv", terms, estimate)
    plots.save(plots.training, folder / "training.png", history)
    files = ["settings.json", "data.safetensors", "model.safetensors", "history.csv", "results.json", "results.csv", "training.png"]
    files += figures.draw(ae, found, folder)
    lines = [
        f"data           {found!r}{note}",
        f"trained        {settings['recipe']}, {len(history.rows)} epochs of {history.objective} in {seconds:.1f} s on {ae.device.type}, "
        f"last training loss {loss:.2f} nats/example",
        *report,
        *compared,
        f"run folder     {folder}: {', '.join(files)}",
        f"next           {command()} report {folder} writes a page about it; {command()} evaluate {folder} says more",
    ]
    said = {"run": str(folder), "recipe": settings["recipe"], "epochs": len(history.rows), "loss": loss}
    return CommandOutput("\n".join(lines), {**said, **results, "files": files})


def _name(settings: Settings, dataset: DataSet) -> str:
    """What a run is called: recipe, data, and the parts that were named."""
    changed = [type(settings[role]).__name__ for role in ROLES if settings[role] is not None]
    return "-".join([settings["recipe"], dataset.name, *changed])


def _prepared(settings: Settings, written: Settings, name: str, resumed: str | None) -> Path:
    """The run's folder, with the settings in it."""
    folder = Path(resumed) if resumed else new_folder(settings["out"], name)
    with Checkpoints(folder).locked():
        write_json(folder / "settings.json", {name: value for name, value in written.items() if name not in _CALLERS})
    return folder


def _train(ae: Autoencoder, found: DataSet, settings: Settings, folder: Path, resumed: str | None) -> History:
    """Train, with checkpoints in the folder."""
    options: Settings = arguments_of(fit, settings) | {"compile": Step(**arguments_of(Step, settings))}
    callbacks = _callbacks(ae, found, settings, folder)
    if settings["pretrain"] and not distributed.run_on_main(Checkpoints(folder).paths):
        pull = getattr(ae.objective, "penalty", None)
        pretrain(ae, found.train, corruption=ae.corruption, penalty=pull, **options | {"epochs": settings["pretrain"]})
    return fit(
        ae,
        found.train,
        validation=Validation(found.validation, **arguments_of(Validation, settings)),
        run=Run(folder, resumed is not None, **arguments_of(Run, settings)),
        callbacks=callbacks,
        **options,
    )


@contextlib.contextmanager
def _keeping(folder: Path, resumed: str | None) -> Iterator[None]:
    """Say how a run goes on that is interrupted or finds its disk full; one in which nothing was learned leaves no new folder."""
    try:
        yield
    except BaseException as error:
        how = f"what was learned is kept: {command()} train --resume {folder} goes on"
        learned = (folder / "model.safetensors").exists() or any(int(path.stem) for path in Checkpoints(folder).paths())
        if not learned and resumed is None and distributed.is_main():
            shutil.rmtree(folder)
        elif isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"stopped; {how}") from error
        elif isinstance(error, OSError) and not isinstance(error, ConnectionError):
            raise OSError(f"{error}; {how}") from error
        raise


def _callbacks(ae: Autoencoder, found: DataSet, settings: Settings, folder: Path) -> list[Callback]:
    looks = max(1, settings["epochs"] // _LOOKS)
    callbacks: list[Callback] = [ELBOTerms(ae, found.train, every=looks)]
    if not distributed.is_main():
        return callbacks
    if settings["pictures"]:
        callbacks.append(figures.during_training(ae, found, folder, settings["pictures"]))
    if settings["tensorboard"]:
        callbacks.append(TensorBoard(folder / "tensorboard", ae, found, every=max(1, settings["epochs"] // 5)))
    return callbacks


def _built(settings: Settings, found: DataSet) -> Autoencoder:
    """The recipe's model with the parts that were named, checked against the data."""
    recipe = RECIPES[settings["recipe"]]
    changes = {name: settings[name] for name in ROLES if settings[name] is not None}
    try:
        ae = build_for_training(lambda: recipe(found, **arguments_of(recipe, settings)).replace(**changes), settings["limit"])
        ae.prior.measure(found.train.draw(found.train.x[:_LOOK]))
        for split in (found.train, found.test):
            as_data(split, ae.model, ae.guide, stream=True)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError) as error:
        raise ValueError(f"train: no model can be built with these settings: {type(error).__name__}: {error}") from error
    return ae


def _settle(settings: Settings, written: Settings, found: DataSet):
    """Fill in the number of epochs, the patience and the learning rate, and refuse what training or scoring would refuse later."""
    if settings["epochs"] is None:
        columns = len(found.schema.columns or ())
        if settings["lr"] is None and settings["optimizer"] is None and found.validation is not None and 0 < columns < _FEW:
            settings["lr"] = written["lr"] = _RATE
        settings["epochs"] = written["epochs"] = max(20, math.ceil(_STEPS / math.ceil(len(found.train) / max(1, settings["batch_size"]))))
        if settings["patience"] is None and found.validation is not None:
            settings["patience"] = written["patience"] = max(3, settings["epochs"] // 10)
    whole_number("train", particles=settings["particles"], pretrain=settings["pretrain"] or 1, pictures=settings["pictures"] or 1)
    check_arguments(settings["epochs"], settings["batch_size"], settings["lr"], settings["device"])
    Validation(found.validation, **arguments_of(Validation, settings)), Step(**arguments_of(Step, settings))
    rows, draws = min(settings["batch_size"], len(found.train)), _draws(settings["objective"])
    size = _STEP * draws * rows * found.event_shape.numel()
    check_size(size, settings["limit"], f"a step with {draws:,} draws for each of {rows:,} examples", "train")


def _draws(objective: Any) -> int:
    """How many particles, or probes of a Jacobian, an objective draws for each example, in itself or in what it is made of."""
    inner = [each for each in getattr(objective, "__dict__", {}).values() if isinstance(each, (ELBO, Part))]
    return max([1, getattr(objective, "num_particles", 1), getattr(objective, "probes", None) or 1, *map(_draws, inner)])


def _load(settings: Settings, written: Settings, resumed: str | None) -> tuple[DataSet, str, DataSet]:
    """The data asked for, a note, and the data before they were binarized. A run that goes on gets its own rows again.

    A VAE of grey levels for which no likelihood was chosen gets them binarized, as is usual, and says so.
    """
    settings["data"] = written["data"] = record.resolved(settings["data"])
    open_end = settings["epochs"] is None and settings["patience"] is None
    if open_end and not settings["validation"] and settings["data"] not in data.NAMED:
        settings["validation"] = written["validation"] = _HELD_OUT
    raw = load_data(settings, resumed, "train", ("train", "validation", "test"))
    note = ""
    vae = settings["recipe"] in ("vae", "conditional") and settings["likelihood"] is None
    if vae and raw.domain == "unit" and _are_grey_levels(raw):
        note = "; grey levels binarized afresh whenever used (name a --likelihood to model them as they are)"
        settings["binarize"] = written["binarize"] = "dynamic"
    return (data.binarized(raw, settings["binarize"]) if settings["binarize"] else raw), note, raw


def _are_grey_levels(found: DataSet) -> bool:
    """Whether values from 0 to 1 are pixels: of images, or in few steps."""
    return found.image_shape is not None or len(found.train.x[:_LEVELS].unique()) <= 256
