"""Log-weights of fresh draws for a block of examples, traced to a graph where that pays."""

import torch
from torch import Tensor

from .. import programs
from ..nested import holds_closure, mapped, tensors
from ..programs import Program
from ..training.options import Mode
from ..training.step.graph import Outputs
from ..training.step.tracing import Traced
from .density import Density, FlatGuide
from .particles import Encoded, draw_again, one_pass


class LogWeights:
    """log p(x, z) - log q(z|x) of fresh draws for a block of examples, traced to a graph where that pays.

    Args:
        model, guide: the programs.
        mode: as in ``tracing.Traced``; a guide that differs from block to block by more than tensors must be ``"eager"``.
    """

    def __init__(self, model: Program, guide: Program, mode: Mode = "auto"):
        self.model, self.block, self.is_fixed = model, None, False
        self.traced = Traced(self._of, [model, guide], mode)

    def expect(self, calls: int):
        """Set the total number of calls, once it is known."""
        self.traced.calls = self.traced.calls or calls

    def __call__(self, block: Encoded, k: int) -> Tensor:
        """``(k, B)``, float64."""
        site = block.site
        if block is not self.block:  # whether a graph would keep something of the block
            self.block, self.is_fixed = block, bool(site) and (isinstance(site["mask"], Tensor) or holds_closure(site["fn"]))
        parameters = tensors(site["fn"]) if site else []
        run = self._of if self.is_fixed else self.traced
        return run(torch.Size((k, len(parameters))), *parameters, *block.args)[0]

    def _of(self, sizes: torch.Size, *values: Tensor) -> Outputs:
        """The same as a function of tensors: the ``sizes[1]`` parameters of the guide's distribution, then the data."""
        k, n = sizes
        block, left = self.block, iter(values[:n])
        guide = block.guide
        if block.site:
            fn = mapped(block.site["fn"], lambda _: next(left))
            guide = lambda *_: draw_again(block.site, fn)  # noqa: E731
        return Outputs([one_pass(self.model, guide, values[n:], block.rows, k, block.nesting, block.plate).log_weights()])


class FlatLogWeights:
    """log p(x, u) - log q(u) of fresh draws from a ``FlatGuide``; only log p(x, u) becomes a graph.

    Args:
        model: the model.
        mode: as in ``tracing.Traced``.
    """

    def __init__(self, model: Program, mode: Mode = "auto"):
        self.density: Density | None = None
        self.traced = Traced(self._of, [model], mode)

    def expect(self, calls: int):
        """Set the total number of calls, once it is known."""
        self.traced.calls = self.traced.calls or calls

    def __call__(self, block: Encoded, k: int) -> Tensor:
        """``(k, B)``, float64."""
        source = next(each for each in programs.wrapped(block.source) if isinstance(each, FlatGuide))
        self.density = source.density
        u, log_q = source.sample_and_log_prob(k)
        bounds = tensors(list(self.density.transforms.values()))  # a graph would keep their values
        log_joint = (self._of if bounds else self.traced)(u, *block.args)[0]
        return log_joint - log_q

    def _of(self, u: Tensor, *args: Tensor) -> Outputs:
        return Outputs([self.density.on(args).log_joint(u)])
