"""Priors, posteriors and likelihoods together: every pair that makes sense trains, scores, copies and comes back."""

import copy

import pytest
import torch
from conftest import linear_gaussian, small_vae
from pyro import distributions as dist
from torch.distributions import kl_divergence

import pyroae as pa
from pyroae.model.distributions import PowerSpherical

PRIORS = {
    "Normal": lambda: pa.priors.Normal(4),
    "Laplace": lambda: pa.priors.Laplace(4),
    "SoftLaplace": lambda: pa.priors.SoftLaplace(4),
    "StudentT": lambda: pa.priors.StudentT(4),
    "Logistic": lambda: pa.priors.Logistic(4),
    "GaussianMixture": lambda: pa.priors.GaussianMixture(4, components=3),
    "VampPrior": lambda: pa.priors.VampPrior(4, components=5),
    "Flow": lambda: pa.priors.Flow(4, layers=2, hidden=8),
    "Pyro's": lambda: dist.StudentT(3.0, torch.zeros(4), 1.0),
}
POSTERIORS = {
    "Normal": lambda: pa.posteriors.Normal(),
    "Laplace": lambda: pa.posteriors.Laplace(),
    "StudentT": lambda: pa.posteriors.StudentT(),
    "FullNormal": lambda: pa.posteriors.FullNormal(),
    "LowRankNormal": lambda: pa.posteriors.LowRankNormal(),
    "Flow": lambda: pa.posteriors.Flow(hidden=8),
}
LIKELIHOODS = {
    "Bernoulli": lambda: pa.likelihoods.Bernoulli(64),
    "ContinuousBernoulli": lambda: pa.likelihoods.ContinuousBernoulli(64),
    "Normal": lambda: pa.likelihoods.Normal(64),
    "Laplace": lambda: pa.likelihoods.Laplace(64),
    "StudentT": lambda: pa.likelihoods.StudentT(64),
    "GreyLevels": lambda: pa.likelihoods.GreyLevels(64, levels=17),
    "DiscretizedLogistic": lambda: pa.likelihoods.DiscretizedLogistic(64, levels=17),
    "OptimalNormal": lambda: pa.likelihoods.OptimalNormal(64),
    "LogisticMixture": lambda: pa.likelihoods.LogisticMixture(64, components=2, levels=17),
}
COUNTED = {
    "Poisson": lambda: pa.likelihoods.Poisson(64),
    "NegativeBinomial": lambda: pa.likelihoods.NegativeBinomial(64),
    "ZeroInflatedNegativeBinomial": lambda: pa.likelihoods.ZeroInflatedNegativeBinomial(64),
    "Categorical": lambda: pa.likelihoods.Categorical(64, categories=17),
}
HIERARCHICAL = lambda: pa.priors.Hierarchical(4, top=2, hidden=8), lambda: pa.posteriors.Hierarchical(hidden=8)  # noqa: E731


def make(prior, posterior, likelihood):
    return pa.Autoencoder(prior(), likelihood(), posterior(), pa.nets.MLP(16), pa.nets.MLP(16))


def improves(ae, x):
    before, weights = pa.elbo_terms(ae, x).elbo.mean().item(), [p.detach().clone() for p in ae.parameters()]
    history = pa.fit(ae, x, epochs=3, batch_size=64, lr=3e-3, progress=False, seed=0)
    after = pa.elbo_terms(ae, x).elbo.mean().item()
    assert after > before and all(p.isfinite().all() and not p.equal(old) for p, old in zip(ae.parameters(), weights, strict=True))
    return history


def scores(ae, x):
    """ELBO <= log p(x), give or take what both are uncertain of."""
    score, terms = pa.log_likelihood(ae, x, particles=100, proposal="guide"), pa.elbo_terms(ae, x, particles=50)
    assert score.values.isfinite().all() and score.mean > terms.elbo.mean().item() - 4 * score.mc_se - 0.3


def survives_copying(ae, x, tmp_path):
    pa.save(ae, tmp_path / "model.safetensors")
    for other in (copy.deepcopy(ae), ae.replace(), pa.load(tmp_path / "model.safetensors")):
        assert torch.equal(other.reconstruct(x), ae.reconstruct(x))
        assert torch.equal(pa.elbo_terms(other, x).elbo, pa.elbo_terms(ae, x).elbo)
        assert not {id(p) for p in other.parameters()} & {id(p) for p in ae.parameters()}


