"""Running a (model, guide) on many particles of many examples, in bounded memory; the encoder runs once per example."""

import contextlib
import functools
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import pyro
import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from tqdm.auto import tqdm

from .. import programs
from ..data.rows import Rows
from ..nested import tensors
from ..programs import Program
from ..programs.particles import on_particles as run_on_particles
from ..programs.probing import ProbedProgram, check_sites, check_support, examples_are_independent, plate_nesting, probe_rows, trials_of
from ..programs.terms import PARTICLES, DataPlate, data_plate, guide_mask, log_density
from ..training import distributed
from ..training.batches import Args, as_tensors, check_data, draw_function
from .budget import MemoryBudget, fitting_rows, watching_widths

T = TypeVar("T")
Proposal = Callable[..., Program]  # ``proposal(model, guide, *args)``: a guide for these examples

_EXAMPLES = 64  # in a block, more with few draws per example
_FITTED = 128  # in a block with a proposal
_DRAWS = 8192  # smallest number of draws in a block


@dataclass
class Pass:
    """Traces of model and guide on ``particles`` draws for the examples ``rows``, with log-probabilities computed."""

    rows: slice
    particles: int
    model: poutine.Trace
    guide: poutine.Trace
    nesting: int
    plate: DataPlate

    def log_prob(self, site: dict) -> Tensor:
        """A site's log-probability as ``(particles, examples)``, with its mask and the scale of subsampled inner plates."""
        return self._log_prob(site, site["mask"])

    def log_likelihood(self) -> Tensor:
        """log p(x|z), ``(particles, examples)``."""
        return sum(self.log_prob(site) for site in programs.sites(self.model, observed=True).values())

    def log_prior(self) -> Tensor:
        """log p(z), ``(particles, examples)``."""
        latent = programs.sites(self.model, observed=False).values()
        return sum(self._log_prob(site, None if self._drawn_together else site["mask"]) for site in latent)

    def log_guide(self) -> Tensor:
        """log q(z|x), ``(particles, examples)``, without the latents that the model masks out, as in ``log_prior``."""
        model, latent = programs.sites(self.model, observed=False), programs.sites(self.guide, observed=False)
        masks = {name: None if self._drawn_together else guide_mask(site, model.get(name)) for name, site in latent.items()}
        return sum(self._log_prob(site, masks[name]) for name, site in latent.items())

    def log_weights(self) -> Tensor:
        """log p(x, z) - log q(z|x), ``(particles, examples)``."""
        return self.log_likelihood() + self.log_prior() - self.log_guide()

    @property
    def latents(self) -> list[str]:
        """The latent sites of the model."""
        return list(programs.sites(self.model, observed=False))

    @property
    def observed(self) -> list[str]:
        """The observed sites of the model."""
        return list(programs.sites(self.model, observed=True))

    @property
    def data_dim(self) -> int:
        """The dimension of the examples in a value ``(particles, *plates, *event)``."""
        return self.nesting + 1 + self.plate.dim

    @property
    def _drawn_together(self) -> bool:
        """Whether an auxiliary site draws all latents. Its density is unmasked, so theirs is too; masked ones integrate to 1."""
        return any(site["infer"].get("is_auxiliary") for site in programs.sites(self.guide, observed=False).values())

    def _log_prob(self, site: dict, mask: bool | Tensor | None) -> Tensor:
        return log_density(site, self.plate, self.particles, self.nesting, mask)


def prepared(data: Any, model: Program, guide: Program, stream: bool = False) -> tuple[Program, Program, Args]:
    """The programs ready to be scored on ``data``, and the data, checked and on the programs' device; inside ``eval_mode``.

    Programs other than an Autoencoder's are run on a few rows first, see ``programs.probing.probe_rows``.

    Raises:
        ValueError: as for ``as_data``, or a program whose log p(x) does not split into examples.
    """
    args = as_data(data, model, guide, stream)
    if examples_are_independent(model, guide):
        return model.frozen() if hasattr(model, "frozen") else model, guide, args
    if any(isinstance(column, Rows) for column in args):
        args = tuple(column[:] for column in args)
    return *probe_rows(model, guide, args), args


