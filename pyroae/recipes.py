"""Classical autoencoders by name: each is a choice of prior, likelihood, posterior, corruption and objective."""

from .matching import Data, inputs_of, likelihood_of, split_of
from .model.autoencoder import Autoencoder
from .model.conditions import Covariates, Labels
from .model.corruption import Masking
from .model.nets import MLP, Dictionary, Linear
from .model.posteriors import Delta, TopK, VectorQuantised
from .model.posteriors import Normal as NormalPosterior
from .model.priors import Codes, Flat, Laplace
from .model.priors import Normal as NormalPrior
from .objectives import Penalised
from .objectives.penalties import Commitment, Contractive, DecoderL2, KLSparsity
from .threads import alone

__all__ = ["autoencoder", "conditional", "contractive", "denoising", "dictionary", "rae", "sparse", "sparse_kl", "vae", "vq_vae"]


def __dir__() -> list[str]:
    return __all__


Hidden = int | list[int]
_LARGE = 256  # entries of x from which on the default VAE is larger


@alone
def autoencoder(data: Data, latent_dim: int = 32, hidden: Hidden = 128) -> Autoencoder:
    """Plain autoencoder: a flat prior and a point posterior; the loss is the reconstruction error.

    Args:
        data: determines the shape of x and its likelihood; a data set, or what ``pa.data.load`` takes.
        latent_dim: size of z.
        hidden: width of the hidden layer, or a list of widths; the decoder mirrors the encoder.

    >>> import pyroae as pa
    >>> type(autoencoder(pa.data.load("digits")).posterior).__name__
    'Delta'
    """
    data = split_of(data)
    networks = MLP(hidden), MLP(_mirrored(hidden))
    return Autoencoder(Flat(latent_dim), likelihood_of(data, squared=True), Delta(), *networks, schema=data.schema, inputs=inputs_of(data))


@alone
def denoising(data: Data, latent_dim: int = 32, hidden: Hidden = 128) -> Autoencoder:
    """Denoising autoencoder (Vincent et al. 2010): the encoder gets corrupted x, the decoder reconstructs the clean x.

    Args:
        data: determines the shape of x and its likelihood; a data set, or what ``pa.data.load`` takes.
        latent_dim: size of z.
        hidden: width of the hidden layer, or a list of widths; the decoder mirrors the encoder.

    >>> import pyroae as pa
    >>> type(denoising(pa.data.load("digits")).posterior).__name__
    'Delta'
    """
    return autoencoder(data, latent_dim, hidden).replace(corruption=Masking(0.25))


@alone
def sparse(data: Data, latent_dim: int = 128, hidden: Hidden = 128, scale: float = 10.0) -> Autoencoder:
    """Sparse autoencoder: a Laplace prior on z, which is an L1 penalty of weight 1 / scale, and a dictionary as decoder.

    The decoder is linear with columns of norm 1. Otherwise the penalty could be made arbitrarily small without changing the
    reconstruction, by dividing z and multiplying the decoder by a constant.

    Args:
        data: determines the shape of x and its likelihood; a data set, or what ``pa.data.load`` takes.
        latent_dim: number of atoms.
        hidden: width of the encoder's hidden layer, or a list of widths.
        scale: of the prior.

    >>> import pyroae as pa
    >>> type(sparse(pa.data.load("digits")).posterior).__name__
    'Delta'
    """
    return autoencoder(data, latent_dim, hidden).replace(prior=Laplace(latent_dim, scale=scale), decoder=Dictionary())


