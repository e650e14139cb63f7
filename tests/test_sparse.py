"""Sparse dictionaries: posteriors with few active units, their penalties, and how sparse a code is."""

import pytest
import torch
from pyro.infer import Trace_ELBO

import pyroae as pa

N, D = 24, 10


def dictionary(posterior, objective=None, **changes):
    torch.manual_seed(0)
    changes = {"likelihood": pa.likelihoods.Normal(D, scale=0.5)} | changes
    ae = pa.recipes.dictionary(torch.randn(50, D), latent_dim=N, k=3).replace(posterior=posterior, objective=objective, **changes)
    return ae


@pytest.fixture
def x():
    return torch.randn(40, D)


POSTERIORS = {
    "TopK": pa.posteriors.TopK(k=3),
    "BatchTopK": pa.posteriors.BatchTopK(k=3),
    "JumpReLU": pa.posteriors.JumpReLU(threshold=0.3),
    "Gated": pa.posteriors.Gated(),
}


def activated(name, ae, x):
    """The codes by hand."""
    h, rows = ae.encoder(x), len(x)
    return {
        "TopK": lambda: torch.where(h >= h.topk(3).values[:, -1:], h.relu(), 0.0),
        "BatchTopK": lambda: h * (h >= (h.flatten().sort().values[-3 * rows] if ae.training else ae.posterior.threshold)),
        "JumpReLU": lambda: h * (h > 0.3),
        "Gated": lambda: h.relu(),
    }[name]()


@pytest.mark.parametrize("name", POSTERIORS)
def test_the_loss_is_the_squared_error_of_the_sparse_code(name, x):
    """MAP: under a flat prior -log p(x|z), by hand, in training and in evaluation mode."""
    ae = dictionary(POSTERIORS[name])
    for mode in (True, False):
        ae.train(mode)
        z = ae.encode(x).mean
        by_hand = activated(name, ae, x)
        assert torch.allclose(z, by_hand)
        error = (x - z @ ae.decoder[-1].atoms.T - ae.encoder[-1].centre).square().sum() / (2 * 0.25)
        constant = len(x) * D * torch.tensor(2 * torch.pi * 0.25).log() / 2
        assert Trace_ELBO().loss(ae.model, ae.guide, x) == pytest.approx((error + constant).item(), rel=1e-5)


def test_k_units_are_active(x):
    x = x.repeat(30, 1) + torch.randn(1200, D)
    top, batch = dictionary(POSTERIORS["TopK"]), dictionary(POSTERIORS["BatchTopK"])
    with torch.no_grad():
        for ae in (top, batch):
            ae.encoder[-1].bias.add_(1.0)  # enough positive numbers
            ae.train()
            for part in x.split(100):
                ae.guide(part)
            ae.eval()
    active = (top.encode(x).mean != 0).sum(1)
    assert bool((active == 3).all())
    active = (batch.encode(x).mean != 0).sum(1).double()
    assert active.mean().item() == pytest.approx(3.0, abs=0.15) and active.std() > 0.5  # by the threshold, fresh examples
    assert torch.allclose(batch.encode(x[:1]).mean, batch.encode(x).mean[:1], atol=1e-6)  # not of the batch


def test_gradients_of_jump_relu_are_those_of_the_paper():
    """Rajamanoharan et al. 2024b, eq. 11 and 12, with a kernel of width eps, in terms of the logarithm of theta."""
    theta, eps, a = 0.5, 0.2, torch.tensor([[0.45, 0.55, 0.7, 0.39, -1.0]], requires_grad=True)
    part = pa.posteriors.JumpReLU(5, threshold=theta, bandwidth=eps)
    near, above = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 1.0, 0.0, 0.0])
    q, weights = part(a), torch.arange(1.0, 6.0)
    (q.mean * weights).sum().backward(retain_graph=True)
    assert torch.allclose(part.log_threshold.grad, theta * -(theta / eps) * near * weights) and torch.allclose(a.grad[0], above * weights)
    part.zero_grad(), a.grad.zero_()
    penalty = pa.penalties.L0(2.0)(None, q.mean, q)
    assert penalty.item() == 2.0 * 2
    penalty.backward()
    assert torch.allclose(part.log_threshold.grad, 2.0 * theta * -(1 / eps) * near) and not a.grad.any()


