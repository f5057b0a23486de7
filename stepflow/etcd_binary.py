"""The etcd program, for `stepflow dev` and the tests: the user's own, or one fetched from Debian's packages.

- `ETCD_BIN` names the program to use; then nothing is fetched or looked for.
- Otherwise a pinned package is fetched with apt, whose state lies in a throw-away folder: the system's package lists,
  sources and installed packages are neither used nor changed, and nobody has to be root.
- What arrives must have the SHA-256 that stands here, whatever the mirror, the proxy or apt say of it.
- The program is put into its place by one rename under a file lock: processes that start together fetch it once, and
  a fetch that is killed leaves nothing behind that looks complete.

Not here: starting etcd (`stepflow dev` does), and machines without apt: their users bring an etcd.
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

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DEBIAN_MIRROR = "http://deb.debian.org/debian"
"""Debian's public default, for machines whose own sources name no Debian."""

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
"""Where Debian keeps its keys. Elsewhere the index goes unsigned, and the checksum below is what vouches."""

APT_TIMEOUT_S = 300
VERSION_TIMEOUT_S = 10

OWN_ETCD = "install etcd 3.5.17 or later and name it: ETCD_BIN=/path/to/etcd"


@dataclass(frozen=True, slots=True)
class Package:
    """A package `etcd-server` of Debian. `sha256`: of the package file, for each Debian architecture."""

    suite: str
    version: str
    sha256: dict[str, str]


PACKAGES = (
    Package(
        "forky",
        "3.5.30-2",
        {
            "amd64": "11a4f7e350c5020b83edff5160a6063d4e56ac9cd014d21ce8916378bf96de79",
            "arm64": "c9f0208925c51d44ba026367930c67a1fd2bef12d162e8b99d249f42242f7100",
        },
    ),
    Package(
        "trixie",
        "3.5.16-4",
        {
            "amd64": "0875921bb0d023f2af9b8e15cdfbe417a03e65731345fb832c40f9c2dd72967b",
            "arm64": "5e21469a4f59f1cb2ed7af9c6eb9dda7d9734809c011cfa8a39b34f82a161a32",
        },
    ),
)
"""In order of preference. The later ones serve when an earlier one has left the archive."""


@dataclass(frozen=True, slots=True)
class EtcdBinary:
    """An etcd program that runs here. `version` as it says itself, such as 3.5.30."""

    path: Path
    version: str


