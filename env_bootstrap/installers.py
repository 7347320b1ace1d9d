"""Installing requirements into the environment: uv when it is there and may, else pip.

uv reads none of pip's settings. On a machine whose pip is told where packages come from (an index, a folder of wheels),
only pip is used: a faster installer that looks elsewhere is no help. Knows how both speak, not what is installed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from . import integrity
from .home import Home
from .problems import Problem, recognise
from .processes import Ended, clean_environment, output_of, run_child
from .report import Report

SOURCE_SETTINGS = ("index-url", "extra-index-url", "find-links", "no-index")
RAW_PROGRESS = (24, 1)  # the first pip that can tell its progress to a program
FULL_METADATA = (23, 1)  # the first pip that learns a package's version without downloading it
DOWNLOADING_SHARE = 0.7
Advance = Callable[[float, str], None]


def installer_environment(home: Home, environment: Mapping[str, str]) -> dict[str, str]:
    """What pip and uv are started with: clean, and with all that they keep under the home. A person's settings win."""
    clean = clean_environment(environment)
    certificates = {"SSL_CERT_FILE": clean["PIP_CERT"]} if clean.get("PIP_CERT") else {}
    return {
        "PIP_CACHE_DIR": str(home.cache / "pip"),
        "UV_CACHE_DIR": str(home.cache / "uv"),
        "UV_PYTHON_INSTALL_DIR": str(home.tools / "pythons"),
        **certificates,
        **clean,
        "PIP_NO_INPUT": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(home.temporary)),
    }


class Progress:
    """Reads an installer's lines into a fraction 0..1 and a label: first collecting, then installing, by count."""

    def __init__(self, advance: Advance, *, site_packages: Path | None, expected: int) -> None:
        self._advance = advance
        self._site_packages = site_packages
        self._expected = max(expected, 1)
        self._collected = 0
        self._within = 0.0
        self._label = "looking for packages"
        self._before = 0
        self._to_install = 0

    def line(self, text: str) -> None:
        raw = re.match(r"Progress (\d+) of (\d+)", text)
        if raw:
            self._within = int(raw[1]) / max(int(raw[2]), 1)
            return
        if "Retrying" in text:
            self._label = "waiting for the network"
        collecting = re.match(r"Collecting ([\w.-]+)", text)
        if collecting:
            self._collected += 1
            self._within = 0.0
            self._label = collecting[1]
        downloading = re.match(r"\s*Downloading (\S+) ?(\(.*\))?", text)
        if downloading:
            file = downloading[1].rsplit("/", 1)[-1]
            self._label = f"{'-'.join(file.split('-')[:2])} {downloading[2] or ''}".strip()
        installing = re.match(r"Installing collected packages: (.*)", text)
        if installing:
            self._to_install = installing[1].count(",") + 1
            self._before = self._count()
            self._label = "unpacking"

    def tick(self) -> None:
        if self._to_install:
            share = min((self._count() - self._before) / self._to_install, 1.0)
            self._advance(DOWNLOADING_SHARE + (1 - DOWNLOADING_SHARE) * share, self._label)
        else:
            seen = max(self._collected - 1, 0) + self._within
            self._advance(DOWNLOADING_SHARE * min(seen / max(self._expected, seen + 1), 1.0), self._label)

    def _count(self) -> int:
        if self._site_packages is None or not self._site_packages.is_dir():
            return 0
        return sum(name.endswith(integrity.SUFFIX) for name in integrity.entries(self._site_packages))


