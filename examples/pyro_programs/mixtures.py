"""Discrete latent variables without an order: mixtures, topics, a deep exponential family, data association."""

from argparse import Namespace

import pyro
import torch
from pyro import distributions as dist
from pyro import optim, poutine
from pyro.contrib.easyguide import EasyGuide
from pyro.contrib.tracking.assignment import MarginalAssignment
from pyro.distributions import constraints
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, init_to_feasible
from pyro.ops.indexing import Vindex
from torch import nn
from torch.nn import functional as F


def gmm(SVI, steps):
    """The tutorial's mixture: classes summed out, the rest by ``AutoDelta``; hooks watch the norms of gradients."""
    pyro.clear_param_store()
    data, classes = torch.tensor([0.0, 1.0, 10.0, 11.0, 12.0]), 2

    @config_enumerate
    def model(data):
        weights = pyro.sample("weights", dist.Dirichlet(0.5 * torch.ones(classes)))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 2.0))
        with pyro.plate("components", classes):
            locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(data)):
            assignment = pyro.sample("assignment", dist.Categorical(weights))
            pyro.sample("obs", dist.Normal(locs[assignment], scale), obs=data)

    def init_loc_fn(site):
        if site["name"] == "weights":
            return torch.ones(classes) / classes
        if site["name"] == "scale":
            return (data.var() / 2).sqrt()
        return data[torch.multinomial(torch.ones(len(data)) / len(data), classes)]

    guide = AutoDelta(poutine.block(model, expose=["weights", "locs", "scale"]), init_loc_fn=init_loc_fn)
    svi = SVI(model, guide, optim.Adam({"lr": 0.1, "betas": [0.8, 0.99]}), loss=TraceEnum_ELBO(max_plate_nesting=1))
    svi.loss(model, guide, data)  # initialises the guide
    norms = {name: [] for name in pyro.get_param_store()}
    for name, value in pyro.get_param_store().named_parameters():
        value.register_hook(lambda g, name=name: norms[name].append(g.norm().item()))
    for _ in range(steps):
        yield svi.step(data)
    yield tuple(sum(of_one) for of_one in norms.values())


def dirichlet_process(SVI, steps):
    """Stick breaking cut at five; assignments drawn in the guide; particles in parallel."""
    pyro.clear_param_store()
    sticks = 5
    data = torch.cat([torch.randn(8, 2) - 3, torch.randn(8, 2) + 3])

    def mix_weights(beta):
        return F.pad(beta, (0, 1), value=1.0) * F.pad((1 - beta).cumprod(-1), (1, 0), value=1.0)

    def model(data):
        with pyro.plate("beta_plate", sticks - 1):
            beta = pyro.sample("beta", dist.Beta(1.0, 0.7))
        with pyro.plate("mu_plate", sticks):
            mu = pyro.sample("mu", dist.MultivariateNormal(torch.zeros(2), 5 * torch.eye(2)))
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", dist.Categorical(mix_weights(beta)))
            pyro.sample("obs", dist.MultivariateNormal(mu[z], torch.eye(2)), obs=data)

    def guide(data):
        kappa = pyro.param("kappa", lambda: dist.Uniform(0.0, 2.0).sample([sticks - 1]), constraint=constraints.positive)
        tau = pyro.param("tau", lambda: dist.MultivariateNormal(torch.zeros(2), 3 * torch.eye(2)).sample([sticks]))
        phi = pyro.param("phi", lambda: dist.Dirichlet(torch.ones(sticks) / sticks).sample([len(data)]), constraint=constraints.simplex)
        with pyro.plate("beta_plate", sticks - 1):
            pyro.sample("beta", dist.Beta(torch.ones(sticks - 1), kappa))
        with pyro.plate("mu_plate", sticks):
            pyro.sample("mu", dist.MultivariateNormal(tau, torch.eye(2)))
        with pyro.plate("data", len(data)):
            pyro.sample("z", dist.Categorical(phi))

    svi = SVI(model, guide, optim.Adam({"lr": 0.05}), loss=Trace_ELBO(num_particles=5))
    for _ in range(steps):
        yield svi.step(data)


