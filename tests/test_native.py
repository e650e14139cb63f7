"""Native code of compiled graphs: kept in the user's own folder, used again only if it is the same, intact and nobody else's."""

import functools
import logging
import os

import pyro
import pytest
import torch
from conftest import small_vae
from pyro import distributions as dist
from pyro.infer import TraceMeanField_ELBO

import pyroae as pa
from pyroae.training.step import background, native, timing


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PYROAE_GRAPHS", str(tmp_path / "graphs"))
    return tmp_path / "graphs"


@pytest.fixture
def uncompiled(monkeypatch):
    """Compiling takes no time: a graph runs with torch's kernels, and is kept as bytes; the keys that were compiled and loaded."""
    made, loaded, modules = [], [], {}

    def package(path):
        loaded.append(path.name.partition("-")[0])
        return lambda inputs: modules[loaded[-1]](*inputs)

    def compiled(module, inputs, key):
        made.append(key)
        modules[key] = module
        if key:
            native._keep(key, b"code")
        return lambda inputs: module(*inputs)

    monkeypatch.setattr(native, "_package", package)
    monkeypatch.setattr(native, "compiled", compiled)
    return made, loaded


def steps(mode="compiled", n=6, optimizer=None, **options):
    torch.manual_seed(0)
    ae = small_vae()
    make = optimizer or (lambda parameters: torch.optim.Adam(parameters, lr=1e-3))
    svi = pa.SVI(ae.model, ae.guide, make(ae.parameters()), TraceMeanField_ELBO(), compile=mode, **options)
    x = torch.rand(16, 64).round()
    return [svi.step(x) for _ in range(n)], svi


def test_a_second_run_loads_what_the_first_has_compiled(folder, monkeypatch):
    first, svi = steps()
    assert svi.levels()["step"][0][1] == 2 and len(list(folder.glob("*.pt2"))) == 1
    monkeypatch.setattr(native, "compiled", lambda *args: pytest.fail("compiled again"))
    again, svi = steps()
    assert again == first and svi.levels()["step"][0][1] == 2


@pytest.mark.slow
def test_an_operation_that_fails_raises_its_own_error(folder):
    """Cholesky's factor of a matrix that is not positive definite, after some steps; native code only says that it failed."""
    shift = torch.zeros(())

    def model(x):
        scale = pyro.param("scale", torch.eye(3))
        tril = torch.linalg.cholesky(scale @ scale.T + shift * torch.eye(3))
        pyro.sample("z", dist.MultivariateNormal(torch.zeros(3), scale_tril=tril, validate_args=False))

    def guide(x):
        pyro.sample("z", dist.Delta(pyro.param("at", torch.ones(3)), event_dim=1))

    pyro.clear_param_store()
    svi = pa.SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), pyro.infer.Trace_ELBO(), compile="compiled")
    for _ in range(6):
        svi.step(torch.zeros(1))
    assert svi.levels()["step"][0][1] == 2
    shift.fill_(-5.0)
    with pytest.raises(torch.linalg.LinAlgError, match="not positive-definite"):
        for _ in range(3):
            svi.step(torch.zeros(1))


OTHER = {
    "the program": {"optimizer": None, "model": lambda: small_vae(prior=pa.priors.Laplace(4))},
    "its constants": {"model": lambda: small_vae(likelihood=pa.likelihoods.Normal(64, scale=0.5))},
    "the optimizer": {"optimizer": lambda parameters: torch.optim.Adam(parameters, amsgrad=True)},
    "another kind of optimizer": {"optimizer": lambda parameters: torch.optim.AdamW(parameters)},
    "Pyro's optimizer": {"optimizer": lambda parameters: pyro.optim.Adam({"lr": 1e-3})},
    "the batch": {"rows": 8},
    "float64": {"dtype": torch.float64},
}


@pytest.mark.parametrize("name", OTHER)
def test_another_graph_is_compiled_anew(folder, uncompiled, name):
    def run(model=small_vae, optimizer=None, rows=16, dtype=torch.float32):
        torch.manual_seed(0)
        ae = model().to(dtype)
        made = optimizer(ae.parameters()) if optimizer else torch.optim.Adam(ae.parameters())
        svi = pa.SVI(ae.model, ae.guide, made, TraceMeanField_ELBO(), compile="compiled")
        x = torch.rand(rows, 64, dtype=dtype).round()
        for _ in range(4):
            svi.step(x)
        assert svi.levels()["step"][0][1] == 2

    made, loaded = uncompiled
    run()
    run()
    assert len(made) == 1 and made == loaded
    run(**OTHER[name])
    assert len(set(made)) == 2


