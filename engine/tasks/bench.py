"""`bench`: seconds, memory and use of the device on this machine, case by case, against plain PyTorch in the same run.

Each mode of a case is a process of its own (bench_case.py), which runs the ordinary task on files made for it. A case's
rows are kept in `<out>/<case>.json` as soon as they are there, so the same command goes on where it was stopped.
`--list` answers at once: what measures, and torch with it, is imported when something is measured.
"""

from __future__ import annotations

from pathlib import Path

from ..bench.cases import all_cases, chosen, listing
from ..contract.cli import write_result
from ..contract.events import Control, Say
from ..contract.home import results_folder
from ..contract.job import Job
from ..contract.options import Bench
from ..families import names, part
from ..ops.attention_backends import installed_backends

HOME = "out"  # the option that says where results go
COMPARED_WITH = "sdpa"


def home(job: Job) -> Path | None:
    return None if job[Bench].list else Path(job[Bench].out or results_folder("bench"))


def run(job: Job, say: Say, control: Control) -> str:
    options, folder = job[Bench], home(job)
    backends = [name for name in installed_backends() if name not in (COMPARED_WITH, "torch", "math")]
    cases = list(all_cases(names(), lambda family: part(family, "bench"), backends=[COMPARED_WITH, *backends]))
    asked = chosen(cases, what=options.what, names=options.case, modes=options.mode)
    if folder is None:
        write_result(listing(case for case, _ in asked) + "\n")
        return ""
    from .bench_measuring import measured

    return measured(asked, job, folder, say, control)
