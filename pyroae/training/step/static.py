"""Replacements for operations with results that depend on values in their shape or in Python."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pyro.ops.provenance import detach_provenance
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

_POWERS = Tensor.pow, Tensor.__pow__, Tensor.__rpow__, torch.pow, Tensor.__lshift__, Tensor.__rlshift__
_TRUTH = Tensor.__bool__, Tensor.is_nonzero, torch.is_nonzero
_READS = {
    Tensor.tolist: "tolist()",
    Tensor.numpy: "numpy()",
    Tensor.__array__: "a NumPy function",
    Tensor.equal: "equal()",
    torch.equal: "torch.equal",
    torch.allclose: "torch.allclose",
    Tensor.allclose: "allclose()",
    Tensor.__contains__: "`in`",
}
_VALIDATORS = {  # functions that raise unless a condition is true of all values
    "torch.distributions.distribution": ("__init__", "_validate_sample", "_all_true_or_runtime_assert"),
    "torch.distributions.constraints": ("check",),
    "torch.distributions.continuous_bernoulli": ("__init__",),
    "torch.distributions.geometric": ("__init__",),
    "pyro.poutine.scale_messenger": ("__init__",),
    "pyro.distributions.transforms.spline": ("_monotonic_rational_spline",),
    "pyro.distributions.transforms.power": ("__init__",),
}
_GENERAL = {  # functions with a special case for certain values; the general case is always valid
    "pyro.infer.util": ("compute_expectation",),
    "pyro.util": ("warn_if_nan", "warn_if_inf"),
}


class Static(TorchFunctionMode):
    """Makes programs independent of values, so that a graph can contain everything that they do.

    ``item()`` returns a 0-dim tensor, in float64 for Python's precision; ``one_hot`` compares. Entries selected by
    a mask, ``x[mask]``, stay in place until they are assigned with the same mask, as splines do, summed, or
    multiplied with others and summed, as sums over discrete sites do. Conditions that torch's and Pyro's validation tests
    are collected in ``checks`` and assumed true.

    Raises:
        ValueError: another operation on such entries, or another way of reading values.
    """

    def __init__(self):
        self.masked: dict[int, tuple[Tensor, Tensor, Tensor]] = {}  # by id: placeholder of the entries, source, mask
        self.checks: list[Tensor] = []
        self.hashes: list[Callable] = []

    def __enter__(self):
        self.hashes.append(Tensor.__hash__)  # a stack, because hooks enter the mode again
        Tensor.__hash__ = _hash
        return super().__enter__()

    def __exit__(self, *error):
        Tensor.__hash__ = self.hashes.pop()
        return super().__exit__(*error)

    def __torch_function__(self, func: Callable, types, args=(), kwargs=None):
        masked = [self.masked[id(leaf)] for leaf in tree_leaves(args) if id(leaf) in self.masked]
        if masked:
            return self._with_masked(func, args, masked)
        if func in _TRUTH and (truth := self._truth(args[0], sys._getframe(1))) is not None:
            return truth
        if func is Tensor.register_hook:
            return func(args[0], self._in_mode(args[1]))
        if func is Tensor.backward:
            with torch.autograd.set_multithreading_enabled(False):
                return func(*args, **kwargs or {})
        if func is Tensor.item:
            value = args[0].detach()
            return value.double() if value.is_floating_point() else value
        if func in _POWERS and any(_changes(arg) and not arg.is_floating_point() for arg in args):
            raise ValueError("a power of a whole number that changes, which may be too large for a tensor")
        if func in _READS:
            _refuse_reading(_READS[func], args)
        if func is F.one_hot and len(args) == 2 and args[1] > 0:
            self.checks.append(detach_provenance((args[0] >= 0) & (args[0] < args[1])))
            return (args[0].unsqueeze(-1) == torch.arange(args[1], device=args[0].device)).long()
        if func in (Tensor.__getitem__, Tensor.masked_select, torch.masked_select) and _is_mask(*args):
            return self._mask(*args)
        result = func(*args, **kwargs or {})
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        return _as_input(result) if isinstance(result, Tensor) and tensors and all(map(_changes, tensors)) else result

    def valid(self) -> Tensor | None:
        """Whether all conditions of validation are true; ``None`` without conditions."""
        conditions = [check.all() for check in self.checks]
        return torch.stack(conditions).all() if conditions else None

    def _in_mode(self, hook: Callable) -> Callable:
        """A hook that enters this mode, which backward passes leave."""

        def run(gradient):
            with self:
                return hook(gradient)

        return run

    def _truth(self, value: Tensor, frame: Any) -> bool | None:
        """The truth value of a tensor in a library's check; ``None`` elsewhere."""
        place = frame.f_globals.get("__name__"), frame.f_code.co_name
        if place[1] in _VALIDATORS.get(place[0], ()):
            self.checks.append(detach_provenance(value))
            return True
        return False if place[1] in _GENERAL.get(place[0], ()) else None

    def _mask(self, source: Tensor, mask: Tensor) -> Tensor:
        entries = source.new_empty(0)  # a placeholder, never read
        self.masked[id(entries)] = entries, source, mask
        return entries

    def _with_masked(self, func: Callable, args: tuple, masked: list[tuple]):
        (_, source, mask), same = masked[0], all(entry[2] is masked[0][2] for entry in masked)
        if func is Tensor.dim:
            return 1
        if func is Tensor.__setitem__ and args[1] is mask:
            return args[0].copy_(torch.where(mask, source, args[0]))
        if func in (Tensor.sum, torch.sum) and len(args) == 1:
            return source.masked_fill(~mask, 0.0).sum()
        if func is torch.tensordot and len(masked) == 2 and same:
            return (source.masked_fill(~mask, 0.0) * masked[1][1].masked_fill(~mask, 0.0)).sum()
        raise ValueError(f"{getattr(func, '__name__', func)} of the entries that a mask takes out, whose number depends on values")


def number_input(value: int | float) -> Tensor:
    """A number that changes between calls, as a tensor of Python's precision; results computed from such numbers only are marked too."""
    return _as_input(torch.tensor(value, dtype=torch.int64 if isinstance(value, (int, np.integer)) else torch.float64))


def _as_input(number: Tensor) -> Tensor:
    number.changes = True
    return number


def _changes(tensor: Any) -> bool:
    return getattr(tensor, "changes", False)


def _hash(tensor: Tensor) -> int:
    """``Tensor.__hash__`` by identity, except for numbers that change: they would be a new key in every call."""
    if _changes(tensor):
        raise ValueError("a number that changes is looked up in a dictionary or a set")
    return id(tensor)


def _is_mask(source: Tensor, index) -> bool:
    return isinstance(index, Tensor) and index.dtype == torch.bool and index.shape == source.shape


def _refuse_reading(name: str, args: tuple):
    """``ValueError`` if Python would read a value that the graph computes; constants may be read."""

    for tensor in args:
        if isinstance(tensor, Tensor) and tensor.numel():
            try:
                tensor.detach().flatten()[:1].sum().item()
            except RuntimeError:
                raise ValueError(f"{name} reads a tensor's values") from None
