"""ELBOs whose steps do not wait for the device."""

import functools
import inspect
import types

import torch
from pyro.infer import ELBO
from pyro.infer.traceenum_elbo import _compute_dice_elbo
from pyro.infer.util import Dice


def without_sync(elbo: ELBO) -> ELBO:
    """The same ELBO, whose loss and gradient wait for the device no more than they must.

    Pyro's ELBOs read their loss back (``torch_item``) and look for NaN (``warn_if_nan``) on every step. The ELBO returned
    shares its attributes with the one given, and runs the same methods with those two replaced: by ``detach``, and by
    nothing. TraceEnum_ELBO leaves out what has probability 0 without asking whether there is any. (RenyiELBO and
    ReweightedWakeSleep still read values back, until they are traced.)
    """
    quick = object.__new__(_quick(type(elbo)))
    quick.__dict__ = elbo.__dict__
    return quick


@functools.cache
def _quick(cls: type) -> type:
    functions = {name: getattr(cls, name) for name in dir(cls) if isinstance(getattr(cls, name), types.FunctionType)}
    waiting = {name: function for name, function in functions.items() if _INSTEAD.keys() & set(function.__code__.co_names)}
    methods = {name: _with(function, **_INSTEAD) for name, function in waiting.items()}
    if "elbo" in inspect.signature(cls).parameters:  # an objective around another one
        methods["elbo"] = property(lambda self: without_sync(self.__dict__["elbo"]))
    return type(f"_Quick{cls.__name__}", (cls,), methods)


def _with(function: types.FunctionType, **instead) -> types.FunctionType:
    """The same function, which finds other things under these global names."""
    known = function.__globals__ | instead
    rebound = types.FunctionType(function.__code__, known, function.__name__, function.__defaults__, function.__closure__)
    rebound.__kwdefaults__ = function.__kwdefaults__
    return rebound


def _detached(x):
    return x.detach() if isinstance(x, torch.Tensor) else x


def _unread(*_):
    pass


class _Torch:
    """What of torch ``Dice`` uses, as if in a trace: it asks for nothing but masks."""

    Tensor, zeros_like, _C = torch.Tensor, torch.zeros_like, types.SimpleNamespace(_get_tracing_state=lambda: True)


class _Dice(Dice):
    compute_expectation = _with(Dice.compute_expectation, torch=_Torch)


_INSTEAD = {"torch_item": _detached, "warn_if_nan": _unread, "_compute_dice_elbo": _with(_compute_dice_elbo, Dice=_Dice)}
