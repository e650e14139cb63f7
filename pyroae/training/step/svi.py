"""``SVI``: Pyro's stochastic variational inference with traced and compiled steps."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

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
from ..precision import PrecisionByRows
from .arguments import micro_batches, rows_of
from .graph import Outputs, all_of, sum_of
from .recording import Recorder
from .repeating import own_losses, repeat_of
from .tracing import Traced
from .updates import InvalidValuesError, StepInfo, Update, clear_gradients, names_in_store

_LOG = logging.getLogger("pyroae")
_NO_OPTIMIZER = pyro.optim.SGD({"lr": 0.0})  # Pyro's constructor requires one of its own optimizers
_NOT_PICKLED = {
    *("scheduled", "differentiable", "_update", "_is_plain", "_gradients", "_losses", "_recorder", "_repeat", "_is_unchanged"),
    *("_replayed", "_last_parameters", "_dtypes", "_precision", "on_new_parameter", "_warned"),
}
Loss = float | Tensor | tuple


class SVI(pyro.infer.SVI):
    """A faster ``pyro.infer.SVI`` with the same arguments, attributes, methods, results and random numbers.

    Loss and gradients are one graph of tensor operations, without Python, Pyro's handlers or the autograd engine
    (``tracing.Traced``). When compiled for a CPU, Adam (torch's, Pyro's, or ClippedAdam) is part of it. On CUDA the
    whole step, including torch optimizers, is one CUDA graph. A program that cannot be traced, for example because it
    branches on tensor values, runs eagerly, and the reason is logged once.

    A step waits while another thread takes one, calls ``pa.fit`` or evaluates. Between steps random numbers are shared,
    so run seeded training loops in several threads one after the other.

    Args:
        model: a Pyro program.
        guide: its guide.
        optim: one of ``pyro.optim``, which updates every parameter that the programs use from Pyro's store; or a
            torch optimizer, which updates its own parameters only.
        loss: a Pyro ELBO, or a function ``loss(model, guide, *args, **kwargs)``.
        loss_and_grads, num_samples, num_steps: as in ``pyro.infer.SVI``.
        compile: ``"auto"``, ``"eager"``, ``"traced"`` or ``"compiled"``, or a ``pa.Step`` with precision, gradient clipping and
            micro-batches.
        sync: ``True`` returns losses as Python numbers, as Pyro does; ``False`` as tensors, without synchronizing a GPU.
        steps: number of steps to come, if known: ``"auto"`` then builds graphs immediately if they repay their cost.

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
        is_torch = isinstance(optim, Optimizer)
        super().__init__(model, guide, _NO_OPTIMIZER if is_torch else optim, loss, loss_and_grads, num_samples, num_steps, **kwargs)
        self.elbo = loss if isinstance(loss, ELBO) else None
        self.options, self.sync, self.steps = Step.of(compile), sync, steps
        self.optim = optim

    def _setup(self):
        """Create everything that is not pickled."""
        self.scheduled = self.elbo if isinstance(self.elbo, Objective) else None
        differentiates = isinstance(self.optim, Optimizer) and hasattr(self.elbo, "differentiable_loss")
        self._last_parameters: list[Tensor] = []  # of the last step
        self.differentiable = self.scheduled is not None or differentiates
        self._update = Update(self.optim, self.sync)
        if self.scheduled is not None and self.parameters:
            self.scheduled.to(self.parameters[0].device)
        # whether the optimizer's step directly follows the gradients
        self._is_plain = self.options.clip is None and self.options.accumulate == 1 and distributed.world_size() == 1
        mode = self.options.compile
        self._gradients = Traced(self._loss_and_gradients, [self], mode, self.steps, self._update if self._is_plain else None)
        self._losses = Traced(self._loss_only, [self], mode, budget=self._gradients.budget)
        self._recorder = Recorder(self.optim)
        self._is_unchanged, self._repeat = False, None  # in ``unchanged``: what repeats the last step
        self._replayed: tuple | None = None  # specializations and CUDA graph of the last step, if it was one
        self._dtypes: dict[str, torch.dtype] = {}
        self._precision = PrecisionByRows(self.options.precision)
        self.on_new_parameter: Callable[[str, Tensor], Any] = self._warn_new_parameter  # for one that a torch optimizer lacks
        self._warned: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in _NOT_PICKLED}

    def __setstate__(self, state: dict[str, Any]):
        vars(self).update(state)
        self._setup()

    @property
    def optim(self) -> PyroOptim | Optimizer:
        """The optimizer; replacing it discards all graphs."""
        return self._optim

    @optim.setter
    def optim(self, optim: PyroOptim | Optimizer):
        self._optim = optim
        if "options" in vars(self):  # not in Pyro's constructor
            self._setup()

    @property
    def parameters(self) -> list[Tensor]:
        """Trained parameters: those of a torch optimizer, or those of the last step."""
        return self._update.parameters() if isinstance(self.optim, Optimizer) else self._last_parameters

    def step(self, *args, **kwargs) -> Loss:
        """Take an optimizer step.

        Returns:
            The loss before the step, in nats summed over the batch (over all processes of ``pa.distributed``): a number,
            or a tuple if the ELBO returns one; tensors if ``sync=False``.

        Raises:
            ValueError: Pyro's validation failed, if it is enabled; no parameter has changed.
        """
        is_repeated, self._replayed = False, None
        with one_at_a_time():
            try:
                outputs = self._repeat(args) if self._repeat and not kwargs else None
                is_repeated = outputs is not None
                if outputs is None:
                    if self._update.was_extended():
                        self._gradients.forget()
                        self._recorder.forget()
                    with self.precision_of(args):
                        outputs = self._replay(args) if _on_gpu(args) and not kwargs and self._recorder.ready() else None
                        if outputs is None:
                            self._update.stash_gradients(self.parameters)
                            outputs = self._gradients(*args, **kwargs) if self._is_plain else self._micro_batch_step(args, kwargs)
            except InvalidValuesError:  # the program raises an error that names the invalid values
                with self.precision_of(args):
                    outputs = self._gradients.run_eagerly(*args, **kwargs)
            if self._update.is_pyro:
                self._last_parameters = self._update.parameters(outputs.info)
        if self._is_unchanged and not is_repeated:
            self._repeat = None if kwargs else repeat_of(self, args, self._replayed)
        if self.scheduled is not None:
            self.scheduled.advance()
        return self._format(outputs)

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """A context in which nobody changes programs, settings or the optimizer between two steps.

        What a compiled graph depends on is compared at its first step only, so that those of a small model take half the time.

        >>> import pyro, pyroae as pa
        >>> svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), loss=pyro.infer.Trace_ELBO())
        >>> with svi.unchanged():
        ...     losses = [svi.step(x) for x in torch.rand(320, 16).round().split(32)]
        """
        self._is_unchanged = True
        try:
            yield
        finally:
            self._is_unchanged, self._repeat = False, None

    def evaluate_loss(self, *args, **kwargs) -> Loss:
        """The loss without a step, in the format of ``step``."""
        with one_at_a_time(), self.precision_of(args):
            outputs = self._losses(*args, **kwargs)
            if self.sync and outputs.valid is not None and not outputs.valid:
                outputs = self._losses.run_eagerly(*args, **kwargs)
        return self._format(outputs)

    def gradients(self, *args, **kwargs) -> tuple[Tensor, list[Tensor | None]]:
        """Loss and gradients of ``parameters``, computed by the program; no step is taken."""
        outputs = self._loss_and_gradients(*args, **kwargs)
        loss, *gradients = distributed.all_reduce(outputs[0], *outputs[outputs.info.losses :])
        return loss, gradients

    def valid(self) -> bool:
        """Whether validation has succeeded in all steps so far; synchronizes with the device. For ``sync=False``."""
        return self._update.valid is None or bool(self._update.valid)

    # --- graphs ---

    def announce_to(self, listener: Callable[[str], Any]):
        """Call a listener with ``"traced"``, ``"compiled"``, ``"loaded"`` or ``"elsewhere"`` (another process) before a graph is built."""
        self._gradients.announce = listener

    def levels(self) -> dict[str, list]:
        """Rows, level and runs of every specialization of steps and of losses."""
        return {"step": self._gradients.levels(), "loss": self._losses.levels()}

    def rebuild_graph(self, function: str, level: int, runs: int, *args):
        """Rebuild a graph of the ``"step"`` or the ``"loss"`` for such arguments; load weights and state afterwards."""
        with self.precision_of(args):
            (self._gradients if function == "step" else self._losses).rebuild(level, runs, *args)
        self._update.was_extended()  # a program that has run may have given the optimizer a parameter

    def forget(self):
        """Discard CUDA graphs, which fix addresses; call it after replacing parameters or the optimizer's state."""
        self._recorder.forget()
        self._repeat = None
        self._update.valid = None

    # --- a step ---

    def _replay(self, args: tuple) -> Outputs | None:
        """A step as one CUDA graph, or two if the host acts between gradients and update; ``None`` if not possible yet."""
        specs = tuple(self._gradients.finalized(*some) for some, _ in micro_batches(args, {}, self.options.accumulate))
        has_gradients = any(parameter.grad is not None for parameter in self.parameters)  # to be added to those of this step
        if has_gradients or not all(specs):
            return None
        for spec in set(specs):
            spec.runs += 1
        key = tuple((spec, *spec.pointers) for spec in specs)
        if distributed.world_size() == 1 and not (self.sync and specs[0].graph.checked):
            outputs = self._recorder(self._graph_step, key, *args)
            self._replayed = (specs, self._recorder.last) if self._recorder.last else None
            return own_losses(outputs)
        outputs = _total(self._recorder(self._graph_sums, key, *args))
        self._update.check(outputs)
        self._recorder(self._optimize, key, outputs.info, *outputs)
        return outputs

    def _micro_batch_step(self, args: tuple, kwargs: dict) -> Outputs:
        """A step with gradients summed over micro-batches and processes, and clipped."""
        outputs = _total(self._sums(self._gradients, args, kwargs))
        self._update.check(outputs)
        self._optimize(outputs.info, *outputs)
        return outputs

    def _graph_step(self, *args) -> Outputs:
        """A step of graphs only."""
        outputs = self._graph_sums(*args)
        self._update.check(outputs)
        return self._optimize(outputs.info, *outputs)

    def _graph_sums(self, *args) -> Outputs:
        return self._sums(self._gradients.run_graph, args, {})

    def _sums(self, run: Callable[..., Outputs], args: tuple, kwargs: dict) -> Outputs:
        """Losses and gradients summed over micro-batches; with clipping also the number of rows."""
        parts = [run(*some, **named) for some, named in micro_batches(args, kwargs, self.options.accumulate)]
        sums = [sum_of([tensor for tensor in column if tensor is not None]) for column in zip(*parts)]
        if self.options.clip is not None:
            sums.append(sums[0].new_full((), rows_of(args, kwargs)))
        return Outputs(sums, parts[0].info, all_of([part.valid for part in parts]))

    def _optimize(self, info: StepInfo, *sums: Tensor | None) -> Outputs:
        """Clip summed gradients and take the optimizer's step."""
        self._update.set_gradients(Outputs(sums, info))
        if self.options.clip is not None:
            gradients = [p.grad for p in self._update.parameters(info) if p.grad is not None]
            max_norm, norm = self.options.clip * sums[-1], torch.nn.utils.get_total_norm(gradients)
            torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0).to(norm.dtype))
        self._update.step(info)
        return Outputs(sums[: info.losses], info)

    def _loss_and_gradients(self, *args, **kwargs) -> Outputs:
        before = () if self._update.is_pyro else set(pyro.get_param_store()._params)
        with poutine.trace(param_only=True) as tape:
            if self.differentiable:
                with torch.enable_grad():
                    loss = self.elbo.differentiable_loss(self.model, self.guide, *args, **kwargs)
                    loss.backward()
            else:
                loss = self.loss_and_grads(self.model, self.guide, *args, **kwargs)
        used = {name: site["value"].unconstrained() for name, site in tape.trace.nodes.items()}
        names: tuple[str, ...] = ()
        if self._update.is_pyro:
            names = names_in_store(used)
        else:
            self._report_new_parameters({name: parameter for name, parameter in used.items() if name not in before})
        losses, container = self._detach("step", loss)
        info = StepInfo(len(losses), container, names)
        gradients = [parameter.grad for parameter in self._update.parameters(info)]
        self._clear_gradients(used, info)
        return Outputs([*losses, *gradients], info)

    def _loss_only(self, *args, **kwargs) -> Outputs:
        with torch.no_grad():
            losses, container = self._detach("loss", self.loss(self.model, self.guide, *args, **kwargs))
        return Outputs(losses, StepInfo(len(losses), container, ()))

    def _detach(self, function: str, loss: Any) -> tuple[list[Tensor], type | None]:
        """Losses as detached tensors of the dtype of the first call, and the type of their tuple."""
        values = loss if isinstance(loss, tuple) else (loss,)
        losses = [v.detach() if isinstance(v, Tensor) else torch.scalar_tensor(float(v), dtype=torch.float64) for v in values]
        dtype = self._dtypes.setdefault(function, losses[0].dtype)  # the first call never runs as a graph
        return [v if v.dtype == dtype else v.to(dtype) for v in losses], type(loss) if isinstance(loss, tuple) else None

    def _clear_gradients(self, used: dict[str, Tensor], info: StepInfo):
        """Clear the gradients of everything that the backward pass reached."""
        clear_gradients(getattr(program, "__self__", program) for program in (self.model, self.guide))
        for parameter in (*used.values(), *self._update.parameters(info)):
            parameter.grad = None

    def _report_new_parameters(self, new: dict[str, Tensor]):
        """Report parameters that this step has created in Pyro's store and that the torch optimizer lacks."""
        owned = {id(p) for root in self._gradients.roots if isinstance(root, torch.nn.Module) for p in root.parameters()}
        owned |= {id(parameter) for parameter in self.parameters}
        for name, parameter in new.items():
            if id(parameter) not in owned and "$$$" not in name:
                self.on_new_parameter(name, parameter)

    def _warn_new_parameter(self, name: str, parameter: Tensor):
        if name not in self._warned:
            self._warned.add(name)
            _LOG.warning("SVI: the parameter %r was created in a step and is not in the optimizer, so it is not trained", name)

    def _format(self, outputs: Outputs) -> Loss:
        losses, container = outputs[: outputs.info.losses], outputs.info.container
        if self.sync:
            losses = [loss.item() for loss in losses]
        return losses[0] if container is None else container(losses)

    def precision_of(self, args: tuple) -> contextlib.AbstractContextManager:
        """A context with the precision of matrix products of a step."""
        return self._precision(args, self.parameters)


def _on_gpu(args: tuple) -> bool:
    return any(isinstance(a, Tensor) and a.is_cuda for a in args)


def _total(outputs: Outputs) -> Outputs:
    """Outputs summed over processes."""
    return Outputs(distributed.all_reduce(*outputs), outputs.info, outputs.valid)
