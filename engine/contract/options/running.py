"""Options about the run itself, the device, and starting several processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..schema import Section, opt
from .pending import PENDING


@dataclass(frozen=True, kw_only=True)
class Run(Section, title="Run"):
    """How a command is run and how it reports; every command has these."""

    config_file: str | None = opt(
        None, "Read options from this TOML file; flags win. The .toml may be left out, tables are only headings.",
        file_kind="config", transient=True, metavar="FILE",
    )  # fmt: skip
    print_config: bool = opt(False, "Print the resolved job as TOML and do nothing else.", transient=True)
    events: bool = opt(
        False, "Report as one JSON event a line on stdout and take commands on stdin; the end of stdin means stop.",
        advanced=True, transient=True,
    )  # fmt: skip
    job_dir: str | None = opt(
        None, "Folder for the job's record (job.toml, events.jsonl, log.txt). Default: a new folder in jobs/ beside "
        "the results.", file_kind="folder", advanced=True, metavar="DIR",
    )  # fmt: skip
    log_level: Literal["debug", "info", "warning", "error"] = opt("info", "How much log.txt keeps.", advanced=True)
    device: str | None = opt(
        None, "Where to compute: cuda, cuda:1, mps, cpu. Default: the GPU if there is one.", metavar="DEVICE"
    )


@dataclass(frozen=True, kw_only=True)
class Launch(Section, title="Several GPUs", pending=PENDING):
    """Training in more than one process. Nobody needs to run `accelerate config`."""

    num_processes: int = opt(1, "Train in this many processes, one for each GPU.", low=1, advanced=True)
    gpu_ids: str | None = opt(
        None, "Which GPUs to use: all, or their numbers such as 0,1. Default: the first ones.", advanced=True,
        metavar="IDS",
    )  # fmt: skip
    main_process_port: int | None = opt(
        None, "Port through which the processes find each other. Default: a free one.", low=0, high=65535,
        advanced=True,
    )  # fmt: skip
    ddp_timeout: int | None = opt(
        None, "Give up when a process does not answer for so long. Default: accelerate's own.", low=1, unit="minutes",
        advanced=True,
    )  # fmt: skip
    ddp_gradient_as_bucket_view: bool = opt(
        False, "Let gradients share memory with the communication buffers: less memory.", advanced=True
    )
    ddp_static_graph: bool = opt(
        False, "Tell DistributedDataParallel that each step uses the same parameters.", advanced=True
    )
