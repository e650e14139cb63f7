"""Settings, models and checkpoints of strangers: checked whole against their schemas; nothing executes, hangs or leaves the folder.

20,000 cases of each: uv run pytest -m slow tests/test_untrusted.py
"""

import functools
import json
import math
import os
import pickle
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from audit import armed
from conftest import small_vae, with_structure
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch.optim import lr_scheduler

import pyroae as pa
from pyroae import plain_yaml, registry, schema
from pyroae import settings as run_settings
from pyroae.bounded import Bounded
from pyroae.cli import main
from pyroae.training import checkpoints, loop
from pyroae.training.checkpoints import Checkpoints

FEW, MANY = 100, 20_000
COUNTS = [FEW, pytest.param(MANY, marks=pytest.mark.slow)]
X = torch.rand(40, 64, generator=torch.Generator().manual_seed(0)).round()


def many(cases: int):
    return settings(max_examples=cases, deadline=None, database=None, derandomize=cases == FEW, suppress_health_check=list(HealthCheck))


def refused(call, folder) -> bool:
    """Whether a call raises a ``ValueError`` with one sentence; any other exception, import, process or write outside fails."""
    with armed(folder):
        try:
            call()
            return False
        except ValueError as error:
            assert str(error) and len(str(error)) < 2000
            return True


