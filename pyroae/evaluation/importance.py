"""``log_likelihood``: importance-weighted log p(x) of any (model, guide), with errors and diagnostics."""

import contextlib
import functools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from pyro import distributions as dist
from pyro import poutine
from torch import Tensor

from .. import programs
from ..checks import whole_number
from ..programs import Program
from ..training import distributed
from ..training.options import Mode
from ..training.precision import Precision, check_precision, matmul_precision
from .adaptive import Adapted, Adaptive
from .density import FlatGuide, check_proper, point_site
from .log_weights import FlatLogWeights, LogWeights
from .particles import Proposal, Shared, encodings, matrices, prepared
from .verdict import Verdict
from .weights import LEAST_FOR_KHAT, Weights

if TYPE_CHECKING:
    from .crosscheck import CrossCheck

Source = Proposal | Literal["auto", "guide"]  # where particles are drawn from

MOST = 0.5  # share of unreliable examples above which a mean is wrong
UNRELIABLE = 0.7  # k-hat above which an estimate is not to be trusted (Vehtari et al. 2024)


@dataclass(frozen=True, repr=False, eq=False)
class Estimate:
    """log p(x) of each example in nats, with diagnostics."""

    values: Tensor  # (N,) float64
    errors: Tensor  # (N,) Monte-Carlo standard error of each value
    ess: Tensor  # (N,) effective number of particles
    khat: Tensor  # (N,) Pareto tail shape; above 0.7 unreliable; NaN below 25 particles
    particles: int  # used per example
    dimensions: float  # mean number of observed entries per example
    proposal: str = "guide"  # where particles were drawn from
    fitted: Tensor | None = field(default=None, kw_only=True)  # (N,) whether an example has a fitted proposal ("auto")
    modes: Tensor | None = field(default=None, kw_only=True)  # (N,) fitted modes of p(z|x); 0: the guide was used; -1: no search
    check: "CrossCheck | None" = field(default=None, kw_only=True)  # of ``pa.cross_check``

    bound = "a lower"  # in expectation

    @property
    def mean(self) -> float:
        """Mean log p(x), nats/example. In expectation a lower bound (``Annealed``: as it says), tighter the more particles."""
        return self.values.mean().item()

    @property
    def mc_se(self) -> float:
        """Monte-Carlo standard error of the mean, which more particles reduce."""
        return self.errors.square().sum().sqrt().item() / len(self.values)

    @property
    def data_se(self) -> float:
        """Sampling standard error of the mean, which more test data reduce. NaN for a single example."""
        return self.values.std().item() / len(self.values) ** 0.5 if len(self.values) > 1 else math.nan

    @property
    def bits_per_dim(self) -> float:
        """-log2 p(x) for each observed entry of x; for data rescaled from integers add log2 of the scale yourself."""
        return -self.mean / (self.dimensions * math.log(2))

    @property
    def bias(self) -> float:
        """Expected bias of the mean to first order, -1/2 E[error^2], nats/example."""
        return -0.5 * self.errors.square().mean().item()

    @property
    def unreliable(self) -> float:
        """Share of the examples with k-hat above 0.7; NaN below 25 particles."""
        return math.nan if self.khat.isnan().all() else (self.khat > UNRELIABLE).double().mean().item()

    @property
    def low_by(self) -> float:
        """How much too low the mean may be in addition to its stated error: the summed errors of the unreliable examples over N."""
        return 0.0 if self.khat.isnan().all() else self.errors[self.khat > UNRELIABLE].sum().item() / len(self.values)

    @property
    def verdict(self) -> Verdict:
        """Whether the estimate can be trusted, the reason, and a remedy."""
        if (wrong := self._not_finite) is not None:
            return wrong
        if self.check is not None and self.check.missed:
            return Verdict("wrong", f"{self.check}", "annealing", self.check.low_by)
        if math.isnan(self.unreliable):
            return Verdict("uncertain", f"k-hat needs 25 particles, got {self.particles}", "particles")
        if self.unreliable == 0:
            return self._of_modes(f"k-hat is below .7 for all {len(self.values):,} examples")
        text = f"k-hat is above .7 for {self.unreliable:.1%} of the examples, whose values are too low rather than too high "
        text += f"and their errors too small; the mean may be too low by {self.low_by:.2g} nats or more"
        remedy = "auto" if self.proposal != "auto" else "ais" if self._searched else "prior"
        return Verdict("wrong" if self.unreliable > MOST else "uncertain", text, remedy, self.low_by)

    @property
    def _searched(self) -> bool:
        """Whether modes of p(z|x) were searched for on all examples."""
        return self.modes is not None and bool((self.modes >= 0).all())

    @property
    def _not_finite(self) -> Verdict | None:
        """The verdict where some values are infinite or NaN."""
        bad = int((~self.values.isfinite()).sum())
        if bad == 0:
            return None
        return Verdict("wrong", f"log p(x) is infinite or NaN for {bad:,} of the {len(self.values):,} examples", "data")

    def _of_modes(self, text: str) -> Verdict:
        """The verdict where all k-hat are small: about modes of p(z|x) that the particles may have missed."""
        if self.check is not None:
            return Verdict("no sign of trouble", f"{text}; {self.check}")
        if self.proposal == "prior":
            return Verdict("no sign of trouble", f"{text}; draws of the prior miss no mode of p(z|x)")
        if self._searched:
            several = int((self.modes > 1).sum())
            several = f"p(z|x) has several modes on {several:,} of them, and a mode that no start reached would not show"
            return Verdict("no sign of trouble", f"{text}; {several}")
        text += ", but a mode of p(z|x) that the proposal misses would not show: one as heavy as those that it has is worth .69 nats"
        if self.proposal == "auto":
            unsearched = int((self.modes < 0).sum())
            text += f"; on {unsearched:,} of them none were looked for, as z is discrete, too large, or not of each example alone"
        return Verdict("uncertain", text, "prior" if self.proposal == "auto" else "auto")

    def __str__(self) -> str:
        text = f"log p(x) = {self.mean:.2f}{self.verdict.mark} nats/example, Monte-Carlo s.e. {self.mc_se:.2g}, "
        text += f"sampling s.e. {self.data_se:.2g}"
        text += f", ESS {self.ess.mean().item():.0f} of {self.particles} (min {self.ess.min().item():.0f})"
        if self.khat.isnan().all():
            return text + f", no k-hat below 25 particles; in expectation {self.bound} bound"
        text += f", k-hat {self.khat.median().item():.2f} (max {self.khat.max().item():.2f}, {self.unreliable:.1%} > .7)"
        return text + f"; in expectation {self.bound} bound"

    __repr__ = __str__


