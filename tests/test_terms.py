"""Scales, masks and subsampled plates in bounds per example: closed forms, and Trace_ELBO at the same draws for random programs."""

import math
from contextlib import nullcontext
from dataclasses import dataclass

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

import pyroae as pa
from pyroae.programs.particles import on_particles
from pyroae.programs.scales import ScaleFactors
from pyroae.programs.terms import TraceTerms, draws_of

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

IWAE, PIWAE, Renyi, FreeBits = (getattr(pa.objectives, name) for name in ("IWAE", "PIWAE", "Renyi", "FreeBits"))
LOG_2PI = math.log(2 * math.pi)
X = torch.linspace(-2.0, 3.0, 12, dtype=torch.float64)


def loss_of(objective, model, guide, *args, seed=0):
    torch.manual_seed(seed)
    return float(objective.loss(model, guide, *args))


def normal_pair(z_scale=1.0, x_scale=1.0, around=1.0, plate=lambda x: pyro.plate("data", len(x)), widen=1.0):
    """z ~ N(0, 1), x ~ N(z, 1), the likelihood to the power s = x_scale / z_scale; the guide is the exact posterior of that, widened."""

    def model(x):
        with poutine.scale(scale=around), plate(x) as rows:
            with poutine.scale(scale=z_scale):
                z = pyro.sample("z", dist.Normal(X.new_zeros(()), 1.0))
            with poutine.scale(scale=x_scale):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    def guide(x):
        s = x_scale / z_scale
        with poutine.scale(scale=around), plate(x) as rows, poutine.scale(scale=z_scale):
            pyro.sample("z", dist.Normal(s * x[rows] / (1 + s), widen / (1 + s) ** 0.5))

    return model, guide


def log_power_evidence(x, s=1.0):
    """log of the integral of N(z; 0, 1) N(x; z, 1)^s over z."""
    return -0.5 * (s * LOG_2PI + math.log(1 + s) + s * x.square() / (1 + s))


BOUNDS = {
    "IWAE": lambda: IWAE(7),
    "STL": lambda: IWAE(7, gradient="stl"),
    "DReG": lambda: IWAE(7, gradient="dreg"),
    "MIWAE": lambda: IWAE(3, groups=2),
    "PIWAE": lambda: PIWAE(3, groups=2),
    "Renyi": lambda: Renyi(0.5, 6),
}


@pytest.mark.parametrize("s", [1.0, 0.25, 46.0])
@pytest.mark.parametrize("name", BOUNDS)
def test_bounds_equal_the_scaled_evidence_at_its_exact_posterior(name, s):
    assert -loss_of(BOUNDS[name](), *normal_pair(x_scale=s), X) == pytest.approx(log_power_evidence(X, s).sum().item(), rel=1e-9)


SUBSAMPLED = {
    "all rows": (lambda x: pyro.plate("data", len(x)), 1.0),
    "rows drawn": (lambda x: pyro.plate("data", 12, subsample_size=12), 1.0),
    "rows given": (lambda x: pyro.plate("data", 240, subsample=torch.arange(12)), 20.0),
}


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("around", [1.0, 0.1])
@pytest.mark.parametrize("plate", SUBSAMPLED)
def test_a_shared_scale_multiplies_the_bound(name, around, plate):
    make, factor = SUBSAMPLED[plate]
    value = -loss_of(BOUNDS[name](), *normal_pair(x_scale=0.5, around=around, plate=make), X)
    assert value == pytest.approx(factor * around * log_power_evidence(X, 0.5).sum().item(), rel=1e-9)


def test_a_shared_scale_multiplies_the_bound_also_with_scaled_latents():
    """As the weight of the KL goes to 1 the bound goes to the scaled bound without it."""
    losses = {
        around: [loss_of(IWAE(5), *normal_pair(z_scale=beta, around=around, widen=1.5), X) for beta in (1.0, 0.999999)]
        for around in (1.0, 0.01)
    }
    for around, (one, nearly) in losses.items():
        assert one == pytest.approx(around * losses[1.0][0], rel=1e-6) and nearly == pytest.approx(one, rel=1e-4)


def test_weights_of_examples_multiply_the_bounds_of_examples():
    weights = torch.arange(12.0, dtype=torch.float64)[1:] + 1
    value = -loss_of(IWAE(5), *normal_pair(around=weights), X[1:])
    assert value == pytest.approx((weights * log_power_evidence(X[1:])).sum().item(), rel=1e-9)


