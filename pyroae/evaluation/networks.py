"""The networks that a program calls: their outputs, read or replaced."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.func import jvp

from .. import programs
from ..programs import Program
from .density import Density

_PROBE = 3  # particles that show how outputs are laid out


class Networks:
    """The outermost calls of modules in a program that return a tensor, other than calls of the program itself.

    Calls are numbered in the order in which they begin.

    Args:
        program: the model.
    """

    def __init__(self, program: Program):
        self.own = programs.modules(program)
        self.kept: list[int] | None = None  # the calls whose outputs depend on u

    def outputs(self, density: Density, u: Tensor) -> list[Tensor]:
        """The outputs that depend on u; none where one of them does not keep particles and examples apart."""
        if self.kept is None:
            self.kept = self._depending(density, u[:1].repeat(_PROBE, 1, 1))
        calls = self._calls(density, u)
        return [calls[number] for number in self.kept]

    @contextlib.contextmanager
    def replaced(self, outputs: tuple[Tensor, ...]) -> Iterator[None]:
        """Within the context those calls return ``outputs``; they still run, on detached arguments, so that no derivative passes."""
        values, running, count = dict(zip(self.kept, outputs)), [], iter(range(10**9))

        def begin(module: nn.Module, args: tuple):
            running.append(next(count))
            return tuple(a.detach() if isinstance(a, Tensor) else a for a in args) if running[-1] in values else None

        with _hooks(begin, lambda *_: values.get(running.pop())):
            yield

    def _depending(self, density: Density, u: Tensor) -> list[int]:
        numbers: list[int] = []

        def outputs(u: Tensor) -> tuple[Tensor, ...]:
            calls = {number: output for number, output in self._calls(density, u).items() if output.is_floating_point()}
            numbers[:] = calls
            return (u.clone(), *(output.clone() for output in calls.values()))

        _, (_, *tangents) = jvp(outputs, (u,), (torch.rand_like(u),))
        moved = {number: tangent for number, tangent in zip(numbers, tangents) if bool(tangent.any())}
        sound = all(apart(tangent, len(u), density) or len(tangent) == len(u) * density.n for tangent in moved.values())
        return list(moved) if sound else []

    def _calls(self, density: Density, u: Tensor) -> dict[int, Tensor]:
        """The outputs of all such calls."""
        outputs: dict[int, Tensor] = {}
        running: list[int] = []
        count = iter(range(10**9))

        def begin(*_):
            running.append(next(count))

        def end(module: nn.Module, _, output):
            number = running.pop()
            if isinstance(output, Tensor) and not any(module is program for program in self.own):
                for inner in [other for other in outputs if other > number]:
                    del outputs[inner]
                outputs[number] = output

        with _hooks(begin, end):
            density.run(u)
        return outputs


def apart(output: Tensor, particles: int, density: Density) -> bool:
    """Whether particles and examples have dimensions of their own, rather than one together."""
    return output.dim() > density.nesting and output.shape[0] == particles and output.shape[density.nesting] == density.n


@contextlib.contextmanager
def _hooks(begin, end) -> Iterator[None]:
    """Hooks on every module's forward."""
    hooks = [nn.modules.module.register_module_forward_pre_hook(begin), nn.modules.module.register_module_forward_hook(end)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
