"""Priors over the discrete codes of a quantised posterior: uniform, by position, autoregressive."""

import math

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ...checks import whole_number
from ...registry import register
from ..conditional import Shape
from ..distributions import CodeSequence as Distribution
from .base import Prior


@register("priors")
class Codes(Prior):
    r"""Independent codes at each position, uniform or with learned probabilities; for the posteriors VectorQuantised and FiniteScalar.

    Uniform: :math:`-\log p(z) = P \log K` for P positions and K codes, so the KL is constant (van den Oord et al. 2017, section 3.1).

    Args:
        event_shape: positions, and the size of a code.
        learned: whether each position has its own learned probabilities, such as for ``pa.fit_prior``.

    >>> vq = vae.replace(prior=Codes((4, 2)), posterior=pa.posteriors.VectorQuantised(codes=8))
    >>> pa.elbo_terms(vq, x).kl[0].round(decimals=3), vq.sample(3).shape  # 4 log 8
    (tensor(8.3180, dtype=torch.float64), torch.Size([3, 16]))
    """

    support = constraints.real

    def __init__(self, event_shape: Shape | None = None, learned: bool = False):
        super().__init__(event_shape)
        self.learned = learned
        if self.event_shape is not None and len(self.event_shape) != 2:
            raise ValueError(
                f"{type(self).__name__}: expected the number of positions and the size of a code, such as (16, 8), "
                f"got {tuple(self.event_shape)}"
            )

    def build(self, context):
        built = super().build(context)
        if context.guide is not None:
            built._attach(context.guide.posterior)
        return built

    def _attach(self, book: nn.Module):
        if not hasattr(book, "alphabet"):
            raise ValueError(
                f"{type(self).__name__}: expected a posterior of codes, pa.posteriors.VectorQuantised() or FiniteScalar(), "
                f"got {type(book).__name__}"
            )
        same = hasattr(self, "_book") and self.book.alphabet == book.alphabet
        self._book = (book,)  # no submodule: its parameters are the guide's
        if not same:
            self._init(book.alphabet)

    def _init(self, alphabet: int):
        """Make the parameters for so many codes."""
        if self.learned:
            self.logits = nn.Parameter(torch.zeros(self.event_shape[0], alphabet))

    @property
    def book(self) -> nn.Module:
        """The posterior, which has the codes."""
        return self._book[0]

    def accepts(self, z):
        """Always: the posterior draws its own codes."""
        return True

    def forward(self) -> Distribution:
        return Distribution(self)

    def log_prob_of(self, indices: Tensor) -> Tensor:
        """log p of indices ``(..., positions)``."""
        if not self.learned:
            return torch.full(indices.shape[:-1], -indices.shape[-1] * math.log(self.book.alphabet), device=indices.device)
        log_p = self.logits.log_softmax(-1)
        return log_p[torch.arange(len(log_p), device=indices.device), indices].sum(-1)

    def draw_indices(self, n: int) -> Tensor:
        """``(n, positions)``."""
        if not self.learned:
            return torch.randint(self.book.alphabet, (n, self.event_shape[0]), device=next(self.book.buffers()).device)
        return torch.multinomial(self.logits.softmax(-1), n, replacement=True).mT

    @torch.no_grad()
    def fit_to(self, z):
        """The maximum: the frequencies of the codes, at least 1e-6."""
        used = nn.functional.one_hot(self.book.indices(z), self.book.alphabet).to(self.logits).mean(0)
        self.logits.copy_(used.clamp(min=1e-6).log())
        return True


@register("priors")
class CodeSequence(Codes):
    r"""Autoregressive codes, :math:`p(z) = \prod_p p(k_p | k_{<p})`, by a gated recurrent network over the positions, for ``pa.fit_prior``.

    The paper's second stage (van den Oord et al. 2017, section 3.1), with a recurrent network instead of a PixelCNN.

    Args:
        event_shape: positions, and the size of a code.
        hidden: size of the network's state.

    >>> vq = vae.replace(prior=pa.priors.Codes((4, 2)), posterior=pa.posteriors.VectorQuantised(codes=8))
    >>> pa.fit_prior(vq, x, CodeSequence(hidden=8), epochs=2).sample(3).shape
    torch.Size([3, 16])
    """

    def __init__(self, event_shape: Shape | None = None, hidden: int = 128):
        super().__init__(event_shape)
        whole_number("CodeSequence", hidden=hidden)
        self.hidden = hidden

    def _init(self, alphabet: int):
        positions = self.event_shape[0]
        self.embedding = nn.Embedding(alphabet, self.hidden)
        self.position = nn.Parameter(0.1 * torch.randn(positions, self.hidden))
        self.cell, self.output = nn.GRUCell(self.hidden, self.hidden), nn.Linear(self.hidden, alphabet)

    def log_prob_of(self, indices):
        """log p of indices ``(..., positions)``, one position after another."""
        flat = indices.reshape(-1, indices.shape[-1])
        state = self.position.new_zeros(len(flat), self.hidden)
        log_p, before = state.new_zeros(len(flat)), torch.zeros_like(state)
        for p, here in enumerate(self.position):
            state = self.cell(before + here, state)
            log_p = log_p + self.output(state).log_softmax(-1).gather(-1, flat[:, p : p + 1])[:, 0]
            before = self.embedding(flat[:, p])
        return log_p.reshape(indices.shape[:-1])

    def draw_indices(self, n):
        """``(n, positions)``."""
        state = self.position.new_zeros(n, self.hidden)
        drawn, before = [], torch.zeros_like(state)
        for here in self.position:
            state = self.cell(before + here, state)
            drawn.append(torch.multinomial(self.output(state).softmax(-1), 1))
            before = self.embedding(drawn[-1][:, 0])
        return torch.cat(drawn, -1)

    def fit_to(self, z):
        """By gradient."""
        return False
