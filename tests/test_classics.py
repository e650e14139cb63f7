"""The classical autoencoders, each by the equality that defines it."""

import functools
import math

import numpy as np
import pytest
import torch
from pyro import distributions as dist
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from reproduce.classifier import Classifier, fine_tune, no_latents
from scipy.linalg import subspace_angles
from sklearn.decomposition import PCA, sparse_encode
from torch import nn

import pyroae as pa


def annealed(epochs):
    return lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)


@pytest.fixture(scope="module")
def centred(grey):
    mean = grey.train.x.mean(0)
    return grey.train.x - mean, grey.test.x - mean


def principal(x, x_test, k):
    """scikit-learn's components ``(D, k)`` and its mean squared error on ``x_test``."""
    pca = PCA(k).fit(x.numpy())
    return pca.components_.T, float(np.square(pca.inverse_transform(pca.transform(x_test.numpy())) - x_test.numpy()).mean())


def linear(x, k):
    shape = x.shape[1]
    parts = pa.priors.Flat(k), pa.likelihoods.Normal(shape, scale=1.0), pa.posteriors.Delta(), pa.nets.Linear(), pa.nets.Linear()
    return pa.Autoencoder(*parts)


def check_principal(x, x_test, k, **training):
    ae = linear(x, k)
    components, error = principal(x, x_test, k)
    apart = lambda: np.degrees(subspace_angles(ae.decoder[-1].weight.detach().double().numpy(), components)).max()
    assert apart() > 30  # before
    pa.fit(ae, x, progress=False, seed=0, **training)
    assert apart() < 1
    assert (ae.reconstruct(x_test) - x_test).square().mean().item() == pytest.approx(error, rel=0.01)


def test_a_linear_autoencoder_spans_the_principal_subspace(centred):
    sgd = functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True)
    check_principal(*centred, k=4, epochs=40, lr=8e-4, optimizer=sgd, scheduler=annealed(40))


def test_an_overcomplete_linear_autoencoder_copies(centred):
    x, x_test = centred
    ae = linear(x, 80)
    before = (ae.reconstruct(x_test) - x_test).square().mean() / x_test.square().mean()
    pa.fit(ae, x, epochs=60, lr=1e-2, scheduler=annealed(60), progress=False, seed=0)
    assert before > 0.5 and (ae.reconstruct(x_test) - x_test).square().mean() / x_test.square().mean() < 1e-3
    assert (-dist.Normal(0.0, 1.0).log_prob(torch.tensor(0.0)) * 64).item() == pytest.approx(
        -pa.elbo_terms(ae, x).elbo.mean().item(), abs=1e-2
    )


@pytest.mark.slow
def test_a_linear_autoencoder_spans_the_principal_subspace_of_mnist(real_data):
    mnist = pa.data.load("mnist")
    mean = mnist.train.x.mean(0)
    check_principal(mnist.train.x - mean, mnist.test.x - mean, k=6, epochs=30, lr=2e-3, scheduler=annealed(30))


def linear_vae(d, k):
    parts = pa.priors.Normal(k), pa.likelihoods.Normal(d), pa.posteriors.Normal(scale="per_dimension"), pa.nets.Linear(), pa.nets.Linear()
    return pa.Autoencoder(*parts)


def test_a_linear_vae_reaches_probabilistic_pca(centred):
    centre = centred[0].reshape(-1, 8, 8)[:, 2:6, 2:6].reshape(-1, 16)  # 16 pixels of real digits
    vae = linear_vae(16, 3)
    best = PCA(3).fit(centre.numpy()).score(centre.numpy())  # Tipping & Bishop's maximum
    assert pa.log_likelihood(vae, centre, particles=100, proposal="guide").mean < best - 5
    pa.fit(vae, centre, epochs=60, lr=3e-2, scheduler=annealed(60), progress=False, seed=0)
    score = pa.log_likelihood(vae, centre, particles=100, proposal="guide")
    assert score.mean == pytest.approx(best, abs=1e-2)
    assert score.ess.min() > 90  # of 100: the posterior is nearly exact, and with it every weight


