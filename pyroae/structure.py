"""The structure of a model as plain data: described for a file, checked, and rebuilt from it."""

import inspect
import math
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from . import registry, schema
from .checks import short
from .model.autoencoder import Autoencoder
from .objectives import penalties  # noqa: F401 (a file can name every part, so all must be defined)

_STORED_AS = {"base_distribution": "base_dist", "cache_size": "_cache_size"}  # constructor argument -> attribute, if they differ
_ALTERNATIVES = {
    "logits": {"probs"},
    "scale_tril": {"covariance_matrix", "precision_matrix"},
}  # the parameter that is written, of several


def describe(value: Any) -> Any:
    """A value as plain data: numbers, text, lists, tensors, parts, Pyro's distributions, transforms and ELBOs.

    Raises:
        ValueError: another type, or a part that is not registered (an ``nn.Module`` is written by name only).

    >>> import pyroae as pa
    >>> describe(pa.priors.Laplace(3, scale=0.5))
    {'class': 'priors.Laplace', 'event_shape': 3, 'scale': 0.5}
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [describe(item) for item in value]
    if isinstance(value, dict):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, torch.Tensor):
        return {"tensor": value.tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, type) and (name := registry.name_of(value)):
        return name.partition(".")[2]
    if isinstance(value, registry.Part):
        name = registry.name_of(type(value))
        if name is None:
            raise ValueError(f"{type(value).__name__} has no name in files; put @pa.register(KIND), such as 'priors', above the class")
        return {"class": name} | {key: describe(item) for key, item in value.arguments.items()}
    name = registry.name_of(type(value))
    if name is not None and not isinstance(value, nn.Module):
        return {"class": name} | _constructor_arguments(value)
    if isinstance(value, nn.Module):
        return {"module": type(value).__qualname__}
    raise ValueError(f"a {type(value).__qualname__} cannot be written to a file; use a part, a Pyro distribution or plain numbers")


def _constructor_arguments(value: Any) -> dict[str, Any]:
    """The constructor arguments of an object of Pyro, read from its attributes."""
    names = list(registry.parameters(type(value)))
    for name, others in _ALTERNATIVES.items():
        if name in names:
            names = [other for other in names if other not in others]
    items = {name: getattr(value, _STORED_AS.get(name, name), None) for name in names}
    infinite = [name for name, item in items.items() if isinstance(item, float) and math.isinf(item)]
    return {name: describe(item) for name, item in items.items() if item is not None and name not in infinite}


FIELDS = dict(inspect.signature(Autoencoder.__init__).parameters)
del FIELDS["self"]


def check(structure: Any, given: Collection[str] = ()) -> dict[str, Any]:
    """Check a model's structure: ``None`` or a ``schema.Spec`` for each part of an Autoencoder. Nothing is built.

    Args:
        structure: plain data, from a file.
        given: the parts that the caller provides.

    Raises:
        ValueError: not a valid structure: names the entry, what was expected and what was given.
    """
    schema.check_size(structure, "structure")
    if not isinstance(structure, dict):
        raise ValueError(f"expected the structure as a mapping from the names of parts, got {type(structure).__name__}")
    for name, value in structure.items():
        if name in ("encoder", "decoder") and isinstance(value, dict) and "module" in value:
            raise ValueError(
                f"the {name} is a {short(value['module'])}, a network of your own: give the module itself, load(..., {name}=module)"
            )
    needed = [name for name, field in FIELDS.items() if field.default is field.empty and name not in given]
    missing = [name for name in needed if name not in structure]
    unknown = structure.keys() - FIELDS.keys()
    if missing or unknown:
        unknown = short(sorted(map(str, unknown))) if unknown else "none"
        raise ValueError(f"expected the parts {', '.join(FIELDS)}; missing {missing or 'none'}, unknown {unknown}")
    return {name: schema.read(value, FIELDS[name].annotation, name) for name, value in structure.items()}


def rebuild(data: Any, kind: str) -> Any:
    """The inverse of ``describe`` for an object of a kind, such as ``"priors"``.

    >>> import pyroae as pa
    >>> rebuild({"class": "priors.Laplace", "event_shape": 3}, "priors")
    Laplace(event_shape=3)
    """
    schema.check_size(data, "description")
    return schema.made(schema.read(data, registry.base(kind), "description"))
