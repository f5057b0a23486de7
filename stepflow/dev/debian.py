"""Programs from Debian's packages: fetched with apt and unpacked, without root and without changes to the system.

- apt's state is in a temporary folder: the system's package lists, sources and installed packages are neither used nor
  changed, and root is not needed.
- The package must have the pinned SHA-256; the mirror, the proxy and apt are not trusted.
- The program is installed by one rename under a file lock: concurrent processes fetch it once, and a killed fetch
  leaves no program that looks complete.

Not here: which programs there are (`stepflow.dev.etcd_binary`). On machines without apt, users install the program.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from stepflow.errors import FailedPrecondition, NotFound, Unavailable
from stepflow.proxies import named_proxy, no_proxy_with_loopback, through

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DEBIAN_MIRROR = "http://deb.debian.org/debian"
"""Debian's public mirror, for machines whose sources name no Debian mirror."""

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
"""Debian's keys. On machines without them the index is not verified; the checksum is pinned anyway."""

APT_TIMEOUT_S = 300


@dataclass(frozen=True, slots=True)
class Release:
    """One version of a package. `sha256` maps each Debian architecture to the checksum of the package file."""

    suite: str
    version: str
    sha256: dict[str, str]


@dataclass(frozen=True, slots=True)
class Program:
    """A program in `/usr/bin` of a package, and the releases to take it from, in order of preference."""

    name: str
    package: str
    variable: str
    """Environment variable that names the user's own program."""
    own: str
    """How to install and name the program by hand, for errors."""
    releases: tuple[Release, ...]
    """A later release is used when the earlier ones have left the archive."""

    def reason(self, what: str) -> str:
        return f"{self.name.upper()}_{what}"


def fetch(program: Program, cache: Path) -> Path:
    """Return the path of the program in `cache`, fetched if missing.

    Fetching blocks for some seconds and is announced on stderr.

    Raises (reasons begin with the program's name):
        NotFound: `…_PACKAGE_GONE`.
        FailedPrecondition: `…_NOT_FETCHABLE` (no apt, or another kind of machine), `…_CHECKSUM`.
        Unavailable: `…_FETCH_FAILED`.
    """
    folder = cache.absolute()  # apt resolves relative folders against its own
    # Any release will do: a later one was fetched when the preferred one had left the archive.
    for release in program.releases:
        path = _program_path(folder, program, release)
        if path.exists():
            return path
    return _fetch_first(folder, program)


def _program_path(folder: Path, program: Program, release: Release) -> Path:
    return folder / f"{program.name}-{release.version}" / program.name


def _fetch_first(folder: Path, program: Program) -> Path:
    architecture = _architecture(program)
    folder.mkdir(parents=True, exist_ok=True)
    with _file_lock(folder / f".{program.name}.lock"):
        for release in program.releases:
            path = _program_path(folder, program, release)
            if path.exists() or _fetch(folder, program, release, architecture):
                return path
    names = " and ".join(f"{release.version} ({release.suite})" for release in program.releases)
    raise NotFound(
        program.reason("PACKAGE_GONE"), f"Debian's archive no longer has {program.package} {names}: {program.own}"
    )


