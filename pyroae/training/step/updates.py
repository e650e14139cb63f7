"""The optimizer's step: by the optimizer, or as tensor operations inside a graph."""

import math
from collections.abc import Iterable
from itertools import chain
from operator import attrgetter, is_
from typing import Any, NamedTuple

import pyro
import torch
from pyro.optim import PyroOptim
from pyro.optim.clipped_adam import ClippedAdam
from pyro.optim.lr_scheduler import PyroLRScheduler
from pyro.optim.optim import is_scheduler
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer
from torch.optim import optimizer as torch_optimizer
from torch.utils.weak import WeakIdKeyDictionary

from .graph import Outputs

_STATE = "exp_avg", "exp_avg_sq", "max_exp_avg_sq"
_SETTINGS = "lr", "betas", "eps", "weight_decay", "clip_norm", "lrd", "maximize", "decoupled_weight_decay"
_NUMBERS = 10  # arguments of ``_adam``
_VERSION = attrgetter("_version")
_HAD_GRADIENT = WeakIdKeyDictionary()  # parameters that would keep a gradient of zeros in Pyro


class StepInfo(NamedTuple):
    """Layout of a step's outputs: ``losses`` losses, then gradients, for a Pyro optimizer of the entries ``names`` of its store."""

    losses: int
    container: type | None  # tuple type of an ELBO with several losses
    names: tuple[str, ...]


class InvalidValuesError(ValueError):
    """Validation failed in a graph, before the optimizer's step."""


Trained = tuple[Optimizer, dict[str, Any], Tensor, dict[str, Any]]  # optimizer, group, parameter, its state


