"""Programs out of Debian's packages: fetched with apt, unpacked, without root and without touching the system.

- apt's state lies in a throw-away folder: the system's package lists, sources and installed packages are neither used
  nor changed, and nobody has to be root.
- What arrives must have the SHA-256 that the program's release names, whatever the mirror, the proxy or apt say of it.
- The program is put into its place by one rename under a file lock: processes that start together fetch it once, and
  a fetch that is killed leaves nothing behind that looks complete.

Not here: which programs there are, and machines without apt: their users bring the program.
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

from stepflow.errors import NotFound, Refused, Unavailable
from stepflow.proxies import named_proxy, no_proxy_with_loopback, through

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DEBIAN_MIRROR = "http://deb.debian.org/debian"
"""Debian's public default, for machines whose own sources name no Debian."""

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
"""Where Debian keeps its keys. Elsewhere the index goes unsigned, and the checksum below is what vouches."""

APT_TIMEOUT_S = 300


@dataclass(frozen=True, slots=True)
class Release:
    """One version of a package. `sha256`: of the package file, for each Debian architecture."""

    suite: str
    version: str
    sha256: dict[str, str]


@dataclass(frozen=True, slots=True)
class Program:
    """A program in `/usr/bin` of a package, and the releases to take it from, in order of preference."""

    name: str
    package: str
    variable: str
    """The environment variable by which users bring their own."""
    own: str
    """What users can do who have to bring it, for the text of an error."""
    releases: tuple[Release, ...]
    """The later ones serve when an earlier one has left the archive."""

    def reason(self, what: str) -> str:
        return f"{self.name.upper()}_{what}"


def fetch(program: Program, cache: Path) -> Path:
    """Return the path of the program in `cache`, fetched now if it is not there.

    Blocks for some seconds when it fetches, and says on stderr what.

    Raises (reasons begin with the program's name):
        NotFound: `…_PACKAGE_GONE`.
        Refused: `…_NOT_FETCHABLE` (no apt, or another kind of machine), `…_CHECKSUM`.
        Unavailable: `…_FETCH_FAILED`.
    """
    folder = cache.absolute()  # apt takes relative folders for its own
    # The preferred one, or one that was fetched when that had left the archive.
    for release in program.releases:
        path = _place(folder, program, release)
        if path.exists():
            return path
    return _fetch_first(folder, program)


def _place(folder: Path, program: Program, release: Release) -> Path:
    return folder / f"{program.name}-{release.version}" / program.name


def _fetch_first(folder: Path, program: Program) -> Path:
    architecture = _architecture(program)
    folder.mkdir(parents=True, exist_ok=True)
    with _file_lock(folder / f".{program.name}.lock"):
        for release in program.releases:
            path = _place(folder, program, release)
            if path.exists() or _fetch(folder, program, release, architecture):
                return path
    names = " and ".join(f"{release.version} ({release.suite})" for release in program.releases)
    raise NotFound(
        program.reason("PACKAGE_GONE"), f"Debian's archive has {program.package} {names} no more: {program.own}"
    )


def _architecture(program: Program) -> str:
    """Return Debian's name for this machine. Raises: Refused, when nothing can be fetched for it."""
    for tool in ("apt-get", "dpkg", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise Refused(
                program.reason("NOT_FETCHABLE"),
                f"{program.name} is fetched with apt and there is no {tool} here: {program.own}",
            )
    architecture = _run(program, ["dpkg", "--print-architecture"]).strip()
    if any(architecture not in release.sha256 for release in program.releases):
        raise Refused(
            program.reason("NOT_FETCHABLE"),
            f"no {program.name} is pinned for the architecture {architecture}: {program.own}",
        )
    return architecture


def _fetch(folder: Path, program: Program, release: Release, architecture: str) -> bool:
    """Put the program into its place; False when the archive does not have this release (any more)."""
    mirror = _mirror(program)
    print(
        f"Fetching {program.package} {release.version} ({architecture}) of Debian {release.suite} from {mirror} into "
        f"{folder}, some 20 MB, once. To use another: {program.variable}=/path/to/{program.name}",
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
            raise Refused(
                program.reason("CHECKSUM"),
                f"{archive.name} from {mirror} has SHA-256 {found}, expected {release.sha256[architecture]}; "
                f"it was not used. Fetch from another mirror, or {program.own}",
            )
        _run(program, ["dpkg-deb", "-x", str(archive), str(root / "unpacked")])
        place = _place(folder, program, release)
        shutil.rmtree(place.parent, ignore_errors=True)
        (root / "unpacked" / "usr" / "bin").rename(place.parent)
    return True


def _download(root: Path, mirror: str, program: Program, release: Release, architecture: str) -> Path | None:
    """Return the package's file, downloaded below `root`; None when the archive has no such version."""
    apt = _private_apt(root, mirror, release.suite, architecture)
    way = through(named_proxy(mirror, os.environ))
    _run(program, [*apt, "update"], way=way)
    known = _run(program, ["apt-cache", *apt[1:], "madison", program.package])
    if release.version not in re.findall(r"\|\s*(\S+)\s*\|", known):
        print(
            f"Debian {release.suite} has no {program.package} {release.version} any more", file=sys.stderr, flush=True
        )
        return None
    _run(program, [*apt, "download", f"{program.package}={release.version}"], cwd=root, way=way)
    return next(root.glob(f"{program.package}_*.deb"))


def _private_apt(root: Path, mirror: str, suite: str, architecture: str) -> list[str]:
    """Return the beginning of an apt-get command that knows one suite and keeps everything it writes below `root`."""
    for folder in ("lists/partial", "archives/partial", "empty"):
        (root / folder).mkdir(parents=True)
    (root / "status").touch()
    trust = f"signed-by={KEYRING}" if KEYRING.exists() else "trusted=yes"
    (root / "sources.list").write_text(f"deb [{trust}] {mirror} {suite} main\n", encoding="utf-8")
    # Hooks of the system (such as Docker images have) must not run for us.
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
        "APT::Sandbox::User": "",  # root's apt would change to a user who may not enter `root`
        "Acquire::Languages": "none",
        "Acquire::Retries": "2",
    }
    return ["apt-get", "-qq", f"--config-file={root / 'apt.conf'}", *(f"-o{k}={v}" for k, v in options.items())]


def _mirror(program: Program) -> str:
    """Return the Debian mirror that this machine's own sources use, or the public default."""
    listed = _run(program, ["apt-get", "indextargets", "--format", "$(REPO_URI) $(COMPONENT)", "Identifier: Packages"])
    for line in listed.splitlines():
        uri, _, component = line.partition(" ")
        if component == "main" and urlsplit(uri).path.rstrip("/").endswith("/debian"):
            return uri.rstrip("/")
    return DEBIAN_MIRROR


def _run(program: Program, command: Sequence[str], cwd: Path | None = None, way: str = "") -> str:
    """Return what a tool prints; `way` is the proxy that it uses, for errors.

    Raises: Unavailable `…_FETCH_FAILED` with its last words.
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
        fcntl.flock(file, fcntl.LOCK_EX)  # freed by the system when the process ends, however it ends
        yield


__all__ = ["Program", "Release", "fetch"]
