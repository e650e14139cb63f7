"""What a checkpoint may hold: compared whole with the run that is to go on, before anything of it is used.

A checkpoint comes from a file that may be somebody else's. Its tensors have the names, shapes and dtypes of this run's model and
optimizer, its numbers are finite and in their ranges, and its lists are no longer than the run makes them.
"""

import copy
import math
import random
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from .. import registry, sizes
from ..checks import short

if TYPE_CHECKING:
    from .loop import Training

_CORE = ("epoch", "loss", "lr", "seconds")  # of every row of the history


def check_state(state: dict[str, Any], run: "Training", optimizer: Optimizer):
    """Compare a checkpoint with the run that is to go on from it.

    Raises:
        ValueError: it is of another model, optimizer, data or settings, or no checkpoint at all: names the first thing that is wrong.
    """
    ours = run.state()
    _require(isinstance(state, dict) and state.keys() == ours.keys(), "its entries", f"{', '.join(ours)}", state)
    _same_settings(state["about"], ours["about"])
    _same_weights(state["weights"], ours["weights"])
    _whole(state["step"], "step", 0, sizes.STEPS)
    _whole(state["seen"], "seen", 0, sizes.STEPS)
    _number(state["seconds"], "seconds", 0.0)
    _like(state["total"], ours["total"], "total")
    _history(state["history"], state["step"], len(run.train), (*_CORE, "validation_loss") if run.held_out else _CORE)
    _best(state["best"], ours["weights"], len(state["history"]))
    _optimizer(state["optimizer"], optimizer)
    _like(state["scheduler"], ours["scheduler"], "scheduler", _lowest("schedulers", run.schedule))
    _like(state["objective"], ours["objective"], "objective", 0.0)
    _random(state["random"], ours["random"], "random")
    _batches(state["batches"], run)
    _levels(state["levels"], ours["levels"], max(run.train.batch_size, len(run.train.first()[0])))


def _require(sound: bool, where: str, expected: str, got: Any):
    if not sound:
        raise ValueError(f"fit: the checkpoint cannot be used: expected {where} as {expected}, got {short(got)}")


def _whole(value: Any, where: str, low: int, high: int):
    sound = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
    _require(sound, where, f"a whole number from {low:,} to {high:,}", value)


def _number(value: Any, where: str, low: float = -math.inf):
    sound = isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value and abs(value) <= sys.float_info.max
    _require(sound, where, "a finite number" + (f" of at least {low:g}" if low > -math.inf else ""), value)


def _lowest(kind: str, ours: Any) -> float:
    """0 for what torch's own optimizers and schedulers keep where this run has no negative number; another's may be any."""
    return 0.0 if type(ours) in registry.members(kind).values() else -math.inf


def _like(value: Any, ours: Any, where: str, low: float = -math.inf):
    """The same kind of value as this run's: keys, lengths, shapes and dtypes; no NaN, and infinite only what is so here.

    Numbers are at least ``low`` where this run's are.
    """
    if isinstance(ours, Tensor):
        sound = isinstance(value, Tensor) and value.shape == ours.shape and value.dtype == ours.dtype
        _require(sound, where, f"a tensor of {ours.dtype} and shape {tuple(ours.shape)}", value)
        _require(not value.is_floating_point() or not bool(value.isnan().any()), where, "numbers", "NaN")
    elif isinstance(ours, dict):
        _require(isinstance(value, dict) and value.keys() == ours.keys(), where, f"the entries {', '.join(map(str, ours))}", value)
        for name, item in ours.items():
            _like(value[name], item, f"{where}.{name}", low)
    elif isinstance(ours, (list, tuple)):
        sound = isinstance(value, (list, tuple)) and len(value) == len(ours)
        _require(sound, where, f"{len(ours):,} values", value)
        if all(type(one) is type(other) is int and 0 <= one < sizes.LARGEST for one, other in zip(value, ours)):
            return
        for i, (one, other) in enumerate(zip(value, ours)):
            _like(one, other, f"{where}[{i}]", low)
    elif ours is None or isinstance(ours, (bool, str)):
        _require(type(value) is type(ours) and value == ours, where, repr(ours), value)
    elif isinstance(ours, float) and not math.isfinite(ours):
        _require(isinstance(value, float) and not math.isnan(value), where, "a number", value)
    elif isinstance(ours, (int, float)):
        _number(value, where, low if ours >= low else -math.inf)


