"""Modes of p(z|x), looked for from several starts, for many examples at once."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .curvature import Curvature, inverse_factor
from .density import Density
from .networks import Networks

_CLIMB = 40  # steps of Adam from every start
_LR = 0.15  # its first learning rate, in units of width
_NEWTON = 7  # steps at most
_GAIN = 0.05  # nats, twice what a step would gain, below which it is the last
_LENGTHS = 0.1, 0.3, 0.6, 1.0, 1.5  # of a Newton step, the best of which is taken if it is upward
_BACK = 6  # steps that show whether an end of an ascent lies on the slopes of a known mode
_MOST = 6  # modes of an example
_APART = 9.0  # squared distance of two modes, in units of one's curvature
_HIGHER = 0.1  # nats above a mode from which a point near it belongs to another: the first is a saddle
_BELOW = 12.0  # nats below the highest mode that still count


@dataclass
class Modes:
    """Modes of some examples one after another: where they are, and the negative curvature there."""

    rows: Tensor  # (M,) which example
    loc: Tensor  # (M, size)
    precision: Tensor  # (M, size, size)
    log_p: Tensor  # (M,) log p(x, u) there

    def __getitem__(self, index: Tensor) -> "Modes":
        return Modes(self.rows[index], self.loc[index], self.precision[index], self.log_p[index])

    def squared_distance(self, u: Tensor) -> Tensor:
        """Of points u ``(S, M, size)``, in units of each mode's curvature, ``(S, M)``."""
        away = (u - self.loc).double()
        return torch.einsum("smi,mij,smj->sm", away, self.precision, away)

    def explains(self, u: Tensor, log_p: Tensor) -> Tensor:
        """Whether points u ``(S, M, size)`` of those densities belong to the mode: near it, or as low as its curvature says."""
        squared = self.squared_distance(u)
        below = self.log_p - log_p
        return ((squared < _APART) & (below > -_HIGHER)) | (below > 0.25 * squared)


class Distinct:
    """The distinct modes of R examples, of which the highest of each comes first.

    Args:
        first: one mode of each example.
    """

    def __init__(self, first: Modes):
        self.layers = [first]  # the k-th mode of each example that has one
        n, device = len(first.rows), first.rows.device
        self.places = [torch.arange(n, device=device)]  # (R,) where an example's mode is in that layer; -1: it has none
        self.highest = first.log_p.clone()

    @property
    def counts(self) -> Tensor:
        """How many modes each example has, ``(R,)``."""
        return sum((place >= 0).long() for place in self.places)

    def explain(self, owners: Tensor, u: Tensor, log_p: Tensor) -> Tensor:
        """Whether points ``(S, M, size)`` belong to a mode of their examples ``owners`` ``(M,)``."""
        known = torch.zeros(u.shape[:2], dtype=torch.bool, device=u.device)
        for layer, place in zip(self.layers, self.places):
            has = place[owners] >= 0
            known[:, has] |= layer[place[owners[has]]].explains(u[:, has], log_p[:, has])
        return known

    def add(self, owners: Tensor, new: Modes):
        """Keep those of the new modes, at most one for each example, that are none of those before and not far below them."""
        fresh = ~self.explain(owners, new.loc[None], new.log_p[None])[0]
        fresh &= (new.log_p > self.highest[owners] - _BELOW) & (self.counts[owners] < _MOST)
        if fresh.any():
            place = torch.full_like(self.places[0], -1)
            place[owners[fresh]] = torch.arange(int(fresh.sum()), device=place.device)
            self.layers.append(new[fresh])
            self.places.append(place)
            self.highest[owners] = torch.maximum(self.highest[owners], new.log_p)

    def modes(self) -> Modes:
        """All of them."""
        columns = zip(*((layer.rows, layer.loc, layer.precision, layer.log_p) for layer in self.layers))
        return Modes(*map(torch.cat, columns))


