"""Validation of plain data from settings and model files against types, before any object is made.

An object is ``{"class": "priors.Laplace", "scale": 0.5}`` (or its bare name): a class of the table of names, and arguments of its
constructor, each of the type that the constructor states. Everything else is a number, text, a list, a mapping, or a tensor as
``{"tensor": [[1.0, 2.0]], "dtype": "float32"}``.
"""

import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from . import registry, sizes
from .checks import did_you_mean, short

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.int64, torch.uint8, torch.bool)
}
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", torch.Tensor: "a tensor"}


@dataclass(frozen=True)
class Spec:
    """A description of an object: a registered class and checked arguments; for an optimizer, of a function that makes it."""

    cls: type
    arguments: dict[str, Any]
    factory: bool = False

    def make(self) -> Any:
        """Make the object.

        Raises:
            ValueError: the constructor refuses the arguments.
        """
        arguments = {name: made(value) for name, value in self.arguments.items()}
        try:
            return functools.partial(self.cls, **arguments) if self.factory else self.cls(**arguments)
        except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError) as error:
            raise ValueError(f"{self.cls.__name__}: {error}") from error


def made(value: Any) -> Any:
    """The value with every ``Spec`` in it replaced by its object."""
    if isinstance(value, Spec):
        return value.make()
    if isinstance(value, list):
        return [made(item) for item in value]
    if isinstance(value, dict):
        return {name: made(item) for name, item in value.items()}
    return value


def check_size(value: Any, what: str):
    """``ValueError`` for plain data with too many levels, entries or characters, or with other types."""
    left, entries = [(value, 0)], 0
    while left:
        item, depth = left.pop()
        entries += 1
        if depth > sizes.DEPTH or entries > sizes.ENTRIES:
            raise ValueError(f"{what}: expected at most {sizes.ENTRIES:,} entries, nested at most {sizes.DEPTH} deep")
        if isinstance(item, str) and len(item) > sizes.TEXT:
            raise ValueError(f"{what}: expected text of at most {sizes.TEXT:,} characters, got {len(item):,}")
        if isinstance(item, int) and abs(item) > sizes.LARGEST:
            raise ValueError(f"{what}: expected whole numbers of at most 2^63, got {short(item)}")
        if isinstance(item, dict):
            if any(len(str(name)) > sizes.NAME for name in item):
                raise ValueError(f"{what}: expected names of at most {sizes.NAME} characters")
            left += [(name, depth + 1) for name in item] + [(inner, depth + 1) for inner in item.values()]
        elif isinstance(item, list):
            left += [(inner, depth + 1) for inner in item]
        elif item is not None and not isinstance(item, (bool, int, float, str)):
            raise ValueError(f"{what}: expected numbers, text, lists and mappings, got a {type(item).__name__}")


def read(value: Any, annotation: Any, where: str) -> Any:
    """Check a plain value against a type; descriptions of objects become ``Spec``.

    Args:
        value: of a file or a command line.
        annotation: the type: numbers, text, ``None``, ``Literal``, lists, mappings, tensors, base classes of registered kinds, a
            function that makes such, unions of all these.
        where: the name of the value, for messages.

    Raises:
        ValueError: a value of another type; names the place, what was expected and what was given.

    >>> read(3, int | None, "epochs"), read(4, float, "df"), read("Trace_ELBO", registry.base("objectives"), "objective").cls.__name__
    (3, 4.0, 'Trace_ELBO')
    """
    choices = alternatives(annotation)
    if any(choice in (registry.Plain, Any) for choice in choices):
        return _plain(value, where)
    if value is None or isinstance(value, bool):
        if type(value) in choices:
            return value
    elif isinstance(value, (int, float)):
        if int in choices and isinstance(value, int):
            return _number(value, where)
        if float in choices:
            return float(_number(value, where))
    elif isinstance(value, str):
        if str in choices or any(value in typing.get_args(choice) for choice in choices if typing.get_origin(choice) is Literal):
            return value
        if kinds := _kinds(choices):
            return _object({"class": value}, kinds, where)
    elif isinstance(value, list):
        for choice in choices:
            if typing.get_origin(choice) in (list, tuple, Sequence):
                return _list(value, choice, where)
    elif isinstance(value, dict):
        for choice in choices:
            if typing.get_origin(choice) in (dict, Mapping):
                inner = typing.get_args(choice)[1]
                return {_name(name, where): read(item, inner, f"{where}.{name}") for name, item in value.items()}
        if torch.Tensor in choices and "tensor" in value:
            return _tensor(value, where)
        if kinds := _kinds(choices):
            return _object(value, kinds, where)
    raise ValueError(f"expected {where} as {words(annotation)}, got {short(value)}")


def read_arguments(given: dict[str, Any], expected: dict[str, inspect.Parameter], owner: str, where: str) -> dict[str, Any]:
    """Check named values against parameters: names, presence and types."""
    anything = next((p for p in expected.values() if p.kind is inspect.Parameter.VAR_KEYWORD), None)
    named = {name: p for name, p in expected.items() if p is not anything}
    for name in given:
        if name not in named and (anything is None or not _name(name, where).isidentifier()):
            raise ValueError(f"{owner} has no argument {name!r}" + did_you_mean(str(name), named))
    missing = [name for name, p in named.items() if p.default is p.empty and name not in given]
    if missing:
        raise ValueError(f"{where} needs " + ", ".join(f"{where}.{name}" for name in missing))
    stated = {name: named[name].annotation if name in named else registry.Plain for name in given}
    return {name: read(value, stated[name], f"{where}.{name}") for name, value in given.items()}


