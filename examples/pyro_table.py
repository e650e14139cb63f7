"""Whether ``pa.SVI`` is ``pyro.infer.SVI`` on each of ``pyro_programs``, and how fast it is there.

uv run python examples/pyro_table.py                                                # ten minutes
uv run python examples/pyro_table.py --modes '["eager","auto","traced","compiled"]' # an hour
"""

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import pyro
from benchmarks.reporting import markdown, surroundings
from pyro_programs import PROGRAMS, Program
from pyro_programs.comparison import differences, run

import pyroae as pa

LEVELS = "eager", "traced", "compiled"
TOLERANCES = {"eager": 1e-6, "auto": 1e-6, "traced": 1e-6, "compiled": 1e-5}


def main(
    only: str = "",
    steps: int = 12,
    rounds: int = 7,
    block: int = 5,
    modes: list[str] = ["eager", "auto", "traced"],
    out: str = "pyro_programs",
):
    """Write ``out.json`` and ``out.md``.

    Args:
        only: run those programs alone whose name has this text.
        steps: how many are compared, and how many are taken before the clock starts.
        rounds: how often each class takes a block of steps, in turn with the others; the median counts.
        block: steps in a block.
        modes: values of ``pa.SVI``'s ``compile``.
        out: names the files; programs that are in the JSON file are not run again.
    """
    path = Path(f"{out}.json")
    found = json.loads(path.read_text()) if path.exists() else {"surroundings": surroundings(), "programs": {}}
    for name, program in PROGRAMS.items():
        if only in name and name not in found["programs"]:
            found["programs"][name] = equality(program, modes, steps) | speed(program, modes, steps, rounds, block)
            path.write_text(json.dumps(found, indent=1))
            print(name, found["programs"][name], flush=True)
    Path(f"{out}.md").write_text(table(found["programs"]) + "\n")


def equality(program: Program, modes: list[str], steps: int) -> dict:
    """The largest relative difference from Pyro's values and parameters in each mode (compiled: of the first value), or the error."""
    theirs, result = run(program, pyro.infer.SVI, steps), {}
    for mode in modes:
        try:
            apart = differences(run(program, partial(pa.SVI, compile=mode, precision="highest"), steps), theirs)
            result[mode] = apart[0] if mode == "compiled" else max(apart)
        except Exception as problem:
            result[mode] = f"{type(problem).__name__}: {problem}".splitlines()[0]
    return {"differences": result}


class Lane:
    """A program under one class, with a parameter store of its own, advanced in turns with the others."""

    def __init__(self, program: Program, SVI: Callable):
        self.made: list = []
        self.state: dict = {"params": {}, "constraints": {}}
        self.steps = program(lambda *args, **kwargs: self._keep(SVI(*args, **kwargs)), 10**9)

    def _keep(self, svi):
        self.made.append(svi)
        return svi

    def reached(self) -> str:
        """The highest level of the graphs of its first SVI's steps."""
        return LEVELS[max(level for _, level, _ in self.made[0].levels()["step"])]

    def advance(self, count: int) -> float:
        """Milliseconds for each of ``count`` values."""
        with pyro.get_param_store().scope(self.state):
            start = time.perf_counter()
            for _ in range(count):
                next(self.steps)
            return (time.perf_counter() - start) / count * 1e3


def speed(program: Program, modes: list[str], steps: int, rounds: int, block: int) -> dict:
    """Milliseconds a step, all classes in turn, after ``steps`` steps of each; and the mode that each has reached."""
    lanes = {"pyro": Lane(program, pyro.infer.SVI)} | {mode: Lane(program, partial(pa.SVI, compile=mode)) for mode in modes}
    for name in list(lanes):
        try:
            lanes[name].advance(steps)
        except Exception:
            del lanes[name]  # the comparison of losses says why
    times: dict[str, list[float]] = {name: [] for name in lanes}
    for _ in range(rounds):
        for name, lane in lanes.items():
            times[name].append(lane.advance(block))
    reached = {mode: lanes[mode].reached() for mode in modes if mode in lanes}
    return {"reached": reached, "ms": {name: round(median(values), 2) for name, values in times.items()}}


def table(programs: dict) -> str:
    """Each program's verdicts, the mode that it reaches when asked for the highest, and its steps' time relative to Pyro's."""
    rows = []
    modes = list(next(iter(programs.values()))["differences"])
    for name, row in programs.items():
        cells = [_verdict(row["differences"][mode], TOLERANCES[mode]) for mode in modes]
        ratios = [f"{row['ms'][mode] / row['ms']['pyro']:.2f}" if mode in row["ms"] else "" for mode in modes[1:]]
        rows.append([name, *cells, row["reached"].get(modes[-1], ""), f"{row['ms']['pyro']:.1f}", *ratios])
    equal = [f"equal, {mode}" for mode in modes]
    return markdown(["program", *equal, "reached", "Pyro, ms a step", *(f"{mode} / Pyro" for mode in modes[1:])], rows)


def _verdict(difference: float | str, tolerance: float) -> str:
    if isinstance(difference, str):
        return difference.replace("|", "/")
    return "yes" if difference < tolerance else f"{difference:.0e} apart"


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)
