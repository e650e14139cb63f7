"""Trial runs of programs on a few examples: how they take particles, and whether blocks of examples can be run separately."""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .pairs import Program, Wrapper, eval_mode, seeded, validates, wrapped
from .particles import Vectorization, batch_size, full_plates, on_particles
from .terms import PARTICLES, DataPlate, data_plate, draws_of, sites, traces

_RTOL = 1e-4  # between two computations of a log-probability
_FEW = 5  # examples
_MAX_ACTIVATIONS = 64_000_000  # in the widest layer, for a run on all examples
_PRODUCTS = ("linear", "matmul", "__matmul__", "__rmatmul__", "mm", "addmm")
_LOG = logging.getLogger("pyroae")


@dataclass(frozen=True)
class Particles:
    """How model and guide run on many particles."""

    nesting: int = 1  # plate dimensions of the programs
    dim: int = -1  # of the plate over the examples
    model: Vectorization = "plate"
    guide: Vectorization = "plate"


@dataclass(frozen=True)
class Trials:
    """What trial runs of a program have shown; the defaults hold for programs that declare independent examples."""

    how: Vectorization = "plate"
    dim: int = -1  # of the plate over the examples
    splits: bool = True  # whether blocks of examples can be run separately
    widest: int = 1  # activations per example in its widest layer
    matrices: Sequence[Tensor] = ()  # float32 factors of its matrix products


class ProbedProgram(Wrapper):
    """A program without subsampling, and the results of its trial runs.

    Args:
        program: a model or guide.
        full_plates: plates in which subsampling is turned off.
    """

    def __init__(self, program: Program, full_plates: frozenset[str] = frozenset()):
        super().__init__(program)
        self.full_plates, self.trials = full_plates, Trials()

    def __call__(self, *args, **kwargs):
        if not self.full_plates:
            return self.program(*args, **kwargs)
        with full_plates(self.full_plates):
            return self.program(*args, **kwargs)


def trials_of(program: Program) -> Trials:
    """The results of the trial runs of a program, or of one that it runs."""
    return next((each.trials for each in wrapped(program) if isinstance(each, ProbedProgram)), Trials())


def examples_are_independent(*programs: Program) -> bool:
    """Whether all programs declare independent examples and networks that accept dimensions left of the batch."""
    return all(getattr(program, "examples_are_independent", False) for program in programs)


def probe_particles(model: Program, guide: Program, args: tuple, kwargs: dict) -> Particles:
    """The fastest vectorization whose log-probabilities are equal to those of single-particle runs.

    Runs in evaluation mode, without gradients, from a fixed seed; parameters, modes and the caller's random state are
    restored on exit.
    """
    if examples_are_independent(model, guide):
        return Particles()
    with _untraced(), eval_mode(model, guide, seed=0):
        run = traces(model, guide, *args, **kwargs)
        n = batch_size(args, kwargs)
        dim = next((f.dim for site in _all_sites(*run) for f in site["cond_indep_stack"] if f.vectorized and f.size == n), -1)
        return _probe_pair(model, guide, args, kwargs, plate_nesting(*run), dim)


@contextlib.contextmanager
def _untraced() -> Iterator[None]:
    """Keep tensor operations out of graphs that are being traced."""
    proxies = sys.modules.get("torch.fx.experimental.proxy_tensor")  # slow to import
    with proxies.disable_proxy_modes_tracing() if proxies else contextlib.nullcontext(), torch._C.DisableTorchFunction():
        yield


