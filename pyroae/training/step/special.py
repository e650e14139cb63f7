"""Special functions that Inductor computes number by number, written as functions that it computes for a vector at once."""

import math

import torch
from torch import Tensor, fx

_aten = torch.ops.aten
# Polynomials, the highest power first. Those that are no series are interpolated at Chebyshev's points.
_DIGAMMA = 1 / 132, -1 / 240, 1 / 252, -1 / 120, 1 / 12, 0.0  # of 1 / x^2: log x - 1 / (2x) - digamma x, asymptotically
_STIRLING = 1 / 1188, -1 / 1680, 1 / 1260, -1 / 360, 1 / 12  # of 1 / x^2, of x times the correction of Stirling's formula
_LGAMMA = (  # of d in lgamma(2 + d) / d for -0.5 <= d <= 1, to 2e-8
    *(-0.00010700765, 0.00048775853, -0.00124756690, 0.00291754482, -0.00737886634),
    *(0.02057628044, -0.06735251711, 0.32246720893, 0.42278433625),
)
_LOG1P = (  # of t in log(1 + t) / t for 0 <= t <= 1, to 5e-9
    *(-0.00317605701, 0.01954252832, -0.05637361482, 0.10543623567, -0.15269666910, 0.19663274288),
    *(-0.24951615930, 0.33329710364, -0.49999892712, 0.99999999466),
)
_SINE = 0.02471864460, -0.19044175272, 0.81171484267, -1.64493320634, 0.99999999570  # of r^2 in sin(pi r) / (pi r), r^2 <= 1/4, to 5e-9
_COTANGENT = (  # of r^2 in pi r / tan(pi r) for r^2 <= 1/4, to 4e-9
    *(-6.06513430809, -0.00047695886, -2.46588900027, -1.95084198967),
    *(-2.03845298404, -2.16452644556, -3.28986957688, 1.00000000282),
)
_WHOLE = -1e8  # every float32 number below is whole


def vectorize(graph: fx.Graph):
    """Write float32 functions of ``_WRITTEN`` with products; nodes have their values in ``meta``."""
    tracer = fx.proxy.GraphAppendingTracer(graph)
    for node in list(graph.nodes):
        write = _WRITTEN.get(node.target)
        if write and node.args[0].meta["val"].dtype is torch.float32:
            with graph.inserting_before(node):
                new = write(*(fx.Proxy(each, tracer) if isinstance(each, fx.Node) else each for each in node.args), **node.kwargs)
            if isinstance(new, tuple):  # of results, which other nodes take one by one
                for user in list(node.users):
                    user.replace_all_uses_with(new[user.args[1]].node)
                    graph.erase_node(user)
                graph.erase_node(node)
            elif new is not None:
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
    below, y, part = _reflected(x)
    t = _aten.clamp_max.default(y, 1e18)  # the sum of reciprocals is 0 beyond, and its products are finite
    product = _aten.mul.Tensor(t, _aten.add.Scalar(t, 5.0))  # of the first and the last of six, and so on
    pairs = _sum(*(_aten.reciprocal.default(_aten.add.Scalar(product, between)) for between in (0.0, 4.0, 6.0)))
    six = _aten.mul.Tensor(pairs, _aten.add.Scalar(_aten.mul.Scalar(t, 2.0), 5.0))
    w = _aten.reciprocal.default(_aten.add.Scalar(y, 6.0))
    series = _polynomial(_aten.mul.Tensor(w, w), _DIGAMMA)
    logarithm = _aten.log.default(_aten.add.Scalar(y, 6.0))
    above = _aten.sub.Tensor(_aten.sub.Tensor(logarithm, _aten.mul.Scalar(w, 0.5)), _sum(series, six))
    turned = _aten.div.Tensor(_polynomial(_aten.mul.Tensor(part, part), _COTANGENT), part)
    pole = _aten.logical_and.default(_aten.eq.Scalar(part, 0.0), _aten.lt.Scalar(x, 0.0))
    reflected = _aten.masked_fill.Scalar(_aten.sub.Tensor(above, turned), pole, math.nan)
    return _aten.where.self(below, reflected, above)


