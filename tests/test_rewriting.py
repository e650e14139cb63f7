"""Graphs as they are rewritten for Inductor: functions before expansions, digamma for vectors, fewer copies."""

import math

import pytest
import torch
from pyro import distributions as dist
from torch.fx import GraphModule, Interpreter
from torch.fx.experimental.proxy_tensor import make_fx

from pyroae.training.step import rewriting
from pyroae.training.step.rewriting import rewritten
from pyroae.training.step.special import digamma, lgamma, softplus


class Sizes(Interpreter):
    """Runs a graph and keeps how many entries every result has, by the name of the function."""

    def __init__(self, module: GraphModule):
        super().__init__(module)
        self.sizes = {}

    def run_node(self, n):
        result = super().run_node(n)
        if isinstance(n.target, torch._ops.OpOverload) and isinstance(result, torch.Tensor):
            self.sizes.setdefault(n.target._schema.name, []).append(result.numel())
        return result


def counts(r, logits, x):
    r, logits = r.requires_grad_(), logits.requires_grad_()
    loss = dist.NegativeBinomial(r.exp() + 1, logits=logits, validate_args=False).log_prob(x).sum()
    return [loss, *torch.autograd.grad(loss, [r, logits])]


@pytest.mark.parametrize("shape", [(), (5,), (7, 1), (1, 5)])
def test_functions_of_a_parameter_are_computed_once_for_each_of_its_entries(shape):
    """The log-gamma of the dispersion, of an entry for each column say, and its derivative; all results are the same to the bit."""
    inputs = [torch.randn(shape).double(), torch.randn(7, 5).double(), torch.poisson(torch.ones(7, 5)).double()]
    before = Sizes(make_fx(counts)(*inputs))
    after = Sizes(rewritten(before.module, inputs))
    assert all(torch.equal(a, b) for a, b in zip(before.run(*inputs), after.run(*inputs)))
    assert before.sizes["aten::lgamma"] == [35] * 3 and before.sizes["aten::digamma"] == [35] * 2
    few = math.prod(shape)
    assert sorted(after.sizes["aten::lgamma"]) == [few, 35, 35] and sorted(after.sizes["aten::digamma"]) == [few, 35]


def chain(p, x):
    """Of two parameters expanded together, in two steps, and one that is not dense."""
    a, b = torch.broadcast_tensors(p[:, :1].t().expand(4, 3), x)
    c, _ = torch.broadcast_tensors(p[0, ::2], x[:, :1].expand(4, 2))
    return [(a.exp() / a.log1p()) * b, c.lgamma() + 1, a.cos()]


def test_chains_and_views_have_the_same_results():
    inputs = [torch.rand(3, 4).double() + 0.5, torch.randn(4, 3).double()]
    before = make_fx(chain)(*inputs)
    after = Sizes(rewritten(before, inputs))
    assert all(torch.equal(a, b) for a, b in zip(before(*inputs), after.run(*inputs)))
    assert after.sizes["aten::exp"] == after.sizes["aten::log1p"] == after.sizes["aten::div"] == [3] and after.sizes["aten::lgamma"] == [2]


def test_logsigmoid_and_its_gradient_are_those_of_torch():
    def function(x):
        x = x.detach().requires_grad_()
        y = torch.nn.functional.logsigmoid(x)
        return [y, *torch.autograd.grad(y.sum(), x)]

    x = torch.cat([torch.linspace(-100, 100, 2001), torch.tensor([math.inf, -math.inf])])
    before = make_fx(function)(x)
    after = Sizes(rewritten(before, [x]))
    assert all(torch.allclose(a, b, rtol=1e-6) for a, b in zip(after.run(x), before(x)))
    assert "aten::log_sigmoid_forward" not in after.sizes and len(after.sizes["aten::exp"]) == 2


def test_random_numbers_stay_as_many_as_they_were():
    def drawn(p):
        return [torch.bernoulli(p.expand(6, 3)), torch.normal(p.expand(6, 3), 1.0), torch.rand_like(p.expand(6, 3)).exp()]

    p = torch.rand(3)
    before = make_fx(drawn)(p)
    after = rewritten(before, [p])
    results = []
    for module in (before, after):
        torch.manual_seed(0)
        results.append(module(p))
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_digamma_is_as_exact_as_torchs_and_written_into_graphs():
    x = torch.cat([torch.logspace(-30, 30, 2001), torch.linspace(0.001, 20, 10001), -torch.rand(1000) * 5])
    truth = torch.digamma(x.double())
    error = lambda found: ((found.double() - truth).abs() / (1 + truth.abs()))[x > 0].max()
    assert error(digamma(x)) < 1.2 * error(torch.digamma(x)) < 1e-6
    assert torch.allclose(digamma(x), torch.digamma(x), rtol=1e-4, atol=1e-4)  # near poles, x is not exact
    ends = torch.tensor([0.0, math.inf, -1.0, -math.inf, math.nan])
    assert torch.equal(digamma(ends).nan_to_num(7.0), torch.digamma(ends).nan_to_num(7.0))
    module = make_fx(lambda x: [torch.digamma(x), torch.digamma(x.double())])(x)
    after = Sizes(rewritten(module, [x]))
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(after.run(x), module(x)))
    assert after.sizes["aten::digamma"] == [len(x)]  # in double precision


