"""What can go wrong while an environment is made, said so that the person can act.

`recognise` reads an installer's output. It knows the words of pip and uv, and nothing about what was being installed.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence

GO_ON = "Run the same command again: it resumes where it stopped."

EXIT_STATUS = {
    "option": 2,
    "home": 2,
    "python": 2,
    "venv": 2,
    "gpu": 2,
    "absent": 2,
    "disk": 4,
    "bug": 70,
}


class Problem(Exception):
    """One clear line and a hint. `kind` says which; `exit_status` follows from it (1 when it is nobody's input)."""

    def __init__(self, kind: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.hint = hint

    @property
    def exit_status(self) -> int:
        return EXIT_STATUS.get(self.kind, 1)


class Interrupted(KeyboardInterrupt):
    """Asked to stop: by Ctrl-C (130), SIGTERM (143), or a `stop` on stdin (0, as everywhere in the protocol)."""

    def __init__(self, exit_status: int = 130) -> None:
        super().__init__()
        self.exit_status = exit_status


DISK_QUOTA = getattr(errno, "EDQUOT", errno.ENOSPC)  # Windows has no such number
DISK = re.compile(r"no space left on device|errno 28\b|winerror 112\b|not enough space on the disk|disk quota", re.I)
DENIED = re.compile(r"permission denied|access is denied|winerror 5\b|winerror 32\b|read-only file system", re.I)
CERTIFICATE = re.compile(r"certificate_verify_failed|certificate verify failed|invalid peer certificate", re.I)
NETWORK = re.compile(
    r"name resolution|getaddrinfo failed|name or service not known|nodename nor servname|dns error"
    r"|newconnectionerror|failed to establish a new connection|connection (?:refused|reset|aborted|broken)"
    r"|network is unreachable|no route to host|proxyerror|connecttimeout|read ?timed? ?out|incompleteread"
    r"|error sending request|could not connect|failed to fetch|timed out|max retries exceeded"
    r"|\b(?:50[234]|403|407) (?:server|client) error",
    re.I,
)
HASH = re.compile(r"do not match the hashes|hash mismatch|bad zip ?file|bad crc|badzipfile", re.I)
NO_BUILD = re.compile(r"no matching distribution found for (\S+)|no solution found|has no wheels|no wheels with", re.I)
HOST = re.compile(r"host='([^']+)'|for url \(?(?:https?://)([^/)\s]+)|://([^/\s'\"]+)", re.I)


def _host(text: str) -> str:
    found = HOST.search(text)
    return next((group for group in found.groups() if group), "") if found else ""


def _last_error(lines: Sequence[str]) -> str:
    marked = [line.strip() for line in lines if re.match(r"\s*(?:error|fatal|×|╰)", line, re.I)]
    spoken = marked or [line.strip() for line in lines if line.strip()]
    return spoken[-1][:300] if spoken else "it said nothing"


def recognise(lines: Sequence[str], *, what: str, status: int) -> Problem:
    """The Problem behind a failed installer. `lines` is the end of its output, `what` names what it was to install."""
    text = "\n".join(lines)
    if DISK.search(text):
        return Problem("disk", f"The disk became full while installing {what}.", f"Free some space. {GO_ON}")
    if CERTIFICATE.search(text):
        return Problem(
            "network",
            f"{what} could not be downloaded: the server's certificate was not accepted.",
            "Behind a company proxy, point PIP_CERT (and SSL_CERT_FILE for uv) at its certificate file. " + GO_ON,
        )
    if NETWORK.search(text):
        host = _host("\n".join(line for line in lines if NETWORK.search(line)))
        return Problem(
            "network",
            f"{what} could not be downloaded: no connection{' to ' + host if host else ''}.",
            f"Check the network, the proxy (HTTPS_PROXY) and pip's index (PIP_INDEX_URL). {GO_ON}",
        )
    if HASH.search(text):
        return Problem("package", f"A download for {what} arrived damaged.", GO_ON)
    if NO_BUILD.search(text):
        return Problem(
            "package",
            f"There is no build of {what} for this Python and platform: {_last_error(lines)}",
            "Use another Python (3.10 to 3.14, 64 bit) with --python, or look at pip's index settings.",
        )
    if DENIED.search(text):
        return Problem(
            "home",
            f"{what} could not be written: {_last_error(lines)}",
            "Stop programs that use the environment (a running job, ComfyUI), then run the same command again.",
        )
    if status in (-9, 137):
        return Problem("memory", f"Installing {what} was killed, most likely for want of main memory.", GO_ON)
    return Problem("package", f"Installing {what} failed: {_last_error(lines)}", f"The log has the details. {GO_ON}")


def disk_or_home(failure: OSError, place: object) -> Problem:
    """A failed write of our own as a Problem."""
    if failure.errno in (errno.ENOSPC, DISK_QUOTA) or getattr(failure, "winerror", None) == 112:
        return Problem("disk", f"The disk of {place} is full.", f"Free some space. {GO_ON}")
    if failure.errno == errno.EIO:
        return Problem("disk", f"{place} cannot be read or written: {failure.strerror}.", "Check the disk.")
    return Problem(
        "home",
        f"{place} cannot be written: {failure.strerror or failure}.",
        "Set MUSUBI_HOME to a folder that you can write to, or change the folder's owner.",
    )
