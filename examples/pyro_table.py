"""Whether ``pa.SVI`` is ``pyro.infer.SVI`` on each of ``pyro_programs``, and how fast it is there.

uv run python examples/pyro_table.py                                                # ten minutes
uv run python examples/pyro_table.py --modes '["eager","auto","traced","compiled"]' # an hour
"""

import json
import time
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
    steps: int = 20,
    rounds: int = 10,
    modes: list[str] = ["eager", "auto", "traced"],
    out: str = "pyro_programs",
):
    """Write ``out.json`` and ``out.md``.

    Args:
        only: run those programs alone whose name has this text.
        steps: how many are compared, and how many are taken before the clock starts.
        rounds: how many are timed; the median counts.
        modes: values of ``pa.SVI``'s ``compile``.
        out: names the files; programs that are in the JSON file are not run again.
    """
    path = Path(f"{out}.json")
    found = json.loads(path.read_text()) if path.exists() else {"surroundings": surroundings(), "programs": {}}
    for name, program in PROGRAMS.items():
        if only in name and name not in found["programs"]:
            found["programs"][name] = equality(program, modes, steps) | speed(program, modes, steps, rounds)
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


def speed(program: Program, modes: list[str], steps: int, rounds: int) -> dict:
    """Median milliseconds of a value in ``rounds`` after the first ``steps``, of Pyro and of each mode; and the mode reached."""
    times, reached = {}, {}
    for name in ("pyro", *modes):
        made: list = []
        SVI = pyro.infer.SVI if name == "pyro" else partial(pa.SVI, compile=name)
        values = program(lambda *args, SVI=SVI, made=made, **kwargs: made.append(SVI(*args, **kwargs)) or made[-1], steps + rounds)
        spent = []
        try:
            for _ in range(steps + rounds):
                start = time.perf_counter()
                next(values)
                spent.append((time.perf_counter() - start) * 1e3)
        except Exception:
            continue  # the comparison of losses says why
        finally:
            values.close()
        times[name] = round(median(spent[steps:]), 2)
        if name != "pyro":
            reached[name] = LEVELS[max((level for _, level, _ in made[0].levels()["step"] or []), default=0)]
    return {"reached": reached, "ms": times}


def table(programs: dict) -> str:
    """Each program's verdicts, the mode that it reaches when asked for the highest, and, where measured, the time of its steps."""
    modes = list(next(iter(programs.values()))["differences"])
    rows = []
    for name, row in programs.items():
        cells = [_verdict(row["differences"][mode], TOLERANCES[mode]) for mode in modes]
        ms = row.get("ms", {})
        ratios = [f"{ms[mode] / ms['pyro']:.2f}" if mode in ms else "" for mode in modes]
        rows.append([name, *cells, row["reached"].get(modes[-1], ""), *([f"{ms['pyro']:.1f}", *ratios] if ms else [])])
    measured = any("ms" in row for row in programs.values())
    times = ["Pyro, ms a step", *(f"{mode} / Pyro" for mode in modes)] if measured else []
    return markdown(["program", *(f"equal, {mode}" for mode in modes), "reached", *times], rows)


def _verdict(difference: float | str, tolerance: float) -> str:
    if isinstance(difference, str):
        return difference.replace("|", "/")
    return "yes" if difference < tolerance else f"{difference:.0e} apart"


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)
