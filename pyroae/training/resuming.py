"""Checks of a checkpoint's content against the run that resumes it, before any of it is used.

A checkpoint may come from an untrusted file. Its tensors must have the names, shapes and dtypes of this run's model and
optimizer, its numbers must be finite and within range, and its lists no longer than those of the run.
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
from .epoch import is_plain

if TYPE_CHECKING:
    from .loop import Training

_CORE = ("epoch", "loss", "lr", "seconds")  # columns of the history


def check_state(state: dict[str, Any], run: "Training", optimizer: Optimizer):
    """Compare a checkpoint with the run that resumes it.

    Raises:
        ValueError: it belongs to another model, optimizer, data or settings, or is invalid; names the first difference.
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
    _like(state["scheduler"], ours["scheduler"], "scheduler", _minimum("schedulers", run.schedule))
    _like(state["objective"], ours["objective"], "objective", 0.0)
    _random(state["random"], ours["random"], "random")
    _batches(state["batches"], run)
    rows = [len(batches.first()[0]) for batches in (run.train, run.held_out) if batches]
    _levels(state["levels"], ours["levels"], max(run.train.batch_size, *rows))


def _require(valid: bool, name: str, expected: str, value: Any):
    if not valid:
        raise ValueError(f"fit: the checkpoint cannot be used: expected {name} as {expected}, got {short(value)}")


def _whole(value: Any, name: str, low: int, high: int):
    valid = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
    _require(valid, name, f"a whole number from {low:,} to {high:,}", value)


def _number(value: Any, name: str, low: float = -math.inf):
    valid = isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value and abs(value) <= sys.float_info.max
    _require(valid, name, "a finite number" + (f" of at least {low:g}" if low > -math.inf else ""), value)


def _minimum(kind: str, ours: Any) -> float:
    """0 for torch's own optimizers and schedulers, whose states are not negative unless this run's are; no minimum for others."""
    return 0.0 if type(ours) in registry.members(kind).values() else -math.inf


def _like(value: Any, ours: Any, name: str, low: float = -math.inf):
    """Require this run's structure: keys, lengths, shapes and dtypes; no NaN, and infinite only where this run's is.

    Numbers are at least ``low`` where this run's are.
    """
    if isinstance(ours, Tensor):
        valid = isinstance(value, Tensor) and value.shape == ours.shape and value.dtype == ours.dtype
        _require(valid, name, f"a tensor of {ours.dtype} and shape {tuple(ours.shape)}", value)
        _require(not value.is_floating_point() or not bool(value.isnan().any()), name, "numbers", "NaN")
    elif isinstance(ours, dict):
        _require(isinstance(value, dict) and value.keys() == ours.keys(), name, f"the entries {', '.join(map(str, ours))}", value)
        for key, item in ours.items():
            _like(value[key], item, f"{name}.{key}", low)
    elif isinstance(ours, (list, tuple)):
        valid = isinstance(value, (list, tuple)) and len(value) == len(ours)
        _require(valid, name, f"{len(ours):,} values", value)
        if all(type(a) is type(b) is int and 0 <= a < sizes.LARGEST for a, b in zip(value, ours)):
            return
        for i, (a, b) in enumerate(zip(value, ours)):
            _like(a, b, f"{name}[{i}]", low)
    elif ours is None or isinstance(ours, (bool, str)):
        _require(type(value) is type(ours) and value == ours, name, repr(ours), value)
    elif isinstance(ours, float) and not math.isfinite(ours):
        _require(isinstance(value, float) and not math.isnan(value), name, "a number", value)
    elif isinstance(ours, (int, float)):
        _number(value, name, low if ours >= low else -math.inf)


def _same_settings(theirs: Any, ours: dict[str, Any]):
    _require(isinstance(theirs, dict), "about", "the settings of the run", theirs)
    for name, value in ours.items():
        if name not in theirs or type(theirs[name]) is not type(value) or theirs[name] != value:
            raise ValueError(
                f"fit: the run to resume has {name} {short(theirs.get(name))}, this call {short(value)}; they must be the same"
            )


def _same_weights(theirs: Any, ours: dict[str, Tensor]):
    _require(isinstance(theirs, dict) and all(isinstance(w, Tensor) for w in theirs.values()), "weights", "tensors by name", theirs)
    shapes, expected = ({name: tuple(w.shape) for name, w in weights.items()} for weights in (theirs, ours))
    if shapes != expected:
        name = min((name for name in expected.keys() | shapes.keys() if expected.get(name) != shapes.get(name)), key=str)
        raise ValueError(
            f"fit: the run to resume is of another model: its weight {short(name)} has the shape {shapes.get(name)}, "
            f"here {expected.get(name)}"
        )
    _like(theirs, ours, "weights")


