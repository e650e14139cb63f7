"""Operations whose result would depend on values in its shape or in Python, written so that it does not."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves


class Static(TorchFunctionMode):
    """Inside, a few operations give the same in shapes that are known beforehand, so that a graph can hold them.

    ``item()`` gives a tensor without dimensions, ``one_hot`` compares. The entries that a mask takes out, ``x[mask]``, stand
    where they were until they are put back by the same mask, as splines do, summed, or multiplied with others and summed,
    as sums over discrete sites do.

    Raises:
        ValueError: something else is done with such entries.
    """

    def __init__(self):
        self.taken: dict[int, tuple[Tensor, Tensor, Tensor]] = {}  # by id: what stands for the entries, the whole, its mask

    def __torch_function__(self, func: Callable, types, args=(), kwargs=None):
        found = [self.taken[id(leaf)] for leaf in tree_leaves(args) if id(leaf) in self.taken]
        if found:
            return self._with_taken(func, args, found)
        if func is Tensor.item:
            return args[0].detach()
        if func is F.one_hot and len(args) == 2 and args[1] > 0:
            return (args[0].unsqueeze(-1) == torch.arange(args[1], device=args[0].device)).long()
        if func in (Tensor.__getitem__, Tensor.masked_select, torch.masked_select) and _is_mask(*args):
            return self._take(*args)
        return func(*args, **kwargs or {})

    def _take(self, whole: Tensor, mask: Tensor) -> Tensor:
        entries = whole.new_empty(0)  # never looked at
        self.taken[id(entries)] = entries, whole, mask
        return entries

    def _with_taken(self, func: Callable, args: tuple, found: list[tuple]):
        (_, whole, mask), same = found[0], all(each[2] is found[0][2] for each in found)
        if func is Tensor.dim:
            return 1
        if func is Tensor.__setitem__ and args[1] is mask:
            return args[0].copy_(torch.where(mask, whole, args[0]))
        if func in (Tensor.sum, torch.sum) and len(args) == 1:
            return whole.masked_fill(~mask, 0.0).sum()
        if func is torch.tensordot and len(found) == 2 and same:
            return (whole.masked_fill(~mask, 0.0) * found[1][1].masked_fill(~mask, 0.0)).sum()
        raise ValueError(f"{getattr(func, '__name__', func)} of the entries that a mask takes out, whose number depends on values")


def _is_mask(whole: Tensor, index) -> bool:
    return isinstance(index, Tensor) and index.dtype == torch.bool and index.shape == whole.shape
