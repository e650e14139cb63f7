"""Running a (model, guide) on many particles of many data: in bounded memory, the guide once for each datum."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from tqdm.auto import tqdm

from ..infer import programs
from ..infer.batches import Args, as_tensors, check_data
from ..infer.programs import Program

_DATA = 64  # data whose posteriors are held at once
_BUDGET = {"cuda": 2e9}  # bytes for a pass of particles
_SMALL_BUDGET = 64e6  # the same on a CPU: what its caches like


@dataclass
class Pass:
    """Traces of model and guide on ``particles`` draws for the data ``rows``, with log-probabilities computed."""

    rows: slice
    particles: int
    model: poutine.Trace
    guide: poutine.Trace
    nesting: int

    def log_prob(self, site: dict) -> Tensor:
        """A site's log-probability as ``(particles, data)``, whatever scale its plates or handlers give it."""
        return self.per_datum(scale_and_mask(site["unscaled_log_prob"], mask=site["mask"]))

    def per_datum(self, log_prob: Tensor) -> Tensor:
        """Terms of a site as ``(particles, data)`` in float64, plates in between summed over."""
        n = self.rows.stop - self.rows.start
        between = tuple(range(-self.nesting, -1))
        summed = log_prob.sum(between) if between and log_prob.dim() > 1 else log_prob
        return summed.double().expand(self.particles, n)

    def log_weights(self) -> Tensor:
        """log p(x, z) - log q(z|x), ``(particles, data)``."""
        log_p = sum(self.log_prob(self.model.nodes[name]) for name in self.observed + self.latents)
        return log_p - sum(self.log_prob(self.guide.nodes[name]) for name in self.latents)

    @property
    def latents(self) -> list[str]:
        """The sites that the guide draws."""
        return list(programs.sites(self.guide, observed=False))

    @property
    def observed(self) -> list[str]:
        """The sites that the data fix."""
        return list(programs.sites(self.model, observed=True))


def as_data(data: Any, model: Program, guide: Program) -> Args:
    """Data to judge, checked and where the programs are: what they are called with. A split is drawn once.

    Raises:
        ValueError: another type, no data, or data that the model refuses.
    """
    x, *rest = as_tensors(data, model)
    device = programs.device_of(model, guide)
    args = tuple(column.to(device) for column in (data.draw(x) if hasattr(data, "draw") else x, *rest))
    check_data(model, args)
    return args


def passes(model: Program, guide: Program, args: Args, particles: int, progress: bool = False) -> Iterator[Pass]:
    """Every particle of every datum, pass by pass; all passes of a datum follow one another."""
    x = args[0]
    widths = [p.shape[0] for module in programs.modules(model, guide) for p in module.parameters() if p.dim() > 1]
    rows = max(1, int(_BUDGET.get(x.device.type, _SMALL_BUDGET) / (32 * max([1, x[0].numel(), *widths]))))
    with tqdm(total=len(x), disable=not progress, unit="datum", desc="importance weights") as bar:
        for start in range(0, len(x), _DATA):
            part = tuple(column[start : start + _DATA] for column in args)
            n = len(part[0])
            drawer, nesting = _encoded(model, guide, part)
            left, at_once = particles, max(1, rows // n)
            while left:
                k = min(at_once, left)
                yield _one_pass(model, drawer, part, slice(start, start + n), k, nesting)
                left -= k
            bar.update(n)


def _one_pass(model, guide, args, rows, k, nesting) -> Pass:
    model_trace, guide_trace = programs.traces(_on_particles(model, k, nesting), _on_particles(guide, k, nesting), *args)
    guide_trace.compute_log_prob()
    model_trace.compute_log_prob()
    return Pass(rows, k, model_trace, guide_trace, nesting)


def _on_particles(program: Program, k: int, nesting: int) -> Program:
    def run(*args):
        with pyro.plate("_particles", k, dim=-1 - nesting):
            return program(*args)

    return run


def _encoded(model: Program, guide: Program, args: Args) -> tuple[Program, int]:
    """The guide with its encoder's work done, and how deep the programs nest plates.

    A guide with one latent site need not run again for other particles; one with several runs in each pass.
    """
    model_trace, guide_trace = programs.traces(model, guide, *args)
    latent, observed = programs.sites(guide_trace, observed=False), programs.sites(model_trace, observed=True)
    _check_sites(latent, programs.sites(model_trace, observed=False), observed)
    for site in [*latent.values(), *programs.sites(model_trace, observed=False).values(), *observed.values()]:
        _check_site(site, len(args[0]))
    nesting = max(-frame.dim for site in [*latent.values(), *observed.values()] for frame in site["cond_indep_stack"] if frame.vectorized)
    if len(latent) != 1:
        return guide, nesting
    (site,) = latent.values()
    plates = [frame for frame in site["cond_indep_stack"] if frame.vectorized]

    def drawer(*_):
        with contextlib.ExitStack() as stack:
            if site["mask"] is not None:
                stack.enter_context(poutine.mask(mask=site["mask"]))
            for frame in plates:
                stack.enter_context(pyro.plate(frame.name, frame.size, dim=frame.dim))
            return pyro.sample(site["name"], site["fn"])

    return drawer, nesting


def _check_sites(guides: dict, models: dict, observed: dict):
    if guides.keys() != models.keys():
        raise ValueError(
            f"the guide draws {', '.join(sorted(guides)) or 'nothing'} but the model's latents are {', '.join(sorted(models)) or 'none'}; "
            "the two must draw the same sites (auxiliary ones, as of an AutoGuide, are not supported)"
        )
    if not observed:
        raise ValueError("the model observes nothing; give its sample statement obs=x")


def _check_site(site: dict, n: int):
    if not any(frame.vectorized and frame.dim == -1 and frame.size == n for frame in site["cond_indep_stack"]):
        raise ValueError(
            f"site {site['name']!r} is not inside a plate over the data (dim=-1, size {n}), "
            f"so log p(x) does not split into data; put it in pyro.plate('data', len(x))"
        )


def base_of(fn: dist.Distribution) -> dist.Distribution:
    """A distribution without the wrappers that only reshape or mask it."""
    while hasattr(fn, "base_dist") and not isinstance(fn, torch.distributions.TransformedDistribution):
        fn = fn.base_dist
    return fn