class Update:
    """Takes an optimizer step with the gradients in the outputs ``[*losses, *gradients]`` of a step, and clears them.

    A torch optimizer updates its own parameters; one of Pyro's those that the programs use from Pyro's store, listed in
    ``outputs.info.names``. Of these, a parameter that has lost its gradient gets zeros, as in Pyro.

    Adam and AdamW on a CPU, and Pyro's Adam and ClippedAdam, can be part of a graph. It uses the optimizer's own state,
    and all numbers of its groups are inputs, so schedulers, ``state_dict`` and ``load_state_dict`` work as usual.

    Args:
        optimizer: torch's or Pyro's.
        sync: whether to check the result of validation before the step; otherwise it is accumulated in ``valid``.
    """

    def __init__(self, optimizer: Optimizer | PyroOptim, sync: bool = True):
        self.optimizer, self.sync = optimizer, sync
        self.valid: Tensor | None = None  # over all calls, if ``sync`` is false
        self.is_pyro = not isinstance(optimizer, Optimizer)
        self.extent = 0 if self.is_pyro else len(self.parameters())  # number of parameters that graphs know
        self.pending: dict[int, Tensor] = {}  # gradients from before the step, by id of the parameter
        self.with_gradient: list[Tensor] = []  # parameters with a gradient in the last step
        self.numbers = torch.empty(0, _NUMBERS)  # of the next step, for each parameter
        self.is_even = False  # whether the numbers of all parameters are the same
        self.counts, self.versions = [], None  # steps when the optimizer's counters were read, and their versions then
        self.steps_since = 0.0  # steps inside a graph since then
        self.last_containers: list[Any] = []  # the optimizer's containers at the last refresh
        self.trained: list[Trained] = []
        self.graph_key: tuple | None = None

    def parameters(self, info: Any = None) -> list[Tensor]:
        """Parameters in the order of the gradients in the outputs."""
        if not self.is_pyro:
            return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        params = pyro.get_param_store()._params
        return [params[name] for name in info.names] if info else []

    def __call__(self, outputs: Outputs) -> Outputs:
        self.check(outputs)
        self.set_gradients(outputs)
        self.step(outputs.info)
        return outputs

    def check(self, outputs: Outputs):
        """Check or accumulate the result of validation.

        Raises:
            InvalidValuesError: invalid values, if ``sync`` is true.
        """
        if outputs.valid is None:
            return
        if not self.sync:
            self.valid = outputs.valid.clone() if self.valid is None else self.valid.logical_and_(outputs.valid)
        elif not outputs.valid:
            raise InvalidValuesError

    def was_extended(self) -> bool:
        """Whether a torch optimizer was given parameters since this was last asked."""
        before, self.extent = self.extent, 0 if self.is_pyro else len(self.parameters())
        return self.extent != before

    def stash_gradients(self, parameters: list[Tensor]):
        """Remove existing gradients before a step; as in Pyro, they are added to those of the step."""
        for parameter in parameters:
            if parameter.grad is not None:
                self.pending[id(parameter)] = parameter.grad
                parameter.grad = None

    def set_gradients(self, outputs: Outputs):
        """Assign the gradients to the parameters."""
        for parameter, gradient in zip(self.parameters(outputs.info), outputs[outputs.info.losses :]):
            before = self.pending.pop(id(parameter), None) if self.pending else None
            parameter.grad = gradient if before is None else before if gradient is None else before + gradient
        self.pending.clear()

    def step(self, info: Any):
        """Take the optimizer's step and clear the gradients."""
        parameters = self.parameters(info)
        if not self.is_pyro:
            self.optimizer.step()
        else:
            self._fill_gradients(parameters)
            self.optimizer(parameters)
        for parameter in parameters:
            parameter.grad = None

    def _fill_gradients(self, parameters: list[Tensor]):
        """Zeros for parameters that have lost their gradient, which Pyro never removes."""
        with_gradient = [parameter for parameter in parameters if parameter.grad is not None]
        if len(with_gradient) == len(parameters) == len(self.with_gradient) and all(map(is_, with_gradient, self.with_gradient)):
            return
        self.with_gradient = with_gradient
        _HAD_GRADIENT.update((parameter, True) for parameter in with_gradient)
        for parameter in parameters:
            if parameter.grad is None and parameter in _HAD_GRADIENT:
                parameter.grad = torch.zeros_like(parameter)

    # --- inside a graph ---

    def key(self, info: Any) -> tuple | None:
        """Everything that a graph with this step fixes; ``None`` if the step cannot be in a graph."""
        self._refresh(info)
        return self.graph_key and (self.graph_key, *(_is_simple(optimizer, group) for optimizer, group in self.groups))

    def mutated(self, info: Any) -> list[Tensor]:
        """Parameters and state that a step inside a graph changes."""
        if self.key(info) is None:
            return []
        return [parameter for _, _, parameter, _ in self.trained] + self.state_tensors

    def means(self) -> list[Tensor]:
        """Running means of the gradients; after ``key``."""
        return [state[_STATE[0]] for *_, state in self.trained]

    def tensors(self) -> list[Tensor]:
        """Inputs of ``traced_step`` for the next step, besides the parameters; after ``key``."""
        self._read_counters()
        return [self.next_numbers(), *self.state_tensors]

    def next_numbers(self) -> Tensor:
        """The first of ``tensors``, if only graphs have changed the optimizer since these were asked for."""
        step = self.steps_since + 1.0
        if self.is_even:
            optimizer, group, *_ = self.trained[0]
            self.rows[:] = _adam_numbers(optimizer, group, self.counts[0] + step)
        else:
            self.rows[:] = [_adam_numbers(each[0], each[1], count + step) for each, count in zip(self.trained, self.counts)]
        return self.numbers

    def assume_unchanged(self):
        """Until the next ``tensors``, nobody else changes the optimizer: numbers that are the same for all parameters stay the same."""
        self.is_even = self.is_even or not self.clipped and bool((self.rows == self.rows[0]).all())

    def _read_counters(self):
        """Steps so far of every parameter, read from the optimizer's state only after somebody else has changed it."""
        counters = [state["step"] for *_, state in self.trained]
        versions = list(map(_VERSION, counters)) if self.are_tensors else counters
        if versions != self.versions:
            self.versions, self.counts, self.steps_since = versions, list(map(float, counters)), 0.0
        self.is_even = self.one_group and self.counts.count(self.counts[0]) == len(self.counts)

    def traced_step(self, outputs: Outputs, valid: Tensor | None) -> Outputs:
        """The step as tensor operations, without effect unless ``valid``."""
        gradients = {
            id(parameter): gradient
            for parameter, gradient in zip(self.parameters(outputs.info), outputs[outputs.info.losses :])
            if gradient is not None
        }
        for (optimizer, group, parameter, state), row in zip(self.trained, self.numbers):
            if id(parameter) in gradients:
                _adam(parameter, gradients.pop(id(parameter)), state, valid, _is_simple(optimizer, group), *row)
        if gradients:
            raise ValueError("the optimizer has no state yet for a parameter that has a gradient")
        return outputs

    def signature(self, info: Any, inputs: list[Tensor]) -> str:
        """What ``traced_step`` depends on besides its tensors: which inputs have which optimizer, state and gradient."""
        places = {id(tensor): i for i, tensor in enumerate(inputs)}
        trained = [(places.get(id(p)), type(each).__name__, _is_simple(each, group), *state) for each, group, p, state in self.trained]
        return f"{trained} {[places.get(id(p)) for p in self.parameters(info)]}"

    def advance_counters(self, everywhere: bool):
        """After a step inside a graph, which changes tensors but not their version: count it, and update numbers of ClippedAdam.

        Args:
            everywhere: whether all parameters certainly took the step; otherwise the counters are read again.
        """
        self.steps_since += 1.0
        self.versions = self.versions if everywhere else None
        for group, state in self.clipped:
            group["lr"] *= group["lrd"]
            state["step"] += 1

    def _refresh(self, info: Any):
        """Find groups and states of the parameters that have been trained, if the optimizer has changed."""
        if self.is_pyro:
            containers, marks = (self.optimizer.optim_objs, None), [len(self.optimizer.optim_objs), *map(id, self.parameters(info))]
        else:
            containers, marks = (self.optimizer.param_groups, self.optimizer.state), [len(self.optimizer.state)]
        last, marks = self.last_containers, [info, *marks]
        if last and last[0] is containers[0] and last[1] is containers[1] and last[2] == marks:
            states = [state for optimizer in self.optimizers for state in optimizer.state.values()]
            is_same = len(states) == len(self.states) and all(map(is_, states, self.states))
            same_entries = all(map(is_, chain.from_iterable(map(dict.values, states)), self.entries))
            if is_same and same_entries and not any(has_custom_step(optimizer) for optimizer in self.optimizers):
                return
        self.last_containers = [*containers, marks]
        if self.is_pyro:
            owners = self._pyro_owners(info)
        else:
            owners = [(self.optimizer, group, p) for group in containers[0] for p in group["params"]]
        self.optimizers = list({id(optimizer): optimizer for optimizer, *_ in owners}.values())
        self.trained = [(optimizer, group, p, entry) for optimizer, group, p in owners if (entry := optimizer.state.get(p))]
        supported = all(map(_is_plain_adam, self.optimizers)) and all(p.is_cpu and p.is_floating_point() for _, _, p in owners)
        supported = supported and not any(group.get("differentiable") or group.get("centered_variance") for _, group, _ in owners)
        self.states = [state for optimizer in self.optimizers for state in optimizer.state.values()]
        self.entries = list(chain.from_iterable(map(dict.values, self.states)))
        self.state_tensors = [tensor for *_, state in self.trained for tensor in state.values() if isinstance(tensor, Tensor)]
        self.groups = list({id(group): (optimizer, group) for optimizer, group, *_ in self.trained}.values())
        self.one_group = not self.is_pyro and len(self.groups) == 1
        self.are_tensors = all(isinstance(state.get("step"), Tensor) for *_, state in self.trained)
        self.clipped = [(group, state) for optimizer, group, _, state in self.trained if type(optimizer) is ClippedAdam]
        self.numbers, self.versions = torch.zeros(len(self.trained), _NUMBERS, dtype=torch.float64), None
        self.rows = self.numbers.numpy()  # the same memory
        key = tuple((id(p), type(optimizer), *entry) for optimizer, _, p, entry in self.trained)
        self.graph_key = (key or None) if supported else None

    def _pyro_owners(self, info: Any) -> list[tuple[Optimizer, dict, Tensor]]:
        if type(self.optimizer) not in (PyroOptim, PyroLRScheduler):
            return []
        owners = []
        for parameter in self.parameters(info):
            optimizer = self.optimizer.optim_objs.get(parameter)
            if optimizer is None or self.optimizer.grad_clip.get(parameter) is not None:
                return []
            optimizer = optimizer.optimizer if is_scheduler(optimizer) else optimizer
            owners.append((optimizer, optimizer.param_groups[0], parameter))
        return owners


