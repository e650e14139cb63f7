"""The Hamiltonian posterior: its weights are unbiased, and its steps are those of the leapfrog."""

import pyro
import pytest
import torch
from conftest import linear_gaussian, small_vae

import pyroae as pa


def moved(exact, steps, step_size=0.1):
    """The linear-Gaussian model with the Hamiltonian posterior around its guide."""
    ae = exact.ae.replace(posterior=pa.posteriors.Hamiltonian(base=exact.ae.posterior, steps=steps, step_size=step_size)).double()
    ae.load_state_dict(exact.ae.state_dict(), strict=False)
    with torch.no_grad():
        ae.posterior.base.scale.copy_(exact.ae.posterior.scale)
    return ae


@pytest.mark.parametrize("steps", [1, 4])
def test_weights_are_unbiased_for_p_of_x(steps):
    """Caterini et al. 2018, section 3: the mean of the weights is p(x), whatever the start."""
    exact = linear_gaussian(widen=1.5)
    estimate = pa.log_likelihood(moved(exact, steps), exact.x, particles=4000, proposal="guide")
    assert estimate.mean == pytest.approx(exact.log_p.mean().item(), abs=4 * estimate.mc_se + 0.002)
    assert (estimate.values - exact.log_p).abs().max() < 0.2


def test_the_bound_is_tighter_than_the_starts():
    exact = linear_gaussian(widen=2.5)
    start = pa.elbo_terms(exact.ae, exact.x, particles=200).elbo.mean()
    ae = moved(exact, 3)
    adam = torch.optim.Adam([ae.posterior.log_step, ae.posterior.raw_beta], lr=2e-2)
    for _ in range(60):
        adam.zero_grad()
        pyro.infer.Trace_ELBO().differentiable_loss(ae.model, ae.guide, exact.x).backward()
        adam.step()
    assert start + 0.2 < pa.elbo_terms(ae, exact.x, particles=200).elbo.mean() < exact.log_p.mean()


def test_steps_preserve_energy_and_tempering_scales_the_volume():
    exact = linear_gaussian()
    ae = moved(exact, 20, 0.01)
    z, momentum, x = torch.randn(40, 3).double(), torch.randn(40, 3).double(), exact.x
    posterior = ae.posterior
    with torch.no_grad():
        posterior.raw_beta.fill_(50.0)  # beta_0 = 1: no tempering

        def energy(z, momentum):
            return 0.5 * momentum.square().sum(-1) - ae.prior().log_prob(z) - ae.decode(z).log_prob(x)

        assert torch.allclose(energy(*posterior._moved(z, momentum, x, None)), energy(z, momentum), atol=0.01)
        posterior.raw_beta.fill_(0.0)

    def both(u):
        return torch.cat(posterior._moved(u[None, :3], u[None, 3:], x[:1], None), -1)[0]

    jacobian = torch.autograd.functional.jacobian(both, torch.cat([z[0], momentum[0]]))
    assert torch.linalg.slogdet(jacobian)[1].item() == pytest.approx(0.0, abs=1e-6)  # gamma to rho_0 and the tempering cancel


def test_it_learns_in_plain_pyro_with_labels_and_is_saved(digits, tmp_path):
    hvae = pa.recipes.conditional(digits, latent_dim=4, hidden=16).replace(posterior=pa.posteriors.Hamiltonian(steps=2))
    losses = pa.fit(hvae, digits.train, epochs=4, lr=3e-3, progress=False).loss
    assert losses[-1] < losses[0] - 5
    pa.save(hvae, tmp_path / "hvae.safetensors")
    again = pa.load(tmp_path / "hvae.safetensors")
    rows = digits.test[:10]
    assert torch.equal(pa.elbo_terms(hvae, rows).elbo, pa.elbo_terms(again, rows).elbo)
    pyro.clear_param_store()
    small = small_vae(posterior=pa.posteriors.Hamiltonian(steps=1))
    svi = pyro.infer.SVI(small.model, small.guide, pyro.optim.Adam({"lr": 1e-3}), pyro.infer.Trace_ELBO())
    assert svi.step(digits.train.x[:20]) > 0
