"""User code and library code: graphs guard the former and trust the latter."""

import dis
import functools
import importlib.util
import linecache
import random
import sys
import sysconfig
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from types import CodeType, FunctionType, MemberDescriptorType, TracebackType
from typing import Any

import numpy as np

_STANDARD = tuple(str(Path(sysconfig.get_path(name)).resolve()) for name in ("stdlib", "platstdlib"))
_INSTALLED = frozenset({"site-packages", "dist-packages"})  # environments may be nested
_TRUSTED = frozenset(  # packages whose functions depend only on their arguments and on guarded settings
    """torch functorch torchvision pyro pyroapi pyroae numpy scipy opt_einsum einops sklearn pandas matplotlib PIL tqdm
    pytest _pytest pluggy hypothesis IPython typing_extensions attr attrs pydantic pydantic_core omegaconf ml_collections
    jaxtyping beartype typeguard""".split()
)
_GENERATED = "<frozen", "<__array", "<eval_with_key", "<attrs", "<lambdifygenerated", "<@beartype"  # library sources that are not files
DYNAMIC_NAMES = frozenset({"getattr", "vars", "__dict__", "globals", "attrgetter"})  # access attributes by computed names
_OURS = Path(__file__).resolve().parents[2]


@functools.cache
def is_user_file(name: str) -> bool:
    """Whether a source file is user code: not of Python, torch, Pyro or another trusted package."""
    if name.startswith("<"):
        return not name.startswith(_GENERATED)
    path = Path(name).resolve()
    inside = [i for i, part in enumerate(path.parts) if part in _INSTALLED]
    if inside:
        return path.parts[inside[-1] + 1].removesuffix(".py") not in _TRUSTED
    return not str(path).startswith(_STANDARD) and not any(folder in path.parents for folder in _trusted_folders())


@functools.cache
def _trusted_folders() -> frozenset[Path]:
    """Where trusted packages lie: they may be installed as editable, or into a folder of another name."""
    specs = [importlib.util.find_spec(name) for name in _TRUSTED if name not in sys.modules or getattr(sys.modules[name], "__spec__", None)]
    places = [spec.submodule_search_locations for spec in specs if spec is not None and spec.has_location]
    return frozenset(Path(place).resolve() for place in (*chain.from_iterable(filter(None, places)), _OURS))


@functools.cache
def is_user_module(name: str) -> bool:
    """Whether a module is user code; ``__main__`` is."""
    module = sys.modules.get(name)
    if name == "__main__" or module is None:
        return True
    path = getattr(module, "__file__", None)
    return path is not None and is_user_file(path)


def is_user_class(cls: type) -> bool:
    """Whether a class is defined in user code."""
    return is_user_module(cls.__module__)


@functools.cache
def slots_of(cls: type) -> tuple[str, ...]:
    """Names of the slots of a class that are defined in user code, which hold attributes outside of ``__dict__``."""
    owners = [base for base in cls.__mro__ if is_user_class(base)]
    return tuple(name for base in owners for name, held in vars(base).items() if isinstance(held, MemberDescriptorType))


def is_user_code(code: CodeType) -> bool:
    """Whether a code object is user code."""
    return is_user_file(code.co_filename)


def functions_of(value: Any) -> list[FunctionType]:
    """Functions behind a class attribute."""
    if isinstance(value, property):
        candidates = [value.fget, value.fset]
    else:
        candidates = [getattr(value, "__func__", value), getattr(value, "func", None), getattr(value, "__wrapped__", None)]
    return [function for function in candidates if isinstance(function, FunctionType)]


@functools.cache
def names_in(code: CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """Globals and attributes named in code and its inner functions; attributes include string constants (for ``getattr``)."""
    variables, attributes = set(), {text for text in code.co_consts if isinstance(text, str) and text.isidentifier()}
    for instruction in dis.get_instructions(code):
        if instruction.argval in code.co_names and isinstance(instruction.argval, str):
            (variables if "GLOBAL" in instruction.opname or "NAME" in instruction.opname else attributes).add(instruction.argval)
    inner = [names_in(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    attributes |= variables & DYNAMIC_NAMES
    return frozenset(variables).union(*(names for names, _ in inner)), frozenset(attributes).union(*(names for _, names in inner))


def line_of(error: BaseException) -> str | None:
    """Innermost line of user code in an exception's traceback, such as ``model.py:12 (if z > 0:)``."""
    line, trace = None, error.__traceback__
    while trace is not None:
        line = _user_line(trace) or line
        trace = trace.tb_next
    return line


def drawing_line(function: Callable[[], Any]) -> str:
    """First line of user code from which ``function`` draws Python's or NumPy's random numbers."""
    generators, lines = (random.Random, np.random.RandomState, np.random.Generator), []

    def profile(frame: Any, event: str, called: Any):
        if event == "c_call" and not lines and isinstance(getattr(called, "__self__", None), generators):
            while frame is not None and not is_user_code(frame.f_code):
                frame = frame.f_back
            lines.extend([] if frame is None else [describe_line(frame, frame.f_lineno)])

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(before)
    return lines[0] if lines else "somewhere in it"


def _user_line(trace: TracebackType) -> str | None:
    return describe_line(trace.tb_frame, trace.tb_lineno) if is_user_code(trace.tb_frame.f_code) else None


def describe_line(frame: Any, line: int) -> str:
    """File name, number and source of a line."""
    code = frame.f_code
    source = linecache.getline(code.co_filename, line, frame.f_globals).strip()
    return f"{Path(code.co_filename).name}:{line}" + (f" ({source})" if source else "")
