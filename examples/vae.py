"""A variational autoencoder in twenty lines: train, score, draw.

uv run python examples/vae.py                                   # digits, seconds
PYROAE_DATA=... uv run python examples/vae.py --data mnist --latent_dim 20 --hidden 400
"""

from matplotlib.figure import Figure

import pyroae as pa


def main(data: str = "digits", latent_dim: int = 8, hidden: int = 128, epochs: int = 20, particles: int = 100, out: str = "vae.png"):
    """Train a VAE on dynamically binarized images and write a picture of what it has learned.

    Args:
        data: digits, mnist or fashion-mnist.
        latent_dim: the number of latent dimensions.
        hidden: width of the hidden layers.
        epochs: passes over the data.
        particles: importance samples for each test example.
        out: the picture.
    """
    images = pa.data.load(data, binarize="dynamic")
    vae = pa.Autoencoder(
        prior=pa.priors.Normal(latent_dim),
        likelihood=pa.likelihoods.Bernoulli(tuple(images.event_shape)),
        posterior=pa.posteriors.Normal(),
        encoder=pa.nets.MLP(hidden),
        decoder=pa.nets.MLP(hidden),
    )
    print(pa.fit(vae, images.train, epochs=epochs))
    print(pa.elbo_terms(vae, images.test))
    print(pa.log_likelihood(vae, images.test, particles=particles, progress=True, proposal="guide"))

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=(1, 2))
    pa.plots.reconstructions(vae, images.test.x[:15], image_shape=images.image_shape, ax=above)
    pa.plots.samples(vae, 60, images.image_shape, columns=15, ax=below)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)