def maximum_likelihood(x, k):
    """Tipping & Bishop 1999, eqs. 7 and 8, in a linear VAE whose posterior is exact (Lucas et al. 2019)."""
    n, d = x.shape
    values, vectors = torch.linalg.eigh((x.T @ x) / n)  # ascending
    noise = values[:-k].mean()
    w = vectors[:, -k:] * (values[-k:] - noise).sqrt()
    precision = 1 + w.square().sum(0) / noise
    vae = linear_vae(d, k).double()
    with torch.no_grad():
        vae.decoder[0].weight.copy_(w), vae.decoder[0].bias.zero_()
        vae.encoder[0].weight.copy_(w.T / noise / precision[:, None]), vae.encoder[0].bias.zero_()
        vae.likelihood.raw_scale.copy_(noise.sqrt().log())
        vae.posterior.raw_scale.copy_(precision.rsqrt().log())
    return vae


def test_the_maximum_of_a_linear_vae_is_probabilistic_pca(centred):
    x = centred[0].double()
    x = x - x.mean(0)
    vae = maximum_likelihood(x, 8)
    score, best = pa.log_likelihood(vae, x, particles=30, proposal="guide"), PCA(8).fit(x.numpy()).score(x.numpy())
    assert score.mean == pytest.approx(best, abs=1e-3) and score.mc_se < 1e-6 and score.ess.min() > 30 - 1e-6  # every weight is p(x)
    terms = pa.elbo_terms(vae, x, particles=20)
    assert terms.elbo.mean().item() == pytest.approx(best, abs=5e-2)  # no gap
    loss = TraceMeanField_ELBO(num_particles=20, vectorize_particles=True, max_plate_nesting=1).differentiable_loss(vae.model, vae.guide, x)
    gradients = torch.autograd.grad(loss / len(x), list(vae.parameters()))
    moved = maximum_likelihood(1.1 * x, 8)
    elsewhere = TraceMeanField_ELBO().differentiable_loss(moved.model, moved.guide, x)
    theirs = torch.autograd.grad(elsewhere / len(x), list(moved.parameters()))
    assert max(g.abs().max().item() for g in gradients) < 0.2 < 1.0 < max(g.abs().max().item() for g in theirs)  # stationary


@pytest.mark.slow
def test_the_maximum_of_a_linear_vae_is_probabilistic_pca_on_mnist(real_data):
    x = pa.data.load("mnist").train.x.double()
    x = x - x.mean(0)
    score = pa.log_likelihood(maximum_likelihood(x, 10), x[:10_000], particles=4, proposal="guide")
    best = PCA(10).fit(x.numpy()).score(x[:10_000].numpy())
    assert score.mean == pytest.approx(best, abs=1e-2) and score.mc_se < 1e-6


