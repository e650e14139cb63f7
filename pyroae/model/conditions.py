"""Conditions: labels or covariates y beside x, as vectors that are inputs of the prior, encoder and decoder."""

import torch
from torch import Tensor

from ..checks import whole_number
from ..registry import Part, register, register_base

__all__ = ["Condition", "Covariates", "Labels", "PartialLabels"]


def __dir__() -> list[str]:
    return __all__


@register_base("conditions")
class Condition(Part):
    """Encodes ``y`` as vectors ``(B, size)``.

    >>> import pyroae as pa
    >>> isinstance(pa.conditions.Labels(3), Condition)
    True
    """

    size: int  # of the vector of one example
    for_networks = True  # whether it is an input of encoder and decoder; otherwise of the prior and the posterior alone
    optional = False  # whether y may be left out
    scored = "log p(x|y)"  # name of the log-likelihood of data with y

    def __call__(self, y: Tensor) -> Tensor:
        """The vectors ``(..., size)``, without checks of values."""
        raise NotImplementedError

    def check_shape(self, y: Tensor, n: int):
        """``ValueError`` unless ``y`` has a row for each of ``n`` examples."""
        raise NotImplementedError

    def check(self, y: Tensor):
        """``ValueError`` unless the values of ``y`` are valid."""

    def spread(self, n: int) -> Tensor:
        """``n`` values of y, each class in turn; ``ValueError`` for a condition without classes."""
        raise ValueError(f"condition {type(self).__name__}: has no classes to go through; give y")

    def _expect(self, sound: bool, expected: str, y):
        if not sound:
            got = f"a tensor of shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(f"condition {type(self).__name__}: expected y as {expected}, got {got}")


class _Classes(Condition):
    """Labels as one-hot vectors."""

    def __init__(self, classes: int = 10):
        whole_number(type(self).__name__, classes=classes)
        self.size = self.classes = classes

    def __call__(self, y):
        return (y[..., None] == torch.arange(self.classes, device=y.device)).to(torch.get_default_dtype())

    def spread(self, n):
        return torch.arange(n) % self.classes

    def check_shape(self, y, n):
        self._expect(isinstance(y, Tensor) and y.shape == (n,), f"one label for each example, shape ({n},)", y)

    def check(self, y):
        lowest = -1 if self.optional else 0
        if not bool(((y >= lowest) & (y < self.classes) & (y == y.round())).all()):
            raise ValueError(
                f"condition {type(self).__name__}: expected labels as whole numbers from {lowest} to {self.classes - 1}, "
                f"got values from {y.min().item():g} to {y.max().item():g}"
            )


@register("conditions")
class Labels(_Classes):
    """A class for each example: y of shape ``(B,)``, whole numbers from 0, encoded as one-hot vectors.

    >>> Labels(3)(torch.tensor([0, 2]))
    tensor([[1., 0., 0.],
            [0., 0., 1.]])
    """


@register("conditions")
class PartialLabels(_Classes):
    """Labels of some examples, -1 for the others, whose labels are summed out; for the posterior ``Clusters`` (Kingma et al. 2014).

    >>> PartialLabels(3)(torch.tensor([0, -1])).shape
    torch.Size([2, 3])
    """

    for_networks, optional, scored = False, True, "log p(x,y)"


@register("conditions")
class Covariates(Condition):
    """Covariates of each example: y of shape ``(B, size)``, used unchanged.

    >>> Covariates(2)(torch.zeros(5, 2)).shape
    torch.Size([5, 2])
    """

    def __init__(self, size: int = 1):
        whole_number("Covariates", size=size)
        self.size = size

    def __call__(self, y):
        return y

    def check_shape(self, y, n):
        sound = isinstance(y, Tensor) and y.shape == (n, self.size) and y.is_floating_point()
        self._expect(sound, f"floating-point numbers of shape ({n}, {self.size})", y)

    def check(self, y):
        if not bool(y.isfinite().all()):
            raise ValueError("condition Covariates: expected finite numbers, got NaN or infinity")


def input_size(condition: Condition | None) -> int:
    """The size of the condition's vector as an input of encoder and decoder."""
    return condition.size if condition is not None and condition.for_networks else 0


def for_networks(condition: Condition | None, c: Tensor | None) -> Tensor | None:
    """The condition's vectors as an input of encoder and decoder, or ``None``."""
    return c if input_size(condition) else None


def encode(condition: Condition | None, y: Tensor | None, n: int) -> Tensor | None:
    """The condition's vectors of ``n`` examples; ``None`` for a model without a condition.

    Raises:
        ValueError: y is missing, of the wrong shape, or given to a model without a condition.
    """
    if condition is None and y is not None:
        raise ValueError("this model has no condition and takes x alone; build it with condition=pa.conditions.Labels(10), or leave y out")
    if condition is None or (y is None and condition.optional):
        return None
    condition.check_shape(y, n)
    return condition(y)
