"""Programs over time: deep Markov model, hidden Markov models, capture and recapture."""

import pyro
import torch
from pyro import distributions as dist
from pyro import optim, poutine
from pyro.distributions import constraints
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceTMC_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal
from pyro.ops.indexing import Vindex
from torch import nn
from torch.nn import functional as F


class GatedTransition(nn.Module):
    """p(z_t | z_{t-1}): between a linear map and a network."""

    def __init__(self, z_dim, hidden):
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(z_dim, hidden), nn.ReLU(), nn.Linear(hidden, z_dim), nn.Sigmoid())
        self.proposed = nn.Sequential(nn.Linear(z_dim, hidden), nn.ReLU(), nn.Linear(hidden, z_dim))
        self.linear, self.scale = nn.Linear(z_dim, z_dim), nn.Linear(z_dim, z_dim)
        self.linear.weight.data, self.linear.bias.data = torch.eye(z_dim), torch.zeros(z_dim)

    def forward(self, z):
        gate, proposed = self.gate(z), self.proposed(z)
        return (1 - gate) * self.linear(z) + gate * proposed, F.softplus(self.scale(F.relu(proposed)))


class DMM(nn.Module):
    """A deep Markov model whose guide reads the sequences from behind."""

    def __init__(self, notes=5, z_dim=3, hidden=6):
        super().__init__()
        self.emitter = nn.Sequential(nn.Linear(z_dim, hidden), nn.ReLU(), nn.Linear(hidden, notes), nn.Sigmoid())
        self.trans = GatedTransition(z_dim, hidden)
        self.combiner = nn.ModuleDict({"z": nn.Linear(z_dim, hidden), "loc": nn.Linear(hidden, z_dim), "scale": nn.Linear(hidden, z_dim)})
        self.rnn = nn.RNN(notes, hidden, nonlinearity="relu", batch_first=True)
        self.z_0, self.z_q_0 = nn.Parameter(torch.zeros(z_dim)), nn.Parameter(torch.zeros(z_dim))
        self.h_0 = nn.Parameter(torch.zeros(1, 1, hidden))

    def model(self, batch, reversed_batch, mask, lengths, annealing_factor=1.0):
        pyro.module("dmm", self)
        z = self.z_0.expand(batch.size(0), -1)
        with pyro.plate("sequences", len(batch)):
            for t in pyro.markov(range(1, batch.size(1) + 1)):
                loc, scale = self.trans(z)
                with poutine.scale(None, annealing_factor):
                    z = pyro.sample(f"z_{t}", dist.Normal(loc, scale).mask(mask[:, t - 1 : t]).to_event(1))
                emitted = dist.Bernoulli(self.emitter(z)).mask(mask[:, t - 1 : t]).to_event(1)
                pyro.sample(f"x_{t}", emitted, obs=batch[:, t - 1])

    def guide(self, batch, reversed_batch, mask, lengths, annealing_factor=1.0):
        pyro.module("dmm", self)
        h_0 = self.h_0.expand(1, batch.size(0), self.rnn.hidden_size).contiguous()
        packed_output, _ = self.rnn(reversed_batch, h_0)
        output, _ = nn.utils.rnn.pad_packed_sequence(packed_output, batch_first=True)
        output = reverse_sequences(output, lengths)
        z = self.z_q_0.expand(batch.size(0), -1)
        with pyro.plate("sequences", len(batch)):
            for t in pyro.markov(range(1, batch.size(1) + 1)):
                h = 0.5 * (torch.tanh(self.combiner["z"](z)) + output[:, t - 1])
                z_dist = dist.Normal(self.combiner["loc"](h), F.softplus(self.combiner["scale"](h)))
                with poutine.scale(None, annealing_factor):
                    z = pyro.sample(f"z_{t}", z_dist.mask(mask[:, t - 1 : t]).to_event(1))


def reverse_sequences(batch, lengths):
    """Each sequence from behind, padding where it was."""
    result = torch.zeros_like(batch)
    for row, length in enumerate(lengths):
        result[row, :length] = batch[row, torch.arange(length - 1, -1, -1)]
    return result


def dmm(SVI, steps):
    """Mini-batches of other lengths, a packed sequence as an argument, and an annealing factor that is a new float in each step."""
    pyro.clear_param_store()
    lengths = torch.tensor([4, 4, 3, 2, 3, 3, 2, 1])
    data = torch.rand(8, 4, 5).round()
    program = DMM()
    adam = {"lr": 0.003, "betas": (0.96, 0.999), "clip_norm": 10.0, "lrd": 0.99996, "weight_decay": 2.0}
    svi = SVI(program.model, program.guide, optim.ClippedAdam(adam), Trace_ELBO())

    def batch(rows):
        longest = lengths[rows].max()
        x = data[rows, :longest]
        mask = (torch.arange(longest) < lengths[rows][:, None]).to(x.dtype)
        packed = nn.utils.rnn.pack_padded_sequence(reverse_sequences(x, lengths[rows]), lengths[rows], batch_first=True)
        return x * mask[..., None], packed, mask, lengths[rows]

    for step in range(steps):
        program.rnn.train()
        annealing_factor = 0.2 + 0.8 * (step + 1) / 10 if step < 8 else 1.0
        yield svi.step(*batch(slice(0, 4) if step % 3 < 2 else slice(4, 8)), annealing_factor)
        if step % 4 == 3:
            program.rnn.eval()
            yield svi.evaluate_loss(*batch(slice(4, 8)))


