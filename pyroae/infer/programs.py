"""What every user of a (model, guide) pair needs: to find it, to look without changing it, to run it without waiting."""

import contextlib
import functools
import inspect
import itertools
import random
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.infer.traceenum_elbo import _compute_dice_elbo
from pyro.infer.util import Dice
from pyro.poutine.util import site_is_subsample
from torch import nn

Program = Callable[..., Any]


def pair(model: Any, guide: Program | None = None) -> tuple[Program, Program]:
    """The (model, guide) of an Autoencoder, or the two as they are given.

    Raises:
        ValueError: a bare model without its guide.
    """
    both = hasattr(model, "model") and hasattr(model, "guide")
    if guide is not None:
        return model.model if both else model, guide
    if both:
        return model.model, model.guide
    raise ValueError(f"expected an Autoencoder, or a Pyro model with guide=..., got {type(model).__name__} without a guide")


def modules(*programs: Program) -> list[nn.Module]:
    """Those of the programs that are modules (plain functions keep their parameters in Pyro's store)."""
    return [program for program in programs if isinstance(program, nn.Module)]


def traces(model: Program, guide: Program, *args) -> tuple[poutine.Trace, poutine.Trace]:
    """One run of the guide and of the model on the guide's draws, as Pyro traces."""
    guide_trace = poutine.trace(guide).get_trace(*args)
    return poutine.trace(poutine.replay(model, guide_trace)).get_trace(*args), guide_trace


def recorded(program: Program, traces: list[poutine.Trace]) -> Program:
    """The same program, a trace of whose every run is appended to ``traces``."""

    def run(*args, **kwargs):
        with poutine.trace() as tape:
            result = program(*args, **kwargs)
        traces.append(tape.trace)
        return result

    return run


def sites(trace: poutine.Trace, observed: bool) -> dict[str, dict]:
    """A trace's sample sites, the observed or the latent ones; plates are left out."""
    drawn = {name: site for name, site in trace.nodes.items() if site["type"] == "sample" and not site_is_subsample(site)}
    return {name: site for name, site in drawn.items() if site["is_observed"] == observed}


def parameters(pair: list[nn.Module], seen: tuple[poutine.Trace, poutine.Trace]) -> list[torch.Tensor]:
    """Every tensor that training can change, each once: the modules' own, and those that the traces asked Pyro's store for."""
    found = {id(p): p for module in pair for p in module.parameters() if p.requires_grad}
    for site in [site for trace in seen for site in trace.nodes.values() if site["type"] == "param"]:
        free = site["value"].unconstrained() if hasattr(site["value"], "unconstrained") else site["value"]
        found[id(free)] = free
    return list(found.values())


def named_tensors(pair: list[nn.Module], trained: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every parameter and buffer of the modules, and what is trained from elsewhere, each once, by name."""
    wanted, found = {id(tensor) for tensor in trained}, {}
    named = [
        (f"{i}.{name}" if i else name, p) for i, each in enumerate(pair) for name, p in (*each.named_parameters(), *each.named_buffers())
    ]
    named += [(name, p) for name, p in pyro.get_param_store().named_parameters() if id(p) in wanted]
    for name, tensor in [*named, *((f"parameter {i}", p) for i, p in enumerate(trained))]:
        found.setdefault(id(tensor), (name, tensor))
    return dict(found.values())


def device_of(*programs: Program, otherwise: torch.device | None = None) -> torch.device:
    """Where the programs' parameters are; for plain functions ``otherwise``, by default the CPU."""
    tensors = itertools.chain.from_iterable(module.parameters() for module in modules(*programs))
    return next((tensor.device for tensor in tensors), otherwise or torch.device("cpu"))


@contextlib.contextmanager
def seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Random numbers from ``seed`` inside (torch's, NumPy's and Python's), the caller's own untouched; with ``None`` the caller's go on."""
    if seed is None:
        yield
        return
    others = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(_gpus(device)):
        reseed(seed, device)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(others[0])
            np.random.set_state(others[1])


def reseed(seed: int, device: torch.device):
    """Torch's random numbers from ``seed``, on the CPU and where programs on ``device`` draw; other devices go on."""
    torch.default_generator.manual_seed(seed)
    for gpu in _gpus(device):
        with torch.cuda.device(gpu):
            torch.cuda.manual_seed(seed)


def _gpus(device: torch.device) -> list[torch.device]:
    """That GPU; where programs do not say, the one in use if there is one."""
    if device.type == "cuda":
        return [device]
    return [torch.device("cuda", torch.cuda.current_device())] if torch.cuda.is_initialized() else []


@contextlib.contextmanager
def leaving_no_names(pair: list[nn.Module]) -> Iterator[None]:
    """Afterwards Pyro's store has no more names of the modules' own parameters than before; they are in the modules."""
    store = pyro.get_param_store()
    before = set(store.keys())
    try:
        yield
    finally:
        own = {id(p) for module in pair for p in module.parameters()}
        for name in [name for name, p in store.named_parameters() if name not in before and id(p) in own]:
            del store[name]


def random_state(device: torch.device) -> dict[str, Any]:
    """Where all the random numbers that a program can draw are: torch's, on the device too, Python's and NumPy's."""
    kind, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), *rest),
    }


def set_random_state(state: dict[str, Any], device: torch.device):
    """Go on drawing where ``random_state`` was."""
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["device"] is not None:
        torch.cuda.set_rng_state(state["device"], device)
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])


@contextlib.contextmanager
def looking(*programs: Program, seed: int | None) -> Iterator[None]:
    """Run programs in evaluation mode, without gradients, leaving modes, parameters, Pyro's store and the caller's seed as they were.

    Modules that a function or method only reaches are put into evaluation mode when they are called.
    """
    modes: dict[nn.Module, bool] = {}

    def judged(module: nn.Module, *_):
        modes.setdefault(module, module.training)
        module.training = False

    found = modules(*programs)
    for module in itertools.chain.from_iterable(program.modules() for program in found):
        judged(module)
    store, all_known = pyro.get_param_store(), len(found) == len(programs)
    hook = contextlib.nullcontext() if all_known else nn.modules.module.register_module_forward_pre_hook(judged)
    try:
        with hook, torch.no_grad(), seeded(seed, device_of(*programs)), pyro.validation_enabled(False), store.scope(store.get_state()):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


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
