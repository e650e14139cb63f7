"""Trying programs on a few examples: how they run on many particles, and whether blocks of the examples may be run by themselves."""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .pairs import Program, eval_mode, seeded, validates
from .particles import How, batch_size, on_particles, whole_plates
from .terms import PARTICLES, DataPlate, data_plate, draws_of, sites, traces

_ROUNDING = 1e-4  # relative, between two ways to compute a log-probability
_FEW = 5  # examples
_NUMBERS = 64_000_000  # in the widest layer of a run on all examples
_PRODUCTS = ("linear", "matmul", "__matmul__", "__rmatmul__", "mm", "addmm")
_LOG = logging.getLogger("pyroae")


@dataclass(frozen=True)
class Particles:
    """How a model and its guide run on many particles at once."""

    nesting: int = 1  # dimensions of the programs' own plates
    dim: int = -1  # of the plate over the examples
    model: How = "plate"
    guide: How = "plate"


class Tried:
    """A program as it is scored: with all rows of its plates, and what a trial has shown about it.

    Args:
        program: a model or guide.
        whole: its plates of which all rows are taken, where it would draw some.
    """

    def __init__(self, program: Program, whole: frozenset[str] = frozenset()):
        self.program, self.whole = program, whole
        self.how: How = "plate"
        self.dim = -1  # of the plate over the examples
        self.splits = True  # whether blocks of the examples may be run by themselves
        self.widest = 1  # numbers for each example in its widest layer
        self.matrices: list[Tensor] = []  # float32 matrices that it multiplies by

    def __call__(self, *args, **kwargs):
        if not self.whole:
            return self.program(*args, **kwargs)
        with whole_plates(self.whole):
            return self.program(*args, **kwargs)


def examples_are_independent(*programs: Program) -> bool:
    """Whether programs say so themselves, and that their networks take dimensions left of the batch, as an Autoencoder's do."""
    return all(getattr(program, "examples_are_independent", False) for program in programs)


def try_particles(model: Program, guide: Program, args: tuple, kwargs: dict) -> Particles:
    """The fastest way in which the programs have the same log-probabilities as in runs of one particle each.

    Tried in evaluation mode, without gradients, from a fixed seed; parameters, modes and the caller's random numbers are
    restored on exit.
    """
    if examples_are_independent(model, guide):
        return Particles()
    with _untraced(), eval_mode(model, guide, seed=0):
        run = traces(model, guide, *args, **kwargs)
        n = batch_size(args, kwargs)
        dim = next((f.dim for site in _all_sites(*run) for f in site["cond_indep_stack"] if f.vectorized and f.size == n), -1)
        return _particles(model, guide, args, kwargs, plate_nesting(*run), dim)


@contextlib.contextmanager
def _untraced() -> Iterator[None]:
    """Inside, tensor operations become part of no graph that is being traced."""
    proxies = sys.modules.get("torch.fx.experimental.proxy_tensor")  # slow to import
    with proxies.disable_proxy_modes_tracing() if proxies else contextlib.nullcontext(), torch._C.DisableTorchFunction():
        yield