class Installer:
    """Installs into one home's environment. `environment` is `installer_environment`; a child holds `lock`, too."""

    def __init__(
        self, home: Home, report: Report, *, environment: Mapping[str, str], uv: str | None, lock: int | None
    ) -> None:
        self.home = home
        self.report = report
        self.lock = lock
        self._found_uv = uv
        self.environment = environment

    @property
    def pip(self) -> list[str]:
        return [str(self.home.python), "-I", "-m", "pip"]

    @cached_property
    def pip_version(self) -> tuple[int, int] | None:
        """None when the environment's pip does not run."""
        told = output_of([*self.pip, "--version"], environment=self.environment)
        found = re.match(r"pip (\d+)\.(\d+)", told or "")
        return (int(found[1]), int(found[2])) if found else None

    @cached_property
    def uv(self) -> str | None:
        """The uv to use, None when there is none or pip has been told where packages come from."""
        if self._found_uv is None:
            return None
        settings = output_of([*self.pip, "config", "list"], environment=self.environment) or ""
        names = {line.split("=")[0].rsplit(".", 1)[-1].strip("'\" ") for line in settings.splitlines()}
        if names & set(SOURCE_SETTINGS):
            self.report.log("pip has its package sources configured on this machine, but uv has not: using pip.")
            return None
        return self._found_uv

    def renew_pip(self) -> None:
        """A pip that must download a package to learn its version is renewed first; failing that, it will do."""
        if self.pip_version and self.pip_version < FULL_METADATA:
            ended = self._run([*self.pip, "install", "--upgrade", "pip"], lambda text: None, lambda: None)
            if ended.status == 0:
                del self.__dict__["pip_version"]

    def install(
        self, arguments: Sequence[str], *, what: str, advance: Advance, expected: int = 1, index: str = ""
    ) -> None:
        """Install; Problem when it fails. `expected` is about how many packages, for the progress only."""
        where = ["--index-url", index] if index else []
        if self.uv:
            command = [self.uv, "pip", "install", "--python", str(self.home.python), *where, *arguments]
            ended = self._watched(command, advance, expected)
            if ended.status == 0:
                return
            self.report.log(f"uv could not install {what}: trying pip.")
        bar = "raw" if self.pip_version and self.pip_version >= RAW_PROGRESS else "off"
        command = [*self.pip, "install", "--prefer-binary", "--progress-bar", bar, *where, *arguments]
        ended = self._watched(command, advance, expected)
        if ended.status:
            raise recognise(ended.tail, what=what, status=ended.status)

    def uninstall(self, names: Sequence[str]) -> None:
        """Take packages out; those that are not there are no matter. Problem when it fails."""
        ended = self._run([*self.pip, "uninstall", "--yes", *names], lambda text: None, lambda: None)
        if ended.status:
            raise recognise(ended.tail, what=" and ".join(names), status=ended.status)

    def would_install(self, requirement: str) -> Mapping[str, object]:
        """pip's report on what it would take for `requirement` by its own settings; empty when it cannot tell."""
        target = self.home.temporary / "would-install.json"
        target.unlink(missing_ok=True)
        question = ["install", "--dry-run", "--no-deps", "--ignore-installed", "--quiet", "--report", str(target)]
        ended = self._run([*self.pip, *question, requirement], lambda text: None, lambda: None)
        try:
            answer = json.loads(target.read_text(encoding="utf-8")) if ended.status == 0 else {}
        except (OSError, ValueError):
            return {}
        return answer if isinstance(answer, dict) else {}

    def _watched(self, command: Sequence[str], advance: Advance, expected: int) -> Ended:
        progress = Progress(advance, site_packages=self.home.site_packages(), expected=expected)
        return self._run(command, progress.line, progress.tick)

    def _run(self, command: Sequence[str], line: Callable[[str], None], tick: Callable[[], None]) -> Ended:
        def keep(text: str) -> None:
            if not text.startswith("Progress "):
                self.report.record(text)
            line(text)

        self.home.temporary.mkdir(parents=True, exist_ok=True)
        self.report.record("$ " + " ".join(command))
        try:
            return run_child(command, environment=self.environment, on_line=keep, on_tick=tick, lock=self.lock)
        except OSError as failure:
            raise Problem(
                "broken",
                f"{command[0]} cannot be started: {failure.strerror}.",
                "Mend the environment with: python -m env_bootstrap repair",
            ) from failure