@pytest.mark.parametrize("precision", ["highest", "high", "medium", "bf16"])
def test_every_precision_has_its_own_code(folder, uncompiled, precision):
    assert steps(pa.Step("compiled", precision=precision))[1].levels()["step"][0][1] == 2
    steps(pa.Step("compiled", precision=precision))
    steps(pa.Step("compiled", precision="highest"))
    assert len(uncompiled[0]) == (1 if precision == "highest" else 2)


def test_learning_rates_and_their_schedules_share_a_graph(folder, uncompiled):
    steps()
    for decay, graphs in ((0.0, 1), (0.1, 2), (0.2, 2)):  # a graph without decay leaves it out
        steps(optimizer=functools.partial(torch.optim.Adam, lr=0.5 + decay, betas=(0.8, 0.9), weight_decay=decay))
        assert len(uncompiled[0]) == graphs


def keep(folder):
    steps()
    (path,) = folder.glob("*.pt2")
    return path


def by_somebody_else(folder, path, monkeypatch):
    me = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: me + 1)


DAMAGE = {
    "changed": lambda folder, path, _: path.write_bytes(b"other code"),
    "writable by others": lambda folder, path, _: path.chmod(0o666),
    "a link": lambda folder, path, _: (path.rename(folder / "elsewhere"), path.symlink_to(folder / "elsewhere")),
    "a folder writable by others": lambda folder, path, _: folder.chmod(0o777),
    "a folder that is a link": lambda folder, path, _: (folder.rename(folder.parent / "x"), folder.symlink_to(folder.parent / "x")),
    "somebody else's": by_somebody_else,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_code_that_somebody_else_can_have_written_is_never_loaded(folder, uncompiled, damage, monkeypatch, caplog):
    made, loaded = uncompiled
    DAMAGE[damage](folder, keep(folder), monkeypatch)
    with caplog.at_level(logging.WARNING, "pyroae"):
        _, svi = steps()
    assert len(made) == 2 and not loaded and svi.levels()["step"][0][1] == 2
    assert "compile: " in caplog.text and str(folder) in caplog.text


def test_a_file_that_torch_cannot_load_is_made_again(folder, monkeypatch, caplog):
    monkeypatch.setattr(native, "compiled", lambda module, inputs, key: native._keep(key, b"no package") and (lambda i: module(*i)))
    keep(folder)
    with caplog.at_level(logging.WARNING, "pyroae"):
        steps()
    assert "is deleted and made again" in caplog.text and len(list(folder.glob("*.pt2"))) == 1


def test_the_folder_stays_below_its_limit(folder, monkeypatch):
    monkeypatch.setattr(native, "LIMIT", 25)
    for i, name in enumerate("abc"):
        os.utime(native._keep(name, bytes(10)), (i, i))
    native._keep("d", bytes(10))
    assert sorted(path.name[0] for path in folder.glob("*.pt2")) == ["c", "d"]


def test_keeping_can_be_turned_off(folder, uncompiled, monkeypatch):
    monkeypatch.setenv("PYROAE_GRAPHS", "off")
    steps()
    assert uncompiled[0] == [None] and not folder.exists()


def test_without_packages_inductor_compiles_for_this_process(folder, monkeypatch):
    import torch._inductor

    def missing(*args, **options):
        raise AttributeError("no such function in this torch")

    monkeypatch.setattr(torch._inductor, "aot_compile", missing)
    monkeypatch.setattr(torch._inductor, "compile", lambda module, inputs, options: module)
    assert steps()[1].levels()["step"][0][1] == 2 and not folder.exists()


@pytest.fixture
def eager_to_compile(monkeypatch):
    monkeypatch.setattr(timing, "_COST", {"traced": (0.0, 0.0), "compiled": (0.0, 0.0)})
    monkeypatch.setattr(timing, "_LOADING", 0.0)
    monkeypatch.setattr(background, "has_spare_core", lambda: True)


@pytest.mark.slow
def test_auto_goes_on_while_another_process_compiles(folder, eager_to_compile, monkeypatch):
    """With a real compiler: the results are those of a compiled run from the same step on, to rounding."""
    monkeypatch.setattr(native, "compiled", lambda *args: pytest.fail("compiled here"))
    losses, svi = steps("auto", 40, steps=10**6)
    (spec,) = svi._gradients.specializations
    assert spec.level == 1 and spec.compiler
    spec.compiler.wait(300)
    x = torch.rand(16, 64).round()
    for _ in range(3):
        svi.step(x)
    assert spec.level == 2 and len(list(folder.glob("*.pt2"))) == 1


class Compiler:
    """A process that has compiled nothing yet."""

    def __init__(self, *given):
        self.given, self.ended = given, None

    def poll(self):
        return self.ended


def test_auto_loads_what_another_process_has_compiled(folder, uncompiled, eager_to_compile, monkeypatch):
    made, loaded = uncompiled
    shown = []
    monkeypatch.setattr(background, "start", Compiler)
    torch.manual_seed(0)
    ae, x = small_vae(), torch.rand(16, 64).round()
    svi = pa.SVI(ae.model, ae.guide, torch.optim.Adam(ae.parameters()), TraceMeanField_ELBO(), steps=10**6)
    svi.announce_to(shown.append)
    for _ in range(40):
        svi.step(x)
    (spec,) = svi._gradients.specializations
    assert spec.level == 1 and not made and shown == ["traced", "elsewhere"]
    module, inputs, key = spec.compiler.given
    native.compiled(module, inputs, key)
    spec.compiler.ended = 0
    for _ in range(3):
        svi.step(x)
    assert spec.level == 2 and loaded == [key] and shown == ["traced", "elsewhere", "loaded"]


def test_graphs_are_compiled_one_after_another_where_there_is_one_core_to_spare(folder, uncompiled, eager_to_compile, monkeypatch):
    started = []

    def start(*given):
        started.append(Compiler(*given))
        background._running.add(started[-1])
        return started[-1]

    monkeypatch.setattr(background, "start", start)
    monkeypatch.setattr(background, "_running", set())
    monkeypatch.setattr(background, "_cores", lambda: 2)
    torch.manual_seed(0)
    ae, x = small_vae(), torch.rand(16, 64).round()
    svi = pa.SVI(ae.model, ae.guide, torch.optim.Adam(ae.parameters()), TraceMeanField_ELBO(), steps=10**6)
    for _ in range(40):
        svi.step(x)
        svi.step(x[:5])
    assert len(started) == 1
    started[0].ended = 1  # it has failed
    for _ in range(3):
        svi.step(x[:5])
    assert len(started) == 2 and background._running == {started[1]}


def test_auto_stays_traced_where_the_other_process_fails(folder, uncompiled, eager_to_compile, monkeypatch, caplog):
    def failed(*given):
        compiler = Compiler(*given)
        compiler.ended = 1
        return compiler

    monkeypatch.setattr(background, "start", failed)
    _, svi = steps("auto", 40, steps=10**6)
    assert svi.levels()["step"][0][1] == 1 and not uncompiled[0] and "the process that compiles it has failed" in caplog.text


def test_auto_compiles_here_without_a_core_to_spare(folder, uncompiled, eager_to_compile, monkeypatch):
    monkeypatch.setattr(background, "has_spare_core", lambda: False)
    assert steps("auto", 40, steps=10**6)[1].levels()["step"][0][1] == 2 and len(uncompiled[0]) == 1


def test_auto_uses_kept_code_as_soon_as_it_has_a_graph(folder, uncompiled, monkeypatch):
    monkeypatch.setattr(timing, "_COST", {"traced": (0.0, 0.0), "compiled": (1e9, 0.0)})
    monkeypatch.setattr(timing, "_LOADING", 0.0)
    assert steps("auto", 40, steps=10**6)[1].levels()["step"][0][1] == 1  # compiling would not pay
    keep(folder)
    torch.manual_seed(0)
    ae, x, shown = small_vae(), torch.rand(16, 64).round(), []
    svi = pa.SVI(ae.model, ae.guide, torch.optim.Adam(ae.parameters()), TraceMeanField_ELBO(), steps=10**6)
    for step in range(40):
        svi.announce_to(lambda name, step=step: shown.append((step, name)))
        svi.step(x)
    (traced, first), (loaded, second) = shown
    assert (first, second) == ("traced", "loaded") and loaded == traced + 1  # no call of the traced graph is timed


def test_auto_traces_earlier_where_native_code_of_such_calls_was_used_before(folder, uncompiled, monkeypatch):
    """Which tracing alone would not repay."""
    monkeypatch.setattr(timing, "_COST", {"traced": (1e-6, 0.0), "compiled": (1e9, 0.0)})
    monkeypatch.setattr(timing, "_AROUND", 0.0)
    monkeypatch.setattr(timing, "_LOADING", 0.0)
    level = lambda **parts: steps("auto", 40, steps=10**6, **parts)[1].levels()["step"]  # noqa: E731
    assert level() == []
    keep(folder)
    assert level()[0][1] == 2 and len(list(folder.glob("*.seen"))) == 1
    monkeypatch.setenv("PYROAE_GRAPHS", "off")
    assert level() == []