def log_likelihood(
    model: Any,
    x: Any,
    guide: Program | None = None,
    *,
    particles: int = 5000,
    seed: int | None = 0,
    progress: bool = False,
    proposal: Source = "auto",
    compile: Mode = "auto",
    precision: Precision = "auto",
) -> Estimate:
    r"""Importance-weighted log-likelihood of each example,

    .. math:: \log \hat p(x) = \log \frac1K \sum_k \frac{p(x, z_k)}{q(z_k|x)}, \qquad z_k \sim q(z|x),

    (Burda et al. 2016, eq. 8). By default q is fitted to each example for which the guide is inadequate (``pa.proposals.Adaptive``): with
    5,000 particles the guide of a VAE underestimates log p(x) by up to a nat; ``proposal="guide"`` is the papers' estimate. The
    encoder runs once per example, memory does not grow with the particles, and sums are in float64. Parameters, modes and
    the caller's random state are restored on exit. In expectation it is a lower bound on log p(x), by about half the squared
    Monte-Carlo error (``Estimate.bias``). Discrete latents are drawn from the guide, not summed out.

    Args:
        model: an Autoencoder, or any Pyro model of a batch, ``model(x)`` or ``model(x, y)``, whose sites are
            all in one plate over the data.
        x: as for ``fit``, such as a tensor ``(N, *event)``, a table or a split of ``pa.data.load(...)``. Of a tuple ``(x, y)`` it is
            log p(x|y).
        guide: the model's guide, where ``model`` is not an Autoencoder.
        particles: K.
        seed: of the draws; ``None`` goes on with the caller's random state. With a seed, the value of an example depends on
            its position in its block (64 examples, with a proposal equal blocks of up to 128, more with few particles) and on its size,
            but not on the other examples.
        progress: show a progress bar.
        proposal: where z is drawn from: ``"auto"`` (below 25 particles the guide, unless it is a point), ``"guide"``,
            ``pa.proposals.prior``, ``pa.proposals.Laplace()``, ``pa.proposals.Optimised()``, or any function
            ``(model, guide, *args)`` that returns a guide for those data.
        compile: ``"auto"``, ``"eager"``, ``"traced"`` or ``"compiled"``.
        precision: of float32 matrix products inside this call, as in ``pa.Step``.

    Returns:
        An ``Estimate``, in nats. Of each example, ``(N,)``: ``values``, their standard errors ``errors``, effective sample sizes ``ess``
        and ``khat``. Of the data: ``mean``, its errors ``mc_se`` (of the particles) and ``data_se`` (of the examples), ``bits_per_dim``,
        ``bias``, and ``verdict``, which says whether the numbers can be trusted, why, and what to do.

    Raises:
        ValueError: a guide without a density (Delta) and no proposal, an improper prior, data outside the likelihood's support, or a
            program whose log p(x) does not split into examples.

    >>> log_likelihood(vae, torch.rand(10, 16).round(), particles=100).values.shape
    torch.Size([10])
    """
    whole_number("log_likelihood", particles=particles)
    check_precision(precision)
    model, guide = programs.pair(model, guide)
    if proposal == "auto" and particles < LEAST_FOR_KHAT and not _is_point(guide):
        proposal = "guide"
    with contextlib.ExitStack() as around:
        around.enter_context(programs.eval_mode(model, guide, seed=seed))
        model, guide, args = prepared(x, model, guide, stream=True)
        around.enter_context(matmul_precision(precision, matrices(model, guide), particles))
        columns = torch.zeros(7, len(args[0]), dtype=torch.float64, device=args[0].device)
        by_guide, by_proposal = LogWeights(model, guide, compile), LogWeights(model, guide, "eager")
        by_fit = FlatLogWeights(model, compile)
        for block in encodings(model, guide, args, particles, progress, as_proposal(proposal), Shared(seed)):
            check_weighable("log_likelihood", *block.traces)
            adapted = block.source if isinstance(block.source, Adapted) else None
            source = adapted.program if adapted else block.source
            log_weights = by_fit if isinstance(source, FlatGuide) else by_guide if source is guide else by_proposal
            log_weights.expect(block.number_of_passes * math.ceil(len(args[0]) / len(block.args[0])))
            weights = Weights(len(block.args[0]), particles, args[0].device)
            for each in block.passes(functools.partial(log_weights, block)):
                weights.add(each)
            extra = (adapted.fitted, adapted.modes) if adapted else (weights.log_sum.new_zeros(len(block.args[0])),) * 2
            columns[:, block.rows] = torch.stack([*weights.columns(), observed_entries(block.args[0]), *(each.double() for each in extra)])
        (columns,) = distributed.all_reduce(columns)
    *columns, observed, fitted, modes = columns.cpu()
    auto = {"fitted": fitted > 0, "modes": modes.long()} if proposal == "auto" else {}
    return Estimate(*columns, particles, observed.mean().item(), name_of(proposal), **auto)