@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("prior", PRIORS)
def test_prior_and_posterior(prior, posterior, digits, tmp_path):
    ae, x = make(PRIORS[prior], POSTERIORS[posterior], LIKELIHOODS["Bernoulli"]), digits.test.x
    assert improves(ae, x).objective == "TraceMeanField_ELBO"
    scores(ae, x[:20])
    survives_copying(ae, x[:5], tmp_path)
    assert ae.sample(3).shape == (3, 64)


@pytest.mark.parametrize("likelihood", LIKELIHOODS | COUNTED)
def test_likelihood(likelihood, grey, tmp_path):
    x = grey.test.x if likelihood in LIKELIHOODS else 16 * grey.test.x
    x = x.round() if likelihood == "Bernoulli" else x
    ae = make(PRIORS["Normal"], POSTERIORS["Normal"], (LIKELIHOODS | COUNTED)[likelihood])
    improves(ae, x)
    scores(ae, x[:20])
    survives_copying(ae, x[:5], tmp_path)
    ae.likelihood.check(ae.sample(10))


@pytest.mark.slow
@pytest.mark.parametrize("likelihood", LIKELIHOODS | COUNTED)
@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("prior", PRIORS)
def test_every_prior_posterior_and_likelihood(prior, posterior, likelihood, grey):
    x = grey.test.x if likelihood in LIKELIHOODS else 16 * grey.test.x
    x = x.round() if likelihood == "Bernoulli" else x
    improves(make(PRIORS[prior], POSTERIORS[posterior], (LIKELIHOODS | COUNTED)[likelihood]), x)


def test_the_optimal_scale_is_the_root_mean_squared_error(grey):
    """In training the loss is that of the best scale, found by hand; its gradient is that of D/2 log(mean squared error)."""
    ae, x = make(PRIORS["Normal"], lambda: pa.posteriors.Delta(), LIKELIHOODS["OptimalNormal"]), grey.train.x[:100]
    error = lambda: (x - ae.likelihood(ae.decoder(ae.encoder(x))).mean).square().mean()  # noqa: E731
    loss = pa.objectives.default_elbo().differentiable_loss(ae.train().model, ae.guide, x)
    log_p = -100 * 64 / 2 * ((2 * torch.pi * error()).log() + 1) + ae.prior().log_prob(ae.encoder(x)).sum()
    assert loss.item() == pytest.approx(-log_p.item(), rel=1e-5)
    gradients = [torch.autograd.grad(each, ae.decoder[0].weight)[0] for each in (loss, -log_p)]
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-3)
    assert ae.likelihood.scale[0].item() == pytest.approx(error().sqrt().item(), rel=1e-5)  # after a single batch
    pa.fit(ae, grey.train, epochs=60, batch_size=64, progress=False)
    assert ae.likelihood.scale[0].item() == pytest.approx(error().sqrt().item(), rel=0.1)  # what evaluation uses


def test_log_prob_changes_nothing_and_forward_tracks_the_scale():
    table = pa.likelihoods.Product({"a": pa.likelihoods.OptimalNormal(1), "b": pa.likelihoods.Normal(1)}, order=[1, 0])
    ae, x = small_vae(x=2, likelihood=table).train(), 3 * torch.randn(50, 2)
    before = {name: tensor.clone() for name, tensor in ae.state_dict().items()}
    p = ae.decode(torch.zeros(50, 4))
    p.log_prob(x)
    assert all(torch.equal(before[name], tensor) for name, tensor in ae.state_dict().items())
    with torch.no_grad():
        ae.model(x)
    assert ae.likelihood.columns[0].batches == 1 and ae.likelihood.columns[0].scale.item() != 1.0


TOP_DOWN = lambda: pa.priors.Hierarchical(4, top=2, hidden=8, skip=True), lambda: pa.posteriors.TopDown(features=8, hidden=8)  # noqa: E731


