"""Running a (model, guide) on many particles of many data: in bounded memory, the guide once for each datum."""

import contextlib
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from tqdm.auto import tqdm

from .. import programs
from ..data.rows import Rows
from ..inside import tensors
from ..programs import Program
from ..training import distributed
from ..training.batches import Args, as_tensors, check_data

Proposal = Callable[..., Program]  # ``proposal(model, guide, *args)``: a guide for these data

PARTICLES = "_particles"
_DATA = 64  # data whose posteriors are held at once
_BUDGET = 2e9  # bytes for a pass of particles
_SMALL_BUDGET = 32e6  # for the layers' outputs on a CPU: what its caches like


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
        return per_datum(log_prob, self.particles, self.rows.stop - self.rows.start, self.nesting)

    def log_likelihood(self) -> Tensor:
        """log p(x|z), ``(particles, data)``."""
        return sum(self.log_prob(site) for site in programs.sites(self.model, observed=True).values())

    def log_prior(self) -> Tensor:
        """log p(z), ``(particles, data)``."""
        return sum(self.log_prob(site) for site in programs.sites(self.model, observed=False).values())

    def log_guide(self) -> Tensor:
        """log q(z|x), ``(particles, data)``."""
        return sum(self.log_prob(site) for site in programs.sites(self.guide, observed=False).values())

    def log_weights(self) -> Tensor:
        """log p(x, z) - log q(z|x), ``(particles, data)``."""
        return self.log_likelihood() + self.log_prior() - self.log_guide()

    @property
    def latents(self) -> list[str]:
        """The latent sites of the model."""
        return list(programs.sites(self.model, observed=False))

    @property
    def observed(self) -> list[str]:
        """The sites that the data fix."""
        return list(programs.sites(self.model, observed=True))


def per_datum(log_prob: Tensor, particles: int, n: int, nesting: int) -> Tensor:
    """Terms of a site as ``(particles, n)`` in float64, plates in between summed over."""
    between = tuple(range(-nesting, -1))
    summed = log_prob.sum(between) if between and log_prob.dim() > 1 else log_prob
    return summed.double().expand(particles, n)


def as_data(data: Any, model: Program, guide: Program, stream: bool = False) -> Args:
    """Data to judge, checked and where the programs are: what they are called with. A split is drawn once.

    Rows on disk are read here, or with ``stream`` when ``blocks`` comes to them; then the first of them are checked.

    Raises:
        ValueError: another type, no data, or data that the model refuses.
    """
    x, *rest = (column[:] if isinstance(column, Rows) and not stream else column for column in as_tensors(data, model))
    draw = getattr(data, "draw", None) or (lambda x: x)
    device = programs.device_of(model, guide, otherwise=x.device)
    args = tuple(column.to(device) for column in (x.then(draw) if isinstance(x, Rows) else draw(x), *rest))
    check_data(model, tuple(column[:_DATA] if isinstance(x, Rows) else column for column in args))
    return args


def passes(
    model: Program,
    guide: Program,
    args: Args,
    particles: int,
    progress: bool = False,
    proposal: Proposal | None = None,
    shared: "Shared | None" = None,
) -> Iterator[Pass]:
    """Every particle of every datum, pass by pass; all passes of a datum follow one another. Drawn from the proposal, or the guide."""
    for block in encodings(model, guide, args, particles, progress, proposal, shared):
        for k in block.sizes:
            yield one_pass(model, block.guide, block.args, block.rows, k, block.nesting)


