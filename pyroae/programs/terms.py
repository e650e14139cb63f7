"""Log-probabilities per example from the traces of a (model, guide): scales, masks and subsampled plates as Pyro counts them."""

import contextlib
from typing import Any, NamedTuple

import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Independent, kl_divergence

from .pairs import Program
from .scales import Number, common_scale, same_factor

PARTICLES = "num_particles_vectorized"  # the plate over particles, as Pyro's ELBOs name it


def traces(model: Program, guide: Program, *args, **kwargs) -> tuple[poutine.Trace, poutine.Trace]:
    """One run of the guide and of the model on the guide's draws, as Pyro traces."""
    guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    return poutine.trace(poutine.replay(model, guide_trace)).get_trace(*args, **kwargs), guide_trace


def recorded(program: Program, traces: list[poutine.Trace]) -> Program:
    """The same program; the trace of every run is appended to ``traces``."""

    def run(*args, **kwargs):
        with poutine.trace() as tape:
            result = program(*args, **kwargs)
        traces.append(tape.trace)
        return result

    run.program = program
    return run


def origin(program: Program) -> Program:
    """The program that ``recorded`` was given."""
    while hasattr(program, "program"):
        program = program.program
    return program


def sites(trace: poutine.Trace, observed: bool) -> dict[str, dict]:
    """A trace's sample sites, the observed or the latent ones, without plates and ``pyro.deterministic``."""
    found = {name: site for name, site in trace.nodes.items() if site["type"] == "sample" and not site_is_subsample(site)}
    return {name: site for name, site in found.items() if site["is_observed"] == observed and not site["infer"].get("_deterministic")}


# --- the plate over the examples ---


class DataPlate(NamedTuple):
    """The plate over the examples, by which the sites of model and guide are known to be in it."""

    name: str
    dim: int
    size: int  # examples in the batch
    scale: Number  # how many examples each of them stands for: the plate's size over its subsample's

    def holds(self, site: dict) -> bool:
        """Whether a site is in this plate."""
        return any((frame.dim, frame.size) == (self.dim, self.size) for frame in vectorized(site))


def vectorized(site: dict) -> list[Any]:
    """The frames of a site's vectorized plates, outermost first, without that over particles."""
    return [frame for frame in site["cond_indep_stack"] if frame.vectorized and frame.name != PARTICLES]


def data_plate(found: dict[str, dict], n: int | None = None) -> DataPlate:
    """The vectorized plate that holds all sites: the one of size ``n``, or of several the one at dim -1, then the outermost.

    Raises:
        ValueError: no plate holds all sites (the message names one outside), or several have the size ``n``.
    """
    first, *rest = found.values()
    shared = [frame for frame in vectorized(first) if n in (None, frame.size)]
    for site in rest:
        inside = {(frame.dim, frame.size) for frame in vectorized(site)}
        shared = [frame for frame in shared if (frame.dim, frame.size) in inside]
    if not shared:
        raise ValueError(_outside(found, n))
    if n is not None and len(shared) > 1:
        names = " and ".join(repr(frame.name) for frame in shared)
        raise ValueError(
            f"the plates {names} both have the size {n}, so which one is over the data is not known; give another number of rows"
        )
    frame = next((frame for frame in shared if frame.dim == -1), shared[0])
    return DataPlate(frame.name, frame.dim, frame.size, subsampling(frame))


def subsampling(frame: Any) -> Number:
    """The scale of a plate: its size over the size of its subsample."""
    return frame.full_size / frame.size if frame.full_size else 1.0


def _outside(found: dict[str, dict], n: int | None) -> str:
    """Which site is in no plate over the examples, and what to do."""
    name, site = min(found.items(), key=lambda item: len([f for f in vectorized(item[1]) if n in (None, f.size)]))
    rows = "its examples" if n is None else f"the {n} examples"
    text = f"site {name!r} is not inside a plate over the data that holds all sites and {rows}, so log p(x) does not split into examples"
    if steps := [frame.name for frame in site["cond_indep_stack"] if not frame.vectorized]:
        return f"{text}; its plate {steps[0]!r} is sequential: write `with pyro.plate(...):` instead of `for ... in pyro.plate(...)`"
    wrong = [f"{frame.name!r} of size {frame.size}" for frame in vectorized(site)]
    inside = f" (it is in the plate {', '.join(wrong)})" if wrong else ""
    return f"{text}{inside}; put all sites in `with pyro.plate('data', len(x)):`, or train with Trace_ELBO"