@pytest.mark.parametrize("pair", [HIERARCHICAL, TOP_DOWN], ids=["Burda", "Tomczak"])
def test_hierarchical(pair, digits, tmp_path):
    ae, x = make(*pair, LIKELIHOODS["Bernoulli"]), digits.test.x
    assert improves(ae, x).objective == "Trace_ELBO"
    scores(ae, x[:20])
    survives_copying(ae, x[:5], tmp_path)
    assert ae.sample(3).shape == (3, 64)
    assert make(*pair, LIKELIHOODS["Bernoulli"]).replace(prior=pa.priors.Hierarchical(5, top=3)).sample(2).shape == (2, 64)


def test_hierarchical_elbo_is_trace_elbos(digits):
    from pyro.infer import Trace_ELBO

    ae, x = make(*HIERARCHICAL, LIKELIHOODS["Bernoulli"]), digits.test.x[:50]
    elbo = pa.elbo_terms(ae, x, particles=10_000).elbo
    loss = Trace_ELBO(num_particles=10_000, vectorize_particles=True, max_plate_nesting=1).loss(ae.model, ae.guide, x)
    assert elbo.mean().item() == pytest.approx(-loss / 50, abs=0.05)


@pytest.mark.parametrize("prior", [lambda: pa.priors.Normal(4), HIERARCHICAL[0]], ids=["one level", "two"])
def test_levels_that_do_not_match_are_named(prior):
    posterior = HIERARCHICAL[1] if prior is not HIERARCHICAL[0] else POSTERIORS["Normal"]
    with pytest.raises(ValueError, match="posterior .*draws z.*Hierarchical"):
        make(prior, posterior, LIKELIHOODS["Bernoulli"])


@pytest.mark.parametrize(
    "prior, posterior",
    [("Normal", "Normal"), ("Laplace", "Laplace"), ("Laplace", "Normal"), ("Normal", "Laplace")],
)
def test_closed_form_kl_is_the_monte_carlo_one(prior, posterior):
    ae = make(PRIORS[prior], POSTERIORS[posterior], LIKELIHOODS["Normal"]).double()
    q, p = ae.encode(torch.randn(5, 64).double()), ae.prior()
    z = q.sample((40000,))
    difference = q.log_prob(z) - p.log_prob(z)
    assert ae.has_closed_form_kl
    assert ((difference.mean(0) - kl_divergence(q, p.expand([5]))).abs() < 5 * difference.std(0) / 200).all()


def test_a_user_can_ask_whether_the_kl_is_in_closed_form():
    assert not make(PRIORS["StudentT"], POSTERIORS["Normal"], LIKELIHOODS["Bernoulli"]).has_closed_form_kl
    assert not make(*HIERARCHICAL, LIKELIHOODS["Bernoulli"]).has_closed_form_kl


def test_a_full_covariance_posterior_can_be_the_exact_one():
    exact = linear_gaussian()
    ae = exact.ae.replace(posterior=pa.posteriors.FullNormal(), encoder=torch.nn.Linear(7, 3 + 9)).double()
    with torch.no_grad():
        ae.encoder.weight.zero_(), ae.encoder.bias.zero_()
        ae.encoder.weight[:3], ae.encoder.bias[:3] = exact.ae.encoder.weight, exact.ae.encoder.bias
        ae.encoder.bias[3:] = torch.diag(-0.5 * exact.precision.log()).flatten()  # the log of the diagonal of the Cholesky factor
    assert torch.allclose(pa.log_likelihood(ae, exact.x, particles=10, proposal="guide").values, exact.log_p, atol=1e-9)


def test_vamp_prior_is_the_mixture_of_its_posteriors_encoded_once_a_step(digits):
    ae, rows = make(PRIORS["VampPrior"], POSTERIORS["Normal"], LIKELIHOODS["Bernoulli"]), []
    ae.prior.measure(digits.train.x)
    pseudo = ae.prior.raw.sigmoid()
    assert ((pseudo > 0) & (pseudo < 1)).all() and ((pseudo > 0.5).float().mean() - digits.train.x.mean()).abs() < 0.1
    z = torch.randn(7, 4)
    q = ae.encode(pseudo)
    mixture = torch.stack([q.log_prob(one) for one in z]).logsumexp(1) - torch.tensor(5.0).log()
    assert torch.allclose(ae.prior().log_prob(z), mixture, atol=1e-4)
    ae.encoder.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))
    loss = dist and pa.objectives.default_elbo().differentiable_loss(ae.model, ae.guide, digits.test.x[:30])
    loss.backward()
    assert rows == [30, 5] and ae.prior.raw.grad.abs().sum() > 0


