"""What is known beside x: conditional models, and classes of which some are told."""

import copy

import pytest
import torch
from conftest import small_vae
from pyro.infer import Predictive, Trace_ELBO, TraceEnum_ELBO

import pyroae as pa

LABELS, COVARIATES = pa.conditions.Labels(10), pa.conditions.Covariates(3)


@pytest.mark.parametrize("prior", [lambda: pa.priors.Normal(4), lambda: pa.priors.Conditioned(4, hidden=8)], ids=["p(z)", "p(z|y)"])
def test_a_conditional_vae_is_told_the_label(prior, digits, tmp_path):
    cvae, plain = small_vae(prior=prior(), condition=LABELS), small_vae()
    for model in (cvae, plain):
        history = pa.fit(model, digits.train, epochs=15, batch_size=64, lr=3e-3, validation=digits.test, progress=False, seed=0)
        assert history.loss[-1] < history.loss[0]
    told, untold = (pa.elbo_terms(model, digits.test).elbo.mean().item() for model in (cvae, plain))
    assert told > untold + 0.5  # a label is worth up to log 10 nats
    x, y = digits.test.x[:50], digits.test.labels[:50]
    score = pa.log_likelihood(cvae, (x, y), particles=100, proposal="guide")
    assert torch.equal(score.values, pa.log_likelihood(cvae, (x, y), particles=100, proposal="guide").values)
    assert score.mean > pa.log_likelihood(cvae, (x, (y + 1) % 10), particles=100, proposal="guide").mean + 1
    pa.save(cvae, tmp_path / "model.safetensors")
    for other in (copy.deepcopy(cvae), cvae.replace(), pa.load(tmp_path / "model.safetensors")):
        assert torch.equal(other.reconstruct(x, y), cvae.reconstruct(x, y))
    assert cvae.has_closed_form_kl and cvae.sample(y=y).shape == (50, 64)
    assert Predictive(cvae.model, num_samples=7)(None, y)["x"].shape == (7, 50, 64)


def test_samples_are_of_the_class_asked_for(digits):
    from sklearn.neighbors import KNeighborsClassifier

    cvae = pa.recipes.conditional(digits, latent_dim=4)
    pa.fit(cvae, digits.train, epochs=40, batch_size=64, lr=3e-3, progress=False, seed=0)
    y = torch.arange(200) % 10
    means = cvae.likelihood.mean_or_mode(cvae.decode(cvae.sample_prior(y=y), y)).detach()
    judge = KNeighborsClassifier(3).fit(digits.train.x.numpy(), digits.train.labels.numpy())
    assert judge.score(means.numpy(), y.numpy()) > 0.8


def test_covariates_reach_prior_encoder_and_decoder():
    """x = W y + noise: a model that is told y needs no code."""
    y = torch.randn(400, 3)
    x = y @ torch.randn(3, 6) + 0.3 * torch.randn(400, 6)
    parts = pa.likelihoods.Normal(6), pa.posteriors.Normal(), pa.nets.MLP(16), pa.nets.Linear()
    ae = pa.Autoencoder(pa.priors.Conditioned(1, hidden=8), *parts, condition=COVARIATES)
    pa.fit(ae, (x, y), epochs=120, batch_size=50, lr=2e-2, progress=False, seed=0)
    assert pa.log_likelihood(ae, (x, y), particles=100, proposal="guide").mean == pytest.approx(-6 * 0.215, abs=0.4)
    ae.zero_grad()
    Trace_ELBO().differentiable_loss(ae.model, ae.guide, x, y).backward()
    first = [ae.prior.network[0], ae.encoder[0], ae.decoder[0]]
    assert all(layer.weight.grad[:, -3:].abs().sum() > 0 for layer in first)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def test_labels_are_planes_beside_an_image(shape):
    ae = pa.Autoencoder(
        pa.priors.Normal(4),
        pa.likelihoods.Normal(shape, scale=1.0),
        pa.posteriors.Normal(),
        pa.nets.Conv([4]),
        pa.nets.Deconv([4], image=shape),
        condition=LABELS,
    )
    x, y = torch.randn(5, *shape), torch.arange(5)
    assert ae.reconstruct(x, y).shape == x.shape and ae.encoder[2].in_channels == shape[0] + 10
    assert not torch.equal(ae.encode(x, y).mean, ae.encode(x, y + 1).mean)


