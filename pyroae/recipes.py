"""The classical autoencoders by name: each a choice of prior, likelihood, posterior, corruption and objective."""

from .autoencoder import Autoencoder
from .data import DataSet, Split
from .objectives import Penalised
from .objectives.penalties import Contractive, KLSparsity
from .parts.conditions import Labels
from .parts.corruption import Masking
from .parts.likelihoods import BY_DOMAIN, Bernoulli, Likelihood, Normal
from .parts.networks import MLP, Dictionary
from .parts.posteriors import Delta
from .parts.posteriors import Normal as NormalPosterior
from .parts.priors import Flat, Laplace
from .parts.priors import Normal as NormalPrior

Hidden = int | list[int]


def autoencoder(data: DataSet | Split, latent_dim: int = 32, hidden: Hidden = 128) -> Autoencoder:
    """Plain autoencoder: a flat prior and a point posterior; the loss is the reconstruction error.

    Args:
        data: what it is for; states the shape of x and its domain.
        latent_dim: the number of latent dimensions.
        hidden: width of the hidden layer, or of several; the decoder mirrors the encoder.

    >>> import pyroae as pa
    >>> type(autoencoder(pa.data.load("digits")).posterior).__name__
    'Delta'
    """
    return Autoencoder(Flat(latent_dim), _pointwise(data), Delta(), MLP(hidden), MLP(_mirrored(hidden)))


def denoising(data: DataSet | Split, latent_dim: int = 32, hidden: Hidden = 128) -> Autoencoder:
    """Denoising autoencoder (Vincent et al. 2010): the encoder sees corrupted x, the decoder must give the clean one.

    Args:
        data: what it is for; states the shape of x and its domain.
        latent_dim: the number of latent dimensions.
        hidden: width of the hidden layer, or of several; the decoder mirrors the encoder.

    >>> import pyroae as pa
    >>> type(denoising(pa.data.load("digits")).posterior).__name__
    'Delta'
    """
    return autoencoder(data, latent_dim, hidden).replace(corruption=Masking(0.25))


def sparse(data: DataSet | Split, latent_dim: int = 128, hidden: Hidden = 128, scale: float = 10.0) -> Autoencoder:
    """Sparse autoencoder: a Laplace prior on the code, so an L1 penalty of weight 1 / scale; a dictionary decodes.

    The decoder is linear with columns of length 1. With free ones the penalty would be avoided, not paid: code divided by
    c, decoder multiplied by c, the same reconstruction for a c-th of the price.

    Args:
        data: what it is for; states the shape of x and its domain.
        latent_dim: the number of latent dimensions, one for each atom.
        hidden: width of the encoder's hidden layer, or of several.
        scale: of the prior.

    >>> import pyroae as pa
    >>> type(sparse(pa.data.load("digits")).posterior).__name__
    'Delta'
    """
    return autoencoder(data, latent_dim, hidden).replace(prior=Laplace(latent_dim, scale=scale), decoder=Dictionary())


def sparse_kl(data: DataSet | Split, latent_dim: int = 128, hidden: Hidden = 128, weight: float = 0.2, target: float = 0.1) -> Autoencoder:
    """Sparse autoencoder by KL: sigmoid units whose mean activation over the batch is drawn to the target.

    Args:
        data: what it is for; states the shape of x and its domain.
        latent_dim: the number of latent dimensions.
        hidden: width of the hidden layer, or of several; the decoder mirrors the encoder.
        weight: of the penalty.
        target: mean activation that units are drawn to.

    >>> import pyroae as pa
    >>> type(sparse_kl(pa.data.load("digits")).posterior).__name__
    'Delta'
    """
    return autoencoder(data, latent_dim, hidden).replace(
        prior=Flat(latent_dim, support="unit_interval"), objective=Penalised(KLSparsity(weight, target))
    )


def contractive(data: DataSet | Split, latent_dim: int = 32, hidden: Hidden = [], weight: float = 0.1) -> Autoencoder:
    """Contractive autoencoder (Rifai et al. 2011): sigmoid units, and a penalty on the squared Jacobian of the encoder.

    Args:
        data: what it is for; states the shape of x and its domain.
        latent_dim: the number of latent dimensions.
        hidden: width of the hidden layer, or of several; the decoder mirrors the encoder.
        weight: of the penalty.

    >>> import pyroae as pa
    >>> type(contractive(pa.data.load("digits")).posterior).__name__
    'Delta'
    """
    return autoencoder(data, latent_dim, hidden).replace(
        prior=Flat(latent_dim, support="unit_interval"), objective=Penalised(Contractive(weight))
    )


def vae(data: DataSet | Split, latent_dim: int = 8, hidden: Hidden = 128) -> Autoencoder:
    """Variational autoencoder (Kingma & Welling 2014): Normal prior, Normal posterior, the likelihood that the data's domain asks for.

    Args:
        data: what it is for; states the shape of x and its domain.
        latent_dim: the number of latent dimensions.
        hidden: width of the hidden layer, or of several; the decoder mirrors the encoder.

    >>> import pyroae as pa
    >>> type(vae(pa.data.load("digits")).posterior).__name__
    'Normal'
    """
    likelihood = BY_DOMAIN.get(data.domain)
    if likelihood is None:
        raise ValueError(f"vae: there is no likelihood for {data.domain} data yet; build an Autoencoder with one of your own")
    return Autoencoder(NormalPrior(latent_dim), likelihood(tuple(data.event_shape)), NormalPosterior(), MLP(hidden), MLP(_mirrored(hidden)))


def conditional(data: DataSet | Split, latent_dim: int = 8, hidden: Hidden = 128) -> Autoencoder:
    """Conditional VAE (Sohn et al. 2015): encoder and decoder are told the label; samples are drawn by class.

    Args:
        data: what it is for, with labels.
        latent_dim: the number of latent dimensions.
        hidden: width of the hidden layer, or of several; the decoder mirrors the encoder.

    >>> import pyroae as pa
    >>> type(conditional(pa.data.load("digits")).posterior).__name__
    'Normal'
    """
    split = getattr(data, "train", data)
    if split.labels is None:
        raise ValueError("conditional: expected data with labels, such as digits, got none; use vae, or a condition and data of your own")
    return vae(data, latent_dim, hidden).replace(condition=Labels(int(split.labels.max()) + 1))


def _pointwise(data: DataSet | Split) -> Likelihood:
    """Cross-entropy for binary data, otherwise squared error: a Normal of scale 1."""
    shape = tuple(data.event_shape)
    return Bernoulli(shape) if data.domain == "binary" else Normal(shape, scale=1.0)


def _mirrored(hidden: Hidden) -> Hidden:
    return hidden if isinstance(hidden, int) else hidden[::-1]


RECIPES = {recipe.__name__: recipe for recipe in (vae, conditional, autoencoder, denoising, sparse, sparse_kl, contractive)}
