"""``SVI``: Pyro's stochastic variational inference, whose step runs the programs' Python only once."""

import contextlib
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro.optim
import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from torch import Tensor
from torch.optim import Optimizer

from ...objectives.base import Objective
from ...programs import Program
from ...threads import one_at_a_time
from .. import distributed
from ..options import Mode, Step
from ..precision import multiplying, resolved
from .graph import Outputs
from .recording import Recorder
from .tracing import Traced
from .updates import InvalidValuesError, Update, clear_gradients

_LOG = logging.getLogger("pyroae")
_UNUSED = pyro.optim.SGD({"lr": 0.0})  # stands where Pyro's constructor wants one of its own optimizers
_MADE = {
    *("scheduled", "differentiable", "_update", "_updates_at_once", "_gradients", "_losses", "_recorder"),
    *("_known", "_dtypes", "_precisions", "late", "_named"),
}
Loss = float | Tensor | tuple


class StepInfo(NamedTuple):
    """What the outputs of a step are: so many losses, given as ``kind``; then gradients, of Pyro's parameters ``names``."""

    losses: int
    kind: type | None  # of the tuple in which an ELBO gives several losses
    names: tuple[str, ...]


class SVI(pyro.infer.SVI):
    """``pyro.infer.SVI`` with the same arguments, attributes, methods and results, from the same random numbers, faster.

    Loss and gradients become one graph of tensor operations, without Python, Pyro's handlers or the autograd engine
    (``tracing.Traced``). Once it is compiled for a CPU, Adam (torch's, Pyro's, or ClippedAdam) is a part of it. On CUDA the
    whole step, that of torch's optimizers included, is one CUDA graph. A program that cannot be traced, such as one that
    branches on the values of tensors, runs eagerly, and the log says why, once.

    A step waits while another thread takes one, calls ``pa.fit`` or evaluates. Between steps the random numbers belong to
    whoever draws next, so seeded loops of your own in several threads have to run one after the other.

    Args:
        model: a Pyro program.
        guide: its guide.
        optim: one of ``pyro.optim``, which takes a step for every parameter that the programs ask Pyro's store for; or a
            torch optimizer, one step for all of its own parameters, and for no others.
        loss: a Pyro ELBO, or a function ``loss(model, guide, *args, **kwargs)``.
        loss_and_grads, num_samples, num_steps: as in ``pyro.infer.SVI``.
        compile: ``"auto"``, ``"eager"``, ``"traced"`` or ``"compiled"``, or a ``pa.Step`` with precision, gradient clipping and
            micro-batches too.
        sync: ``True`` gives losses as Python's numbers, as Pyro does; ``False`` as tensors, so that nothing waits for a GPU.
        steps: how many will be taken, where that is known: ``"auto"`` makes graphs at once where they repay it.

    >>> import pyro, pyroae as pa
    >>> svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), loss=pyro.infer.Trace_ELBO())
    >>> type(svi.step(torch.rand(32, 16).round())).__name__
    'float'
    """

    read_by_programs = "model", "guide", "elbo", "loss", "loss_and_grads"

    def __init__(
        self,
        model: Program,
        guide: Program,
        optim: PyroOptim | Optimizer,
        loss: ELBO | Callable[..., Any],
        loss_and_grads: Callable[..., Any] | None = None,
        num_samples: int = 0,
        num_steps: int = 0,
        *,
        compile: Mode | Step = "auto",
        sync: bool = True,
        steps: int | None = None,
        **kwargs,
    ):
        torchs = isinstance(optim, Optimizer)
        super().__init__(model, guide, _UNUSED if torchs else optim, loss, loss_and_grads, num_samples, num_steps, **kwargs)
        self.elbo = loss if isinstance(loss, ELBO) else None
        self.options, self.sync, self.steps = Step.of(compile), sync, steps
        self.optim = optim

    def _begin(self):
        """Everything that is made from the arguments and not kept when the object is pickled."""
        self.scheduled = self.elbo if isinstance(self.elbo, Objective) else None
        differentiates = isinstance(self.optim, Optimizer) and hasattr(self.elbo, "differentiable_loss")
        self._known: list[Tensor] = []  # the parameters of the last step
        self.differentiable = self.scheduled is not None or differentiates
        self._update = Update(self.optim, self.sync)
        if self.scheduled is not None and self.parameters:
            self.scheduled.to(self.parameters[0].device)
        plain = self.options.clip is None and self.options.accumulate == 1 and distributed.world_size() == 1
        self._updates_at_once = plain  # nothing happens to gradients before the optimizer takes its step
        mode = self.options.compile
        self._gradients = Traced(self._loss_and_gradients, [self], mode, self.steps, self._update if plain else None)
        self._losses = Traced(self._loss_alone, [self], mode, budget=self._gradients.budget)
        self._recorder = Recorder(self.optim)
        self._dtypes: dict[str, torch.dtype] = {}
        self._precisions: dict[int, str] = {}  # by rows
        self.late: Callable[[str, Tensor], Any] = self._name_late  # called with a parameter that a torch optimizer lacks
        self._named: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in _MADE}

    def __setstate__(self, state: dict[str, Any]):
        vars(self).update(state)
        self._begin()

    @property
    def optim(self) -> PyroOptim | Optimizer:
        """The optimizer; where another takes its place, graphs are made anew."""
        return self._optim

    @optim.setter
    def optim(self, optim: PyroOptim | Optimizer):
        self._optim = optim
        if "options" in vars(self):  # not yet in Pyro's constructor
            self._begin()

    @property
    def parameters(self) -> list[Tensor]:
        """What the optimizer changes: a torch optimizer's own parameters, or those of the last step."""
        return self._update.parameters() if isinstance(self.optim, Optimizer) else self._known

    def step(self, *args, **kwargs) -> Loss:
        """Take an optimizer step.

        Returns:
            The loss before it, in nats summed over the batch (of all processes of ``pa.distributed``): a number, or a tuple
            where the ELBO gives one; tensors with ``sync=False``.

        Raises:
            ValueError: what Pyro's validation refuses, while it is enabled; then no parameter has changed.
        """
        with one_at_a_time(), self._precision_of(args):
            try:
                outputs = self._replay(args) if _on_gpu(args) and not kwargs and self._recorder.ready() else None
                if outputs is None:
                    self._update.stash(self.parameters)
                    outputs = self._gradients(*args, **kwargs) if self._updates_at_once else self._step_by_parts(args, kwargs)
            except InvalidValuesError:  # the program's own error names what is invalid
                outputs = self._gradients.eager(*args, **kwargs)
        if self._update.pyros:
            self._known = self._update.parameters(outputs.info)
        if self.scheduled is not None:
            self.scheduled.advance()
        return self._returned(outputs)

    def evaluate_loss(self, *args, **kwargs) -> Loss:
        """The loss without a step, given as ``step`` gives it."""
        with one_at_a_time(), self._precision_of(args):
            outputs = self._losses(*args, **kwargs)
            if self.sync and outputs.valid is not None and not outputs.valid:
                outputs = self._losses.eager(*args, **kwargs)
        return self._returned(outputs)

    def gradients(self, *args, **kwargs) -> tuple[Tensor, list[Tensor | None]]:
        """The loss, and the gradients of ``parameters``, of the program itself; no step is taken."""
        outputs = self._loss_and_gradients(*args, **kwargs)
        loss, *gradients = distributed.all_reduce(outputs[0], *outputs[outputs.info.losses :])
        return loss, gradients

    def valid(self) -> bool:
        """Whether validation has found nothing wrong in the steps so far; waits for the device. For ``sync=False``."""
        return self._update.valid is None or bool(self._update.valid)

    # --- graphs ---

    def announce_to(self, listener: Callable[[str], Any]):
        """Call the listener with ``"traced"`` or ``"compiled"`` before such a graph of the step is made."""
        self._gradients.announce = listener

    def levels(self) -> dict[str, list]:
        """The graphs of steps and of losses: for each kind of call its rows, its level and its calls."""
        return {"step": self._gradients.levels(), "loss": self._losses.levels()}

    def rebuild_graph(self, kind: str, level: int, runs: int, *args):
        """Rebuild a graph of the ``"step"`` or of the ``"loss"`` for such arguments; load weights and state afterwards."""
        with self._precision_of(args):
            (self._gradients if kind == "step" else self._losses).rebuild(level, runs, *args)

    def forget(self):
        """To be called when parameters and the optimizer's state were replaced: CUDA graphs know the old ones."""
        self._recorder.forget()
        self._update.valid = None

    # --- a step ---

    def _replay(self, args: tuple) -> Outputs | None:
        """A step by one CUDA graph, or two where the host does something between gradients and update; ``None`` where that cannot be."""
        kinds = tuple(self._gradients.settled(*part) for part in self._parts(args))
        added = any(parameter.grad is not None for parameter in self.parameters)  # gradients that are added to this step's own
        if added or not all(kinds):
            return None
        for kind in set(kinds):
            kind.runs += 1
        places = tuple((kind, *kind.pointers) for kind in kinds)
        if distributed.world_size() == 1 and not (self.sync and kinds[0].graph.checked):
            outputs = self._recorder(self._whole, places, *args)
            return Outputs([loss.clone() for loss in outputs], outputs.info)
        outputs = _total(self._recorder(self._summed, places, *args))
        self._update.check(outputs)
        self._recorder(self._follow, places, outputs.info, *outputs)
        return outputs

    def _step_by_parts(self, args: tuple, kwargs: dict) -> Outputs:
        """A step whose gradients are summed over micro-batches and processes, and clipped, before the optimizer's."""
        outputs = _total(self._sums(self._gradients, args, kwargs))
        self._update.check(outputs)
        self._follow(outputs.info, *outputs)
        return outputs

    def _whole(self, *args) -> Outputs:
        """A step of graphs alone."""
        outputs = self._summed(*args)
        self._update.check(outputs)
        return self._follow(outputs.info, *outputs)

    def _summed(self, *args) -> Outputs:
        return self._sums(self._gradients.graphed, args, {})

    def _sums(self, run: Callable[..., Outputs], args: tuple, kwargs: dict) -> Outputs:
        """Losses and gradients summed over micro-batches; where gradients are clipped, also the number of rows."""
        parts = [run(*part, **kwargs) for part in self._parts(args)]
        sums = [_sum([each for each in column if each is not None]) for column in zip(*parts)]
        if self.options.clip is not None:
            sums.append(sums[0].new_full((), next(len(a) for a in args if isinstance(a, Tensor))))
        return Outputs(sums, parts[0].info, _all([part.valid for part in parts]))

    def _follow(self, info: StepInfo, *sums: Tensor | None) -> Outputs:
        """The optimizer's step with summed gradients, clipped."""
        self._update.give(Outputs(sums, info))
        if self.options.clip is not None:
            gradients = [p.grad for p in self._update.parameters(info) if p.grad is not None]
            longest, norm = self.options.clip * sums[-1], torch.nn.utils.get_total_norm(gradients)
            torch._foreach_mul_(gradients, (longest / (norm + 1e-6)).clamp(max=1.0).to(norm.dtype))
        self._update.follow(info)
        return Outputs(sums[: info.losses], info)

    def _parts(self, args: tuple) -> list[tuple]:
        if self.options.accumulate == 1:
            return [args]
        return list(zip(*(a.chunk(self.options.accumulate) if isinstance(a, Tensor) else [a] * self.options.accumulate for a in args)))

    def _loss_and_gradients(self, *args, **kwargs) -> Outputs:
        known = () if self._update.pyros else set(pyro.get_param_store()._params)
        with poutine.trace(param_only=True) as tape:
            if self.differentiable:
                with torch.enable_grad():
                    loss = self.elbo.differentiable_loss(self.model, self.guide, *args, **kwargs)
                    loss.backward()
            else:
                loss = self.loss_and_grads(self.model, self.guide, *args, **kwargs)
        asked = {name: site["value"].unconstrained() for name, site in tape.trace.nodes.items()}
        names: tuple[str, ...] = ()
        if self._update.pyros:
            names = _names(asked)
        else:
            self._find_late({name: parameter for name, parameter in asked.items() if name not in known})
        losses, kind = self._tensors("step", loss)
        info = StepInfo(len(losses), kind, names)
        gradients = [parameter.grad for parameter in self._update.parameters(info)]
        self._clear_gradients(asked, info)
        return Outputs([*losses, *gradients], info)

    def _loss_alone(self, *args, **kwargs) -> Outputs:
        with torch.no_grad():
            losses, kind = self._tensors("loss", self.loss(self.model, self.guide, *args, **kwargs))
        return Outputs(losses, StepInfo(len(losses), kind, ()))

    def _tensors(self, what: str, loss: Any) -> tuple[list[Tensor], type | None]:
        """Losses as detached tensors, of the type that the program itself gives, and the type of the tuple that they came in."""
        values = loss if isinstance(loss, tuple) else (loss,)
        found = [v.detach() if isinstance(v, Tensor) else torch.scalar_tensor(float(v), dtype=torch.float64) for v in values]
        dtype = self._dtypes.setdefault(what, found[0].dtype)  # set by the first call, which no graph runs
        return [each if each.dtype == dtype else each.to(dtype) for each in found], type(loss) if isinstance(loss, tuple) else None

    def _clear_gradients(self, asked: dict[str, Tensor], info: StepInfo):
        """No gradient stays on anything that the backward pass reached."""
        clear_gradients(getattr(program, "__self__", program) for program in (self.model, self.guide))
        for parameter in (*asked.values(), *self._update.parameters(info)):
            parameter.grad = None

    def _find_late(self, made: dict[str, Tensor]):
        """Report parameters that this step made in Pyro's store and that the torch optimizer does not have."""
        owned = {id(p) for root in self._gradients.roots if isinstance(root, torch.nn.Module) for p in root.parameters()}
        owned |= {id(parameter) for parameter in self.parameters}
        for name, parameter in made.items():
            if id(parameter) not in owned and "$$$" not in name:
                self.late(name, parameter)

    def _name_late(self, name: str, parameter: Tensor):
        if name not in self._named:
            self._named.add(name)
            _LOG.warning("SVI: the parameter %r was made in a step and is not in the optimizer, so it is not trained", name)

    def _returned(self, outputs: Outputs) -> Loss:
        losses, kind = outputs[: outputs.info.losses], outputs.info.kind
        if self.sync:
            losses = [loss.item() for loss in losses]
        return losses[0] if kind is None else kind(losses)

    def _precision_of(self, args: tuple) -> contextlib.AbstractContextManager:
        """The precision of matrix products inside; chosen once for each number of rows."""
        if self.options.precision is None:
            return contextlib.nullcontext()
        rows = next((a.shape[0] for a in args if isinstance(a, Tensor) and a.dim()), 1)
        if rows not in self._precisions and self.parameters:
            self._precisions[rows] = resolved(self.options.precision, self.parameters, rows)
        return multiplying(self._precisions.get(rows, "highest"), self.parameters)


def _names(asked: dict[str, Tensor]) -> tuple[str, ...]:
    """The names of parameters as Pyro's store has them after a run, each parameter once."""
    params = pyro.get_param_store()._params
    named = {id(parameter): name for name, parameter in reversed(asked.items()) if params.get(name) is parameter}
    return tuple(reversed(named.values()))


def _on_gpu(args: tuple) -> bool:
    return any(isinstance(a, Tensor) and a.is_cuda for a in args)


def _total(outputs: Outputs) -> Outputs:
    """Summed over the processes."""
    return Outputs(distributed.all_reduce(*outputs), outputs.info, outputs.valid)


def _sum(tensors: list[Tensor]) -> Tensor | None:
    return sum(tensors[1:], tensors[0]) if tensors else None


def _all(valid: list[Tensor | None]) -> Tensor | None:
    found = [each for each in valid if each is not None]
    return torch.stack(found).all() if found else None