def test_lgamma_is_nearly_as_exact_as_torchs_and_written_into_graphs():
    """Relative to itself for x > 0, zeros at 1 and 2 included, so that many zeros among counts add no error."""
    x = torch.cat([torch.logspace(-37, 35, 2001), torch.linspace(0.001, 20, 10001), torch.linspace(1 - 1e-4, 2 + 1e-4, 10001)])
    truth = torch.lgamma(x.double())
    error = lambda found: ((found.double() - truth).abs() / truth.abs())[truth != 0].max()
    assert error(torch.lgamma(x)) < error(lgamma(x)) < 1e-6
    assert lgamma(torch.tensor([1.0, 2.0])).tolist() == [0.0, 0.0]
    negative = -torch.rand(1000) * 5
    assert torch.allclose(lgamma(negative), torch.lgamma(negative), rtol=1e-5, atol=1e-5)
    ends = torch.tensor([0.0, math.inf, -1.0, -1e30, -math.inf, math.nan, 1e38])
    assert torch.equal(lgamma(ends).nan_to_num(7.0), torch.lgamma(ends).nan_to_num(7.0))
    module = make_fx(lambda x: [torch.lgamma(x), torch.lgamma(x.double())])(x)
    after = Sizes(rewritten(module, [x]))
    assert all(torch.allclose(a, b, rtol=1e-6) for a, b in zip(after.run(x), module(x)))
    assert after.sizes["aten::lgamma"] == [len(x)]  # in double precision


def layer(x, w, b, full):
    noise = torch.empty(4, 2).normal_()
    return [torch.addmm(b, x, w), torch.addmm(full, x, w), torch.addmm(b, x, w, beta=2), noise.exp(), torch.zeros(3).normal_(1.0, 2.0)]


def test_a_bias_is_added_apart_and_noise_is_a_new_tensor():
    inputs = [torch.randn(4, 3), torch.randn(3, 5), torch.randn(5), torch.randn(4, 5)]
    before = make_fx(layer)(*inputs)
    after = Sizes(rewritten(before, inputs))
    results = []
    for run in (before, after.run):
        torch.manual_seed(0)
        results.append(run(*inputs))
    assert all(torch.allclose(a, b) for a, b in zip(*results)) and torch.equal(results[0][3], results[1][3])
    assert after.sizes["aten::addmm"] == [20, 20] and after.sizes["aten::mm"] == [20]
    half = [each.bfloat16() for each in inputs[:3]]
    product = make_fx(lambda x, w, b: [torch.addmm(b, x, w)])(*half)
    assert torch.equal(rewritten(product, half)(*half)[0], product(*half)[0])  # rounded once
    assert after.sizes["aten::randn"] == [8] and after.sizes["aten::normal_"] == [3]


def bernoulli(logits, x):
    logits = logits.requires_grad_()
    loss = -dist.Bernoulli(logits=logits, validate_args=False).log_prob(x).sum() + torch.nn.functional.softplus(logits, threshold=40).sum()
    return [loss, *torch.autograd.grad(loss, [logits])]


def test_softplus_is_exact_and_written_into_graphs():
    x = torch.cat([torch.linspace(-90, 90, 100_001), torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan])])
    truth = x[:-5].double().exp().log1p()
    assert ((softplus(x)[:-5].double() - truth).abs() <= 2e-7 * truth + 1e-44).all()
    assert softplus(x)[-5:].tolist()[:4] == [pytest.approx(math.log(2))] * 2 + [math.inf, 0.0] and softplus(x)[-1].isnan()
    inputs = [torch.linspace(-30, 30, 1000), torch.arange(1000) % 2.0]
    before = make_fx(bernoulli)(*inputs)
    after = Sizes(rewritten(before, inputs))
    assert all(torch.allclose(a, b, rtol=1e-6) for a, b in zip(before(*inputs), after.run(*inputs)))
    assert not {"aten::softplus", "aten::binary_cross_entropy_with_logits"} & after.sizes.keys()
    entropy = make_fx(lambda x: [torch.nn.functional.binary_cross_entropy_with_logits(x, torch.ones_like(x), reduction="none")])(x[:-5])
    (found,), (expected,) = rewritten(entropy, [x[:-5]])(x[:-5]), entropy(x[:-5])
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-37)  # where the logit is large as well
    other = make_fx(lambda x: [torch.nn.functional.softplus(x, 2.0), torch.nn.functional.softplus(x, 1, 5)])(x)
    assert all(torch.equal(a, b) for a, b in zip(other(x[:-1]), rewritten(other, [x])(x[:-1])))


def test_a_graph_that_cannot_be_rewritten_is_compiled_as_it_is(monkeypatch):
    before = make_fx(lambda x: [x.exp()])(torch.rand(3))
    monkeypatch.setattr(rewriting, "vectorize", lambda graph: 1 / 0)
    assert rewriting.rewritten(before, [torch.rand(3)]) is before
