"""Penalties against other formulas: L1, the contractive closed form, total correlation and MMD by loops."""

import math

import pyro
import pytest
import torch
from conftest import small_vae
from pyro import distributions as dist
from pyro.infer import TraceMeanField_ELBO
from torch.distributions import kl_divergence

import pyroae as pa
from pyroae.objectives.generative_penalties import ms_ssim

Contractive, L1, MMD, SigmoidContractive, TotalCorrelation = (
    getattr(pa.penalties, name) for name in ("Contractive", "L1", "MMD", "SigmoidContractive", "TotalCorrelation")
)


def test_l1_is_a_laplace_prior(grey):
    x = grey.test.x[:20]
    flat = pa.recipes.autoencoder(grey, latent_dim=5)
    laplace = flat.replace(prior=pa.priors.Laplace(5, scale=0.5))
    penalised = pa.Penalised(L1(2.0)).loss(flat.model, flat.guide, x)
    assert penalised + 20 * 5 * math.log(1.0) == pytest.approx(TraceMeanField_ELBO().loss(laplace.model, laplace.guide, x), rel=1e-5)


@pytest.mark.parametrize("rows", [1, 30])
def test_the_sigmoid_layers_closed_form_is_the_exact_jacobians(rows, grey):
    ae, x, results = pa.recipes.contractive(grey, latent_dim=12), grey.test.x[:rows], []
    for penalty in (Contractive(0.7), SigmoidContractive(ae.encoder[-1], 0.7)):
        loss = pa.Penalised(penalty).differentiable_loss(ae.model, ae.guide, x)
        results.append([loss, *torch.autograd.grad(loss, list(ae.parameters()))])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(*results, strict=True))


def gaussians(n=6, units=3):
    """n posteriors, a draw from each."""
    q = dist.Normal(torch.randn(n, units, dtype=torch.float64), 0.3 + torch.rand(n, units, dtype=torch.float64)).to_event(1)
    return torch.zeros(n, 1), q.rsample(), q


def test_total_correlation_of_the_full_data_set_by_loops():
    x, z, q = gaussians()
    total = 0.0
    density = lambda v, m, j: math.exp(dist.Normal(q.mean[m, j], q.stddev[m, j]).log_prob(v).item())  # noqa: E731
    for n in range(6):
        joint = sum(math.prod(density(z[n, j], m, j) for j in range(3)) for m in range(6)) / 6
        apart = math.prod(sum(density(z[n, j], m, j) for m in range(6)) / 6 for j in range(3))
        total += math.log(joint / apart) / 6
    assert TotalCorrelation(6, weight=2.0)(x, z, q).item() == pytest.approx(2 * total, rel=1e-9)


def test_total_correlation_estimates_the_aggregate_without_bias():
    """exp of the two logarithms, averaged over all batches of 3 of 6 with example 0, equals q(z) and each q(z_j) there."""
    _, z, q = gaussians()
    exact = q.log_prob(z[0]).exp().mean()
    each = q.base_dist.log_prob(z[0]).exp().mean(0)
    batches = [[0, m, k] for m in range(1, 6) for k in range(m + 1, 6)]
    shares = TotalCorrelation(6)._log_weights(3, z)[0].exp()
    assert shares.sum().item() == pytest.approx(1.0)
    joint = sum((shares * q.log_prob(z[0])[rows].exp()).sum() for rows in batches) / len(batches)
    apart = sum((shares[:, None] * q.base_dist.log_prob(z[0])[rows].exp()).sum(0) for rows in batches) / len(batches)
    assert joint.item() == pytest.approx(exact.item(), rel=1e-9) and torch.allclose(apart, each)


@torch.no_grad()
def test_total_correlation_of_a_correlated_gaussian():
    """Point-like posteriors spread as a Gaussian of correlation .8, its total correlation -log(1 - .8^2) / 2."""
    cov = torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64)
    centres = dist.MultivariateNormal(torch.zeros(2, dtype=torch.float64), cov - 0.1 * torch.eye(2, dtype=torch.float64)).sample((3000,))
    q = dist.Normal(centres, 0.1**0.5).to_event(1)
    assert TotalCorrelation(3000, weight=1.0)(centres, q.sample(), q).item() == pytest.approx(-0.5 * math.log(1 - 0.64), abs=0.06)


