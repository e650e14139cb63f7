"""``SVI``: Pyro's stochastic variational inference, whose step runs the programs' Python only once."""

from collections.abc import Callable
from typing import Any

import torch
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from torch import Tensor
from torch.optim import Optimizer

from ... import programs
from ...objectives.base import Objective
from ...programs import Program
from .. import distributed
from .recording import Recorder
from .sync_free import without_sync
from .tracing import Mode, Traced
from .updates import Update


class SVI:
    """Takes optimisation steps for a (model, guide), as ``pyro.infer.SVI`` does, faster.

    Loss and gradients become one graph of tensor operations, without Python, Pyro's handlers or the autograd engine (see
    ``tracing.Traced``). Once it is compiled for a CPU, torch's Adam or AdamW is a part of it. On CUDA the whole step, a
    ``capturable`` optimizer's included, is one CUDA graph. A program that cannot be traced, such as one that branches on the
    values of tensors, runs eagerly, and the log says why, once.

    Args:
        model: a Pyro program, best a module.
        guide: its guide.
        optimizer: a torch optimizer of their parameters, one fused step for all; or one of ``pyro.optim``, which takes a
            step for each parameter.
        elbo: any Pyro ELBO with a loss.
        compile: ``"auto"``, ``"eager"``, ``"traced"`` or ``"compiled"``.
        steps: how many will be taken, where that is known: ``"auto"`` compiles at once where they repay it.
        clip: the longest gradient of the loss a datum (of the batch's loss, divided by its rows) that is followed as it is;
            a longer one is shortened to that.
        accumulate: how many parts a batch is gone through in, each with the memory of a part, before the one step.

    >>> import pyro, pyroae as pa
    >>> vae = pa.Autoencoder(pa.priors.Normal(2), pa.likelihoods.Bernoulli(16), pa.posteriors.Normal(), pa.nets.MLP(8), pa.nets.MLP(8))
    >>> svi = SVI(vae.model, vae.guide, torch.optim.Adam(vae.parameters(), fused=True), pyro.infer.TraceMeanField_ELBO())
    >>> svi.step(torch.rand(32, 16).round()).shape
    torch.Size([])
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        optimizer: Optimizer | PyroOptim,
        elbo: ELBO,
        compile: Mode = "auto",
        steps: int | None = None,
        clip: float | None = None,
        accumulate: int = 1,
    ):
        self.clip, self.accumulate = clip, accumulate
        self.model, self.guide, self.optimizer = model, guide, optimizer
        self.elbo = without_sync(elbo)
        self.differentiable = hasattr(elbo, "differentiable_loss")
        self.scheduled = elbo if self.differentiable and isinstance(elbo, Objective) else None
        watched = [*programs.modules(model, guide), elbo]
        self._update = Update(optimizer)
        # alone: nothing happens to gradients before the optimizer follows them
        self._alone = clip is None and accumulate == 1 and distributed.processes() == 1
        self._gradients = Traced(self._loss_and_gradients, watched, compile, steps, self._update if self._alone else None)
        self._loss = Traced(self._loss_alone, watched, compile)
        self._recorder = Recorder(self._step, optimizer)
        self._found: list[Tensor] | None = None

    @property
    def parameters(self) -> list[Tensor]:
        """What the optimizer changes."""
        if isinstance(self.optimizer, Optimizer):
            return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        return self._found or []

    def step(self, *args) -> Tensor:
        """One step; the loss before it, summed over the batch (of all processes of ``pa.together``), left on the device."""
        if self._found is None:
            self._find(*args)
        on_cuda = any(isinstance(a, Tensor) and a.is_cuda for a in args)
        recorded = on_cuda and self._recorder.able and distributed.processes() == 1
        kinds = [self._gradients.settled(*part) for part in self._parts(args)] if recorded else [None]
        loss = self._recorder(tuple(kinds), *args) if all(kinds) else self._step(*args)
        if self.scheduled:
            self.scheduled.advance()
        return loss

    def _step(self, *args) -> Tensor:
        if self._alone:
            return self._gradients(*args)[0]
        first, *others = self._parts(args)
        loss, *gradients = self._gradients(*first)
        for part in others:
            more, *theirs = self._gradients(*part)
            loss, gradients = loss + more, [a if b is None else b if a is None else a + b for a, b in zip(gradients, theirs)]
        loss, *gradients = distributed.total(loss, *gradients)
        self._update.give([loss, *gradients])
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(self._found, self.clip * distributed.count(next(len(a) for a in args if isinstance(a, Tensor))))
        self._update.follow()
        return loss

    def _parts(self, args: tuple) -> list[tuple]:
        if self.accumulate == 1:
            return [args]
        return list(zip(*(a.chunk(self.accumulate) if isinstance(a, Tensor) else [a] * self.accumulate for a in args)))

    def announce_to(self, listener: Callable[[str], Any]):
        """Call the listener with ``"traced"`` or ``"compiled"`` before such a graph of the step is made."""
        self._gradients.announce = listener

    def levels(self) -> dict[str, list | None]:
        """How far the graphs of steps and of losses have come, for each number of rows."""
        return {"step": self._gradients.levels(), "loss": self._loss.levels()}

    def climb(self, what: str, level: int, *args):
        """Make the graph of the ``"step"`` or of the ``"loss"`` that such arguments have led to elsewhere; load what was learned then."""
        if self._found is None:
            self._find(*args)
        (self._gradients if what == "step" else self._loss).climb(level, *args)

    def forget_recordings(self):
        """For who has replaced the optimizer's state: a CUDA graph knows the old one."""
        self._recorder.recordings.clear()

    def evaluate_loss(self, *args) -> Tensor:
        """The loss without a step."""
        return self._loss(*args)[0]

    def _find(self, *args):
        """The parameters: a torch optimizer's own; one of Pyro's takes all that the programs ask for, in a run that leaves no mark."""
        if isinstance(self.optimizer, Optimizer):
            self._found = self.parameters
        else:
            with torch.no_grad(), torch.random.fork_rng():
                seen = programs.traces(self.model, self.guide, *args)
            self._found = programs.parameters(programs.modules(self.model, self.guide), seen)
        self._update.parameters = self._found
        if self.scheduled and self._found:
            self.scheduled.to(self._found[0].device)

    def _loss_and_gradients(self, *args) -> list[Tensor | None]:
        for parameter in self._found:
            parameter.grad = None
        with torch.enable_grad():
            if self.differentiable:
                loss = self.elbo.differentiable_loss(self.model, self.guide, *args)
                loss.backward()
            else:
                loss = self.elbo.loss_and_grads(self.model, self.guide, *args)
        return [_first(loss), *(parameter.grad for parameter in self._found)]

    def _loss_alone(self, *args) -> list[Tensor]:
        with torch.no_grad():
            return [_first(self.elbo.loss(self.model, self.guide, *args))]


def _first(loss) -> Tensor:
    """A loss as a tensor; ReweightedWakeSleep gives one for the model and one for the guide, of which the model's is the bound."""
    return torch.as_tensor(loss[0] if isinstance(loss, tuple) else loss).detach()