class Search:
    """Looks for modes.

    Args:
        make: the density of some of the examples, by index.
        width: a unit of length for every entry of u, ``(B, size)``.
        networks: of the model.
    """

    def __init__(self, make: Callable[[Tensor], Density], width: Tensor, networks: Networks):
        self.make, self.width, self.networks = make, width, networks

    def curvature(self, rows: Tensor) -> Curvature:
        """Of the density of some of the examples."""
        return Curvature(self.make(rows), self.width[rows], self.networks)

    def climbed(self, rows: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Ends of ascents from starts ``(S, R, size)``, and log p there."""
        density, width = self.make(rows), self.width[rows]
        (shift,) = minimised(lambda shift: -density.log_joint(starts + width * shift).sum(), [torch.zeros_like(starts)], _CLIMB, _LR)
        ends = starts + width * shift
        return ends, _log_joint(density, ends)

    def modes(self, rows: Tensor, ends: Tensor, log_p: Tensor, more: Callable[[Tensor], Tensor]) -> Modes:
        """The distinct modes near the ends ``(S, R, size)`` of ascents for the examples ``rows``.

        Args:
            rows: which examples.
            ends, log_p: of ``climbed``.
            more: further starts for some examples ``(S', R', size)``: for those that have more than one mode.
        """
        distinct = Distinct(self._newton(rows, *_best(ends, log_p)))
        self._look_near(distinct, rows, torch.arange(len(rows), device=rows.device), ends, log_p)
        several = (distinct.counts > 1).nonzero()[:, 0]
        if len(several):
            self._look_near(distinct, rows, several, *self.climbed(rows[several], more(rows[several])))
        return distinct.modes()

    def _look_near(self, distinct: Distinct, rows: Tensor, some: Tensor, ends: Tensor, log_p: Tensor):
        """Add the modes near the ends that belong to no mode so far."""
        log_p = log_p.masked_fill(distinct.explain(some, ends, log_p), -torch.inf)
        at, column = _unlike_ends(ends, log_p, distinct.layers[0][some])
        if len(at) == 0:
            return
        u, log_p, owners = ends[at, column], log_p[at, column], some[column]
        u, log_p = self._drawn_back(rows[owners], u, log_p, distinct.layers[0][owners].precision)
        left = (~distinct.explain(owners, u[None], log_p[None])[0]).nonzero()[:, 0]
        if len(left) == 0:
            return
        new, column = self._newton(rows[owners[left]], u[left], log_p[left]), column[left]
        order = torch.argsort(new.log_p, descending=True)
        order = order[torch.argsort(column[order], stable=True)]  # by example, the highest first
        new, owners = new[order], some[column[order]]
        rank = torch.arange(len(owners), device=owners.device) - torch.searchsorted(column[order].contiguous(), column[order].contiguous())
        for k in range(int(rank.max()) + 1):
            distinct.add(owners[rank == k], new[rank == k])

    def _drawn_back(self, rows: Tensor, u: Tensor, log_p: Tensor, precision: Tensor) -> tuple[Tensor, Tensor]:
        """Points u ``(R, size)`` after steps with a mode's precision, which from its own slopes lead back to it for little."""
        density, factor = self.make(rows), inverse_factor(precision)
        for _ in range(_BACK):
            slope = density.slope(u[None])[0].double()
            u, log_p = _stepped(density, u, log_p, (factor @ (factor.mT @ slope[..., None]))[..., 0])
        return u, log_p

    def _newton(self, rows: Tensor, u: Tensor, log_p: Tensor) -> Modes:
        """A mode for each example from u ``(R, size)``, by Newton steps each of the best length until one gains next to nothing.

        The curvature is that before the last step.
        """
        u, log_p = u.clone(), log_p.clone()
        precision = torch.empty(*u.shape, u.shape[-1], dtype=torch.float64, device=u.device)
        left = torch.arange(len(u), device=u.device)
        for _ in range(_NEWTON):
            curvature = self.curvature(rows[left])
            slope, precision[left] = curvature(u[None, left])
            direction = torch.linalg.solve(precision[left], slope)
            new, higher = _stepped(curvature.density, u[left], log_p[left], direction)
            better = higher > log_p[left]
            u[left[better]], log_p[left[better]] = new[better], higher[better]
            left = left[better & ((slope * direction).sum(-1) > _GAIN)]
            if len(left) == 0:
                break
        return Modes(rows, u, precision, log_p)


def minimised(loss, parameters: list[Tensor], steps: int, lr: float) -> list[Tensor]:
    """Parameters after Adam with a learning rate that falls to 0 along a cosine."""
    parameters = [parameter.requires_grad_() for parameter in parameters]
    adam = torch.optim.Adam(parameters, lr=lr)
    for step in range(steps):
        adam.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        with torch.enable_grad():
            value = loss(*parameters)
        for parameter, gradient in zip(parameters, torch.autograd.grad(value, parameters)):
            parameter.grad = gradient
        adam.step()
    return [parameter.detach() for parameter in parameters]


def _unlike_ends(ends: Tensor, log_p: Tensor, first: Modes) -> tuple[Tensor, Tensor]:
    """Which ends ``(S, R, size)`` to begin at, and of which example: the highest, and no second one within a standard deviation."""
    log_p, at = log_p.clone(), []
    every = torch.arange(ends.shape[1], device=ends.device)
    for _ in range(_MOST):
        best = log_p.argmax(0)
        at.append(torch.where(log_p[best, every] > -torch.inf, best, -1))
        log_p = log_p.masked_fill(first.squared_distance(ends - ends[best, every] + first.loc) < 1, -torch.inf)
        log_p[best, every] = -torch.inf
    chosen = torch.stack(at)  # (_MOST, R)
    _, column = (chosen >= 0).nonzero(as_tuple=True)
    return chosen[chosen >= 0], column


def _stepped(density: Density, u: Tensor, log_p: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Points ``(R, size)`` of that log p after a step of the best length, and log p there."""
    lengths = torch.tensor(_LENGTHS, dtype=u.dtype, device=u.device)[:, None, None]
    tried = torch.cat([u[None], u + lengths * direction.to(u.dtype)])  # (lengths, R, size)
    values = torch.cat([log_p[None], _log_joint(density, tried[1:])])
    return _best(tried, values)


def _best(ends: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    best = log_p.argmax(0)
    every = torch.arange(ends.shape[1], device=ends.device)
    return ends[best, every], log_p[best, every]


def _log_joint(density: Density, u: Tensor) -> Tensor:
    return density.log_joint(u).nan_to_num(nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)
