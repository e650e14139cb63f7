"""Running a program under two classes from the same seed, and how far apart what they return is."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pyro
import torch
from torch import Tensor


class Outcome(NamedTuple):
    """What the calls of ``step`` and ``evaluate_loss`` returned, and the parameters after them, by name."""

    values: list[float | tuple[float, ...]]
    parameters: dict[str, Tensor]


def run(program: Callable[[Callable, int], Iterator], SVI: Callable, steps: int, seed: int = 0) -> Outcome:
    """Run a program for so many steps from a seed; the parameter store is empty afterwards."""
    pyro.set_rng_seed(seed)
    try:
        values = list(program(SVI, steps))
        return Outcome(values, {name: value.detach().clone() for name, value in pyro.get_param_store().items()})
    finally:
        pyro.clear_param_store()


def differences(ours: Outcome, theirs: Outcome) -> list[float]:
    """The relative difference of each value, then of each parameter: max |a - b| / max(1e-3, max |b|).

    Raises:
        ValueError: if there are other values, of other types, or other parameters.
    """
    kinds, expected = ([type(value) for value in outcome.values] for outcome in (ours, theirs))
    if kinds != expected:
        raise ValueError(f"The steps returned {kinds}, Pyro's {expected}")
    if list(ours.parameters) != list(theirs.parameters):
        raise ValueError(f"The parameters are {list(ours.parameters)}, Pyro's {list(theirs.parameters)}")
    values = zip((torch.tensor(value) for value in ours.values), (torch.tensor(value) for value in theirs.values))
    pairs = [*values, *((ours.parameters[name], theirs.parameters[name]) for name in ours.parameters)]
    return [((a - b).abs().max() / b.abs().max().clamp(min=1e-3)).item() for a, b in pairs]
