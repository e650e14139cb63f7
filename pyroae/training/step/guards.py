"""How the objects that a program reads are guarded: by value, by contents, by identity, or not at all."""

import datetime
import enum
import functools
import logging
import re
import types
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePath
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer import ELBO
from pyro.ops import tensor_utils
from pyro.poutine.messenger import Messenger
from torch import nn
from torch.distributions import Distribution, Transform

from .arguments import PLAIN, has_attributes, is_record

IMMUTABLE = (  # or compared by identity
    *(types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType, types.MethodWrapperType, enum.Enum),
    *(logging.Logger, frozenset, range, slice, property, re.Pattern, PurePath, datetime.date, datetime.timedelta, Decimal, Fraction),
    *(np.dtype, np.ufunc, torch.finfo, torch.iinfo),
)


_FIXED = frozenset({"torch", "pyro", "pyroae", "typing", "typing_extensions", "jaxtyping", "beartype"})


def process_state() -> tuple:
    """Process-wide settings that a graph fixes."""
    return (
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_enabled("cuda"),
        torch.get_autocast_dtype("cpu"),
        torch.get_autocast_dtype("cuda"),
        tensor_utils.CHOLESKY_RELATIVE_JITTER,
        Distribution._validate_args,
        pyro.infer.util.is_validation_enabled(),
        pyro.poutine.util.is_validation_enabled(),
    )


def same(a: Any, b: Any) -> bool:
    """Whether two values are identical, or equal plain data."""
    return a is b or (type(a) is type(b) and isinstance(a, (*PLAIN, frozenset)) and a == b)


def may_change_unnoticed(cls: type) -> bool:
    """Whether objects of a class can change unnoticed; those of torch and Pyro are walked, and those of types do not change."""
    return cls.__module__.partition(".")[0] not in _FIXED


def is_closed(value: Any) -> bool:
    """Whether an object is compared by identity; others by their contents."""
    return not (is_opened(value) or isinstance(value, (list, dict, tuple, types.MethodType, types.FunctionType, functools.partial)))


def is_opened(value: Any) -> bool:
    """Whether an object's attributes are walked."""
    if isinstance(value, (ELBO, Messenger, Distribution, Transform, nn.Module)) or hasattr(type(value), "read_by_programs"):
        return True
    if isinstance(value, (enum.Enum, logging.Logger, type, types.ModuleType)) or not has_attributes(value):
        return False
    return is_record(value) or type(value).__module__.startswith(("pyroae.model", "pyroae.objectives", "pyro."))


def is_library_hook(hook: Any) -> bool:
    """Whether a hook is torch's or Pyro's, such as weight normalisation, and thus consists of tensor operations."""
    return str(getattr(hook, "__module__", None) or type(hook).__module__).startswith(("torch.", "pyro."))
