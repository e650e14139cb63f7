"""Invariant 1: model and guide are plain Pyro programs and work with all of Pyro."""

import copy

import pyro
import pytest
import torch
from conftest import linear_gaussian, small_vae
from pyro import distributions as dist
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import MCMC, NUTS, SVI, Predictive, RenyiELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO

import pyroae as pa

ELBOS = [
    Trace_ELBO(),
    TraceMeanField_ELBO(),
    TraceGraph_ELBO(),
    RenyiELBO(num_particles=3),
    Trace_ELBO(num_particles=4, vectorize_particles=True),
]
IDS = ["Trace", "TraceMeanField", "TraceGraph", "Renyi", "vectorized"]


@pytest.mark.parametrize("elbo", ELBOS, ids=IDS)
def test_pyro_svi_trains_it(elbo, vae, digits):
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), elbo)
    x = digits.train.x[:256]
    losses = [svi.step(x) / len(x) for _ in range(60)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_elbo_module_and_torch_optimizer_train_it(vae, digits):
    loss = Trace_ELBO()(vae.model, vae.guide)
    assert {id(p) for p in loss.parameters()} == {id(p) for p in vae.parameters()}
    optimizer, x, losses = torch.optim.Adam(loss.parameters(), lr=1e-2), digits.train.x[:256], []
    for _ in range(60):
        optimizer.zero_grad()
        value = loss(x)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < 0.8 * losses[0]


def test_sites_and_plate(vae, digits):
    trace = poutine.trace(vae.model).get_trace(digits.test.x[:5])
    assert [name for name, site in trace.nodes.items() if site["type"] == "sample"] == ["data", "z", "x"]
    assert trace.nodes["x"]["is_observed"] and trace.nodes["z"]["cond_indep_stack"][0].name == "data"
    assert set(poutine.trace(vae.guide).get_trace(digits.test.x[:5]).stochastic_nodes) == {"data", "z"}


def test_predictive_draws_from_it(vae, digits):
    draws = Predictive(vae.model, num_samples=7)(None, n=3)
    assert draws["x"].shape == (7, 3, 64) and draws["z"].shape == (7, 3, 4)
    posterior = Predictive(vae.guide, num_samples=7)(digits.test.x[:3])
    assert posterior["z"].shape == (7, 3, 4)


def test_nuts_samples_the_exact_posterior():
    exact = linear_gaussian()
    x = exact.x[:1]
    chain = MCMC(NUTS(exact.ae.model), num_samples=400, warmup_steps=200, disable_progbar=True)
    chain.run(x)
    z = chain.get_samples()["z"][:, 0]
    q = exact.ae.encode(x)
    assert torch.allclose(z.mean(0), q.mean[0], atol=0.15) and torch.allclose(z.std(0), q.stddev[0], rtol=0.25)


@pytest.mark.parametrize(
    "make_second", [lambda first: small_vae(), copy.deepcopy, lambda first: first.replace()], ids=["new", "deepcopy", "replace"]
)
def test_two_models_in_one_process(make_second, vae, digits):
    x, second = digits.train.x[:64], make_second(vae)
    before = [p.clone() for p in second.parameters()]
    optimizer = pyro.optim.Adam({"lr": 1e-2})
    SVI(vae.model, vae.guide, optimizer, Trace_ELBO()).step(x)
    assert all(torch.equal(a, b) for a, b in zip(before, second.parameters(), strict=True))
    first = [p.clone() for p in vae.parameters()]
    SVI(second.model, second.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO()).step(x)
    assert not any(torch.equal(a, b) for a, b in zip(before, second.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first, vae.parameters(), strict=True))


def test_a_used_autoencoder_can_still_be_copied(vae, digits):
    pa.fit(vae, digits.train, epochs=1, progress=False)
    other = copy.deepcopy(vae)
    assert torch.equal(other.reconstruct(digits.test.x), vae.reconstruct(digits.test.x))
    pa.fit(other, digits.train, epochs=1, progress=False)
    assert not torch.equal(other.reconstruct(digits.test.x), vae.reconstruct(digits.test.x))


# --- replace ---


def _weights(network):
    return [p.detach().clone() for p in network.parameters()]


def _same(before, network):
    after = list(network.parameters())
    return len(before) == len(after) and all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(before, after))


