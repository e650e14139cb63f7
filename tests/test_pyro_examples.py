"""The script that runs Pyro's own examples and tests: on a small checkout it compares losses and names failures."""

import json
import subprocess
import sys
from pathlib import Path

import pyro_examples
import pyro_table
import pytest
from pyro_checkout import synthetic

EXAMPLES = Path(pyro_examples.__file__).parent
PROGRAM = """
import pyro, torch
from pyro import distributions as dist
from pyro.infer import SVI, Trace_ELBO

def model():
    pyro.sample("z", dist.Normal(0.0, 1.0))

def guide():
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(1.0)), 1.0))

def train(steps):
    pyro.clear_param_store()
    svi = SVI(model, guide, pyro.optim.SGD({"lr": 0.01}), loss=Trace_ELBO())
    return [svi.step() for _ in range(steps)]
"""
FILES = {
    "pyro/__init__.py": 'version_prefix = "0.0.0"',
    "examples/good.py": PROGRAM + "import sys\nassert pyro.__version__ == '0.0.0' and sys.argv[1] == '--num-steps=5'\ntrain(5)\n",
    "examples/fails.py": PROGRAM + "train(2)\nraise RuntimeError('first line\\nsecond')\n",
    "examples/other.py": "import pyro\n",
    "tests/__init__.py": "",
    "tests/test_examples.py": 'CPU_EXAMPLES = ["good.py  --num-steps=1", "fails.py", "other.py"]\n'
    'JIT_EXAMPLES = ["good.py --num-steps=1", mark("fails.py --jit")]\n',
    "tests/test_steps.py": PROGRAM
    + "def test_good():\n    train(3)\n\ndef test_without():\n    pass\n\ndef test_fails():\n    train(1)\n    assert False, 'never'\n"
    + "def test_needs_pyros():\n    import pyro.infer\n    train(1)\n    assert SVI.__mro__[1].__module__.startswith('pyro.')\n",
}


@pytest.fixture
def checkout(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / "checkout" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "checkout"


def test_only_what_makes_an_svi_is_run_and_failures_are_told_apart(checkout, tmp_path):
    assert pyro_examples.examples(checkout) == ["good.py --num-steps=5", "fails.py"]
    assert pyro_examples.tests(checkout) == ["tests/test_steps.py"]
    script = [sys.executable, EXAMPLES / "pyro_examples.py", checkout, "--modes", '["eager"]']
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "pyro_examples.json").read_text())
    assert found["examples"] == {
        "good.py --num-steps=5": {"losses": 5, "data": "", "pyro": "passes", "eager": {"verdict": "equal", "eager": ""}},
        "fails.py": {
            "losses": 2,
            "data": "",
            "pyro": "fails: RuntimeError: first line",
            "eager": {"verdict": "equal until then", "eager": ""},
        },
    }
    reasons = found["tests"]["tests/test_steps.py"].pop("eager")
    assert found["tests"] == {"tests/test_steps.py": {"with an SVI": 3, "pyro": 2}}
    assert reasons["passed"] == reasons["equal"] == 1 and "AssertionError" in reasons["failures"]["test_needs_pyros"]
    text = (tmp_path / "pyro_examples.md").read_text()
    assert "| `fails.py` |  | 2 | fails: RuntimeError: first line | equal until then |" in text
    assert "* `test_steps.py::test_needs_pyros`, eager: AssertionError" in text


@pytest.mark.parametrize(
    "ours, cell",
    [
        ({"losses": [1.0, [2.0, 3.0]]}, "equal"),
        ({"losses": [1.0, [2.0, 3.1]]}, "differs at loss 2: 3.1, Pyro 3"),
        ({"losses": [1.0]}, "1 losses, Pyro 2"),
        ({"losses": [], "error": "ValueError: no"}, "fails: ValueError: no"),
    ],
)
def test_verdicts(ours, cell):
    assert pyro_examples.verdict({"losses": [1.0, [2.0, 3.0]], "error": None}, ours) == cell


def test_random_data_have_the_shapes_that_are_asked_for(tmp_path):
    import numpy as np
    import torch

    synthetic.write(tmp_path)
    assert (tmp_path / ".data/MNIST/train-images-idx3-ubyte").stat().st_size == 16 + 60_000 * 28 * 28
    assert np.loadtxt(tmp_path / ".data/faces_training.csv", delimiter=",").shape == (10, 4096)
    assert torch.load(tmp_path / ".data/bart_full.pkl", weights_only=False)["counts"].shape == (2700, 4, 4)


def test_the_readme_has_the_table_of_the_record():
    text = (EXAMPLES / "README.md").read_text()
    assert pyro_table.table(json.loads((EXAMPLES / "pyro_programs.json").read_text())["programs"]) in text