def test_total_correlation_takes_particles_a_last_row_and_only_products(digits):
    x, _, q = gaussians()
    wide, penalty = q.expand([4, 6]), TotalCorrelation(10)
    z = wide.sample()
    assert penalty(x, z, wide).item() == pytest.approx(sum(penalty(x, each, q).item() for each in z) / 4, rel=1e-9)
    ae, x = small_vae(), digits.test.x[:30]
    assert pa.Penalised(TotalCorrelation(30)).terms(ae.model, ae.guide, x[:1])["penalty"] == 0.0
    with pytest.raises(ValueError, match="got 20 and a batch of 30"):
        pa.Penalised(TotalCorrelation(20)).loss(ae.model, ae.guide, x)
    full = small_vae(posterior=pa.posteriors.FullNormal())
    with pytest.raises(ValueError, match="a product over dimensions, such as a Normal, got MultivariateNormal"):
        pa.Penalised(TotalCorrelation(30)).loss(full.model, full.guide, x)


def mmd_by_loops(codes, draws):
    n = len(codes)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    width = sum((draws[i] - draws[j]).square().sum() for i, j in pairs) / len(pairs)
    kernel = lambda a, b: sum(s * width / (s * width + (a - b).square().sum()) for s in (0.1, 0.2, 0.5, 1, 2, 5, 10))  # noqa: E731
    within = sum(kernel(codes[i], codes[j]) + kernel(draws[i], draws[j]) for i, j in pairs) / len(pairs)
    return within - 2 * sum(kernel(a, b) for a in codes for b in draws) / n**2


def test_mmd_by_loops():
    x, z, q = gaussians()
    p = dist.Normal(torch.zeros(6, 3, dtype=torch.float64), 1.0).to_event(1)
    torch.manual_seed(5)
    ours = MMD(2.0)(x, z, q, p).item()
    torch.manual_seed(5)
    assert ours == pytest.approx(2 * mmd_by_loops(z, p.rsample()).item(), rel=1e-9)


@torch.no_grad()
def test_mmd_is_zero_in_expectation_only_if_latents_follow_the_prior():
    p = dist.Normal(torch.zeros(40, 2), 1.0).to_event(1)
    for shift, holds in ((0.0, lambda t: abs(t) < 4), (0.5, lambda t: t > 10)):
        draws = torch.tensor([MMD(1.0)(None, p.sample() + shift, p, p).item() for _ in range(400)])
        assert holds((draws.mean() / (draws.std() / 20)).item())
    one = dist.Normal(torch.zeros(1, 2), 1.0).to_event(1)
    assert MMD()(None, one.sample(), one, one) == 0.0


def test_a_penalty_is_the_same_with_a_tempered_elbo_and_a_subsampled_plate():
    """The Wasserstein autoencoder's loss: reconstruction and MMD, no KL."""

    def model(x):
        with pyro.plate("data", 100, subsample=x):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", 100, subsample=x):
            pyro.sample("z", dist.Normal(x[:, None] * torch.ones(2), 0.5).to_event(1))

    x = torch.randn(20)
    terms = {beta: pa.Penalised(lambda x, z, q: 0 * x + 3.0, pa.objectives.Tempered(beta)).terms(model, guide, x) for beta in (0.0, 2.0)}
    kl = kl_divergence(dist.Normal(x, 0.5), dist.Normal(0.0, 1.0)).mean().item() * 2
    for beta, t in terms.items():
        assert t["penalty"] == 3.0 and t["kl"].item() == pytest.approx(kl, rel=1e-5)
        assert t["loss"].item() == pytest.approx(beta * kl - t["reconstruction"].item() + 3.0, rel=1e-5)