def _history(rows: Any, step: int, batches: int, core: tuple[str, ...]):
    limit = min(sizes.EPOCHS, step // max(1, batches))
    _require(isinstance(rows, list) and len(rows) <= limit, "history", f"at most {limit:,} rows, one for each finished epoch", rows)
    for i, row in enumerate(rows):
        valid = isinstance(row, dict) and row.keys() >= set(core) and row.keys() == rows[0].keys()
        _require(valid, f"history[{i}]", f"a row with the columns {', '.join(core)} and those of the others", row)
        _whole(row["epoch"], f"history[{i}].epoch", i + 1, i + 1)
        for column, value in row.items():
            name = f"history[{i}].{column}"
            _require(isinstance(column, str) and len(column) <= sizes.NAME, "the columns of the history", "short text", column)
            if column in core:
                _number(value, name, 0.0 if column in ("lr", "seconds") else -math.inf)
            else:
                _callback_value(value, name)


def _callback_value(value: Any, name: str):
    """A value in a column that a callback added: a number, possibly NaN, or text."""
    _require(is_plain(value), name, f"a number, or text of at most {sizes.TEXT:,} characters", value)


def _best(best: Any, weights: dict[str, Tensor], epochs: int):
    _require(isinstance(best, dict) and best.keys() == {"loss", "epoch", "weights", "objective"}, "best", "the best epoch so far", best)
    _require(isinstance(best["loss"], float) and not math.isnan(best["loss"]), "best.loss", "a number", best["loss"])
    _whole(best["epoch"], "best.epoch", 0, epochs)
    if best["weights"] is not None:
        _like(best["weights"], weights, "best.weights")
    valid = isinstance(best["objective"], list) and len(best["objective"]) <= sizes.OBJECTIVE_NUMBERS
    _require(valid, "best.objective", f"at most {sizes.OBJECTIVE_NUMBERS} numbers", best["objective"])
    for value in best["objective"]:
        _number(value, "best.objective")


def _optimizer(state: Any, optimizer: Optimizer):
    """Groups with this run's keys; for each parameter the state that a step of this optimizer creates."""
    expected = _after_a_step(optimizer)
    _require(isinstance(state, dict) and state.keys() == {"state", "param_groups"}, "optimizer", "the state of an optimizer", state)
    _like(state["param_groups"], expected["param_groups"], "optimizer.param_groups", _minimum("optimizers", optimizer))
    for group, ours in zip(state["param_groups"], expected["param_groups"]):
        _require(group["params"] == ours["params"], "optimizer.params", "this run's parameters", group["params"])
        if not isinstance(group["lr"], Tensor):
            _number(group["lr"], "optimizer.lr", 0.0)
    entries = state["state"]
    _require(
        isinstance(entries, dict) and entries.keys() <= expected["state"].keys(), "optimizer.state", "an entry for each parameter", entries
    )
    for i, entry in entries.items():
        _like(entry, expected["state"][i], f"optimizer.state.{i}")


def _after_a_step(optimizer: Optimizer) -> dict[str, Any]:
    """State of a copy of the optimizer after a step with zero gradients."""
    scratch = copy.deepcopy(optimizer)
    for group in scratch.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    scratch.step()
    return scratch.state_dict()


def _random(state: Any, ours: dict[str, Any], name: str):
    """States that random number generators accept; also the position in NumPy's, which NumPy does not check."""
    _require(isinstance(state, dict) and state.keys() == ours.keys(), name, "the states of random number generators", state)
    python = state["python"]
    valid = isinstance(python, (list, tuple)) and len(python) == 3 and (python[2] is None or isinstance(python[2], float))
    _require(valid, f"{name}.python", "a state of Python's generator", python)
    _like((*python[:2], None), (*ours["python"][:2], None), f"{name}.python")
    _like(state["torch"], ours["torch"], f"{name}.torch")
    if state["device"] is not None:  # a run may be resumed on another device
        like = torch.zeros(16, dtype=torch.uint8) if ours["device"] is None else ours["device"]
        _like(state["device"], like, f"{name}.device")
    _like(state["numpy"], ours["numpy"], f"{name}.numpy")
    for key in state["numpy"][1]:
        _whole(key, f"{name}.numpy", 0, 2**32 - 1)
    _whole(state["numpy"][2], f"{name}.numpy", 0, 624)
    try:
        random.Random().setstate(python)
        np.random.RandomState().set_state(tuple(state["numpy"]))
        torch.Generator().set_state(state["torch"])
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        _require(False, name, "the states of random number generators", str(error))


def _batches(state: Any, run: "Training"):
    """A valid position within an epoch of these data."""
    epoch = iter(run.train)
    next(epoch)
    expected = run.train.state_dict()
    epoch.close()
    run.train.first()  # resets the position
    _require(isinstance(state, dict) and state.keys() == expected.keys(), "batches", "the position within the epoch", state)
    _like(state["generators"], expected["generators"], "batches.generators")
    position = state["epoch"]
    if position is None:
        return
    valid = isinstance(position, dict) and position.keys() == expected["epoch"].keys()
    _require(valid, "batches.epoch", "the position within the epoch", position)
    _whole(position["given"], "batches.epoch.given", 0, len(run.train))
    for name, ours in expected["epoch"].items():
        if name in ("order", "block"):
            _random(position[name], ours, f"batches.epoch.{name}")
        elif name != "given":
            _like(position[name], ours, f"batches.epoch.{name}")


def _levels(state: Any, ours: dict[str, Any], rows: int):
    """For each function its specializations: rows of the batch, level of the graph, and number of runs."""
    _require(isinstance(state, dict) and state.keys() == ours.keys(), "levels", f"the entries {', '.join(ours)}", state)
    for function, entries in state.items():
        valid = isinstance(entries, list) and len(entries) <= sizes.BATCH_KINDS
        _require(valid, f"levels.{function}", f"at most {sizes.BATCH_KINDS} shapes of batches", entries)
        for entry in entries:
            _require(isinstance(entry, (tuple, list)) and 2 <= len(entry) <= 3, f"levels.{function}", "rows, a level, and runs", entry)
            for value, low, high in zip(entry, (1, 0, 0), (rows, sizes.GRAPH_LEVELS, sizes.STEPS)):
                _whole(value, f"levels.{function}", low, high)