def user_cache() -> Path:
    """Return the folder in which users keep what we fetched for them."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stepflow-mesh"


def find_etcd(cache: Path | None = None) -> EtcdBinary:
    """Return the etcd to use: `ETCD_BIN`, or else the one in `cache`, fetched now if it is not there.

    Blocks for some seconds when it fetches, and says on stderr what.

    Raises:
        NotFound: `ETCD_BIN_MISSING`, `ETCD_PACKAGE_GONE`.
        Refused: `ETCD_BIN_UNUSABLE`, `ETCD_NOT_FETCHABLE` (no apt, or another kind of machine), `ETCD_CHECKSUM`.
        Unavailable: `ETCD_FETCH_FAILED`.
    """
    own = os.environ.get("ETCD_BIN")
    if own:
        found = shutil.which(own)
        if found is None:
            raise NotFound("ETCD_BIN_MISSING", f"ETCD_BIN names {own!r}, which is no program that can be run")
        return EtcdBinary(Path(found).absolute(), _version(Path(found)))
    folder = (cache or user_cache()).absolute()  # apt takes relative folders for its own
    # The preferred one, or one that was fetched when that had left the archive.
    for package in PACKAGES:
        path = _place(folder, package)
        if path.exists():
            return EtcdBinary(path, _version(path))
    return _fetch_first(folder, PACKAGES)


def _place(folder: Path, package: Package) -> Path:
    return folder / f"etcd-{package.version}" / "etcd"


def _fetch_first(folder: Path, packages: Sequence[Package]) -> EtcdBinary:
    architecture = _architecture()
    folder.mkdir(parents=True, exist_ok=True)
    with _file_lock(folder / ".etcd.lock"):
        for package in packages:
            path = _place(folder, package)
            if path.exists() or _fetch(folder, package, architecture):
                return EtcdBinary(path, _version(path))
    names = " and ".join(f"{package.version} ({package.suite})" for package in packages)
    raise NotFound("ETCD_PACKAGE_GONE", f"Debian's archive has etcd-server {names} no more: {OWN_ETCD}")


def _architecture() -> str:
    """Return Debian's name for this machine. Raises: Refused, when nothing can be fetched for it."""
    for tool in ("apt-get", "dpkg", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise Refused("ETCD_NOT_FETCHABLE", f"etcd is fetched with apt and there is no {tool} here: {OWN_ETCD}")
    architecture = _run(["dpkg", "--print-architecture"]).strip()
    if any(architecture not in package.sha256 for package in PACKAGES):
        raise Refused("ETCD_NOT_FETCHABLE", f"no etcd is pinned for the architecture {architecture}: {OWN_ETCD}")
    return architecture


def _fetch(folder: Path, package: Package, architecture: str) -> bool:
    """Put the program of `package` into its place; False when the archive does not have this version (any more)."""
    mirror = _mirror()
    print(
        f"Fetching etcd-server {package.version} ({architecture}) of Debian {package.suite} from {mirror} into "
        f"{folder}, some 20 MB, once. To use another: ETCD_BIN=/path/to/etcd",
        file=sys.stderr,
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder) as scratch:
        root = Path(scratch)
        archive = _download(root, mirror, package, architecture)
        if archive is None:
            return False
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != package.sha256[architecture]:
            raise Refused(
                "ETCD_CHECKSUM",
                f"{archive.name} from {mirror} has SHA-256 {found}, expected {package.sha256[architecture]}; "
                f"it was not used. Fetch from another mirror, or {OWN_ETCD}",
            )
        _run(["dpkg-deb", "-x", str(archive), str(root / "unpacked")])
        place = _place(folder, package)
        shutil.rmtree(place.parent, ignore_errors=True)
        (root / "unpacked" / "usr" / "bin").rename(place.parent)
    return True


def _download(root: Path, mirror: str, package: Package, architecture: str) -> Path | None:
    """Return the package's file, downloaded below `root`; None when the archive has no such version."""
    apt = _private_apt(root, mirror, package.suite, architecture)
    _run([*apt, "update"])
    known = _run(["apt-cache", *apt[1:], "madison", "etcd-server"])
    if package.version not in re.findall(r"\|\s*(\S+)\s*\|", known):
        print(f"Debian {package.suite} has no etcd-server {package.version} any more", file=sys.stderr, flush=True)
        return None
    _run([*apt, "download", f"etcd-server={package.version}"], cwd=root)
    return next(root.glob("etcd-server_*.deb"))


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


def _mirror() -> str:
    """Return the Debian mirror that this machine's own sources use, or the public default."""
    listed = _run(["apt-get", "indextargets", "--format", "$(REPO_URI) $(COMPONENT)", "Identifier: Packages"])
    for line in listed.splitlines():
        uri, _, component = line.partition(" ")
        if component == "main" and urlsplit(uri).path.rstrip("/").endswith("/debian"):
            return uri.rstrip("/")
    return DEBIAN_MIRROR


def _version(path: Path) -> str:
    try:
        said = subprocess.run(
            [str(path), "--version"], capture_output=True, text=True, timeout=VERSION_TIMEOUT_S, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Refused("ETCD_BIN_UNUSABLE", f"{path} cannot be run ({error}): {OWN_ETCD}") from None
    found = re.search(r"etcd Version: (\S+)", said)
    if found is None:
        raise Refused("ETCD_BIN_UNUSABLE", f"{path} --version does not answer as etcd does: {OWN_ETCD}")
    return found.group(1)


def _run(command: Sequence[str], cwd: Path | None = None) -> str:
    """Return what a tool prints. Raises: Unavailable `ETCD_FETCH_FAILED` with its last words."""
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=APT_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(
            "ETCD_FETCH_FAILED", f"{command[0]} did not end within {APT_TIMEOUT_S} s; try again, or {OWN_ETCD}"
        ) from None
    if done.returncode != 0:
        tail = " ".join(done.stderr.split())[-500:]
        raise Unavailable(
            "ETCD_FETCH_FAILED", f"{command[0]} ended with {done.returncode} ({tail}); try again, or {OWN_ETCD}"
        )
    return done.stdout


@contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # freed by the system when the process ends, however it ends
        yield