def per_example(terms: Tensor, particles: int, plate: DataPlate, nesting: int) -> Tensor:
    """Terms of a site, ``(particles, *plates)``, as ``(particles, examples)``: summed over all other plates.

    Args:
        terms: numbers in the shape of the site's plates; the particles' dimension, if any, is at ``-1 - nesting``.
        particles: how many; for 1 there need be no dimension.
        plate: the plate over the examples.
        nesting: how many dimensions the programs' own plates take.
    """
    missing = nesting + 1 - terms.dim()
    terms = terms.reshape((1,) * missing + terms.shape) if missing > 0 else terms
    other = [d for d in range(-nesting, 0) if d != plate.dim]
    terms = terms.sum([*other, *range(-terms.dim(), -1 - nesting)]) if other or missing < 0 else terms
    return terms.expand(particles, plate.size)


# --- scales and masks ---


def subsampling_inside(site: dict, plate: DataPlate) -> Number:
    """The scale of a site from its subsampled plates inside the data's: their sizes over those of the subsamples."""
    scale: Number = 1.0
    for frame in site["cond_indep_stack"]:
        if frame.name != PARTICLES and (frame.dim, frame.size) != (plate.dim, plate.size):
            scale = scale * subsampling(frame)
    return scale


def log_density(site: dict, plate: DataPlate, particles: int, nesting: int, mask: bool | Tensor | None) -> Tensor:
    """A site's part of log p or log q, ``(particles, examples)``, float64: masked, its subsampled plates at their scale.

    ``poutine.scale`` does not count: it weighs a training loss, and is no part of the density.
    """
    terms = scale_and_mask(site["unscaled_log_prob"], subsampling_inside(site, plate), mask)
    return per_example(terms, particles, plate, nesting).double()


def both_masks(one: bool | Tensor | None, other: bool | Tensor | None) -> bool | Tensor | None:
    """What two masks leave in."""
    return one if other is None else other if one is None else one & other


def guide_mask(site: dict, model_site: dict | None) -> bool | Tensor | None:
    """The mask of a guide's site: what the model masks out has no density there, so it must have none in the guide."""
    return both_masks(site["mask"], model_site["mask"]) if model_site else site["mask"]


# --- the terms of a run ---


def draws_of(trace: poutine.Trace) -> poutine.Trace:
    """What a trace drew, as constants: its latents, and the rows of its subsampled plates; to replay another run on."""
    kept = poutine.Trace()
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not site["is_observed"]:
            kept.add_node(name, **{**site, "value": site["value"].detach()})
    return kept