def lgamma(x):
    r"""The logarithm of the absolute gamma function of a float32 tensor, to some 3e-7 of 1 and of itself.

    For x > 0 below 2.5 from a polynomial between 1.5 and 2.5, where :math:`\log \Gamma(x) = \log \Gamma(x + 1) - \log x` leads; above by
    Stirling's series; by reflection, :math:`\log|\Gamma(x)| = \log(\pi / |\sin \pi x|) - \log \Gamma(1 - x)`, elsewhere
    (Abramowitz & Stegun 1964, 6.1.15, 6.1.17, 6.1.41).

    Args:
        x: a tensor, or its proxy in a graph.

    >>> (lgamma(torch.tensor([0.5, 1.0, 100.0])) - torch.lgamma(torch.tensor([0.5, 1.0, 100.0]))).abs() < 1e-4
    tensor([True, True, True])
    """
    below, y, part = _reflected(_aten.clamp_min.default(x, _WHOLE))
    low, twice, once = (_aten.lt.Scalar(y, bound) for bound in (2.5, 0.5, 1.5))
    d = _aten.sub.Tensor(y, _aten.where.ScalarSelf(twice, 0.0, _aten.where.Scalar(once, 1.0, 2.0)))
    steps = _aten.where.self(twice, _aten.mul.Tensor(y, _aten.add.Scalar(y, 1.0)), _aten.where.ScalarOther(once, y, 1.0))
    logarithm = _aten.log.default(_aten.where.self(low, steps, y))
    small = _aten.sub.Tensor(_aten.mul.Tensor(d, _polynomial(d, _LGAMMA)), logarithm)
    w = _aten.reciprocal.default(y)
    correction = _aten.mul.Tensor(w, _polynomial(_aten.mul.Tensor(w, w), _STIRLING))
    large = _aten.mul.Tensor(_aten.sub.Scalar(y, 0.5), _aten.sub.Scalar(logarithm, 1.0))
    large = _aten.add.Tensor(large, _aten.add.Scalar(correction, 0.5 * math.log(2 * math.pi) - 0.5))
    above = _aten.where.self(low, small, large)
    sine = _aten.mul.Tensor(_aten.abs.default(part), _polynomial(_aten.mul.Tensor(part, part), _SINE))  # over pi
    return _aten.where.self(below, _aten.neg.default(_aten.add.Tensor(_aten.log.default(sine), above)), above)


def _reflected(x) -> tuple:
    """Whether x is not above 0, then 1 - x and otherwise x, and x less the nearest whole number."""
    below = _aten.le.Scalar(x, 0.0)
    return below, _aten.where.self(below, _aten.rsub.Scalar(x, 1.0), x), _aten.sub.Tensor(x, _aten.round.default(x))


def softplus(x):
    r"""log(1 + exp x) of a float32 tensor, to some 2e-7 of itself: max(x, 0) + log(1 + t) with t = exp(-\|x\|) and a polynomial of t.

    Args:
        x: a tensor, or its proxy in a graph.

    >>> (softplus(torch.tensor([-50.0, 0.0, 50.0])) / torch.tensor([-50.0, 0.0, 50.0]).double().exp().log1p() - 1).abs() < 1e-6
    tensor([True, True, True])
    """
    t = _aten.exp.default(_aten.neg.default(_aten.abs.default(x)))
    return _aten.add.Tensor(_aten.clamp_min.default(x, 0.0), _aten.mul.Tensor(t, _polynomial(t, _LOG1P)))


def _softplus(x, beta=1, threshold=20):
    return softplus(x) if beta == 1 and threshold >= 20 else None  # above it, log(1 + t) is below half an ulp


def _log_sigmoid(x):
    """The logarithm of a sigmoid, and what torch keeps for its gradient."""
    return _aten.neg.default(softplus(_aten.neg.default(x))), _aten.exp.default(_aten.neg.default(_aten.abs.default(x)))


def _cross_entropy(logits, x, weight=None, positive=None, reduction=1):
    """The negative log-probability of Bernoulli numbers, as torch's distribution has it."""
    if weight is not None or positive is not None or reduction != 0:
        return None
    return _aten.add.Tensor(_aten.mul.Tensor(_aten.rsub.Scalar(x, 1.0), logits), softplus(_aten.neg.default(logits)))


def _polynomial(t, coefficients: tuple[float, ...]):
    """By Horner's rule, the coefficient of the highest power first."""
    value = _aten.add.Scalar(_aten.mul.Scalar(t, coefficients[0]), coefficients[1])
    for coefficient in coefficients[2:]:
        value = _aten.add.Scalar(_aten.mul.Tensor(value, t), coefficient)
    return value


def _sum(first: Tensor, *rest: Tensor) -> Tensor:
    for each in rest:
        first = _aten.add.Tensor(first, each)
    return first


_WRITTEN = {
    _aten.digamma.default: digamma,
    _aten.lgamma.default: lgamma,
    _aten.softplus.default: _softplus,
    _aten.log_sigmoid_forward.default: _log_sigmoid,
    _aten.binary_cross_entropy_with_logits.default: _cross_entropy,
}