def test_an_improper_prior_is_refused_by_mmd(grey):
    ae = pa.recipes.autoencoder(grey)
    with pytest.raises(ValueError, match="MMD: the prior, a .*, cannot be sampled"):
        pa.Penalised(MMD()).loss(ae.model, ae.guide, grey.test.x[:5])


def test_bad_layers_are_named(grey):
    ae = pa.recipes.contractive(grey)
    with pytest.raises(ValueError, match="a torch.nn.Linear, got Sequential"):
        SigmoidContractive(ae.encoder)
    with pytest.raises(ValueError, match="the layer has 64 units but latent_dim is 32"):
        pa.Penalised(SigmoidContractive(ae.decoder[-1])).loss(ae.model, ae.guide, grey.test.x[:5])


def test_one_dimensional_latents():
    q = dist.Normal(torch.randn(6), 1.0)
    z, x = q.rsample(), torch.zeros(6, 1)
    assert torch.allclose(L1(2.0)(x, z, q), 2 * z.abs().mean())
    assert torch.allclose(pa.penalties.L2(2.0)(x, z, q), 2 * z.square().mean())
    assert MMD(1.0)(x, z, q, dist.Normal(0.0, 1.0).expand([6])).isfinite()


def rae(x, beta=0.3, weight=0.01, **parts):
    ae = pa.recipes.rae(x, latent_dim=3, hidden=5, beta=beta, weight=weight)
    return ae.replace(**parts) if parts else ae


def test_the_regularised_autoencoders_loss_is_half_the_papers():
    """Ghosh et al. 2020, eq. 7 to 11, but for the constants of the two Normals."""
    x = torch.rand(20, 7)
    ae = rae(x)
    z = ae.encode(x).mean
    error = (x - ae.decode(z).mean).square().sum(1)
    squares = sum(layer.weight.square().sum() for layer in ae.decoder if hasattr(layer, "weight"))
    paper = (error + 0.3 / 2 * z.square().sum(1) + 0.01 * squares).sum()
    constants = 20 * (7 / 2 * math.log(2 * math.pi) + 3 / 2 * math.log(2 * math.pi * 2 / 0.3))
    loss = ae.objective.differentiable_loss(ae.model, ae.guide, x)
    assert loss.item() == pytest.approx(paper.item() / 2 + constants, rel=1e-5)


def test_the_decoders_jacobian_is_autograds_and_its_probes_are_unbiased():
    x = torch.rand(6, 7)
    ae = rae(x, decoder=pa.nets.MLP(5, activation="Tanh")).double()
    z = ae.encode(x).mean.double()
    jacobian = torch.autograd.functional.jacobian(lambda z: ae.decode(z).mean.sum(0), z)  # (7, B, 3)
    exact = jacobian.square().sum().item() / len(x)
    for probes, tolerance in ((None, 1e-6), (4000, 0.05)):
        elbo = pa.Penalised(pa.penalties.DecoderJacobian(0.5, probes), pyro.infer.Trace_ELBO())
        assert elbo.terms(ae.model, ae.guide, x.double())["penalty"].item() == pytest.approx(0.5 * exact, rel=tolerance)


def test_a_decoder_of_spectral_norm_one_learns_and_is_saved(tmp_path):
    x = torch.rand(64, 16)
    ae = rae(x, weight=0.0, decoder=pa.nets.SpectralNorm(pa.nets.MLP(32)))
    pa.fit(ae, x, epochs=20, progress=False)
    norms = [torch.linalg.matrix_norm(layer.weight, 2).item() for layer in ae.decoder if hasattr(layer, "weight")]
    assert norms == pytest.approx([1.0] * len(norms), abs=0.05)
    pa.save(ae, tmp_path / "rae.safetensors")
    assert torch.equal(pa.load(tmp_path / "rae.safetensors").reconstruct(x), ae.reconstruct(x))


