"""A (model, guide) pair: modules, parameters, device, and evaluation without side effects."""

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


class Wrapper:
    """A program that runs another one, ``program``."""

    def __init__(self, program: Program):
        self.program = program

    def __call__(self, *args, **kwargs):
        return self.program(*args, **kwargs)


def wrapped(program: Program) -> Iterator[Program]:
    """The program, the one that it runs, and so on."""
    yield program
    while isinstance(program, Wrapper):
        program = program.program
        yield program


def pair(model: Any, guide: Program | None = None) -> tuple[Program, Program]:
    """The (model, guide) of an Autoencoder, or the two arguments.

    Raises:
        ValueError: a model without a guide.
    """
    has_guide = hasattr(model, "model") and hasattr(model, "guide")
    if guide is not None:
        return model.model if has_guide else model, guide
    if has_guide:
        return model.model, model.guide
    raise ValueError(f"expected an Autoencoder, or a Pyro model with guide=..., got {type(model).__name__} without a guide")


def modules(*programs: Program) -> list[nn.Module]:
    """The programs that are modules (functions keep their parameters in Pyro's parameter store)."""
    return [program for program in programs if isinstance(program, nn.Module)]


def _reachable_modules(*programs: Program) -> list[nn.Module]:
    """Programs that are modules, owners of bound methods, and modules in a function's closure or globals."""
    objects: list[Any] = []
    for program in programs:
        program = program.func if isinstance(program, functools.partial) else program
        objects += [program, getattr(program, "__self__", None)]
        if inspect.isfunction(function := getattr(program, "__func__", program)):
            variables = inspect.getclosurevars(function)
            objects += [*variables.nonlocals.values(), *variables.globals.values()]
    return [module for module in objects if isinstance(module, nn.Module)]


def parameters(pair: list[nn.Module], traces: tuple[poutine.Trace, poutine.Trace]) -> list[torch.Tensor]:
    """Trainable tensors without duplicates: of the modules, and the unconstrained ``pyro.param`` values in the traces."""
    by_id = {id(p): p for module in pair for p in module.parameters() if p.requires_grad}
    for site in [site for trace in traces for site in trace.nodes.values() if site["type"] == "param"]:
        free = site["value"].unconstrained() if hasattr(site["value"], "unconstrained") else site["value"]
        if free.requires_grad:
            by_id[id(free)] = free
    return list(by_id.values())


def named_tensors(pair: list[nn.Module], trained: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Parameters and buffers of the modules, and all other trained tensors, by name and without duplicates."""
    trained_ids, by_id = {id(tensor) for tensor in trained}, {}
    named = [
        (f"{i}.{name}" if i else name, tensor)
        for i, module in enumerate(pair)
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
    ]
    named += [(name, p) for name, p in pyro.get_param_store().named_parameters() if id(p) in trained_ids]
    for name, tensor in [*named, *((f"parameter {i}", p) for i, p in enumerate(trained))]:
        by_id.setdefault(id(tensor), (name, tensor))
    return dict(by_id.values())


def device_of(*programs: Program, otherwise: torch.device | None = None) -> torch.device:
    """Device of the programs' parameters; for functions ``otherwise``, by default the CPU."""
    tensors = itertools.chain.from_iterable(module.parameters() for module in modules(*programs))
    return next((tensor.device for tensor in tensors), otherwise or torch.device("cpu"))


@contextlib.contextmanager
def remove_new_param_names(pair: list[nn.Module]) -> Iterator[None]:
    """On exit, remove the modules' own parameters from Pyro's store if they were added inside."""
    store = pyro.get_param_store()
    before = set(store.keys())
    try:
        yield
    finally:
        own = {id(p) for module in pair for p in module.parameters()}
        names = {name for name, p in store.named_parameters() if name not in before and id(p) in own}
        if names:  # one parameter may have several names, which Pyro's ``del`` does not support
            state = {
                part: {name: value for name, value in values.items() if name not in names} for part, values in store.get_state().items()
            }
            store.clear()
            store.set_state(state)


_VALIDATES: contextvars.ContextVar[bool | None] = contextvars.ContextVar("validates", default=None)


def validates() -> bool:
    """Whether Pyro's validation is on; inside ``eval_mode``, which turns it off, the caller's setting."""
    caller = _VALIDATES.get()
    return is_validation_enabled() if caller is None else caller


@contextlib.contextmanager
def eval_mode(*programs: Program, seed: int | None) -> Iterator[None]:
    """Run programs in evaluation mode, without gradients or validation; other threads wait.

    Training modes, parameters, ``requires_grad``, Pyro's store and the caller's random state are restored on exit.
    Modules that a function reaches only when it runs are put into evaluation mode when they are called.
    """
    with one_at_a_time(), _in_eval_mode(*programs, seed=seed):
        yield


@contextlib.contextmanager
def _in_eval_mode(*programs: Program, seed: int | None) -> Iterator[None]:
    modes: dict[nn.Module, bool] = {}

    def enter(module: nn.Module, *_):
        modes.setdefault(module, module.training)
        module.training = False

    for module in itertools.chain.from_iterable(program.modules() for program in _reachable_modules(*programs)):
        enter(module)
    store, all_modules = pyro.get_param_store(), len(modules(*programs)) == len(programs)
    hook = contextlib.nullcontext() if all_modules else nn.modules.module.register_module_forward_pre_hook(enter)
    token = _VALIDATES.set(validates())
    try:
        with (
            hook,
            restore_requires_grad(*programs),
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
def restore_requires_grad(*programs: Program) -> Iterator[None]:
    """Restore ``requires_grad`` of all parameters on exit; Pyro sets it when it registers a parameter."""
    before: dict[int, tuple[torch.Tensor, bool]] = {}

    def save(tensors: Iterable[torch.Tensor | None]):
        for tensor in tensors:
            if tensor is not None:
                before.setdefault(id(tensor), (tensor, tensor.requires_grad))

    save(tensor for _, tensor in pyro.get_param_store().named_parameters())
    for module in _reachable_modules(*programs):
        save(module.parameters())
    hook = nn.modules.module.register_module_forward_pre_hook(lambda module, inputs: save(module._parameters.values()))
    try:
        with hook:
            yield
    finally:
        for tensor, takes in before.values():
            tensor.requires_grad_(takes)
