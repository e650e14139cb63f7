"""``Conditional``: a network's output becomes the parameters of a Pyro distribution."""

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

    A parameter in the family's ``arg_constraints`` may be

    * ``None``: read from the network's output, through ``transform_to(constraint)``;
    * a number or tensor: fixed;
    * ``"learned"``: one learned value for all entries of the event;
    * ``"per_dimension"``: a learned value for each entry.

    ``conditional(h)`` takes ``h`` of shape ``(..., size)`` and returns a distribution with batch shape ``(...)`` and
    event shape ``event_shape``. A conditional made without ``event_shape`` is sized by the ``Autoencoder``.

    Args:
        family: a Pyro distribution class; ``None`` for a part that sets ``size`` and ``forward`` itself.
        event_shape: shape of one event, or ``None`` until it is known.
        limits: constraints that replace the family's own.
        length: of a parameter that is a vector for each entry, such as a Categorical's logits.
        parameters: values of the family's parameters.

    Raises:
        ValueError: an unknown parameter, a value outside its constraint, or a family that does not state its constraints.
    """

    event_shape: torch.Size | None
    limits: dict[str, Constraint] = {}  # of the family's parameters
    size: int  # of the network's output for one event
    param_sizes: list[int]  # of the part of it that each parameter is read from

    def __init__(
        self,
        family: type | None = None,
        event_shape: Shape | None = None,
        limits: dict[str, Constraint] | None = None,
        length: int = 0,
        **parameters,
    ):
        super().__init__()
        values = {name: value for name, value in parameters.items() if value is not None}
        if family is not None and not isinstance(family, type):
            raise ValueError(
                f"{type(self).__name__}: expected the class of a Pyro distribution, such as Normal, got {family!r}; "
                "a part with its own forward calls super().__init__(event_shape=event_shape) and sets self.size"
            )
        self.family = family
        self.event_shape = None if event_shape is None else as_shape(event_shape, type(self).__name__)
        self.limits = limits or ({} if family is None else _in_use(family, values, type(self).__name__))
        self.param_sizes, self.length = [], length
        if self.event_shape is not None:
            for name in self.limits:
                self._place(name, values.get(name))
        self.size = sum(self.param_sizes)

    def forward(self, h: Tensor | None = None) -> dist.Distribution:
        """The distribution given a network's output ``h`` of shape ``(..., size)``."""
        return self.shaped(self.make(**self.values(h)))

    def values(self, h: Tensor | None = None) -> dict[str, Tensor]:
        """The family's parameters given a network's output."""
        params = iter(() if h is None else h.split(self.param_sizes, -1))
        return {name: self._value(name, params) for name in self.limits}

    def shaped(self, d: dist.Distribution) -> dist.Distribution:
        """The distribution of events, from that of single entries."""
        return d.to_event(len(self.event_shape) - d.event_dim)

    def make(self, **parameters: Tensor) -> dist.Distribution:
        """The distribution of single entries, from their parameters."""
        return self.family(**parameters)

    @torch.no_grad()
    def set_learned(self, name: str, value: Tensor):
        """Set a learned parameter to a value for each entry, ``"learned"`` ones to their mean; others are not changed."""
        raw = self._parameters.get(f"raw_{name}")
        if raw is not None:
            value = value if raw.shape == value.shape else value.mean().expand(raw.shape)
            raw.copy_(transform_to(self.limits[name]).inv(value))

    def _apply(self, fn, recurse=True):
        """Also moves the bounds of constraints, which are not buffers."""
        super()._apply(fn, recurse)
        self.limits = {name: mapped(limit, fn) for name, limit in self.limits.items()}
        return self

    @torch.no_grad()
    def freeze(self):
        """Fix the learned parameters at their values."""
        for name in self.limits:
            if f"raw_{name}" in self._parameters:
                value = self._value(name, iter(())).clone()
                del self._parameters[f"raw_{name}"]
                self.register_buffer(name, value)

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        return ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())

    def _value(self, name: str, params: Iterator[Tensor]) -> Tensor:
        if name in self._buffers:
            return self._buffers[name]
        constrain = transform_to(self.limits[name])
        if f"raw_{name}" in self._parameters:
            return constrain(self._parameters[f"raw_{name}"]).expand(self._shape(name))
        raw, shape = next(params), self._shape(name)
        if self._is_vector(name):  # the output has it channel by channel, as from a convolution
            return constrain(raw.reshape(*raw.shape[:-1], shape[-1], *shape[:-1]).movedim(raw.dim() - 1, -1))
        return constrain(raw.reshape(*raw.shape[:-1], *shape))

    def _place(self, name: str, value):
        """Read a parameter from the network, or register it as a learned or fixed value."""
        limit, owner = self.limits[name], type(self).__name__
        if constraints.is_dependent(limit) and (value is None or isinstance(value, str)):
            raise ValueError(f"{owner}: {self.family.__name__} does not state the constraint of {name!r}; give {name!r} a fixed value")
        shape = self._shape(name)
        if value is None:
            self.param_sizes.append(prod(shape))
        elif isinstance(value, str):
            learned = {"learned": shape[len(shape) - _event_dim(limit) :], "per_dimension": shape}
            if value not in learned:
                raise ValueError(f"{owner}: {name} is a number, 'learned', 'per_dimension' or None (from the network), got {value!r}")
            self.register_parameter(f"raw_{name}", nn.Parameter(torch.zeros(learned[value])))
        else:
            self.register_buffer(name, _fixed(value, shape, limit, f"{owner}: {name}"))

    def _is_vector(self, name: str) -> bool:
        """Whether a parameter is a vector for each entry, such as a Categorical's logits."""
        return _event_dim(self.limits[name]) > 0 and _event_dim(self.family.support) == 0

    def _shape(self, name: str) -> torch.Size:
        """A parameter's shape for one event: the event's batch dimensions, then its length for each dimension of the constraint."""
        own_dim, family_dim = _event_dim(self.limits[name]), _event_dim(self.family.support)
        if self._is_vector(name) and self.length:
            return self.event_shape + torch.Size([self.length])
        if self._is_vector(name):
            raise ValueError(
                f"{type(self).__name__}: the length of {self.family.__name__}'s {name!r} does not follow from an event's shape; "
                "write a Conditional of its own for it"
            )
        return self.event_shape[: len(self.event_shape) - family_dim] + self.event_shape[-1:] * own_dim


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
    """``8`` or ``(1, 28, 28)`` as a ``torch.Size``; ``ValueError`` unless they are positive whole numbers and fit into memory."""
    entries = [shape] if isinstance(shape, int) else shape
    is_list = isinstance(entries, Sequence) and not isinstance(entries, str) and len(entries) > 0
    if not is_list or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in entries):
        raise ValueError(f"{owner}: expected the shape of one event as a positive whole number or several of them, got {shape!r}")
    if prod(entries) > machine_numbers():
        raise ValueError(
            f"{owner}: expected an event of at most {machine_numbers():,.0f} numbers, as the memory of this machine holds, got {shape!r}"
        )
    return torch.Size(entries)