def names_in_store(used: dict[str, Tensor]) -> tuple[str, ...]:
    """Names of parameters in Pyro's store after a run, without duplicates."""
    params = pyro.get_param_store()._params
    named = {id(parameter): name for name, parameter in reversed(used.items()) if params.get(name) is parameter}
    return tuple(reversed(named.values()))


def clear_gradients(programs: Iterable[Any]):
    """Clear the gradients of modules; takes a third of the time of ``Module.parameters``."""
    modules, visited = list(programs), set()
    while modules:
        module = modules.pop()
        if isinstance(module, nn.Module) and id(module) not in visited:
            visited.add(id(module))
            modules.extend(module._modules.values())
            for parameter in module._parameters.values():
                if parameter is not None:
                    parameter.grad = None


def _adam_numbers(optimizer: Optimizer, group: dict[str, Any], step: float) -> list[float]:
    """Numbers of the optimizer's step number ``step``, as arguments of ``_adam``."""
    (beta1, beta2), rate, decay = map(float, group["betas"]), float(group["lr"]), group["weight_decay"]
    weights = 1.0 - beta1, beta2, 1.0 - beta2
    first, second = 1.0 - beta1**step, math.sqrt(1.0 - beta2**step)
    if type(optimizer) is ClippedAdam:
        return [1.0, group["clip_norm"], decay, 1.0, *weights, rate * group["lrd"] * second / first, 1.0, group["eps"]]
    penalty, keep = (0.0, 1.0 - rate * decay) if group["decoupled_weight_decay"] else (decay, 1.0)
    return [-1.0 if group["maximize"] else 1.0, math.inf, penalty, keep, *weights, rate / first, 1.0 / second, group["eps"]]


