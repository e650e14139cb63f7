"""The models of `lines.py` as NumPyro programs: networks of JAX's stax, and steps in one jitted loop over the batches.

Imported by `lines.py` where NumPyro is installed (`uv run --extra benchmarks python examples/benchmarks/lines.py`).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax.example_libraries import stax
from numpyro.distributions import constraints
from numpyro.distributions.flows import InverseAutoregressiveTransform
from numpyro.distributions.transforms import PermuteTransform
from numpyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO, init_to_feasible
from numpyro.infer.autoguide import AutoNormal
from numpyro.nn import AutoregressiveNN

CONV = ("NHWC", "HWIO", "NHWC")  # the order that is fastest on a CPU


def dense(size: int):
    """A layer that begins as torch's does: the losses of large counts overflow with stax's own weights."""
    return stax.Dense(size, jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"))


def mlp(*sizes: int):
    layers = [layer for size in sizes for layer in (dense(size), stax.Relu)]
    return stax.serial(*layers[:-1])


def halves(encoder, x):
    mu, log_sigma = jnp.split(encoder(x), 2, -1)
    return mu, jnp.exp(log_sigma)


def vae(sizes_in, sizes_out, code: int, density: Callable, d: int, encoder=None, decoder=None) -> tuple:
    """A VAE with a Normal prior and posterior; ``density`` makes the distribution of one x of the decoder's output."""
    encoder, decoder = encoder or mlp(*sizes_in, 2 * code), decoder or mlp(*sizes_out, d)

    def model(x):
        decode = numpyro.module("decoder", decoder, (len(x), code))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([code]).to_event(1))
            numpyro.sample("x", density(decode(z)), obs=x)

    def guide(x):
        encode = numpyro.module("encoder", encoder, x.shape)
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Normal(*halves(encode, x)).to_event(1))

    return model, guide, TraceMeanField_ELBO()


def normal(out):
    return dist.Normal(out, numpyro.param("scale", 1.0, constraint=constraints.positive)).to_event(1)


def counts(out):
    return dist.NegativeBinomialLogits(numpyro.param("r", 1.0, constraint=constraints.positive), out).to_event(1)


def pixels(out):
    return dist.Bernoulli(logits=out).to_event(1)


def images(out):
    return dist.Bernoulli(logits=out).to_event(3)


def vamp() -> tuple:
    encoder, decoder = mlp(400, 80), mlp(400, 784)
    _, guide, _ = vae(None, None, 40, pixels, 784, encoder, decoder)

    def model(x):
        encode = numpyro.module("encoder", encoder, x.shape)
        decode = numpyro.module("decoder", decoder, (len(x), 40))
        raw = numpyro.param("raw", jax.random.normal(jax.random.PRNGKey(0), (500, 784)) - 2)
        components = dist.Normal(*halves(encode, jax.nn.sigmoid(raw))).to_event(1)
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.MixtureSameFamily(dist.Categorical(logits=jnp.zeros(500)), components))
            numpyro.sample("x", pixels(decode(z)), obs=x)

    return model, guide, Trace_ELBO()


def flow() -> tuple:
    model, _, _ = vae([400], [400], 20, pixels, 784)
    encoder, backwards = mlp(400, 40), PermuteTransform(jnp.arange(20)[::-1])
    steps = [AutoregressiveNN(20, [64], nonlinearity=stax.Relu) for _ in range(2)]

    def guide(x):
        encode = numpyro.module("encoder", encoder, x.shape)
        transforms = []
        for i, step in enumerate(steps):
            transforms += [InverseAutoregressiveTransform(numpyro.module(f"step{i}", step, (20,))), backwards]
        with numpyro.plate("data", len(x)):
            base = dist.Normal(*halves(encode, x)).to_event(1)
            numpyro.sample("z", dist.TransformedDistribution(base, transforms))

    return model, guide, Trace_ELBO()


