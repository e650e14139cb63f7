"""Objectives of this project: Pyro ELBOs, usable wherever Pyro's own are. The bounds want every site in one plate over the data."""

import math
from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import ELBO
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ..checks import whole_number
from .objective import Objective, default_elbo
from .penalties import Penalty
from .programs import sites

__all__ = ["CIWAE", "IWAE", "Objective", "Penalised", "Tempered", "default_elbo"]


class Penalised(Objective):
    """An ELBO plus a penalty on the code: ``elbo + sum over the data of penalty(x, z, q)``.

    The guide runs once; the penalty sees its first latent site, so p(x, z) and every evaluation stay free of it.

    Args:
        penalty: a part such as ``Contractive``, or any function of x, z and q giving nats a datum: one for each, or their mean.
        elbo: the ELBO penalised; by default ``TraceMeanField_ELBO``.
    """

    def __init__(self, penalty: Penalty | Callable[[Tensor, Tensor, Any], Tensor], elbo: ELBO | None = None):
        super().__init__()
        if not callable(penalty):
            raise ValueError(
                f"Penalised: expected a penalty such as pa.penalties.Contractive(.1) or a function of (x, z, q), got {penalty!r}"
            )
        if elbo is not None and not hasattr(elbo, "differentiable_loss"):
            raise ValueError(f"Penalised: expected an ELBO with a differentiable_loss, such as Trace_ELBO, got {type(elbo).__name__}")
        self.penalty, self.elbo = penalty, elbo or default_elbo()

    def differentiable_loss(self, model, guide, *args, **kwargs):
        penalties = []

        def tapped(x, *args, **kwargs):
            if not getattr(self.penalty, "differentiates", False):
                result, penalty = self._run(guide, x, *args, **kwargs)
            else:
                with torch.enable_grad():
                    result, penalty = self._run(guide, x.detach().requires_grad_(), *args, **kwargs)
            penalties.append(penalty)
            return result

        return self.elbo.differentiable_loss(model, tapped, *args, **kwargs) + sum(penalties) / len(penalties)

    def _run(self, guide, x, *args, **kwargs):
        with poutine.trace() as tape:
            result = guide(x, *args, **kwargs)
        site = next(iter(sites(tape.trace, observed=False).values()))
        penalty = self.penalty(x, site["value"], site["fn"])  # one number, or one for each datum
        return result, len(x) * site["scale"] * penalty.mean()


class IWAE(Objective):
    r"""Importance-weighted bound: :math:`\sum_n \log \frac1K \sum_k w_{nk}`, :math:`w = p(x, z) / q(z|x)` (Burda et al. 2016, eq. 8).

    Weights are grouped by datum before the logarithm and the plate's scale is applied after it, so that mini-batches
    are unbiased for the sum over the data. With ``groups`` M the mean of M such bounds, each of K particles, is taken:
    MIWAE (Rainforth et al. 2018). The encoder runs once.

    Args:
        particles: K. 1 is the ELBO, by Monte Carlo.
        groups: M.
        gradient: ``"plain"``; ``"stl"``, sticking the landing, without the score term (Roeder et al. 2017; biased for
            K > 1); or ``"dreg"``, doubly reparameterised (Tucker et al. 2019, eq. 8). The last two vary less, not at
            all where q is the exact posterior, and are for guides with one latent site.
        max_plate_nesting: how deep the programs nest plates.
    """

    def __init__(self, particles: int = 50, groups: int = 1, gradient: str = "plain", max_plate_nesting: int = 1):
        whole_number("IWAE", particles=particles, groups=groups)
        if gradient not in ("plain", "stl", "dreg"):
            raise ValueError(f"IWAE: expected gradient as 'plain', 'stl' or 'dreg', got {gradient!r}")
        super().__init__(num_particles=particles * groups, vectorize_particles=True, max_plate_nesting=max_plate_nesting)
        self.particles, self.groups, self.gradient, self.nesting = particles, groups, gradient, max_plate_nesting

    def differentiable_loss(self, model, guide, *args, **kwargs):
        ((model_trace, guide_trace),) = self._get_traces(model, guide, args, kwargs)
        latent, observed = sites(guide_trace, observed=False), sites(model_trace, observed=True)
        for name, site in (latent | observed).items():
            _check_in_plate(name, site)
        log_p = sum(_each_datum(model_trace.nodes[name], self.num_particles) for name in [*latent, *observed])
        log_q = sum(_each_datum(site, self.num_particles) for site in latent.values())
        if self.gradient != "plain":
            log_q = log_q - self._score(latent)
        log_w = (log_p - log_q).reshape(self.groups, self.particles, -1)  # (M, K, B)
        scale = next(iter(observed.values()))["scale"]
        return -(scale * self._bound(log_w, latent)).sum()

    def _bound(self, log_w: Tensor, latent: dict[str, dict]) -> Tensor:
        """The bound of each datum; under DReG its value, with the gradient of sum w^2 dz for the encoder and sum w for the decoder."""
        value = (log_w.logsumexp(1) - math.log(self.particles)).mean(0)
        if self.gradient != "dreg":
            return value
        share = log_w.softmax(1).detach()
        (site,) = latent.values()
        z, plates = site["value"], [self.num_particles, *[1] * (self.nesting - 1), share.shape[-1]]
        if z.requires_grad and self.particles > 1:
            weights = share.reshape(plates + [1] * len(site["fn"].event_shape))
            z.register_hook(lambda gradient: gradient * weights)
        surrogate = (share * log_w).sum(1).mean(0)
        return value.detach() + surrogate - surrogate.detach()

    def _score(self, latent: dict[str, dict]) -> Tensor:
        """Zero, whose gradient is the score function's: log q's dependence on the encoder at a fixed z."""
        if len(latent) != 1:
            raise ValueError(f"IWAE: gradient={self.gradient!r} is for a guide with one latent site, got {', '.join(latent)}; use 'plain'")
        (site,) = latent.values()
        log_q = _each_datum({**site, "unscaled_log_prob": site["fn"].log_prob(site["value"].detach())}, self.num_particles)
        return log_q - log_q.detach()