def _same_settings(theirs: Any, ours: dict[str, Any]):
    _require(isinstance(theirs, dict), "about", "the settings of the run", theirs)
    for name, now in ours.items():
        if name not in theirs or type(theirs[name]) is not type(now) or theirs[name] != now:
            raise ValueError(
                f"fit: the run to go on with has {name} {short(theirs.get(name))}, this call {short(now)}; they must be the same"
            )


def _same_weights(theirs: Any, ours: dict[str, Tensor]):
    _require(isinstance(theirs, dict) and all(isinstance(w, Tensor) for w in theirs.values()), "weights", "tensors by name", theirs)
    shapes, expected = ({name: tuple(w.shape) for name, w in weights.items()} for weights in (theirs, ours))
    if shapes != expected:
        name = min((name for name in expected.keys() | shapes.keys() if expected.get(name) != shapes.get(name)), key=str)
        raise ValueError(
            f"fit: the run to go on with is of another model: its weight {short(name)} has the shape {shapes.get(name)}, "
            f"here {expected.get(name)}"
        )
    _like(theirs, ours, "weights")


def _history(rows: Any, step: int, batches: int, core: tuple[str, ...]):
    most = min(sizes.EPOCHS, step // max(1, batches))
    _require(isinstance(rows, list) and len(rows) <= most, "history", f"at most {most:,} rows, one for each finished epoch", rows)
    for i, row in enumerate(rows):
        sound = isinstance(row, dict) and row.keys() >= set(core) and row.keys() == rows[0].keys()
        _require(sound, f"history[{i}]", f"a row with the columns {', '.join(core)} and those of the others", row)
        _whole(row["epoch"], f"history[{i}].epoch", i + 1, i + 1)
        for name, value in row.items():
            where = f"history[{i}].{name}"
            _require(isinstance(name, str) and len(name) <= sizes.NAME, "the columns of the history", "short text", name)
            if name in core:
                _number(value, where, 0.0 if name in ("lr", "seconds") else -math.inf)
            else:
                _of_a_callback(value, where)


def _of_a_callback(value: Any, where: str):
    """A number, which may be NaN, or text, in a column of the history that a callback added."""
    sound = value is None or isinstance(value, (bool, float)) or (isinstance(value, int) and abs(value) < sizes.LARGEST)
    sound = sound or (isinstance(value, str) and len(value) <= sizes.TEXT)
    _require(sound, where, f"a number, or text of at most {sizes.TEXT:,} characters", value)


def _best(best: Any, weights: dict[str, Tensor], epochs: int):
    _require(isinstance(best, dict) and best.keys() == {"loss", "epoch", "weights", "objective"}, "best", "the best epoch so far", best)
    _require(isinstance(best["loss"], float) and not math.isnan(best["loss"]), "best.loss", "a number", best["loss"])
    _whole(best["epoch"], "best.epoch", 0, epochs)
    if best["weights"] is not None:
        _like(best["weights"], weights, "best.weights")
    sound = isinstance(best["objective"], list) and len(best["objective"]) <= sizes.OBJECTIVE_NUMBERS
    _require(sound, "best.objective", f"at most {sizes.OBJECTIVE_NUMBERS} numbers", best["objective"])
    for value in best["objective"]:
        _number(value, "best.objective")


def _optimizer(state: Any, optimizer: Optimizer):
    """Groups with our settings, whose numbers may differ; for each parameter what one step of this optimizer keeps of it."""
    expected = _after_a_step(optimizer)
    _require(isinstance(state, dict) and state.keys() == {"state", "param_groups"}, "optimizer", "the state of an optimizer", state)
    _like(state["param_groups"], expected["param_groups"], "optimizer.param_groups", _lowest("optimizers", optimizer))
    for group, ours in zip(state["param_groups"], expected["param_groups"]):
        _require(group["params"] == ours["params"], "optimizer.params", "this run's parameters", group["params"])
        if not isinstance(group["lr"], Tensor):
            _number(group["lr"], "optimizer.lr", 0.0)
    kept = state["state"]
    _require(isinstance(kept, dict) and kept.keys() <= expected["state"].keys(), "optimizer.state", "an entry for each parameter", kept)
    for i, entry in kept.items():
        _like(entry, expected["state"][i], f"optimizer.state.{i}")


def _after_a_step(optimizer: Optimizer) -> dict[str, Any]:
    """The state of a copy of this optimizer, of copies of its parameters, after a step with gradients of 0."""
    scratch = copy.deepcopy(optimizer)
    for group in scratch.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    scratch.step()
    return scratch.state_dict()


def _random(state: Any, ours: dict[str, Any], where: str):
    """States that random number generators accept; of NumPy's the position too, which NumPy does not check."""
    _require(isinstance(state, dict) and state.keys() == ours.keys(), where, "the states of random number generators", state)
    python = state["python"]
    cached = isinstance(python, (list, tuple)) and len(python) == 3 and (python[2] is None or isinstance(python[2], float))
    _require(cached, f"{where}.python", "a state of Python's generator", python)
    _like((*python[:2], None), (*ours["python"][:2], None), f"{where}.python")
    _like(state["torch"], ours["torch"], f"{where}.torch")
    if state["device"] is not None:  # a run may go on on another device, which draws its own numbers
        like = torch.zeros(16, dtype=torch.uint8) if ours["device"] is None else ours["device"]
        _like(state["device"], like, f"{where}.device")
    _like(state["numpy"], ours["numpy"], f"{where}.numpy")
    for key in state["numpy"][1]:
        _whole(key, f"{where}.numpy", 0, 2**32 - 1)
    _whole(state["numpy"][2], f"{where}.numpy", 0, 624)
    try:
        random.Random().setstate(python)
        np.random.RandomState().set_state(tuple(state["numpy"]))
        torch.Generator().set_state(state["torch"])
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        _require(False, where, "the states of random number generators", str(error))


def _batches(state: Any, run: "Training"):
    """Where an epoch of these data can be."""
    epoch = iter(run.train)
    next(epoch)
    within = run.train.state_dict()
    epoch.close()
    run.train.first()  # no epoch is under way afterwards
    _require(isinstance(state, dict) and state.keys() == within.keys(), "batches", "where the epoch is", state)
    generators = within["generators"]
    _like(state["generators"], generators, "batches.generators")
    under_way = state["epoch"]
    if under_way is None:
        return
    _require(isinstance(under_way, dict) and under_way.keys() == within["epoch"].keys(), "batches.epoch", "where the epoch is", under_way)
    _whole(under_way["given"], "batches.epoch.given", 0, len(run.train))
    for name, ours in within["epoch"].items():
        if name in ("order", "block"):
            _random(under_way[name], ours, f"batches.epoch.{name}")
        elif name != "given":
            _like(under_way[name], ours, f"batches.epoch.{name}")


def _levels(state: Any, ours: dict[str, Any], rows: int):
    """For each kind of batch its rows, how far its graph has come, and how often it has run."""
    _require(isinstance(state, dict) and state.keys() == ours.keys(), "levels", f"the entries {', '.join(ours)}", state)
    for what, kinds in state.items():
        sound = isinstance(kinds, list) and len(kinds) <= sizes.BATCH_KINDS
        _require(sound, f"levels.{what}", f"at most {sizes.BATCH_KINDS} kinds of batches", kinds)
        for kind in kinds:
            _require(isinstance(kind, (tuple, list)) and 2 <= len(kind) <= 3, f"levels.{what}", "rows, a level, and runs", kind)
            for value, low, high in zip(kind, (1, 0, 0), (rows, sizes.GRAPH_LEVELS, sizes.STEPS)):
                _whole(value, f"levels.{what}", low, high)
