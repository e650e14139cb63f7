"""Random small programs have one loss, under ``pyro.infer.SVI`` and under ``pa.SVI`` in each mode."""

import functools
from dataclasses import dataclass, replace

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro import optim, poutine
from pyro.distributions import constraints
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from pyro_programs.comparison import differences, run

import pyroae as pa

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

ROWS, WIDTH = 5, 2  # of the data; of the inner plate


@dataclass(frozen=True)
class Site:
    """A latent site or the observed one: where it is, what it is, and what is put around it."""

    kind: str
    plates: str  # "none", "data" or "inner", which is inside the data plate
    scale: float | None
    mask: bool | None  # all alike, or (None) none


@dataclass(frozen=True)
class Spec:
    latents: tuple[Site, ...]
    observed: Site
    subsample: int | None


def sites(kinds, plates):
    return st.builds(
        Site, st.sampled_from(kinds), st.sampled_from(plates), st.sampled_from([None, 0.5, 3.0]), st.sampled_from([None, False, True])
    )


def specs(kinds, plates=("none", "data", "inner")):
    latents = st.lists(sites(kinds, plates), min_size=1, max_size=3).map(tuple)
    return st.builds(spec_of, latents, sites(["Normal", "Poisson"], ["data", "inner"]), st.sampled_from([None, 3]))


def spec_of(latents, observed, subsample):
    """What Pyro would refuse is changed: an inner site needs an inner x; what is summed out is in the data plate, with the scale of x."""
    latents = tuple(replace(site, plates="data", scale=observed.scale) if site.kind in DISCRETE else site for site in latents)
    inner = any(site.plates == "inner" for site in latents)
    return Spec(latents, replace(observed, plates="inner") if inner else observed, subsample)


CONTINUOUS = ["Normal", "LogNormal", "Beta"]
DISCRETE = ["Bernoulli", "Categorical"]


def prior(kind):
    return {
        "Normal": dist.Normal(torch.tensor(0.3), 1.5),
        "LogNormal": dist.LogNormal(torch.tensor(0.0), 0.5),
        "Beta": dist.Beta(torch.tensor(2.0), 3.0),
        "Bernoulli": dist.Bernoulli(torch.tensor(0.3)),
        "Categorical": dist.Categorical(torch.tensor([0.2, 0.3, 0.5])),
    }[kind]


def posterior(kind, i):
    a = pyro.param(f"a_{i}", lambda: torch.randn(()) * 0.3)
    b = pyro.param(f"b_{i}", torch.tensor(0.8), constraint=constraints.positive)
    if kind == "Beta":
        return dist.Beta(1 + a.exp(), 1 + b)
    return {"Normal": dist.Normal, "LogNormal": dist.LogNormal}[kind](a, b)


class around:
    """The plates, the scale and the mask of a site."""

    def __init__(self, site, data, inner):
        self.contexts = [data] if site.plates != "none" else []
        self.contexts += [inner] if site.plates == "inner" else []
        self.contexts += [poutine.scale(scale=site.scale)] if site.scale is not None else []
        self.contexts += [poutine.mask(mask=torch.tensor(site.mask))] if site.mask is not None else []

    def __enter__(self):
        for context in self.contexts:
            context.__enter__()

    def __exit__(self, *problem):
        for context in reversed(self.contexts):
            context.__exit__(*problem)


def programs(spec):
    """Model and guide; discrete sites are summed out in the model."""

    def model(x):
        data = pyro.plate("data", len(x), subsample_size=spec.subsample, dim=-1)
        inner = pyro.plate("inner", WIDTH, dim=-2)
        total = torch.zeros(())
        for i, site in enumerate(spec.latents):
            infer = {"enumerate": "parallel"} if site.kind in DISCRETE else {}
            with around(site, data, inner):
                total = total + pyro.sample(f"z_{i}", prior(site.kind), infer=infer)
        with data as rows:
            batch = x[rows]
        with around(spec.observed, data, inner):
            likelihood = dist.Normal(total, 0.7) if spec.observed.kind == "Normal" else dist.Poisson(total.sigmoid() * 4)
            pyro.sample("x", likelihood, obs=batch)

    def guide(x):
        data = pyro.plate("data", len(x), subsample_size=spec.subsample, dim=-1)
        inner = pyro.plate("inner", WIDTH, dim=-2)
        with data:
            pass
        for i, site in enumerate(spec.latents):
            if site.kind not in DISCRETE:
                with around(site, data, inner):
                    pyro.sample(f"z_{i}", posterior(site.kind, i))

    return model, guide


def program(spec, SVI, steps):
    pyro.clear_param_store()
    model, guide = programs(spec)
    x = dist.Poisson(2.0).expand([ROWS]).sample()
    discrete = any(site.kind in DISCRETE for site in spec.latents)
    elbo = TraceEnum_ELBO(max_plate_nesting=2) if discrete else Trace_ELBO(max_plate_nesting=2)
    svi = SVI(model, guide, optim.Adam({"lr": 0.02}), elbo)
    for _ in range(steps):
        yield svi.step(x)
    yield svi.evaluate_loss(x)


def compare(spec, mode, steps=3):
    make = functools.partial(program, spec)
    theirs = run(make, pyro.infer.SVI, steps)
    return differences(run(make, functools.partial(pa.SVI, compile=pa.Step(mode, precision="highest")), steps), theirs)


def few(examples):
    return settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@few(12)
@given(specs(CONTINUOUS + DISCRETE), st.sampled_from(["eager", "traced", "auto"]))
def test_steps_return_pyros_losses(spec, mode):
    assert max(compare(spec, mode)) < 1e-6


@pytest.mark.slow
@few(300)
@given(specs(CONTINUOUS + DISCRETE), st.sampled_from(["eager", "traced", "auto"]))
def test_steps_of_many_programs_return_pyros_losses(spec, mode):
    assert max(compare(spec, mode)) < 1e-6


@pytest.mark.slow
@few(15)
@given(specs(CONTINUOUS + DISCRETE))
def test_compiled_steps_return_pyros_losses_within_rounding(spec):
    assert max(compare(spec, "compiled")) < 1e-5
