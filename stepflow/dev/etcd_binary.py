"""The etcd program of `stepflow dev` and the tests: named by `ETCD_BIN`, or fetched from Debian's packages.

- `ETCD_BIN` names the program to use; nothing is fetched.
- Otherwise a pinned package is fetched once (`stepflow.dev.debian`).

Not here: starting etcd (`stepflow.dev.services`).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from stepflow.dev.debian import Program, Release, fetch
from stepflow.errors import FailedPrecondition, NotFound

VERSION_TIMEOUT_S = 10

OWN_ETCD = "install etcd 3.5.17 or later and name it: ETCD_BIN=/path/to/etcd"

ETCD = Program(
    name="etcd",
    package="etcd-server",
    variable="ETCD_BIN",
    own=OWN_ETCD,
    releases=(
        Release(
            "forky",
            "3.5.30-2",
            {
                "amd64": "11a4f7e350c5020b83edff5160a6063d4e56ac9cd014d21ce8916378bf96de79",
                "arm64": "c9f0208925c51d44ba026367930c67a1fd2bef12d162e8b99d249f42242f7100",
            },
        ),
        Release(
            "trixie",
            "3.5.16-4",
            {
                "amd64": "0875921bb0d023f2af9b8e15cdfbe417a03e65731345fb832c40f9c2dd72967b",
                "arm64": "5e21469a4f59f1cb2ed7af9c6eb9dda7d9734809c011cfa8a39b34f82a161a32",
            },
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class EtcdBinary:
    """An executable etcd program. `version` is the output of `--version`, such as 3.5.30."""

    path: Path
    version: str


def user_cache() -> Path:
    """Return the cache folder of the user, for fetched programs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stepflow-mesh"


def find_etcd(cache: Path | None = None) -> EtcdBinary:
    """Return the etcd that `ETCD_BIN` names, else the etcd in `cache`, fetched if missing.

    Fetching blocks for some seconds and is announced on stderr.

    Raises:
        NotFound: `ETCD_BIN_MISSING`, `ETCD_PACKAGE_GONE`.
        FailedPrecondition: `ETCD_BIN_UNUSABLE`, `ETCD_NOT_FETCHABLE` (no apt, or another kind of machine),
            `ETCD_CHECKSUM`.
        Unavailable: `ETCD_FETCH_FAILED`.
    """
    own = os.environ.get("ETCD_BIN")
    if own:
        found = shutil.which(own)
        if found is None:
            raise NotFound(
                "ETCD_BIN_MISSING", f"ETCD_BIN names {own!r}, which is not an executable program: {OWN_ETCD}"
            )
        return EtcdBinary(Path(found).absolute(), _version(Path(found)))
    path = fetch(ETCD, cache or user_cache())
    return EtcdBinary(path, _version(path))


def _version(path: Path) -> str:
    try:
        output = subprocess.run(
            [str(path), "--version"], capture_output=True, text=True, timeout=VERSION_TIMEOUT_S, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FailedPrecondition("ETCD_BIN_UNUSABLE", f"{path} cannot be run ({error}): {OWN_ETCD}") from None
    found = re.search(r"etcd Version: (\S+)", output)
    if found is None:
        raise FailedPrecondition("ETCD_BIN_UNUSABLE", f"{path} --version prints no etcd version: {OWN_ETCD}")
    return found.group(1)
