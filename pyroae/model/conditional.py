"""The one mechanism behind priors, likelihoods and posteriors: numbers become the parameters of a Pyro distribution."""

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import torch
from pyro import distributions as dist
from torch import Tensor, nn
from torch.distributions import constraints, transform_to
from torch.distributions.constraints import Constraint

from ..bounded import machine_numbers
from ..checks import did_you_mean
from ..nested import mapped
from ..registry import members

Shape = int | Sequence[int]
Parameter = float | Sequence[Any] | Tensor | str  # a number, or one for each entry; "learned" or "per_dimension"

_EQUIVALENT = (  # the first is the default
    ("logits", "probs"),
    ("gate_logits", "gate"),
    ("scale_tril", "covariance_matrix", "precision_matrix"),
)


class Conditional(nn.Module):
    """A Pyro distribution over one event, some of whose parameters come from a network.

    Each parameter in the family's ``arg_constraints`` is, by what is given for it,

    * ``None``: read from the network's output, through ``transform_to(constraint)``;
    * a number or tensor: fixed;
    * ``"learned"``: one learned value, shared by the whole event;
    * ``"per_dimension"``: a learned value for each entry of the event.

    ``conditional(h)`` takes ``h`` of shape ``(..., size)`` and returns a distribution with batch shape ``(...)`` and
    event shape ``event_shape``. A conditional made without ``event_shape`` is sized by the ``Autoencoder``.

    Args:
        family: a Pyro distribution class.
        event_shape: shape of one event, or ``None`` until it is known.
        limits: constraints to use instead of the family's own.
        length: how long a parameter is that is a vector for each single entry, such as a Categorical's logits.
        parameters: what is given for the family's parameters.

    Raises:
        ValueError: an unknown parameter, a value outside its constraint, or a family whose constraints say too little.
    """

    event_shape: torch.Size | None
    limits: dict[str, Constraint] = {}  # of the family's parameters
    size: int  # numbers it reads from the network
    widths: list[int]  # the same, parameter by parameter

    def __init__(self, family: type, event_shape: Shape | None, limits: dict[str, Constraint] | None = None, length: int = 0, **parameters):
        super().__init__()
        given = {name: value for name, value in parameters.items() if value is not None}
        self.family = family
        self.event_shape = None if event_shape is None else as_shape(event_shape, type(self).__name__)
        self.limits = limits or _in_use(family, given, type(self).__name__)
        self.widths, self.length = [], length
        if self.event_shape is not None:
            for name in self.limits:
                self._place(name, given.get(name))
        self.size = sum(self.widths)

    def forward(self, h: Tensor | None = None) -> dist.Distribution:
        """The distribution given a network's output ``h`` of shape ``(..., size)``."""
        return self.shaped(self.make(**self.values(h)))

    def values(self, h: Tensor | None = None) -> dict[str, Tensor]:
        """The family's parameters given a network's output."""
        numbers = iter(() if h is None else h.split(self.widths, -1))
        return {name: self._value(name, numbers) for name in self.limits}

    def shaped(self, d: dist.Distribution) -> dist.Distribution:
        """A distribution of entries as one of events."""
        return d.to_event(len(self.event_shape) - d.event_dim)

    def make(self, **parameters: Tensor) -> dist.Distribution:
        """The distribution of single entries, from their parameters."""
        return self.family(**parameters)

    def _apply(self, fn, recurse=True):
        """Also moves the bounds of constraints, which no buffer holds."""
        super()._apply(fn, recurse)
        self.limits = {name: mapped(limit, fn) for name, limit in self.limits.items()}
        return self

    def extra_repr(self) -> str:
        """What it was made with."""
        return ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())

    def _value(self, name: str, numbers: Iterator[Tensor]) -> Tensor:
        if name in self._buffers:
            return self._buffers[name]
        constrain = transform_to(self.limits[name])
        if f"raw_{name}" in self._parameters:
            return constrain(self._parameters[f"raw_{name}"]).expand(self._shape(name))
        raw, shape = next(numbers), self._shape(name)
        if self._listed(name):  # numbers come channel by channel, as a convolution gives them
            return constrain(raw.reshape(*raw.shape[:-1], shape[-1], *shape[:-1]).movedim(raw.dim() - 1, -1))
        return constrain(raw.reshape(*raw.shape[:-1], *shape))

    def _place(self, name: str, value):
        """Decide where a parameter comes from: the network, a learned value or a fixed one."""
        limit, owner = self.limits[name], type(self).__name__
        if constraints.is_dependent(limit) and (value is None or isinstance(value, str)):
            raise ValueError(f"{owner}: {self.family.__name__} does not say which values {name!r} may take; give {name!r} a fixed value")
        shape = self._shape(name)
        if value is None:
            self.widths.append(prod(shape))
        elif isinstance(value, str):
            learned = {"learned": shape[len(shape) - _depth(limit) :], "per_dimension": shape}
            if value not in learned:
                raise ValueError(f"{owner}: {name} is a number, 'learned', 'per_dimension' or None (from the network), got {value!r}")
            self.register_parameter(f"raw_{name}", nn.Parameter(torch.zeros(learned[value])))
        else:
            self.register_buffer(name, _fixed(value, shape, limit, f"{owner}: {name}"))

    def _listed(self, name: str) -> bool:
        """Whether a parameter is a list for each single entry, such as a Categorical's logits."""
        return _depth(self.limits[name]) > 0 and _depth(self.family.support) == 0

    def _shape(self, name: str) -> torch.Size:
        """A parameter's shape for one event: the batch part of the event, then the event's length as often as its constraint asks."""
        deep, family_dim = _depth(self.limits[name]), _depth(self.family.support)
        if self._listed(name) and self.length:
            return self.event_shape + torch.Size([self.length])
        if self._listed(name):
            raise ValueError(
                f"{type(self).__name__}: the length of {self.family.__name__}'s {name!r} does not follow from an event's shape; "
                "write a Conditional of its own for it"
            )
        return self.event_shape[: len(self.event_shape) - family_dim] + self.event_shape[-1:] * deep