def as_data(data: Any, model: Program, guide: Program, stream: bool = False) -> Args:
    """The arguments of the programs: data to score, checked and on the programs' device. A split is drawn once.

    Rows on disk are read here, or with ``stream`` block by block; then only the first of them are checked.

    Raises:
        ValueError: another type, no data, or data that the model refuses.
    """
    x, *rest = (column[:] if isinstance(column, Rows) and not stream else column for column in as_tensors(data, model))
    draw = draw_function(data)
    device = programs.device_of(model, guide, otherwise=x.device)
    args = tuple(column.to(device) for column in (x.then(draw) if isinstance(x, Rows) else draw(x), *rest))
    check_data(model, tuple(column[:_EXAMPLES] if isinstance(x, Rows) else column for column in args))
    return args


def matrices(model: Program, guide: Program) -> list[Tensor]:
    """The matrices that the programs multiply by: those recorded in trial runs, or the parameters of their modules."""
    own = [w for module in programs.modules(model, guide) for w in module.parameters()]
    return own + [w for program in (model, guide) for w in trials_of(program).matrices]


def passes(
    model: Program,
    guide: Program,
    args: Args,
    particles: int,
    progress: bool = False,
    proposal: Proposal | None = None,
    shared: "Shared | None" = None,
) -> Iterator[Pass]:
    """Every particle of every example, pass by pass and block by block, drawn from the proposal or the guide."""
    for block in encodings(model, guide, args, particles, progress, proposal, shared):
        run = functools.partial(one_pass, model, block.guide, block.args, block.rows, nesting=block.nesting, plate=block.plate)
        yield from block.passes(run)


