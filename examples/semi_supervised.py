"""Few labels: M2, whose classes are told for some of the data and summed out for the others (Kingma et al. 2014).

uv run python examples/semi_supervised.py                                     # digits, half a minute
PYROAE_DATA=... uv run python examples/semi_supervised.py --data mnist --hidden 500 --latent_dim 50 --epochs 30
"""

import torch
from pyro.infer import TraceEnum_ELBO
from sklearn.neighbors import KNeighborsClassifier

import pyroae as pa


def main(data: str = "digits", labelled: int = 50, latent_dim: int = 4, hidden: int = 128, epochs: int = 60, seed: int = 0):
    """Train on data of which a few are labelled; print the test accuracy of q(y|x) beside that of nearest neighbours.

    Args:
        data: digits, mnist or fashion-mnist.
        labelled: how many of the training data keep their label.
        latent_dim: the number of latent dimensions.
        hidden: width of the hidden layers.
        epochs: passes over the data.
        seed: of initial weights, noise and order.
    """
    torch.manual_seed(seed)
    images = pa.data.load(data, binarize="threshold")
    classes = int(images.train.labels.max()) + 1
    labels = torch.full_like(images.train.labels, -1)
    kept = torch.cat([(images.train.labels == c).nonzero()[: labelled // classes, 0] for c in range(classes)])
    labels[kept] = images.train.labels[kept]
    weight = len(labels) / len(kept)  # ten times the paper's: there are fewer data here
    m2 = pa.Autoencoder(
        prior=pa.priors.ClassAndStyle(latent_dim, classes=classes),
        likelihood=pa.likelihoods.Bernoulli(tuple(images.event_shape)),
        posterior=pa.posteriors.Clusters(hidden=hidden),
        encoder=pa.nets.MLP(hidden),
        decoder=pa.nets.MLP(hidden),
        condition=pa.conditions.PartialLabels(classes),
        objective=pa.Penalised(pa.penalties.Classification(weight), TraceEnum_ELBO(max_plate_nesting=1)),
    )
    pa.fit(m2, (images.train.x, labels), epochs=epochs, seed=seed)
    with torch.no_grad():
        guessed = m2.encode(images.test.x).mixture_distribution.probs.argmax(-1)
    nearest = KNeighborsClassifier(1).fit(images.train.x[kept].numpy(), labels[kept].numpy())
    ours = (guessed.cpu() == images.test.labels).float().mean().item()
    theirs = nearest.score(images.test.x.numpy(), images.test.labels.numpy())
    print(f"{len(kept)} labels of {len(labels):,}: test accuracy {ours:.1%}, nearest neighbour among the labelled {theirs:.1%}")


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)
