"""What is a person's own code, and what belongs to a library: graphs watch the first and trust the second."""

import dis
import functools
import linecache
import random
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FunctionType, TracebackType
from typing import Any

import numpy as np

_STANDARD = tuple(str(Path(sysconfig.get_path(name)).resolve()) for name in ("stdlib", "platstdlib"))
_INSTALLED = frozenset({"site-packages", "dist-packages"})  # of any environment: several may be stacked
_TRUSTED = frozenset(  # installed packages whose functions depend on their arguments alone, but for settings that are looked at
    """torch functorch torchvision pyro pyroapi pyroae numpy scipy opt_einsum einops sklearn pandas matplotlib PIL tqdm
    pytest _pytest pluggy hypothesis IPython""".split()
)
_GENERATED = "<frozen", "<__array", "<eval_with_key", "<attrs", "<lambdifygenerated"  # sources of libraries that are no files
DYNAMIC_NAMES = frozenset({"getattr", "vars", "__dict__", "globals", "attrgetter"})  # attributes are looked up by computed names
_OURS = str(Path(__file__).resolve().parents[2])


@functools.cache
def is_user_file(name: str) -> bool:
    """Whether graphs watch what is written in a source file: not Python's, torch's, Pyro's and other trusted packages'."""
    if name.startswith("<"):
        return not name.startswith(_GENERATED)
    path = Path(name).resolve()
    inside = [i for i, part in enumerate(path.parts) if part in _INSTALLED]
    if inside:
        return path.parts[inside[-1] + 1].removesuffix(".py") not in _TRUSTED
    return not str(path).startswith((*_STANDARD, _OURS))


@functools.cache
def is_user_module(name: str) -> bool:
    """Whether a module of that name is a person's own; ``__main__`` is."""
    module = sys.modules.get(name)
    if name == "__main__" or module is None:
        return True
    path = getattr(module, "__file__", None)
    return path is not None and is_user_file(path)


def is_user_class(cls: type) -> bool:
    """Whether a person has defined the class."""
    return is_user_module(cls.__module__)


def is_user_code(code: CodeType) -> bool:
    """Whether a person has written the code."""
    return is_user_file(code.co_filename)


def functions_of(value: Any) -> list[FunctionType]:
    """The functions behind an attribute of a class."""
    if isinstance(value, property):
        found = [value.fget, value.fset]
    else:
        found = [getattr(value, "__func__", value), getattr(value, "func", None), getattr(value, "__wrapped__", None)]
    return [each for each in found if isinstance(each, FunctionType)]


@functools.cache
def names_in(code: CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """The globals and the attributes that a function's code names, its inner functions included, and short texts (for ``getattr``)."""
    variables, attributes = set(), {text for text in code.co_consts if isinstance(text, str) and text.isidentifier()}
    for instruction in dis.get_instructions(code):
        if instruction.argval in code.co_names and isinstance(instruction.argval, str):
            (variables if "GLOBAL" in instruction.opname or "NAME" in instruction.opname else attributes).add(instruction.argval)
    inner = [names_in(each) for each in code.co_consts if isinstance(each, CodeType)]
    attributes |= variables & DYNAMIC_NAMES
    return frozenset(variables).union(*(each[0] for each in inner)), frozenset(attributes).union(*(each[1] for each in inner))


def line_of(error: BaseException) -> str | None:
    """The innermost line of a person's own code that an exception went through, such as ``model.py:12 (if z > 0:)``."""
    found, trace = None, error.__traceback__
    while trace is not None:
        found = _place(trace) or found
        trace = trace.tb_next
    return found


def drawing_line(function: Callable[[], Any]) -> str:
    """The first line of a person's own code from which a run of ``function`` draws Python's or NumPy's random numbers."""
    generators, found = (random.Random, np.random.RandomState, np.random.Generator), []

    def look(frame: Any, event: str, called: Any):
        if event == "c_call" and not found and isinstance(getattr(called, "__self__", None), generators):
            while frame is not None and not is_user_code(frame.f_code):
                frame = frame.f_back
            found.extend([] if frame is None else [place(frame, frame.f_lineno)])

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        function()
    finally:
        sys.setprofile(before)
    return found[0] if found else "somewhere in it"


def _place(trace: TracebackType) -> str | None:
    return place(trace.tb_frame, trace.tb_lineno) if is_user_code(trace.tb_frame.f_code) else None


def place(frame: Any, line: int) -> str:
    """A line of a frame, in words."""
    code = frame.f_code
    source = linecache.getline(code.co_filename, line, frame.f_globals).strip()
    return f"{Path(code.co_filename).name}:{line}" + (f" ({source})" if source else "")