def _is_point(guide: Program) -> bool:
    """Whether an Autoencoder's guide is a point, which cannot be a proposal."""
    family = getattr(getattr(guide, "posterior", None), "family", None)
    return isinstance(family, type) and issubclass(family, dist.Delta)


def as_proposal(proposal: Source) -> Proposal | None:
    """The proposal as a function, ``None`` for the guide.

    Raises:
        ValueError: an unknown word.
    """
    if isinstance(proposal, str):
        if proposal not in ("auto", "guide"):
            raise ValueError(f'expected proposal as "auto", "guide" or a function such as pa.proposals.Laplace(), got {proposal!r}')
        return Adaptive() if proposal == "auto" else None
    return proposal


def name_of(proposal: Source) -> str:
    """The name of a proposal."""
    return proposal if isinstance(proposal, str) else getattr(proposal, "__name__", type(proposal).__name__)


def observed_entries(x: Tensor) -> Tensor:
    """The number of entries of each example that are not missing (NaN), ``(N,)``."""
    return (~x.isnan()).reshape(len(x), -1).sum(1).double()


def check_weighable(owner: str, model_trace: poutine.Trace, guide_trace: poutine.Trace):
    """``ValueError`` where p(x, z) / q(z|x) does not exist."""
    check_proper(owner, programs.sites(model_trace, observed=False).values())
    name = point_site(guide_trace)
    if name is not None and model_trace.nodes[name]["fn"].support.is_discrete:
        raise ValueError(
            f"{owner}: the guide's site {name!r} is a point of a discrete latent, so log p(x) would be a sum over all its values; "
            "pa.elbo_terms has the bound log p(x, z)"
        )
    if name is not None:
        raise ValueError(
            f"{owner}: the guide's site {name!r} is a Delta, a point without a density, so importance weights do not exist; "
            f'draw from elsewhere with proposal="auto" ({LEAST_FOR_KHAT} particles or more, up to 128 latent dimensions) '
            "or pa.proposals.Laplace(), "
            "or look at log p(x, z) with pa.elbo_terms"
        )