def probe_rows(model: Program, guide: Program, args: tuple) -> tuple[ProbedProgram, ProbedProgram]:
    """The programs prepared for scoring the rows of ``args``; inside ``eval_mode``.

    A few rows, both halves of a random order and all rows in that order are run on the draws of a run on all rows (or as
    many as fit into memory). If the log-probability of a site differs, all rows must be run together. Subsampling is
    turned off.

    Raises:
        ValueError: a site outside a plate over the rows, a guide that does not draw the model's latents, data outside the
            support, or an example whose log-probability depends on the latents of others.
    """
    n, pair = len(args[0]), (ProbedProgram(model), ProbedProgram(guide))
    with seeded(0, args[0].device):
        matrices, widest = _inspect_layers(pair, tuple(column[:_FEW] for column in args))
        max_rows = max(_FEW, _MAX_ACTIVATIONS // max(widest, args[0][0].numel()))
        pair, run, rows = _run(pair, args, min(n, max_rows))
        check_sites(*run)
        check_support(sites(run[0], observed=True))
        plate = data_plate({site["name"]: site for site in _all_sites(*run)}, rows)
        few = torch.linspace(0, rows - 1, min(_FEW, rows), device=args[0].device).round().long().flip(0)
        few_args, run_args = tuple(column[few] for column in args), tuple(column[:rows] for column in args)
        order = torch.randperm(rows).to(args[0].device)
        trials = few, *order.chunk(2), order
        splits = all(_same_on(i, pair, tuple(column[i] for column in run_args), run, plate) for i in trials)
        splits = splits or not _same_on(slice(None), pair, run_args, run, plate)  # the program has noise outside its sites
        if not splits:
            _check_latents_independent(pair, run_args, run, plate)
            _LOG.info("log-probabilities of an example depend on the other examples of its batch; all examples are scored together")
        how = _probe_pair(*pair, few_args if splits else args, {}, plate_nesting(*run), plate.dim)
    for program, vectorization in zip(pair, (how.model, how.guide)):
        program.trials = Trials(vectorization, plate.dim, splits, widest, matrices)
    return pair


def _inspect_layers(pair: tuple[ProbedProgram, ProbedProgram], args: tuple) -> tuple[list[Tensor], int]:
    """Factors of the programs' matrix products, and activations per example in their widest layer."""
    widths, recorder = [1], _MatrixRecorder()
    hook = nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: widths.append(output.numel() // len(args[0])) if isinstance(output, Tensor) else None
    )
    try:
        with recorder:
            traces(*pair, *args)
    except Exception:  # noqa: BLE001  it may only run on all rows; real errors are raised in that run
        pass
    finally:
        hook.remove()
    return recorder.matrices, max(widths)


class _MatrixRecorder(TorchFunctionMode):
    """Records the float32 matrices in products."""

    def __init__(self):
        super().__init__()
        self.matrices: list[Tensor] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in _PRODUCTS:
            self.matrices += [a for a in args if isinstance(a, Tensor) and a.dim() == 2 and a.dtype == torch.float32]
        return func(*args, **kwargs or {})


def _run(
    pair: tuple[ProbedProgram, ProbedProgram], args: tuple, rows: int
) -> tuple[tuple[ProbedProgram, ProbedProgram], tuple[poutine.Trace, poutine.Trace], int]:
    """Run the first ``rows``, or all if that fails, without subsampling; returns the programs, traces and number of rows."""
    try:
        run = traces(*pair, *(column[:rows] for column in args))
    except Exception:  # noqa: BLE001  a plate of a fixed size
        if rows == len(args[0]):
            raise
        rows = len(args[0])
        run = traces(*pair, *args)
    subsampled = frozenset(
        name
        for trace in run
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
        and site_is_subsample(site)
        and (site["fn"].subsample_size or site["fn"].size) not in (site["fn"].size, rows)
    )
    if not subsampled:
        return pair, run, rows
    return _run(tuple(ProbedProgram(program.program, program.full_plates | subsampled) for program in pair), args, rows)


def _same_on(
    rows: Any, pair: tuple[ProbedProgram, ProbedProgram], args: tuple, run: tuple[poutine.Trace, poutine.Trace], plate: DataPlate
) -> bool:
    """Whether a run on these rows alone, ``args``, has the log-probabilities of ``run``."""
    try:
        for program, trace in zip(pair, run):
            draws = draws_of(trace)
            for name, site in list(draws.nodes.items()):
                if name == plate.name:
                    del draws.nodes[name]
                elif plate.contains(site):
                    site["value"] = _rows_of(site["value"], rows, plate.dim - site["fn"].event_dim)
            rerun = poutine.trace(poutine.replay(program, trace=draws)).get_trace(*args)
            for site in _all_sites(trace):
                expected = _rows_of(_log_prob(site), rows, plate.dim) if plate.contains(site) else _log_prob(site)
                if not close(_log_prob(rerun.nodes[site["name"]]), expected):
                    return False
    except Exception:  # noqa: BLE001  a program that does not accept fewer rows may raise anything
        return False
    return True


def _check_latents_independent(
    pair: tuple[ProbedProgram, ProbedProgram], args: tuple, run: tuple[poutine.Trace, poutine.Trace], plate: DataPlate
):
    """``ValueError`` if the log-probabilities of even rows change with the latents of odd rows."""
    other, draws = draws_of(traces(*pair, *args)[1]), draws_of(run[1])
    for name, site in draws.nodes.items():
        if plate.contains(site):
            dim = plate.dim - site["fn"].event_dim
            value, changed = site["value"].movedim(dim, 0).clone(), other.nodes[name]["value"].movedim(dim, 0)
            value[1::2] = changed[1::2]
            site["value"] = value.movedim(0, dim)
    rerun = poutine.trace(poutine.replay(pair[0], trace=draws)).get_trace(*args)
    for site in sites(run[0], observed=True).values():
        before, after = (_rows_of(_log_prob(s), slice(None, None, 2), plate.dim) for s in (site, rerun.nodes[site["name"]]))
        if not close(after, before):
            raise ValueError(
                f"site {site['name']!r}: the log-probability of an example depends on the latents of others, so log p(x) does not split "
                "into examples"
            )


def _rows_of(value: Tensor, rows: Any, dim: int) -> Tensor:
    return value.movedim(dim, 0)[rows].movedim(0, dim)


def _all_sites(*run: poutine.Trace) -> list[dict]:
    return [site for trace in run for observed in (True, False) for site in sites(trace, observed).values()]


def check_sites(model_trace: poutine.Trace, guide_trace: poutine.Trace):
    """``ValueError`` unless the guide draws the model's latents and the model has an observed site."""
    guides, models = sites(guide_trace, observed=False), sites(model_trace, observed=False)
    drawn = {name for name, site in guides.items() if name in models or not site["infer"].get("is_auxiliary")}
    if drawn != models.keys():
        raise ValueError(
            f"the guide draws {', '.join(sorted(drawn)) or 'nothing'} but the model's latents are {', '.join(sorted(models)) or 'none'}; "
            "the two must draw the same sites"
        )
    if not sites(model_trace, observed=True):
        raise ValueError("the model observes nothing; give its sample statement obs=x")


def check_support(observed: dict[str, dict]):
    """``ValueError`` for data outside a distribution's support, if Pyro's validation is on."""
    if not validates():
        return
    for name, site in observed.items():
        try:
            site["fn"]._validate_sample(site["value"])
        except ValueError as error:
            raise ValueError(
                f"site {name!r}: {str(error).partition(chr(10))[0]}; pyro.enable_validation(False) turns this check off"
            ) from None


def plate_nesting(*run: poutine.Trace) -> int:
    """Number of plate dimensions of programs, batch dimensions of distributions included."""
    all_sites = _all_sites(*run)
    frames = [-frame.dim for site in all_sites for frame in site["cond_indep_stack"] if frame.vectorized and frame.name != PARTICLES]
    return max([1, *frames, *(len(site["fn"].batch_shape) for site in all_sites)])


def _probe_pair(model: Program, guide: Program, args: tuple, kwargs: dict, nesting: int, dim: int) -> Particles:
    k = 3 if batch_size(args, kwargs) == 2 else 2  # unlikely to be equal to a dimension of the data
    how_guide, trace = _probe(guide, k, nesting, dim, args, kwargs, poutine.Trace())
    how_model, _ = _probe(model, k, nesting, dim, args, kwargs, trace)
    return Particles(nesting, dim, how_model, how_guide)


def _probe(
    program: Program, k: int, nesting: int, dim: int, args: tuple, kwargs: dict, draws: poutine.Trace
) -> tuple[Vectorization, poutine.Trace]:
    """How the program runs on ``k`` particles, and its trace; replayed on ``draws``."""

    def run(how: Vectorization, draws: poutine.Trace) -> poutine.Trace:
        return poutine.trace(poutine.replay(on_particles(program, k, nesting, how, dim), trace=draws)).get_trace(*args, **kwargs)

    for how in ("plate", "fold"):
        try:
            trace = run(how, draws)
            for site in _all_sites(trace):
                _log_prob(site)
        except Exception:  # noqa: BLE001, S112  shapes that do not fit may raise anything
            continue
        if _matches_single_runs(trace, run):
            return how, trace
    return "loop", run("loop", draws)


def _matches_single_runs(trace: poutine.Trace, run: Callable[[Vectorization, poutine.Trace], poutine.Trace]) -> bool:
    """Whether single-particle runs on the same draws have the same log-probabilities; true if this cannot be determined."""
    try:
        reruns = [run("loop", draws_of(trace)) for _ in range(2)]
        return _same_terms(trace, reruns[0]) or not _same_terms(*reruns)  # the program has noise outside its sites
    except (KeyError, NotImplementedError):  # a flow without an inverse
        return True


def _same_terms(a: poutine.Trace, b: poutine.Trace) -> bool:
    """Whether all sites of two traces have the same log-probabilities up to rounding."""
    return all(close(_log_prob(site), _log_prob(b.nodes[site["name"]])) for site in _all_sites(a))


def _log_prob(site: dict) -> Tensor:
    """A site's log-probability without its scale, which depends on the number of rows."""
    return scale_and_mask(site["fn"].log_prob(site["value"]), mask=site["mask"])


def close(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal up to rounding relative to the largest entry."""
    if a.shape != b.shape:
        return False
    largest = b[b.isfinite()].abs().max().item() if b.isfinite().any() else 0.0
    return torch.allclose(a.double(), b.double(), _RTOL, _RTOL * largest + 1e-6, equal_nan=True)
