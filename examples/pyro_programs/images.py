"""Variational autoencoders as nn.Modules with bound methods: VAE, M2, conditional VAE, scANVI, a trainer with keyword arguments."""

import pyro
import torch
from pyro import distributions as dist
from pyro import optim, poutine
from pyro.distributions import constraints
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

PIXELS, HIDDEN, LATENT, CLASSES = 16, 12, 3, 4


def network(inputs, *outputs):
    """Two layers to each of the outputs."""
    return nn.Sequential(nn.Linear(inputs, HIDDEN), nn.Softplus(), nn.Linear(HIDDEN, sum(outputs)))


def images(rows):
    """Binary images with a structure in two directions."""
    return dist.Bernoulli(logits=3 * torch.randn(rows, 2) @ torch.randn(2, PIXELS)).sample()


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = network(PIXELS, LATENT, LATENT), network(LATENT, PIXELS)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z_loc = x.new_zeros(torch.Size((x.shape[0], LATENT)))
            z_scale = x.new_ones(torch.Size((x.shape[0], LATENT)))
            z = pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))
            probabilities = torch.sigmoid(self.decoder(z))
            pyro.sample("obs", dist.Bernoulli(probabilities, validate_args=False).to_event(1), obs=x.reshape(-1, PIXELS))
            return probabilities

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, scale = self.encoder(x.reshape(-1, PIXELS)).chunk(2, -1)
            pyro.sample("latent", dist.Normal(loc, scale.exp()).to_event(1))


def vae(SVI, steps):
    """Epochs over mini-batches whose last one is smaller, and the loss of test images after each."""
    pyro.clear_param_store()
    train, test = DataLoader(TensorDataset(images(40)), batch_size=16, shuffle=True), images(10)
    program = VAE()
    svi = SVI(program.model, program.guide, optim.Adam({"lr": 1e-3}), loss=Trace_ELBO())
    step = 0
    while step < steps:
        for (x,) in train:
            yield svi.step(x)
            step += 1
        yield svi.evaluate_loss(test)


class M2(nn.Module):
    """z, y -> x, where y is observed in some calls."""

    def __init__(self, auxiliary=5.0):
        super().__init__()
        self.auxiliary = auxiliary
        self.encoder_y = network(PIXELS, CLASSES)
        self.encoder_z = network(PIXELS + CLASSES, LATENT, LATENT)
        self.decoder = network(LATENT + CLASSES, PIXELS)

    def model(self, xs, ys=None):
        pyro.module("ss_vae", self)
        with pyro.plate("data", xs.size(0)):
            zs = pyro.sample("z", dist.Normal(xs.new_zeros(xs.size(0), LATENT), xs.new_ones(xs.size(0), LATENT)).to_event(1))
            ys = pyro.sample("y", dist.OneHotCategorical(xs.new_ones(xs.size(0), CLASSES) / CLASSES), obs=ys)
            loc = torch.sigmoid(self.decoder(torch.cat([zs, ys], -1)))
            pyro.sample("x", dist.Bernoulli(loc, validate_args=False).to_event(1), obs=xs)

    def guide(self, xs, ys=None):
        with pyro.plate("data", xs.size(0)):
            if ys is None:
                ys = pyro.sample("y", dist.OneHotCategorical(logits=self.encoder_y(xs)))
            rows = xs.expand(ys.shape[:-1] + xs.shape[-1:])
            loc, scale = self.encoder_z(torch.cat([rows, ys], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))

    def model_classify(self, xs, ys=None):
        pyro.module("ss_vae", self)
        with pyro.plate("data", xs.size(0)):
            if ys is not None:
                with poutine.scale(scale=self.auxiliary):
                    pyro.sample("y_aux", dist.OneHotCategorical(logits=self.encoder_y(xs)), obs=ys)

    def guide_classify(self, xs, ys=None):
        pass


def ss_vae_m2(SVI, steps, enumerate=None, auxiliary=False):
    """Labelled and unlabelled batches in turn; y summed out in parallel, sequentially or drawn; a second SVI shares the optimizer."""
    pyro.clear_param_store()
    program = M2()
    x, y = images(24), F.one_hot(torch.randint(CLASSES, (24,)), CLASSES).to(torch.get_default_dtype())
    adam = optim.Adam({"lr": 3e-3, "betas": (0.9, 0.999)})
    guide = config_enumerate(program.guide, enumerate, expand=True) if enumerate else program.guide
    losses = [SVI(program.model, guide, adam, loss=TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False))]
    if auxiliary:
        losses.append(SVI(program.model_classify, program.guide_classify, adam, loss=Trace_ELBO()))
    for step in range(steps):
        rows = slice(8 * (step % 3), 8 * (step % 3) + 8)
        for svi in losses:
            yield svi.step(x[rows], y[rows]) if step % 2 else svi.step(x[rows])


