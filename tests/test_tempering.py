"""Weighted, floored and targeted KLs against closed forms; schedules and their advance."""

import copy

import pyro
import pytest
import torch
from conftest import linear_gaussian, small_vae
from pyro import distributions as dist
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch.distributions import kl_divergence

import pyroae as pa
from pyroae.training.step.graph import Graph

Capacity, FreeBits, Tempered = pa.objectives.Capacity, pa.objectives.FreeBits, pa.objectives.Tempered
Linear, Cyclical = pa.schedules.Linear, pa.schedules.Cyclical


def unit_kls(q):
    """Mean over examples of each unit's KL from N(0, 1)."""
    return (0.5 * (q.mean**2 + q.variance - 1 - q.variance.log())).mean(0)


def expected_error(model):
    """E of half the squared error over the noise, summed over examples, without constants."""
    q = model.ae.encode(model.x)
    spread = (q.variance[0] * model.w.square()).sum() * len(model.x)
    return 0.5 * ((model.x - model.b - q.mean @ model.w.T).square().sum() + spread) / model.noise**2


FORMULAS = {
    "Tempered": (lambda: Tempered(2.5), lambda kl: 2.5 * kl.sum()),
    "Tempered, Trace_ELBO": (lambda: Tempered(2.5, Trace_ELBO()), lambda kl: 2.5 * kl.sum()),
    "free bits, none": (lambda: FreeBits(0.0), lambda kl: kl.sum()),
    "free bits": (lambda: FreeBits(1.0), lambda kl: sum(max(k, 1 + 0 * k) for k in kl)),
    "capacity above": (lambda: Capacity(1.0, weight=3.0), lambda kl: 3.0 * (kl.sum() - 1.0)),
    "capacity below": (lambda: Capacity(50.0, weight=3.0, particles=4), lambda kl: 3.0 * (50.0 - kl.sum())),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_value_and_gradient_are_the_formulas_in_expectation(name):
    make, cost = FORMULAS[name]
    model = linear_gaussian(widen=1.2)
    ae, parameter, constant = model.ae, model.ae.encoder.weight, 40 * 7 * (0.5 * torch.tensor(2 * torch.pi * 0.36).log())
    kl = unit_kls(ae.encode(model.x))
    assert kl.min() < 1.0 < kl.max()  # so that the floor matters
    exact = expected_error(model) + 40 * cost(kl) + constant
    exact = torch.cat([exact.detach()[None], torch.autograd.grad(exact, parameter)[0].flatten()])
    draws = []
    for _ in range(400):
        loss = make().differentiable_loss(ae.model, ae.guide, model.x)
        draws.append(torch.cat([loss.detach()[None], torch.autograd.grad(loss, parameter)[0].flatten()]))
    draws = torch.stack(draws)
    assert ((draws.mean(0) - exact).abs() < 4.5 * draws.std(0) / 400**0.5 + 1e-6).all()


def test_free_bits_floors_a_site_with_dependent_dimensions(digits):
    ae = small_vae(prior=pa.priors.GaussianMixture(4, components=3))
    terms = FreeBits(0.0).terms(ae.model, ae.guide, digits.test.x)
    floored = FreeBits(100.0).terms(ae.model, ae.guide, digits.test.x)
    assert floored["loss"] + floored["reconstruction"] == pytest.approx(100.0, rel=1e-5)
    assert terms["loss"] == pytest.approx((terms["kl"] - terms["reconstruction"]).item(), rel=1e-5)
    ladder = small_vae(prior=pa.priors.Hierarchical(4, top=2, hidden=8), posterior=pa.posteriors.Hierarchical(hidden=8))
    floored = FreeBits(100.0).terms(ladder.model, ladder.guide, digits.test.x)
    assert floored["loss"] + floored["reconstruction"] == pytest.approx(600.0, rel=1e-5)  # 4 units of z and 2 of z2


def test_particles_and_mini_batches_scale_alike():
    """Half of the data in a plate of the whole: the loss is twice the half's, whatever the particles."""
    x = torch.randn(50, dtype=torch.float64)

    def model(rows):
        with pyro.plate("data", 50, subsample=rows):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(0 * z, 1.0), obs=x[rows])

    def guide(rows):
        with pyro.plate("data", 50, subsample=rows):
            pyro.sample("z", dist.Normal(x[rows], 0.7))

    rows = torch.arange(25)
    kl = kl_divergence(dist.Normal(x[:25], 0.7), dist.Normal(0.0, 1.0)).mean()
    log_p = dist.Normal(0.0, 1.0).log_prob(x[:25]).sum()
    for particles in (1, 3):
        expected = {Capacity(0.0, 2.0, particles): 2 * kl, FreeBits(0.0, particles): kl, FreeBits(9.0, particles): 9.0}
        for objective, cost in expected.items():
            assert objective.loss(model, guide, rows) == pytest.approx((50 * cost - 2 * log_p).item(), rel=1e-9)
    tempered = Tempered(2.0, TraceMeanField_ELBO()).loss(model, guide, rows)
    assert tempered == pytest.approx((50 * 2 * kl - 2 * log_p).item(), rel=1e-9)


