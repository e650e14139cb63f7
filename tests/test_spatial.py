"""The decoder of coordinates: rotation, translation and scale as latent variables."""

import math

import numpy as np
import pytest
import torch
from conftest import imported

import pyroae as pa

invariance = imported("invariance")


def decoder(side=8, latent_dim=7, **options):
    torch.manual_seed(0)
    return pa.nets.Spatial([16, 16], **options).build(torch.Size([latent_dim]), 2 * side**2, image=(1, side, side))


def drawn(network, z):
    return network(z).reshape(len(z), 2, 8, 8).detach()


def test_the_pose_turns_moves_and_scales_the_image():
    network = decoder(rotation=math.pi / 2, translation=0.25, scaling=math.log(2))
    still = torch.zeros(1, 7)
    still[:, 4:] = torch.randn(3)
    turned, right, up, large = (still + torch.eye(7)[i] for i in range(4))
    image = drawn(network, still)
    assert torch.allclose(drawn(network, turned), image.rot90(1, (2, 3)), atol=1e-5)  # counter-clockwise, by a right angle
    assert torch.allclose(drawn(network, right)[..., 1:], image[..., :-1], atol=1e-5)  # by a pixel, an eighth of the image
    assert torch.allclose(drawn(network, up)[..., :-1, :], image[..., 1:, :], atol=1e-5)
    middle = torch.nn.functional.interpolate(image[..., 2:6, 2:6], scale_factor=2.0, mode="bilinear")
    assert (drawn(network, large) - middle).abs().mean() < 0.2 * image.std()  # twice as large: its middle half
    pose = network.pose(torch.tensor([[1.0, 2.0, -1.0, 1.0, 9.0, 9.0, 9.0]]))
    assert pose["angle"].item() == pytest.approx(math.pi / 2) and pose["shift"].tolist() == [[0.5, -0.25]] and pose["scale"].item() == 2.0


def test_what_is_off_takes_no_latent():
    network = decoder(rotation=0.0, translation=0.0, scaling=0.5, latent_dim=2)
    assert list(network.pose(torch.zeros(1, 2))) == ["scale"] and network.of_code.in_features == 1


def test_angle_and_shift_of_turned_images_are_found():
    """A wedge, turned and moved at random."""
    wedge = torch.zeros(12, 12)
    wedge[3:9, 5:7], wedge[3:5, 5:9] = 1.0, 1.0
    angles, shifts = 0.4 * torch.randn(1000), 0.12 * torch.randn(1000, 2)
    x = invariance.turned(wedge.expand(1000, 12, 12), angles, shifts).clamp(0, 1)
    half = torch.tensor([math.pi / 2]), torch.zeros(1, 2)
    assert torch.allclose(invariance.turned(wedge[None], *half)[0], wedge.rot90(), atol=1e-5)  # the data are what they should be
    data = pa.data.load(x.flatten(1), image_shape=(1, 12, 12), domain="unit")
    spatial = pa.nets.Spatial([32, 32], rotation=0.4, translation=0.12)
    ae = pa.recipes.vae(data, latent_dim=4, hidden=64).replace(likelihood=pa.likelihoods.Normal(144, scale=0.5), decoder=spatial)
    pa.fit(ae, x.flatten(1), epochs=12, batch_size=20, lr=3e-3, progress=False, seed=0)
    found = ae.decoder.pose(ae.latent_mean(x.flatten(1)))
    assert invariance.circular_correlation(found["angle"], angles) > 0.9
    assert np.corrcoef(found["shift"][:, 0], shifts[:, 0])[0, 1] > 0.9


WRONG = {
    "no image": (lambda: pa.recipes.vae(torch.rand(9, 5)).replace(decoder=pa.nets.Spatial()), "Spatial: expected images, got 5 numbers"),
    "too few latents": (lambda: decoder(latent_dim=3), "more latent dimensions than the 3 of the pose, got 3"),
    "negative": (lambda: pa.nets.Spatial(rotation=-1.0), "standard deviations of at least 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors_name_what_was_expected(name):
    wrong, words = WRONG[name]
    with pytest.raises(ValueError, match=words):
        wrong()