def try_rows(model: Program, guide: Program, args: tuple) -> tuple[Tried, Tried]:
    """The programs as they can be scored on the rows of ``args``; inside ``eval_mode``.

    A few rows, each half of them and all of them in another order are run by themselves, on the draws of a run on all rows (or as
    many as fit into memory): where a site's log-probability differs, the programs are run on all rows at once. Plates that
    draw a subsample take all rows.

    Raises:
        ValueError: a site outside a plate over the rows, a guide that does not draw the model's latents, data outside the
            support, or an example whose log-probability depends on the latents of others.
    """
    n, pair = len(args[0]), (Tried(model), Tried(guide))
    with seeded(0, args[0].device):
        matrices, widest = _look(pair, tuple(column[:_FEW] for column in args))
        fits = max(_FEW, _NUMBERS // max(widest, args[0][0].numel()))
        pair, run, rows = _run(pair, args, min(n, fits))
        check_sites(*run)
        check_support(sites(run[0], observed=True))
        plate = data_plate({site["name"]: site for site in _all_sites(*run)}, rows)
        few = torch.linspace(0, rows - 1, min(_FEW, rows), device=args[0].device).round().long().flip(0)
        some, whole = tuple(column[few] for column in args), tuple(column[:rows] for column in args)
        order = torch.randperm(rows).to(args[0].device)
        trials = few, *order.chunk(2), order
        splits = all(_same_on(i, pair, tuple(column[i] for column in whole), run, plate) for i in trials)
        splits = splits or not _same_on(slice(None), pair, whole, run, plate)  # the last: noise of the program's own
        if not splits:
            _check_latents_apart(pair, whole, run, plate)
            _LOG.info("the program gives an example another log-probability among other examples; it is scored on all of them at once")
        how = _particles(*pair, some if splits else args, {}, plate_nesting(*run), plate.dim)
    for program, way in zip(pair, (how.model, how.guide)):
        program.how, program.dim, program.splits, program.widest, program.matrices = way, plate.dim, splits, widest, matrices
    return pair


def _look(pair: tuple[Tried, Tried], few: tuple) -> tuple[list[Tensor], int]:
    """The matrices that the programs multiply by, and the numbers for each example in their widest layer, on few examples."""
    widths, products = [1], _Products()
    hook = nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: widths.append(output.numel() // len(few[0])) if isinstance(output, Tensor) else None
    )
    try:
        with products:
            traces(*pair, *few)
    except Exception:  # noqa: BLE001  a program for all rows only; what is wrong with it shows when it runs on them
        pass
    finally:
        hook.remove()
    return products.found, max(widths)


class _Products(TorchFunctionMode):
    """Notes the float32 matrices in products."""

    def __init__(self):
        super().__init__()
        self.found: list[Tensor] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in _PRODUCTS:
            self.found += [a for a in args if isinstance(a, Tensor) and a.dim() == 2 and a.dtype == torch.float32]
        return func(*args, **kwargs or {})


def _run(pair: tuple[Tried, Tried], args: tuple, rows: int) -> tuple[tuple[Tried, Tried], tuple[poutine.Trace, poutine.Trace], int]:
    """A run on the first ``rows``, or on all where it fails, with all rows of plates that would draw some; and the programs as run."""
    try:
        run = traces(*pair, *(column[:rows] for column in args))
    except Exception:  # noqa: BLE001  a plate of a fixed size
        if rows == len(args[0]):
            raise
        rows = len(args[0])
        run = traces(*pair, *args)
    drawn = frozenset(
        name
        for trace in run
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
        and site_is_subsample(site)
        and (site["fn"].subsample_size or site["fn"].size) not in (site["fn"].size, rows)
    )
    if not drawn:
        return pair, run, rows
    return _run(tuple(Tried(program.program, program.whole | drawn) for program in pair), args, rows)


def _same_on(rows: Any, pair: tuple[Tried, Tried], args: tuple, run: tuple[poutine.Trace, poutine.Trace], plate: DataPlate) -> bool:
    """Whether these rows by themselves, ``args``, have the log-probabilities that they have in ``run``."""
    try:
        for program, whole in zip(pair, run):
            drawn = draws_of(whole)
            for name, site in list(drawn.nodes.items()):
                if name == plate.name:
                    del drawn.nodes[name]
                elif plate.holds(site):
                    site["value"] = _rows_of(site["value"], rows, plate.dim - site["fn"].event_dim)
            again = poutine.trace(poutine.replay(program, trace=drawn)).get_trace(*args)
            for site in _all_sites(whole):
                expected = _rows_of(_log_prob(site), rows, plate.dim) if plate.holds(site) else _log_prob(site)
                if not close(_log_prob(again.nodes[site["name"]]), expected):
                    return False
    except Exception:  # noqa: BLE001  whatever a program may raise that does not take fewer rows
        return False
    return True


def _check_latents_apart(pair: tuple[Tried, Tried], args: tuple, run: tuple[poutine.Trace, poutine.Trace], plate: DataPlate):
    """``ValueError`` where the log-probability of some examples changes with the latents of others alone."""
    other, drawn = draws_of(traces(*pair, *args)[1]), draws_of(run[1])
    for name, site in drawn.nodes.items():
        if plate.holds(site):
            dim = plate.dim - site["fn"].event_dim
            value, changed = site["value"].movedim(dim, 0).clone(), other.nodes[name]["value"].movedim(dim, 0)
            value[1::2] = changed[1::2]
            site["value"] = value.movedim(0, dim)
    again = poutine.trace(poutine.replay(pair[0], trace=drawn)).get_trace(*args)
    for site in sites(run[0], observed=True).values():
        before, after = (_rows_of(_log_prob(each), slice(None, None, 2), plate.dim) for each in (site, again.nodes[site["name"]]))
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
    """``ValueError`` unless the guide draws the model's latents, and the model observes something."""
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
    """``ValueError`` for data outside the support of their distribution, in Pyro's words, where its validation is on."""
    if not validates():
        return
    for name, site in observed.items():
        try:
            site["fn"]._validate_sample(site["value"])
        except ValueError as error:
            raise ValueError(
                f"site {name!r}: {str(error).partition(chr(10))[0]}; to score it all the same use pyro.enable_validation(False)"
            ) from None


def plate_nesting(*run: poutine.Trace) -> int:
    """How many dimensions the plates of programs take, those of distributions included."""
    found = _all_sites(*run)
    frames = [-frame.dim for site in found for frame in site["cond_indep_stack"] if frame.vectorized and frame.name != PARTICLES]
    return max([1, *frames, *(len(site["fn"].batch_shape) for site in found)])


def _particles(model: Program, guide: Program, args: tuple, kwargs: dict, nesting: int, dim: int) -> Particles:
    k = 3 if batch_size(args, kwargs) == 2 else 2  # a number that no dimension of the data is likely to have
    how_guide, drawn = _try(guide, k, nesting, dim, args, kwargs, poutine.Trace())
    how_model, _ = _try(model, k, nesting, dim, args, kwargs, drawn)
    return Particles(nesting, dim, how_model, how_guide)


def _try(program: Program, k: int, nesting: int, dim: int, args: tuple, kwargs: dict, given: poutine.Trace) -> tuple[How, poutine.Trace]:
    """How the program runs on ``k`` particles, and a trace; on the draws ``given``, or on its own."""

    def run(how: How, given: poutine.Trace) -> poutine.Trace:
        return poutine.trace(poutine.replay(on_particles(program, k, nesting, how, dim), trace=given)).get_trace(*args, **kwargs)

    for how in ("plate", "fold"):
        try:
            found = run(how, given)
            for site in _all_sites(found):
                _log_prob(site)
        except Exception:  # noqa: BLE001, S112  whatever a program may raise when its shapes do not fit
            continue
        if _one_by_one(found, run):
            return how, found
    return "loop", run("loop", given)


def _one_by_one(found: poutine.Trace, run: Callable[[How, poutine.Trace], poutine.Trace]) -> bool:
    """Whether a run on all particles has the log-probabilities of runs one by one on its draws, as far as that can be seen."""
    try:
        again = [run("loop", draws_of(found)) for _ in range(2)]
        return _same_terms(found, again[0]) or not _same_terms(*again)  # the last: noise of the program's own
    except (KeyError, NotImplementedError):  # a flow without an inverse
        return True


def _same_terms(one: poutine.Trace, other: poutine.Trace) -> bool:
    """Whether all sites of two traces have the same log-probabilities, but for rounding."""
    return all(close(_log_prob(site), _log_prob(other.nodes[site["name"]])) for site in _all_sites(one))


def _log_prob(site: dict) -> Tensor:
    """A site's log-probability without its scale, which says how many rows there are."""
    return scale_and_mask(site["fn"].log_prob(site["value"]), mask=site["mask"])


def close(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal but for rounding, relative to the largest number."""
    if a.shape != b.shape:
        return False
    largest = b[b.isfinite()].abs().max().item() if b.isfinite().any() else 0.0
    return torch.allclose(a.double(), b.double(), _ROUNDING, _ROUNDING * largest + 1e-6, equal_nan=True)