# --- schedules ---


def test_schedules_by_hand():
    assert [Linear(4, 1.0, 3.0)(step) for step in range(6)] == [1.0, 1.5, 2.0, 2.5, 3.0, 3.0]
    assert [Cyclical(4, rise=0.75, end=0.3)(step) for step in range(9)] == pytest.approx([0.0, 0.1, 0.2, 0.3] * 2 + [0.0])


def test_training_advances_schedules_and_evaluation_does_not(digits):
    x, objective, ae = digits.train.x[:100], Tempered(Linear(100, end=10.0)), small_vae()
    tensor, seen = objective.beta, []
    watch = lambda row: seen.append(objective.beta.item())  # noqa: E731
    pa.fit(ae, x, elbo=objective, epochs=3, batch_size=25, validation=digits.test, callbacks=[watch], progress=False)
    assert seen == pytest.approx([0.4, 0.8, 1.2])
    svi = SVI(ae.model, ae.guide, pyro.optim.Adam({"lr": 1e-3}), objective)
    svi.step(x), svi.evaluate_loss(x), objective.loss(ae.model, ae.guide, x), objective.terms(ae.model, ae.guide, x)
    assert objective.beta.item() == pytest.approx(1.3)
    objective(ae.model, ae.guide)(x).backward()
    assert objective.beta.item() == pytest.approx(1.3)  # who steps an optimizer of their own says so
    objective.advance()
    objective.advance(1000)
    assert objective.beta.item() == 10.0 and objective.beta is tensor


def test_nested_schedules_advance(digits):
    inner = Tempered(lambda step: step / 8)
    ae, x = small_vae(), digits.train.x[:64]
    pa.fit(ae, x, elbo=pa.Penalised(pa.penalties.L2(), inner), epochs=2, batch_size=16, progress=False)
    assert inner.beta.item() == 1.0
    SVI(ae.model, ae.guide, pyro.optim.Adam({"lr": 1e-3}), pa.objectives.CIWAE(3, elbo=inner)).step(x)
    assert inner.beta.item() == 9 / 8


def test_a_schedule_enters_the_loss_and_may_be_replaced(digits):
    ae, x, objective = small_vae(), digits.test.x, Tempered(Linear(10))
    terms = TraceMeanField_ELBO().loss, objective.terms(ae.model, ae.guide, x)["kl"].item() * len(x)
    losses = []
    for beta in (None, 3.0, lambda step: 5.0 + step):
        if beta is not None:
            objective.beta = beta
        torch.manual_seed(0)
        losses.append(objective.loss(ae.model, ae.guide, x))
    assert losses[1] - losses[0] == pytest.approx(3 * terms[1], rel=1e-3)
    assert losses[2] - losses[1] == pytest.approx(2 * terms[1], rel=1e-3)
    with pytest.raises(ValueError, match="Tempered: expected beta of at least 0.*got -2"):
        objective.beta = lambda step: -2.0


def test_copies_have_their_own_schedules():
    first = Tempered(Linear(10))
    second = copy.deepcopy(first)
    first.advance(5)
    assert (first.beta.item(), second.beta.item()) == (0.5, 0.0)
    assert first.replace().beta.item() == 0.0


@pytest.mark.parametrize("make", [lambda: Tempered(Linear(10)), lambda: Capacity(Linear(10, end=30.0))], ids=["Tempered", "Capacity"])
def test_a_traced_graph_reads_the_current_value(make, digits):
    ae, x, objective = small_vae(posterior=pa.posteriors.Delta()), digits.test.x[:20], make()
    with pyro.validation_enabled(False):
        graph = Graph(lambda: [objective.differentiable_loss(ae.model, ae.guide, x)], [x])
        for _ in range(3):
            objective.advance(3)
            eager = objective.differentiable_loss(ae.model, ae.guide, x)
            assert graph([x])[0].item() == pytest.approx(eager.item(), rel=1e-6)
    assert not torch.equal(make().differentiable_loss(ae.model, ae.guide, x), eager)


@pytest.mark.parametrize("make", [lambda: Linear(0), lambda: Cyclical(10, rise=0.0), lambda: Capacity(weight=-1.0), lambda: FreeBits(-1.0)])
def test_bad_schedules_are_named(make):
    with pytest.raises(ValueError, match="expected .* got"):
        make()


