"""Operations whose result would depend on values in its shape or in Python, written so that it does not."""

import sys
from collections.abc import Callable
from typing import Any

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
_VALIDATORS = {  # functions that raise unless what they look at is true of all values
    "torch.distributions.distribution": ("__init__", "_validate_sample", "_all_true_or_runtime_assert"),
    "torch.distributions.constraints": ("check",),
    "torch.distributions.continuous_bernoulli": ("__init__",),
    "torch.distributions.geometric": ("__init__",),
    "pyro.poutine.scale_messenger": ("__init__",),
    "pyro.distributions.transforms.spline": ("_monotonic_rational_spline",),
    "pyro.distributions.transforms.power": ("__init__",),
}
_GENERAL = {  # functions that take a special case for certain values, and the general one otherwise
    "pyro.infer.util": ("compute_expectation",),
    "pyro.util": ("warn_if_nan", "warn_if_inf"),
}


class Static(TorchFunctionMode):
    """Inside, programs make no choice that depends on values, so that a graph can hold all they do.

    ``item()`` gives a tensor without dimensions, in float64 as Python's numbers are; ``one_hot`` compares. The entries that
    a mask takes out, ``x[mask]``, stand where they were until they are put back by the same mask, as splines do, summed, or
    multiplied with others and summed, as sums over discrete sites do. What torch's and Pyro's validation looks at is
    gathered in ``checks`` and taken for true.

    Raises:
        ValueError: something else is done with such entries, or values of tensors are read in another way.
    """

    def __init__(self):
        self.taken: dict[int, tuple[Tensor, Tensor, Tensor]] = {}  # by id: what stands for the entries, the whole, its mask
        self.checks: list[Tensor] = []
        self.hashes: list[Callable] = []

    def __enter__(self):
        self.hashes.append(Tensor.__hash__)  # it may be entered again inside, by a hook
        Tensor.__hash__ = _hash
        return super().__enter__()

    def __exit__(self, *error):
        Tensor.__hash__ = self.hashes.pop()
        return super().__exit__(*error)

    def __torch_function__(self, func: Callable, types, args=(), kwargs=None):
        found = [self.taken[id(leaf)] for leaf in tree_leaves(args) if id(leaf) in self.taken]
        if found:
            return self._with_taken(func, args, found)
        if func in _TRUTH and (truth := self._truth(args[0], sys._getframe(1))) is not None:
            return truth
        if func is Tensor.register_hook:
            return func(args[0], self._inside(args[1]))
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
            return self._take(*args)
        result = func(*args, **kwargs or {})
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        return as_input(result) if isinstance(result, Tensor) and tensors and all(map(_changes, tensors)) else result

    def valid(self) -> Tensor | None:
        """Whether all that validation has looked at is true; ``None`` if it has looked at nothing."""
        looks = [check.all() for check in self.checks]
        return torch.stack(looks).all() if looks else None

    def _inside(self, hook: Callable) -> Callable:
        """A hook that runs in this mode: backward passes leave it."""

        def run(gradient):
            with self:
                return hook(gradient)

        return run

    def _truth(self, value: Tensor, frame: Any) -> bool | None:
        """The truth of a tensor that is asked for by a library's check."""
        place = frame.f_globals.get("__name__"), frame.f_code.co_name
        if place[1] in _VALIDATORS.get(place[0], ()):
            self.checks.append(detach_provenance(value))
            return True
        return False if place[1] in _GENERAL.get(place[0], ()) else None

    def _take(self, whole: Tensor, mask: Tensor) -> Tensor:
        entries = whole.new_empty(0)  # never looked at
        self.taken[id(entries)] = entries, whole, mask
        return entries

    def _with_taken(self, func: Callable, args: tuple, found: list[tuple]):
        (_, whole, mask), same = found[0], all(each[2] is found[0][2] for each in found)
        if func is Tensor.dim:
            return 1
        if func is Tensor.__setitem__ and args[1] is mask:
            return args[0].copy_(torch.where(mask, whole, args[0]))
        if func in (Tensor.sum, torch.sum) and len(args) == 1:
            return whole.masked_fill(~mask, 0.0).sum()
        if func is torch.tensordot and len(found) == 2 and same:
            return (whole.masked_fill(~mask, 0.0) * found[1][1].masked_fill(~mask, 0.0)).sum()
        raise ValueError(f"{getattr(func, '__name__', func)} of the entries that a mask takes out, whose number depends on values")


def as_input(number: Tensor) -> Tensor:
    """Mark a tensor as a number that changes from call to call; what is computed from such numbers alone is one too."""
    number.changes = True
    return number


def _changes(tensor: Any) -> bool:
    return getattr(tensor, "changes", False)


def _hash(tensor: Tensor) -> int:
    """As ``Tensor.__hash__``, by identity: a number that changes would be another key in every call."""
    if _changes(tensor):
        raise ValueError("a number that changes is looked up in a dictionary or a set")
    return id(tensor)


def _is_mask(whole: Tensor, index) -> bool:
    return isinstance(index, Tensor) and index.dtype == torch.bool and index.shape == whole.shape


def _refuse_reading(name: str, args: tuple):
    """``ValueError`` where a value that a graph computes would be read by Python; constants may be."""
    for tensor in args:
        if isinstance(tensor, Tensor) and tensor.numel():
            try:
                tensor.detach().flatten()[:1].sum().item()
            except RuntimeError:
                raise ValueError(f"{name} reads a tensor's values") from None
