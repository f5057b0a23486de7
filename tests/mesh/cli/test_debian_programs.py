"""Finding and fetching programs: with the machine's real apt, from an archive built by the test."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from stepflow.dev import debian, etcd_binary
from stepflow.dev.debian import Release
from stepflow.dev.etcd_binary import ETCD, find_etcd
from stepflow.errors import FailedPrecondition, NotFound, StepflowError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable

SAYS_VERSION = "#!/bin/sh\necho 'etcd Version: {version}'\n"

needs_apt = pytest.mark.skipif(shutil.which("apt-get") is None, reason="etcd is fetched with apt")


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return path


def run(*command: str, cwd: Path | None = None) -> str:
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True, timeout=60).stdout


class Archive:
    """A Debian archive with one version of the package in each suite."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.architecture = run("dpkg", "--print-architecture").strip()

    def publish(self, suite: str, version: str) -> Release:
        tree = self.root / "build" / suite
        program(tree / "usr" / "bin" / "etcd", SAYS_VERSION.format(version=version))
        fields = f"Package: etcd-server\nVersion: {version}\nArchitecture: {self.architecture}\nMaintainer: test\n"
        (tree / "DEBIAN").mkdir()
        (tree / "DEBIAN" / "control").write_text(f"{fields}Description: test\n", encoding="utf-8")
        name = f"pool/etcd-server_{version}_{self.architecture}.deb"
        (self.root / "pool").mkdir(exist_ok=True)
        run("dpkg-deb", "--root-owner-group", "-b", str(tree), str(self.root / name))
        content = (self.root / name).read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        index = f"main/binary-{self.architecture}/Packages"
        listing = f"{fields}Filename: {name}\nSize: {len(content)}\nSHA256: {sha256}\nDescription: test\n"
        place = self.root / "dists" / suite / index
        place.parent.mkdir(parents=True)
        place.write_text(listing, encoding="utf-8")
        digest = hashlib.sha256(listing.encode()).hexdigest()
        release = (
            f"Suite: {suite}\nCodename: {suite}\nComponents: main\nArchitectures: {self.architecture}\n"
            f"SHA256:\n {digest} {len(listing)} {index}\n"
        )
        (self.root / "dists" / suite / "Release").write_text(release, encoding="utf-8")
        return Release(suite, version, {self.architecture: sha256})


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    """Give an empty archive that stands where this machine's mirror would."""
    made = Archive(tmp_path / "debian")
    made.root.mkdir()
    monkeypatch.setattr(debian, "_mirror", lambda _: f"file:{made.root}")
    monkeypatch.setattr(debian, "KEYRING", tmp_path / "no keyring")  # the test's archive is unsigned
    monkeypatch.delenv("ETCD_BIN", raising=False)
    return made


@pytest.fixture
def pin(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    return lambda *releases: monkeypatch.setattr(etcd_binary, "ETCD", replace(ETCD, releases=releases))


# -- the user's own -----------------------------------------------------------------------------------------------


def test_the_etcd_that_the_user_names_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = program(tmp_path / "my etcd", SAYS_VERSION.format(version="3.6.1"))
    monkeypatch.setenv("ETCD_BIN", str(own))
    assert find_etcd(tmp_path / "cache") == etcd_binary.EtcdBinary(own, "3.6.1")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [(None, "ETCD_BIN_MISSING"), ("#!/bin/sh\necho hello\n", "ETCD_BIN_UNUSABLE"), ("", "ETCD_BIN_UNUSABLE")],
)
def test_a_named_etcd_that_is_none_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, reason: str
) -> None:
    path = tmp_path / "etcd"
    if text is not None:
        program(path, text)
    monkeypatch.setenv("ETCD_BIN", str(path))
    with pytest.raises(StepflowError) as caught:
        find_etcd(tmp_path)
    assert caught.value.reason == reason
    assert str(path) in caught.value.message