def naive_ssim(x, y):
    """l and cs of images ``(H, W)`` in their only window, of the whole image's size, by sums."""
    side = len(x)
    away = torch.arange(side).double() - (side - 1) / 2
    w = (-(away[:, None] ** 2 + away[None] ** 2) / 4.5).exp()
    w /= w.sum()
    mx, my = (w * x).sum(), (w * y).sum()
    vx, vy, xy = (w * (x - mx) ** 2).sum(), (w * (y - my) ** 2).sum(), (w * (x - mx) * (y - my)).sum()
    return (2 * mx * my + 1e-4) / (mx**2 + my**2 + 1e-4), (2 * xy + 9e-4) / (vx + vy + 9e-4)


def test_structural_similarity_is_its_formula():
    """Wang et al. 2003: one window; constant images, on which only the luminance of the last scale differs; itself."""
    x = torch.rand(3, 1, 7, 7).double()
    y = (x + 0.1 * torch.randn_like(x)).clamp(0, 1)
    by_hand = [luminance * cs for luminance, cs in (naive_ssim(a[0], b[0]) for a, b in zip(x, y))]
    assert torch.allclose(ms_ssim(x, y), torch.stack(by_hand))
    grey = torch.ones(1, 1, 200, 200).double()
    luminance = (2 * 0.5 * 0.8 + 1e-4) / (0.5**2 + 0.8**2 + 1e-4)
    assert ms_ssim(0.5 * grey, 0.8 * grey).item() == pytest.approx(luminance ** (0.1333 / 1.0001), rel=1e-6)  # five scales
    images = torch.rand(2, 3, 48, 48)
    assert torch.allclose(ms_ssim(images, images), torch.ones(2))
    noisy = [ms_ssim(images, images + s * torch.randn_like(images)).mean() for s in (0.05, 0.1, 0.3)]
    assert noisy[0] > noisy[1] > noisy[2]


def test_the_similarity_penalty_raises_the_similarity(grey):
    found = []
    for weight in (0.0, 200.0):
        torch.manual_seed(0)
        ae = pa.recipes.autoencoder(grey, latent_dim=8, hidden=32)
        pa.fit(ae, grey.train, elbo=pa.Penalised(pa.penalties.MultiScaleSSIM(weight)), epochs=8, lr=3e-3, progress=False)
        found.append(ms_ssim(*(each.reshape(-1, 1, 8, 8) for each in (grey.test.x, ae.reconstruct(grey.test.x)))).mean())
    assert found[1] > found[0] + 0.02
    with pytest.raises(ValueError, match="MultiScaleSSIM: expected x as images"):
        pa.fit(pa.recipes.autoencoder(torch.rand(9, 5)), torch.rand(9, 5), elbo=pa.Penalised(pa.penalties.MultiScaleSSIM()), progress=False)


@pytest.mark.parametrize("bound", [None, pa.objectives.IWAE(3), pa.objectives.IWAE(2, groups=2)], ids=["ELBO", "IWAE", "MIWAE"])
def test_a_penalty_counts_once_whatever_bound_it_is_added_to(bound):
    """Its value and its gradient, without trial runs that find out how the programs take particles; in every step."""
    ae, x = small_vae(posterior=pa.posteriors.Normal(scale=1e-4)), torch.rand(20, 64).round()
    weight, objective = ae.encoder[-1].weight, pa.Penalised(pa.penalties.L2(5.0), bound)
    mean = ae.encode(x).mean
    expected = torch.autograd.grad(5 * mean.square().sum(), weight)[0]
    for _ in range(2):
        found = {}
        for name, elbo in (("with", objective), ("without", bound or TraceMeanField_ELBO())):
            torch.manual_seed(1)
            loss = elbo.differentiable_loss(ae.model, ae.guide, x)
            found[name] = loss, torch.autograd.grad(loss, weight)[0]
        difference, gradient = (a - b for a, b in zip(found["with"], found["without"]))
        assert difference.item() == pytest.approx(5 * mean.square().sum().item(), rel=1e-2)
        assert torch.allclose(gradient, expected, rtol=0.05, atol=0.01 * expected.abs().max().item())