class CVAE(nn.Module):
    """Completes images whose hidden pixels are -1, from a first guess whose network is registered and gets no gradient."""

    def __init__(self):
        super().__init__()
        self.baseline = network(PIXELS, PIXELS)
        self.prior, self.recognition = network(2 * PIXELS, LATENT, LATENT), network(2 * PIXELS, LATENT, LATENT)
        self.generation = network(LATENT, PIXELS)

    def model(self, xs, ys=None):
        pyro.module("generation_net", self)
        with pyro.plate("data", len(xs)):
            with torch.no_grad():
                guess = torch.sigmoid(self.baseline(xs))
            loc, scale = self.prior(torch.cat([xs, guess], -1)).chunk(2, -1)
            z = pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))
            probabilities = torch.sigmoid(self.generation(z))
            if ys is None:
                pyro.deterministic("y", probabilities.detach())
                return
            hidden = (xs == -1).reshape(-1, PIXELS)  # the same number in each image
            loc = probabilities[hidden].view(len(xs), -1)
            target = ys[hidden].view(len(xs), -1)
            pyro.sample("y", dist.Bernoulli(loc, validate_args=False).to_event(1), obs=target)

    def guide(self, xs, ys=None):
        with pyro.plate("data", len(xs)):
            loc, scale = (self.prior if ys is None else self.recognition)(torch.cat([xs, xs if ys is None else ys], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))


def cvae(SVI, steps):
    """The shape of what is observed depends on the data's values: ``probabilities[xs == -1]``."""
    pyro.clear_param_store()
    y = images(12)
    x = y.clone()
    x[:, PIXELS // 4 :] = -1
    program = CVAE()
    svi = SVI(program.model, program.guide, optim.Adam({"lr": 1e-3}), Trace_ELBO())
    for step in range(steps):
        yield svi.step(x[step % 2 :], y[step % 2 :])


class SCANVI(nn.Module):
    """Counts x from z1 and a library size l; z1 from z2 and a cell type y that is observed for some; batch normalisation inside."""

    def __init__(self, genes=6):
        super().__init__()
        self.genes = genes
        self.z1_from_z2_y, self.x_from_z1 = self._net(LATENT + CLASSES, 2 * LATENT), self._net(LATENT, 2 * genes)
        self.z2_l_from_x, self.z1_from_x = self._net(genes, 2), self._net(genes, 2 * LATENT)
        self.y_from_z1, self.z2_from_z1_y = self._net(LATENT, CLASSES), self._net(LATENT + CLASSES, 2 * LATENT)

    @staticmethod
    def _net(inputs, outputs):
        return nn.Sequential(nn.Linear(inputs, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, outputs))

    @staticmethod
    def _normal(net, *inputs):
        shape = torch.broadcast_shapes(*(x.shape[:-1] for x in inputs))
        flat = torch.cat([x.expand(shape + x.shape[-1:]) for x in inputs], -1).reshape(shape.numel(), -1)
        loc, scale = net(flat).reshape(shape + (-1,)).chunk(2, -1)
        return dist.Normal(loc, F.softplus(scale) + 1e-3).to_event(1)

    def model(self, x, y=None):
        pyro.module("scanvi", self)
        dispersion = pyro.param("inverse_dispersion", 10.0 * x.new_ones(self.genes), constraint=constraints.positive)
        with pyro.plate("batch", len(x)), poutine.scale(scale=0.1):
            z2 = pyro.sample("z2", dist.Normal(x.new_zeros(LATENT), x.new_ones(LATENT)).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(logits=x.new_zeros(CLASSES)), obs=y)
            z1 = pyro.sample("z1", self._normal(self.z1_from_z2_y, z2, y))
            size = pyro.sample("l", dist.LogNormal(2.0, 0.5).expand([1]).to_event(1))
            gate, rate = self._normal(self.x_from_z1, z1).base_dist.loc, self._normal(self.x_from_z1, z1).base_dist.scale
            logits = (size * rate.softmax(-1) + 1e-6).log() - (dispersion + 1e-6).log()
            counts = dist.ZeroInflatedNegativeBinomial(gate_logits=gate, total_count=dispersion, logits=logits, validate_args=False)
            pyro.sample("x", counts.to_event(1), obs=x)

    def guide(self, x, y=None):
        pyro.module("scanvi", self)
        with pyro.plate("batch", len(x)), poutine.scale(scale=0.1):
            z1 = pyro.sample("z1", self._normal(self.z1_from_x, (1 + x).log()))
            loc, scale = self.z2_l_from_x((1 + x).log()).chunk(2, -1)
            pyro.sample("l", dist.LogNormal(loc, F.softplus(scale) + 1e-3).to_event(1))
            y_dist = dist.OneHotCategorical(logits=self.y_from_z1(z1))
            if y is None:
                y = pyro.sample("y", y_dist)
            else:  # the classifier learns from the labels
                pyro.factor("classification", 5.0 * y_dist.log_prob(y), has_rsample=False)
            pyro.sample("z2", self._normal(self.z2_from_z1_y, z1, y))


def scanvi(SVI, steps):
    """Enumerated labels, and a learning rate that falls at milestones by ``MultiStepLR``."""
    pyro.clear_param_store()
    x, y = dist.Poisson(torch.rand(24, 6) * 4).sample(), F.one_hot(torch.randint(CLASSES, (24,)), CLASSES).to(torch.get_default_dtype())
    program = SCANVI()
    arguments = {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.005}, "gamma": 0.2, "milestones": [1, 3]}
    scheduler = optim.MultiStepLR(arguments)
    elbo = TraceEnum_ELBO(strict_enumeration_warning=False)
    svi = SVI(program.model, config_enumerate(program.guide, "parallel", expand=True), scheduler, elbo)
    program.train()
    for step in range(steps):
        rows = slice(8 * (step % 3), 8 * (step % 3) + 8)
        yield svi.step(x[rows], y[rows]) if step % 2 else svi.step(x[rows])
        if step % 2:
            scheduler.step()


