"""Importance-weighted bounds on log p(x), per example; all sites are in one plate over the examples."""

import math
from collections.abc import Callable

from pyro import poutine
from pyro.infer import ELBO
from torch import Tensor

from ..checks import whole_number
from ..programs import Program
from ..programs.terms import TraceTerms, draws_of, requires_inverse
from ..registry import register
from .base import _ElboWrapper, _PerExample


class ImportanceWeighted(_PerExample):
    """A bound from log-weights log p(x, z) - log q(z|x), all particles drawn together; subclasses define ``bound``.

    The scale of the plate over the examples and any scale that all sites share are applied to the bound of each example, so
    that mini-batches are unbiased for the sum over the data set; all other scales are part of the log-weights.

    >>> import torch, pyroae as pa
    >>> class Median(ImportanceWeighted):
    ...     def bound(self, log_w):
    ...         return log_w.median(1).values
    >>> pa.fit(vae, torch.rand(64, 16).round(), elbo=Median(5), epochs=1, progress=False).objective
    'Median'
    """

    def __init__(self, particles: int, groups: int = 1, max_plate_nesting: int | None = None):
        whole_number(type(self).__name__, particles=particles, groups=groups)
        super().__init__(particles * groups, max_plate_nesting)
        self.particles, self.groups = particles, groups

    def differentiable_loss(self, model, guide, *args, **kwargs):
        run = self._run(model, guide, args, kwargs)
        bound = self._bound(run, lambda: self._rerun(run, model, guide, args, kwargs))
        return -(run.scale * bound).sum() - run.log_weights_prior

    def _bound(self, run: TraceTerms, rerun: Callable[[], TraceTerms]) -> Tensor:
        """The bound of each example, ``(examples,)``; ``rerun()`` runs the model again at the same, detached draws."""
        return self.bound(self._log_p(run) - self._log_q(run)).mean(0)

    def bound(self, log_w: Tensor) -> Tensor:
        """The bound of each example, ``(groups, examples)``, from log-weights ``(groups, particles, examples)``."""
        raise NotImplementedError(f"{type(self).__name__} must implement bound(log_w)")

    def _log_p(self, run: TraceTerms) -> Tensor:
        """log p(x, z), ``(groups, particles, examples)``."""
        return run.log_p().reshape(self.groups, self.particles, -1)

    def _log_q(self, run: TraceTerms, log_probs: dict[str, Tensor] | None = None) -> Tensor:
        """log q(z|x), ``(groups, particles, examples)``."""
        return run.log_q(log_probs).reshape(self.groups, self.particles, -1)

    def _rerun(self, run: TraceTerms, model: Program, guide: Program, args: tuple, kwargs: dict) -> TraceTerms:
        """Run the model again on detached draws, with the same rows of subsampled plates."""
        on_model, _ = self._on_particles(model, guide, args, kwargs)
        replayed = poutine.replay(on_model, trace=draws_of(run.draws))
        return TraceTerms(poutine.trace(replayed).get_trace(*args, **kwargs), run.guide_trace)


def log_mean(log_w: Tensor, dim: int | tuple[int, ...] = 1) -> Tensor:
    """log of the mean of weights along dimensions."""
    dims = (dim,) if isinstance(dim, int) else dim
    return log_w.logsumexp(dims) - math.log(math.prod(log_w.shape[d] for d in dims))


@register("objectives")
class IWAE(ImportanceWeighted):
    r"""Importance-weighted bound: :math:`\sum_n \log \frac1K \sum_k w_{nk}`, :math:`w = p(x, z) / q(z|x)` (Burda et al. 2016, eq. 8).

    With ``groups`` M: the mean of M bounds of K particles each, MIWAE (Rainforth et al. 2018). The encoder runs once.
    With one particle it is Pyro's ``Trace_ELBO`` at the same draws for all scales, masks and subsampled plates: scales of
    single sites are part of log w; a scale that all sites share (of a subsampled plate over the data, or of
    ``poutine.scale`` around both programs) multiplies the bound. The model's masks apply to p and q.

    Args:
        particles: K; 1 is the Monte Carlo ELBO.
        groups: M.
        gradient: ``"plain"``; ``"stl"``, sticking the landing, without the score term (Roeder et al. 2017; biased for
            K > 1); or ``"dreg"``, doubly reparameterised (Tucker et al. 2019, eq. 8). The last two have lower variance, zero
            if q is the exact posterior, and require a guide with one latent site.
        max_plate_nesting: plate dimensions of the programs; by default inferred from the first run.

    >>> import torch, pyroae as pa
    >>> history = pa.fit(vae, torch.rand(64, 16).round(), elbo=IWAE(5, gradient="dreg"), epochs=1, progress=False)
    >>> history.objective
    'IWAE'
    """

    def __init__(self, particles: int = 50, groups: int = 1, gradient: str = "plain", max_plate_nesting: int | None = None):
        if gradient not in ("plain", "stl", "dreg"):
            raise ValueError(f"IWAE: expected gradient as 'plain', 'stl' or 'dreg', got {gradient!r}")
        super().__init__(particles, groups, max_plate_nesting)
        self.gradient = gradient

    def _bound(self, run, rerun):
        if self.gradient == "plain":
            return log_mean(self._log_p(run) - self._log_q(run)).mean(0)
        name, site = self._only_latent(run)
        with requires_inverse(
            f"IWAE: gradient={self.gradient!r}", "use gradient='plain', or an invertible flow such as affine_autoregressive"
        ):
            z = site["value"]
            if self.gradient == "dreg":  # a new tensor, so that a flow computes log q from z and not from its cache
                z = z.view_as(z)
            log_q, fixed = (self._log_q(run, {name: site["fn"].log_prob(value)}) for value in (z, z.detach()))
        log_w = self._log_p(run) - log_q + (fixed - fixed.detach())  # removes the score: the gradient of log q at fixed z
        return self._doubly_reparameterised(log_w, run) if self.gradient == "dreg" else log_mean(log_w).mean(0)

    def _only_latent(self, run: TraceTerms) -> tuple[str, dict]:
        if len(run.latent) != 1:
            raise ValueError(
                f"IWAE: gradient={self.gradient!r} requires a guide with one latent site, got {', '.join(run.latent)}; use 'plain'"
            )
        ((name, site),) = run.latent.items()
        return name, site

    def _doubly_reparameterised(self, log_w: Tensor, run: TraceTerms) -> Tensor:
        """The bound's value, with the gradient of sum w^2 dz for the encoder and sum w for the decoder.

        If log q is scaled by s in log w, the encoder's gradient is of sum ((1 - s) w + s w^2) dz.
        """
        value = log_mean(log_w).mean(0).detach()
        weights = log_w.softmax(1).detach()
        name, site = self._only_latent(run)
        if site["value"].requires_grad and self.particles > 1:
            factor = 1 + run.inner_scale(name) * (run.in_plates(weights.flatten(0, 1)) - 1)
            factor = factor.reshape(factor.shape + (1,) * len(site["fn"].event_shape))
            site["value"].register_hook(lambda gradient: gradient * factor)
        surrogate = (weights * log_w).sum(1).mean(0)
        return value + surrogate - surrogate.detach()


