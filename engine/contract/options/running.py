"""Options about the run itself, the device, and starting several processes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from ..errors import OptionError
from ..schema import Section, opt
from .accepted import ACCEPTED

_GPU = re.compile(r"\d+|(GPU|MIG)-[\w/-]+")  # a number, or a name as `nvidia-smi -L` shows it


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
class Processes(Section, title="Several GPUs"):
    """Working in more than one process. There is no need to run `accelerate config`."""

    num_processes: int = opt(
        1, "Work in this many processes, one for each GPU. Each takes other clips, so a "
           "training step covers as many times more clips.", low=1, advanced=True,
    )  # fmt: skip
    gpu_ids: str | None = opt(
        None, "Which GPUs to use: all, or their numbers such as 0,1. Default: the first ones.", advanced=True,
        metavar="IDS",
    )  # fmt: skip
    main_process_port: int | None = opt(
        None, "Port through which the processes find each other. Default: a free one.", low=0, high=65535,
        advanced=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        ids = self.chosen_gpus
        wrong = [name for name in ids if not _GPU.fullmatch(name)]
        if wrong:
            raise OptionError(
                f"--gpu_ids {self.gpu_ids}: {wrong[0]!r} is no GPU.",
                hint="Write all, or numbers separated by commas, such as 0,1.",
                names=("gpu_ids",),
            )
        twice = [name for name in ids if ids.count(name) > 1]
        if twice:
            raise OptionError(f"--gpu_ids {self.gpu_ids} names {twice[0]} twice.", hint="Keep one.", names=("gpu_ids",))
        if ids and len(ids) < self.num_processes:
            raise OptionError(
                f"--num_processes {self.num_processes} needs as many GPUs, but --gpu_ids names {len(ids)}.",
                hint=f"Use --num_processes {len(ids)}, or name more GPUs.",
                names=("num_processes", "gpu_ids"),
            )

    @property
    def chosen_gpus(self) -> tuple[str, ...]:
        """The names in --gpu_ids; none for all of them."""
        if self.gpu_ids is None or self.gpu_ids.strip().lower() == "all":
            return ()
        return tuple(name.strip() for name in self.gpu_ids.split(","))


@dataclass(frozen=True, kw_only=True)
class Launch(Processes, title="Several GPUs", accepted=ACCEPTED):
    """Training in more than one process. There is no need to run `accelerate config`."""

    ddp_timeout: int = opt(
        120, "Give up when a process has not answered for this long, such as one that draws samples while the others "
        "wait. One that ends is noticed at once.", low=1, unit="minutes", advanced=True,
    )  # fmt: skip
    shard_base: bool = opt(
        False, "Split the frozen model over the processes: each GPU keeps a part of every block, and a block is put "
               "together when it is due. For models that do not fit on one GPU; needs a fast link between the GPUs.",
        aliases=("dit_fsdp",), advanced=True,
    )  # fmt: skip
    ddp_gradient_as_bucket_view: bool = opt(
        False, "Let gradients share memory with the communication buffers: less memory.", advanced=True
    )
    ddp_static_graph: bool = opt(
        False, "Tell DistributedDataParallel that each step uses the same parameters.", advanced=True
    )
