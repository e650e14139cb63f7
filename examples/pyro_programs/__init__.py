"""Programs as people write them for Pyro, after published models, on small synthetic data.

Each is a generator function of a class with the interface of ``pyro.infer.SVI`` and of the number of steps. It makes its data, model,
guide, optimizer and ``SVI``, runs an ordinary training loop, and yields what ``step`` and ``evaluate_loss`` return:

    losses = list(PROGRAMS["vae"](pyro.infer.SVI, 10))
"""

from collections.abc import Callable, Iterator
from functools import partial

from . import air, changes, images, mixtures, regression, sequences, tutorials

Program = Callable[[Callable, int], Iterator]

PROGRAMS: dict[str, Program] = {
    "svi part 1: coin": tutorials.coin,
    "svi part 2: subsampled plate": tutorials.coin_subsampled,
    "svi part 2: subsampled local latents": tutorials.local_latents_subsampled,
    "svi part 3: no baseline": partial(tutorials.baselines, kind=None),
    "svi part 3: decaying average": partial(tutorials.baselines, kind="decaying average"),
    "svi part 3: baseline network": partial(tutorials.baselines, kind="network"),
    "svi part 3: baseline value": partial(tutorials.baselines, kind="value"),
    "svi part 4: tips": tutorials.tips,
    "custom objective: function": tutorials.custom_function,
    "custom objective: ELBO subclass": tutorials.custom_elbo,
    "objective: TraceMeanField": partial(tutorials.built_in_objectives, loss="mean field"),
    "objective: Renyi": partial(tutorials.built_in_objectives, loss="Renyi"),
    "objective: ReweightedWakeSleep": partial(tutorials.built_in_objectives, loss="wake-sleep"),
    "vae": images.vae,
    "ss_vae_M2": images.ss_vae_m2,
    "ss_vae_M2: auxiliary loss": partial(images.ss_vae_m2, auxiliary=True),
    "ss_vae_M2: parallel enumeration": partial(images.ss_vae_m2, enumerate="parallel"),
    "ss_vae_M2: sequential enumeration": partial(images.ss_vae_m2, enumerate="sequential", auxiliary=True),
    "cvae": images.cvae,
    "scanvi": images.scanvi,
    "pyroVED: keyword trainer": images.keyword_trainer,
    "air": air.air,
    "air: no baseline": partial(air.air, use_baseline=False),
    "gmm": mixtures.gmm,
    "dirichlet process mixture": mixtures.dirichlet_process,
    "lda": mixtures.lda,
    "sparse_gamma_def: custom guide": partial(mixtures.sparse_gamma_def, kind="custom"),
    "sparse_gamma_def: autoguide": partial(mixtures.sparse_gamma_def, kind="auto"),
    "sparse_gamma_def: easyguide": partial(mixtures.sparse_gamma_def, kind="easy"),
    "tracking_1d": mixtures.tracking_1d,
    "dmm": sequences.dmm,
    "hmm: loop over sequences": partial(sequences.hmm, model=sequences.sequential),
    "hmm: plate of sequences": partial(sequences.hmm, model=sequences.batched),
    "hmm: subsampled sequences": partial(sequences.hmm, model=sequences.batched, batch_size=3),
    "hmm: factorial": partial(sequences.hmm, model=sequences.factorial),
    "hmm: network": partial(sequences.hmm, model=sequences.neural),
    "hmm: DiscreteHMM": partial(sequences.hmm, model=sequences.discrete_hmm),
    "hmm: tensor Monte Carlo": partial(sequences.hmm, model=sequences.batched, monte_carlo=True),
    "capture_recapture/cjs: fixed": partial(sequences.cjs, model=sequences.cjs_fixed),
    "capture_recapture/cjs: random effects": partial(sequences.cjs, model=sequences.cjs_random_effects),
    **{f"Bayesian regression: {name}": partial(regression.bayesian_regression, guide=name) for name in regression.AUTOGUIDES},
    "Bayesian regression: AutoDiscreteParallel": regression.discrete_parallel,
    "modules": regression.modules,
    "easyguide": regression.easyguide,
    "eight_schools": regression.eight_schools,
    "gp: full": regression.gp_full,
    "gp: mini-batches": regression.gp_minibatch,
    "cevae": regression.cevae,
    **{f"changes: {what}": partial(changes.attributes, what=what) for what in ("attribute", "dictionary", "list", "global")},
    **{f"changes: store, {what}": partial(changes.parameter_store, what=what) for what in ("load", "clear", "set")},
    "changes: late parameter": changes.late_parameter,
    "changes: frozen midway": changes.frozen_midway,
    "changes: two optimizers": changes.two_optimizers,
    "changes: hook midway": changes.hook_midway,
    "changes: scheduler on a plateau": changes.plateau,
    **{f"values of data: {what}": partial(changes.values_of_data, what=what) for what in ("tolist", "numpy", "branch", "random")},
}