def alternatives(annotation: Any) -> list[Any]:
    """The members of a union, ``NoneType`` for ``None``.

    >>> alternatives(int | None)
    [<class 'int'>, <class 'NoneType'>]
    """
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [inner for each in typing.get_args(annotation) for inner in alternatives(each)]
    return [type(None) if annotation is None else annotation]


def kinds_in(annotation: Any) -> list[tuple[str, bool]]:
    """The kinds of objects in a type, each with whether it is a function that makes one."""
    return _kinds(alternatives(annotation))


def words(annotation: Any) -> str:
    """A type in words.

    >>> words(int | list[int]), words(Literal["a", "b"] | None)
    ('a whole number or a list such as [300,100]', "'a', 'b'")
    """
    texts = []
    for choice in alternatives(annotation):
        origin = typing.get_origin(choice)
        if choice in (registry.Plain, Any):
            texts += ["a number", "text", "a list"]
        elif origin is Literal:
            texts.append(", ".join(map(repr, typing.get_args(choice))))
        elif origin in (list, tuple, Sequence):
            texts.append("a list such as [300,100]" if int in typing.get_args(choice) else "a list")
        elif origin in (dict, Mapping):
            texts.append("a mapping such as {name: value}")
        elif kinds := _kinds([choice]):
            texts += [f"the name of one of the {kind}" for kind, _ in kinds]
        elif choice in _WORDS and choice is not type(None):
            texts.append(_WORDS[choice])
    return " or ".join(dict.fromkeys(texts)) or "something that no file can hold"


def _kinds(choices: list[Any]) -> list[tuple[str, bool]]:
    found = [(kind, False) for choice in choices for kind in registry.kinds_of(choice)]
    for choice in choices:
        if typing.get_origin(choice) is Callable:
            found += [(kind, True) for kind in registry.kinds_of(typing.get_args(choice)[1])]
    return found


def _object(value: dict[str, Any], kinds: list[tuple[str, bool]], where: str) -> Spec:
    name, arguments = value.get("class"), {key: item for key, item in value.items() if key != "class"}
    if not isinstance(name, str):
        raise ValueError(f"expected {where} as a name, or as a mapping with the name as its class, got {short(value)}")
    cls, factory = _class(name, kinds, where)
    return Spec(cls, read_arguments(arguments, registry.parameters(cls), f"{where}: {cls.__name__}", where), factory)


def _class(name: str, kinds: list[tuple[str, bool]], where: str) -> tuple[type, bool]:
    problem = None
    for kind, factory in kinds:
        try:
            return registry.find(kind, name), factory
        except ValueError as error:
            problem = problem or error
    raise ValueError(f"{where}: {problem}")


def _number(value: int | float, where: str) -> int | float:
    if not abs(value) <= sizes.WHOLE_NUMBER and not (isinstance(value, float) and math.isfinite(value)):
        raise ValueError(f"expected {where} as a finite number, whole ones at most 2^53, got {short(value)}")
    return value


def _list(value: list, annotation: Any, where: str) -> list:
    inner = typing.get_args(annotation)
    if typing.get_origin(annotation) is tuple and Ellipsis not in inner:
        if len(inner) != len(value):
            raise ValueError(f"expected {where} as a list of {len(inner)}, got {short(value)}")
        return [read(item, each, f"{where}[{i}]") for i, (item, each) in enumerate(zip(value, inner))]
    return [read(item, inner[0] if inner else registry.Plain, f"{where}[{i}]") for i, item in enumerate(value)]


def _plain(value: Any, where: str) -> Any:
    """Check the value of an argument without annotation."""
    if isinstance(value, list):
        return [_plain(item, where) for item in value]
    if isinstance(value, dict):
        return _tensor(value, where) if "tensor" in value else _object(value, [("distributions", False), ("transforms", False)], where)
    return _number(value, where) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _tensor(value: dict, where: str) -> torch.Tensor:
    dtype = DTYPES.get(value["dtype"]) if isinstance(value.get("dtype"), str) and value.keys() == {"tensor", "dtype"} else None
    if dtype is None:
        raise ValueError(f"expected {where} as a tensor with one of the dtypes {', '.join(DTYPES)}, got {short(value)}")
    _same_shapes(value["tensor"], where)
    try:
        tensor = torch.tensor(value["tensor"], dtype=dtype)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{where}: no tensor of {value['dtype']}: {error}") from None
    if not bool(tensor.isfinite().all()):
        raise ValueError(f"{where}: expected numbers that {value['dtype']} can hold, got {short(value['tensor'])}")
    return tensor


def _same_shapes(value: Any, where: str) -> tuple[int, ...]:
    """The shape of nested lists of finite numbers; ``ValueError`` if they are ragged or contain something else."""
    if isinstance(value, list):
        shapes = {_same_shapes(item, where) for item in value} or {()}
        if len(shapes) == 1:
            return len(value), *shapes.pop()
    elif isinstance(value, (bool, int, float)) and math.isfinite(value):
        return ()
    raise ValueError(f"expected {where} as lists of finite numbers, all of one length, got {short(value)}")


def _name(name: Any, where: str) -> str:
    if not isinstance(name, str):
        raise ValueError(f"{where}: expected names as text, got {short(name)}")
    return name