# --- terms ---

REPORTS = {
    "Tempered": (lambda: Tempered(2.0), lambda t: 2 * t["kl"] - t["reconstruction"]),
    "FreeBits": (lambda: FreeBits(0.0), lambda t: t["kl"] - t["reconstruction"]),
    "Capacity": (lambda: Capacity(3.0, 2.0), lambda t: 2 * (t["kl"] - 3.0).abs() - t["reconstruction"]),
    "Penalised": (lambda: pa.Penalised(pa.penalties.L2(0.3)), lambda t: t["kl"] - t["reconstruction"] + t["penalty"]),
    "Penalised, contractive": (
        lambda: pa.Penalised(pa.penalties.Contractive(0.3), TraceMeanField_ELBO(2, 1, vectorize_particles=True)),
        lambda t: t["kl"] - t["reconstruction"] + t["penalty"],
    ),
    "sequential": (
        lambda: pa.Penalised(pa.penalties.L2(0.3), TraceMeanField_ELBO(3)),
        lambda t: t["kl"] - t["reconstruction"] + t["penalty"],
    ),
}


@pytest.mark.parametrize("name", REPORTS)
def test_terms_add_up_in_nats_per_example(name, digits):
    make, loss = REPORTS[name]
    ae, x = small_vae(), digits.test.x
    terms, whole = make().terms(ae.model, ae.guide, x), pa.elbo_terms(ae, x, particles=50)
    assert terms["loss"].item() == pytest.approx(loss(terms).item(), rel=1e-4)
    assert terms["kl"].item() == pytest.approx(whole.kl.mean().item(), rel=1e-3)
    assert terms["reconstruction"].item() == pytest.approx(whole.reconstruction.mean().item(), rel=0.02)
    assert not any(term.requires_grad for term in terms.values())


def test_terms_of_bounds_are_those_of_the_elbo(digits):
    ae, x = small_vae(), digits.test.x
    for objective in (pa.objectives.IWAE(20), pa.objectives.PIWAE(5, groups=4)):
        terms, whole = objective.terms(ae.model, ae.guide, x), pa.elbo_terms(ae, x, particles=50)
        assert terms["loss"] < terms["kl"] - terms["reconstruction"] - 0.01
        assert terms["reconstruction"].item() == pytest.approx(whole.reconstruction.mean().item(), rel=0.01)


@pytest.mark.parametrize(
    "inner",
    [
        lambda: pa.objectives.IWAE(5),
        lambda: FreeBits(),
        lambda: pa.objectives.CIWAE(3),
        lambda: pa.Penalised(pa.penalties.L2(), Capacity()),
    ],
)
def test_bounds_without_a_kl_to_weigh_are_refused(inner):
    with pytest.raises(ValueError, match="expected an ELBO with a KL to weigh"):
        Tempered(2.0, inner())


def test_priors_on_weights_are_not_tempered():
    ae, x = small_vae(posterior=pa.posteriors.Delta(), prior=pa.priors.Normal(4)), torch.rand(10, 64).round()
    both, prior = pa.with_weight_prior(ae, dist.Normal(0.0, 0.1), num_data=20), dist.Normal(0.0, 0.1)
    weights = [p for name, p in ae.named_parameters() if name.endswith("weight")]
    expected = -0.5 * sum(prior.log_prob(w).sum() for w in weights).item()
    for beta in (0.0, 1.0, 4.0):
        added = Tempered(beta).loss(*both, x) - Tempered(beta).loss(ae.model, ae.guide, x)
        assert added == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("particles", [1, 3])
def test_plates_inside_the_data_with_one_particle_and_several(particles):
    x = torch.randn(8, 3)

    def program(observe):
        def run(x):
            with pyro.plate("data", len(x), dim=-1), pyro.plate("inner", 3, dim=-2):
                z = pyro.sample("z", dist.Normal(0.0, 1.0) if observe else dist.Normal(0.5, 0.5))
                if observe:
                    pyro.sample("x", dist.Normal(0.0 * z, 1.0), obs=x.T)

        return run

    kl = 3 * kl_divergence(dist.Normal(0.5, 0.5), dist.Normal(0.0, 1.0)).item()
    terms = FreeBits(0.0, particles, max_plate_nesting=2).terms(program(True), program(False), x)
    assert terms["kl"].item() == pytest.approx(kl, rel=1e-5)
    assert terms["reconstruction"].item() == pytest.approx(dist.Normal(0.0, 1.0).log_prob(x).sum().item() / 8, rel=1e-5)