def test_dreg_is_unbiased_with_scaled_latents():
    loc = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def model(x):
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=0.4):
                z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)), poutine.scale(scale=0.4):
            pyro.sample("z", dist.Normal(x / 2 + loc, 0.9))

    gradients = {}
    for kind in ("plain", "dreg"):
        torch.manual_seed(0)
        many = X[:1].expand(4000)
        draws = [torch.autograd.grad(IWAE(3, gradient=kind).differentiable_loss(model, guide, many), loc)[0] / 4000 for _ in range(20)]
        gradients[kind] = torch.stack(draws)
    error = sum(draws.var() / 20 for draws in gradients.values()).sqrt()
    assert (gradients["plain"].mean() - gradients["dreg"].mean()).abs() < 4.5 * error
    assert error < 0.02 * gradients["plain"].mean().abs()


def test_dreg_is_unbiased_with_a_flow_that_caches_its_draws():
    torch.manual_seed(0)
    flow = dist.transforms.affine_autoregressive(2, hidden_dims=[4])
    with torch.no_grad():
        for p in flow.parameters():
            p.copy_(0.5 * torch.randn_like(p))
    loc = torch.tensor([0.3, -0.2], requires_grad=True)
    x = X[:1].float().expand(2000)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.TransformedDistribution(dist.Normal(x[:, None] / 3 + loc, 0.7).to_event(1), [flow]))

    gradients = {}
    for kind in ("plain", "dreg"):
        torch.manual_seed(0)
        losses = (IWAE(3, gradient=kind).differentiable_loss(model, guide, x) / 2000 for _ in range(25))
        gradients[kind] = torch.stack([torch.autograd.grad(loss, loc)[0] for loss in losses])
    error = sum(draws.var(0) / 25 for draws in gradients.values()).sqrt()
    difference = (gradients["plain"].mean(0) - gradients["dreg"].mean(0)).abs()
    assert (difference < 4.5 * error).all() and (error < 0.05 * gradients["plain"].mean(0).abs().max()).all()


@pytest.mark.parametrize("guide_is_masked", [True, False])
@pytest.mark.parametrize("name", BOUNDS)
def test_the_models_mask_applies_to_the_guide(name, guide_is_masked):
    """Half of x observed, the rest drawn: log p of the observed half, whatever the guide does for the other."""
    seen = torch.arange(12) % 2 == 0

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(x.new_zeros(()), 1.0), obs=x, obs_mask=seen)

    def guide(x):
        with pyro.plate("data", len(x)), poutine.mask(mask=~seen if guide_is_masked else torch.tensor(True)):
            pyro.sample("x_unobserved", dist.Normal(x.new_zeros(()), 1.0))

    exact = dist.Normal(X.new_zeros(()), 1.0).log_prob(X)[seen].sum().item()
    assert -loss_of(BOUNDS[name](), model, guide, X) == pytest.approx(exact, rel=1e-9)


def test_a_rerun_of_the_model_has_the_same_rows():
    model, guide = normal_pair(plate=lambda x: pyro.plate("data", 12, subsample_size=3), widen=1.3)
    assert loss_of(PIWAE(3, groups=2), model, guide, X) == pytest.approx(loss_of(IWAE(6), model, guide, X), rel=1e-12)


# --- random programs ---


@dataclass(frozen=True)
class Latent:
    """A latent site: its event dimensions, and how it is scaled, masked and placed."""

    event: int
    scale: float
    masked: bool
    inner: bool


@dataclass(frozen=True)
class Plan:
    """A small program."""

    latents: tuple[Latent, ...]
    x_scale: float
    x_masked: bool
    around: float
    drawn: int | None  # rows of the data's plate that are drawn, of 6
    inner_drawn: int | None  # of the inner plate's 4
    sequential: bool  # whether x has a sequential inner plate
    data_dim: int  # -1, or -2 with the inner plate at -1

    def model(self, x):
        return self._run(x, guide=False)

    def guide(self, x):
        return self._run(x, guide=True)

    def _run(self, x, guide):
        x = x if self.data_dim == -1 else x[:, None]
        inner_dim = -3 - self.data_dim
        total = x.new_zeros(())
        with poutine.scale(scale=self.around), pyro.plate("data", len(x), subsample_size=self.drawn, dim=self.data_dim) as rows:
            x, inner = x[rows], pyro.plate("inner", 4, subsample_size=self.inner_drawn, dim=inner_dim)
            for i, latent in enumerate(self.latents):
                loc = total / 2 + (x / 3 if guide else 0.0)
                fn = dist.Normal(loc[..., None].expand(*loc.shape, 2), 0.7).to_event(1) if latent.event else dist.Normal(loc, 0.8 + 0.1 * i)
                with poutine.scale(scale=latent.scale), poutine.mask(mask=x > 0) if latent.masked else nullcontext():
                    with inner if latent.inner else nullcontext():
                        z = pyro.sample(f"z{i}", fn)
                z = z.sum(-1) if latent.event else z
                total = total + (z.mean(inner_dim, keepdim=True) if latent.inner else z)
            if not guide:
                with poutine.scale(scale=self.x_scale), poutine.mask(mask=x < 1) if self.x_masked else nullcontext():
                    self._observe(x, total, inner)

    def _observe(self, x, loc, inner):
        if self.sequential:
            for k in pyro.plate("steps", 3, subsample_size=self.inner_drawn and 2):
                pyro.sample(f"x{k}", dist.Normal(loc, 1.0 + float(k)), obs=x)
        else:
            with inner as steps:
                scale = 1.0 + steps.reshape((-1, 1) if inner.dim == -2 else (-1,))
                pyro.sample("x", dist.Normal(loc, scale), obs=x)