@pytest.mark.parametrize("kind", ["plain", "denoising", "contractive", "tied", "variational", "gated", "sparse_kl"])
def test_pretraining_trains_the_models_own_layers(grey, kind):
    noise, pull = {
        "denoising": (pa.corruption.Masking(0.25), None),
        "contractive": (None, [pa.penalties.Contractive(0.1), None]),
        "sparse_kl": (None, [pa.penalties.KLSparsity(1.0), None]),
    }.get(kind, (None, None))
    mlp = pa.nets.GatedMLP(24) if kind == "gated" else pa.nets.MLP(24, "Sigmoid")
    prior, posterior = (
        (pa.priors.Normal(6), pa.posteriors.Normal()) if kind == "variational" else (pa.priors.Flat(6), pa.posteriors.Delta())
    )
    decoder = pa.nets.Tied("Sigmoid") if kind == "tied" else mlp
    ae = pa.Autoencoder(prior, pa.likelihoods.Normal(64, scale=1.0), posterior, mlp, decoder)
    before = {name: weight.clone() for name, weight in ae.state_dict().items()}
    loss = -pa.elbo_terms(ae, grey.test).elbo.mean()
    histories = pa.pretrain(ae, grey.train, corruption=noise, penalty=pull, epochs=5, lr=1e-2, progress=False, seed=0)
    assert len(histories) == 2 and all(history.loss[-1] < history.loss[0] for history in histories)
    changed = {name for name, weight in ae.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed == {name for name in before if name.endswith(("weight", "bias"))}
    assert -pa.elbo_terms(ae, grey.test).elbo.mean() < loss - 2  # of the whole, unrolled


def test_pretraining_validates_each_layer_on_its_own_codes_and_keeps_what_parts_learn(grey):
    networks = pa.nets.MLP([64, 16], "Sigmoid"), pa.nets.MLP([16, 64], "Sigmoid")
    ae = pa.Autoencoder(pa.priors.Normal(6), pa.likelihoods.Normal(64), pa.posteriors.Normal(scale="per_dimension"), *networks)
    before = [ae.likelihood.raw_scale.clone(), ae.posterior.raw_scale.clone()]
    histories = pa.pretrain(ae, grey.train, validation=grey.test, epochs=3, lr=1e-2, progress=False, seed=0)
    assert all(abs(each["validation_loss"][-1] - each["loss"][-1]) < 0.2 * abs(each["loss"][-1]) + 1 for each in histories)
    assert not any(torch.equal(was, part.raw_scale) for was, part in zip(before, (ae.likelihood, ae.posterior)))


def test_a_layer_learns_what_it_would_learn_alone(grey):
    """Bottom and top by hand: the same shallow autoencoders, built anew and trained with ``fit``."""
    deep = pa.recipes.autoencoder(grey, latent_dim=6, hidden=[24])
    alone = [nn.Sequential(nn.Linear(*ends)) for ends in ((64, 24), (24, 64), (24, 6), (6, 24))]
    by_hand = [nn.Sequential(alone[0], nn.ReLU()), alone[1], alone[2], nn.Sequential(alone[3], nn.ReLU())]
    own = [deep.encoder[0], deep.decoder[2], deep.encoder[2], deep.decoder[0]]
    for mine, theirs in zip(alone, own):
        mine[0].load_state_dict(theirs.state_dict())
    settings = {"epochs": 3, "progress": False, "seed": 0}
    pa.pretrain(deep, grey.train, **settings)
    h = grey.train.x
    for shape, code, encoder, decoder in ((64, 24, *by_hand[:2]), (24, 6, *by_hand[2:])):
        likelihood = pa.likelihoods.Normal(shape, scale=1.0)
        pa.fit(pa.Autoencoder(pa.priors.Flat(code), likelihood, pa.posteriors.Delta(), encoder, decoder), h, **settings)
        h = encoder(h).detach()
    for mine, theirs in zip(alone, own):
        assert torch.allclose(mine[0].weight, theirs.weight, atol=1e-6)


@pytest.mark.slow
def test_pretraining_reaches_what_a_random_start_does_not_where_depth_hurts(grey):
    """Five layers of sigmoid units each way; each layer is stepped as often in both."""

    def deep():
        torch.manual_seed(0)
        parts = pa.priors.Flat(10), pa.likelihoods.Normal(64, scale=1.0), pa.posteriors.Delta()
        return pa.Autoencoder(*parts, pa.nets.MLP([64] * 4, "Sigmoid"), pa.nets.MLP([64] * 4, "Sigmoid"))

    errors, settings = [], {"epochs": 30, "progress": False, "seed": 0}
    for ae, first in ((deep(), pa.fit), (deep(), pa.pretrain)):
        first(ae, grey.train, **settings)
        pa.fit(ae, grey.train, **settings)
        errors.append(pa.reconstruction_error(ae, grey.test).mean().item())
    assert errors[1] < 0.8 * errors[0]


def test_a_pretrained_stack_is_saved_and_loaded(grey, tmp_path):
    deep = pa.recipes.autoencoder(grey, latent_dim=6, hidden=[24])
    pa.pretrain(deep, grey.train, epochs=1, progress=False)
    pa.save(deep, tmp_path / "deep.safetensors")
    assert torch.equal(pa.load(tmp_path / "deep.safetensors").reconstruct(grey.test.x), deep.reconstruct(grey.test.x))


def test_a_classifiers_loss_is_cross_entropy_and_its_gradient_reaches_the_encoder(grey):
    ae = pa.recipes.autoencoder(grey, latent_dim=6, hidden=[24])
    classifier = Classifier(ae, 10)
    few = grey.test[:50]
    x, y = few.x, few.labels
    logits = classifier.head(ae.encode(x).mean)
    by_hand = nn.functional.cross_entropy(logits, y, reduction="sum")
    assert Trace_ELBO().loss(classifier, no_latents, x, y) == pytest.approx(by_hand.item(), rel=1e-5)
    kept = ae.encoder[0].weight.clone()
    history = pa.fit(classifier, few, guide=no_latents, epochs=200, lr=1e-2, progress=False)
    assert history.loss[-1] < 0.1 and classifier.error(few) == 0
    assert torch.equal(ae.encoder[0].weight, kept) and not torch.equal(classifier.encoder.encoder[0].weight, kept)


def test_fine_tuning_starts_from_what_was_learned(grey):
    few = grey.train[:100]
    deep = pa.recipes.autoencoder(grey, latent_dim=16, hidden=[64])
    settings = {"progress": False, "seed": 0}
    fresh = fine_tune(deep, few, epochs=1, **settings).encoder.encoder[0].weight
    pa.pretrain(deep, grey.train, epochs=30, **settings)
    learned = fine_tune(deep, few, epochs=1, **settings).encoder.encoder[0].weight
    assert (learned - deep.encoder[0].weight).abs().max() < 0.05 < (learned - fresh).abs().max()
    assert fine_tune(deep, grey.train, epochs=20, **settings).error(grey.test) < 0.1


BAD_STACKS = {
    "convolutions": (dict(encoder=pa.nets.Conv([4])), {}, "stack of fully connected layers"),
    "no mirror": (dict(decoder=pa.nets.MLP([8, 8])), {}, "mirrors the encoder, got 2 layers up and 3 down"),
    "other widths": (dict(decoder=pa.nets.MLP(9)), {}, "encoder"),
    "corruptions": ({}, dict(corruption=[None]), "one corruption for each of the 2 layers, got 1"),
    "condition": (dict(condition=pa.conditions.Labels(10)), {}, "without a condition"),
}


@pytest.mark.parametrize("parts, options, message", BAD_STACKS.values(), ids=list(BAD_STACKS))
def test_pretrain_refuses(grey, parts, options, message):
    ae = pa.recipes.autoencoder(grey, latent_dim=4, hidden=8).replace(**parts)
    with pytest.raises(ValueError, match=message):
        pa.pretrain(ae, grey.train, epochs=1, progress=False, **options)


def test_a_classifier_learns_from_data_binarized_afresh():
    digits = pa.data.load("digits", binarize="dynamic")
    ae = pa.recipes.autoencoder(digits, latent_dim=16, hidden=32)
    assert [len(each.rows) for each in pa.pretrain(ae, digits.train, epochs=1, progress=False)] == [1, 1]
    assert fine_tune(ae, digits.train, epochs=40, progress=False, seed=0).error(digits.test) < 0.2


def test_a_classifier_needs_an_unconditional_model(grey):
    with pytest.raises(ValueError, match="a condition"):
        Classifier(pa.recipes.conditional(grey), 10)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # the duality gap is 1e-5 then
def test_a_dictionary_pays_the_price_of_its_code(grey):
    """-log p(x, z) is the lasso's objective, so it is never below scikit-learn's best code for the same atoms, and comes near it."""
    scale, x = 10.0, grey.test.x[:80]
    ae = pa.recipes.sparse(grey, scale=scale)
    atoms = ae.decoder[0].atoms
    assert torch.allclose(atoms.square().sum(0), torch.ones(128)) and torch.allclose(
        ae.decoder(torch.eye(128)) - ae.decoder[0].bias, atoms.T, atol=1e-6
    )

    def above_the_best():
        z, bias, atoms = ae.encode(x).mean, ae.decoder[0].bias, ae.decoder[0].atoms
        lasso = lambda z: 0.5 * (x - bias - z @ atoms.T).square().sum(1) + z.abs().sum(1) / scale
        constant = 32 * math.log(2 * math.pi) + 128 * math.log(2 * scale)
        assert torch.allclose(lasso(z) + constant, -pa.elbo_terms(ae, x).elbo.float(), rtol=1e-4)
        best = sparse_encode((x - bias).detach().numpy(), atoms.T.detach().numpy(), alpha=1 / scale, algorithm="lasso_cd", max_iter=500)
        return ((lasso(z) - lasso(torch.as_tensor(best))).detach()).min(), lasso(z).mean() / lasso(torch.as_tensor(best)).mean()

    lowest, before = above_the_best()
    assert lowest > 0
    pa.fit(ae, grey.train, epochs=40, progress=False, seed=0)
    lowest, after = above_the_best()
    assert lowest > 0 and before > 3 and after < 1.5
    assert ae.encode(x).mean.abs().mean() > 0.02  # not avoided: with free columns, .0005


def test_a_wider_prior_leaves_more_units_active(grey):
    active = []
    for scale in (3.0, 10.0, 100.0):
        torch.manual_seed(0)
        ae = pa.recipes.sparse(grey, latent_dim=64, hidden=64, scale=scale)
        pa.fit(ae, grey.train, epochs=30, progress=False, seed=0)
        active.append((ae.encode(grey.test.x).mean.abs() > 0.1).double().mean().item())
    assert active[0] < 0.7 * active[1] < 0.7 * 0.7 * active[2], active


def test_kl_sparsity_draws_the_mean_activation_to_its_target(grey):
    ae = pa.recipes.sparse_kl(grey, latent_dim=64, hidden=64, target=0.1)
    mean = lambda: ae.encode(grey.test.x).mean.mean(0)
    assert (mean() > 0.3).all()
    pa.fit(ae, grey.train, epochs=40, progress=False, seed=0)
    assert (mean() - 0.1).abs().max() < 0.05 and mean().mean().item() == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("noise", [pa.corruption.Gaussian(0.3), pa.corruption.Masking(0.3), pa.corruption.SaltPepper(0.2)], ids=str)
def test_denoising_takes_noise_away_that_a_plain_autoencoder_leaves(grey, noise):
    gains = []
    for corruption in (None, noise):
        torch.manual_seed(0)
        ae = pa.recipes.autoencoder(grey).replace(corruption=corruption)
        pa.fit(ae, grey.train, epochs=30, progress=False, seed=0)
        torch.manual_seed(1)
        noisy = noise(grey.test.x)
        errors = [(x - grey.test.x).square().mean() for x in (noisy, ae.reconstruct(noisy))]
        gains.append(10 * (errors[0] / errors[1]).log10().item())  # PSNR after - PSNR before, in dB
        assert gains[-1] == pytest.approx(pa.denoising_gain(ae, grey.test, noise), abs=0.3)  # of other noise
    assert gains[1] > 3 and gains[1] > gains[0] + 0.5


def test_the_jacobian_of_a_sigmoid_layer(grey):
    ae, x = pa.recipes.contractive(grey, latent_dim=12), grey.test.x[:40]
    found, h, w = pa.jacobian(ae, x), ae.encode(x).mean, ae.encoder[0].weight
    assert torch.allclose(found.norms.square(), ((h * (1 - h)).square() @ w.square().sum(1)).double(), rtol=1e-4)  # Rifai et al.
    by_hand = torch.func.vmap(torch.func.jacrev(lambda one: (ae.encoder(one)).sigmoid()))(x)
    assert torch.allclose(found.singular_values, torch.linalg.svdvals(by_hand).double(), atol=1e-4)
    with torch.no_grad():
        ae.encoder[0].weight.mul_(1e3)
    assert found.saturated < 0.1 < 0.9 < pa.jacobian(ae, x).saturated


def test_the_jacobian_of_any_program_leaves_it_as_it_was(grey):
    vae = pa.recipes.vae(grey).train()
    before = torch.random.get_rng_state()
    found = pa.jacobian(vae.model, grey.test, vae.guide)
    assert found.norms.shape == (360,) and vae.training and torch.equal(torch.random.get_rng_state(), before)
    assert all(p.grad is None for p in vae.parameters())
    assert torch.allclose(found.norms[:3], pa.jacobian(vae, grey.test.x[:3]).norms)
    two = pa.Autoencoder(
        pa.priors.Hierarchical(3, top=2), pa.likelihoods.Normal(64), pa.posteriors.Hierarchical(), pa.nets.MLP(8), pa.nets.MLP(8)
    )
    with pytest.raises(ValueError, match="one latent site, got z and z2"):
        pa.jacobian(two, grey.test)


def test_contraction(grey):
    norms = []
    for weight in (0.0, 0.1, 1.0):
        torch.manual_seed(0)
        ae = pa.recipes.contractive(grey, latent_dim=32, weight=weight)
        pa.fit(ae, grey.train, epochs=20, lr=5e-3, progress=False, seed=0)
        norms.append(pa.jacobian(ae, grey.test).norms.mean().item())
    assert norms[0] > 1.3 * norms[1] > 1.3 * 1.3 * norms[2]
