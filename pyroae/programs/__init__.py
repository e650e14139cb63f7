"""(model, guide) pairs: modules and evaluation mode, per-example terms of traces, random numbers."""

from .pairs import (
    Program,
    Wrapper,
    device_of,
    eval_mode,
    modules,
    named_tensors,
    pair,
    parameters,
    remove_new_param_names,
    restore_requires_grad,
    validates,
    wrapped,
)
from .randomness import random_state, reseed, seeded, set_random_state
from .terms import record_traces, sites, traces

__all__ = [
    "Program",
    "Wrapper",
    "device_of",
    "eval_mode",
    "restore_requires_grad",
    "remove_new_param_names",
    "modules",
    "named_tensors",
    "pair",
    "parameters",
    "random_state",
    "record_traces",
    "reseed",
    "seeded",
    "set_random_state",
    "sites",
    "traces",
    "validates",
    "wrapped",
]
