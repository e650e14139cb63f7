"""In a process of its own: Pyro's SVI is replaced, a script or a file of tests runs, and what steps return is kept."""

import json
import logging
import os
import runpy
import signal
import sys
import time
from pathlib import Path
from unittest.mock import MagicMock

import pyro
import pytest
import torch
from pyro.infer import svi as home_of_svi
from torchvision.datasets import MNIST

import pyroae as pa

ORIGINAL = home_of_svi.SVI
UNUSED = "seaborn", "visdom", "wget"  # what examples import and do not need when nothing is shown or downloaded
ENOUGH = 40  # losses after which an example ends
MOST = 150  # tests of a file: of more, every second, third ... is run
KEPT = 200  # losses that are kept of a test


def install(mode: str, enough: int | None = None) -> list:
    """Put an SVI of this mode in the place of Pyro's in every module; ``"pyro"`` is Pyro's own.

    Returns the list that each ``step`` and ``evaluate_loss`` appends its value to; the process ends when it has ``enough``.
    """
    losses = []
    base, options = (ORIGINAL, {}) if mode == "pyro" else (pa.SVI, {"compile": pa.Step(mode, precision="highest")})

    class SVI(base):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **options, **kwargs)

        def step(self, *args, **kwargs):
            return keep(super().step(*args, **kwargs))

        def evaluate_loss(self, *args, **kwargs):
            return keep(super().evaluate_loss(*args, **kwargs))

    def keep(loss):
        losses.append(loss)
        if len(losses) == enough:
            sys.exit()
        return loss

    SVI.__module__, SVI.__qualname__ = ORIGINAL.__module__, ORIGINAL.__qualname__  # where pickle looks for it
    for module in list(sys.modules.values()):
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if value is ORIGINAL and module is not sys.modules[__name__]:
                setattr(module, name, SVI)
    return losses


def run_script(path: Path, arguments: list[str], mode: str, out: Path):
    """Run an example as a main program and write its losses, the time and how it ended."""
    losses, messages = install(mode, ENOUGH), _messages()
    sys.argv, sys.path[0] = [str(path), *arguments], str(path.parent)
    pyro.set_rng_seed(0)
    start, error = time.perf_counter(), None
    try:
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit as end:
        error = f"exit code {end.code}" if end.code else None
    except BaseException as problem:
        error = _one_line(problem)
        sys.excepthook(type(problem), problem, problem.__traceback__)
    finally:
        seconds = time.perf_counter() - start
        out.write_text(json.dumps({"error": error, "steps": len(losses), "losses": losses, "seconds": round(seconds, 2)} | messages))


def _messages() -> dict[str, list[str]]:
    """A dict whose list grows by what ``pa.SVI`` says in the log, such as why a program stays eager."""
    found: dict[str, list[str]] = {"messages": []}
    handler = logging.Handler()
    handler.emit = lambda record: found["messages"].append(record.getMessage())
    logging.getLogger("pyroae").addHandler(handler)
    return found


def run_tests(path: Path, chosen: list[str] | None, mode: str, out: Path, limit: int):
    """Run a file of tests and write, for each, its outcome, its losses and its time; a test may take ``limit`` seconds."""
    recorder = _Recorder(install(mode), out, chosen, limit)
    pytest.main([str(path), "-q", "-p", "no:cacheprovider", "--tb=short"], plugins=[recorder])
    recorder.write()


class _Recorder:
    """A pytest plugin."""

    def __init__(self, losses: list, out: Path, chosen: list[str] | None, limit: int):
        self.losses, self.out, self.limit, self.tests = losses, out, limit, {}
        self.chosen = None if chosen is None else set(chosen)

    def pytest_collection_modifyitems(self, items):
        if self.chosen is None:
            items[:] = items[:: len(items) // MOST + 1]
        else:
            items[:] = [item for item in items if item.nodeid in self.chosen]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        self.losses.clear()

        def too_long(*_):
            raise TimeoutError(f"more than {self.limit} seconds")

        signal.signal(signal.SIGALRM, too_long)
        signal.alarm(self.limit)
        try:
            return (yield)
        finally:
            signal.alarm(0)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        if call.when == "call" or not report.passed:
            error = _one_line(call.excinfo.value) if call.excinfo is not None and report.failed else None
            test = {"outcome": "xfailed" if hasattr(report, "wasxfail") else report.outcome, "error": error}
            self.tests[item.nodeid] = test | {"steps": len(self.losses), "losses": self.losses[:KEPT], "seconds": round(call.duration, 2)}
            self.write()
        return report

    def write(self):
        self.out.write_text(json.dumps(self.tests))


def _one_line(problem: BaseException) -> str:
    """The exception at the bottom, with the first line of its message."""
    text = str(problem).strip().splitlines()
    return f"{type(problem).__name__}: {text[0] if text else ''}"[:300]


def prepare(home: Path, version: str):
    """What examples need: data, the version that they ask for, no window, and stand-ins for packages that only show pictures."""
    os.environ.update(HOME=str(home), CI="1", MPLBACKEND="Agg")
    torch.set_num_threads(1)
    pyro.__version__ = version
    MNIST.raw_folder = property(lambda self: str(home / ".data/MNIST"))
    for name in UNUSED:
        sys.modules.setdefault(name, MagicMock())
    (home / "work").mkdir(exist_ok=True)