class CIWAE(Objective):
    """A mixture of the ELBO and the importance-weighted bound, ``beta * ELBO + (1 - beta) * IWAE`` (Rainforth et al. 2018)."""

    def __init__(self, particles: int = 50, beta: float = 0.05, elbo: ELBO | None = None):
        super().__init__()
        if not 0.0 <= beta <= 1.0:
            raise ValueError(f"CIWAE: expected beta from 0 to 1, got {beta!r}")
        self.beta, self.elbo, self.iwae = beta, elbo or default_elbo(), IWAE(particles)

    def differentiable_loss(self, model, guide, *args, **kwargs):
        loose, tight = (each.differentiable_loss(model, guide, *args, **kwargs) for each in (self.elbo, self.iwae))
        return self.beta * loose + (1 - self.beta) * tight


class Tempered(Objective):
    """The ELBO with its KL times ``beta``: beta-VAE (Higgins et al. 2017), or a warm-up where ``beta`` is changed between epochs.

    Args:
        beta: weight of the KL. The attribute may be set at any time.
        elbo: the ELBO tempered; by default ``TraceMeanField_ELBO``.
    """

    def __init__(self, beta: float = 4.0, elbo: ELBO | None = None):
        super().__init__()
        if not beta >= 0.0:
            raise ValueError(f"Tempered: expected beta of at least 0, got {beta!r}")
        self.beta, self.elbo = beta, elbo or default_elbo()

    def differentiable_loss(self, model, guide, *args, **kwargs):
        scaled = [_ScaleLatents(self.beta)(program) for program in (model, guide)]
        return self.elbo.differentiable_loss(*scaled, *args, **kwargs)


class _ScaleLatents(Messenger):
    """Multiplies the scale of latent sites. Model and guide both: Trace_ELBO reads the two, TraceMeanField_ELBO the guide's alone."""

    def __init__(self, beta: float | Tensor):
        super().__init__()
        self.beta = beta

    def _pyro_sample(self, msg: dict[str, Any]):
        if not msg["is_observed"] and not site_is_subsample(msg):
            msg["scale"] = msg["scale"] * self.beta


def _each_datum(site: dict, particles: int) -> Tensor:
    """A site's log-probability without the plate's scale, ``(particles, data)``; plates in between are summed over."""
    log_p = scale_and_mask(site["unscaled_log_prob"], mask=site["mask"])
    while log_p.dim() > 2:
        log_p = log_p.sum(1)
    return log_p.expand(particles, log_p.shape[-1])


def _check_in_plate(name: str, site: dict):
    if not any(frame.vectorized and frame.dim == -1 for frame in site["cond_indep_stack"]):
        raise ValueError(f"site {name!r} is not inside a plate over the data (dim=-1), so it has no bound of each datum; use Trace_ELBO")