@pytest.mark.parametrize(
    "change, encoder_kept, decoder_kept",
    [
        ({"prior": pa.priors.Laplace(4)}, True, True),
        ({"prior": pa.priors.Laplace()}, True, True),
        ({"prior": pa.priors.Normal(6)}, False, False),
        ({"prior": dist.StudentT(3.0, torch.zeros(4), 1.0)}, True, True),
        ({"posterior": pa.posteriors.Delta()}, False, True),
        ({"likelihood": pa.likelihoods.ContinuousBernoulli()}, True, True),
        ({"likelihood": pa.likelihoods.Normal(scale=None)}, True, False),
        ({"encoder": pa.nets.MLP(8)}, False, True),
        ({"corruption": pa.corruption.Gaussian()}, True, True),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_replace_keeps_what_fits_and_rebuilds_the_rest(change, encoder_kept, decoder_kept, vae, grey):
    encoder, decoder = _weights(vae.encoder), _weights(vae.decoder)
    new = vae.replace(**change)
    assert _same(encoder, new.encoder) == encoder_kept and _same(decoder, new.decoder) == decoder_kept
    assert not {id(p) for p in new.parameters()} & {id(p) for p in vae.parameters()}
    x = (grey.test.x[:3] > 0.5).float()
    assert new.decode(new.encode(x).mean).log_prob(x).isfinite().all()


def test_replace_keeps_a_users_network_and_its_training(digits):
    own = torch.nn.Sequential(torch.nn.Linear(64, 8))
    ae = small_vae().replace(encoder=own)
    assert torch.equal(ae.encoder[0].weight, own[0].weight)
    kept = ae.replace(prior=pa.priors.Laplace(4))
    assert torch.equal(kept.encoder[0].weight, own[0].weight) and kept.encoder is not own


# --- encode, decode, reconstruct, sample ---


def test_shapes_and_leading_dimensions(vae, digits):
    x = digits.test.x[:5]
    assert vae.encode(x).batch_shape == (5,) and vae.reconstruct(x).shape == (5, 64) and vae.sample(7).shape == (7, 64)
    z = torch.randn(3, 5, 4)
    assert vae.decode(z).batch_shape == (3, 5)
    assert torch.allclose(vae.decode(z).mean[1], vae.decode(z[1]).mean, atol=1e-6)


def test_images_keep_their_shape():
    ae = small_vae(x=(1, 8, 8))
    x = torch.rand(5, 1, 8, 8).round()
    assert ae.reconstruct(x).shape == x.shape
    pa.fit(ae, x, epochs=1, progress=False)
    assert pa.log_likelihood(ae, x, particles=10, proposal="guide").values.shape == (5,)


def test_a_users_network_of_any_kind_works_with_particles():
    """A convolution takes exactly one batch dimension; vectorised particles put two in front."""
    encoder = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, stride=2), torch.nn.Flatten(), torch.nn.Linear(36, 8))
    ae = small_vae(x=(1, 8, 8)).replace(encoder=encoder)
    loss = Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    assert loss.loss(ae.model, ae.guide, torch.rand(5, 1, 8, 8).round()) > 0


def test_corruption_acts_only_in_training_and_only_on_the_encoders_input(vae, digits):
    seen = []
    ae = vae.replace(corruption=pa.corruption.Masking(1.0))
    ae.encoder.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    x = digits.test.x[:5]
    trace = poutine.trace(ae.train().model).get_trace(x)
    ae.guide(x)
    ae.eval().guide(x)
    assert (seen[0] == 0).all() and torch.equal(seen[1], x) and torch.equal(trace.nodes["x"]["value"], x)


def test_every_autoencoder_builds_its_own_parts(digits):
    likelihood, prior = pa.likelihoods.Normal(64), pa.priors.Normal(4, scale="learned")
    first, second = small_vae(likelihood=likelihood, prior=prior), small_vae(likelihood=likelihood, prior=prior)
    owned = [{id(p) for p in each.parameters()} for each in (first, second, likelihood, prior)]
    assert len(set().union(*owned)) == sum(map(len, owned)) and owned[3]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda ae: ae, lambda ae: ae.replace(likelihood=pa.likelihoods.Normal(64))])
def test_supports_are_known_in_every_copy(copied):
    ae = copied(small_vae(prior=pa.priors.Flat(4), posterior=pa.posteriors.Delta()))
    assert ae.prior.support == constraints.real and ae.posterior.limits["v"] == constraints.real


def test_draws_without_gradients_are_trained_by_the_score_function():
    """z ~ Bernoulli(.5), x ~ N(3 z, 1), every x is 3: q(z = 1) goes to .989."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(3 * z, 1.0), obs=x)

    def guide(x):
        logit = pyro.param("test_logit", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=logit))

    history = pa.fit(model, torch.full((200,), 3.0), guide=guide, epochs=150, lr=0.05, batch_size=100, progress=False, seed=0)
    assert history.objective == "TraceGraph_ELBO" and pyro.param("test_logit").sigmoid().item() > 0.95


def test_an_elbo_changed_by_a_callback_is_changed_in_training(vae, digits):
    objective = pa.objectives.Tempered(0.0)
    anneal = lambda row: setattr(objective, "beta", 1000.0)  # noqa: E731
    history = pa.fit(vae, digits.train, elbo=objective, epochs=2, callbacks=[anneal], lr=1e-9, progress=False)
    assert history.loss[1] > history.loss[0] + 10
