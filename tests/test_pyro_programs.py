"""Invariant 9 for programs as people write them: from one seed ``pa.SVI`` returns what ``pyro.infer.SVI`` returns, in every mode."""

import functools

import pyro
import pytest
import torch
from pyro_programs import PROGRAMS
from pyro_programs.comparison import differences, run

import pyroae as pa
from pyroae.training.step import timing

STEPS = 5
COMPILED = ["eight_schools", "vae"]  # in the ordinary suite; all of them take an hour
SLOW_TO_TRACE = ["scanvi", "air", "dirichlet process", "hmm: factorial", "hmm: tensor", "cjs", "sequential enum", "parallel enum", "cevae"]


@functools.cache
def expected(name, steps, dtype):
    return run(PROGRAMS[name], pyro.infer.SVI, steps)


def compare(name, mode, steps=STEPS):
    """Relative differences of the values, then of the parameters."""
    ours = run(PROGRAMS[name], functools.partial(pa.SVI, compile=pa.Step(mode, precision="highest")), steps)
    return differences(ours, expected(name, steps, torch.get_default_dtype()))


def slow(names):
    """The programs, those with one of these texts in their names marked as slow."""
    return [pytest.param(name, marks=pytest.mark.slow if any(text in name for text in names) else ()) for name in PROGRAMS]


@pytest.mark.parametrize("name", PROGRAMS)
def test_losses_and_parameters_are_pyros(name):
    assert max(compare(name, "eager")) < 1e-6


@pytest.mark.parametrize("name", slow(SLOW_TO_TRACE))
def test_auto_goes_over_to_graphs_with_pyros_losses(name, monkeypatch):
    """Once calls were timed and their operations counted, instead of when a graph would repay."""
    monkeypatch.setattr(
        timing.CallTimes,
        "repays",
        lambda self, level, remaining, is_kept=False: level == "traced" and self.timed >= timing.MIN_TIMED and self.operations > 0,
    )
    assert max(compare(name, "auto", steps=12)) < 1e-6


@pytest.mark.parametrize("name", slow(SLOW_TO_TRACE))
def test_traced_losses_and_parameters_are_pyros(name):
    assert max(compare(name, "traced")) < 1e-6


@pytest.mark.parametrize("name", slow(set(PROGRAMS) - set(COMPILED)))
def test_compiled_losses_are_pyros_within_rounding(name):
    first, *others = compare(name, "compiled")
    assert first < 1e-5 and max(others) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("mode", ["traced", "compiled"])
def test_a_hundred_steps_in_double_precision(name, mode):
    torch.set_default_dtype(torch.float64)
    try:
        assert max(compare(name, mode, steps=100)) < 1e-6
    finally:
        torch.set_default_dtype(torch.float32)
