"""Files of strangers: settings, models, checkpoints and data are checked whole against their schemas; nothing in them executes.

First the attacks one by one, then random files under an audit hook (``audit.py``). Sizes are in ``test_limits.py``, damaged files in
``test_fuzz.py``. 20,000 random files of each kind:

    uv run pytest -n 0 -m slow tests/test_security.py
"""

import functools
import io
import json
import math
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from audit import armed
from conftest import small_vae, with_structure
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyro import distributions as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch.optim import lr_scheduler

import pyroae as pa
from pyroae import registry, schema
from pyroae.bounded import Bounded
from pyroae.cli import main
from pyroae.experiment import plain_yaml
from pyroae.experiment import settings as run_settings
from pyroae.experiment.scoring import score
from pyroae.training import checkpoints, loop
from pyroae.training.checkpoints import Checkpoints


class Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, proof):
        self.proof = str(proof)

    def __reduce__(self):
        return os.mkdir, (self.proof,)


def pickled(proof) -> bytes:
    return pickle.dumps(Payload(proof))


def of_torch(proof) -> bytes:
    content = io.BytesIO()
    torch.save({"weights": Payload(proof)}, content)
    return content.getvalue()


def of_torch_once(proof) -> bytes:
    content = io.BytesIO()
    torch.save({"weights": Payload(proof)}, content, _use_new_zipfile_serialization=False)
    return content.getvalue()


def npy(proof) -> bytes:
    content = io.BytesIO()
    np.save(content, np.array([[Payload(proof)]], dtype=object), allow_pickle=True)
    return content.getvalue()


def npz(proof) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("train.npy", npy(proof))
    return content.getvalue()


PICKLES = [pickled, of_torch, of_torch_once, npy, npz]


@pytest.fixture
def proof(tmp_path):
    """What a payload would make; it is not there after the test."""
    yield tmp_path / "executed"
    assert not (tmp_path / "executed").exists()


def test_a_payload_would_execute(tmp_path):
    loaders = {pickled: pickle.loads, of_torch: lambda content: torch.load(io.BytesIO(content), weights_only=False)}
    for make, load in loaders.items():
        load(make(tmp_path / "executed"))
        (tmp_path / "executed").rmdir()


SUFFIXES = ["npy", "npz", "csv", "parquet", "arrow", "feather", "pt", "pth", "pkl", "png", "mat"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("make", PICKLES, ids=lambda make: make.__name__)
def test_no_data_file_is_unpickled(make, suffix, tmp_path, proof):
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / f"x.{suffix}"
    path.write_bytes(make(proof))
    with pytest.raises(ValueError):
        pa.data.load(path.parent if suffix == "png" else path)


@pytest.mark.parametrize("name, file", [("binarized-mnist", "binarized_mnist/binarized_mnist.npz"), ("omniglot", "chardata.mat")])
@pytest.mark.parametrize("make", PICKLES, ids=lambda make: make.__name__)
def test_no_named_data_set_is_unpickled(make, name, file, tmp_path, proof, monkeypatch):
    monkeypatch.setenv("PYROAE_DATA", str(tmp_path))
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(make(proof))
    with pytest.raises(ValueError):
        pa.data.load(name)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A small run."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", "--epochs", "1", "--particles", "5", "--out", str(folder)]) == 0
    return folder


