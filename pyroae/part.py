"""Parts: objects that remember the arguments they were made with, so that a model can be written down as JSON and rebuilt."""

import difflib
import inspect
from collections.abc import Iterable
from typing import Any

import pyro.distributions
import pyro.infer
import torch

_PYRO = {"distribution": (pyro.distributions, torch.distributions.Distribution), "elbo": (pyro.infer, pyro.infer.ELBO)}
_ALIASES = {"base_distribution": "base_dist"}  # constructor arguments that Pyro stores under another name


class Part:
    """Base of everything that a model is made of: ``part.arguments`` holds what its constructor was given.

    A class that names ``Part`` among its bases is a *kind* (``Prior``, ``Likelihood``, ...); its subclasses are known
    by their plain names, as soon as they are defined, to the command line and to ``load``.
    """

    arguments: dict[str, Any]

    def __new__(cls, *args, **kwargs):
        self = super().__new__(cls)
        signature = inspect.signature(cls.__init__)
        for name in kwargs.keys() - signature.parameters.keys():
            if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values()):
                raise TypeError(f"{cls.__name__} has no argument {name!r}" + did_you_mean(name, list(signature.parameters)[1:]))
        _, *given = signature.bind_partial(self, *args, **kwargs).arguments.items()
        self.__dict__["arguments"] = arguments = {}
        for name, value in given:
            arguments.update(value if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD else {name: value})
        return self

    def remade(self, **changes):
        """A new part of the same class with some arguments changed."""
        return type(self)(**{**self.arguments, **changes})


def kind_of(cls: type) -> type:
    """The kind (``Prior``, ``Network``, ...) that a part's class belongs to."""
    return next(base for base in cls.__mro__ if Part in base.__bases__)


def members(kind: type) -> dict[str, type]:
    """Every class of a kind that is defined now, by name."""
    below = {}
    for cls in kind.__subclasses__():
        for name, found in {cls.__name__: cls, **members(cls)}.items():
            if not name.startswith("_") and not (name in below and below[name].__module__.startswith("pyroae.")):
                below[name] = found  # of two with one name, ours
    return below


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``"; did you mean X?"`` for the nearest known name, or ``"; known: ..."``."""
    near = difflib.get_close_matches("Normal" if name == "Gaussian" and "Normal" in known else name, list(known), 1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(known))}"


def find(kind: type, name: str) -> type:
    """The class of that kind with that name.

    Raises:
        ValueError: there is none; names the nearest.
    """
    known = members(kind)
    if name not in known:
        raise ValueError(f"{kind.__name__}: there is no {name!r}" + did_you_mean(name, known))
    return known[name]


def describe(value: Any) -> Any:
    """A value as plain JSON data: numbers, text, lists, parts, Pyro distributions and Pyro ELBOs.

    Raises:
        ValueError: the value holds something that JSON cannot (an ``nn.Module`` of the user's is written by name only).
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [describe(item) for item in value]
    if isinstance(value, dict):
        return {"dict": {str(key): describe(item) for key, item in value.items()}}
    if isinstance(value, torch.Tensor):
        return {"tensor": value.tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, Part):
        arguments = {name: describe(item) for name, item in value.arguments.items()}
        return {"part": f"{kind_of(type(value)).__name__}.{type(value).__name__}", **arguments}
    if isinstance(value, type) and getattr(pyro.distributions, value.__name__, None) is value:
        return value.__name__
    for label, (home, base) in _PYRO.items():
        if isinstance(value, base) and hasattr(home, type(value).__name__):
            return {label: type(value).__name__, **_constructor_arguments(value)}
    if isinstance(value, torch.nn.Module):
        return {"module": type(value).__qualname__}
    raise ValueError(f"a {type(value).__qualname__} cannot be written as JSON; use a part, a Pyro distribution or plain numbers")


def _constructor_arguments(value) -> dict[str, Any]:
    """The constructor arguments of a Pyro object, read back from its attributes (``probs`` only where it was given)."""
    names = [name for name in inspect.signature(type(value)).parameters if name != "validate_args"]
    alternatives = {"logits": {"probs"}, "scale_tril": {"covariance_matrix", "precision_matrix"}}
    for name, others in alternatives.items():
        if name in names:
            names = [other for other in names if other not in others]
    found = {}
    for name in names:
        item = getattr(value, _ALIASES.get(name, name), None)
        if item is not None and not (isinstance(item, float) and item == float("inf")) and not isinstance(item, dict):
            found[name] = describe(item)
    return found


def rebuild(description: Any) -> Any:
    """The inverse of ``describe``. Looks classes up among those already defined; imports and executes nothing.

    Raises:
        ValueError: an unknown name, or arguments that the named class does not take.
    """
    if isinstance(description, list):
        return [rebuild(item) for item in description]
    if not isinstance(description, dict):
        return description
    fields = dict(description)
    if isinstance(fields.get("dict"), dict):
        return {key: rebuild(item) for key, item in fields["dict"].items()}
    if "tensor" in fields:
        return torch.tensor(fields["tensor"], dtype=getattr(torch, fields["dtype"]))
    if "module" in fields:
        raise ValueError(f"the network {fields['module']!r} is your own class: give the module itself to load(...)")
    cls = _named_class(fields)
    try:
        return cls(**{name: rebuild(item) for name, item in fields.items()})
    except TypeError as error:
        raise ValueError(f"{cls.__name__}: {error}") from None


def _named_class(fields: dict) -> type:
    if "part" in fields:
        kind, _, name = str(fields.pop("part")).partition(".")
        kinds = {cls.__name__: cls for cls in Part.__subclasses__()}
        if kind not in kinds:
            raise ValueError(f"there is no kind of part {kind!r}" + did_you_mean(kind, kinds))
        return find(kinds[kind], name)
    for label, (home, base) in _PYRO.items():
        if label in fields:
            name = fields.pop(label)
            cls = getattr(home, str(name), None)
            if isinstance(cls, type) and issubclass(cls, base):
                return cls
            raise ValueError(f"Pyro has no {label} {name!r}")
    raise ValueError(f"expected a part, a distribution or an ELBO, got the fields {sorted(fields)}")
