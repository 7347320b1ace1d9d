"""What pip and uv say when they fail, and what the person is told."""

from __future__ import annotations

import errno

import pytest

from env_bootstrap.problems import disk_or_home, recognise

PIP_OFFLINE = """WARNING: Retrying (Retry(total=0, connect=None, read=None)) after connection broken by
'NewConnectionError("HTTPSConnection(host='pypi.example.org', port=443): Failed to establish a new connection:
[Errno -3] Temporary failure in name resolution")': /simple/torch/
ERROR: Could not find a version that satisfies the requirement torch==2.13.0 (from versions: none)
ERROR: No matching distribution found for torch==2.13.0"""
UV_OFFLINE = """error: Failed to fetch: `https://pypi.example.org/simple/torch/`
  Caused by: error sending request for url (https://pypi.example.org/simple/torch/)
  Caused by: dns error: failed to lookup address information"""


@pytest.mark.parametrize(
    ("text", "kind", "status", "word"),
    [
        (PIP_OFFLINE, "network", 1, "pypi.example.org"),
        (UV_OFFLINE, "network", 1, "pypi.example.org"),
        (
            "ReadTimeoutError: HTTPSConnectionPool(host='h.example', port=443): Read timed out.",
            "network",
            1,
            "h.example",
        ),
        ("ERROR: 403 Client Error: Forbidden for url: https://h.example/x", "network", 1, "h.example"),
        ("SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED]'))", "network", 1, "certificate"),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk", 4, "full"),
        ("error: failed to write: There is not enough space on the disk. (os error 112)", "disk", 4, "full"),
        ("ERROR: No matching distribution found for torch==2.13.0", "package", 1, "no build"),
        ("  × No solution found when resolving dependencies", "package", 1, "no build"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES", "package", 1, "damaged"),
        ("ERROR: [WinError 5] Access is denied: 'c10.dll'", "home", 2, "written"),
        ("ERROR: something new", "package", 1, "something new"),
        ("", "package", 1, "said nothing"),
    ],
)
def test_recognised(text: str, kind: str, status: int, word: str) -> None:
    problem = recognise(text.splitlines(), what="torch==2.13.0", status=1)
    assert (problem.kind, problem.exit_status) == (kind, status)
    assert word in problem.message and problem.hint


def test_out_of_memory_has_no_words_only_a_status() -> None:
    assert recognise(["Installing collected packages"], what="torch", status=137).kind == "memory"


@pytest.mark.parametrize(
    ("number", "status"),
    [(errno.ENOSPC, 4), (errno.EDQUOT, 4), (errno.EIO, 4), (errno.EACCES, 2), (errno.EROFS, 2), (errno.ENOTDIR, 2)],
)
def test_our_own_failed_writes(number: int, status: int) -> None:
    problem = disk_or_home(OSError(number, "as it is"), "/a/place")
    assert problem.exit_status == status and "/a/place" in problem.message
