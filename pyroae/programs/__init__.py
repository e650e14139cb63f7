"""What a (model, guide) pair is: its parts and evaluation mode, the terms of its traces, its random numbers."""

from .pairs import Program, device_of, eval_mode, keeping_frozen, leaving_no_names, modules, named_tensors, pair, parameters, validates
from .randomness import random_state, reseed, seeded, set_random_state
from .terms import recorded, sites, traces

__all__ = [
    "Program",
    "device_of",
    "eval_mode",
    "keeping_frozen",
    "leaving_no_names",
    "modules",
    "named_tensors",
    "pair",
    "parameters",
    "random_state",
    "recorded",
    "reseed",
    "seeded",
    "set_random_state",
    "sites",
    "traces",
    "validates",
]
