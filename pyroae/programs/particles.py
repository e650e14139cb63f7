"""Run a program on many particles: in a plate of particles, as rows of the batch, or one particle at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import pyro
import torch
from pyro import poutine
from pyro.poutine.condition_messenger import ConditionMessenger
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from pyro.poutine.replay_messenger import ReplayMessenger
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.subsample_messenger import SubsampleMessenger, _Subsample
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from .folding import Fold, padded, stacked, unfolded
from .pairs import Program, Wrapper
from .scales import ScaleFactors
from .terms import PARTICLES

Vectorization = Literal["plate", "fold", "loop"]


def on_particles(program: Program, k: int, nesting: int, how: Vectorization = "plate", dim: int = -1) -> Program:
    """The program on ``k`` particles; their dimension is left of the ``nesting`` dimensions of its plates.

    Outer handlers and traces see the same sites in all three modes: distributions and values ``(k, *plates, *event)``.

    Args:
        program: a model or guide.
        k: number of particles.
        nesting: plate dimensions of the program.
        how: ``"plate"``: in a plate of particles, for networks that accept dimensions left of the batch. ``"fold"``: once,
            on a batch that repeats every example ``k`` times, for independent examples. ``"loop"``: ``k`` runs; a model
            replayed on a guide's draws gets one particle's draws in each.
        dim: dimension of the program's plate over the examples.
    """
    if how == "fold":
        return _Folded(program, k, nesting, dim)
    return _Looped(program, k, nesting) if how == "loop" else pyro.plate(PARTICLES, k, dim=-1 - nesting)(program)


def batch_size(args: tuple, kwargs: dict) -> int:
    """Length of the first tensor among a program's arguments; 0 without tensors."""
    return next((len(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.dim()), 0)


class _Folded(Wrapper):
    """Run a program on ``k`` particles as rows of its batch."""

    def __init__(self, program: Program, k: int, nesting: int, dim: int):
        super().__init__(program)
        self.k, self.nesting, self.dim = k, nesting, dim

    def __call__(self, *args, **kwargs):
        n = batch_size(args, kwargs)

        def repeated(leaf):
            is_rows = isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == n
            return leaf.expand(self.k, *leaf.shape).reshape(-1, *leaf.shape[1:]) if is_rows else leaf

        args, kwargs = tree_map(repeated, (args, kwargs))
        with _Unfolding(self.k, n, self.nesting, self.dim):
            return self.program(*args, **kwargs)


class _Unfolding(Messenger):
    """Present sites of a program on ``k * n`` rows as sites in a plate of ``k`` particles and a plate of ``n`` rows."""

    def __init__(self, k: int, n: int, nesting: int, dim: int):
        super().__init__()
        self.k, self.n, self.nesting, self.dim = k, n, nesting, dim
        self.folds: dict[str, tuple[Fold, int]] = {}  # of open sites
        self.plates: dict[str, bool] = {}  # of open plates: whether they are not subsampled

    def _pyro_sample(self, msg: dict[str, Any]):
        rows = self.k * self.n
        if site_is_subsample(msg):
            return self._unfold_plate(msg, rows)
        frame = next((f for f in msg["cond_indep_stack"] if (f.dim, f.size) == (self.dim, rows)), None)
        if frame is None:
            return
        fold = Fold(self.k, self.n, frame.dim, self.nesting, len(msg["fn"].batch_shape))
        if subsampled := frame.full_size not in (None, frame.size):  # the scale for n rows, not for k * n
            msg["scale"] = msg["scale"] * self.k
        unfolded_frame = frame._replace(size=self.n, full_size=frame.full_size if subsampled else self.n)
        frames = (unfolded_frame if f is frame else f for f in msg["cond_indep_stack"])
        msg["cond_indep_stack"] = (_frame(self.k, self.nesting), *frames)
        event_dim = len(msg["fn"].event_shape)
        msg["fn"] = unfolded(msg["fn"], fold)
        msg["value"] = None if msg["value"] is None else fold.unfold(msg["value"], event_dim)
        for name in ("mask", "scale"):
            if isinstance(msg[name], Tensor) and msg[name].dim() > 0:
                msg[name] = fold.unfold(msg[name], 0)
        self.folds[msg["name"]] = fold, event_dim

    def _unfold_plate(self, msg: dict[str, Any], rows: int):
        """Present the plate over all rows as a plate over one particle's rows."""
        size, subsample_size, value = msg["fn"].size, msg["fn"].subsample_size, msg["value"]
        if rows in (size, subsample_size, None if value is None else len(value)):
            self.plates[msg["name"]] = size == rows
            msg["fn"] = _Subsample(self.n if size == rows else size, subsample_size and self.n, device=msg["fn"].device)
            msg["value"] = None if value is None else value[: self.n]

    def _pyro_post_sample(self, msg: dict[str, Any]):
        if msg["name"] in self.plates:
            value, is_full = msg["value"], self.plates.pop(msg["name"])
            msg["value"] = torch.arange(self.k * self.n, device=value.device) if is_full else value.repeat(self.k)
        if msg["name"] in self.folds:
            fold, event_dim = self.folds.pop(msg["name"])
            drawn, folded = getattr(msg["fn"], "drawn", (None, None))
            msg["value"] = folded if msg["value"] is drawn and drawn is not None else fold.fold(msg["value"], event_dim)


class _Looped(Wrapper):
    """Run a program ``k`` times; replayed and conditioned values are split by particle."""

    def __init__(self, program: Program, k: int, nesting: int):
        super().__init__(program)
        self.k, self.nesting = k, nesting

    def __call__(self, *args, **kwargs):
        values, runs = _handler_values(), []
        for j in range(self.k):
            with poutine.block(hide_fn=lambda msg: msg["type"] == "sample"), ScaleFactors(len(_PYRO_STACK)), poutine.trace() as tape:
                rows = {name: site["value"] for name, site in runs[0].nodes.items() if site_is_subsample(site)} if runs else {}
                with _FixedValues(values, rows, j, self.nesting):
                    result = self.program(*args, **kwargs)
            runs.append(tape.trace)
        for name, site in runs[0].nodes.items():
            if site["type"] == "sample":
                self._sample(name, [run.nodes[name] for run in runs])
        return result

    def _sample(self, name: str, runs: list[dict]):
        """The sample statement of a site on all particles, or of a plate, whose rows are the same in all runs."""
        first = runs[0]
        if site_is_subsample(first):
            with _Override({"value": first["value"]}):
                pyro.sample(name, first["fn"])
            return
        fn, value = stacked([site["fn"] for site in runs], [site["value"] for site in runs], self.nesting)
        changes = {name: _stacked([site[name] for site in runs], self.nesting) for name in ("mask", "scale")}
        changes |= {"cond_indep_stack": (_frame(self.k, self.nesting), *first["cond_indep_stack"]), "scale_factors": first["scale_factors"]}
        with _Override({"value": value, **changes}):
            pyro.sample(name, fn, obs=value if first["is_observed"] else None, infer=first["infer"])


class _FixedValues(Messenger):
    """Set latents to their values for particle ``j`` and subsampled plates to their rows."""

    def __init__(self, values: dict[str, Tensor], rows: dict[str, Tensor], j: int, nesting: int):
        super().__init__()
        self.values, self.rows, self.j, self.nesting = values, rows, j, nesting

    def _pyro_sample(self, msg: dict[str, Any]):
        name = msg["name"]
        if name in self.rows:
            msg["value"], msg["done"] = self.rows[name], True
        elif name in self.values and site_is_subsample(msg):
            msg["value"], msg["done"] = self.values[name], True
        elif name in self.values:
            value, ndims = self.values[name], len(msg["fn"].batch_shape) + len(msg["fn"].event_shape)
            value = padded(value, self.nesting + 1 + len(msg["fn"].event_shape))
            value = value[self.j if len(value) > 1 else 0]
            msg["value"], msg["done"] = value.reshape(value.shape[value.dim() - ndims :]), True


class _Override(Messenger):
    """Replace entries of a sample statement's message."""

    def __init__(self, changes: dict[str, Any]):
        super().__init__()
        self.changes = changes

    def _pyro_sample(self, msg: dict[str, Any]):
        msg.update(self.changes, done=True)


def _stacked(values: list, nesting: int) -> Any:
    """Masks or scales of the runs, stacked unless they are scalars."""
    if isinstance(values[0], Tensor) and values[0].dim() > 0:
        return torch.stack([padded(value, nesting) for value in values])
    return values[0]


def _frame(k: int, nesting: int) -> CondIndepStackFrame:
    return CondIndepStackFrame(PARTICLES, -1 - nesting, k, 0, k)


def _handler_values() -> dict[str, Tensor]:
    """Values that outer handlers assign to sites, by name."""
    values: dict[str, Tensor] = {}
    for handler in _PYRO_STACK:
        if isinstance(handler, ReplayMessenger) and handler.trace is not None:
            values |= {name: site["value"] for name, site in handler.trace.nodes.items() if site["type"] == "sample"}
        elif isinstance(handler, ConditionMessenger):
            values |= {name: value for name, value in handler.data.items() if isinstance(value, Tensor)}
    return values


@contextmanager
def full_plates(names: frozenset[str]) -> Iterator[None]:
    """Turn off subsampling in these plates: they take all rows in order."""

    original = SubsampleMessenger._subsample

    def all_rows(name, size=None, subsample_size=None, subsample=None, use_cuda=None, device=None):
        if name in names and subsample is None:
            subsample_size = None
        return original(name, size, subsample_size, subsample, use_cuda, device)

    SubsampleMessenger._subsample = staticmethod(all_rows)
    try:
        yield
    finally:
        SubsampleMessenger._subsample = staticmethod(original)