class TraceTerms:
    """The terms of one run of model and guide: reconstruction, KL and priors of weights, per example and particle.

    Every site counts as Pyro counts it: with its mask, which in the guide is the model's too, with its scale, and with
    that of subsampled plates. A factor that all sites share is kept apart in ``scale``: the scale of the plate over the
    examples, and of a ``poutine.scale`` around the whole programs. It multiplies a bound of each example; all other
    factors are inside the bound. So with one particle every bound is the ELBO of Pyro's ``Trace_ELBO`` at the same
    draws, whatever the scales.

    Weights are latent sites outside the plate over the examples that the guide sets to a point.

    Args:
        model_trace: of the model; factors of ``poutine.scale`` are known if it was run inside ``ScaleFactors``.
        guide_trace: of the guide.
        draws: the model's trace before Pyro's ELBOs take out the rows of its subsampled plates, where they are wanted.

    Raises:
        ValueError: a site outside the plate over the examples, or one that is summed out.
    """

    def __init__(self, model_trace: poutine.Trace, guide_trace: poutine.Trace, draws: poutine.Trace | None = None):
        for trace in (model_trace, guide_trace):
            trace.compute_log_prob()
        self.model, self.guide_trace, self.draws = model_trace.nodes, guide_trace, draws
        self.observed, latent = sites(model_trace, observed=True), sites(guide_trace, observed=False)
        if not self.observed:
            raise ValueError("the model observes nothing; give its sample statement obs=x")
        for name, site in (latent | self.observed).items():
            if site["infer"].get("_enumerate_dim") is not None:
                raise ValueError(f"site {name!r} is summed out, so reconstruction and KL are not apart; use pa.elbo_terms")
        self.plate = data_plate(self.observed | {name: site for name, site in latent.items() if not is_point(site)})
        self.weights = {name: site for name, site in latent.items() if is_point(site) and not self.plate.holds(site)}
        self.latent = {name: site for name, site in latent.items() if name not in self.weights}
        self.prior = {name: self.model[name] for name in self.latent if name in self.model}  # an auxiliary site has none
        everywhere = [*self.observed.values(), *self.prior.values(), *self.latent.values()]
        frames = [frame for site in everywhere for frame in site["cond_indep_stack"] if frame.name == PARTICLES]
        self.particles = frames[0].size if frames else 1
        self.nesting = -1 - frames[0].dim if frames else max(site["log_prob"].dim() for site in everywhere)
        self.outer = self.plate.scale * common_scale(everywhere, self.plate.dim)
        like = next(iter(self.observed.values()))["unscaled_log_prob"]
        self.scale = per_example(like.new_ones(()) * self.outer, 1, self.plate, self.nesting)[0]
        self.examples = self.plate.scale * self.plate.size  # that the batch stands for

    def log_p(self) -> Tensor:
        """log p(x, z) without the scale in common, ``(particles, examples)``."""
        return self._log_prob(self.prior | self.observed)

    def log_q(self, log_probs: dict[str, Tensor] | None = None) -> Tensor:
        """log q(z|x) without the scale in common, ``(particles, examples)``; of the draws, or with other log-densities of its sites."""
        log_probs = log_probs or {name: site["unscaled_log_prob"] for name, site in self.latent.items()}
        return sum(self._of_guide(name, terms) for name, terms in log_probs.items())

    def inner_scale(self, name: str) -> Number:
        """The scale of a latent's log q inside a bound, in the shape of its plates."""
        return plain_scale(self.latent[name]) / self.outer

    def in_plates(self, terms: Tensor) -> Tensor:
        """Terms ``(particles, examples)`` in the shape of the sites' plates."""
        shape = [1] * (self.nesting + 1)
        shape[0], shape[self.plate.dim] = terms.shape
        return terms.reshape(shape)

    def over_data(self, terms: Tensor) -> Tensor:
        """The sum over the examples, at their scale, of the mean over particles."""
        return (self.scale * terms.mean(0)).sum()

    @property
    def reconstruction(self) -> Tensor:
        """log p(x|z) summed over the examples, mean over particles."""
        return self.over_data(self._log_prob(self.observed))

    @property
    def kl(self) -> Tensor:
        """KL(q(z|x) || p(z)) summed over the examples."""
        return self.units().sum()

    @property
    def log_weights_prior(self) -> Tensor | float:
        """log p of the weights, at its own scale."""
        terms = [self.model[name] for name in self.weights]
        return sum(scale_and_mask(site["unscaled_log_prob"], site["scale"], site["mask"]).sum() for site in terms) / self.particles

    def units(self) -> Tensor:
        """KL of every latent dimension summed over the examples, ``(units,)``.

        Where prior and posterior are products over the dimensions of z each dimension is a unit, otherwise the site is one;
        all latent sites are one where the guide draws them from an auxiliary site. In closed form for a single latent site
        where Pyro knows one; otherwise log q - log p at the draws.
        """
        if self.prior.keys() != self.latent.keys():
            return self.over_data(self.log_q() - self._log_prob(self.prior))[None]
        return torch.stack([self.over_data(unit) for name in self.latent for unit in self._kl(name)])

    def _kl(self, name: str) -> list[Tensor]:
        site, other = self.latent[name], self.prior[name]
        q, p, z, event_dim = site["fn"], other["fn"], site["value"], site["fn"].event_dim
        apart = factorises(q) and factorises(p)
        split = lambda terms: terms.flatten(-event_dim).unbind(-1) if apart else [terms]  # noqa: E731
        if apart:
            q, p = q.base_dist, p.base_dist
        kl = _closed_form(q, p) if len(self.latent) == 1 and _weighed_alike(site, other) else None
        if kl is not None:
            return [self._of_guide(name, unit) for unit in split(kl)]
        pairs = zip(split(q.log_prob(z)), split(p.log_prob(z)))
        return [self._of_guide(name, log_q) - self._of_model(other, log_p) for log_q, log_p in pairs]

    def _log_prob(self, found: dict[str, dict]) -> Tensor:
        return sum(self._of_model(site, site["unscaled_log_prob"]) for site in found.values())

    def _of_model(self, site: dict, terms: Tensor) -> Tensor:
        return self._per_example(terms, plain_scale(site), site["mask"])

    def _of_guide(self, name: str, terms: Tensor) -> Tensor:
        site = self.latent[name]
        return self._per_example(terms, plain_scale(site), guide_mask(site, self.prior.get(name)))

    def _per_example(self, terms: Tensor, scale: Number, mask: bool | Tensor | None) -> Tensor:
        return per_example(scale_and_mask(terms, scale / self.outer, mask), self.particles, self.plate, self.nesting)