def test_l0_is_the_log_prior_of_a_spike_and_a_flat_slab(x):
    """-log p(z) = sum_j w 1[z_j != 0] + const for a density ratio e^-w of slab to spike: the losses differ by it."""
    ae = dictionary(POSTERIORS["JumpReLU"])
    plain, penalised = (elbo.loss(ae.model, ae.guide, x) for elbo in (Trace_ELBO(), pa.Penalised(pa.penalties.L0(0.7), Trace_ELBO())))
    assert penalised - plain == pytest.approx(0.7 * (ae.encode(x).mean != 0).sum().item(), rel=1e-4)


def test_the_gates_loss_is_that_of_the_paper_and_leaves_the_decoder(x):
    """Rajamanoharan et al. 2024a, eq. 8, in nats: the decoder has the gradient of the first term alone, the gates of the others."""
    ae = dictionary(POSTERIORS["Gated"])
    open_gates = ae.encoder(x).relu()
    by_hand = 0.3 * open_gates.sum() - ae.decode(open_gates).log_prob(x).sum()
    losses = []
    for elbo in (Trace_ELBO(), pa.Penalised(pa.penalties.GatedSparsity(0.3), Trace_ELBO())):
        ae.zero_grad()
        loss = elbo.differentiable_loss(ae.model, ae.guide, x)
        loss.backward()
        losses.append((loss.item(), ae.decoder[-1].weight.grad.clone(), ae.encoder[-1].weight.grad.clone()))
    (plain, decoder, encoder), (gated, same_decoder, more) = losses
    assert gated - plain == pytest.approx(by_hand.item(), rel=1e-5) and torch.allclose(decoder, same_decoder)
    (gradient,) = torch.autograd.grad(by_hand, ae.encoder[-1].weight)
    assert torch.allclose(more - encoder, gradient, atol=1e-3, rtol=1e-4)


def test_dead_units_rebuild_the_error(x):
    """Gao et al. 2024, A.2, by hand: the two likeliest of the dead units."""
    ae, x = dictionary(POSTERIORS["TopK"]).train(), x[:5]
    dead = torch.arange(N) % 2 == 0
    with torch.no_grad():
        ae.posterior.idle.copy_(500.0 * dead)
    h, atoms = ae.encoder(x), ae.decoder[-1].atoms
    dead &= (ae.encode(x).mean == 0).all(0)  # of the even ones, those that are not active in this batch either
    candidates = torch.where(dead, h, -torch.inf)
    revived = torch.where(candidates >= candidates.topk(2).values[:, -1:], candidates.relu(), 0.0).nan_to_num(0.0)
    error = x - ae.reconstruct(x)
    by_hand = ((error - revived @ atoms.T) / 0.5).square().sum() / 2 / 32
    penalty = pa.penalties.DeadUnits(k=2, after=500)
    penalised = pa.Penalised(penalty, Trace_ELBO()).loss(ae.model, ae.guide, x)
    ae.eval()
    assert penalised - Trace_ELBO().loss(ae.model, ae.guide, x) == pytest.approx(by_hand.item(), rel=1e-3)
    with torch.no_grad():
        ae.posterior.idle.zero_()
    assert pa.Penalised(penalty, Trace_ELBO()).loss(ae.model, ae.guide, x) == Trace_ELBO().loss(ae.model, ae.guide, x)


def test_idle_counts_examples_since_a_unit_was_active(x):
    ae, x = dictionary(POSTERIORS["TopK"]).train(), x[:4]
    active = (ae.encode(x).mean != 0).any(0)
    for _ in range(2):
        ae.guide(x)
    assert torch.equal(ae.posterior.idle, 2.0 * len(x) * ~active) and (~active).any()
    ae.eval()
    ae.guide(x)
    assert ae.posterior.idle.max() == 2 * len(x)


def true_dictionary(rows=3000, atoms=16, d=24, active=2):
    """Rows with two of 16 atoms each, and a little noise."""
    truth = torch.nn.functional.normalize(torch.randn(atoms, d), dim=1)
    z = torch.zeros(rows, atoms).scatter(1, torch.rand(rows, atoms).topk(active).indices, 1.0 + torch.rand(rows, active))
    return truth, z @ truth + 0.01 * torch.randn(rows, d)