def m2(condition=pa.conditions.PartialLabels(10), **parts):
    return small_vae(
        prior=pa.priors.ClassAndStyle(3), posterior=pa.posteriors.Clusters(features=8, hidden=16), condition=condition, **parts
    )


def test_labels_that_are_missing_are_summed_out(digits):
    """The M2 loss, by hand: -L(x, y) where y is told, otherwise -(sum_y q(y|x) L(x, y) + H(q(y|x))) (Kingma et al. 2014, eq. 6-7)."""
    ae, x, labels = m2(), digits.test.x[:40], digits.test.labels[:40].clone()
    labels[::2] = -1
    with torch.no_grad():  # a style whose scale is 0 takes the noise out
        ae.posterior.network[-1].weight[3:].zero_(), ae.posterior.network[-1].bias[3:].fill_(-12.0)
    logits, features = ae.guide.params(x).split([10, 8], -1)
    bounds = []
    for y in torch.eye(10):
        q = ae.posterior.below(features, y.expand(40, 10))
        z = q.mean
        log_p = ae.decode(torch.cat([z, y.expand(40, 10)], -1)).log_prob(x) + ae.prior.style().log_prob(z) - torch.tensor(10.0).log()
        bounds.append(log_p + q.entropy())
    bounds, guess = torch.stack(bounds, 1), logits.log_softmax(-1)
    untold = (guess.exp() * (bounds - guess)).sum(1)
    told = bounds.gather(1, labels.clamp(min=0)[:, None])[:, 0]
    by_hand = -torch.where(labels < 0, untold, told).sum().item()
    many = TraceEnum_ELBO(num_particles=300, vectorize_particles=True, max_plate_nesting=1)
    assert many.loss(ae.model, ae.guide, x, labels) == pytest.approx(by_hand, abs=3.0)  # of 3,200
    plain, losses = TraceEnum_ELBO(max_plate_nesting=1), []
    for elbo in (plain, pa.Penalised(pa.penalties.Classification(2.0), plain)):
        torch.manual_seed(0)
        losses.append(elbo.differentiable_loss(ae.model, ae.guide, x, labels))
    cross_entropy = torch.nn.functional.cross_entropy(logits, labels, ignore_index=-1, reduction="sum")
    assert (losses[1] - losses[0]).item() == pytest.approx(2 * cross_entropy.item(), rel=1e-4)
    loss = losses[1]
    loss.backward()
    assert all(p.grad.isfinite().all() for p in ae.parameters())


def test_few_labels_classify_the_rest(digits):
    labels = digits.train.labels.clone()
    labels[100:] = -1
    ae = pa.Autoencoder(
        pa.priors.ClassAndStyle(8),
        pa.likelihoods.Bernoulli(64),
        pa.posteriors.Clusters(),
        pa.nets.MLP(128),
        pa.nets.MLP(128),
        condition=pa.conditions.PartialLabels(10),
        objective=pa.Penalised(pa.penalties.Classification(10.0), TraceEnum_ELBO(max_plate_nesting=1)),
    )
    history = pa.fit(ae, (digits.train.x, labels), epochs=20, batch_size=64, progress=False, seed=0)
    guessed = ae.encode(digits.test.x).mixture_distribution.probs.argmax(-1)
    assert (guessed == digits.test.labels).float().mean() > 0.8 and history.loss[-1] < history.loss[0]
    x, y = digits.test.x[:20], digits.test.labels[:20]
    joint, marginal = (pa.log_likelihood(ae, data, particles=300, proposal="guide") for data in ((x, y), x))
    assert (joint.values < marginal.values + 0.5).all()  # log p(x, y) <= log p(x)
    assert ae.sample(3).shape == (3, 64) and ae.reconstruct(x).shape == (20, 64)
    with pytest.raises(ValueError, match="from -1 to 9"):
        pa.fit(ae, (digits.train.x, labels - 1))


