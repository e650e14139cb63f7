"""The table of names: every class that a file or the command line can name, by kind. Files can make objects of no other class."""

import functools
import importlib
import inspect
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from pyro import distributions as dist
from pyro import infer
from pyro.distributions import transforms
from torch import nn, optim
from torch.optim import lr_scheduler

from .checks import did_you_mean, short

T = TypeVar("T")
_TABLE: dict[str, dict[str, type]] = {}  # kind -> name in files -> class: "Laplace", or "my_parts.Cauchy" for a user's class
_BASES: dict[str, type] = {}  # kind -> base class
_NAMES: dict[type, str] = {}  # class -> "kind.name"


class Part:
    """Base class of everything that a model is made of; ``part.arguments`` holds the arguments of its constructor."""

    arguments: dict[str, Any]

    def __new__(cls, *args, **kwargs):
        self = super().__new__(cls)
        signature = inspect.signature(cls.__init__)
        for name in kwargs.keys() - signature.parameters.keys():
            if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values()):
                raise TypeError(f"{cls.__name__} has no argument {name!r}" + did_you_mean(name, list(signature.parameters)[1:]))
        _, *bound = signature.bind_partial(self, *args, **kwargs).arguments.items()
        self.__dict__["arguments"] = arguments = {}
        for name, value in bound:
            arguments.update(value if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD else {name: value})
        return self

    def replace(self, **changes) -> Self:
        """A new part of the same class with some arguments changed."""
        return type(self)(**{**self.arguments, **changes})


def register_base(kind: str) -> Callable[[type[T]], type[T]]:
    """Decorator for the base class of a kind, such as ``Prior`` for ``"priors"``."""

    def enter(cls: type[T]) -> type[T]:
        _BASES[kind] = cls
        _TABLE.setdefault(kind, {})
        return cls

    return enter


def register(kind: str) -> Callable[[type[T]], type[T]]:
    """Class decorator that makes a part available by name: models with it can be saved, and loaded once its module is imported.

    On the command line ``--likelihood my_parts.Cauchy`` and ``--use my_parts`` import the module, also from the current folder.

    Args:
        kind: ``"priors"``, ``"likelihoods"``, ``"posteriors"``, ``"nets"``, ``"conditions"``, ``"corruption"``, ``"objectives"``,
            ``"penalties"`` or ``"schedules"``.

    Raises:
        ValueError: an unknown kind, a class that is not a subclass of the kind's base class, or a name that pyroae has already.

    >>> import pyroae as pa
    >>> from pyro import distributions as dist
    >>> @pa.register("likelihoods")
    ... class RegisterExample(pa.likelihoods.Likelihood):
    ...     def __init__(self, event_shape=None, scale: float | str = "learned"):
    ...         super().__init__(dist.Cauchy, event_shape, scale=scale)
    >>> RegisterExample(3).size
    3
    """

    def enter(cls: type[T]) -> type[T]:
        if kind not in _BASES:
            raise ValueError(f"register: there is no kind {kind!r}" + did_you_mean(kind, _BASES))
        if not issubclass(cls, _BASES[kind]):
            raise ValueError(f"register: expected a subclass of {_BASES[kind].__name__} for {kind!r}, got {cls.__name__}")
        name = cls.__name__ if _own(cls) else f"{cls.__module__}.{cls.__name__}"
        if not _own(cls) and cls.__name__ in _TABLE[kind]:
            existing = _TABLE[kind][cls.__name__]
            raise ValueError(f"register: {existing.__module__}.{cls.__name__} has this name already among the {kind}; choose another name")
        _TABLE[kind][name] = cls
        _NAMES[cls] = f"{kind}.{name}"
        return cls

    return enter


def members(kind: str) -> dict[str, type]:
    """The classes of a kind by their name in files: ``Laplace``, or ``my_parts.Cauchy`` for a user's class."""
    return _TABLE[kind]


def base(kind: str) -> type:
    """The base class of a kind."""
    return _BASES[kind]