def _architecture(program: Program) -> str:
    """Return Debian's name of this machine's architecture. Raises: FailedPrecondition `…_NOT_FETCHABLE`."""
    for tool in ("apt-get", "dpkg", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise FailedPrecondition(
                program.reason("NOT_FETCHABLE"),
                f"{program.name} cannot be fetched: this machine has no {tool}: {program.own}",
            )
    architecture = _run(program, ["dpkg", "--print-architecture"]).strip()
    if any(architecture not in release.sha256 for release in program.releases):
        raise FailedPrecondition(
            program.reason("NOT_FETCHABLE"),
            f"{program.name} cannot be fetched: no package is pinned for {architecture}: {program.own}",
        )
    return architecture


def _fetch(folder: Path, program: Program, release: Release, architecture: str) -> bool:
    """Fetch and install the program. Return False if the archive does not have this release."""
    mirror = _mirror(program)
    print(
        f"Fetching {program.package} {release.version} ({architecture}) of Debian {release.suite} from {mirror} into "
        f"{folder} (about 20 MB, once). To use another program: {program.variable}=/path/to/{program.name}",
        file=sys.stderr,
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder) as scratch:
        root = Path(scratch)
        archive = _download(root, mirror, program, release, architecture)
        if archive is None:
            return False
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != release.sha256[architecture]:
            raise FailedPrecondition(
                program.reason("CHECKSUM"),
                f"{archive.name} from {mirror} has SHA-256 {found}, expected {release.sha256[architecture]}; "
                f"it was not used. Fetch from another mirror, or {program.own}",
            )
        _run(program, ["dpkg-deb", "-x", str(archive), str(root / "unpacked")])

        target = _program_path(folder, program, release)
        shutil.rmtree(target.parent, ignore_errors=True)
        (root / "unpacked" / "usr" / "bin").rename(target.parent)
    return True


def _download(root: Path, mirror: str, program: Program, release: Release, architecture: str) -> Path | None:
    """Download the package file below `root` and return its path; None if the archive has no such version."""
    apt = _private_apt(root, mirror, release.suite, architecture)
    way = through(named_proxy(mirror, os.environ))
    _run(program, [*apt, "update"], way=way)
    known = _run(program, ["apt-cache", *apt[1:], "madison", program.package])
    if release.version not in re.findall(r"\|\s*(\S+)\s*\|", known):
        print(f"Debian {release.suite} no longer has {program.package} {release.version}", file=sys.stderr, flush=True)
        return None

    _run(program, [*apt, "download", f"{program.package}={release.version}"], cwd=root, way=way)
    return next(root.glob(f"{program.package}_*.deb"))


def _private_apt(root: Path, mirror: str, suite: str, architecture: str) -> list[str]:
    """Return the first arguments of an apt-get command that knows one suite and writes only below `root`."""
    for folder in ("lists/partial", "archives/partial", "empty"):
        (root / folder).mkdir(parents=True)
    (root / "status").touch()

    trust = f"signed-by={KEYRING}" if KEYRING.exists() else "trusted=yes"
    (root / "sources.list").write_text(f"deb [{trust}] {mirror} {suite} main\n", encoding="utf-8")
    # Hooks of the system (Docker images have some) must not run.
    (root / "apt.conf").write_text("#clear APT::Update;\n#clear DPkg;\n", encoding="utf-8")

    options = {
        "Dir::Etc::SourceList": root / "sources.list",
        "Dir::Etc::SourceParts": root / "empty",
        "Dir::Etc::Preferences": root / "none",
        "Dir::Etc::PreferencesParts": root / "empty",
        "Dir::State::Lists": root / "lists",
        "Dir::State::Status": root / "status",
        "Dir::Cache": root,
        "Dir::Cache::Archives": root / "archives",
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Sandbox::User": "",  # as root, apt would change to a user without access to `root`
        "Acquire::Languages": "none",
        "Acquire::Retries": "2",
    }
    return ["apt-get", "-qq", f"--config-file={root / 'apt.conf'}", *(f"-o{k}={v}" for k, v in options.items())]


def _mirror(program: Program) -> str:
    """Return the Debian mirror of this machine's sources, or `DEBIAN_MIRROR`."""
    listed = _run(program, ["apt-get", "indextargets", "--format", "$(REPO_URI) $(COMPONENT)", "Identifier: Packages"])
    for line in listed.splitlines():
        uri, _, component = line.partition(" ")
        if component == "main" and urlsplit(uri).path.rstrip("/").endswith("/debian"):
            return uri.rstrip("/")
    return DEBIAN_MIRROR


def _run(program: Program, command: Sequence[str], cwd: Path | None = None, way: str = "") -> str:
    """Run a tool and return its stdout; `way` names its proxy in errors.

    Raises: Unavailable `…_FETCH_FAILED` with the end of its stderr.
    """
    reason = program.reason("FETCH_FAILED")
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env={**os.environ, "LC_ALL": "C.UTF-8", "no_proxy": no_proxy_with_loopback(os.environ)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=APT_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        text = f"{command[0]}{way} did not end within {APT_TIMEOUT_S} s; try again, or {program.own}"
        raise Unavailable(reason, text) from None

    if done.returncode != 0:
        tail = " ".join(done.stderr.split())[-500:]
        raise Unavailable(
            reason, f"{command[0]}{way} ended with {done.returncode} ({tail}); try again, or {program.own}"
        )
    return done.stdout


@contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the kernel releases the lock when the process ends, also after SIGKILL
        yield


__all__ = ["Program", "Release", "fetch"]