SCALES = st.sampled_from([1.0, 0.3, 4.0])
LATENTS = st.lists(st.builds(Latent, st.sampled_from([0, 1]), SCALES, st.booleans(), st.booleans()), min_size=1, max_size=3).map(tuple)
PLANS = st.builds(
    Plan,
    latents=LATENTS,
    x_scale=SCALES,
    x_masked=st.booleans(),
    around=SCALES,
    drawn=st.sampled_from([None, 2]),
    inner_drawn=st.sampled_from([None, 3]),
    sequential=st.booleans(),
    data_dim=st.sampled_from([-1, -2]),
)
ONE = {
    "IWAE": lambda: IWAE(1),
    "STL": lambda: IWAE(1, gradient="stl"),
    "DReG": lambda: IWAE(1, gradient="dreg"),
    "PIWAE": lambda: PIWAE(1, groups=1),
    "Renyi": lambda: Renyi(0.5, 1),
}
ROWS = torch.tensor([-1.5, -0.5, 0.5, 1.5, 2.5, 0.7], dtype=torch.float64)


@settings(max_examples=40, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(PLANS)
def test_one_particle_is_trace_elbo_at_the_same_draws(plan):
    expected = loss_of(Trace_ELBO(), plan.model, plan.guide, ROWS)
    for name, make in ONE.items():
        if len(plan.latents) == 1 or name not in ("STL", "DReG"):
            assert loss_of(make(), plan.model, plan.guide, ROWS) == pytest.approx(expected, rel=1e-9, abs=1e-9), name
    if len(plan.latents) == 1:
        expected = loss_of(TraceMeanField_ELBO(), plan.model, plan.guide, ROWS)
        assert loss_of(FreeBits(0.0), plan.model, plan.guide, ROWS) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@settings(max_examples=15, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(PLANS)
def test_many_particles_equal_trace_elbo_and_have_its_weights(plan):
    expected = loss_of(Trace_ELBO(5, 2, vectorize_particles=True), plan.model, plan.guide, ROWS)
    assert loss_of(Renyi(1.0, 5), plan.model, plan.guide, ROWS) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert loss_of(PIWAE(5, groups=1), plan.model, plan.guide, ROWS) == pytest.approx(
        loss_of(IWAE(5), plan.model, plan.guide, ROWS), rel=1e-9, abs=1e-9
    )
    assert loss_of(IWAE(5), plan.model, plan.guide, ROWS) <= expected + 1e-9


@settings(max_examples=25, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(PLANS)
def test_plate_fold_and_loop_have_the_same_terms(plan):
    def run(how, model_draws, guide_draws):
        programs = [ScaleFactors()(on_particles(program, 3, 2, how, plan.data_dim)) for program in (plan.model, plan.guide)]
        model, guide = (
            poutine.trace(poutine.replay(program, trace=draws)).get_trace(ROWS)
            for program, draws in zip(programs, (model_draws, guide_draws))
        )
        return model, guide

    torch.manual_seed(0)
    _, guide = run("plate", poutine.Trace(), poutine.Trace())
    model, _ = run("plate", draws_of(guide), draws_of(guide))
    expected = TraceTerms(model, guide)
    for how in ("plate", "loop") if plan.drawn else ("plate", "fold", "loop"):
        terms = TraceTerms(*run(how, draws_of(model), draws_of(guide)))
        assert torch.allclose(terms.log_p(), expected.log_p()) and torch.allclose(terms.log_q(), expected.log_q()), how
        assert terms.scale.equal(expected.scale) and terms.particles == 3, how
        assert terms.kl.item() == pytest.approx(expected.kl.item(), rel=1e-9), how
