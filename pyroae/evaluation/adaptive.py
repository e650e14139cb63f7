"""The adaptive proposal: for each example the guide where it will do, elsewhere a mixture fitted to p(z|x)."""

import contextlib
import math

import torch
from pyro import poutine
from torch import Tensor

from .. import programs
from ..programs import Program
from .density import Density, FlatGuide, Prior, point_site
from .either import Either
from .modes import Modes, Search
from .networks import Networks
from .splitt import SplitStudentT, standard_noise
from .weights import Weights

_PILOT = 256  # draws of the guide that decide about it
_KHAT = 0.5  # largest k-hat of a guide that will do
_ESS = 0.5  # least effective share of its draws: one that is too narrow has a small k-hat in a small pilot
_KHAT_FITTED = 0.6  # of a fitted proposal
_MISSED = 20.0  # a mode, or a tail, where p(z|x) is so many times q(z|x) is missed by the guide
_FAR = 64  # points at which its tails are compared
_PRIOR = 256  # draws of the prior: its width, and starts
_PAIRS_OF_STARTS = 4  # from the prior: a draw and its mirror image, besides the guide's mean and one draw
_FURTHER = 24  # starts where there is more than one mode
_RATES = 0.7, 0.6, 0.5, 0.4, 0.35, 0.3, 0.25, 0.2  # of the natural-gradient steps
_PAIRS = 1, 1, 1, 1, 2, 2, 2, 2  # antithetic pairs of draws in each: the first count less
_REACH = 1.5, 3.0  # standard deviations at which tails are measured
_SIDES = 0.85, 1.8  # least and largest scale of a side
_ROUNDS = 3  # of refinement
_SHARE = 0.15  # of the weight, for what a round adds
_FLOOR = 0.1  # least weight of a mode, of the largest one's
_LARGEST = 128  # size of z above which full covariances are not fitted


class Adapted:
    """A guide for one block of data, some of whose examples have a proposal fitted to them.

    Args:
        program: draws the latents.
        fitted: ``(B,)`` which examples do not use the guide.
        modes: ``(B,)`` how many modes of p(z|x) were fitted; 0 where the guide will do, -1 where none were looked for.
    """

    def __init__(self, program: Program, fitted: Tensor, modes: Tensor):
        self.program, self.fitted, self.modes = program, fitted, modes

    def __call__(self, *args):
        return self.program(*args)


