"""Turned and shifted digits: the decoder of coordinates, whose latents hold the pose, beside a plain VAE (Bepler et al. 2019).

PYROAE_DATA=... uv run python examples/invariance.py        # sevens of MNIST, five minutes

Each image is turned by an angle and moved by a shift, both of Normal distributions, which the model is not told. The table has
the correlation of the angle's posterior mean with the true angle, on test images, and log p(x) beside that of a VAE whose decoder has
hidden layers of the same width.
"""

import json
import math
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample

import pyroae as pa


def turned(images: Tensor, angles: Tensor, shifts: Tensor) -> Tensor:
    """Images ``(N, side, side)`` turned counter-clockwise by angles and moved by shifts to the right and upwards; 1 is half an image."""
    cos, sin = angles.cos(), angles.sin()
    away = torch.stack([-shifts[:, 0], shifts[:, 1]], 1)  # grid_sample's y points down
    back = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    theta = torch.cat([back, back @ away[:, :, None]], 2)
    places = affine_grid(theta, [len(images), 1, *images.shape[1:]], align_corners=False)
    return grid_sample(images[:, None], places, align_corners=False)[:, 0]


def circular_correlation(a: Tensor, b: Tensor) -> float:
    """Of two samples of angles (Jammalamadaka & SenGupta 2001, eq. 8.2.2)."""

    def deviation(angles: Tensor) -> Tensor:
        return (angles - torch.atan2(angles.sin().mean(), angles.cos().mean())).sin()

    x, y = deviation(a.double()), deviation(b.double())
    return ((x * y).sum() / (x.square().sum() * y.square().sum()).sqrt()).item()


def posed(split: pa.data.Split, digit: int, copies: int, rotation: float, translation: float) -> tuple[Tensor, Tensor, Tensor]:
    """Images of one digit in ``copies`` poses each, at half the resolution where it is that of MNIST, with their angles and shifts."""
    images = split.x.flatten(1)[split.labels == digit].repeat(copies, 1)
    side = math.isqrt(images.shape[1])
    angles, shifts = rotation * torch.randn(len(images)), translation * torch.randn(len(images), 2)
    x = turned(images.reshape(-1, side, side), angles, shifts).clamp(0.0, 1.0)
    return (avg_pool2d(x[:, None], 2) if side == 28 else x).flatten(1), angles, shifts


def draw(ae: pa.Autoencoder, x: Tensor, angles: Tensor, found: Tensor, out: str):
    """True and found angles; images beside their reconstructions and what was drawn, all of them upright."""
    side = math.isqrt(x.shape[1])
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1, 1.4])
    ax = left.subplots()
    ax.scatter(angles, found, s=4, alpha=0.5)
    ax.axline((0, 0), slope=1, color="black", linewidth=0.8)
    ax.set(xlabel="true angle, radians", ylabel="posterior mean of the angle, radians", title="Test images")
    z = ae.latent_mean(x[:8]).detach()
    upright = z.clone()
    upright[:, : sum(ae.decoder.sizes)] = 0.0
    rows = {"image": x[:8], "reconstruction": ae.decode(z).mean, "pose set to 0": ae.decode(upright).mean}
    axes = right.subplots(len(rows), 8)
    for line, (name, images) in zip(axes, rows.items()):
        for place, image in zip(line, images.detach().reshape(-1, side, side)):
            place.imshow(image.numpy(), cmap="gray_r", vmin=0, vmax=1)
            place.set(xticks=[], yticks=[])
        line[0].set_ylabel(name)
    figure.savefig(f"{out}.png", dpi=110)


def main(
    data: str = "mnist",
    digit: int = 7,
    rotation: float = 0.7,
    translation: float = 0.08,
    copies: int = 5,
    code: int = 2,
    hidden: int = 64,
    epochs: int = 24,
    examples: int = 500,
    out: str = "invariance",
):
    """Train both models, write a table, and draw angles and images.

    Args:
        data: digits, mnist or fashion-mnist.
        digit: the class of the images.
        rotation: standard deviation of the angle, in radians.
        translation: standard deviation of the shifts; 1 is half an image.
        copies: poses of each training image.
        code: latent dimensions beside the three of the pose.
        hidden: width of both hidden layers of each decoder.
        epochs: passes over the images.
        examples: test images whose log p(x) is estimated.
        out: name of the table (.json) and of the picture (.png).
    """
    torch.manual_seed(0)
    source = pa.data.load(data)
    train, *_ = posed(source.train, digit, copies, rotation, translation)
    test, angles, shifts = posed(source.test, digit, 1, rotation, translation)
    side = math.isqrt(train.shape[1])
    images = pa.data.load(train, image_shape=(1, side, side), domain="unit", binarize="dynamic")
    binary = torch.bernoulli(test[:examples])
    spatial = pa.nets.Spatial([hidden, hidden], rotation=rotation, translation=translation)
    rows, scores = [], []
    for name, decoder in {"plain": pa.nets.MLP([hidden, hidden]), "coordinates": spatial}.items():
        torch.manual_seed(0)
        ae = pa.recipes.vae(images, latent_dim=code + 3, hidden=[4 * hidden, 4 * hidden]).replace(decoder=decoder)
        history = pa.fit(ae, images.train, epochs=epochs, batch_size=128, lr=2e-3, progress=False, seed=0)
        scores.append(pa.log_likelihood(ae, binary, particles=1000, seed=0))
        row = {
            "decoder": name,
            "its parameters": f"{sum(p.numel() for p in ae.decoder.parameters()):,}",
            "log p(x)": f"{scores[-1].mean:.2f}{scores[-1].verdict.mark}",
            "more than plain": "",
            "angle": "",
            "shift": "",
            "seconds": f"{history['seconds'][-1]:.0f}",
        }
        if name == "coordinates":
            gap = pa.compare(scores[1], scores[0])
            row["more than plain"] = f"{gap.difference:+.2f} ± {gap.se:.2f}"
            pose = {part: value.detach() for part, value in ae.decoder.pose(ae.latent_mean(test)).items()}
            along = torch.stack([pose["shift"][:, 0], shifts[:, 0]])
            row |= {"angle": f"{circular_correlation(pose['angle'], angles):.3f}", "shift": f"{torch.corrcoef(along)[0, 1]:.3f}"}
            draw(ae, test, angles, pose["angle"], out)
        rows.append(row)
        print("| " + " | ".join(row.values()) + " |", flush=True)
        Path(f"{out}.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)