class Trainer:
    """The loop of a library for images: an SVI made inside, keyword arguments handed through to the programs, losses kept by epoch."""

    def __init__(self, SVI, model):
        self.svi = SVI(model.model, model.guide, optim.Adam({"lr": 1.0e-3}), loss=Trace_ELBO())
        self.history = {"train": [], "test": []}

    def step(self, train, test, **kwargs):
        losses = [self.svi.step(x, **kwargs) for (x,) in train]
        self.history["train"].append(sum(losses) / len(train.dataset))
        self.history["test"].append(sum(self.svi.evaluate_loss(x, **kwargs) for (x,) in test) / len(test.dataset))
        return *losses, self.history["train"][-1], self.history["test"][-1]


class RotationInvariantVAE(nn.Module):
    """An angle beside the code turns the grid of pixels; ``scale_factor`` weighs the codes' terms."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = network(PIXELS, LATENT + 1, LATENT + 1), network(2 + LATENT, 1)
        side = torch.linspace(-1, 1, int(PIXELS**0.5))
        self.register_buffer("grid", torch.cartesian_prod(side, side), persistent=False)

    def model(self, x, **kwargs):
        pyro.module("decoder", self.decoder)
        beta = kwargs.get("scale_factor", 1.0)
        with pyro.plate("data", x.shape[0]):
            with poutine.scale(scale=beta):
                z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([LATENT + 1]).to_event(1))
            angle, code = z[:, :1], z[:, 1:]
            turn = torch.stack([torch.cat([angle.cos(), -angle.sin()], 1), torch.cat([angle.sin(), angle.cos()], 1)], 1)
            points = self.grid @ turn  # (B, pixels, 2)
            inputs = torch.cat([points, code[:, None].expand(-1, PIXELS, -1)], -1)
            pyro.sample("obs", dist.Bernoulli(logits=self.decoder(inputs).squeeze(-1)).to_event(1), obs=x)

    def guide(self, x, **kwargs):
        pyro.module("encoder", self.encoder)
        beta = kwargs.get("scale_factor", 1.0)
        with pyro.plate("data", x.shape[0]):
            loc, scale = self.encoder(x).chunk(2, -1)
            with poutine.scale(scale=beta):
                pyro.sample("z", dist.Normal(loc, F.softplus(scale)).to_event(1))


def keyword_trainer(SVI, steps):
    """``svi.step(x, **kwargs)`` with a factor that grows from epoch to epoch."""
    pyro.clear_param_store()
    train, test = (DataLoader(TensorDataset(images(rows)), batch_size=8) for rows in (20, 8))
    trainer = Trainer(SVI, RotationInvariantVAE())
    for epoch in range(-(-steps // 3)):
        yield from trainer.step(train, test, scale_factor=1.0 + 0.5 * epoch)
