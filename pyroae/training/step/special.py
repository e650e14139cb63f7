"""Special functions that Inductor computes number by number, written as functions that it computes for a vector at once."""

import math

import torch
from torch import Tensor, fx

_aten = torch.ops.aten
_SERIES = (1 / 132, -1 / 240, 1 / 252, -1 / 120, 1 / 12)  # of 1 / x^2, the highest power first


def vectorize_digamma(graph: fx.Graph):
    """Write float32 ``digamma`` as products, a logarithm and a tangent; nodes have their values in ``meta``."""
    for node in graph.nodes:
        if node.target is _aten.digamma.default and node.meta["val"].dtype is torch.float32:
            with graph.inserting_before(node):
                node.replace_all_uses_with(digamma(fx.Proxy(node.args[0])).node)
            graph.erase_node(node)


def digamma(x):
    r"""The derivative of log-gamma of a float32 tensor, to some 1e-7 of 1 and of itself.

    :math:`\psi(x) = \psi(x + 6) - \sum_{i<6} 1/(x+i)`, with the asymptotic series for :math:`\psi(x + 6)` and x > 0; by reflection,
    :math:`\psi(x) = \psi(1 - x) - \pi / \tan \pi x`, elsewhere (Abramowitz & Stegun 1964, 6.3.6, 6.3.7, 6.3.18).

    Args:
        x: a tensor, or its proxy in a graph.

    >>> digamma(torch.tensor([0.5, 1.0, 100.0])) - torch.digamma(torch.tensor([0.5, 1.0, 100.0])) < 1e-6
    tensor([True, True, True])
    """
    below = _aten.le.Scalar(x, 0.0)
    y = _aten.where.self(below, _aten.rsub.Scalar(x, 1.0), x)
    six = _sum(*(_aten.reciprocal.default(_aten.add.Scalar(y, float(i))) for i in range(6)))
    w = _aten.reciprocal.default(_aten.add.Scalar(y, 6.0))
    square = _aten.mul.Tensor(w, w)
    series = _aten.mul.Scalar(square, _SERIES[0])
    for coefficient in _SERIES[1:]:
        series = _aten.mul.Tensor(_aten.add.Scalar(series, coefficient), square)
    logarithm = _aten.log.default(_aten.add.Scalar(y, 6.0))
    above = _aten.sub.Tensor(_aten.sub.Tensor(logarithm, _aten.mul.Scalar(w, 0.5)), _sum(series, six))
    part = _aten.sub.Tensor(x, _aten.trunc.default(x))
    turned = _aten.mul.Scalar(_aten.reciprocal.default(_aten.tan.default(_aten.mul.Scalar(part, math.pi))), math.pi)
    pole = _aten.logical_and.default(_aten.eq.Scalar(part, 0.0), _aten.lt.Scalar(x, 0.0))
    reflected = _aten.masked_fill.Scalar(_aten.sub.Tensor(above, turned), pole, math.nan)
    return _aten.where.self(below, reflected, above)


def _sum(first: Tensor, *rest: Tensor) -> Tensor:
    for each in rest:
        first = _aten.add.Tensor(first, each)
    return first
