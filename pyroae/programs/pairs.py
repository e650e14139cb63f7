"""A (model, guide) pair: its modules, parameters and device, and running it without changing it."""

import contextlib
import contextvars
import functools
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.util import is_validation_enabled
from torch import nn

from ..threads import one_at_a_time
from .randomness import seeded

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


def _reached(*programs: Program) -> list[nn.Module]:
    """The programs that are modules, the modules of bound methods, and those that a function has in its closure or names."""
    held: list[Any] = []
    for program in programs:
        program = program.func if isinstance(program, functools.partial) else program
        held += [program, getattr(program, "__self__", None)]
        if inspect.isfunction(function := getattr(program, "__func__", program)):
            variables = inspect.getclosurevars(function)
            held += [*variables.nonlocals.values(), *variables.globals.values()]
    return [each for each in held if isinstance(each, nn.Module)]


def parameters(pair: list[nn.Module], seen: tuple[poutine.Trace, poutine.Trace]) -> list[torch.Tensor]:
    """Every tensor that training can change, each once: the modules' own, and those that the traces asked Pyro's store for."""
    found = {id(p): p for module in pair for p in module.parameters() if p.requires_grad}
    for site in [site for trace in seen for site in trace.nodes.values() if site["type"] == "param"]:
        free = site["value"].unconstrained() if hasattr(site["value"], "unconstrained") else site["value"]
        if free.requires_grad:
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
def leaving_no_names(pair: list[nn.Module]) -> Iterator[None]:
    """Afterwards Pyro's store has no more names of the modules' own parameters than before; they are in the modules."""
    store = pyro.get_param_store()
    before = set(store.keys())
    try:
        yield
    finally:
        own = {id(p) for module in pair for p in module.parameters()}
        names = {name for name, p in store.named_parameters() if name not in before and id(p) in own}
        if names:  # one parameter may have several, which Pyro's ``del`` does not allow for
            state = {
                kind: {name: value for name, value in values.items() if name not in names} for kind, values in store.get_state().items()
            }
            store.clear()
            store.set_state(state)


_VALIDATES: contextvars.ContextVar[bool | None] = contextvars.ContextVar("validates", default=None)


def validates() -> bool:
    """Whether Pyro's validation is on; inside ``eval_mode``, which turns it off, whether it was on for the caller."""
    caller = _VALIDATES.get()
    return is_validation_enabled() if caller is None else caller


@contextlib.contextmanager
def eval_mode(*programs: Program, seed: int | None) -> Iterator[None]:
    """Run programs in evaluation mode, without gradients or validation; other threads that evaluate or train wait meanwhile.

    Modes, parameters and whether they take gradients, Pyro's store and the caller's seed are restored on exit. Modules that
    a function or method only reaches are put into evaluation mode when they are called.
    """
    with one_at_a_time(), _in_eval_mode(*programs, seed=seed):
        yield


@contextlib.contextmanager
def _in_eval_mode(*programs: Program, seed: int | None) -> Iterator[None]:
    modes: dict[nn.Module, bool] = {}

    def enter(module: nn.Module, *_):
        modes.setdefault(module, module.training)
        module.training = False

    for module in itertools.chain.from_iterable(program.modules() for program in _reached(*programs)):
        enter(module)
    store, all_known = pyro.get_param_store(), len(modules(*programs)) == len(programs)
    hook = contextlib.nullcontext() if all_known else nn.modules.module.register_module_forward_pre_hook(enter)
    token = _VALIDATES.set(validates())
    try:
        with (
            hook,
            keeping_frozen(*programs),
            torch.no_grad(),
            seeded(seed, device_of(*programs)),
            pyro.validation_enabled(False),
            store.scope(store.get_state()),
        ):
            yield
    finally:
        _VALIDATES.reset(token)
        for module, mode in modes.items():
            module.training = mode


@contextlib.contextmanager
def keeping_frozen(*programs: Program) -> Iterator[None]:
    """Run programs; afterwards the parameters take gradients as before. Pyro turns that on where it registers a parameter."""
    before: dict[int, tuple[torch.Tensor, bool]] = {}

    def keep(tensors: Iterable[torch.Tensor | None]):
        for tensor in tensors:
            if tensor is not None:
                before.setdefault(id(tensor), (tensor, tensor.requires_grad))

    keep(tensor for _, tensor in pyro.get_param_store().named_parameters())
    for module in _reached(*programs):
        keep(module.parameters())
    hook = nn.modules.module.register_module_forward_pre_hook(lambda module, inputs: keep(module._parameters.values()))
    try:
        with hook:
            yield
    finally:
        for tensor, takes in before.values():
            tensor.requires_grad_(takes)