def pyro_family(family: str | type, owner: str) -> type:
    """A Pyro distribution class, from the class or its registered name."""
    known = members("distributions")
    cls = known.get(family) if isinstance(family, str) else family
    if isinstance(cls, type) and issubclass(cls, torch.distributions.Distribution):
        return cls
    raise ValueError(f"{owner}: expected a Pyro distribution class or its name, got {family!r}" + did_you_mean(str(family), known))


def entry_constraint(limit: Constraint) -> Constraint:
    """The constraint on a single entry of an event: ``real`` for ``real_vector``."""
    while hasattr(limit, "base_constraint"):
        limit = limit.base_constraint
    return limit


def describe(limit: Constraint) -> str:
    """A constraint in words."""
    limit = entry_constraint(limit)
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


def _in_use(family: type, values: dict, owner: str) -> dict[str, Constraint]:
    known = family.arg_constraints
    if not isinstance(known, dict):
        raise ValueError(f"{owner}: {family.__name__} does not state its constraints; write a Conditional with limits={...}")
    for name in values:
        if name not in known:
            raise ValueError(f"{owner}: {family.__name__} has no parameter {name!r}" + did_you_mean(name, known))
    unused = set()
    for names in _EQUIVALENT:
        names = [name for name in names if name in known]
        chosen = next((name for name in names if name in values), names[0] if names else None)
        unused.update(name for name in names if name != chosen)
    return {name: limit for name, limit in known.items() if name not in unused}


def _event_dim(limit: Constraint) -> int:
    """The number of dimensions of a constrained value; 0 if that is not stated (a Delta, a Uniform's ends)."""
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
        raise ValueError(f"{what}: expected it to be {describe(limit)}, got {value.unique().tolist()[:4]}")
    return value
