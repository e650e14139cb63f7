"""Modes of p(z|x), looked for from several starts, for many examples at once."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .curvature import Curvature
from .density import Density

_CLIMB = 40  # steps of Adam from every start
_LR = 0.15  # its first learning rate, in units of width
_NEWTON = 6
_LENGTHS = 0.0, 0.1, 0.3, 0.6, 1.0, 1.5  # of a Newton step, the best of which is taken
_MOST = 6  # modes of an example
_APART = 9.0  # squared distance of two modes, in units of one's curvature
_BELOW = 12.0  # nats below the highest mode that still count


@dataclass
class Modes:
    """Modes of some examples one after another: where they are, and the negative curvature there."""

    rows: Tensor  # (M,) whose each is
    loc: Tensor  # (M, size)
    precision: Tensor  # (M, size, size)
    log_p: Tensor  # (M,) log p(x, u) there

    def explains(self, u: Tensor, log_p: Tensor) -> Tensor:
        """Whether points u ``(S, M, size)`` of those densities belong to the mode: near it, or as low as its curvature says."""
        away = u - self.loc
        squared = torch.einsum("smi,mij,smj->sm", away.double(), self.precision, away.double())
        return (squared < _APART) | (self.log_p - log_p > 0.25 * squared)


class Search:
    """Looks for modes.

    Args:
        make: the density of some of the examples, by index.
        width: a unit of length for every entry of u, ``(B, size)``.
    """

    def __init__(self, make: Callable[[Tensor], Density], width: Tensor):
        self.make, self.width = make, width

    def climbed(self, rows: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Ends of ascents from starts ``(S, R, size)``, and log p there."""
        density, width = self.make(rows), self.width[rows]
        (shift,) = minimised(lambda shift: -density.log_joint(starts + width * shift).sum(), [torch.zeros_like(starts)], _CLIMB, _LR)
        ends = starts + width * shift
        return ends, _log_joint(density, ends)

    def modes(self, rows: Tensor, ends: Tensor, log_p: Tensor, more: Callable[[Tensor], Tensor]) -> Modes:
        """The modes near the ends ``(S, R, size)`` of ascents for the examples ``rows``, the highest first.

        Args:
            rows: which examples.
            ends, log_p: of ``climbed``.
            more: further starts for some examples ``(S', R', size)``: for those that have more than one mode.
        """
        every = torch.arange(len(rows), device=rows.device)
        found = [self._newton(rows, *_best(ends, log_p))]
        owner = [every]
        ends, log_p = ends.clone(), log_p.clone()
        for k in range(1, _MOST):
            for mode, whose in zip(found, owner):
                known = mode.explains(ends[:, whose], log_p[:, whose])
                log_p[:, whose] = log_p[:, whose].masked_fill(known, -torch.inf)
            left = (log_p > -torch.inf).any(0).nonzero()[:, 0]
            if len(left) == 0:
                break
            new = self._newton(rows[left], *_best(ends[:, left], log_p[:, left]))
            chosen = log_p[:, left].argmax(0)
            log_p[chosen, left] = -torch.inf
            fresh = self._fresh(new, left, found, owner)
            if fresh.any():
                found.append(Modes(new.rows[fresh], new.loc[fresh], new.precision[fresh], new.log_p[fresh]))
                owner.append(left[fresh])
                if k == 1:
                    ends, log_p = self._extended(rows, left[fresh], ends, log_p, more)
        return Modes(*(torch.cat([getattr(mode, name) for mode in found]) for name in ("rows", "loc", "precision", "log_p")))

    def _fresh(self, new: Modes, left: Tensor, found: list[Modes], owner: list[Tensor]) -> Tensor:
        """Which of the new modes are none of those found."""
        fresh = new.log_p > found[0].log_p[left] - _BELOW
        place = torch.full((int(max(whose.max() for whose in owner)) + 1,), -1, device=left.device)
        for mode, whose in zip(found, owner):
            place.fill_(-1)
            place[whose] = torch.arange(len(whose), device=left.device)
            at = place[left]
            has = at >= 0
            known = Modes(mode.rows[at[has]], mode.loc[at[has]], mode.precision[at[has]], mode.log_p[at[has]])
            fresh[has] &= ~known.explains(new.loc[has][None], new.log_p[has][None])[0]
        return fresh

    def _extended(self, rows: Tensor, some: Tensor, ends: Tensor, log_p: Tensor, more) -> tuple[Tensor, Tensor]:
        further, further_p = self.climbed(rows[some], more(rows[some]))
        wide = ends.new_zeros(len(further), *ends.shape[1:])
        wide_p = log_p.new_full(wide.shape[:2], -torch.inf)
        wide[:, some], wide_p[:, some] = further, further_p
        return torch.cat([ends, wide]), torch.cat([log_p, wide_p])

    def _newton(self, rows: Tensor, u: Tensor, log_p: Tensor) -> Modes:
        """A mode for each example from u ``(R, size)``, by Newton steps each of the best length."""
        density = self.make(rows)
        curvature = Curvature(density, self.width[rows])
        lengths = torch.tensor(_LENGTHS, dtype=u.dtype, device=u.device)[:, None, None]
        every = torch.arange(len(u), device=u.device)
        for _ in range(_NEWTON):
            slope, precision = curvature(u[None])
            step = torch.linalg.solve(precision, slope).to(u.dtype)
            tried = u + lengths * step  # (lengths, R, size)
            values = _log_joint(density, tried)
            best = values.argmax(0)
            u, log_p = tried[best, every], values[best, every]
        return Modes(rows, u, curvature(u[None])[1], log_p)


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


def _best(ends: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    best = log_p.argmax(0)
    every = torch.arange(ends.shape[1], device=ends.device)
    return ends[best, every], log_p[best, every]


def _log_joint(density: Density, u: Tensor) -> Tensor:
    return density.log_joint(u).nan_to_num(nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)
