"""The adaptive proposal: for each example the guide where it is adequate, otherwise a mixture fitted to p(z|x)."""

import contextlib
import math

import torch
from pyro import poutine
from torch import Tensor

from .. import programs
from ..programs import Program
from ..programs.probing import trials_of
from .curvature import inverse_factor
from .density import Density, FlatGuide, PriorGuide, point_site
from .either import Either
from .modes import Modes, Search
from .networks import Networks
from .ridges import ridge_axes
from .splitt import SplitStudentT, standard_noise
from .weights import Weights

_PILOT = 256  # draws from the guide that decide whether it is adequate
_KHAT = 0.5  # largest k-hat of an adequate guide
_ESS = 0.5  # its smallest relative effective sample size: k-hat of a small pilot does not show a guide that is too narrow
_KHAT_FITTED = 0.5  # of a fitted proposal
_MISSED = 20.0  # ratio p(z|x) / q(z|x) above which the guide misses a mode or a tail
_FAR = 64  # points in its tails at which the densities are compared
_PRIOR = 256  # draws from the prior, for its width and for starts
_STARTS = 4  # from the prior, far apart, and as many mirror images of its draws, in addition to the guide's mean and one draw
_OUTLYING = 10.0  # distance of a draw from the prior's median, in units of its width, above which it is no start
_FURTHER = 24  # additional starts for an example with more than one mode
_RATES = 0.7, 0.5, 0.4, 0.3, 0.25, 0.2  # of the natural-gradient steps, each with two antithetic draws
_REACH = 1.5, 3.0, 5.0  # standard deviations at which tails are measured
_SIDES = 1.0, 4.0  # smallest and largest scale of a side
_ROUNDS = 3  # of refinement
_SHARE = 0.15  # weight of a component that a round adds
_FLOOR = 0.1  # smallest weight of a mode relative to the largest
_LARGEST = 128  # size of z above which full covariances are not fitted


class Adapted(programs.Wrapper):
    """A guide for one block of examples, some of which have a fitted proposal.

    Args:
        program: draws the latents.
        fitted: ``(B,)`` whether an example has a fitted proposal.
        modes: ``(B,)`` number of fitted modes of p(z|x); 0 where the guide is used, -1 where no search was possible.
    """

    def __init__(self, program: Program, fitted: Tensor, modes: Tensor):
        super().__init__(program)
        self.fitted, self.modes = fitted, modes


class Adaptive:
    r"""The guide where a pilot run shows that it is adequate, otherwise a mixture of split Student's t fitted to p(z|x).

    For each example: (1) 256 pilot draws from the guide give its k-hat. (2) Gradient ascents from the guide and the prior search for
    modes of p(z|x). The guide is kept where k-hat is below 0.5, half of the pilot is effective and neither a mode nor a tail lies where
    it has next to no density. (3) Elsewhere every mode gets a Normal by variational online Newton (Khan & Lin 2017), with the Gauss-Newton
    curvature averaged over its own draws, and (4) axes along the ridges of p(z|x), with tails scaled on each side of each axis
    (Geweke 1989); modes are weighted by their evidence, and (5) components added where a pilot finds large weights (Raftery & Bao
    2010). The estimate uses fresh draws only, so it is unbiased for p(x) given the proposal. The guide is also kept where p(x, z) is
    0 or NaN at every point of the search.

    All examples of a block are fitted with the same noise: the fit of an example depends on the seed, but not on the other examples.
    Its draws depend on the seed, on its position in the block and on the block's size.

    The guide is used for discrete latents, for latents that Pyro does not map to the real line, above 128 dimensions, and for
    programs that cannot be run on a part of the examples.

    >>> import pyroae as pa
    >>> pa.log_likelihood(vae, x, particles=30, proposal=Adaptive()).values.shape
    torch.Size([20])
    """

    def __call__(self, model: Program, guide: Program, *args: Tensor) -> Program:
        modes = torch.full((len(args[0]),), -1, device=args[0].device)
        unknown = Adapted(guide, modes > 0, modes)
        try:
            density = Density(model, guide, args)
        except ValueError:
            return unknown
        if density.size > _LARGEST or not trials_of(model).splits:
            return unknown
        later = int(torch.randint(2**62, ()))
        adapted = _Fit(model, guide, args, density).adapted()
        programs.reseed(later, args[0].device)  # independent of how much the fit has drawn
        return adapted