HIDDEN, NOTES = 3, 4
SEQUENCES = (5, 4)  # how many, and how long the longest is


def transitions():
    """Rows of transition probabilities and emission probabilities, with priors."""
    probs_x = pyro.sample("probs_x", dist.Dirichlet(0.9 * torch.eye(HIDDEN) + 0.1).to_event(1))
    probs_y = pyro.sample("probs_y", dist.Beta(0.1, 0.9).expand([HIDDEN, NOTES]).to_event(2))
    return probs_x, probs_y


def sequential(sequences, lengths, batch_size=None):
    """A loop over sequences, each of its own length."""
    probs_x, probs_y = transitions()
    tones = pyro.plate("tones", NOTES, dim=-1)
    for i in pyro.plate("sequences", len(sequences), batch_size):
        x = 0
        for t in pyro.markov(range(lengths[i])):
            x = pyro.sample(f"x_{i}_{t}", dist.Categorical(probs_x[x]), infer={"enumerate": "parallel"})
            with tones:
                pyro.sample(f"y_{i}_{t}", dist.Bernoulli(probs_y[x.squeeze(-1)]), obs=sequences[i, t])


def batched(sequences, lengths, batch_size=None):
    """A plate over sequences, subsampled; those that have ended are masked."""
    assert lengths.shape == (len(sequences),) and lengths.max() <= sequences.shape[1]
    probs_x, probs_y = transitions()
    tones = pyro.plate("tones", NOTES, dim=-1)
    with pyro.plate("sequences", len(sequences), batch_size, dim=-2) as rows:
        lengths = lengths[rows]
        x = 0
        for t in pyro.markov(range(lengths.max() if batch_size is None else sequences.shape[1])):
            with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                x = pyro.sample(f"x_{t}", dist.Categorical(probs_x[x]), infer={"enumerate": "parallel"})
                with tones:
                    pyro.sample(f"y_{t}", dist.Bernoulli(probs_y[x.squeeze(-1)]), obs=sequences[rows, t])


def factorial(sequences, lengths, batch_size=None):
    """Two chains behind each observation."""
    probs_w = pyro.sample("probs_w", dist.Dirichlet(0.9 * torch.eye(2) + 0.1).to_event(1))
    probs_x = pyro.sample("probs_x", dist.Dirichlet(0.9 * torch.eye(2) + 0.1).to_event(1))
    probs_y = pyro.sample("probs_y", dist.Beta(0.1, 0.9).expand([2, 2, NOTES]).to_event(3))
    tones = pyro.plate("tones", NOTES, dim=-1)
    with pyro.plate("sequences", len(sequences), dim=-2):
        w, x = torch.tensor(0), torch.tensor(0)
        for t in pyro.markov(range(sequences.shape[1])):
            with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                w = pyro.sample(f"w_{t}", dist.Categorical(probs_w[w]), infer={"enumerate": "parallel"})
                x = pyro.sample(f"x_{t}", dist.Categorical(Vindex(probs_x)[x]), infer={"enumerate": "parallel"})
                with tones as tone:
                    pyro.sample(f"y_{t}", dist.Bernoulli(Vindex(probs_y)[w, x, tone]), obs=sequences[:, t])


class Tones(nn.Module):
    def __init__(self):
        super().__init__()
        self.x, self.y = nn.Embedding(HIDDEN, 4), nn.Linear(NOTES, 4)
        self.out = nn.Sequential(nn.ReLU(), nn.Linear(4, NOTES))

    def forward(self, x, y):
        return self.out(self.x(x) + self.y(y))


TONES = None  # the network of ``neural``, a global variable that its first call fills


def neural(sequences, lengths, batch_size=None):
    """An autoregressive network as the emission, kept in a global variable; hidden states' probabilities are a ``pyro.param``."""
    global TONES
    TONES = TONES or Tones()
    pyro.module("tones", TONES)
    probs_x = pyro.param("probs_x", lambda: torch.rand(HIDDEN, HIDDEN), constraint=constraints.simplex)
    tones = pyro.plate("tones", NOTES, dim=-1)
    with pyro.plate("sequences", len(sequences), dim=-2):
        x, y = 0, torch.zeros(NOTES, dtype=sequences.dtype)
        for t in pyro.markov(range(sequences.shape[1])):
            with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                x = pyro.sample(f"x_{t}", dist.Categorical(probs_x[x]), infer={"enumerate": "parallel"})
                with tones:
                    pyro.sample(f"y_{t}", dist.Bernoulli(logits=TONES(x.squeeze(-1), y)), obs=sequences[:, t])
            y = sequences[:, t]


