"""``Autoencoder``: p(z) p(x|z) and q(z|x) as a pair of Pyro programs, composed of parts."""

import copy
import itertools
import math
from typing import Any

import torch
from pyro import distributions as dist
from pyro.infer import ELBO
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import kl_divergence

from ..data import frames, inputs
from ..data.schema import Schema
from ..data.splits import Split
from ..nested import without_graphs
from ..threads import alone, one_at_a_time
from . import conditions, networks
from .building import Context, check_forward, check_part
from .conditional import Conditional
from .conditions import Condition
from .corruption import Corruption
from .likelihoods import Likelihood, Product
from .likelihoods.combined import with_columns, with_missing
from .nets import Network
from .posteriors import Posterior
from .priors import FromDistribution, Prior
from .programs import Guide, Model

_serial = itertools.count()  # every Autoencoder has its own name in Pyro's parameter store


class Autoencoder(PyroModule):
    """A prior, a likelihood, a posterior and two networks: together a Pyro ``model`` and ``guide``.

    ``model(x)`` has the sites ``z`` and ``x`` in the plate ``data``, and ``guide(x)`` the site ``z``; priors with several levels have
    further sites. ``model(n=5)`` draws 5 examples. Pyro's ``Predictive``, ``NUTS``, ``condition`` and ``trace`` take them as any.
    In training mode, in which a new Autoencoder is, the encoder's input is corrupted and dropout is active: call ``vae.eval()`` first.

    Args:
        prior: p(z), a part or any Pyro distribution.
        likelihood: p(x|z), which states the shape of one x.
        posterior: q(z|x); takes its size from the prior.
        encoder: from x to the posterior's parameters; a recipe such as ``pa.nets.MLP(128)``, or an ``nn.Module``, which the constructor
            calls once.
        decoder: from z to the likelihood's parameters, likewise.
        condition: labels or covariates y, an input of prior, encoder and decoder: p(z|y) p(x|z,y), q(z|x,y).
        corruption: of the encoder's input in training mode.
        objective: the Pyro ELBO that ``fit`` uses by default.
        schema: column names and kinds, or the image shape, of x; by default ``fit`` takes it from the data.
        inputs: what the encoder sees instead of x: q(z|u), p(x|z). A likelihood of u, of which the checks and the preprocessing are used
            and no density, such as ``pa.likelihoods.Normal(64, scale=1.0)`` for numbers. Data are then ``(x, u)``, or ``(x, y, u)``.

    Raises:
        ValueError: parts that do not match each other.

    >>> import pyroae as pa
    >>> vae = pa.Autoencoder(pa.priors.Normal(8), pa.likelihoods.Bernoulli(64), pa.posteriors.Normal(), pa.nets.MLP(128), pa.nets.MLP(128))
    >>> vae.encode(torch.zeros(5, 64)).event_shape, vae.decode(torch.zeros(5, 8)).event_shape
    (torch.Size([8]), torch.Size([64]))
    >>> spectrum = vae.replace(likelihood=pa.likelihoods.Normal(100), inputs=pa.likelihoods.Bernoulli(64))  # from an image
    >>> spectrum.reconstruct(torch.zeros(5, 64)).shape
    torch.Size([5, 100])
    """

    @alone  # initial weights are random
    def __init__(
        self,
        prior: Prior | dist.Distribution,
        likelihood: Likelihood,
        posterior: Posterior,
        encoder: Network | nn.Module,
        decoder: Network | nn.Module,
        condition: Condition | None = None,
        corruption: Corruption | None = None,
        objective: ELBO | None = None,
        schema: Schema | None = None,
        inputs: Likelihood | None = None,
    ):
        super().__init__(f"autoencoder_{next(_serial)}")
        prior = _as_prior(prior)
        check_part(prior, Prior, "prior", "pa.priors.Normal(8)")
        check_part(likelihood, Likelihood, "likelihood", "pa.likelihoods.Bernoulli(64)")
        check_part(inputs, Likelihood | None, "inputs", "pa.likelihoods.Normal(64)")
        check_part(posterior, Posterior, "posterior", "pa.posteriors.Normal()")
        check_part(condition, Condition | None, "condition", "pa.conditions.Labels(10)")
        check_part(corruption, Corruption | None, "corruption", "pa.corruption.Masking(.25)")
        check_part(objective, ELBO | None, "objective", "pyro.infer.Trace_ELBO()")
        for part, role in ((prior, "prior"), (likelihood, "likelihood"), (inputs, "inputs")):
            if part is not None and part.event_shape is None:
                raise ValueError(
                    f"{role} {type(part).__name__}: expected the shape of one event as its first argument, "
                    f"got none; for example {type(part).__name__}(64)"
                )
        likelihood, inputs = likelihood.build(Context()), None if inputs is None else _without_density(inputs.build(Context()))
        seen = likelihood if inputs is None else inputs
        if posterior.needs_mask:
            seen = with_missing(seen, mask=True)
            likelihood, inputs = (seen, None) if inputs is None else (likelihood, seen)
        corruption = None if corruption is None else corruption.build(Context(likelihood=seen))
        posterior = posterior.build(Context(prior=prior, likelihood=seen))
        self._recipes = {"encoder": encoder, "decoder": decoder}
        check_part(schema, Schema | None, "schema", "pa.data.load(...).schema")
        first, *rest = seen.input_shape
        beside = conditions.input_size(condition)
        x_shape = networks.concat_shape(torch.Size([first + seen.mask * seen.event_shape[0], *rest]), beside)
        image = _image_of(likelihood, schema)
        encoder_image = image if inputs is None else _image_of(seen, schema and schema.inputs)
        encoder_image = None if encoder_image is None or len(x_shape) == 3 else [encoder_image[0] * (1 + seen.mask), *encoder_image[1:]]
        encoder = networks.build(encoder, x_shape, posterior.size, "encoder", image=encoder_image)
        decoder = networks.build(decoder, networks.concat_shape(prior.code_shape, beside), likelihood.size, "decoder", encoder, image=image)
        for part, role in ((likelihood, "likelihood"), (posterior, "posterior")):  # once the networks are known to fit into memory
            check_forward(part, role, torch.Size([2]), lambda part=part: part(torch.zeros(2, part.size)))
        guide = Guide(posterior, encoder, corruption, condition, seen, inputs is not None)
        prior = prior.build(Context(guide=guide, likelihood=seen))
        self.model, self.guide = Model(prior, likelihood, decoder, condition, schema, inputs), guide
        posterior.attach(self.model)
        self.objective = objective

    prior = property(lambda self: self.model.prior)
    likelihood = property(lambda self: self.model.likelihood)
    decoder = property(lambda self: self.model.decoder)
    posterior = property(lambda self: self.guide.posterior)
    encoder = property(lambda self: self.guide.encoder)
    condition = property(lambda self: self.model.condition)
    corruption = property(lambda self: self.guide.corruption)
    schema = property(lambda self: self.model.schema)
    inputs = property(lambda self: self.model.inputs)

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    @property
    def parts(self) -> dict[str, Any]:
        """The constructor's arguments: the current parts, and the networks' recipes."""
        parts = {name: getattr(self, name) for name in ("prior", "likelihood", "posterior")}
        return (
            parts
            | self._recipes
            | {
                "condition": self.condition,
                "corruption": self.corruption,
                "objective": self.objective,
                "schema": self.schema,
                "inputs": self.inputs,
            }
        )

    @property
    def has_closed_form_kl(self) -> bool:
        """Whether Pyro has KL(q(z|x) || p(z)) in closed form; otherwise it is estimated from the draws."""
        if len(self.prior.sites) > 1:
            return False
        try:
            like = next(self.parameters(), torch.zeros(()))
            c = None if self.condition is None else like.new_zeros(1, self.condition.size)
            kl_divergence(self.guide.conditional(like.new_zeros(1, *self.guide.event_shape), c), self.prior.conditional(c))
        except NotImplementedError:
            return False
        return True

    def encode(self, x: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """q(z|x) for uncorrupted ``x`` of shape ``(B, *event)``, and ``y`` for the condition.

        Of a model with ``inputs``, here and in the other methods x stands for u; a split or a tuple has x, labels and u.
        """
        seen, y = self._columns(x, y)
        return self.guide.conditional(seen, self._context(y, len(seen)))

    def decode(self, z: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """p(x|z) for the decoder's input ``(..., *code_shape)``: z, followed by the class for ClassAndStyle."""
        shape = self.prior.code_shape
        if z.shape[z.dim() - len(shape) :] != shape:
            raise ValueError(f"decode: expected z of shape (..., {', '.join(map(str, shape))}), got {tuple(z.shape)}")
        return self.model.conditional(z.to(self.device), self._context(y, z.shape[-len(shape) - 1] if z.dim() > len(shape) else 1))

    @torch.no_grad()
    def reconstruct(self, x: Any, y: Any = None) -> Any:
        """The mean of p(x|z) (the mode of categories) at the mean of q(z|x), ``(B, *event)``; a DataFrame for a DataFrame."""
        _, y = self._columns(x, y)
        return frames.of_rows(self.likelihood.mean_or_mode(self.decode(self.latent_mean(x, y), y)), x, self.schema)

    @torch.no_grad()
    def latent_mean(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The mean of q(z|x), as the decoder's input: ``(B, *code_shape)``."""
        seen, y = self._columns(x, y)
        return self.prior.code(*self.posterior.latent_mean(self.guide.params(seen, self._context(y, len(seen)))))

    @torch.no_grad()
    def sample(self, n: int = 1, y: Tensor | None = None) -> Tensor:
        """``n`` draws from p(x), or one for each row of ``y`` from p(x|y), shape ``(n, *event)``: z from the prior, then x given z.

        Waits while another thread trains or evaluates, since all threads share torch's random numbers.

        Raises:
            ValueError: the prior is improper.
        """
        with one_at_a_time():
            return self.decode(self.sample_prior(n, y), y).sample()

    def _columns(self, x: Any, y: Any) -> tuple[Tensor, Tensor | None]:
        """What the encoder sees, x or u, as a tensor on the device, and the labels."""
        wanted = inputs.wanted_by(self.model)
        seen_alone = self.inputs is not None and not isinstance(x, (Split, tuple, list))
        data = inputs.read(x, wanted.inputs if seen_alone else wanted)
        seen = data.x if self.inputs is None or seen_alone else data.u
        if seen is None:
            raise ValueError("encode: expected the inputs u that this model's encoder sees, alone or at the end of a tuple, got none")
        if self.condition is not None:
            y = data.y if y is None else inputs.labels(y, wanted)
        (self.likelihood if self.inputs is None else self.inputs).check_shape(seen[:])
        return seen[:].to(self.device), y

    def _context(self, y: Tensor | None, n: int) -> Tensor | None:
        """The condition's vectors of ``n`` examples."""
        return conditions.encode(self.condition, y.to(self.device) if isinstance(y, Tensor) else y, n)

    @torch.no_grad()
    def sample_prior(self, n: int = 1, y: Tensor | None = None) -> Tensor:
        """``n`` draws from the prior, or one for each row of ``y``, shape ``(n, *code_shape)``; ``ValueError`` for an improper prior."""
        if not self.prior.proper:
            raise ValueError(
                f"sample: the prior {type(self.prior).__name__} is improper and cannot be drawn from; "
                "use a proper prior such as pa.priors.Normal"
            )
        n = n if y is None else len(y)
        with one_at_a_time():
            return self.prior.sample(n, self._context(y, n))

    @alone
    def replace(self, **changes) -> "Autoencoder":
        """A new Autoencoder with some parts changed. Parts and weights that still fit are copied, the others are rebuilt.

        >>> import pyroae as pa
        >>> vae = pa.recipes.vae(pa.data.load("digits"))
        >>> vae.replace(prior=pa.priors.Laplace(16)).encode(torch.zeros(5, 64)).event_shape
        torch.Size([16])

        Raises:
            ValueError: an unknown part, or a network of the user's that no longer fits.
        """
        for name in changes:
            if name not in self.parts:
                raise ValueError(f"replace: there is no part {name!r}; the parts are {', '.join(self.parts)}")
        old = copy.deepcopy(self).cpu()  # where new parts are; the result goes back
        parts = old.parts | changes
        parts["prior"] = _as_prior(parts["prior"])
        if isinstance(parts["likelihood"], Product) and parts["likelihood"].event_shape is None:
            parts["likelihood"] = with_columns(old.likelihood, parts["likelihood"], self.schema)
        for name in ("prior", "likelihood"):
            if getattr(parts[name], "event_shape", ()) is None:
                parts[name] = parts[name].build(Context(getattr(old, name).event_shape))
        if "posterior" not in changes and parts["prior"].event_shape != old.prior.event_shape:
            parts["posterior"] = old.posterior.replace(event_shape=None)
        new = Autoencoder(**parts)
        if "encoder" not in changes and new._encoder_ends() == old._encoder_ends():
            new.encoder.load_state_dict(old.encoder.state_dict())
        if "decoder" not in changes and new._decoder_ends() == old._decoder_ends():
            new.decoder.load_state_dict(old.decoder.state_dict())
        return new.to(self.device).train(self.training)

    def with_missing(self) -> "Autoencoder":
        """The same model for data in which any entry may be missing (NaN): itself if it allows that already, otherwise a copy.

        >>> import pyroae as pa
        >>> vae = pa.recipes.vae(torch.rand(20, 4))
        >>> pa.impute(vae.with_missing(), torch.tensor([[0.5, 0.1, 0.9, torch.nan]])).shape
        torch.Size([1, 1, 4])
        """
        parts = {"likelihood": self.likelihood} | ({} if self.inputs is None else {"inputs": self.inputs})
        changed = {name: new for name, part in parts.items() if (new := with_missing(part)) is not part}
        if not changed:
            return self
        with torch.random.fork_rng(devices=[]):
            return self.replace(**changed)

    def _encoder_ends(self) -> tuple:
        seen = self.likelihood if self.inputs is None else self.inputs
        return (
            seen.event_shape,
            seen.input_shape,
            seen.mask,
            self.posterior.param_sizes,
            conditions.input_size(self.condition),
        )

    def _decoder_ends(self) -> tuple:
        return self.prior.code_shape, self.likelihood.param_sizes, conditions.input_size(self.condition)

    def __deepcopy__(self, memo: dict) -> "Autoencoder":
        """A copy that shares nothing, with its own name in Pyro's parameter store."""
        new = Autoencoder.__new__(Autoencoder)
        memo |= {id(self): new} | without_graphs(self)
        new.__dict__.update({name: copy.deepcopy(value, memo) for name, value in self.__dict__.items()})
        serial = f"autoencoder_{next(_serial)}"
        for path, module in new.named_modules():
            if isinstance(module, PyroModule):
                module._pyro_name = f"{serial}.{path}" if path else serial
        return new


def _image_of(likelihood: Likelihood, schema: Schema | None) -> list[int] | None:
    """``(C, H, W)`` of an image x, from the likelihood or the schema; otherwise one square channel, if x has a square size."""
    event, known = likelihood.event_shape, schema.image_shape if schema is not None else None
    if len(event) == 3:
        return list(event)
    if known is not None and math.prod(known) == event.numel():
        return [1, *known] if len(known) == 2 else list(known)
    side = math.isqrt(event.numel())
    return [1, side, side] if side**2 == event.numel() else None


def _without_density(inputs: Likelihood) -> Likelihood:
    """A likelihood of which only checks and preprocessing are used: nothing in it is learned."""
    for part in inputs.modules():
        if isinstance(part, Conditional):
            part.freeze()
    return inputs


def _as_prior(prior) -> Prior:
    return prior if isinstance(prior, Prior) else FromDistribution(prior)