@alone
def dictionary(data: Data, latent_dim: int = 512, k: int = 32) -> Autoencoder:
    """Sparse dictionary (Gao et al. 2024): the k most active units of a linear encoder, and a linear decoder with columns of norm 1.

    Other activations are the posteriors ``BatchTopK``, ``JumpReLU`` (penalty ``L0``) and ``Gated`` (``GatedSparsity``); see ``DeadUnits``.

    Args:
        data: determines the shape of x and its likelihood; a data set, or what ``pa.data.load`` takes.
        latent_dim: number of atoms.
        k: number of active units.

    >>> import pyroae as pa
    >>> type(dictionary(pa.data.load("digits")).posterior).__name__
    'TopK'
    """
    data = split_of(data)
    parts = Flat(latent_dim), likelihood_of(data, squared=True), TopK(k=min(k, latent_dim))
    return Autoencoder(*parts, Linear(centred=True), Dictionary(tied=True), schema=data.schema, inputs=inputs_of(data))


@alone
def sparse_kl(data: Data, latent_dim: int = 128, hidden: Hidden = 128, weight: float = 0.2, target: float = 0.1) -> Autoencoder:
    """Sparse autoencoder by KL: sigmoid units whose mean activation over the batch is penalised for its distance from the target.

    Args:
        data: determines the shape of x and its likelihood; a data set, or what ``pa.data.load`` takes.
        latent_dim: size of z.
        hidden: width of the hidden layer, or a list of widths; the decoder mirrors the encoder.
        weight: of the penalty.
        target: mean activation.

    >>> import pyroae as pa
    >>> type(sparse_kl(pa.data.load("digits")).posterior).__name__
    'Delta'
    """
    return autoencoder(data, latent_dim, hidden).replace(
        prior=Flat(latent_dim, support="unit_interval"), objective=Penalised(KLSparsity(weight, target))
    )


@alone
def contractive(data: Data, latent_dim: int = 32, hidden: Hidden = [], weight: float = 0.1) -> Autoencoder:
    """Contractive autoencoder (Rifai et al. 2011): sigmoid units, and a penalty on the squared Jacobian of the encoder.

    Args:
        data: determines the shape of x and its likelihood; a data set, or what ``pa.data.load`` takes.
        latent_dim: size of z.
        hidden: width of the hidden layer, or a list of widths; the decoder mirrors the encoder.
        weight: of the penalty.

    >>> import pyroae as pa
    >>> type(contractive(pa.data.load("digits")).posterior).__name__
    'Delta'
    """
    return autoencoder(data, latent_dim, hidden).replace(
        prior=Flat(latent_dim, support="unit_interval"), objective=Penalised(Contractive(weight))
    )


@alone
def rae(data: Data, latent_dim: int = 16, hidden: Hidden = 128, beta: float = 1e-4, weight: float = 1e-7) -> Autoencoder:
    r"""Regularised autoencoder with an L2 penalty, RAE-L2 (Ghosh et al. 2020); ``fit_prior`` then makes it a generative model.

    The loss of the paper is :math:`\|x - g(z)\|^2 + \frac\beta2 \|z\|^2 + \lambda R`. Half of it, up to constants, is -log p(x, z) with
    unit noise and the prior :math:`N(0, 2 / \beta)`, plus :math:`\frac\lambda2 R`, R the squared norm of the decoder's matrices. RAE-GP has
    the penalty ``DecoderJacobian(weight / 2)`` instead, RAE-SN the decoder ``pa.nets.SpectralNorm()`` and a weight of 0.

    Args:
        data: determines the shape of x and its likelihood; a data set, or what ``pa.data.load`` takes.
        latent_dim: size of z.
        hidden: width of the hidden layer, or a list of widths; the decoder mirrors the encoder.
        beta: of the codes' norm.
        weight: lambda, of the penalty.

    >>> import pyroae as pa
    >>> type(rae(pa.data.load("digits")).objective.penalty).__name__
    'DecoderL2'
    """
    if not beta > 0.0:
        raise ValueError(f"rae: expected a positive beta, got {beta!r}")
    prior = NormalPrior(latent_dim, scale=(2 / beta) ** 0.5)
    return autoencoder(data, latent_dim, hidden).replace(prior=prior, objective=Penalised(DecoderL2(weight / 2)))