NAMES = st.sampled_from(
    ["class", "scale", "event_shape", "hidden", "of", "elbo", "penalty", "beta", "distribution", "tensor", "dtype", "lr"]
)
CLASSES = st.sampled_from(
    ["Normal", "priors.Laplace", "distributions.Normal", "MLP", "Tempered", "Missing", "Product", "FromPyro", "StepLR", "Adam"]
    + ["os.system", "evil.Prior", "torch.hub.load", "pyroae.runs.shutil.copy", "builtins.exec", "_inductor", "__class__", "my_parts.Mine"]
)
PLAIN = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.integers(-3, 100) | st.floats() | st.text(max_size=8)
VALUES = st.recursive(
    PLAIN | CLASSES | st.sampled_from(["learned", "float32"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=10,
)
SETTINGS = st.dictionaries(st.sampled_from([*run_settings.settings_of("vae"), "config", "recipe", "optimizer.class"]), VALUES, max_size=5)


@pytest.mark.parametrize("cases", COUNTS)
def test_nonsense_in_settings(cases, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, outcomes = tmp_path / "x.yaml", []

    def load():
        checked = run_settings.check(run_settings.read_file(path))
        with Bounded(10**7):
            schema.made(checked)

    path.write_text("prior: {class: Laplace, scale: 0.5}\noptimizer: {class: AdamW, weight_decay: .1}\nlikelihood: Normal\n")
    load()

    @many(cases)
    @given(SETTINGS, st.sampled_from([json.dumps, yaml.safe_dump]))
    def nonsense(content, write):
        path.write_text(write(content), encoding="utf-8", errors="replace")
        outcomes.append(refused(load, tmp_path))

    nonsense()
    assert any(outcomes)


YAML = [
    "{",
    "}",
    "[",
    "]",
    ":",
    ", ",
    "\n",
    "- ",
    "&a ",
    "*a",
    "!!python/object/apply:os.system ",
    "!x ",
    "<<: ",
    "'",
    '"',
    "x",
    "1e3",
    "? ",
]


@pytest.mark.parametrize("cases", COUNTS)
def test_nonsense_as_yaml(cases, tmp_path):
    @many(cases)
    @given(st.lists(st.sampled_from(YAML), max_size=30).map("".join) | st.text(max_size=50))
    def nonsense(text):
        refused(lambda: schema.check_size(plain_yaml.parse(text), "text"), tmp_path)

    nonsense()


@pytest.mark.parametrize("cases", COUNTS)
def test_nonsense_in_a_models_structure(cases, tmp_path):
    path, outcomes = tmp_path / "model.safetensors", []
    parts = {"corruption": pa.corruption.Masking(0.2), "objective": pa.Penalised(pa.penalties.L2())}
    pa.save(small_vae(x=6, z=2, **parts), path)
    good = path.read_bytes()
    pa.load(path)

    @many(cases)
    @given(st.data())
    def nonsense(data):
        path.write_bytes(good)
        with_structure(path, lambda structure: put_somewhere(structure, data))
        outcomes.append(refused(lambda: pa.load(path), tmp_path))

    nonsense()
    assert any(outcomes) and torch.get_default_dtype() == torch.float32


def put_somewhere(place, data):
    """Replace, delete or add something in nested plain data."""
    key = data.draw(st.sampled_from(sorted(place)))
    while isinstance(place[key], dict) and place[key] and data.draw(st.booleans()):
        place = place[key]
        key = data.draw(st.sampled_from(sorted(place)) | NAMES)
        if key not in place:
            break
    if key in place and data.draw(st.booleans()):
        del place[key]
    else:
        place[key] = data.draw(VALUES)


# --- checkpoints ---


def trained(folder, resume=None):
    torch.manual_seed(0)
    return pa.fit(
        small_vae(),
        X,
        validation=X[:10],
        elbo=pa.objectives.Tempered(pa.schedules.Linear(5)),
        scheduler=functools.partial(lr_scheduler.ReduceLROnPlateau, patience=0),
        patience=5,
        epochs=2 if resume is None else 3,
        batch_size=10,
        seed=0,
        compile="eager",
        progress=False,
        run_dir=folder,
        resume=resume,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run in the middle of an epoch, with everything that a checkpoint can hold."""
    folder = tmp_path_factory.mktemp("checkpoints")
    step = loop.Training._step

    def stopping(self, batch):
        step(self, batch)
        if self.step == 6:
            self.asked.set()
            self._stop()

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.Training, "_step", stopping)
        trained(folder)
    return folder


def places(value, path=()):
    """Every place in nested dicts, and the first entries of lists."""
    if path:
        yield path
    if isinstance(value, (dict, list, tuple)):
        for key in list(value if isinstance(value, dict) else range(min(len(value), 3))):
            yield from places(value[key], (*path, key))


def changed(value, path, new, delete=False):
    """Nested dicts and lists with one place changed or deleted."""
    key, *rest = path
    copied = dict(value) if isinstance(value, dict) else list(value)
    if delete and not rest:
        del copied[key]
    else:
        copied[key] = changed(value[key], rest, new, delete) if rest else new
    return copied if isinstance(value, dict) else type(value)(copied)


WRONG = [None, "x", -1, 10**9, 2**70, math.inf, math.nan, torch.zeros(3, 5), torch.zeros(4, dtype=torch.int64), torch.full((), torch.nan)]
WRONG += [[1] * 1000, {"a": 1}, (), True, 0.5, [(10**9, 1)]]


@pytest.mark.parametrize("cases", COUNTS)
def test_a_crafted_checkpoint_goes_on_or_is_refused_in_a_sentence(cases, run, tmp_path):
    """Its checksum is right: whoever writes a file can compute it."""
    good = checkpoints.read(Checkpoints(run).paths()[0])
    every, outcomes = list(places(good)), []
    folder = tmp_path / "run"
    assert trained(None, resume=shutil.copytree(run, tmp_path / "good")).rows

    @many(cases)
    @given(st.sampled_from(every), st.sampled_from(WRONG), st.booleans())
    def craft(path, wrong, delete):
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "checkpoints").mkdir(parents=True)
        checkpoints.write(changed(good, path, wrong, delete), folder / "checkpoints/0000000006.safetensors")
        outcomes.append(refused(lambda: trained(None, resume=folder), tmp_path))

    craft()
    assert any(outcomes)


CRAFTED = {
    "an average of another shape": ("optimizer", "state", 0, "exp_avg"),
    "an average of another dtype": ("optimizer", "state", 1, "exp_avg_sq"),
    "steps that are no number": ("optimizer", "state", 0, "step"),
    "rows of a batch": ("levels", "step"),
    "a setting": ("about", "clip"),
    "weights": ("weights", "model.decoder.0.weight"),
    "best weights": ("best", "epoch"),
    "where NumPy's generator is": ("random", "numpy", 2),
    "where the epoch is": ("batches", "epoch", "given"),
}


@pytest.mark.parametrize("wrong", [torch.zeros(3, 5), -1, 2**70, math.nan, "x"], ids=str)
@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_on_purpose(name, wrong, run, tmp_path):
    good = checkpoints.read(Checkpoints(run).paths()[0])
    (tmp_path / "checkpoints").mkdir()
    checkpoints.write(changed(good, CRAFTED[name], wrong), tmp_path / "checkpoints/0000000006.safetensors")
    with pytest.raises(ValueError, match="fit: the (checkpoint cannot be used: expected|run to go on with)"):
        trained(None, resume=tmp_path)


def test_a_history_longer_than_the_run_is_not_gone_through(run, tmp_path):
    state = checkpoints.read(Checkpoints(run).paths()[0])
    (tmp_path / "checkpoints").mkdir()
    checkpoints.write(state | {"history": state["history"][:1] * 20_000}, tmp_path / "checkpoints/0000000006.safetensors")
    with pytest.raises(ValueError, match="expected history as at most 1 rows, one for each finished epoch"):
        trained(None, resume=tmp_path)


@pytest.mark.parametrize("there", [None, torch.zeros(16, dtype=torch.uint8)], ids=["from a CPU", "from a GPU"])
def test_a_run_goes_on_on_another_device(there, run, tmp_path):
    """A GPU's random numbers are in a checkpoint of a GPU only."""
    state = checkpoints.read(Checkpoints(run).paths()[0])
    places = [state["random"], *(state["batches"]["epoch"][name] for name in ("order", "block"))]
    for place in places:
        place["device"] = None if there is None else there.clone()
    (tmp_path / "checkpoints").mkdir()
    checkpoints.write(state, tmp_path / "checkpoints/0000000006.safetensors")
    as_before = trained(None, resume=shutil.copytree(run, tmp_path / "as before")).loss
    assert trained(None, resume=tmp_path).loss == as_before


# --- links ---


@pytest.mark.parametrize("file", ["checkpoints", "model.safetensors", "settings.json", "epoch-0002", "history.csv"])
def test_links_out_of_a_runs_folder_are_not_followed(file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--epochs", "1", "--particles", "2", "--hidden", "8", "--out", "run"]) == 0
    outside, inside = tmp_path / "outside", tmp_path / "run" / file
    if inside.exists():
        inside.rename(outside)
    else:
        outside.mkdir()
    inside.symlink_to(outside)
    before = sorted((path, path.stat().st_mtime_ns) for path in [outside, *outside.rglob("*")])
    capsys.readouterr()
    for command in (
        ["train", "--resume", "run", "--epochs", "3", "--pictures", "2"],
        ["evaluate", "run", "--particles", "2"],
        ["report", "run"],
    ):
        assert main(command) == 2 and "is a link to" in capsys.readouterr().err
    assert sorted((path, path.stat().st_mtime_ns) for path in [outside, *outside.rglob("*")]) == before


def test_what_killed_runs_leave_is_removed_when_they_go_on(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for name in (".filters-ab12.tmp.png", "checkpoints/.0000000004-xy.tmp.safetensors"):
        (tmp_path / name).write_bytes(b"half")
    trained(tmp_path)
    assert [path for path in tmp_path.rglob("*.tmp.*")] == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn], ids=str)
def test_a_run_whose_model_has_another_float_type_is_evaluated(dtype, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--epochs", "1", "--particles", "2", "--hidden", "8", "--out", "run"]) == 0
    path = tmp_path / "run/model.safetensors"
    with safe_open(path, "pt") as file:
        header, weights = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
    save_file({name: weight.to(dtype) for name, weight in weights.items()}, path, header)
    assert main(["evaluate", "run", "--particles", "2"]) == 0, capsys.readouterr().err
    save_file({name: torch.full_like(weight, torch.nan) for name, weight in weights.items()}, path, header)
    assert main(["evaluate", "run", "--particles", "2"]) == 2 and "not finite" in capsys.readouterr().err


AUDITED = {
    "an import": lambda folder: __import__("evil"),
    "code of a file": lambda folder: exec(compile("x = 1", str(folder / "evil.py"), "exec")),
    "code of a text": lambda folder: exec("x = 1"),
    "a process": lambda folder: subprocess.run(["true"]),
    "a shell": lambda folder: os.system("true"),
    "a pickle": lambda folder: pickle.loads(b"cos\nsystem\n."),
    "a file outside": lambda folder: (folder.parent / "outside").write_text(""),
    "a folder outside": lambda folder: (folder.parent / "outside").mkdir(),
}


@pytest.mark.parametrize("name", AUDITED)
def test_the_audit_hook_sees(name, tmp_path):
    (tmp_path / "here").mkdir()
    with pytest.raises((RuntimeError, AssertionError)), armed(tmp_path / "here"):
        AUDITED[name](tmp_path / "here")
    with armed(tmp_path / "here"):
        (tmp_path / "here/inside").write_text("")
    assert not (tmp_path / "outside").exists()


def test_every_class_of_the_table_states_what_a_file_can_give(tmp_path):
    ours = ("priors", "likelihoods", "posteriors", "nets", "conditions", "corruption", "objectives", "penalties", "schedules")
    with armed(tmp_path):  # torch writes some types as text, which is not evaluated here
        for kind in (*ours, "distributions", "transforms", "optimizers", "schedulers", "activations"):
            for cls in registry.members(kind).values():
                for name, parameter in registry.parameters(cls).items():
                    assert schema.words(parameter.annotation) or kind not in ours, (cls, name)
    assert "SpanningTree" not in registry.members("distributions")  # it can compile C++
    assert "evil" not in sys.modules