def encodings(
    model: Program,
    guide: Program,
    args: Args,
    particles: int,
    progress: bool = False,
    proposal: Proposal | None = None,
    shared: "Shared | None" = None,
) -> Iterator["Encoded"]:
    """The data block by block, each with its encoder's work done, or with the proposal's guide; this process's blocks if ``shared``."""
    rows = None
    for where, part in blocks(args, _DATA, progress, shared):
        found = encoded(model, proposal(model, guide, *part) if proposal else guide, part)
        rows = rows or rows_at_once(model, guide, part, found.traces)
        at_once = max(1, rows // len(part[0]))
        found.rows, found.sizes = where, [min(at_once, particles - start) for start in range(0, particles, at_once)]
        yield found


def rows_at_once(model: Program, guide: Program, args: Args, seen: tuple[poutine.Trace, poutine.Trace] | None = None) -> int:
    """How many particles, of all data together, fit into the budget of memory.

    By the widest layer, and by the most numbers of a datum that a site's distribution holds. ``seen`` are traces on ``args``; by
    default the programs are looked at with the first datum.
    """
    if seen is None:
        args = tuple(column[:1] for column in args)
        with programs.seeded(0, args[0].device):
            seen = programs.traces(model, guide, *args)
    x, n = args[0], len(args[0])
    drawn = [site["fn"] for trace in seen for site in trace.nodes.values() if site["type"] == "sample" and not site_is_subsample(site)]
    held = [-(-held.numel() // n) for fn in drawn for held in tensors(fn)]
    widths = [p.shape[0] for module in programs.modules(model, guide) for p in module.parameters() if p.dim() > 1]
    layers = _BUDGET if x.device.type == "cuda" else _SMALL_BUDGET
    return max(1, int(min(layers / max([1, x[0].numel(), *widths]), _BUDGET / max([1, *held])) / 32))


@dataclass(frozen=True)
class Shared:
    """That processes share out the data, block by block. The noise of a block follows from the seed and where the block is."""

    seed: int | None

    def takes(self, start: int, size: int, device: torch.device) -> bool:
        """Whether a block is this process's; then its noise comes next."""
        if start // size % distributed.processes() != distributed.rank():
            return False
        if self.seed is not None:
            programs.reseed(zlib.crc32(f"{self.seed} {start}".encode()), device)
        return True


def blocks(args: Args, size: int, progress: bool = False, shared: Shared | None = None) -> Iterator[tuple[slice, Args]]:
    """The data in blocks of ``size``, and which rows they are; all, or those that this process takes."""
    with tqdm(total=len(args[0]), disable=not (progress and distributed.leads()), unit="datum", desc="evaluation") as bar:
        for start in range(0, len(args[0]), size):
            stop = min(start + size, len(args[0]))
            if shared is None or shared.takes(start, size, args[0].device):
                yield slice(start, stop), tuple(column[start:stop] for column in args)
            bar.update(stop - start)


def one_pass(model: Program, guide: Program, args: Args, rows: slice, k: int, nesting: int) -> Pass:
    """``k`` fresh particles for each datum of ``args``, which are the data ``rows``."""
    model_trace, guide_trace = programs.traces(on_particles(model, k, nesting), on_particles(guide, k, nesting), *args)
    guide_trace.compute_log_prob()
    model_trace.compute_log_prob()
    return Pass(rows, k, model_trace, guide_trace, nesting)


def on_particles(program: Program, k: int, nesting: int) -> Program:
    """The program inside a plate of ``k`` particles, left of its own plates."""

    def run(*args):
        with pyro.plate(PARTICLES, k, dim=-1 - nesting):
            return program(*args)

    return run


@dataclass
class Encoded:
    """A block of data whose encoder has done its work, as far as it can."""

    args: Args
    guide: Program  # draws the latents
    nesting: int  # how deep the programs nest plates
    site: dict | None  # the guide's only latent site, if it has one: then drawing from it is all that the guide does
    traces: tuple[poutine.Trace, poutine.Trace]  # of model and guide
    rows: slice | None = None  # which of the data these are
    sizes: list[int] = field(default_factory=list)  # how many particles to draw at once, time and again


def encoded(model: Program, guide: Program, args: Args) -> Encoded:
    """The block of data ``args`` encoded.

    A guide with one latent site need not run again for other particles; one with several runs in each pass.
    """
    model_trace, guide_trace = programs.traces(model, guide, *args)
    drawn, latent = programs.sites(guide_trace, observed=False), programs.sites(model_trace, observed=False)
    observed = programs.sites(model_trace, observed=True)
    _check_sites(drawn, latent, observed)
    for site in [*drawn.values(), *latent.values(), *observed.values()]:
        _check_site(site, len(args[0]))
    nesting = max(-frame.dim for site in [*drawn.values(), *observed.values()] for frame in site["cond_indep_stack"] if frame.vectorized)
    traces = model_trace, guide_trace
    if len(drawn) != 1:
        return Encoded(args, guide, nesting, None, traces)
    (site,) = drawn.values()
    return Encoded(args, lambda *_: draw_again(site, site["fn"]), nesting, site, traces)


def draw_again(site: dict, fn: dist.Distribution) -> Tensor:
    """The sample statement of a site, from ``fn``, in the mask and the plates it was in."""
    with plates_of(site):
        return pyro.sample(site["name"], fn)


@contextlib.contextmanager
def plates_of(site: dict, prefix: str = "") -> Iterator[None]:
    """The mask and the plates over data that a site was in."""
    with contextlib.ExitStack() as stack:
        if site["mask"] is not None:
            stack.enter_context(poutine.mask(mask=site["mask"]))
        for frame in site["cond_indep_stack"]:
            if frame.vectorized and frame.name != PARTICLES:
                stack.enter_context(pyro.plate(prefix + frame.name, frame.size, dim=frame.dim))
        yield


def _check_sites(guides: dict, models: dict, observed: dict):
    drawn = {name for name, site in guides.items() if name in models or not site["infer"].get("is_auxiliary")}
    if drawn != models.keys():
        raise ValueError(
            f"the guide draws {', '.join(sorted(drawn)) or 'nothing'} but the model's latents are {', '.join(sorted(models)) or 'none'}; "
            "the two must draw the same sites"
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
