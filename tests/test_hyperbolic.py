"""The Poincare ball: densities that integrate to 1, the Normal as a limit, and trees of known distortion."""

import cmath
import math

import pytest
import torch
from torch.distributions import biject_to

import pyroae as pa
from pyroae.model.distributions import WrappedNormal
from pyroae.model.distributions.hyperbolic import distance


@pytest.mark.parametrize("curvature", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("loc", [(0.0, 0.0), (0.2, -0.35)])
def test_the_density_integrates_to_one_and_draws_follow_it(curvature, loc):
    torch.manual_seed(0)
    loc, scale = torch.tensor(loc).double(), torch.tensor([0.4, 0.7]).double()
    p, radius = WrappedNormal(loc, scale, curvature), curvature**-0.5
    axis = (torch.arange(2000, dtype=torch.float64) + 0.5) / 1000 * radius - radius
    z = torch.cartesian_prod(axis, axis)
    z = z[z.norm(dim=1) < radius * (1 - 1e-9)]
    mass, cell = p.log_prob(z).exp(), (axis[1] - axis[0]) ** 2
    assert (mass.sum() * cell).item() == pytest.approx(1.0, abs=2e-3)
    drawn, inside = p.sample((40_000,)), (z - loc).norm(dim=1) < 0.2 * radius
    share = ((drawn - loc).norm(dim=1) < 0.2 * radius).double().mean().item()
    assert (mass[inside].sum() * cell).item() == pytest.approx(share, abs=0.01)


def test_small_curvature_is_a_normal_of_half_the_scale():
    """Distances are twice the Euclidean ones there (Mathieu et al. 2019, section 2)."""
    loc, scale, z = torch.tensor([0.5, -1.0]).double(), torch.tensor([0.4, 1.5]).double(), torch.randn(50, 2).double()
    wrapped, normal = WrappedNormal(loc, scale, 1e-6), torch.distributions.Normal(loc, scale / 2)
    assert torch.allclose(wrapped.log_prob(z), normal.log_prob(z).sum(-1), atol=1e-4)


def test_the_map_from_the_real_line_has_its_jacobian():
    ball = WrappedNormal(torch.zeros(3).double(), torch.ones(3).double(), 0.7).support
    to_ball, u = biject_to(ball), torch.randn(10, 3).double()
    z = to_ball(u)
    assert ball.check(z).all() and torch.allclose(to_ball.inv(z), u)
    assert torch.allclose(distance(torch.zeros_like(z), z, 0.7), u.norm(dim=1))
    jacobians = torch.stack([torch.autograd.functional.jacobian(to_ball, row) for row in u])
    assert torch.allclose(to_ball.log_abs_det_jacobian(u, z), torch.linalg.slogdet(jacobians)[1])


def binary_tree(depth, edge):
    """Sarkar's embedding (2011): nodes with three neighbours at angles of 120 degrees, edges of hyperbolic length ``edge``."""
    r = math.tanh(edge / 2)
    places, parents = [0j], [None]
    level = [0]
    for _ in range(depth):
        following = []
        for node in level:
            z, parent = places[node], parents[node]
            back = 0.0 if parent is None else cmath.phase((places[parent] - z) / (1 - z.conjugate() * places[parent]))
            for turn in range(1 if parent is not None else 0, 3):
                w = cmath.rect(r, back + turn * 2 * math.pi / 3)
                places.append((w + z) / (1 + z.conjugate() * w))
                parents.append(node)
                following.append(len(places) - 1)
        level = following
    return torch.tensor([[z.real, z.imag] for z in places], dtype=torch.float64), parents


def tree_distances(parents):
    n = len(parents)
    d = torch.full((n, n), torch.inf, dtype=torch.float64).fill_diagonal_(0)
    for node, parent in enumerate(parents):
        if parent is not None:
            d[node, :node] = d[parent, :node] + 1
            d[:node, node] = d[node, :node]
    return d


@pytest.mark.parametrize("edge", [3.0, 4.0])
def test_a_tree_has_its_known_distortion(edge):
    """Siblings by the law of cosines; a turn of 120 degrees between long edges shortens a path by log(4/3), so that the distortion of
    all distances goes to 1 as log(4/3) / edge goes to 0."""
    places, parents = binary_tree(4, edge)
    ours, tree = distance(places[:, None], places[None]), edge * tree_distances(parents)
    off = ~torch.eye(len(places), dtype=torch.bool)
    ratio = (ours / tree)[off]
    assert 1 - math.log(4 / 3) / edge < ratio.min() < 1 - 0.5 * math.log(4 / 3) / edge and ratio.max() < 1 + 1e-4
    siblings = math.acosh(math.cosh(edge) ** 2 + 0.5 * math.sinh(edge) ** 2)
    assert ours[1, 2].item() == pytest.approx(siblings, rel=1e-6) and parents[1] == parents[2] == 0


def test_it_learns_is_scored_by_every_proposal_and_saved(digits, tmp_path):
    ae = pa.recipes.vae(digits, latent_dim=2, hidden=32)
    ae = ae.replace(prior=pa.priors.WrappedNormal(2, curvature=0.5), posterior=pa.posteriors.WrappedNormal())
    losses = pa.fit(ae, digits.train, epochs=6, lr=3e-3, progress=False).loss
    assert losses[-1] < losses[0] - 5 and ae.posterior.curvature == 0.5
    x = digits.test.x[:5]
    proposals = ["guide", "auto", pa.proposals.Laplace(steps=20)]
    by_proposal = [pa.log_likelihood(ae, x, particles=2000, proposal=each).mean for each in proposals]
    annealed = pa.ais(ae, x, chains=8, temperatures=25).mean
    assert by_proposal == pytest.approx([annealed] * 3, abs=0.15)
    pa.save(ae, tmp_path / "ball.safetensors")
    assert torch.equal(pa.load(tmp_path / "ball.safetensors").encode(x).mean, ae.encode(x).mean)
    with pytest.raises(ValueError, match="expected the prior pa.priors.WrappedNormal"):
        ae.replace(prior=pa.priors.Normal(2))
