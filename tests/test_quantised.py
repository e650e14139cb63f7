"""Discrete codes: VQ-VAE and finite scalar quantisation against their formulas."""

import math

import pytest
import torch
from torch.nn import functional as F

import pyroae as pa


def small(posterior, prior=None, objective=None, x=16, **training):
    prior = prior or pa.priors.Codes((4, 2))
    nets = pa.nets.MLP(16), pa.nets.MLP(16)
    return pa.Autoencoder(prior, pa.likelihoods.Bernoulli(x), posterior, *nets, objective=objective)


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_the_loss_and_its_gradients_are_the_papers(decay):
    """van den Oord et al. 2017, eq. 3, plus 4 log 8; gradients of the decoder pass through the codes unchanged."""
    ae, x = small(pa.posteriors.VectorQuantised(codes=8, decay=decay, restart=0.0)).eval(), torch.rand(10, 16).round()
    elbo = pa.Penalised(pa.penalties.Commitment(0.25))
    h = ae.encoder(x).reshape(10, 4, 2)
    book = ae.posterior.book
    e = book[torch.cdist(h, book.expand(10, 8, 2)).argmin(-1)]
    z = h + (e - h).detach()
    paper = F.binary_cross_entropy_with_logits(ae.decoder(z), x, reduction="sum") + 0.25 * (h - e.detach()).square().sum()
    if decay == 0.0:
        paper = paper + (h.detach() - e).square().sum()
    ours = elbo.differentiable_loss(ae.model, ae.guide, x)
    assert ours.item() == pytest.approx(paper.item() + 10 * 4 * math.log(8), rel=1e-5)
    for a, b in zip(*(torch.autograd.grad(loss, list(ae.parameters())) for loss in (ours, paper)), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_moving_averages_are_those_of_the_paper():
    """Appendix A.1: N_k and m_k decay by gamma, and e_k = m_k / N_k."""
    posterior = pa.posteriors.VectorQuantised((4, 2), codes=3, decay=0.9, restart=0.0)
    h, before = torch.randn(50, 2), torch.randn(3, 2)
    posterior.book.copy_(before), posterior.usage.fill_(2.0), posterior.total.copy_(2.0 * before)
    k = torch.cdist(h, before).argmin(-1)
    posterior._track(h)
    usage = torch.stack([0.9 * 2.0 + 0.1 * (k == i).sum() for i in range(3)])
    total = torch.stack([0.9 * 2.0 * before[i] + 0.1 * h[k == i].sum(0) for i in range(3)])
    assert torch.allclose(posterior.usage, usage) and torch.allclose(posterior.book, total / usage[:, None], atol=1e-5)


def test_unused_codes_move_to_outputs_of_the_encoder():
    posterior = pa.posteriors.VectorQuantised((4, 2), codes=5, decay=0.9)
    posterior.book[:4] += 100.0
    posterior.usage.copy_(torch.tensor([0.0, 0.0, 0.0, 0.0, 50.0])), posterior.total.copy_(posterior.book * posterior.usage[:, None])
    h = torch.randn(50, 2)
    posterior._track(h)
    assert all((posterior.book[i] == h).all(-1).any() for i in range(4)) and posterior.usage[:4].tolist() == [10.0] * 4


@pytest.mark.parametrize("levels", [[2], [3, 4], [8, 5, 5]])
def test_a_grid_has_all_its_codes_and_nothing_else(levels):
    posterior = pa.posteriors.FiniteScalar((1, len(levels)), levels=levels)
    q = posterior(1.5 * torch.randn(50_000, len(levels)))
    indices = posterior.indices(q.mean)
    assert indices.unique().tolist() == list(range(math.prod(levels)))
    assert torch.allclose(posterior.vectors(indices), q.mean, atol=1e-5) and q.mean.abs().max() <= 1.0
    for j, level in enumerate(levels):
        assert len(q.codes[..., j].unique()) == level


def test_a_grids_gradient_is_that_of_the_bounded_numbers():
    """Mentzer et al. 2024, section 3.1, for an odd number of levels: 2 tanh(h), rounded, over 2."""
    h = torch.randn(7, 6, requires_grad=True)
    z = pa.posteriors.FiniteScalar((3, 2), levels=[5, 5])(h).rsample()
    assert torch.allclose(z.flatten(1) * 2, (h.tanh() * 2 * 0.999).round(), atol=1e-5)
    (slope,) = torch.autograd.grad(z.sum(), h)
    assert torch.allclose(slope, 0.999 * (1 - h.tanh().square()), atol=1e-5)


POSTERIORS = {
    "moving averages": lambda: pa.posteriors.VectorQuantised(codes=16),
    "by loss": lambda: pa.posteriors.VectorQuantised(codes=16, decay=0.0),
    "grid": lambda: pa.posteriors.FiniteScalar(levels=[4, 4]),
}


@pytest.mark.parametrize("name", POSTERIORS)
def test_it_learns_uses_its_codes_and_is_saved(name, digits, tmp_path):
    objective = None if name == "grid" else pa.Penalised(pa.penalties.Commitment())
    ae = small(POSTERIORS[name](), pa.priors.Codes((8, 2)), objective, x=64)
    losses = pa.fit(ae, digits.train, epochs=20, lr=3e-3, progress=False).loss
    used = pa.perplexity(ae, digits.test)
    assert losses[-1] < losses[0] - 8 and used.perplexity > 5 and used.codes == 16
    terms = pa.elbo_terms(ae, digits.test)
    assert torch.allclose(terms.kl, torch.full_like(terms.kl, 8 * math.log(16)), rtol=1e-5)
    assert terms.bits_per_dim == pytest.approx(-terms.elbo.mean().item() / 64 / math.log(2))
    pa.save(ae, tmp_path / "vq.safetensors")
    again = pa.load(tmp_path / "vq.safetensors")
    assert torch.equal(again.reconstruct(digits.test.x), ae.reconstruct(digits.test.x))


def test_graphs_and_the_program_learn_the_same_codebook(digits):
    books = []
    for mode in ("eager", "traced"):
        torch.manual_seed(0)
        ae = small(pa.posteriors.VectorQuantised(codes=16), objective=pa.Penalised(pa.penalties.Commitment()), x=64)
        pa.fit(ae, digits.train, epochs=2, seed=0, compile=mode, progress=False)
        books.append(ae.posterior.book)
    assert torch.allclose(*books, atol=1e-4)


@pytest.mark.parametrize("prior", [pa.priors.Codes(learned=True), pa.priors.CodeSequence(hidden=32)], ids=["by position", "sequence"])
def test_fitted_priors_shorten_the_codes_and_sum_to_one(prior, digits):
    ae = small(pa.posteriors.FiniteScalar(levels=[3]), pa.priors.Codes((4, 1)), x=64)
    pa.fit(ae, digits.train, epochs=10, lr=3e-3, progress=False)
    fitted = pa.fit_prior(ae, digits.train, prior, epochs=15, lr=1e-2, compile="eager")
    every = torch.cartesian_prod(*[torch.arange(3)] * 4)
    log_p = fitted.prior.log_prob_of(every)
    assert log_p.exp().sum().item() == pytest.approx(1.0, abs=1e-4)
    drawn = fitted.posterior.indices(fitted.prior().sample((20_000,)))
    shares = torch.bincount((drawn * torch.tensor([27, 9, 3, 1])).sum(-1), minlength=81) / 20_000
    assert torch.allclose(shares, log_p.exp(), atol=0.02)
    kl = [pa.elbo_terms(each, digits.train).kl.mean().item() for each in (ae, fitted)]
    codes = fitted.posterior.indices(ae.encode(digits.train.x).mean)
    frequencies = torch.bincount((codes * torch.tensor([27, 9, 3, 1])).sum(-1), minlength=81) / len(codes)
    entropy = torch.special.entr(frequencies).sum().item()
    assert entropy - 1e-3 < kl[1] < kl[0] and (not isinstance(prior, pa.priors.CodeSequence) or kl[1] < entropy + 0.15)
    assert torch.equal(fitted.reconstruct(digits.test.x), ae.reconstruct(digits.test.x))


REFUSED = {
    "another posterior": (lambda: small(pa.posteriors.Normal()), "a posterior of codes"),
    "no positions": (lambda: small(pa.posteriors.VectorQuantised(), pa.priors.Normal(4)), "positions and the size of a code"),
    "levels of another number": (lambda: small(pa.posteriors.FiniteScalar(levels=[5])), "codes of 1 numbers"),
    "one level": (lambda: pa.posteriors.FiniteScalar((4, 1), levels=[1]), "at least 2"),
    "a prior of one dimension": (lambda: pa.priors.Codes(8), "the number of positions"),
    "no codebook for the penalty": (
        lambda: pa.fit(pa.recipes.vae(torch.rand(9, 4)), torch.rand(9, 4), elbo=pa.Penalised(pa.penalties.Commitment()), progress=False),
        "VectorQuantised",
    ),
    "no codes to count": (lambda: pa.perplexity(pa.recipes.vae(torch.rand(9, 4)), torch.rand(9, 4)), "discrete codes"),
    "log p(x)": (lambda: pa.log_likelihood(small(pa.posteriors.VectorQuantised(codes=8)), torch.rand(9, 16).round()), "discrete"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        make()
