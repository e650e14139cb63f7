"""Per-example log-probabilities from traces of a (model, guide), with Pyro's scales, masks and subsampled plates."""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Independent, kl_divergence

from .pairs import Program, Wrapper
from .scales import Number, common_scale, same_factor

PARTICLES = "num_particles_vectorized"  # name of the particles' plate in Pyro's ELBOs


def traces(model: Program, guide: Program, *args, **kwargs) -> tuple[poutine.Trace, poutine.Trace]:
    """Traces of one run of the guide and of the model replayed on its draws."""
    guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    return poutine.trace(poutine.replay(model, guide_trace)).get_trace(*args, **kwargs), guide_trace


def record_traces(program: Program, traces: list[poutine.Trace]) -> Program:
    """The program; each run appends its trace to ``traces``."""

    return _Recorded(program, traces)


class _Recorded(Wrapper):
    def __init__(self, program: Program, traces: list[poutine.Trace]):
        super().__init__(program)
        self.traces = traces

    def __call__(self, *args, **kwargs):
        with poutine.trace() as tape:
            result = super().__call__(*args, **kwargs)
        self.traces.append(tape.trace)
        return result


def sites(trace: poutine.Trace, observed: bool) -> dict[str, dict]:
    """The observed or the latent sample sites of a trace, without plates and ``pyro.deterministic``."""
    samples = {name: site for name, site in trace.nodes.items() if site["type"] == "sample" and not site_is_subsample(site)}
    return {name: site for name, site in samples.items() if site["is_observed"] == observed and not site["infer"].get("_deterministic")}


# --- the plate over the examples ---


class DataPlate(NamedTuple):
    """The plate over the examples; sites are matched by its dimension and size."""

    name: str
    dim: int
    size: int  # examples in the batch
    scale: Number  # full size over subsample size

    def contains(self, site: dict) -> bool:
        """Whether a site is in this plate."""
        return any((frame.dim, frame.size) == (self.dim, self.size) for frame in vectorized(site))


def vectorized(site: dict) -> list[Any]:
    """Frames of a site's vectorized plates, outermost first, without the particles' plate."""
    return [frame for frame in site["cond_indep_stack"] if frame.vectorized and frame.name != PARTICLES]


def data_plate(sites: dict[str, dict], n: int | None = None) -> DataPlate:
    """The vectorized plate that contains all sites: of size ``n`` if given; of several the one at dim -1, then the outermost.

    Raises:
        ValueError: no plate contains all sites, or several of them have size ``n``.
    """
    first, *rest = sites.values()
    shared = [frame for frame in vectorized(first) if n in (None, frame.size)]
    for site in rest:
        frames = {(frame.dim, frame.size) for frame in vectorized(site)}
        shared = [frame for frame in shared if (frame.dim, frame.size) in frames]
    if not shared:
        raise ValueError(_no_plate_message(sites, n))
    if n is not None and len(shared) > 1:
        names = " and ".join(repr(frame.name) for frame in shared)
        raise ValueError(f"the plates {names} both have size {n}, so the plate over the data is ambiguous; use another number of rows")
    frame = next((frame for frame in shared if frame.dim == -1), shared[0])
    return DataPlate(frame.name, frame.dim, frame.size, subsampling(frame))


def subsampling(frame: Any) -> Number:
    """Scale of a plate: its full size over its subsample's."""
    return frame.full_size / frame.size if frame.full_size else 1.0


def _no_plate_message(sites: dict[str, dict], n: int | None) -> str:
    """Name a site outside a plate over the examples, and the remedy."""
    name, site = min(sites.items(), key=lambda item: len([f for f in vectorized(item[1]) if n in (None, f.size)]))
    rows = "its examples" if n is None else f"the {n} examples"
    text = f"site {name!r} is not inside a plate over the data that holds all sites and {rows}, so log p(x) does not split into examples"
    if steps := [frame.name for frame in site["cond_indep_stack"] if not frame.vectorized]:
        return f"{text}; its plate {steps[0]!r} is sequential: write `with pyro.plate(...):` instead of `for ... in pyro.plate(...)`"
    plates = [f"{frame.name!r} of size {frame.size}" for frame in vectorized(site)]
    inside = f" (it is in the plate {', '.join(plates)})" if plates else ""
    return f"{text}{inside}; put all sites in `with pyro.plate('data', len(x)):`, or train with Trace_ELBO"


def per_example(terms: Tensor, particles: int, plate: DataPlate, nesting: int) -> Tensor:
    """Sum terms ``(particles, *plates)`` of a site over all plates but the data's: ``(particles, examples)``.

    Args:
        terms: one entry per element of the site's plates; particles, if any, at dimension ``-1 - nesting``.
        particles: their number; for 1 the dimension may be missing.
        plate: the plate over the examples.
        nesting: plate dimensions of the programs.
    """
    missing = nesting + 1 - terms.dim()
    terms = terms.reshape((1,) * missing + terms.shape) if missing > 0 else terms
    other = [d for d in range(-nesting, 0) if d != plate.dim]
    terms = terms.sum([*other, *range(-terms.dim(), -1 - nesting)]) if other or missing < 0 else terms
    return terms.expand(particles, plate.size)


