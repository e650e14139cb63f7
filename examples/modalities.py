"""Images and labels as two modalities, some of them missing: each is generated from the other.

PYROAE_DATA=... uv run python examples/modalities.py        # MNIST, ten minutes; --data digits needs no files

A product of experts (Wu & Goodman 2018) and a mixture (Shi et al. 2019) on the same data: of the training examples a third has no image,
and a third no label. log p(x|y) and log p(y|x) are differences of log p(x, y), log p(x) and log p(y), of the same test examples.
"""

import json
import math
from pathlib import Path

import torch

import pyroae as pa


def joined(split: pa.data.Split) -> torch.Tensor:
    """Black and white images and their labels as rows of x, ``(N, pixels + 1)``."""
    return torch.cat([(split.x.flatten(1) > 0.5).float(), split.labels[:, None].float()], 1)


def without(x: torch.Tensor, image: bool) -> torch.Tensor:
    """The same rows with the image, or the label, missing."""
    x = x.clone()
    x[:, slice(-1) if image else slice(-1, None)] = math.nan
    return x


def models(pixels: int, latent_dim: int, hidden: int) -> dict[str, pa.Autoencoder]:
    """What is compared, by name, with its objective."""
    likelihood = pa.likelihoods.Product({"image": pa.likelihoods.Bernoulli(pixels), "label": pa.likelihoods.Categorical(1, 10)})
    emphasis = pa.penalties.Emphasis("label", 9.0)

    def model(posterior: type, objective: pa.Penalised | None) -> pa.Autoencoder:
        parts = pa.priors.Normal(latent_dim), likelihood, posterior(hidden=hidden), pa.nets.Identity(), pa.nets.MLP(hidden)
        return pa.Autoencoder(*parts, corruption=pa.corruption.Modalities(0.3), objective=objective)

    product, mixture = pa.posteriors.ProductOfExperts, pa.posteriors.MixtureOfExperts
    return {
        "product of experts": model(product, pa.Penalised(emphasis)),
        "product of experts, label not emphasised": model(product, None),
        "mixture of experts, IWAE 5": model(mixture, pa.Penalised(emphasis, pa.objectives.IWAE(5))),
    }


def main(
    data: str = "mnist",
    epochs: int = 8,
    latent_dim: int = 20,
    hidden: int = 400,
    examples: int = 100,
    particles: int = 200,
    only: list[str] = [],
    out: str = "modalities",
):
    """Train the models, write a table, and draw images of each class.

    Args:
        data: digits, mnist or fashion-mnist.
        epochs: passes over the data.
        latent_dim: the number of latent dimensions.
        hidden: width of the hidden layer of each network.
        examples: test examples whose densities are estimated.
        particles: importance samples for each.
        only: names of the posteriors; by default all. The others keep the rows that the table has.
        out: name of the table (.json) and of the picture (.png).
    """
    torch.manual_seed(0)
    source = pa.data.load(data)
    train, test = joined(source.train), joined(source.test)
    train[::3, :-1], train[1::3, -1] = math.nan, math.nan
    some, path = test[torch.linspace(0, len(test) - 1, examples).round().long()], Path(f"{out}.json")
    rows = {row["posterior"]: row for row in json.loads(path.read_text())} if only and path.exists() else {}
    for name, ae in models(train.shape[1] - 1, latent_dim, hidden).items():
        if only and name not in only:
            continue
        history = pa.fit(ae, train, epochs=epochs, batch_size=128, lr=1e-3, progress=False, seed=0)
        both, x, y = (pa.log_likelihood(ae, given, particles=particles) for given in (some, without(some, False), without(some, True)))
        row = {
            "posterior": name,
            "log p(x, y)": f"{both.mean:.2f}{both.verdict.mark} ± {both.data_se:.2f}",
            "log p(x)": f"{x.mean:.2f}{x.verdict.mark}",
            "log p(x given y)": f"{both.mean - y.mean:.2f}",
            "log p(y given x)": f"{both.mean - x.mean:.3f}",
            "labels from images": f"{(ae.reconstruct(without(test, image=False))[:, -1] == test[:, -1]).double().mean().item():.1%}",
            "images from labels": f"{classified(ae, source):.1%}",
            "seconds": f"{history['seconds'][-1]:.0f}",
        }
        rows[name] = row
        print("| " + " | ".join(row.values()) + " |", flush=True)
        path.write_text(json.dumps(list(rows.values()), indent=2) + "\n")
        if len(rows) == 1:
            pa.plots.save(pa.plots.images, f"{out}.png", drawn(ae, 6)[0], source.image_shape, columns=10)


@torch.no_grad()
def drawn(ae: pa.Autoencoder, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The means of p(image|z) for ``n`` draws from q(z|label) of each label, in rows of the ten labels, and these labels."""
    x = torch.full((10 * n, *ae.likelihood.event_shape), math.nan)
    x[:, -1] = torch.arange(len(x)) % 10
    return ae.likelihood.mean_or_mode(ae.decode(ae.encode(x).sample()))[:, :-1], x[:, -1]


def classified(ae: pa.Autoencoder, source: pa.data.DataSet) -> float:
    """How many of the images drawn from labels a classifier of real images takes for that label."""
    from sklearn.neighbors import KNeighborsClassifier

    x = (source.train.x.flatten(1) > 0.5).float()
    nearest = KNeighborsClassifier(5).fit(x[:10_000].numpy(), source.train.labels[:10_000].numpy())
    torch.manual_seed(0)
    images, labels = drawn(ae, 50)
    return nearest.score(images.numpy(), labels.numpy())


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)