def kinds_of(annotation: Any) -> list[str]:
    """The kinds whose base class is this annotation."""
    return [kind for kind, base in _BASES.items() if base is annotation or (kind == "distributions" and annotation is dist.Distribution)]


def name_of(cls: type) -> str | None:
    """The name of a class in files, ``"priors.Laplace"`` or ``"priors.my_parts.Mine"``; ``None`` if it is not registered."""
    return _NAMES.get(cls)


def find(kind: str, name: str) -> type:
    """The class of a kind by name: ``"Laplace"``, ``"priors.Laplace"``, ``"my_parts.Mine"`` or ``"priors.my_parts.Mine"``.

    The bare name of a user's class, ``"Mine"``, is enough if only one module has registered that name.

    Raises:
        ValueError: no such class (names the closest match, or the module to import), or several.
    """
    path = name.removeprefix(f"{kind}.")
    if path in _TABLE[kind]:
        return _TABLE[kind][path]
    module, _, last = path.rpartition(".")
    if module and len(path) <= 100 and path.replace(".", "").isidentifier():
        raise ValueError(
            f"there is no {short(name)} among the {kind} of pyroae, Pyro and torch; if {module} is a module of your own that you trust, "
            f"import it first, with @pa.register({kind!r}) above the class; on the command line add --use {module}"
        )
    same = [full for full in _TABLE[kind] if full.endswith(f".{last}")]
    if len(same) > 1:
        raise ValueError(f"expected one {singular(kind)} {short(name)}, got {len(same)}: choose {' or '.join(sorted(same))}")
    if not same:
        raise ValueError(f"there is no {singular(kind)} {short(name)}" + did_you_mean(name, _TABLE[kind]))
    return _TABLE[kind][same[0]]


def singular(kind: str) -> str:
    """The singular of a kind.

    >>> singular("priors"), singular("penalties")
    ('prior', 'penalty')
    """
    return {"nets": "network", "penalties": "penalty"}.get(kind, kind.removesuffix("s"))


def use(module: str):
    """Import a user's module, also from the current folder; its parts register themselves, by ``@pa.register``.

    Raises:
        ValueError: no such module, or its import fails.
    """
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        importlib.import_module(module)
    except Exception as error:  # the user's code may raise anything
        raise ValueError(f"the module {module} cannot be imported: {type(error).__name__}: {error}") from error


class Plain:
    """The type of arguments of Pyro and torch without annotations: numbers, text, lists, tensors, distributions and transforms."""


def parameters(cls: type) -> dict[str, inspect.Parameter]:
    """The constructor's arguments that a file can give, with their types: the annotation, else the type of the default, else ``Plain``.

    All arguments of Pyro's distributions and transforms are ``Plain``: they take tensors and numbers alike, whatever they state.
    """
    plain = _NAMES.get(cls, "").partition(".")[0] in ("distributions", "transforms")
    hints, parameters = {} if plain else _hints(cls), {}
    for name, parameter in list(inspect.signature(cls.__init__).parameters.items())[1:]:
        if name not in _HIDDEN and parameter.kind is not inspect.Parameter.VAR_POSITIONAL:
            stated = Plain if plain else _TYPES.get(name) or hints.get(name) or _type_of(parameter.default)
            parameters[name] = parameter.replace(annotation=stated)
    return parameters


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """The annotations of a constructor; some of torch's are text, which Python evaluates."""
    try:
        return typing.get_type_hints(cls.__init__)
    except (NameError, TypeError):
        return {}


def _type_of(default: Any) -> Any:
    kinds = {bool: bool, int: int | float, float: float, str: str}
    return kinds.get(type(default), Plain)


def _own(cls: type) -> bool:
    """Whether a class belongs to pyroae, Pyro or torch."""
    return cls.__module__.partition(".")[0] in ("pyroae", "pyro", "torch")