def test_an_evaluation_encodes_the_pseudo_inputs_once_and_anew(digits):
    ae, rows, z = make(PRIORS["VampPrior"], POSTERIORS["Normal"], LIKELIHOODS["Bernoulli"]), [], torch.randn(7, 4)
    ae.encoder.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))
    score = lambda: pa.log_likelihood(ae, digits.test.x[:200], particles=2000, proposal="guide").mean  # noqa: E731
    before = score()
    assert rows.count(5) == 1 and len(rows) > 3  # several blocks
    with torch.no_grad():
        ae.prior.raw.add_(3.0)
    assert score() != before and torch.equal(ae.model.frozen().prior().log_prob(z), ae.prior().log_prob(z))


def test_a_flow_posterior_remembers_its_draws(digits, monkeypatch):
    """Inverting an autoregressive transform takes a step for each entry; training and scoring need not."""
    from pyro.distributions.transforms import AffineAutoregressive

    ae = make(PRIORS["Normal"], lambda: pa.posteriors.Flow(hidden=8, layers=3), LIKELIHOODS["Bernoulli"])
    monkeypatch.setattr(AffineAutoregressive, "_inverse", lambda self, y: pytest.fail("inverted a transform of its own draw"))
    pa.fit(ae, digits.test.x, epochs=1, progress=False)
    pa.log_likelihood(ae, digits.test.x[:10], particles=50, proposal="guide")


# --- codes that are categories, bits or directions ---


def test_categories_are_summed_out_exactly(digits, tmp_path):
    """With z enumerated, the loss at the exact posterior is -log p(x), a sum over the categories written out here."""
    ae = make(lambda: pa.priors.OneHot(4, logits="learned"), pa.posteriors.OneHot, LIKELIHOODS["Bernoulli"])
    x = digits.test.x[:30]
    joint = torch.stack([ae.prior().log_prob(z) + ae.decode(z).log_prob(x) for z in torch.eye(4)], 1)  # (30, 4)
    objective = pa.objectives.default_elbo([{"infer": {"enumerate": "parallel"}}])
    q = ae.encode(x).logits.log_softmax(-1)
    by_hand = (q.exp() * (joint - q)).sum()
    assert objective.loss(ae.model, ae.guide, x) == pytest.approx(-by_hand.item(), rel=1e-5)
    gradients = [torch.autograd.grad(-by_hand, list(ae.parameters()), retain_graph=True)]
    gradients.append(torch.autograd.grad(objective.differentiable_loss(ae.model, ae.guide, x), list(ae.parameters())))
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in zip(*gradients, strict=True))
    assert improves(ae, digits.test.x).objective == "TraceEnum_ELBO"
    scores(ae, x)
    survives_copying(ae, x, tmp_path)


@pytest.mark.parametrize(
    "prior, posterior",
    [
        (pa.priors.OneHot, pa.posteriors.OneHotStraightThrough),
        (pa.priors.Bernoulli, pa.posteriors.BernoulliStraightThrough),
        (pa.priors.Sphere, pa.posteriors.ProjectedNormal),
        (pa.priors.Sphere, pa.posteriors.PowerSpherical),
        (pa.priors.OneHot, pa.posteriors.OneHotGumbel),
        (pa.priors.Bernoulli, pa.posteriors.BernoulliGumbel),
        (pa.priors.RelaxedOneHot, pa.posteriors.RelaxedOneHot),
        (pa.priors.RelaxedBernoulli, pa.posteriors.RelaxedBernoulli),
    ],
)
def test_codes_off_the_real_line(prior, posterior, digits, tmp_path):
    ae, x = make(lambda: prior(3), posterior, LIKELIHOODS["Bernoulli"]), digits.test.x
    z = ae.encode(x[:7]).sample()
    assert ae.prior.support.check(z).all() if prior is pa.priors.Bernoulli else ae.prior().support.check(z).all()
    improves(ae, x)
    scores(ae, x[:20])
    survives_copying(ae, x[:5], tmp_path)
    assert ae.sample(3).shape == (3, 64)