def discrete_hmm(sequences, lengths, batch_size=None):
    """The chain summed out inside one distribution."""
    probs_x, probs_y = transitions()
    with pyro.plate("sequences", len(sequences), dim=-1):
        emitted = dist.Bernoulli(probs_y).to_event(1)
        pyro.sample("y", dist.DiscreteHMM(probs_x.new_ones(HIDDEN).div(HIDDEN).log(), probs_x.log(), emitted), obs=sequences)


def hmm(SVI, steps, model, batch_size=None, monte_carlo=False):
    """``AutoDelta`` for all that is not enumerated; the first loss is asked for before training, as the example does."""
    global TONES
    pyro.clear_param_store()
    TONES = None
    count, longest = SEQUENCES
    sequences, lengths = torch.rand(count, longest, NOTES).round(), torch.randint(2, longest + 1, (count,))
    guide = AutoDelta(poutine.block(model, expose_fn=lambda msg: msg["name"].startswith("probs_")))
    if monte_carlo:
        elbo = TraceTMC_ELBO(max_plate_nesting=2)
        model = poutine.infer_config(model, lambda msg: {"num_samples": 2, "expand": False} if msg["infer"].get("enumerate") else {})
    else:
        nesting = {sequential: 1, discrete_hmm: 1}.get(model, 2)
        elbo = TraceEnum_ELBO(max_plate_nesting=nesting, strict_enumeration_warning=model is not discrete_hmm)
    if model is neural:
        guide = config_enumerate(guide)
    svi = SVI(model, guide, optim.Adam({"lr": 0.05}), elbo)
    for _ in range(steps):
        yield svi.step(sequences, lengths, batch_size=batch_size)
    yield elbo.loss(model, guide, sequences, lengths, batch_size=batch_size)


def cjs_fixed(history):
    """Cormack-Jolly-Seber with one survival and one recapture probability: masks move forward in the loop over years."""
    animals, years = history.shape
    phi, rho = pyro.sample("phi", dist.Uniform(0.0, 1.0)), pyro.sample("rho", dist.Uniform(0.0, 1.0))
    with pyro.plate("animals", animals, dim=-1):
        z, first = torch.ones(animals), torch.zeros(animals).bool()
        for t in pyro.markov(range(years)):
            with poutine.mask(mask=first):
                z = pyro.sample(
                    f"z_{t}", dist.Bernoulli(first.to(z.dtype) * phi * z + (1 - first.to(z.dtype))), infer={"enumerate": "parallel"}
                )
                pyro.sample(f"y_{t}", dist.Bernoulli(rho * z), obs=history[:, t])
            first |= history[:, t].bool()


def cjs_random_effects(history):
    """Survival that varies from year to year around a mean on the logit scale."""
    animals, years = history.shape
    mean, scale = pyro.sample("phi_logit_mean", dist.Normal(0.0, 1.5)), pyro.sample("phi_sigma", dist.Uniform(0.0, 10.0))
    rho = pyro.sample("rho", dist.Uniform(0.0, 1.0))
    z, first = torch.ones(animals), torch.zeros(animals).bool()
    animals_plate = pyro.plate("animals", animals, dim=-1)
    for t in pyro.markov(range(years)):
        phi = torch.sigmoid(pyro.sample(f"phi_logit_{t}", dist.Normal(mean, scale))) if t > 0 else 0.0
        with animals_plate, poutine.mask(mask=first):
            z = pyro.sample(
                f"z_{t}", dist.Bernoulli(first.to(z.dtype) * phi * z + (1 - first.to(z.dtype))), infer={"enumerate": "parallel"}
            )
            pyro.sample(f"y_{t}", dist.Bernoulli(rho * z), obs=history[:, t])
        first = first | history[:, t].bool()


def cjs(SVI, steps, model):
    """Animals alive or not summed out in parallel under ``AutoDiagonalNormal`` for the rest."""
    pyro.clear_param_store()
    history = torch.rand(8, 4).round()
    guide = AutoDiagonalNormal(poutine.block(model, expose_fn=lambda msg: msg["name"][:3] in ("phi", "rho")))
    svi = SVI(model, guide, optim.Adam({"lr": 0.01}), TraceEnum_ELBO(max_plate_nesting=1, num_particles=2, vectorize_particles=True))
    for _ in range(steps):
        yield svi.step(history)
