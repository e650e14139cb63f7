"""The page on own parts runs, and the usual mistakes in one are named."""

import re
from pathlib import Path

import pytest
import torch
from conftest import small_vae
from pyro import distributions as dist

import pyroae as pa
from pyroae import registry
from pyroae.experiment.metrics import METRICS

BLOCKS = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[1] / "examples" / "your_own.md").read_text(), re.S)


@pytest.fixture
def restored():
    """The tables of names, as they were."""
    tables = [*registry._TABLE.values(), METRICS]
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)


def test_examples_have_at_most_12_lines():
    for block in BLOCKS:
        assert sum(bool(line.strip()) for line in block.splitlines()) <= 12, block


def test_the_page_runs(restored, tmp_path):
    names: dict = {"__name__": "own"}
    for block in BLOCKS:
        exec(block, names)  # noqa: S102 (our own page)
        model = names.pop("model", None)
        if model is not None:
            history = pa.fit(model, names["digits"].train.x[:64], epochs=1, progress=False)
            pa.save(model, tmp_path / "model.safetensors")
            again = pa.load(tmp_path / "model.safetensors")
            assert torch.isfinite(torch.tensor(history.loss)).all() and torch.equal(again.encoder[-1].weight, model.encoder[-1].weight)
    assert names["sparsity"](names["vae"], names["digits"])[0].keys() == {"sparsity"} and "score" in names["history"].rows[-1]


def prior(forward, **more):
    return type("Own", (pa.priors.Prior,), {"forward": forward, **more})(4)


def likelihood(*args, **methods):
    return type("Own", (pa.likelihoods.Likelihood,), methods)(*args)


def network(build):
    return type("Own", (pa.nets.Network,), {"build": build} if build else {})()


X = torch.rand(20, 64).round()
MISTAKES = {
    "a prior without super().__init__": (
        lambda: small_vae(prior=prior(lambda self: None, __init__=lambda self, event_shape: None)),
        "prior Own: expected its constructor to call super",
    ),
    "a prior without forward": (lambda: small_vae(prior=type("Own", (pa.priors.Prior,), {})(4)), "prior Own: its forward failed"),
    "a prior that gives a tensor": (
        lambda: small_vae(prior=prior(lambda self: torch.zeros(4))),
        "prior Own: .* Pyro distribution, got Tensor",
    ),
    "a prior over single numbers": (
        lambda: small_vae(prior=prior(lambda self: dist.Normal(torch.zeros(4), 1.0))),
        r"batch shape \(\) and event shape \(4,\), got \(4,\) and \(\); .*\.to_event\(n\)",
    ),
    "a prior of no shape": (
        lambda: small_vae(prior=type("Own", (pa.priors.Prior,), {"__init__": lambda self: pa.priors.Prior.__init__(self)})()),
        "expected the shape of one event",
    ),
    "a class for a prior": (lambda: small_vae(prior=pa.priors.Normal), r"expected a part such as pa.priors.Normal\(8\)"),
    "a likelihood without super().__init__": (
        lambda: small_vae(likelihood=likelihood(64, __init__=lambda self, event_shape: None)),
        "likelihood Own: expected its constructor to call super",
    ),
    "a likelihood without a family": (lambda: small_vae(likelihood=likelihood(64)), "expected the class of a Pyro distribution.*got 64"),
    "a likelihood over single numbers": (
        lambda: small_vae(likelihood=likelihood(dist.Normal, 64, forward=lambda self, h: dist.Normal(h[..., :64], 1.0))),
        r"likelihood Own: .*\(2,\) and event shape \(64,\), got \(2, 64\)",
    ),
    "a posterior that cannot follow the prior": (
        lambda: small_vae(posterior=type("Own", (pa.posteriors.Posterior,), {"__init__": own_posterior})()),
        "Own: expected a constructor that takes event_shape",
    ),
    "a network without build": (
        lambda: small_vae().replace(encoder=network(None)),
        r"encoder: .*must implement build\(inputs, outputs",
    ),
    "a build of two arguments": (
        lambda: small_vae().replace(encoder=network(lambda self, inputs, outputs: None)),
        r"encoder: Own.build failed; it is called as build\(inputs, outputs, encoder, image\)",
    ),
    "a network of another size": (
        lambda: small_vae().replace(encoder=network(lambda self, inputs, outputs, encoder, image: torch.nn.Linear(64, 3))),
        "encoder: expected 8 numbers for each example, got 3 from Own",
    ),
    "an objective without a loss": (
        lambda: pa.fit(small_vae(), X, elbo=type("Own", (pa.objectives.Objective,), {})(), progress=False),
        "Own must implement differentiable_loss",
    ),
    "a bound without a bound": (
        lambda: pa.fit(small_vae(), X, elbo=type("Own", (pa.objectives.ImportanceWeighted,), {})(2), progress=False),
        r"Own must implement bound\(log_w\)",
    ),
    "a penalty of one argument": (lambda: pa.Penalised(lambda x: x.sum()), r"function of \(x, z, q\)"),
    "a penalty for each dimension": (
        lambda: pa.fit(small_vae(), X, elbo=pa.Penalised(lambda x, z, q: z), progress=False),
        r"one for each of the 20 examples, got shape \(20, 4\)",
    ),
    "a callback that is no list": (lambda: pa.fit(small_vae(), X, callbacks=print), "callbacks as a list of functions"),
    "a callback that is no function": (lambda: pa.fit(small_vae(), X, callbacks=[3]), "callbacks as a list of functions"),
}


def own_posterior(self):
    pa.posteriors.Posterior.__init__(self, dist.Logistic)


@pytest.mark.parametrize("name", MISTAKES)
def test_usual_mistakes_are_named(name):
    wrong, words = MISTAKES[name]
    with pytest.raises((ValueError, NotImplementedError), match=words):
        wrong()
