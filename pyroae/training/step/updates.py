"""What an optimizer does with gradients: by itself, or as tensor operations inside a graph."""

import math
from collections.abc import Iterable
from operator import is_
from typing import Any

import pyro
import torch
from pyro.optim import PyroOptim
from pyro.optim.clipped_adam import ClippedAdam
from pyro.optim.lr_scheduler import PyroLRScheduler
from pyro.optim.optim import is_scheduler
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer
from torch.optim import optimizer as torchs
from torch.utils.weak import WeakIdKeyDictionary

from .graph import Outputs

_STATE = "exp_avg", "exp_avg_sq", "max_exp_avg_sq"
_SETTINGS = "lr", "betas", "eps", "weight_decay", "clip_norm", "lrd", "maximize", "decoupled_weight_decay"
_HAD_GRADIENT = WeakIdKeyDictionary()  # parameters on which Pyro would have left a gradient of zeros


class InvalidValuesError(ValueError):
    """Validation found invalid values in a graph's call, before the optimizer's step."""


Trained = tuple[Optimizer, dict[str, Any], Tensor, dict[str, Any]]  # optimizer, group, parameter, its state


class Update:
    """Takes an optimizer step with the gradients that end the outputs ``[*losses, *gradients]`` of a step.

    A torch optimizer's parameters are its own. One of Pyro's gets those that the programs asked Pyro's store for, which
    ``outputs.info.names`` lists; a parameter that once had a gradient and now has none gets zeros, as in Pyro. No gradient
    stays on a parameter.

    Adam and AdamW on a CPU, and Pyro's Adam and ClippedAdam, can be a part of a graph. The state is the optimizer's own,
    and every number of its groups is an input, so schedulers, ``state_dict`` and ``load_state_dict`` mean what they always
    do.

    Args:
        optimizer: torch's or Pyro's.
        sync: whether the result of validation is read, and acted on, before the step; otherwise it is gathered in ``valid``.
    """

    def __init__(self, optimizer: Optimizer | PyroOptim, sync: bool = True):
        self.optimizer, self.sync = optimizer, sync
        self.valid: Tensor | None = None  # of all calls, where nothing may wait for the device
        self.pyros = not isinstance(optimizer, Optimizer)
        self.pending: dict[int, Tensor] = {}  # by id of the parameter: gradients that were on it before the step
        self.having: list[Tensor] = []  # the parameters that had a gradient in the last step
        self.numbers = torch.empty(0)
        self.looked: list[Any] = []  # what the optimizer's parameters were last looked through with
        self.trained: list[Trained] = []
        self.fixed: tuple | None = None

    def parameters(self, info: Any = None) -> list[Tensor]:
        """The parameters whose gradients the outputs hold, in their order."""
        if not self.pyros:
            return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        params = pyro.get_param_store()._params
        return [params[name] for name in info.names] if info else []

    def __call__(self, outputs: Outputs) -> Outputs:
        self.check(outputs)
        self.give(outputs)
        self.follow(outputs.info)
        return outputs

    def check(self, outputs: Outputs):
        """Act on what validation found.

        Raises:
            InvalidValuesError: invalid values, where that is read.
        """
        if outputs.valid is None:
            return
        if not self.sync:
            self.valid = outputs.valid.clone() if self.valid is None else self.valid.logical_and_(outputs.valid)
        elif not outputs.valid:
            raise InvalidValuesError

    def stash(self, parameters: list[Tensor]):
        """Set aside gradients that are on the parameters before a step; as in Pyro, they are added to the step's own."""
        for parameter in parameters:
            if parameter.grad is not None:
                self.pending[id(parameter)] = parameter.grad
                parameter.grad = None

    def give(self, outputs: Outputs):
        """Put the gradients on the parameters."""
        for parameter, gradient in zip(self.parameters(outputs.info), outputs[outputs.info.losses :]):
            before = self.pending.pop(id(parameter), None) if self.pending else None
            parameter.grad = gradient if before is None else before if gradient is None else before + gradient
        self.pending.clear()

    def follow(self, info: Any):
        """Take the optimizer's step and clear the gradients."""
        parameters = self.parameters(info)
        if not self.pyros:
            self.optimizer.step()
        else:
            self._fill_gradients(parameters)
            self.optimizer(parameters)
        for parameter in parameters:
            parameter.grad = None

    def _fill_gradients(self, parameters: list[Tensor]):
        """Zeros for parameters that had a gradient before; Pyro never takes one away."""
        having = [parameter for parameter in parameters if parameter.grad is not None]
        if len(having) == len(parameters) == len(self.having) and all(map(is_, having, self.having)):
            return
        self.having = having
        _HAD_GRADIENT.update((parameter, True) for parameter in having)
        for parameter in parameters:
            if parameter.grad is None and parameter in _HAD_GRADIENT:
                parameter.grad = torch.zeros_like(parameter)

    # --- inside a graph ---

    def kind(self, info: Any) -> tuple | None:
        """What a graph would take for fixed; ``None`` where the optimizer must do it."""
        self._look(info)
        return self.fixed

    def changing(self, info: Any) -> list[Tensor]:
        """What a step inside a graph changes: parameters and state."""
        if self.kind(info) is None:
            return []
        return [parameter for _, _, parameter, _ in self.trained] + self.tensors(info)[1:]

    def tensors(self, info: Any) -> list[Tensor]:
        """What ``traced`` reads and writes beside the parameters, for the step to come."""
        self._look(info)
        rows: dict[tuple, list[float]] = {}
        found = []
        for optimizer, group, _, state in self.trained:
            step = float(state["step"]) + 1.0
            key = (step, id(group)) if not self.pyros else (step, type(optimizer), *(group.get(name) for name in _SETTINGS))
            if key not in rows:
                rows[key] = _numbers(optimizer, group, step)
            found.append(rows[key])
        self.numbers = torch.tensor(found, dtype=torch.float64)
        return [self.numbers, *(tensor for *_, state in self.trained for tensor in state.values() if isinstance(tensor, Tensor))]

    def traced(self, outputs: Outputs, valid: Tensor | None) -> Outputs:
        """The step by tensor operations; only where ``valid``."""
        gradients = {
            id(parameter): gradient
            for parameter, gradient in zip(self.parameters(outputs.info), outputs[outputs.info.losses :])
            if gradient is not None
        }
        for (_, _, parameter, state), row in zip(self.trained, self.numbers):
            if id(parameter) in gradients:
                _adam(parameter, gradients.pop(id(parameter)), state, valid, *row)
        if gradients:
            raise ValueError("the optimizer has no state yet for a parameter that has a gradient")
        return outputs

    def advance(self):
        """After a step inside a graph: what ClippedAdam keeps as Python's numbers."""
        for optimizer, group, _, state in self.trained:
            if type(optimizer) is ClippedAdam:
                group["lr"] *= group["lrd"]
                state["step"] += 1

    def _look(self, info: Any):
        """Find each parameter that was trained already, its group and its state."""
        single = not self.pyros
        holds = (self.optimizer.param_groups, self.optimizer.state) if single else (self.optimizer.optim_objs, None)
        marks = [info, len(holds[1] if single else holds[0]), *([] if single else map(id, self.parameters(info)))]
        if self.looked and self.looked[0] is holds[0] and self.looked[1] is holds[1] and self.looked[2] == marks:
            same = all(optimizer.state.get(parameter) is state for optimizer, _, parameter, state in self.trained)
            if same and not any(watched(optimizer) for optimizer in self.optimizers):
                return
        self.looked = [*holds, marks]
        each = [(self.optimizer, group, p) for group in holds[0] for p in group["params"]] if single else self._of_pyro(info)
        self.optimizers = list({id(optimizer): optimizer for optimizer, *_ in each}.values())
        found = [(optimizer, group, p, optimizer.state.get(p)) for optimizer, group, p in each]
        self.trained = [each for each in found if each[3]]
        usual = all(map(_usual, self.optimizers)) and all(p.is_cpu and p.is_floating_point() for _, _, p in each)
        usual = usual and not any(group.get("differentiable") or group.get("centered_variance") for _, group, _ in each)
        self.fixed = tuple((id(p), type(optimizer), *state) for optimizer, _, p, state in self.trained) or None if usual else None

    def _of_pyro(self, info: Any) -> list[tuple[Optimizer, dict, Tensor]]:
        if type(self.optimizer) not in (PyroOptim, PyroLRScheduler):
            return []
        found = []
        for parameter in self.parameters(info):
            optimizer = self.optimizer.optim_objs.get(parameter)
            if optimizer is None or self.optimizer.grad_clip.get(parameter) is not None:
                return []
            optimizer = optimizer.optimizer if is_scheduler(optimizer) else optimizer
            found.append((optimizer, optimizer.param_groups[0], parameter))
        return found


