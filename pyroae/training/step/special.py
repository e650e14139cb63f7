"""Special functions that Inductor computes number by number, written as functions that it computes for a vector at once."""

import math

import torch
from torch import Tensor, fx

_aten = torch.ops.aten
_SERIES = (1 / 132, -1 / 240, 1 / 252, -1 / 120, 1 / 12)  # of 1 / x^2, the highest power first
_LOG1P = (  # of t in log(1 + t) / t for 0 <= t <= 1, to 5e-9; interpolated at Chebyshev's points
    *(-0.00317605701, 0.01954252832, -0.05637361482, 0.10543623567, -0.15269666910, 0.19663274288),
    *(-0.24951615930, 0.33329710364, -0.49999892712, 0.99999999466),
)


def vectorize(graph: fx.Graph):
    """Write float32 ``digamma``, ``softplus`` and the cross-entropy of logits with products; nodes have their values in ``meta``."""
    tracer = fx.proxy.GraphAppendingTracer(graph)
    for node in graph.nodes:
        write = _WRITTEN.get(node.target)
        if write and node.meta["val"].dtype is torch.float32:
            with graph.inserting_before(node):
                new = write(*(fx.Proxy(each, tracer) if isinstance(each, fx.Node) else each for each in node.args), **node.kwargs)
            if new is not None:
                node.replace_all_uses_with(new.node)
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


def softplus(x):
    r"""log(1 + exp x) of a float32 tensor, to some 2e-7 of itself: max(x, 0) + log(1 + t) with t = exp(-\|x\|) and a polynomial of t.

    Args:
        x: a tensor, or its proxy in a graph.

    >>> (softplus(torch.tensor([-50.0, 0.0, 50.0])) / torch.tensor([-50.0, 0.0, 50.0]).double().exp().log1p() - 1).abs() < 1e-6
    tensor([True, True, True])
    """
    t = _aten.exp.default(_aten.neg.default(_aten.abs.default(x)))
    polynomial = _aten.mul.Scalar(t, _LOG1P[0])
    for coefficient in _LOG1P[1:]:
        polynomial = _aten.mul.Tensor(_aten.add.Scalar(polynomial, coefficient), t)
    return _aten.add.Tensor(_aten.clamp_min.default(x, 0.0), polynomial)


def _softplus(x, beta=1, threshold=20):
    return softplus(x) if beta == 1 and threshold >= 20 else None  # above it, log(1 + t) is below half an ulp


def _cross_entropy(logits, x, weight=None, positive=None, reduction=1):
    """The negative log-probability of Bernoulli numbers, as torch's distribution has it."""
    if weight is not None or positive is not None or reduction != 0:
        return None
    return _aten.add.Tensor(_aten.mul.Tensor(_aten.rsub.Scalar(x, 1.0), logits), softplus(_aten.neg.default(logits)))


def _sum(first: Tensor, *rest: Tensor) -> Tensor:
    for each in rest:
        first = _aten.add.Tensor(first, each)
    return first


_WRITTEN = {
    _aten.digamma.default: digamma,
    _aten.softplus.default: _softplus,
    _aten.binary_cross_entropy_with_logits.default: _cross_entropy,
}