def test_the_exact_posterior_over_categories_gives_log_p(digits):
    """Importance weights of discrete codes: with q = p(z|x) every weight is p(x)."""
    ae, x = make(lambda: pa.priors.OneHot(4), pa.posteriors.OneHot, LIKELIHOODS["Bernoulli"]), digits.test.x[:30]
    joint = torch.stack([ae.prior().log_prob(z) + ae.decode(z).log_prob(x) for z in torch.eye(4)], 1).detach()
    ae.guide.encoder = torch.nn.Identity()
    ae.guide.params = lambda x, c: joint
    assert torch.allclose(pa.log_likelihood(ae, x, particles=7, proposal="guide").values.float(), joint.logsumexp(1), atol=1e-3)


def test_the_sphere_has_its_area():
    area = {2: 2 * torch.pi, 3: 4 * torch.pi}
    for size, expected in area.items():
        log_p = pa.priors.Sphere(size)().log_prob(torch.eye(size)[0]).item()
        assert log_p == pytest.approx(-torch.tensor(expected).log().item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["iaf", "planar", "radial"])
def test_flows_without_an_inverse_weigh_their_own_draws(kind, digits):
    """A linear-Gaussian model, whose log p(x) importance weights give; and training."""
    exact = linear_gaussian(widen=1.5)
    ae = exact.ae.replace(posterior=pa.posteriors.Flow(base=exact.ae.posterior, kind=kind)).double()
    with torch.no_grad():
        ae.encoder.weight.copy_(exact.ae.encoder.weight), ae.encoder.bias.copy_(exact.ae.encoder.bias)
    estimate = pa.log_likelihood(ae, exact.x, particles=4000, proposal="guide")
    assert estimate.mean == pytest.approx(exact.log_p.mean().item(), abs=0.05)
    improves(make(lambda: pa.priors.Normal(4), lambda: pa.posteriors.Flow(kind=kind), LIKELIHOODS["Bernoulli"]), digits.test.x)
    with pytest.raises(ValueError, match="expected kind as one of iaf, planar, radial, got 'plane'"):
        pa.posteriors.Flow(4, kind="plane")


@pytest.mark.parametrize("size", [2, 3, 6])
@pytest.mark.parametrize("concentration", [0.0, 3.0, 40.0])
def test_the_power_spherical_density_its_draws_and_its_kl(size, concentration):
    """It integrates to 1, draws have its mean and its entropy, and KL from the uniform one is in closed form."""
    torch.manual_seed(0)
    direction = torch.nn.functional.normalize(torch.randn(size), dim=0).double()
    q, uniform = PowerSpherical(direction, torch.tensor(concentration).double()), pa.priors.Sphere(size).double()()
    z, even = q.sample((40_000,)), uniform.sample((400_000,))
    assert (q.log_prob(even) - uniform.log_prob(even)).exp().mean().item() == pytest.approx(1.0, abs=0.03)
    assert torch.allclose(z.norm(dim=1), torch.ones(len(z)).double()) and torch.allclose(z.mean(0), q.mean, atol=0.02)
    by_draws = (q.log_prob(z) - uniform.log_prob(z)).mean()
    assert torch.distributions.kl_divergence(q, uniform).item() == pytest.approx(by_draws.item(), abs=0.02)


@pytest.mark.parametrize(
    "prior, posterior, words",
    [
        (lambda: pa.priors.Normal(4), pa.posteriors.OneHot, "categories or bits.*OneHot"),
        (lambda: pa.priors.OneHot(4), pa.posteriors.Normal, "draws any real z.*Delta"),
        (lambda: pa.priors.Sphere(5), pa.posteriors.ProjectedNormal, "2, 3 and 4 dimensions, got 5"),
    ],
)
def test_codes_that_do_not_fit_are_named(prior, posterior, words):
    with pytest.raises(ValueError, match=words):
        make(prior, posterior, LIKELIHOODS["Bernoulli"])