def test_a_mixture_whose_component_is_summed_out_is_the_mixture(digits):
    """Clusters is GaussianMixture with its component as a site: the same density, by importance weights over both."""
    clusters, mixture = pa.priors.Clusters(4, clusters=3), pa.priors.GaussianMixture(4, components=3)
    ae = small_vae(prior=clusters, posterior=pa.posteriors.Clusters(features=8, hidden=16))
    with torch.no_grad():
        mixture.loc.copy_(ae.prior.loc), mixture.raw_scale.copy_(0.3 * torch.randn(3, 4)), ae.prior.raw_scale.copy_(mixture.raw_scale)
        ae.prior.top.raw_logits.copy_(torch.randn(3)), mixture.logits.copy_(ae.prior.top.raw_logits)
    y, z = torch.eye(3), torch.randn(7, 4)
    by_sum = torch.logsumexp(torch.stack([ae.prior.top().log_prob(one) + ae.prior.below(one).log_prob(z) for one in y]), 0)
    assert torch.allclose(by_sum, mixture().log_prob(z), atol=1e-5)
    other = small_vae(prior=mixture)
    other.decoder.load_state_dict(ae.decoder.state_dict())
    one, two = (pa.log_likelihood(model, digits.test.x[:10], particles=5000, proposal="guide") for model in (ae, other))
    assert ((one.values - two.values).abs() < 5 * (one.errors + two.errors)).all() and one.errors.max() < 0.4
    assert pa.fit(ae, digits.train, epochs=3, progress=False).objective == "TraceEnum_ELBO"
    assert ae.encode(digits.test.x[:5]).mixture_distribution.probs.shape == (5, 3)


X, Y = torch.rand(8, 64).round(), torch.arange(8)
WRONG = {
    "no labels": (lambda: small_vae(condition=LABELS).encode(X), "Labels: expected y as one label for each example.*got NoneType"),
    "labels nobody takes": (lambda: small_vae().encode(X, Y), "no condition and takes x alone"),
    "too few": (lambda: small_vae(condition=LABELS).encode(X, Y[:3]), r"shape \(8,\), got a tensor of shape \(3,\)"),
    "a label out of range": (lambda: pa.fit(small_vae(condition=LABELS), (X, Y + 5)), "from 0 to 9, got values from 5 to 12"),
    "whole covariates": (lambda: small_vae(condition=COVARIATES).encode(X, torch.ones(8, 3).long()), "floating-point numbers"),
    "NaN": (lambda: pa.fit(small_vae(condition=COVARIATES), (X, torch.full((8, 3), torch.nan))), "finite numbers"),
    "data without labels": (lambda: pa.fit(small_vae(condition=LABELS), X), "takes labels, but the data have none"),
    "a split without labels": (lambda: pa.fit(small_vae(condition=LABELS), pa.data.load(X).train), "takes labels, but the data have none"),
    "no labels for the recipe": (lambda: pa.recipes.conditional(pa.data.load(X)), "data with labels"),
    "VampPrior": (lambda: small_vae(prior=pa.priors.VampPrior(4), condition=LABELS), "VampPrior: .*takes no condition"),
    "Conditioned alone": (lambda: small_vae(prior=pa.priors.Conditioned(4)), "with a condition such as"),
    "no condition": (lambda: small_vae(condition=10), r"pa.conditions.Labels\(10\), got 10"),
    "one level": (lambda: small_vae(prior=pa.priors.Clusters(4)), "posterior Normal: draws z, but the prior Clusters z and y"),
    "penalty": (lambda: pa.fit(small_vae(), X, elbo=pa.Penalised(pa.penalties.Classification())), "a guide whose first site is a class"),
    "samples": (lambda: pa.plots.samples(small_vae(condition=COVARIATES)), "no classes to go through; give y"),
    "prior from Pyro": (lambda: pa.priors.FromPyro("Gumbel", 3, loc=0.0), "scale has none"),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors_name_what_was_expected(name):
    wrong, words = WRONG[name]
    with pytest.raises(ValueError, match=words):
        wrong()