# -- fetching -----------------------------------------------------------------------------------------------------


@needs_apt
def test_the_first_pinned_package_is_fetched_once_and_people_are_told(
    tmp_path: Path, archive: Archive, pin: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    pin(archive.publish("forky", "3.5.30-2"), archive.publish("trixie", "3.5.16-4"))
    found = find_etcd(tmp_path / "cache")
    assert found.version == "3.5.30-2"
    assert found.path.is_relative_to(tmp_path / "cache")
    told = capfd.readouterr()
    assert "3.5.30-2" in told.err
    assert "ETCD_BIN" in told.err
    assert told.out == ""
    shutil.rmtree(archive.root)
    assert find_etcd(tmp_path / "cache") == found
    assert capfd.readouterr().err == ""
    left = sorted(path.name for path in (tmp_path / "cache").iterdir())
    assert left == [".etcd.lock", "etcd-3.5.30-2"]


@needs_apt
def test_the_next_package_serves_when_the_first_has_left_the_archive(
    tmp_path: Path, archive: Archive, pin: Callable[..., None]
) -> None:
    archive.publish("forky", "3.5.31-1")
    gone = Release("forky", "3.5.30-2", {archive.architecture: "0" * 64})
    pin(gone, archive.publish("trixie", "3.5.16-4"))
    assert find_etcd(tmp_path / "cache").version == "3.5.16-4"
    pin(gone)
    with pytest.raises(NotFound, match=r"3\.5\.30-2.*ETCD_BIN") as caught:
        find_etcd(tmp_path / "cache")
    assert caught.value.reason == "ETCD_PACKAGE_GONE"


@needs_apt
def test_a_package_with_another_checksum_is_not_used(
    tmp_path: Path, archive: Archive, pin: Callable[..., None]
) -> None:
    published = archive.publish("forky", "3.5.30-2")
    pin(Release("forky", published.version, {archive.architecture: "0" * 64}))
    with pytest.raises(FailedPrecondition) as caught:
        find_etcd(tmp_path / "cache")
    assert caught.value.reason == "ETCD_CHECKSUM"
    assert published.sha256[archive.architecture] in caught.value.message
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".etcd.lock"]


@needs_apt
def test_a_mirror_that_cannot_be_reached_says_so(tmp_path: Path, archive: Archive, pin: Callable[..., None]) -> None:
    pin(Release("forky", "3.5.30-2", {archive.architecture: "0" * 64}))
    with pytest.raises(Unavailable, match="ETCD_BIN") as caught:
        find_etcd(tmp_path / "cache")
    assert caught.value.reason == "ETCD_FETCH_FAILED"


@needs_apt
def test_an_unknown_kind_of_machine_is_told_to_bring_its_own(
    tmp_path: Path, archive: Archive, pin: Callable[..., None]
) -> None:
    pin(Release("forky", "3.5.30-2", {"vax": "0" * 64}))
    with pytest.raises(FailedPrecondition, match="ETCD_BIN") as caught:
        find_etcd(tmp_path / "cache")
    assert caught.value.reason == "ETCD_NOT_FETCHABLE"


def test_a_machine_without_apt_is_told_to_bring_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ETCD_BIN", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FailedPrecondition, match="ETCD_BIN") as caught:
        find_etcd(tmp_path / "cache")
    assert caught.value.reason == "ETCD_NOT_FETCHABLE"


@needs_apt
def test_those_who_ask_at_once_fetch_once(
    tmp_path: Path, archive: Archive, pin: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    pin(archive.publish("forky", "3.5.30-2"))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(find_etcd, [tmp_path / "cache"] * 4))
    assert len(set(found)) == 1
    assert capfd.readouterr().err.count("Fetching") == 1


@needs_apt
def test_the_mirror_is_one_that_the_machine_uses_or_the_public_one() -> None:
    assert Path(debian._mirror(ETCD)).name == "debian"