@torch.no_grad()
def _adam(parameter, gradient, state, valid, is_simple, sign, clip, penalty, keep, new1, old2, new2, rate, correction, eps):
    """A step of Adam (Kingma and Ba 2015, algorithm 1) or AdamW (Loshchilov and Hutter 2019, algorithm 2), in place."""

    def assign(old: Tensor, new: Tensor) -> Tensor:
        return old.copy_(new if valid is None else torch.where(valid, new, old))

    if not is_simple:
        gradient = (sign * gradient).clamp(-clip, clip) + penalty * parameter
    first, second, *maximum = (state[name] for name in _STATE if name in state)
    if isinstance(state["step"], Tensor):
        assign(state["step"], state["step"] + 1.0)
    first = assign(first, first + (gradient - first) * new1)
    second = assign(second, second * old2 + new2 * gradient * gradient)
    for largest in maximum:
        second = assign(largest, torch.maximum(largest, second))
    kept = parameter if is_simple else parameter * keep
    assign(parameter, kept - rate * first / (second.sqrt() * correction + eps))


def _is_simple(optimizer: Optimizer, group: dict[str, Any]) -> bool:
    """Whether gradients enter a step as they are, neither clipped nor decayed."""
    return not (group["weight_decay"] or group.get("maximize") or type(optimizer) is ClippedAdam)


def _is_plain_adam(optimizer: Optimizer) -> bool:
    """Whether the optimizer's step is exactly ``_adam``."""
    return type(optimizer) in (Adam, AdamW, ClippedAdam) and not has_custom_step(optimizer)


def has_custom_step(optimizer: Optimizer) -> bool:
    """Whether the optimizer's step is hooked or wrapped."""
    hooks = optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks
    hooks += torch_optimizer._global_optimizer_pre_hooks, torch_optimizer._global_optimizer_post_hooks
    step = vars(optimizer).get("step")
    return any(hooks) or not (step is None or hasattr(step, "_wrapped_by_lr_sched")) or hasattr(optimizer, "grad_scale")