class Adaptive:
    r"""The guide where a pilot says that it will do, elsewhere a mixture of split Student's t fitted to p(z|x).

    For each example: (1) ``256`` pilot draws of the guide give its k-hat. (2) Ascents from the guide and the prior look for modes of
    p(z|x). The guide is kept where k-hat is below 0.5, half of the pilot is effective and neither a mode nor a tail lies where
    it has next to no density. (3) Elsewhere every mode gets a Normal by variational online Newton (Khan & Lin 2017), with the Gauss-Newton
    curvature averaged over its own draws, and (4) tails scaled on each side of each axis (Geweke 1989); modes are weighted by
    their evidence, and (5) components added where a pilot finds large weights (Raftery & Bao 2010). Nothing that was drawn
    so far is part of the estimate: that uses fresh draws, so it is unbiased for p(x) given the proposal. The guide is also kept where
    p(x, z) is 0 or NaN wherever it was looked at.

    All examples of a block are fitted with the same noise: what is fitted to one depends on the seed, but not on the examples
    scored beside it. Its draws depend on the seed, on its place in the block and on the size of that.

    Discrete latents, those that Pyro does not map to the real line, more than 128 dimensions, and programs that cannot be run on some
    of the examples alone are drawn from the guide.

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
        if density.size > _LARGEST or not getattr(model, "splits", True):
            return unknown
        later = int(torch.randint(2**62, ()))
        adapted = _Fit(model, guide, args, density).adapted()
        programs.reseed(later, args[0].device)  # whatever was drawn in between
        return adapted


class _Fit:
    """The steps of ``Adaptive`` for one block of data."""

    def __init__(self, model: Program, guide: Program, args: tuple[Tensor, ...], density: Density):
        self.model, self.guide, self.args, self.density = model, guide, args, density
        self.prior = Density(model, Prior(model), args).draw(_PRIOR)  # (_PRIOR, B, size)
        low, high = (self.prior.kthvalue(round(_PRIOR * q), 0).values for q in (0.16, 0.84))
        self.width = ((high - low) / 2).clamp(min=1e-4)
        self.search = Search(self.make, self.width, Networks(model))
        like = self.width[:1]
        self.noise = [torch.randn(pairs, 1, density.size, dtype=torch.float64, device=like.device) for pairs in _PAIRS]
        self.pilots = [standard_noise(_PILOT, like) for _ in range(_ROUNDS)]

    def make(self, rows: Tensor) -> Density:
        """The density of some examples; an index may come more than once."""
        return Density(self.model, self.guide, tuple(column[rows] for column in self.args))

    def adapted(self) -> Adapted:
        every = torch.arange(self.density.n, device=self.args[0].device)
        draws = self.density.draw(_PILOT)
        mirrored = 2 * self.prior.median(0).values - self.prior
        starts = torch.cat([draws.mean(0, keepdim=True), draws[:1], self.prior[:_PAIRS_OF_STARTS], mirrored[:_PAIRS_OF_STARTS]])
        ends, log_p = self.search.climbed(every, starts)
        bad = every
        with contextlib.suppress(ValueError):  # a flow that has no inverse gives no density at other points
            bad = (~self._will_do(draws, ends, log_p) & log_p.isfinite().any(0)).nonzero()[:, 0]
        modes = torch.zeros_like(every)
        if len(bad) == 0:
            return Adapted(self.guide, modes > 0, modes)
        found = self.search.modes(bad, ends[:, bad], log_p[:, bad], lambda rows: self.prior[-_FURTHER:, rows])
        modes += torch.bincount(found.rows, minlength=len(modes))
        fitted = self._refined(bad, self._mixture(bad, self._fitted(found)))
        return Adapted(FlatGuide(self.density, Either(self.density, bad, fitted)), modes > 0, modes)

    def _will_do(self, draws: Tensor, ends: Tensor, log_p: Tensor) -> Tensor:
        """``(B,)`` whether the guide's own draws will do."""
        if point_site(poutine.trace(self.density.guide).get_trace(*self.args)) is not None:
            return torch.zeros(self.density.n, dtype=torch.bool, device=draws.device)
        joint, own = self.density.log_terms(draws)
        pilot = Weights(self.density.n, len(draws), draws.device)
        pilot.add(joint - own)
        missed = torch.cat([log_p - self.density.log_guide(ends), self._far_weights(draws)]).amax(0) - pilot.log_mean()
        return (pilot.khat() < _KHAT) & (pilot.ess() > _ESS * len(draws)) & (missed.exp() < _MISSED)

    def _far_weights(self, draws: Tensor) -> Tensor:
        """log p(x, u) - log q(u) where few draws come: twice as far from their mean as some of them."""
        far = draws.mean(0) + 2 * (draws[:_FAR] - draws.mean(0))
        joint, own = self.density.log_terms(far)
        return (joint - own).nan_to_num(nan=-torch.inf, neginf=-torch.inf)

    def _fitted(self, modes: Modes) -> tuple[Modes, Tensor, Tensor]:
        """Each mode's Normal by variational online Newton, its Cholesky factor, and the scales of its sides ``(M, 2, size)``."""
        curvature = self.search.curvature(modes.rows)
        density = curvature.density
        m, precision = modes.loc.double(), modes.precision
        tril = _factor(precision)
        for rate, noise in zip(_RATES, self.noise):
            away = torch.einsum("mij,kmj->kmi", tril, noise.expand(-1, len(m), -1))
            slope, mean = curvature(torch.cat([m + away, m - away]).to(modes.loc.dtype))
            precision = (1 - rate) * precision + rate * mean
            tril = _factor(precision)
            m = m + rate * torch.einsum("mij,mkj,mk->mi", tril, tril, slope)
        log_p = density.log_joint(m[None].to(modes.loc.dtype))[0]
        return Modes(modes.rows, m, precision, log_p), tril, self._sides(density, m, tril, log_p)

    def _sides(self, density: Density, m: Tensor, tril: Tensor, log_p: Tensor) -> Tensor:
        """Scales by which log p falls on each side of each axis as a Normal's would, its slope across m left out."""
        axes = tril.permute(2, 0, 1)  # (size, M, size)
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
        """The modes of each example side by side."""
        modes, tril, scales = fitted
        evidence = modes.log_p + tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
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
        return SplitStudentT(logits.to(dtype), modes.loc[pick].to(dtype), tril[pick].to(dtype), scales[pick].to(dtype))

    def _refined(self, bad: Tensor, q: SplitStudentT) -> SplitStudentT:
        """With components where its weights are largest, as long as a pilot finds too heavy a tail (Raftery & Bao 2010)."""
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
            q = q.extended(rows, at, _factor(precision).to(at.dtype), _SHARE)
        return q


def _factor(precision: Tensor) -> Tensor:
    """L lower triangular with L L' the inverse of a precision."""
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(precision)))
