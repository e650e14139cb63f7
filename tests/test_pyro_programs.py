"""Invariant 9 for programs as people write them: from one seed ``pa.SVI`` returns what ``pyro.infer.SVI`` returns, in every mode."""

import functools

import pyro
import pytest
import torch
from pyro_programs import PROGRAMS
from pyro_programs.comparison import differences, run

import pyroae as pa

STEPS = 5
COMPILED = ["vae", "eight_schools"]  # in the ordinary suite; the others take minutes


@functools.cache
def expected(name, steps, dtype):
    return run(PROGRAMS[name], pyro.infer.SVI, steps)


def compare(name, mode, steps=STEPS):
    """Differences of the values, then of the parameters, relative."""
    ours = run(PROGRAMS[name], functools.partial(pa.SVI, compile=mode, precision="highest"), steps)
    return differences(ours, expected(name, steps, torch.get_default_dtype()))


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("mode", ["eager", "auto", "traced"])
def test_losses_and_parameters_are_pyros(name, mode):
    assert max(compare(name, mode)) < 1e-6


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in COMPILED else pytest.mark.slow) for name in PROGRAMS])
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