def encodings(
    model: Program,
    guide: Program,
    args: Args,
    particles: int,
    progress: bool = False,
    proposal: Proposal | None = None,
    shared: "Shared | None" = None,
) -> Iterator["Encoded"]:
    """The blocks of examples, encoded by the guide or by the proposal's; with ``shared`` only those of this process."""
    budget = MemoryBudget(rows_at_once(model, guide, args)) if proposal else None  # the same in all processes: same noise

    def block(rows: slice, part: Args) -> Encoded:
        nonlocal budget
        source = proposal(model, guide, *part) if proposal else guide
        encoding = encoded(model, source, part)
        budget = budget or MemoryBudget(rows_at_once(model, guide, part, encoding.traces, encoding.widest))
        encoding.source, encoding.rows, encoding.particles, encoding.budget = source, rows, particles, budget
        return encoding

    least, n = _FITTED if proposal else _EXAMPLES, len(args[0])
    size = max(least, _DRAWS // particles)
    if proposal:
        size = math.ceil(n / math.ceil(n / size))  # blocks of equal size share a graph
    yield from on_blocks(block, model, args, size, progress, shared)


def rows_at_once(
    model: Program, guide: Program, args: Args, traces: tuple[poutine.Trace, poutine.Trace] | None = None, widest: int = 1
) -> int:
    """How many particles, of all examples together, fit into the budget of memory.

    By the widest layer, and by the largest number of parameters per example of a site's distribution. ``traces`` are of ``args``,
    and ``widest`` their widest layer; by default the programs are run on the first example, or on all where they accept no
    other number.
    """
    if traces is None:
        args = tuple(column[:1] for column in args) if trials_of(model).splits else args
        with programs.seeded(0, args[0].device), watching_widths(len(args[0])) as widths:
            traces = programs.traces(model, guide, *args)
        widest = max([1, *widths])
    x, n = args[0], len(args[0])
    drawn = [site["fn"] for trace in traces for site in trace.nodes.values() if site["type"] == "sample" and not site_is_subsample(site)]
    held = [-(-held.numel() // n) for fn in drawn for held in tensors(fn)]
    tried = [trials_of(program).widest for program in (model, guide)]
    return fitting_rows(max([widest, x[0].numel(), *tried]), max([1, *held]), x.device)


@dataclass(frozen=True)
class Shared:
    """Distributes the blocks over processes. The noise of a block depends on the seed and on its position."""

    seed: int | None

    def takes(self, start: int, size: int, device: torch.device) -> bool:
        """Whether this process runs a block; if so its random state is set."""
        if start // size % distributed.world_size() != distributed.rank():
            return False
        if self.seed is not None:
            programs.reseed(zlib.crc32(f"{self.seed} {start}".encode()), device)
        return True


def blocks(model: Program, args: Args, size: int, progress: bool = False, shared: Shared | None = None) -> Iterator[tuple[slice, Args]]:
    """The examples in blocks of ``size``, and their rows: all, or those of this process.

    A program whose examples depend on each other or on their position gets one block of all examples.
    """
    size = size if trials_of(model).splits else len(args[0])
    with tqdm(total=len(args[0]), disable=not (progress and distributed.is_main()), unit="example", desc="evaluation") as bar:
        for start in range(0, len(args[0]), size):
            stop = min(start + size, len(args[0]))
            if shared is None or shared.takes(start, size, args[0].device):
                yield slice(start, stop), tuple(column[start:stop] for column in args)
            bar.update(stop - start)


def on_blocks(
    run: Callable[[slice, Args], T], model: Program, args: Args, size: int, progress: bool = False, shared: Shared | None = None
) -> Iterator[T]:
    """``run(rows, part)`` on every block of ``blocks``, in halves where a device runs out of memory."""
    budget = MemoryBudget(size)
    for where, part in blocks(model, args, size, progress, shared):
        if not trials_of(model).splits:
            yield run(where, part)
            continue

        def piece(start: int, stop: int, where: slice = where, part: Args = part) -> T:
            return run(slice(where.start + start, where.start + stop), tuple(column[start:stop] for column in part))

        yield from budget.pieces(piece, len(part[0]))


def one_pass(model: Program, guide: Program, args: Args, rows: slice, k: int, nesting: int, plate: DataPlate) -> Pass:
    """``k`` fresh particles for each example of ``args``, which are the examples ``rows``."""
    model_trace, guide_trace = programs.traces(on_particles(model, k, nesting), on_particles(guide, k, nesting), *args)
    guide_trace.compute_log_prob()
    model_trace.compute_log_prob()
    return Pass(rows, k, model_trace, guide_trace, nesting, plate)


def on_particles(program: Program, k: int, nesting: int) -> Program:
    """The program on ``k`` particles, left of its own plates, in the way that its trial, or that of the program it wraps, has chosen."""
    trials = trials_of(program)
    return run_on_particles(program, k, nesting, trials.how, trials.dim)


@dataclass
class Encoded:
    """A block of examples after the encoder."""

    args: Args
    guide: Program  # draws the latents
    nesting: int  # dimensions of the programs' plates
    plate: DataPlate
    site: dict | None  # the guide's latent site if it has a single one: drawing from it is all that the guide does
    traces: tuple[poutine.Trace, poutine.Trace]  # of model and guide
    source: Program | None = None  # the guide with its encoder
    rows: slice | None = None  # of all examples
    widest: int = 1  # values per example in the widest layer
    particles: int = 0  # to draw for each example
    budget: MemoryBudget | None = None

    @property
    def number_of_passes(self) -> int:
        """The number of passes over all particles."""
        return -(-self.particles // self.budget.at_once(len(self.args[0])))

    def passes(self, run: Callable[[int], T]) -> Iterator[T]:
        """``run(k)`` for ``k`` particles of each example at a time, until all are drawn."""
        return self.budget.pieces(lambda start, stop: run(stop - start), self.particles, len(self.args[0]))


def encoded(model: Program, guide: Program, args: Args) -> Encoded:
    """The examples ``args`` encoded.

    A guide with one latent site runs once for all particles; one with several runs in each pass.
    """
    with watching_widths(len(args[0])) as widths:
        model_trace, guide_trace = traces = programs.traces(model, guide, *args)
    widest = max([1, *widths])
    drawn, latent = programs.sites(guide_trace, observed=False), programs.sites(model_trace, observed=False)
    observed = programs.sites(model_trace, observed=True)
    check_sites(*traces)
    if isinstance(model, ProbedProgram):
        check_support(observed)
    plate, nesting = data_plate(drawn | latent | observed, len(args[0])), plate_nesting(*traces)
    if len(drawn) != 1:
        return Encoded(args, guide, nesting, plate, None, traces, widest=widest)
    (site,) = drawn.values()
    return Encoded(args, lambda *_: draw_again(site, site["fn"]), nesting, plate, site, traces, widest=widest)


def draw_again(site: dict, fn: dist.Distribution) -> Tensor:
    """The sample statement of a site, from ``fn``, in the mask and the plates it was in."""
    with plates_of(site, prefix="_"):  # other names than the model's plates, which draw their own subsamples
        return pyro.sample(site["name"], fn)


@contextlib.contextmanager
def plates_of(site: dict, prefix: str = "") -> Iterator[None]:
    """The mask and the plates that a site was in."""
    with contextlib.ExitStack() as stack:
        if site["mask"] is not None:
            stack.enter_context(poutine.mask(mask=site["mask"]))
        for frame in site["cond_indep_stack"]:
            if frame.vectorized and frame.name != PARTICLES:
                stack.enter_context(pyro.plate(prefix + frame.name, frame.size, dim=frame.dim))
        yield