def lda(SVI, steps):
    """Topics summed out for each word, documents drawn in each step, a network that predicts a document's topics."""
    pyro.clear_param_store()
    topics, words, docs, length = 3, 12, 10, 6
    data = torch.randint(words, (length, docs))
    predictor = nn.Sequential(nn.Linear(words, 10), nn.Sigmoid(), nn.Linear(10, topics), nn.Softmax(dim=-1))
    for parameter in predictor.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_normal_(parameter)

    def model(data=None, args=None, batch_size=None):
        with pyro.plate("topics", topics):
            pyro.sample("topic_weights", dist.Gamma(1.0 / topics, 1.0))
            topic_words = pyro.sample("topic_words", dist.Dirichlet(torch.ones(words) / words))
        with pyro.plate("documents", docs) as ind:
            if data is not None:
                with poutine.block():
                    assert data.shape == (length, docs)
                data = data[:, ind]
            doc_topics = pyro.sample("doc_topics", dist.Dirichlet(torch.ones(topics)))
            with pyro.plate("words", length):
                word_topics = pyro.sample("word_topics", dist.Categorical(doc_topics), infer={"enumerate": "parallel"})
                return pyro.sample("doc_words", dist.Categorical(topic_words[word_topics]), obs=data)

    def guide(data, args, batch_size=None):
        weights = pyro.param("topic_weights_posterior", lambda: torch.ones(topics), constraint=constraints.positive)
        topic_words = pyro.param("topic_words_posterior", lambda: torch.ones(topics, words), constraint=constraints.greater_than(0.5))
        with pyro.plate("topics", topics):
            pyro.sample("topic_weights", dist.Gamma(weights, 1.0))
            pyro.sample("topic_words", dist.Dirichlet(topic_words))
        pyro.module("predictor", predictor)
        with pyro.plate("documents", docs, batch_size) as ind:
            data = data[:, ind]
            counts = torch.zeros(words, ind.size(0)).scatter_add(0, data, torch.ones(data.shape))
            pyro.sample("doc_topics", dist.Delta(predictor(counts.transpose(0, 1)), event_dim=1))

    svi = SVI(model, guide, optim.ClippedAdam({"lr": 0.01}), TraceEnum_ELBO(max_plate_nesting=2))
    for _ in range(steps):
        yield svi.step(data, Namespace(jit=False), batch_size=4)


class SparseGammaDEF:
    """Two layers of Gamma sources over counts, each the other's rate through Gamma weights."""

    TOP, BOTTOM, WIDTH = 3, 4, 8

    def model(self, x):
        x_size = x.size(0)
        with pyro.plate("w_top_plate", self.TOP * self.BOTTOM):
            w_top = pyro.sample("w_top", dist.Gamma(0.1, 0.3))
        with pyro.plate("w_bottom_plate", self.BOTTOM * self.WIDTH):
            w_bottom = pyro.sample("w_bottom", dist.Gamma(0.1, 0.3))
        with pyro.plate("data", x_size):
            z_top = pyro.sample("z_top", dist.Gamma(0.1, 0.1).expand([self.TOP]).to_event(1))
            mean = torch.mm(z_top, w_top.reshape(self.TOP, self.BOTTOM))
            z_bottom = pyro.sample("z_bottom", dist.Gamma(0.1, 0.1 / mean).to_event(1))
            rate = torch.mm(z_bottom, w_bottom.reshape(self.BOTTOM, self.WIDTH))
            pyro.sample("obs", dist.Poisson(rate).to_event(1), obs=x)

    def guide(self, x):
        def gamma(name, *shape):
            alpha = pyro.param(f"alpha_{name}", lambda: 0.5 + 0.1 * torch.randn(shape))
            mean = pyro.param(f"mean_{name}", lambda: 0.1 * torch.randn(shape))
            alpha, mean = F.softplus(alpha), F.softplus(mean)
            return dist.Gamma(alpha, alpha / mean)

        for name, size in (("w_top", self.TOP * self.BOTTOM), ("w_bottom", self.BOTTOM * self.WIDTH)):
            with pyro.plate(f"{name}_plate", size):
                pyro.sample(name, gamma(name, size))
        with pyro.plate("data", x.size(0)):
            for name, size in (("z_top", self.TOP), ("z_bottom", self.BOTTOM)):
                pyro.sample(name, gamma(name, x.size(0), size).to_event(1))

    @staticmethod
    def clip_params():
        """Keep the custom guide's parameters above values where Gamma's gradients are sound."""
        for name, clip in (("alpha", -2.25), ("mean", -4.5)):
            for param in pyro.get_param_store():
                if param.startswith(name):
                    pyro.param(param).data.clamp_(min=clip)


class DEFGuide(EasyGuide):
    """One joint Normal for the weights on the log scale by groups, and points for the rest."""

    def guide(self, x):
        weights = self.group(match="w_.*")
        loc = pyro.param("w_loc", lambda: torch.randn(weights.event_shape) - 1.0)
        scale = pyro.param("w_scale", lambda: torch.full(weights.event_shape, 0.1), constraint=constraints.positive)
        weights.sample("weights", dist.Normal(loc, scale).to_event(1))
        with self.plate("data", len(x)):
            for name in ("z_top", "z_bottom"):
                self.map_estimate(name)