def clear_gradients(programs: Iterable[Any]):
    """Those of the parameters of modules; as by ``Module.parameters``, in a third of its time."""
    modules, seen = list(programs), set()
    while modules:
        module = modules.pop()
        if isinstance(module, nn.Module) and id(module) not in seen:
            seen.add(id(module))
            modules.extend(module._modules.values())
            for parameter in module._parameters.values():
                if parameter is not None:
                    parameter.grad = None


def _numbers(optimizer: Optimizer, group: dict[str, Any], step: float) -> list[float]:
    """Those of the optimizer's step number ``step`` as ``_adam`` takes them."""
    (beta1, beta2), rate, decay = map(float, group["betas"]), float(group["lr"]), group["weight_decay"]
    kept = 1.0 - beta1, beta2, 1.0 - beta2
    first, second = 1.0 - beta1**step, math.sqrt(1.0 - beta2**step)
    if type(optimizer) is ClippedAdam:
        return [1.0, group["clip_norm"], decay, 1.0, *kept, rate * group["lrd"] * second / first, 1.0, group["eps"]]
    penalty, keep = (0.0, 1.0 - rate * decay) if group["decoupled_weight_decay"] else (decay, 1.0)
    return [-1.0 if group["maximize"] else 1.0, math.inf, penalty, keep, *kept, rate / first, 1.0 / second, group["eps"]]