# --- scales and masks ---


def subsampling_inside(site: dict, plate: DataPlate) -> Number:
    """Scale of a site from all subsampled plates but the data's."""
    scale: Number = 1.0
    for frame in site["cond_indep_stack"]:
        if frame.name != PARTICLES and (frame.dim, frame.size) != (plate.dim, plate.size):
            scale = scale * subsampling(frame)
    return scale


def log_density(site: dict, plate: DataPlate, particles: int, nesting: int, mask: bool | Tensor | None) -> Tensor:
    """A site's term of log p or log q, ``(particles, examples)``, float64: masked and scaled by its subsampled plates.

    ``poutine.scale`` is left out: it weights a training loss and is not part of the density.
    """
    terms = scale_and_mask(site["unscaled_log_prob"], subsampling_inside(site, plate), mask)
    return per_example(terms, particles, plate, nesting).double()


def combined_mask(a: bool | Tensor | None, b: bool | Tensor | None) -> bool | Tensor | None:
    """The intersection of two masks."""
    return a if b is None else b if a is None else a & b


def guide_mask(site: dict, model_site: dict | None) -> bool | Tensor | None:
    """Mask of a guide's site: entries that the model masks out are masked out in the guide too."""
    return combined_mask(site["mask"], model_site["mask"]) if model_site else site["mask"]


# --- the terms of a run ---


def draws_of(trace: poutine.Trace) -> poutine.Trace:
    """Detached latents and subsample indices of a trace, for replay."""
    draws = poutine.Trace()
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not site["is_observed"]:
            draws.add_node(name, **{**site, "value": site["value"].detach()})
    return draws


class TraceTerms:
    """Reconstruction, KL and weight priors of one run of model and guide, per example and particle.

    Sites have Pyro's scales and masks; the model's mask applies to the guide too. ``scale`` holds the factors that all
    sites share: the scale of the plate over the examples and any ``poutine.scale`` around both programs. It multiplies
    the bound of each example; all other factors are inside the bound. So with one particle every bound is equal to Pyro's
    ``Trace_ELBO`` at the same draws.

    Weights are latent sites outside the plate over the examples with a ``Delta`` guide.

    Args:
        model_trace: trace of the model; ``poutine.scale`` factors are known if it was run inside ``ScaleFactors``.
        guide_trace: trace of the guide.
        draws: the model's trace with its plates, which Pyro's ELBOs prune; needed for replay.

    Raises:
        ValueError: a site outside the plate over the examples, or an enumerated site.
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
                raise ValueError(f"site {name!r} is summed out, so reconstruction and KL are not separate; use pa.elbo_terms")
        self.plate = data_plate(self.observed | {name: site for name, site in latent.items() if not is_point(site)})
        self.weights = {name: site for name, site in latent.items() if is_point(site) and not self.plate.contains(site)}
        self.latent = {name: site for name, site in latent.items() if name not in self.weights}
        self.prior = {name: self.model[name] for name in self.latent if name in self.model}  # auxiliary sites have none
        all_sites = [*self.observed.values(), *self.prior.values(), *self.latent.values()]
        frames = [frame for site in all_sites for frame in site["cond_indep_stack"] if frame.name == PARTICLES]
        self.particles = frames[0].size if frames else 1
        self.nesting = -1 - frames[0].dim if frames else max(site["log_prob"].dim() for site in all_sites)
        self.outer = self.plate.scale * common_scale(all_sites, self.plate.dim)
        like = next(iter(self.observed.values()))["unscaled_log_prob"]
        self.scale = per_example(like.new_ones(()) * self.outer, 1, self.plate, self.nesting)[0]
        self.examples = self.plate.scale * self.plate.size  # number of examples that the batch represents

    def log_p(self) -> Tensor:
        """log p(x, z) without the shared scale, ``(particles, examples)``."""
        return self._log_prob(self.prior | self.observed)

    def log_q(self, log_probs: dict[str, Tensor] | None = None) -> Tensor:
        """log q(z|x) without the shared scale, ``(particles, examples)``; optionally from other log-densities of its sites."""
        log_probs = log_probs or {name: site["unscaled_log_prob"] for name, site in self.latent.items()}
        return sum(self._guide_term(name, terms) for name, terms in log_probs.items())

    def inner_scale(self, name: str) -> Number:
        """Scale of a latent's log q inside a bound, in the shape of its plates."""
        return plain_scale(self.latent[name]) / self.outer

    def in_plates(self, terms: Tensor) -> Tensor:
        """Reshape ``(particles, examples)`` to the plates' dimensions."""
        shape = [1] * (self.nesting + 1)
        shape[0], shape[self.plate.dim] = terms.shape
        return terms.reshape(shape)

    def sum_over_data(self, terms: Tensor) -> Tensor:
        """Scaled sum over the examples of the mean over particles."""
        return (self.scale * terms.mean(0)).sum()

    @property
    def reconstruction(self) -> Tensor:
        """log p(x|z) summed over the examples, mean over particles."""
        return self.sum_over_data(self._log_prob(self.observed))

    @property
    def kl(self) -> Tensor:
        """KL(q(z|x) || p(z)) summed over the examples."""
        return self.kl_per_unit().sum()

    @property
    def log_weights_prior(self) -> Tensor | float:
        """log p of the weights, with its own scale."""
        terms = [self.model[name] for name in self.weights]
        return sum(scale_and_mask(site["unscaled_log_prob"], site["scale"], site["mask"]).sum() for site in terms) / self.particles

    def kl_per_unit(self) -> Tensor:
        """KL of every latent unit summed over the examples, ``(units,)``.

        A unit is a latent dimension if prior and posterior are products over dimensions, otherwise a site; with
        auxiliary sites all latents are one unit. Closed form for a single latent site if Pyro has one; otherwise
        log q - log p at the draws.
        """
        if self.prior.keys() != self.latent.keys():
            return self.sum_over_data(self.log_q() - self._log_prob(self.prior))[None]
        return torch.stack([self.sum_over_data(unit) for name in self.latent for unit in self._kl(name)])

    def _kl(self, name: str) -> list[Tensor]:
        site, prior = self.latent[name], self.prior[name]
        q, p, z, event_dim = site["fn"], prior["fn"], site["value"], site["fn"].event_dim
        is_product = factorises(q) and factorises(p)
        split = lambda terms: terms.flatten(-event_dim).unbind(-1) if is_product else [terms]  # noqa: E731
        if is_product:
            q, p = q.base_dist, p.base_dist
        kl = _closed_form(q, p) if len(self.latent) == 1 and _same_weighting(site, prior) else None
        if kl is not None:
            return [self._guide_term(name, unit) for unit in split(kl)]
        pairs = zip(split(q.log_prob(z)), split(p.log_prob(z)))
        return [self._guide_term(name, log_q) - self._model_term(prior, log_p) for log_q, log_p in pairs]

    def _log_prob(self, sites: dict[str, dict]) -> Tensor:
        return sum(self._model_term(site, site["unscaled_log_prob"]) for site in sites.values())

    def _model_term(self, site: dict, terms: Tensor) -> Tensor:
        return self._per_example(terms, plain_scale(site), site["mask"])

    def _guide_term(self, name: str, terms: Tensor) -> Tensor:
        site = self.latent[name]
        return self._per_example(terms, plain_scale(site), guide_mask(site, self.prior.get(name)))

    def _per_example(self, terms: Tensor, scale: Number, mask: bool | Tensor | None) -> Tensor:
        return per_example(scale_and_mask(terms, scale / self.outer, mask), self.particles, self.plate, self.nesting)