WAYS = {
    "TopK": {"posterior": pa.posteriors.TopK(k=2)},
    "BatchTopK": {"posterior": pa.posteriors.BatchTopK(k=2), "objective": pa.Penalised(pa.penalties.DeadUnits(k=4, after=1000))},
    "JumpReLU": {"posterior": pa.posteriors.JumpReLU(), "objective": pa.Penalised(pa.penalties.L0(2.0))},
    "Gated": {"posterior": pa.posteriors.Gated(), "objective": pa.Penalised(pa.penalties.GatedSparsity(5.0))},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_true_dictionary_is_found(way):
    truth, x = true_dictionary()
    ae = pa.recipes.dictionary(x, latent_dim=32, k=2)
    ae = ae.replace(likelihood=pa.likelihoods.Normal(24, scale=0.3), **WAYS[way])
    pa.fit(ae, x[:2500], epochs=25, batch_size=100, lr=1e-2, compile="traced", progress=False, seed=0)
    found = pa.sparsity(ae, x[2500:])
    cosine = (truth @ ae.decoder[-1].atoms).max(1).values.mean()
    assert found.explained > 0.85 and found.l0 < 4.5 and cosine > 0.8, (found, cosine)


def test_sparsity_is_by_hand(x):
    ae = dictionary(POSTERIORS["TopK"])
    z, rebuilt = ae.encode(x).mean, ae.reconstruct(x)
    found = pa.sparsity(ae, x)
    assert found.l0 == pytest.approx((z != 0).sum(1).double().mean().item())
    assert found.explained == pytest.approx(1 - ((x - rebuilt).square().sum() / (x - x.mean(0)).square().sum()).item(), rel=1e-4)
    assert found.dead == pytest.approx((z == 0).all(0).double().mean().item()) and "units active" in str(found)


def test_encoder_and_decoder_share_the_centre(x):
    """Gao et al. 2024, eq. 1 and 2: z = TopK(W_e (x - b) + b_e) and W_d z + b; b has the gradient of both uses."""
    ae = dictionary(POSTERIORS["TopK"])
    encoder, decoder = ae.encoder[-1], ae.decoder[-1]
    with torch.no_grad():
        encoder.centre.normal_()
        encoder.bias.normal_()
    loss = Trace_ELBO().differentiable_loss(ae.model, ae.guide, x)
    b = encoder.centre.detach().clone().requires_grad_()
    h = (x - b) @ encoder.weight.T + encoder.bias
    z = torch.where(h >= h.topk(3).values[:, -1:], h.relu(), 0.0)
    by_hand = -pa.likelihoods.Normal(D, scale=0.5)(z @ decoder.atoms.T + b).log_prob(x).sum()
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-5)
    ours, theirs = torch.autograd.grad(loss, encoder.centre)[0], torch.autograd.grad(by_hand, b)[0]
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-3)


def test_tied_atoms_start_as_the_encoders_rows():
    ae = pa.recipes.dictionary(torch.randn(50, D), latent_dim=N)
    assert torch.allclose(ae.decoder[-1].atoms, ae.encoder[-1].weight.T)


WRONG = {
    "k": (lambda: pa.posteriors.TopK(4, k=5), "TopK: expected k of at most the 4 latent dimensions, got 5"),
    "no k": (lambda: pa.posteriors.BatchTopK(4, k=0), "BatchTopK: .*k"),
    "bandwidth": (lambda: pa.posteriors.JumpReLU(4, bandwidth=0.0), "JumpReLU: expected a positive threshold and bandwidth"),
    "penalty": (
        lambda: pa.fit(dictionary(pa.posteriors.Delta(), pa.Penalised(pa.penalties.L0())), torch.randn(9, D)),
        "L0: expected a sparse",
    ),
    "tied": (
        lambda: pa.recipes.vae(torch.rand(9, 5)).replace(decoder=pa.nets.Dictionary(tied=True)),
        "Dictionary: expected a linear encoder",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors_name_what_was_expected(name):
    wrong, words = WRONG[name]
    with pytest.raises(ValueError, match=words):
        wrong()