@torch.no_grad()
def _adam(parameter, gradient, state, valid, sign, clip, penalty, keep, new1, old2, new2, rate, correction, eps):
    """A step of Adam (Kingma and Ba 2015, algorithm 1) or AdamW (Loshchilov and Hutter 2019, algorithm 2), in place."""

    def put(old: Tensor, new: Tensor) -> Tensor:
        return old.copy_(new if valid is None else torch.where(valid, new, old))

    gradient = (sign * gradient).clamp(-clip, clip) + penalty * parameter
    first, second, *largest = (state[name] for name in _STATE if name in state)
    if isinstance(state["step"], Tensor):
        put(state["step"], state["step"] + 1.0)
    first = put(first, first + (gradient - first) * new1)
    second = put(second, second * old2 + new2 * gradient * gradient)
    for most in largest:
        second = put(most, torch.maximum(most, second))
    put(parameter, parameter * keep - rate * first / (second.sqrt() * correction + eps))


def _usual(optimizer: Optimizer) -> bool:
    """Whether ``_adam`` is all that its step does."""
    return type(optimizer) in (Adam, AdamW, ClippedAdam) and not watched(optimizer)


def watched(optimizer: Optimizer) -> bool:
    """Whether something else happens in its step."""
    hooks = optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks
    hooks += torchs._global_optimizer_pre_hooks, torchs._global_optimizer_post_hooks
    step = vars(optimizer).get("step")
    return any(hooks) or not (step is None or hasattr(step, "_wrapped_by_lr_sched")) or hasattr(optimizer, "grad_scale")