@pytest.mark.parametrize("make", [pickled, of_torch], ids=lambda make: make.__name__)
def test_no_file_of_a_run_is_unpickled(make, run_folder, tmp_path, proof, monkeypatch, capsys):
    """Each file of a run in turn is a pickle, under its own name, for every command that reads it."""
    monkeypatch.chdir(tmp_path)
    for file in sorted(path.relative_to(run_folder) for path in run_folder.rglob("*") if path.suffix in (".safetensors", ".json", ".csv")):
        folder = shutil.copytree(run_folder, tmp_path / str(file) / "run")
        (folder / file).write_bytes(make(proof))
        must = file.name in ("model.safetensors", "settings.json")
        scores = [["evaluate", str(folder), "--particles", "5"], ["compare", str(folder), str(run_folder), "--particles", "5"]]
        on = ["train", "--resume", str(folder), "--epochs", "2", "--particles", "5"]
        for command in [on] if file.parent.name == "checkpoints" else scores if must else scores[:1]:
            code = main(command)
            assert code == 2 if must else code in (0, 2), (file, command)
            assert "Traceback" not in capsys.readouterr().err
        assert main(["train", "--config", str(folder / file), "--epochs", "1", "--out", str(tmp_path / "other")]) == 2 or not must


OF_TENSOR = "prior: {{class: FromDistribution, distribution: {{class: Delta, v: {{tensor: [{}], dtype: {}}}}}}}"
SETTINGS = {
    "a module to import": "prior: {class: evil.Prior}",
    "a module by its name alone": "prior: evil.Prior",
    "a module inside a part": "objective: {class: Penalised, penalty: {class: evil.Penalty}}",
    "a function as an optimizer": "optimizer: {class: os.system, command: touch executed}",
    "the same as text": """optimizer: '{"class": "os.system", "command": "touch executed"}'""",
    "the same as text of another parser": """optimizer: '{"class_path": "os.system", "init_args": {"command": "touch executed"}}'""",
    "a part as text": """prior: '{"class_path": "evil.Prior"}'""",
    "the same in one line": "optimizer.class: os.system",
    "a function of our own imports": "optimizer: {class: pyroae.experiment.train.shutil.copy, src: x.yaml, dst: executed}",
    "a function of torch's": "optimizer: {class: torch.hub.load, repo_or_dir: ., source: local, model: x}",
    "a module of torch's that is a program": "optimizer: torch.utils.model_dump.__main__.Adam",
    "a module of ours that is a program": "prior: pyroae.__main__.Normal",
    "a process as a scheduler": "scheduler: {class: subprocess.Popen, args: [touch, executed]}",
    "a tag of YAML's": '!!python/object/apply:os.system ["touch executed"]',
    "a tag inside": "prior: !!python/name:evil.Prior",
    "another file": "config: other.yaml",
    "a folder above": "out: ../outside",
    "a folder elsewhere": "out: /tmp/pyroae-outside",
    "a folder through a link": "out: link/x",
    "many doubling anchors": "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 29)),
    "deep lists": "hidden: " + "[" * 2000 + "]" * 2000,
    "more than a megabyte": "data: " + "x" * 2**20,
    "a name twice": "epochs: 1\nepochs: 2",
    "text for a number": "epochs: many",
    "a number for text": "data: 12",
    "a list for a number": "lr: [1]",
    "NaN": '{"lr": NaN}',
    "a whole number that no float can hold": '{"limit": 1' + "0" * 400 + "}",
    "one of more digits than Python reads": '{"seed": 1' + "0" * 5000 + "}",
    "one in a tensor": OF_TENSOR.format("1" + "0" * 350, "float32"),
    "a tensor that its type cannot hold": OF_TENSOR.format("1e9", "float16"),
    "a type of tensors that is a module": OF_TENSOR.format("1", "_inductor"),
    "a document after the first": "epochs: 1\n---\nepochs: 2",
    "a merge of mappings": "<<: {epochs: 1}",
    "a mapping as a name": "{{a: 1}: 2}",
    "another run": "resume: run",
    "a module to use": "use: evil",
    "a pipe or a device as data": "data: /dev/zero",
    "data from the network": "data: http://127.0.0.1:9/x.csv",
    "a number too large": '{"epochs": 1e999}',
    "a part's unknown argument": "prior: {class: Normal, command: x}",
    "no mapping": "[1, 2]",
    "a limit that nothing keeps": "limit: -1",
    "a name that no file can have": '{"data": "a\\u0000b.csv"}',
    "another one": '{"data": "\\ud800.csv"}',
    "one too long": "data: " + "x" * 900 + ".csv",
    "a name of the run's folder that no file can have": '{"out": "a\\u0000b"}',
    "a tag by a directive": "%TAG ! tag:yaml.org,2002:python/\n---\noptimizer: !object/apply:os.system [touch executed]",
    "a tag in full": "optimizer: !<tag:yaml.org,2002:python/object/apply:os.system> [touch executed]",
    "another encoding": "epochs: 1\0",
    "a distribution that compiles C++": "prior: {class: FromPyro, family: SpanningTree, event_shape: 3}",
    "an option of pandas that reads another file": "data: x.csv\ncsv: {filepath_or_buffer: /etc/passwd}",
    "a separator that takes for ever": "data: x.csv\ncsv: {sep: (a+)+$}",
    "a part around one that it does not fit": "likelihood: {class: Standardised, of: GreyLevels}",
    "a device of another program": "device: 'privateuseone:0'",
    "a device without numbers": "device: meta",
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("way", ["--config", "--resume", "two files"])
def test_a_settings_file_imports_calls_and_reaches_nothing(name, way, tmp_path, monkeypatch, capsys):
    (tmp_path / "here/run").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "here/link").symlink_to(tmp_path / "outside")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.syspath_prepend(tmp_path / "here")
    (tmp_path / "here/evil.py").write_text("open('executed', 'w')")
    (tmp_path / "here/other.yaml").write_text("epochs: 1")
    (tmp_path / "here/x.csv").write_text(f"{'a' * 40}!,b\n" + f"{'a' * 40}!,1\n" * 20)
    for file in ("x.yaml", "run/settings.json"):
        (tmp_path / "here" / file).write_text(SETTINGS[name])
    files = {"--config": ["--config", "x.yaml"], "--resume": ["--resume", "run"], "two files": ["--config", "x.yaml", "--config", "none"]}
    assert main(["train", *files[way], "--particles", "2"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("pyroae: ") and len(error.splitlines()) == 1 and len(error) < 1000
    assert not (tmp_path / "here/executed").exists() and "evil" not in sys.modules and not [*(tmp_path / "outside").iterdir()]


@pytest.mark.parametrize(
    "name", ["a\0b.csv", "\ud800.csv", "x" * 900 + ".csv", "x" * 900], ids=["null", "half a character", "long", "no suffix"]
)
def test_a_name_that_no_file_can_have(name):
    with pytest.raises(ValueError, match="^data: "):
        pa.data.load(name)


OWN = """
import pyroae as pa
from pyro import distributions as dist


@pa.register("likelihoods")
class Heavy(pa.likelihoods.Likelihood):
    def __init__(self, event_shape=None, scale: float | str = "learned"):
        super().__init__(dist.Cauchy, event_shape, scale=scale)
"""


def test_a_class_of_ones_own_is_brought_by_the_command_line(tmp_path):
    """In processes of their own: found in the current folder when it is named, refused in a sentence when only a file names it."""
    (tmp_path / "my_parts.py").write_text(OWN)

    def pyroae(*argv):
        done = subprocess.run([sys.executable, "-m", "pyroae", *argv], cwd=tmp_path, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    quick = ["--epochs", "1", "--particles", "5"]
    code, said = pyroae("train", "--likelihood", "my_parts.Heavy", "--likelihood.scale", ".3", *quick, "--out", "run")
    assert code == 0, said
    for command in (["evaluate", "run", "--particles", "5"], ["train", "--resume", "run"], ["train", "--config", "run/settings.json"]):
        code, said = pyroae(*command)
        assert code == 2 and "--use my_parts" in said and "Traceback" not in said, said
    for command in (["evaluate", "run", "--particles", "5"], ["train", "--resume", "run", "--epochs", "2"], ["report", "run"]):
        code, said = pyroae(*command, "--use", "my_parts")
        assert code == 0, said
    assert "my_parts.Heavy" in pyroae("parts", "likelihood", "--use", "my_parts")[1]
    assert pyroae("train", "--use", "nowhere")[0] == 2


def likelihood_of(module):
    class SideBySide(pa.likelihoods.Likelihood):
        def __init__(self, event_shape=None):
            super().__init__(dist.Laplace, event_shape, scale=1.0)

    SideBySide.__module__ = module
    return pa.register("likelihoods")(SideBySide)


def test_classes_of_one_name_from_two_modules_are_not_taken_for_each_other(tmp_path, monkeypatch):
    monkeypatch.setitem(registry._TABLE, "likelihoods", dict(registry.members("likelihoods")))
    first = likelihood_of("one_module")
    assert registry.find("likelihoods", "SideBySide") is first
    second = likelihood_of("another.module")
    for cls in (first, second):
        pa.save(small_vae(likelihood=cls(64)), tmp_path / "model.safetensors")
        assert type(pa.load(tmp_path / "model.safetensors").likelihood) is cls
        assert registry.find("likelihoods", f"{cls.__module__}.SideBySide") is cls
    with pytest.raises(ValueError, match="expected one likelihood 'SideBySide', got 2: choose another.module.SideBySide or one_mod"):
        registry.find("likelihoods", "SideBySide")
    with pytest.raises(ValueError, match="--use third"):
        registry.find("likelihoods", "third.SideBySide")


# --- random settings and models ---

FEW, MANY = 100, int(os.environ.get("PYROAE_CASES", "20000"))
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
    + ["os.system", "evil.Prior", "torch.hub.load", "pyroae.experiment.train.shutil.copy"]
    + ["builtins.exec", "_inductor", "__class__", "my_parts.Mine"]
)
NUMBERS = st.integers(-(2**70), 2**70) | st.just(10**400) | st.integers(-3, 100) | st.floats()
PLAIN = st.none() | st.booleans() | NUMBERS | st.text(max_size=8)
VALUES = st.recursive(
    PLAIN | CLASSES | st.sampled_from(["learned", "float32"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=10,
)
RANDOM_SETTINGS = st.dictionaries(
    st.sampled_from([*run_settings.settings_of("vae"), "config", "recipe", "optimizer.class"]), VALUES, max_size=5
)


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
    @given(RANDOM_SETTINGS, st.sampled_from([json.dumps, yaml.safe_dump]))
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


def trained(folder, resume=False):
    torch.manual_seed(0)
    return pa.fit(
        small_vae(),
        X,
        validation=pa.Validation(X[:10], patience=5),
        elbo=pa.objectives.Tempered(pa.schedules.Linear(5)),
        scheduler=functools.partial(lr_scheduler.ReduceLROnPlateau, patience=0),
        epochs=3 if resume else 2,
        batch_size=10,
        seed=0,
        compile="eager",
        progress=False,
        run=pa.Run(folder, resume=resume),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run in the middle of an epoch, with everything that a checkpoint can hold."""
    folder = tmp_path_factory.mktemp("checkpoints")
    after_step = loop.Training._after_step

    def stopping(self):
        after_step(self)
        if self.step == 6:
            self.stop_requested.set()
            self._stop()

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.Training, "_after_step", stopping)
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


WRONG = [None, "x", -1, 10**9, 2**70, 10**400, math.inf, math.nan]
WRONG += [torch.zeros(3, 5), torch.zeros(4, dtype=torch.int64), torch.full((), torch.nan)]
WRONG += [[1] * 1000, {"a": 1}, (), True, 0.5, [(10**9, 1)]]


@pytest.mark.parametrize("cases", COUNTS)
def test_a_crafted_checkpoint_goes_on_or_is_refused_in_a_sentence(cases, run, tmp_path):
    """Its checksum is right: whoever writes a file can compute it."""
    good = checkpoints.read(Checkpoints(run).paths()[0])
    every, outcomes = list(places(good)), []
    folder = tmp_path / "run"
    assert trained(shutil.copytree(run, tmp_path / "good"), resume=True).rows

    @many(cases)
    @given(st.sampled_from(every), st.sampled_from(WRONG), st.booleans())
    def craft(path, wrong, delete):
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "checkpoints").mkdir(parents=True)
        checkpoints.write(changed(good, path, wrong, delete), folder / "checkpoints/0000000006.safetensors")
        outcomes.append(refused(lambda: trained(folder, resume=True), tmp_path))

    craft()
    assert any(outcomes)


CRAFTED = {
    "an average of another shape": ("optimizer", "state", 0, "exp_avg"),
    "an average of another dtype": ("optimizer", "state", 1, "exp_avg_sq"),
    "a step that is not a number": ("optimizer", "state", 0, "step"),
    "rows of a batch": ("levels", "step"),
    "a setting": ("about", "clip"),
    "weights": ("weights", "model.decoder.0.weight"),
    "best weights": ("best", "epoch"),
    "where NumPy's generator is": ("random", "numpy", 2),
    "where the epoch is": ("batches", "epoch", "given"),
}


@pytest.mark.parametrize("wrong", [torch.zeros(3, 5), -1, 2**70, 10**400, math.nan, "x"], ids=lambda wrong: str(wrong)[:30])
@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_on_purpose(name, wrong, run, tmp_path):
    good = checkpoints.read(Checkpoints(run).paths()[0])
    (tmp_path / "checkpoints").mkdir()
    checkpoints.write(changed(good, CRAFTED[name], wrong), tmp_path / "checkpoints/0000000006.safetensors")
    with pytest.raises(ValueError, match="fit: the (checkpoint cannot be used: expected|run to resume)"):
        trained(tmp_path, resume=True)


def test_a_history_longer_than_the_run_is_not_gone_through(run, tmp_path):
    state = checkpoints.read(Checkpoints(run).paths()[0])
    (tmp_path / "checkpoints").mkdir()
    checkpoints.write(state | {"history": state["history"][:1] * 20_000}, tmp_path / "checkpoints/0000000006.safetensors")
    with pytest.raises(ValueError, match="expected history as at most 1 rows, one for each finished epoch"):
        trained(tmp_path, resume=True)


@pytest.mark.parametrize("there", [None, torch.zeros(16, dtype=torch.uint8)], ids=["from a CPU", "from a GPU"])
def test_a_run_goes_on_on_another_device(there, run, tmp_path):
    """A GPU's random numbers are in a checkpoint of a GPU only."""
    state = checkpoints.read(Checkpoints(run).paths()[0])
    places = [state["random"], *(state["batches"]["epoch"][name] for name in ("order", "block"))]
    for place in places:
        place["device"] = None if there is None else there.clone()
    (tmp_path / "checkpoints").mkdir()
    checkpoints.write(state, tmp_path / "checkpoints/0000000006.safetensors")
    as_before = trained(shutil.copytree(run, tmp_path / "as before"), resume=True).loss
    assert trained(tmp_path, resume=True).loss == as_before


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
        ["train", "--resume", "run", "--epochs", "3", "--figures_every", "2"],
        ["evaluate", "run", "--particles", "2"],
        ["report", "run"],
    ):
        assert main(command) == 2 and "is a link to" in capsys.readouterr().err
    assert sorted((path, path.stat().st_mtime_ns) for path in [outside, *outside.rglob("*")]) == before


@pytest.mark.parametrize(
    "file", ["settings.json", "model.safetensors", "history.csv", "checkpoints/.lock", "checkpoints/9999999999.safetensors"]
)
def test_links_in_a_circle_are_one_sentence(file, run_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run_folder, "run")
    (tmp_path / "run" / file).unlink(missing_ok=True)
    (tmp_path / "run" / file).symlink_to(Path(file).name)
    (tmp_path / "x.yaml").write_text("out: circle/x\nepochs: 1\nparticles: 2")
    (tmp_path / "circle").symlink_to("circle")
    capsys.readouterr()
    for command in (
        ["train", "--resume", "run", "--epochs", "2"],
        ["evaluate", "run", "--particles", "2"],
        ["train", "--config", "x.yaml"],
    ):
        code, said = main(command), capsys.readouterr().err
        assert (code, said.count("pyroae: ")) in ((0, 0), (2, 1)), said
    assert code == 2


def test_what_killed_runs_leave_is_removed_when_they_go_on(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for name in (".filters-ab12.tmp.png", "checkpoints/.0000000004-xy.tmp.safetensors"):
        (tmp_path / name).write_bytes(b"half")
    trained(tmp_path)
    assert [path for path in tmp_path.rglob("*.tmp.*")] == []


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_nothing_but_a_file_is_written_over(kind, run_folder, tmp_path, capsys):
    path = tmp_path / "out"
    make = {"pipe": os.mkfifo, "device": lambda path: path.symlink_to("/dev/null"), "folder": Path.mkdir}
    make[kind](path)
    before = path.stat()
    assert main(["sample", str(run_folder), "--n", "3", "--out", str(path)]) == 2
    assert "is a folder, a pipe or a device; name a file" in capsys.readouterr().err
    assert (path.stat().st_ino, path.stat().st_mode) == (before.st_ino, before.st_mode)


def test_a_link_is_written_through(run_folder, tmp_path):
    (tmp_path / "out.csv").symlink_to(tmp_path / "real.csv")
    assert main(["sample", str(run_folder), "--n", "3", "--out", str(tmp_path / "out.csv")]) == 0
    assert (tmp_path / "out.csv").is_symlink() and len((tmp_path / "real.csv").read_text().splitlines()) == 4


def test_the_header_of_a_file_of_tensors_is_looked_at_before_it_is_read(tmp_path):
    """Ten million lists in its text would take a gigabyte as objects of Python; many empty tensors would take long."""
    pa.save(small_vae(), tmp_path / "model.safetensors")
    with_structure(tmp_path / "model.safetensors", lambda structure: structure.update(schema=[[]] * 10_000_000))
    with pytest.raises(ValueError, match="expected a header of at most 33,554,432 bytes, got 40,0"):
        pa.load(tmp_path / "model.safetensors")
    empty = b",".join(b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(100_001))
    (tmp_path / "model.safetensors").write_bytes((len(empty) + 2).to_bytes(8, "little") + b"{" + empty + b"}")
    with pytest.raises(ValueError, match="expected at most 100,000 tensors, got 100,001"):
        pa.load(tmp_path / "model.safetensors")


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


def test_finite_weights_that_score_nothing(run_folder, tmp_path, capsys):
    """The guide's scales overflow: of every example, or of one of them."""
    shutil.copytree(run_folder, tmp_path / "run")
    path = tmp_path / "run/model.safetensors"
    with safe_open(path, "pt") as file:
        header, weights = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
    last = max(name for name in weights if name.startswith("guide.encoder") and name.endswith("bias"))
    save_file(weights | {last: torch.full_like(weights[last], 1e30)}, path, header)
    assert main(["evaluate", str(tmp_path / "run"), "--particles", "2"]) == 2
    assert "the ELBO is finite for none of the 360 test examples" in capsys.readouterr().err
    ae, x = pa.load(run_folder / "model.safetensors"), torch.ones(9, 64)
    x[0, 0] = 0.0
    ae.guide.encoder.register_forward_hook(lambda module, inputs, output: output + 1e30 * (inputs[0][..., :1] == 0.0))
    assert "; not finite for 1 of 9 examples" in score(ae, pa.data.Split(x, None, "binary"), 2)[2][0]


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