@alone
def vae(data: Data, latent_dim: int | None = None, hidden: Hidden | None = None) -> Autoencoder:
    """Variational autoencoder (Kingma & Welling 2014): Normal prior and posterior, and a likelihood chosen by the data's domain.

    Args:
        data: determines the shape of x and its likelihood; a data set, or what ``pa.data.load`` takes.
        latent_dim: size of z; by default 8, or 20 where x has 256 entries or more.
        hidden: width of the hidden layer, or a list of widths; the decoder mirrors the encoder; by default 128, or 400 for such an x.

    >>> import pyroae as pa
    >>> type(pa.recipes.vae(pa.data.load("digits")).posterior).__name__
    'Normal'
    """
    data = split_of(data)
    usual_dim, usual_width = (20, 400) if data.event_shape.numel() >= _LARGE else (8, 128)
    latent_dim, hidden = usual_dim if latent_dim is None else latent_dim, usual_width if hidden is None else hidden
    networks = MLP(hidden), MLP(_mirrored(hidden))
    return Autoencoder(
        NormalPrior(latent_dim), likelihood_of(data), NormalPosterior(), *networks, schema=data.schema, inputs=inputs_of(data)
    )


@alone
def vq_vae(data: Data, latent_dim: int = 64, hidden: Hidden | None = None, size: int = 4, codes: int = 64) -> Autoencoder:
    """VQ-VAE (van den Oord et al. 2017): each position of z is the nearest vector of a codebook that moving averages learn.

    The prior is uniform; ``pa.fit_prior(ae, data, pa.priors.CodeSequence())`` fits an autoregressive one to the codes.

    Args:
        data: determines the shape of x and its likelihood; a data set, or what ``pa.data.load`` takes.
        latent_dim: size of z, the positions of an example times ``size``.
        hidden: width of the hidden layer, or a list of widths; the decoder mirrors the encoder; by default as for ``vae``.
        size: of a code vector.
        codes: number of vectors in the codebook.

    >>> import pyroae as pa
    >>> type(pa.recipes.vq_vae(pa.data.load("digits")).posterior).__name__
    'VectorQuantised'
    """
    if size < 1 or latent_dim < 1 or latent_dim % size:
        raise ValueError(f"vq_vae: expected latent_dim as a multiple of size, {size!r}, got {latent_dim!r}")
    return vae(data, latent_dim, hidden).replace(
        prior=Codes((latent_dim // size, size)), posterior=VectorQuantised(codes=codes), objective=Penalised(Commitment())
    )


@alone
def conditional(data: Data, latent_dim: int | None = None, hidden: Hidden | None = None) -> Autoencoder:
    """Conditional VAE (Sohn et al. 2015): encoder and decoder get the label or the covariates; samples are drawn by class.

    Args:
        data: as for ``vae``, with labels or covariates.
        latent_dim: size of z; by default 8, or 20 where x has 256 entries or more.
        hidden: width of the hidden layer, or a list of widths; the decoder mirrors the encoder; by default 128, or 400 for such an x.

    >>> import pyroae as pa
    >>> type(conditional(pa.data.load("digits")).posterior).__name__
    'Normal'
    """
    split = split_of(data)
    if split.labels is None:
        raise ValueError(
            "conditional: expected data with labels, such as digits, got none; name their column, pa.data.load(..., labels='NAME') "
            "(--labels NAME), or those of covariates (--covariates NAME), give a tuple (x, y), or use vae"
        )
    if split.labels.is_floating_point():
        return vae(split, latent_dim, hidden).replace(condition=Covariates(split.labels.shape[1]))
    classes = len(split.schema.classes) if split.schema.classes else int(split.labels.max()) + 1
    return vae(split, latent_dim, hidden).replace(condition=Labels(classes))


def _mirrored(hidden: Hidden) -> Hidden:
    return hidden if isinstance(hidden, int) else hidden[::-1]


RECIPES = {
    recipe.__name__: recipe
    for recipe in (vae, conditional, autoencoder, denoising, sparse, sparse_kl, dictionary, contractive, rae, vq_vae)
}