def plain_scale(site: dict) -> Number:
    """A site's scale without the weight that an objective, such as ``Tempered``, gives its KL."""
    return site.get("plain_scale", site["scale"])


def _weighed_alike(site: dict, other: dict) -> bool:
    """Whether one number and one mask weigh a latent's log q and log p, so that a KL in closed form can take their place."""
    scales = plain_scale(site), plain_scale(other)
    if any(isinstance(scale, Tensor) for scale in scales):
        scales = [each.get("scale_factors", ()) for each in (site, other)]
        alike = len(scales[0]) == len(scales[1]) and all(map(same_factor, *scales))
    else:
        alike = scales[0] == scales[1]
    return alike and (site["mask"] is None or other["mask"] is not None)


@contextlib.contextmanager
def needing_inverse(owner: str, remedy: str):
    """``ValueError`` where a density at other draws than its own is asked of a flow without an inverse."""
    try:
        yield
    except (KeyError, NotImplementedError) as error:
        reason = str(error).strip("'\"").partition(" object")[0] or type(error).__name__
        raise ValueError(
            f"{owner}: needs the guide's density at draws that are not its own, and its transform {reason} has no inverse; {remedy}"
        ) from error


def factorises(fn: Any) -> bool:
    """Whether a distribution is a product over the dimensions of its event."""
    return isinstance(fn, Independent) and len(fn.base_dist.event_shape) == 0 and len(fn.event_shape) > 0


def is_point(site: dict) -> bool:
    """Whether a site is a ``Delta``, in whatever wrapping."""
    fn = site.get("fn")
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return isinstance(fn, dist.Delta)


def reparameterised(site: dict) -> bool:
    """Whether a guide's site passes gradients through its draws."""
    return "fn" not in site or getattr(site["fn"], "has_rsample", False)


def check_reparameterised(owner: str, latent: dict[str, dict]):
    """``ValueError`` for a site whose draws would pass no gradient while gradients are asked for."""
    stuck = [name for name, site in latent.items() if not reparameterised(site)]
    if stuck and torch.is_grad_enabled():
        raise ValueError(f"{owner}: needs reparameterised draws, which the guide's site {stuck[0]!r} lacks; use TraceGraph_ELBO")


def _closed_form(q, p) -> Tensor | None:
    with contextlib.suppress(NotImplementedError):
        return kl_divergence(q, p)