class _Fit:
    """The steps of ``Adaptive`` for one block of examples."""

    def __init__(self, model: Program, guide: Program, args: tuple[Tensor, ...], density: Density):
        self.model, self.guide, self.args, self.density = model, guide, args, density
        self.prior = Density(model, PriorGuide(model), args).draw(_PRIOR)  # (_PRIOR, B, size)
        low, high = (self.prior.kthvalue(round(_PRIOR * q), 0).values for q in (0.16, 0.84))
        self.width = ((high - low) / 2).clamp(min=1e-4)
        self.search = Search(self.make, self.width, Networks(model))
        like = self.width[:1]
        self.noise = torch.randn(len(_RATES), 1, 1, density.size, dtype=torch.float64, device=like.device)
        self.pilots = [standard_noise(_PILOT, like) for _ in range(_ROUNDS)]

    def make(self, rows: Tensor) -> Density:
        """The density of some examples; indices may repeat."""
        return Density(self.model, self.guide, tuple(column[rows] for column in self.args))

    def adapted(self) -> Adapted:
        every = torch.arange(self.density.n, device=self.args[0].device)
        draws = self.density.draw(_PILOT)
        mirrored = 2 * self.prior.median(0).values - self.prior
        mean = draws.mean(0, keepdim=True)
        starts = torch.cat([mean, draws[:1], _far_apart(self.prior, mean, self.width), mirrored[:_STARTS]])
        ends, log_p = self.search.climbed(every, starts)
        bad = every
        with contextlib.suppress(ValueError):  # a flow that has no inverse gives no density at other points
            bad = (~self._is_adequate(draws, ends, log_p) & log_p.isfinite().any(0)).nonzero()[:, 0]
        modes = torch.zeros_like(every)
        if len(bad) == 0:
            return Adapted(self.guide, modes > 0, modes)
        located = self.search.modes(bad, ends[:, bad], log_p[:, bad], lambda rows: self.prior[-_FURTHER:, rows])
        modes += torch.bincount(located.rows, minlength=len(modes))
        fitted = self._refined(bad, self._mixture(bad, self._fitted(located)))
        return Adapted(FlatGuide(self.density, Either(self.density, bad, fitted)), modes > 0, modes)

    def _is_adequate(self, draws: Tensor, ends: Tensor, log_p: Tensor) -> Tensor:
        """``(B,)`` whether the guide is an adequate proposal."""
        if point_site(poutine.trace(self.density.guide).get_trace(*self.args)) is not None:
            return torch.zeros(self.density.n, dtype=torch.bool, device=draws.device)
        joint, own = self.density.log_terms(draws)
        pilot = Weights(self.density.n, len(draws), draws.device)
        pilot.add(joint - own)
        missed = torch.cat([log_p - self.density.log_guide(ends), self._tail_weights(draws)]).amax(0) - pilot.log_mean()
        return (pilot.khat() < _KHAT) & (pilot.ess() > _ESS * len(draws)) & (missed.exp() < _MISSED)

    def _tail_weights(self, draws: Tensor) -> Tensor:
        """log p(x, u) - log q(u) in the guide's tails: at twice the distance of some draws from their mean."""
        far = draws.mean(0) + 2 * (draws[:_FAR] - draws.mean(0))
        joint, own = self.density.log_terms(far)
        return (joint - own).nan_to_num(nan=-torch.inf, neginf=-torch.inf)

    def _fitted(self, modes: Modes) -> tuple[Modes, Tensor, Tensor]:
        """Each mode's Normal by variational online Newton, its axes, and the scales of their sides ``(M, 2, size)``."""
        curvature = self.search.curvature(modes.rows)
        density = curvature.density
        m, precision = modes.loc.double(), modes.precision
        tril = inverse_factor(precision)
        for rate, noise in zip(_RATES, self.noise):
            away = torch.einsum("mij,kmj->kmi", tril, noise.expand(-1, len(m), -1))
            slope, mean = curvature(torch.cat([m + away, m - away]).to(modes.loc.dtype))
            precision = (1 - rate) * precision + rate * mean
            tril = inverse_factor(precision)
            m = m + rate * torch.einsum("mij,mkj,mk->mi", tril, tril, slope)
        log_p = density.log_joint(m[None].to(modes.loc.dtype))[0]
        axes = ridge_axes(density, m, tril, modes.loc.dtype)
        return Modes(modes.rows, m, precision, log_p), axes, self._sides(density, m, axes, log_p)

    def _sides(self, density: Density, m: Tensor, axes: Tensor, log_p: Tensor) -> Tensor:
        """Scales at which a Normal would fall as log p does on each side of each axis, without the slope at m."""
        axes = axes.permute(2, 0, 1)  # (size, M, size)
        log_joint = lambda u: density.log_joint(u.to(self.width.dtype))  # noqa: E731
        slope = (log_joint(m + axes) - log_joint(m - axes)) / 2
        scales = []
        for sign in (1.0, -1.0):
            widest = torch.full_like(slope, _SIDES[0])
            for t in _REACH:
                fall = log_p + sign * t * slope - log_joint(m + sign * t * axes)
                widest = torch.maximum(widest, t / (2 * fall.nan_to_num(nan=torch.inf).clamp(min=1e-6)).sqrt())
            scales.append(widest.clamp(max=_SIDES[1]).T)
        return torch.stack(scales, 1)

    def _mixture(self, bad: Tensor, fitted: tuple[Modes, Tensor, Tensor]) -> SplitStudentT:
        """The mixture of each example's modes, weighted by their evidence."""
        modes, axes, scales = fitted
        evidence = modes.log_p + torch.linalg.slogdet(axes).logabsdet
        order = torch.argsort(modes.rows, stable=True)
        counts = torch.bincount(modes.rows, minlength=self.density.n)[bad]
        first = counts.cumsum(0) - counts
        places = torch.arange(int(counts.max()), device=bad.device).expand(len(bad), -1)
        there = places < counts[:, None]
        pick = order[first[:, None] + torch.where(there, places, 0)]  # (R, K)
        logits = evidence[pick].nan_to_num(nan=-torch.inf, neginf=-torch.inf).masked_fill(~there, -torch.inf)
        highest = logits.amax(1, keepdim=True)
        logits = torch.where(highest.isfinite(), torch.maximum(logits, highest + math.log(_FLOOR)), 0.0).masked_fill(~there, -torch.inf)
        dtype = self.width.dtype
        return SplitStudentT(logits.to(dtype), modes.loc[pick].to(dtype), axes[pick].to(dtype), scales[pick].to(dtype))

    def _refined(self, bad: Tensor, q: SplitStudentT) -> SplitStudentT:
        """q with components added at the largest weights of a pilot run until its k-hat is small (Raftery & Bao 2010)."""
        rows = torch.arange(len(bad), device=bad.device)
        for noise in self.pilots:
            density = self.make(bad[rows])
            some = q.of(rows)
            u = some.placed(*(each.expand(-1, len(rows), *each.shape[2:]) for each in noise))
            log_w = (density.log_joint(u) - some.log_prob(u)).nan_to_num(nan=-torch.inf, neginf=-torch.inf)
            pilot = Weights(len(rows), len(u), u.device)
            pilot.add(log_w)
            poor = (pilot.khat() > _KHAT_FITTED).nonzero()[:, 0]
            if len(poor) == 0:
                break
            at = u[log_w[:, poor].argmax(0), poor]
            rows = rows[poor]
            _, precision = self.search.curvature(bad[rows])(at[None])
            q = q.extended(rows, at, inverse_factor(precision).to(at.dtype), _SHARE)
        return q


def _far_apart(points: Tensor, start: Tensor, width: Tensor) -> Tensor:
    """Points ``(_STARTS, B, size)`` among ``(P, B, size)``, each the farthest from ``start`` ``(1, B, size)`` and those before.

    So a component of the prior is represented however small its weight. Outlying points, of heavy tails, are left out.
    """
    away = ((points - points.median(0).values) / width).abs().amax(-1)
    distance = ((points - start) / width).square().sum(-1).masked_fill(away > _OUTLYING, 0.0)
    chosen, every = [], torch.arange(points.shape[1], device=points.device)
    for _ in range(_STARTS):
        chosen.append(points[distance.argmax(0), every])
        distance = torch.minimum(distance, ((points - chosen[-1]) / width).square().sum(-1))
    return torch.stack(chosen)