class Relaxed(Conditional):
    """A conditional on the logits of a family that has a temperature beside them."""

    def __init__(self, family: type, event_shape: Shape | None, temperature: float, **parameters):
        super().__init__(family, event_shape, **parameters)
        if not temperature > 0.0:
            raise ValueError(f"{type(self).__name__}: expected a positive temperature, got {temperature!r}")
        self.temperature = temperature

    def make(self, logits):
        """The distribution of single entries."""
        return self.family(logits.new_full((), self.temperature), logits=logits)


def as_shape(shape: Shape, owner: str) -> torch.Size:
    """``8`` or ``(1, 28, 28)`` as a ``torch.Size``; ``ValueError`` unless every entry is a positive whole number, and memory holds one."""
    entries = [shape] if isinstance(shape, int) else shape
    sound = isinstance(entries, Sequence) and not isinstance(entries, str) and len(entries) > 0
    if not sound or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in entries):
        raise ValueError(f"{owner}: expected the shape of one event as a positive whole number or several of them, got {shape!r}")
    if prod(entries) > machine_numbers():
        raise ValueError(
            f"{owner}: expected an event of at most {machine_numbers():,.0f} numbers, as the memory of this machine holds, got {shape!r}"
        )
    return torch.Size(entries)


def pyro_family(family: str | type, owner: str) -> type:
    """A Pyro distribution class, by itself or by its name in the table of names."""
    known = members("distributions")
    found = known.get(family) if isinstance(family, str) else family
    if isinstance(found, type) and issubclass(found, torch.distributions.Distribution):
        return found
    raise ValueError(f"{owner}: expected a Pyro distribution class or its name, got {family!r}" + did_you_mean(str(family), known))


def of_one_entry(limit: Constraint) -> Constraint:
    """The constraint on a single entry of an event: ``real`` for ``real_vector``."""
    while hasattr(limit, "base_constraint"):
        limit = limit.base_constraint
    return limit


def in_words(limit: Constraint) -> str:
    """A constraint in words."""
    limit = of_one_entry(limit)
    words = {
        constraints.boolean: "0 or 1",
        constraints.unit_interval: "between 0 and 1",
        constraints.real: "finite",
        constraints.positive: "positive",
        constraints.nonnegative: "not negative",
        constraints.nonnegative_integer: "a whole number, not negative",
    }
    if isinstance(limit, (type(constraints.interval(0, 1)), type(constraints.integer_interval(0, 1)))):
        whole = "a whole number " if limit.is_discrete else ""
        return words.get(limit, f"{whole}from {limit.lower_bound} to {limit.upper_bound}")
    return words.get(limit, str(limit))


def _in_use(family: type, given: dict, owner: str) -> dict[str, Constraint]:
    known = family.arg_constraints
    if not isinstance(known, dict):
        raise ValueError(f"{owner}: {family.__name__} does not state what values its parameters may take; write a part of its own for it")
    for name in given:
        if name not in known:
            raise ValueError(f"{owner}: {family.__name__} has no parameter {name!r}" + did_you_mean(name, known))
    unused = set()
    for names in _EQUIVALENT:
        names = [name for name in names if name in known]
        chosen = next((name for name in names if name in given), names[0] if names else None)
        unused.update(name for name in names if name != chosen)
    return {name: limit for name, limit in known.items() if name not in unused}


def _depth(limit: Constraint) -> int:
    """How many dimensions a constrained value takes; 0 where that is not stated (a Delta, a Uniform's ends)."""
    try:
        return limit.event_dim
    except NotImplementedError:
        return 0


def _fixed(value, shape: torch.Size, limit: Constraint, what: str) -> Tensor:
    try:
        value = torch.as_tensor(value, dtype=torch.get_default_dtype()).expand(shape).clone()
    except (RuntimeError, TypeError, ValueError):
        raise ValueError(f"{what}: expected a number, or numbers of shape {tuple(shape)}, got {value!r}") from None
    if not constraints.is_dependent(limit) and not bool(limit.check(value).all()):
        raise ValueError(f"{what}: expected it to be {in_words(limit)}, got {value.unique().tolist()[:4]}")
    return value
