"""What an optimizer does with gradients: by itself, or as tensor operations inside a graph."""

import math
from typing import Any

import torch
from pyro.optim import PyroOptim
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer
from torch.optim import optimizer as torchs

_STATE = "exp_avg", "exp_avg_sq", "max_exp_avg_sq"


class Update:
    """Gives the parameters the gradients in ``[loss, *gradients]``, and lets the optimizer follow them.

    torch's Adam and AdamW on a CPU can be a part of a graph. Its state is the optimizer's own, and every number of its
    groups is an input, so schedulers, ``state_dict`` and ``load_state_dict`` mean what they always do.
    """

    def __init__(self, optimizer: Optimizer | PyroOptim):
        self.optimizer, self.parameters = optimizer, []
        self.numbers = torch.empty(0)
        self.looked: list[Any] = []  # the optimizer's groups and state when its parameters were last looked through

    def __call__(self, outputs: list[Tensor | None]) -> list[Tensor | None]:
        self.give(outputs)
        self.follow()
        return outputs

    def follow(self):
        """Let the optimizer follow the gradients that the parameters have."""
        if isinstance(self.optimizer, Optimizer):
            self.optimizer.step()
        else:
            self.optimizer([parameter for parameter in self.parameters if parameter.grad is not None])

    def give(self, outputs: list[Tensor | None]) -> list[Tensor | None]:
        """The gradients alone."""
        for parameter, gradient in zip(self.parameters, outputs[1:]):
            parameter.grad = gradient
        return outputs

    @property
    def kind(self) -> tuple | None:
        """What a graph would take for fixed; ``None`` where the optimizer must do it."""
        if type(self.optimizer) not in (Adam, AdamW) or _watched(self.optimizer):
            return None
        self._look()
        return self.fixed

    def tensors(self) -> list[Tensor]:
        """What ``traced`` reads and writes beside the parameters, for the step to come."""
        self._look()
        steps = [(id(group), state["step"].item()) for group, _, state in self.trained]
        rows = {each: _numbers(group, each[1] + 1.0) for each, group in dict(zip(steps, self.groups)).items()}
        self.numbers = torch.tensor([rows[each] for each in steps], dtype=torch.float64)
        return [self.numbers, *(tensor for _, _, state in self.trained for tensor in state.values())]

    def traced(self, outputs: list[Tensor | None]) -> list[Tensor | None]:
        """The same by tensor operations."""
        gradients = {id(parameter): gradient for parameter, gradient in zip(self.parameters, outputs[1:]) if gradient is not None}
        for (_, parameter, state), row in zip(self.trained, self.numbers):
            if id(parameter) in gradients:
                _adam(parameter, gradients.pop(id(parameter)), state, *row)
        if gradients:
            raise ValueError("the optimizer has no state yet for a parameter that has a gradient")
        return outputs

    def _look(self):
        """Find each parameter that was trained already, its group and its state."""
        groups, state = self.optimizer.param_groups, self.optimizer.state
        if self.looked and self.looked[0] is groups and self.looked[1] is state and self.looked[2] == len(state):
            return
        self.looked = [groups, state, len(state)]
        found = [(group, p, state.get(p)) for group in groups for p in group["params"]]
        self.trained = [each for each in found if each[2]]
        self.groups = [group for group, _, _ in self.trained]
        usual = all(p.is_cpu and p.is_floating_point() and not group["differentiable"] for group, p, _ in found)
        self.fixed = tuple((id(p), *state) for _, p, state in self.trained) or None if usual else None


def _numbers(group: dict[str, Any], step: float) -> list[float]:
    """Those of Adam's step number ``step`` as ``_adam`` takes them."""
    (beta1, beta2), rate, decay = map(float, group["betas"]), float(group["lr"]), group["weight_decay"]
    penalty, keep = (0.0, 1.0 - rate * decay) if group["decoupled_weight_decay"] else (decay, 1.0)
    corrections = rate / (1.0 - beta1**step), 1.0 / math.sqrt(1.0 - beta2**step)
    return [-1.0 if group["maximize"] else 1.0, penalty, keep, 1.0 - beta1, beta2, 1.0 - beta2, *corrections, group["eps"]]


@torch.no_grad()
def _adam(parameter, gradient, state, sign, penalty, keep, new1, old2, new2, rate, correction, eps):
    """A step of Adam (Kingma and Ba 2015, algorithm 1) or AdamW (Loshchilov and Hutter 2019, algorithm 2), in place."""
    gradient = sign * gradient + penalty * parameter
    first, second, *largest = (state[name] for name in _STATE if name in state)
    state["step"].add_(1.0)
    first.add_((gradient - first) * new1)
    second.copy_(second * old2 + new2 * gradient * gradient)
    for most in largest:
        second = most.copy_(torch.maximum(most, second))
    parameter.copy_(parameter * keep - rate * first / (second.sqrt() * correction + eps))


def _watched(optimizer: Optimizer) -> bool:
    """Whether something else happens in its step."""
    hooks = optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks
    hooks += torchs._global_optimizer_pre_hooks, torchs._global_optimizer_post_hooks
    step = vars(optimizer).get("step")
    return any(hooks) or not (step is None or hasattr(step, "_wrapped_by_lr_sched")) or hasattr(optimizer, "grad_scale")