def convolutions() -> tuple:
    conv = [stax.GeneralConv(CONV, width, (4, 4), (2, 2), "SAME") for width in (32, 64)]
    up = [stax.GeneralConvTranspose(CONV, width, (4, 4), (2, 2), "SAME") for width in (32, 1)]
    encoder = stax.serial(conv[0], stax.Relu, conv[1], stax.Relu, stax.Flatten, dense(40))
    unflatten = (lambda rng, shape: ((-1, 7, 7, 64), ()), lambda params, x, **_: x.reshape(-1, 7, 7, 64))
    decoder = stax.serial(dense(3136), unflatten, stax.Relu, up[0], stax.Relu, up[1])
    return vae(None, None, 20, images, 784, encoder, decoder)


def dictionary() -> tuple:
    def weights(name, *shape):
        return numpyro.param(name, jax.random.normal(jax.random.PRNGKey(0), shape) * 384**-0.5)

    def model(x):
        atoms = weights("atoms", 4096, 384)
        atoms = atoms / jnp.linalg.norm(atoms, axis=1, keepdims=True)
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.ImproperUniform(constraints.real, (), (4096,)))
            numpyro.sample("x", dist.Normal(z @ atoms + weights("bias", 384), 1.0).to_event(1), obs=x)

    def guide(x):
        h = (x - weights("bias", 384)) @ weights("in", 384, 4096) + weights("inbias", 4096)
        least = jax.lax.top_k(jax.lax.stop_gradient(h), 32)[0][:, -1:]
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Delta(jax.nn.relu(jnp.where(h >= least, h, 0.0))).to_event(1))

    return model, guide, Trace_ELBO()


def cells(signatures) -> tuple:
    types, genes = signatures.shape

    def model(x):
        total = numpyro.sample("total", dist.Gamma(3.0, 1.0))
        rate = numpyro.sample("rate", dist.Gamma(jnp.ones(types), 1.0).to_event(1))
        gene = numpyro.sample("gene", dist.Gamma(10 * jnp.ones(genes), 10.0).to_event(1))
        inverse = numpyro.sample("inverse", dist.Exponential(3 * jnp.ones(genes)).to_event(1))
        with numpyro.plate("spots", len(x)):
            w = numpyro.sample("w", dist.Gamma(jnp.broadcast_to(total * rate, (len(x), types)) / types + 0.1, 1.0).to_event(1))
            mean = (w @ signatures) * gene + 1e-3
            alpha = 1 / (inverse + 1e-2) ** 2
            numpyro.sample("x", dist.NegativeBinomialLogits(alpha, jnp.log(mean / alpha)).to_event(1), obs=x)

    return model, AutoNormal(model, init_loc_fn=init_to_feasible), TraceMeanField_ELBO()


def programs(name: str, signatures) -> tuple:
    """Model, guide and objective of a line of `lines.py`."""
    return {
        "table": lambda: vae([64, 64], [64, 64], 4, normal, 13),
        "counts": lambda: vae([128], [128], 10, counts, 2000),
        "vamp": vamp,
        "flow": flow,
        "dictionary": dictionary,
        "conv": convolutions,
        "cells": lambda: cells(jnp.asarray(signatures)),
    }[name]()


def steps_of(name: str, signatures) -> Callable[[list], float]:
    """A function that takes a step with every batch in one jitted loop, and returns the mean of their losses."""
    model, guide, elbo = programs(name, signatures)
    svi, held = SVI(model, guide, numpyro.optim.Adam(1e-3), elbo), {}

    @jax.jit
    def train(state, data):
        state, losses = jax.lax.scan(svi.update, state, data)
        return losses.mean(), state

    def run(batches: list) -> float:
        if not held:
            data = jnp.stack([jnp.asarray(x.numpy()) for (x,) in batches])
            held["data"] = data.transpose(0, 1, 3, 4, 2) if data.ndim == 5 else data
            held["state"] = svi.init(jax.random.PRNGKey(0), held["data"][0])
        loss, held["state"] = train(held["state"], held["data"])
        return float(loss)

    return run
