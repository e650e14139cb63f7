"""The evidence lower bound, read in two ways, and what it leaves out; noise of its gradient; sizes of code; three views of a model.

uv run python examples/bound.py                                         # digits, a minute
PYROAE_DATA=... uv run python examples/bound.py --data mnist --hidden 500 --epochs 20
"""

import json
from pathlib import Path

import torch
from matplotlib.figure import Figure
from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO

import pyroae as pa


def main(
    data: str = "digits",
    codes: list[int] = [2, 5, 10, 20],
    hidden: int = 128,
    epochs: int = 60,
    particles: int = 500,
    repeats: int = 50,
    rows: int = 500,
    seed: int = 0,
    out: str = "bound",
):
    """Train VAEs of several code sizes and a plain autoencoder; print both readings of the bound, and draw.

    Args:
        data: digits, mnist or fashion-mnist, binarized at a half.
        codes: sizes of z; the picture is of the second.
        hidden: width of the hidden layers.
        epochs: passes over the data.
        particles: importance samples for log p(x), and draws for the readings.
        repeats: gradients, for their variance.
        rows: test data that are scored.
        seed: of initial weights, noise and order.
        out: name of the picture (.png) and of the numbers (.json).
    """
    images = pa.data.load(data, binarize="threshold")
    x, found = images.test.x[:rows], {}
    for size in codes:
        torch.manual_seed(seed)
        vae = pa.recipes.vae(images, size, hidden)
        history = pa.fit(vae, images.train, epochs=epochs, seed=seed, progress=False, callbacks=[watched(vae, x)])
        found[f"z = {size}"] = {**readings(vae, x, particles), **noise(vae, images.train.x[:128], repeats)}
        print(f"z = {size}: " + ", ".join(f"{name} {value:.4g}" for name, value in found[f"z = {size}"].items()), flush=True)
        if size == codes[min(1, len(codes) - 1)]:
            shown = vae, history
    torch.manual_seed(seed)
    ten = pa.recipes.vae(images, codes[0], hidden)
    pa.fit(ten, images.train, epochs=epochs, seed=seed, progress=False, elbo=TraceMeanField_ELBO(num_particles=10))
    found[f"z = {codes[0]}, L = 10"] = readings(ten, x, particles)
    print(f"z = {codes[0]}, 10 draws per example in training: log p(x) {found[f'z = {codes[0]}, L = 10']['log p(x)']:.4g}")
    plain = pa.recipes.autoencoder(images, codes[min(1, len(codes) - 1)], hidden)
    pa.fit(plain, images.train, epochs=epochs, seed=seed, progress=False)
    draw(*shown, plain, images, out)
    settings = {"data": data, "hidden": hidden, "epochs": epochs, "particles": particles, "rows": len(x), "seed": seed}
    Path(f"{out}.json").write_text(json.dumps({"settings": settings, "found": found}, indent=2))


@torch.no_grad()
def readings(vae: pa.Autoencoder, x: torch.Tensor, particles: int) -> dict[str, float]:
    """E log p(x|z) - KL(q(z|x) || p(z)), E log p(x, z) + H(q), log p(x), and what is between: KL(q(z|x) || p(z|x))."""
    terms = pa.elbo_terms(vae, x, particles=particles)
    q = vae.encode(x)
    joint = torch.zeros(len(x), dtype=torch.float64)
    for _ in range(particles):
        z = q.sample()
        joint += (vae.prior().log_prob(z) + vae.decode(z).log_prob(x)).double() / particles
    log_p = pa.log_likelihood(vae, x, particles=particles, proposal="guide").mean
    elbo = terms.elbo.mean().item()
    return {
        "E log p(x|z) - KL": elbo,
        "E log p(x,z) + H": (joint + q.entropy()).mean().item(),
        "KL": terms.kl.mean().item(),
        "log p(x)": log_p,
        "gap": log_p - elbo,
    }


def noise(vae: pa.Autoencoder, x: torch.Tensor, repeats: int) -> dict[str, float]:
    """Variance of the encoder's gradient, summed over its entries, per example: KL by Monte Carlo or in closed form, L = 1 or 10 draws."""

    def variance(elbo: ELBO) -> float:
        gradients = []
        for _ in range(repeats):
            loss = elbo.differentiable_loss(vae.model, vae.guide, x) / len(x)
            gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(vae.encoder.parameters()))]))
        return torch.stack(gradients).var(0).sum().item()

    kinds = {"Monte-Carlo KL": Trace_ELBO, "closed-form KL": TraceMeanField_ELBO}
    return {f"gradient's variance, {name}, L = {n}": variance(kind(num_particles=n)) for name, kind in kinds.items() for n in (1, 10)}


def watched(vae: pa.Autoencoder, x: torch.Tensor):
    """A callback that adds the bound's terms and log p(x) of held-out data to each epoch's row."""

    def callback(row: dict):
        terms = pa.elbo_terms(vae, x)
        row["reconstruction"], row["KL"] = terms.reconstruction.mean().item(), terms.kl.mean().item()
        row["ELBO"], row["log p(x)"] = terms.elbo.mean().item(), pa.log_likelihood(vae, x, particles=50, proposal="guide").mean

    return callback


@torch.no_grad()
def draw(vae: pa.Autoencoder, history: pa.History, plain: pa.Autoencoder, images, out: str):
    """The bound over training; x encoded, reconstructed, generated, walked between; what perturbing a plain autoencoder's code gives."""
    figure = Figure(figsize=(14, 9), layout="constrained")
    left, right = figure.subfigures(1, 2)
    bound, parts, codes = left.subplots(3, 1, height_ratios=(2, 2, 2.4))
    pa.plots.training(history, ["ELBO", "log p(x)"], ax=bound).set_title("The bound and what it bounds, on held-out data")
    pa.plots.training(history, ["reconstruction", "KL"], ax=parts)
    pa.plots.latent(vae, images.test.x[:3000], images.test.labels[:3000], ax=codes)
    one, two, three, four, walk = right.subplots(5, 1, height_ratios=(2, 3, 3, 3, 4))
    pa.plots.interpolation(vae, images.test.x[:6], images.image_shape, ax=walk)
    pa.plots.reconstructions(vae, images.test.x[:15], image_shape=images.image_shape, ax=one)
    pa.plots.samples(vae, 45, images.image_shape, columns=15, ax=two)
    z = plain.encode(images.test.x).mean
    near = z[:3].repeat_interleave(15, 0) + z.std(0) * torch.randn(45, z.shape[1])
    pa.plots.images(plain.likelihood.mean_or_mode(plain.decode(near)), images.image_shape, columns=15, ax=three)
    three.set_title("Plain autoencoder: around three data's codes")
    anywhere = torch.randn(45, z.shape[1])
    pa.plots.images(plain.likelihood.mean_or_mode(plain.decode(anywhere)), images.image_shape, columns=15, ax=four)
    four.set_title("Plain autoencoder: codes from N(0, 1)")
    figure.savefig(f"{out}.png", dpi=80)


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)