@register("objectives")
class PIWAE(ImportanceWeighted):
    """Decoder gradients of the bound of M x K particles, encoder gradients of the mean of M bounds of K (Rainforth et al. 2018, sec. 4).

    A tighter bound is a better objective for p(x, z), but gives weaker gradients to the encoder. The reported loss is
    ``IWAE(groups * particles)``. The model runs twice.

    Args:
        particles: K.
        groups: M.
        max_plate_nesting: plate dimensions of the programs; by default inferred from the first run.

    >>> import torch, pyroae as pa
    >>> history = pa.fit(vae, torch.rand(64, 16).round(), elbo=PIWAE(3, groups=2), epochs=1, progress=False)
    >>> history.objective
    'PIWAE'
    """

    def __init__(self, particles: int = 8, groups: int = 8, max_plate_nesting: int | None = None):
        super().__init__(particles, groups, max_plate_nesting)

    def _bound(self, run, rerun):
        log_q = self._log_q(run)
        fixed = self._log_p(rerun()) - log_q.detach()  # only the model's parameters have gradients
        encoder = log_mean(self._log_p(run) - log_q).mean(0) - log_mean(fixed).mean(0)  # value 0; the model's gradients cancel
        return log_mean(fixed, (0, 1)) + encoder


@register("objectives")
class Renyi(ImportanceWeighted):
    r"""Variational Renyi bound: :math:`\frac{1}{1-\alpha} \log \frac1K \sum_k w^{1-\alpha}` (Li & Turner 2016, eq. 14).

    alpha = 1 is the ELBO, 0 the importance-weighted bound; values in between lie between the two; below 0 it exceeds the
    latter and may exceed log p(x). Unlike Pyro's ``RenyiELBO`` it is a bound per example, unbiased for mini-batches, and
    has a differentiable loss.

    Args:
        alpha: the order.
        particles: K.
        max_plate_nesting: plate dimensions of the programs; by default inferred from the first run.

    >>> import torch, pyroae as pa
    >>> history = pa.fit(vae, torch.rand(64, 16).round(), elbo=Renyi(0.5, 5), epochs=1, progress=False)
    >>> history.objective
    'Renyi'
    """

    def __init__(self, alpha: float = 0.5, particles: int = 50, max_plate_nesting: int | None = None):
        if not -math.inf < alpha < math.inf:
            raise ValueError(f"Renyi: expected alpha as a finite number, got {alpha!r}")
        super().__init__(particles, 1, max_plate_nesting)
        self.alpha = alpha

    def _bound(self, run, rerun):
        log_w, power = self._log_p(run) - self._log_q(run), 1.0 - self.alpha
        return (log_mean(power * log_w) / power if power else log_w.mean(1)).mean(0)


@register("objectives")
class CIWAE(_ElboWrapper):
    """A mixture of the ELBO and the importance-weighted bound, ``beta * ELBO + (1 - beta) * IWAE`` (Rainforth et al. 2018).

    >>> import torch, pyroae as pa
    >>> history = pa.fit(vae, torch.rand(64, 16).round(), elbo=CIWAE(5, 0.5), epochs=1, progress=False)
    >>> history.objective
    'CIWAE'
    """

    has_kl = False

    def __init__(self, particles: int = 50, beta: float = 0.05, elbo: ELBO | None = None):
        super().__init__(elbo)
        if not 0.0 <= beta <= 1.0:
            raise ValueError(f"CIWAE: expected beta from 0 to 1, got {beta!r}")
        self.beta, self.iwae = beta, IWAE(particles)

    def differentiable_loss(self, model, guide, *args, **kwargs):
        elbo, bound = (e.differentiable_loss(model, guide, *args, **kwargs) for e in (self._wrapped(guide, args, kwargs), self.iwae))
        return self.beta * elbo + (1 - self.beta) * bound