_HIDDEN = set(  # arguments that files cannot give: set by pyroae, or without influence on results, or deprecated
    """validate_args params optimizer verbose jit_options ignore_jit_warnings retain_graph max_iarange_nesting capturable differentiable
    maximize""".split()
)
_TYPES = {"num_particles": int, "max_plate_nesting": int}  # not annotated in Pyro
_THIRD_PARTY: dict[str, tuple[Any, type | None, str]] = {  # kind -> module, base class, names
    "distributions": (
        dist,
        torch.distributions.Distribution,
        """AffineBeta AsymmetricLaplace Bernoulli Beta BetaBinomial Binomial Categorical Cauchy Chi2 ContinuousBernoulli Delta Dirichlet
        DirichletMultinomial Exponential ExtendedBetaBinomial ExtendedBinomial FisherSnedecor FoldedDistribution Gamma GammaPoisson
        GeneralizedPareto Geometric Gumbel HalfCauchy HalfNormal Independent InverseGamma Kumaraswamy LKJCholesky Laplace LogNormal
        LogNormalNegativeBinomial Logistic LogisticNormal LowRankMultivariateNormal MaskedMixture MixtureOfDiagNormals
        MixtureOfDiagNormalsSharedCovariance MixtureSameFamily Multinomial MultivariateNormal MultivariateStudentT NegativeBinomial
        Normal OneHotCategorical OneHotCategoricalStraightThrough OrderedLogistic Pareto Poisson ProjectedNormal RelaxedBernoulli
        RelaxedBernoulliStraightThrough RelaxedOneHotCategorical RelaxedOneHotCategoricalStraightThrough SineBivariateVonMises
        SineSkewed SkewLogistic SoftAsymmetricLaplace SoftLaplace Stable StableWithLogProb StudentT TransformedDistribution
        TruncatedPolyaGamma Uniform VonMises VonMises3D Weibull Wishart ZeroInflatedDistribution ZeroInflatedNegativeBinomial
        ZeroInflatedPoisson""",
    ),
    "transforms": (
        transforms,
        torch.distributions.Transform,
        """AbsTransform AffineTransform CholeskyTransform ComposeTransform CorrCholeskyTransform DiscreteCosineTransform ELUTransform
        ExpTransform HaarTransform IndependentTransform LeakyReLUTransform LowerCholeskyTransform OrderedTransform Permute
        PositivePowerTransform PowerTransform ReshapeTransform SigmoidTransform SimplexToOrderedTransform SoftmaxTransform
        SoftplusLowerCholeskyTransform SoftplusTransform StickBreakingTransform TanhTransform""",
    ),
    "objectives": (
        infer,
        infer.ELBO,
        """RenyiELBO ReweightedWakeSleep TraceEnum_ELBO TraceGraph_ELBO TraceMeanField_ELBO TraceTMC_ELBO Trace_ELBO""",
    ),
    "optimizers": (optim, optim.Optimizer, "ASGD Adadelta Adafactor Adagrad Adam AdamW Adamax NAdam RAdam RMSprop Rprop SGD"),
    "schedulers": (
        lr_scheduler,
        lr_scheduler.LRScheduler,
        """ConstantLR CosineAnnealingLR CosineAnnealingWarmRestarts CyclicLR ExponentialLR LinearLR MultiStepLR OneCycleLR PolynomialLR
        ReduceLROnPlateau StepLR""",
    ),
    "activations": (
        nn,
        None,
        """CELU ELU GELU Hardshrink Hardsigmoid Hardswish Hardtanh Identity LeakyReLU LogSigmoid Mish PReLU RReLU ReLU ReLU6 SELU SiLU
        Sigmoid Softplus Softshrink Softsign Tanh Tanhshrink""",
    ),
}

for _kind, (_home, _base, _names) in _THIRD_PARTY.items():
    _TABLE.setdefault(_kind, {})
    if _base is not None:
        register_base(_kind)(_base)
    for _name in _names.split():
        _cls = getattr(_home, _name)
        _TABLE[_kind][_name] = _cls
        _NAMES[_cls] = f"{_kind}.{_name}"
        _hints(_cls)  # now, so that no annotation is evaluated while a file is read