def plain_scale(site: dict) -> Number:
    """A site's scale without the KL weight of an objective such as ``Tempered``."""
    return site.get("plain_scale", site["scale"])


def _same_weighting(site: dict, prior: dict) -> bool:
    """Whether log q and log p of a latent have the same scale and mask, as a KL in closed form requires."""
    scales = plain_scale(site), plain_scale(prior)
    if any(isinstance(scale, Tensor) for scale in scales):
        factors = [s.get("scale_factors", ()) for s in (site, prior)]
        same = len(factors[0]) == len(factors[1]) and all(map(same_factor, *factors))
    else:
        same = scales[0] == scales[1]
    return same and (site["mask"] is None or prior["mask"] is not None)


@contextlib.contextmanager
def requires_inverse(owner: str, remedy: str):
    """``ValueError`` if the density of new draws is computed under a flow without an inverse."""
    try:
        yield
    except (KeyError, NotImplementedError) as error:
        reason = str(error).strip("'\"").partition(" object")[0] or type(error).__name__
        raise ValueError(
            f"{owner}: needs the guide's density at draws of another distribution, and its transform {reason} has no inverse; {remedy}"
        ) from error


def factorises(fn: Any) -> bool:
    """Whether a distribution is a product over its event dimensions."""
    return isinstance(fn, Independent) and len(fn.base_dist.event_shape) == 0 and len(fn.event_shape) > 0


def is_point(site: dict) -> bool:
    """Whether a site's distribution is a ``Delta``, wrapped or not."""
    return "fn" in site and any(isinstance(fn, dist.Delta) for fn in layers(site["fn"]))


def layers(fn: Any) -> Iterator[Any]:
    """A distribution, the one that it reshapes, masks or transforms, and so on."""
    yield fn
    while (fn := getattr(fn, "base_dist", None)) is not None:
        yield fn


def is_reparameterised(site: dict) -> bool:
    """Whether a guide's draws pass gradients."""
    return "fn" not in site or getattr(site["fn"], "has_rsample", False)


def check_reparameterised(owner: str, latent: dict[str, dict]):
    """``ValueError`` for a site without reparameterised draws while gradients are enabled."""
    stuck = [name for name, site in latent.items() if not is_reparameterised(site)]
    if stuck and torch.is_grad_enabled():
        raise ValueError(f"{owner}: needs reparameterised draws, which the guide's site {stuck[0]!r} lacks; use TraceGraph_ELBO")


def _closed_form(q, p) -> Tensor | None:
    with contextlib.suppress(NotImplementedError):
        return kl_divergence(q, p)