def sparse_gamma_def(SVI, steps, kind):
    """``AdagradRMSProp``; the custom guide's parameters are clamped in place after each step; the mean loss of some particles is read."""
    pyro.clear_param_store()
    program, x = SparseGammaDEF(), dist.Poisson(3 * torch.rand(6, SparseGammaDEF.WIDTH)).sample()
    guide = {
        "custom": lambda: program.guide,
        "auto": lambda: AutoDiagonalNormal(program.model, init_loc_fn=init_to_feasible),
        "easy": lambda: DEFGuide(program.model),
    }[kind]()
    elbo = {"custom": TraceMeanField_ELBO(), "auto": Trace_ELBO(), "easy": Trace_ELBO()}[kind]
    svi = SVI(program.model, guide, optim.AdagradRMSProp({"eta": 0.1 if kind == "auto" else 0.3, "t": 0.1}), loss=elbo)
    svi_eval = SVI(program.model, guide, optim.SGD({"lr": 0.0}), loss=TraceMeanField_ELBO(num_particles=2) if kind == "custom" else elbo)
    for step in range(steps):
        yield svi.step(x)
        if kind == "custom":
            program.clip_params()
        if step % 4 == 3:
            yield svi_eval.evaluate_loss(x)


def tracking_1d(SVI, steps):
    """An unknown number of objects: existence and assignment summed out around marginals that the guide finds by belief propagation."""
    pyro.clear_param_store()
    args = Namespace(num_frames=4, max_num_objects=2, expected_num_objects=2.0, expected_num_spurious=1.0)
    args.emission_prob, args.emission_noise_scale, args.bp_iters = 0.8, 0.1, 5
    time = torch.linspace(0, 3, args.num_frames)
    dynamics = torch.stack([time.cos(), time.sin()], -1)
    positions = dynamics.mm(torch.randn(2, 2)) + 0.1 * torch.randn(args.num_frames, 2)
    seen = torch.rand(args.num_frames, 3) < torch.tensor([0.8, 0.8, 0.5])
    observations = torch.stack([torch.cat([positions, torch.randn(args.num_frames, 1)], -1), seen.to(positions.dtype)], -1)

    def model(args, observations):
        with pyro.plate("objects", args.max_num_objects):
            exists = pyro.sample("exists", dist.Bernoulli(args.expected_num_objects / (args.max_num_objects + 1)))
            with poutine.mask(mask=exists.bool()):
                states = pyro.sample("states", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        positions = dynamics.mm(states.transpose(-1, -2))
        with pyro.plate("detections", observations.shape[1]), pyro.plate("time", args.num_frames):
            is_observed = observations[..., -1] > 0
            with poutine.mask(mask=is_observed):
                assign = pyro.sample("assign", dist.Categorical(torch.ones(args.max_num_objects + 1)))
            is_spurious = assign == args.max_num_objects
            is_real = is_observed & ~is_spurious
            num_observed = is_observed.to(positions.dtype).sum(-1, True)
            pyro.sample("is_real", dist.Bernoulli(args.expected_num_objects / (1 + num_observed)), obs=is_real.to(positions.dtype))
            with poutine.mask(mask=is_real):
                augmented = F.pad(positions, (0, 1), "constant", 0.0)  # a place for no object
                predicted = Vindex(augmented)[..., torch.arange(args.num_frames)[:, None], assign]
                pyro.sample("real", dist.Normal(predicted, args.emission_noise_scale), obs=observations[..., 0])
            with poutine.mask(mask=is_observed & is_spurious):
                pyro.sample("spurious", dist.Normal(0.0, 1.0), obs=observations[..., 0])

    def guide(args, observations):
        loc = pyro.param("states_loc", lambda: torch.randn(args.max_num_objects, 2))
        scale = pyro.param("states_scale", lambda: torch.full(loc.shape, args.emission_noise_scale), constraint=constraints.positive)
        real = dist.Normal(dynamics.mm(loc.t()).unsqueeze(-2), args.emission_noise_scale).log_prob(observations[..., :1])
        logits = real - dist.Normal(0.0, 1.0).log_prob(observations[..., :1])
        logits = torch.where(observations[..., 1:] > 0, logits, torch.full_like(logits, -1e3)).flatten(0, 1)
        exists_logits = torch.full((args.max_num_objects,), 1.0)
        assignment = MarginalAssignment(exists_logits, logits, args.bp_iters)
        with pyro.plate("objects", args.max_num_objects):
            exists = pyro.sample("exists", assignment.exists_dist, infer={"enumerate": "parallel"})
            with poutine.mask(mask=exists.bool()):
                pyro.sample("states", dist.Normal(loc, scale).to_event(1))
        assign_logits = assignment.assign_dist.logits.reshape(args.num_frames, -1, args.max_num_objects + 1)
        with pyro.plate("detections", observations.shape[1]), pyro.plate("time", args.num_frames):
            with poutine.mask(mask=observations[..., -1] > 0):
                pyro.sample("assign", dist.Categorical(logits=assign_logits), infer={"enumerate": "parallel"})

    svi = SVI(model, guide, optim.Adam({"lr": 0.01}), TraceEnum_ELBO(max_plate_nesting=2))
    for _ in range(steps):
        yield svi.step(args, observations)
