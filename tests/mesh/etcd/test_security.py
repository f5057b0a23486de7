"""TLS, client certificates and logins, against a real etcd that requires them."""

from __future__ import annotations

import asyncio
import datetime
import io
import ipaddress
import ssl
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from support import wait_for_value, wait_until_async
from support.etcd import FAST, EtcdServer, etcd_binary, running_etcd

from control_plane.compaction import Compaction
from control_plane.pressure import AdmissionPressure
from control_plane.store_meter import StoreMeter
from stepflow.errors import Forbidden, Invalid, Overloaded, Unauthenticated
from stepflow.store import Put, StoreUnavailable, Txn, created_at, present, put, range_all
from stepflow.store.etcd.config import EtcdConfig
from stepflow.store.etcd.members import UNKNOWN_VERSION
from stepflow.store.etcd.metrics import read_metrics
from stepflow.store.etcd.store import EtcdStore
from stepflow.telemetry import configure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterator
    from pathlib import Path

SCENARIO_TIMEOUT_S = 30.0

PASSWORD = "made for this test"  # noqa: S105  # of a server that lives as long as the test

TOKEN_TTL_S = 1


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, SCENARIO_TIMEOUT_S))


@asynccontextmanager
async def opened(config: EtcdConfig) -> AsyncIterator[EtcdStore]:
    store = await EtcdStore.open(config)
    try:
        yield store
    finally:
        await store.close()


# -- certificates -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    cert_file: Path
    key_file: Path


class Authority:
    """Makes certificates, in files, that it vouches for."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        certificate = (
            self._builder(self._name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.ca_file = folder / f"{name}.pem"
        self.ca_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str) -> Pair:
        """Make a certificate for a server or client on this machine."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        certificate = (
            self._builder(subject, key)
            .add_extension(
                x509.SubjectAlternativeName(
                    [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
                ),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        pair = Pair(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        pair.cert_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        pair.key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return pair

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
        )


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki"), "ours")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("strange"), "theirs")


@contextmanager
def tls_etcd(folder: Path, authority: Authority, *, asks_for_certificate: bool) -> Iterator[EtcdServer]:
    pair = authority.issue("server")
    args = [*FAST, f"--cert-file={pair.cert_file}", f"--key-file={pair.key_file}"]
    context = ssl.create_default_context(cafile=str(authority.ca_file))
    if asks_for_certificate:
        args += ["--client-cert-auth", f"--trusted-ca-file={authority.ca_file}"]
        own = authority.issue("operator")
        context.load_cert_chain(own.cert_file, own.key_file)
    with running_etcd(folder, *args, scheme="https", context=context) as server:
        yield server


async def works(config: EtcdConfig) -> None:
    """Use every kind of call."""
    async with opened(config) as store:
        watch = store.watch("a")
        lease = await store.lease_grant(60)
        assert await store.lease_keep_alive(lease) == 60
        revision = await put(store, "a", b"1", lease=lease)
        assert (await anext(watch)).revision == revision
        assert [kv.key async for kv in range_all(store, "")] == ["a"]
        await store.lease_revoke(lease)
        assert (await anext(watch)).events[0].kind == "delete"
        watch.close()
        assert (await read_metrics(config, config.endpoints[0]))["etcd_server_version"] == store.version


def test_a_server_with_a_certificate_of_a_made_authority_is_trusted_by_its_file(
    tmp_path: Path, authority: Authority, stranger: Authority
) -> None:
    with tls_etcd(tmp_path, authority, asks_for_certificate=False) as server:
        run(works(EtcdConfig.parse(f"https://{server.endpoint}", ca_file=authority.ca_file)))
        for config in (
            EtcdConfig.parse(server.endpoint, ca_file=stranger.ca_file),
            EtcdConfig.parse(f"https://{server.endpoint}"),  # the public authorities
            EtcdConfig.parse(server.endpoint),  # without TLS
        ):
            with pytest.raises(StoreUnavailable) as caught:
                run(works(config))
            assert caught.value.reason == "STORE_UNREACHABLE"
            assert server.endpoint in caught.value.message


def test_a_server_that_asks_for_a_certificate_takes_ours_only(
    tmp_path: Path, authority: Authority, stranger: Authority
) -> None:
    with tls_etcd(tmp_path, authority, asks_for_certificate=True) as server:

        def config(pair: Pair | None) -> EtcdConfig:
            files = {"cert_file": pair.cert_file, "key_file": pair.key_file} if pair else {}
            return EtcdConfig.parse(server.endpoint, ca_file=authority.ca_file, **files)  # type: ignore[arg-type]  # as mypy cannot see in a dict

        run(works(config(authority.issue("client"))))
        for pair in (None, stranger.issue("client")):
            with pytest.raises(StoreUnavailable):
                run(works(config(pair)))


# -- logins -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """Give an etcd whose user `mesh` may use the prefix `stepflow/` and whose tokens live a second."""
    with running_etcd(tmp_path_factory.mktemp("guarded"), *FAST, f"--auth-token-ttl={TOKEN_TTL_S}") as server:
        server.ask("auth/role/add", name="mesh")
        permission = {"permType": "READWRITE", "key": "c3RlcGZsb3cv", "range_end": "c3RlcGZsb3cw"}  # stepflow/ to 0
        server.ask("auth/role/grant", name="mesh", perm=permission)
        server.ask("auth/role/add", name="root")
        for user, role in (("mesh", "mesh"), ("root", "root")):
            server.ask("auth/user/add", name=user, password=PASSWORD)
            server.ask("auth/user/grant", user=user, role=role)
        server.ask("auth/enable")
        yield server


def test_a_user_with_its_password_works_and_no_other(guarded: EtcdServer) -> None:
    run(works(EtcdConfig.parse(guarded.endpoint, user="mesh", password=PASSWORD)))
    for user, password in (("mesh", "wrong"), ("nobody", PASSWORD), ("", "")):
        with pytest.raises(Unauthenticated) as caught:
            run(works(EtcdConfig.parse(guarded.endpoint, user=user, password=password)))
        assert caught.value.reason == "STORE_LOGIN_REFUSED"
        assert PASSWORD not in str(caught.value)


def test_a_user_who_is_not_root_learns_version_and_size(guarded: EtcdServer) -> None:
    async def scenario() -> None:
        async with opened(EtcdConfig.parse(guarded.endpoint, user="mesh", password=PASSWORD)) as store:
            before = await store.status()
            assert store.version == before.version == etcd_binary().version
            for number in range(20):
                await put(store, f"fill/{number}", b"x" * 50_000)
            filled_bytes = before.size_in_use_bytes + 500_000
            await wait_for_value(store.status, "it is filled", lambda now: now.size_in_use_bytes > filled_bytes)
            with pytest.raises(Overloaded) as full:
                await AdmissionPressure(StoreMeter(store), 500_000).admit()
            assert full.value.reason == "STORE_FULL"

    run(scenario())


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    configure("warning", stream)
    yield stream
    configure()


def test_a_user_who_is_not_root_leaves_compaction_to_etcd_and_a_warning_says_so(
    guarded: EtcdServer, logged: io.StringIO
) -> None:
    async def scenario() -> None:
        async with opened(EtcdConfig.parse(guarded.endpoint, user="mesh", password=PASSWORD)) as store:
            fence = created_at("leader", await put(store, "leader", b"me"))
            compaction = Compaction(store, interval_s=0, kept_s=1)
            for second in range(5):
                await put(store, "k", b"")
                await compaction.tick(fence, second)
            with pytest.raises(Forbidden):
                await store.compact(1)
        assert logged.getvalue().count("etcd does not let this user compact") == 1

    run(scenario())


@pytest.mark.parametrize("answer", [b"HTTP/1.0 404 Not Found\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\nother 1\n", b""])
def test_without_metrics_a_full_store_cannot_be_seen_and_a_warning_says_so(
    guarded: EtcdServer, answer: bytes, logged: io.StringIO
) -> None:
    """The way to etcd's metrics is cut by what stands between: it lets gRPC pass, and answers all else itself."""

    async def scenario() -> None:
        async def between(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            first = await reader.read(3)
            if first != b"PRI":
                writer.write(answer)
                writer.close()
                return
            there, onward = await asyncio.open_connection("127.0.0.1", guarded.client_port)
            onward.write(first)
            await asyncio.gather(carry(reader, onward), carry(there, writer))

        async with await asyncio.start_server(between, "127.0.0.1", 0) as server:
            address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            async with opened(EtcdConfig.parse(address, user="mesh", password=PASSWORD)) as store:
                assert store.version == UNKNOWN_VERSION
                with pytest.raises(Forbidden):
                    await store.status()
                await AdmissionPressure(StoreMeter(store), 1).admit()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.CancelledError):  # the server ends with the test
            while part := await reader.read(65_536):
                writer.write(part)
        writer.close()

    run(scenario())
    assert "etcd tells its size to root alone" in logged.getvalue()


def test_a_token_that_has_run_out_is_renewed_in_the_middle_of_things(guarded: EtcdServer) -> None:
    async def scenario() -> None:
        async with opened(EtcdConfig.parse(guarded.endpoint, user="mesh", password=PASSWORD)) as store:
            watch = store.watch("t")
            tokens = {store._client.token}
            for i in range(3):
                # Nothing is asked for as long as a token lives: it ends.
                await asyncio.sleep(TOKEN_TTL_S + 0.5)
                txn = Txn((), (Put(f"t{i}", b""),))
                results = await asyncio.gather(store.txn(txn), store.get("t"), store.lease_grant(60), store.range("t"))
                assert results[0].succeeded
                tokens.add(store._client.token)
                late = store.watch(f"t{i}", from_revision=results[0].revision)
                assert (await anext(late)).revision == results[0].revision
                late.close()
                assert (await anext(watch)).revision == results[0].revision
            assert len(tokens) > 1
            watch.close()

    run(scenario())


def test_what_the_user_may_not_touch_is_forbidden(guarded: EtcdServer) -> None:
    async def scenario() -> None:
        config = EtcdConfig.parse(guarded.endpoint, user="mesh", password=PASSWORD, prefix="secret/")
        with pytest.raises(Forbidden) as caught:
            await EtcdStore.open(config)
        assert caught.value.reason == "STORE_FORBIDDEN"

    run(scenario())


def test_a_user_who_loses_the_right_hears_so_and_his_watch_ends(guarded: EtcdServer) -> None:
    async def scenario() -> None:
        root = str(guarded.ask("auth/authenticate", name="root", password=PASSWORD)["token"])
        guarded.ask("auth/user/add", token=root, name="guest", password=PASSWORD)
        guarded.ask("auth/user/grant", token=root, user="guest", role="mesh")
        async with opened(EtcdConfig.parse(guarded.endpoint, user="guest", password=PASSWORD)) as store:
            await put(store, "g", b"")
            root = str(guarded.ask("auth/authenticate", name="root", password=PASSWORD)["token"])
            guarded.ask("auth/user/revoke", token=root, name="guest", role="mesh")
            with pytest.raises(Forbidden):
                await store.txn(Txn((present("g"),), (Put("g", b"2"),)))
            watch = store.watch("g")
            await wait_until_async(lambda: watch.ended_early, "the watch is refused")
            with pytest.raises(Forbidden):
                await anext(watch)

    run(scenario())


# -- what people can write wrong ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoints", "addresses", "tls"),
    [
        ("localhost", ("localhost:2379",), False),
        ("a:1, b:2,a:1", ("a:1", "b:2"), False),
        ("http://a:1/", ("a:1",), False),
        ("https://a,https://b:2", ("a:2379", "b:2"), True),
        ("[::1]:5", ("[::1]:5",), False),
    ],
)
def test_endpoints_are_read_as_people_write_them(endpoints: str, addresses: tuple[str, ...], tls: bool) -> None:
    config = EtcdConfig.parse(endpoints)
    assert (config.endpoints, config.tls) == (addresses, tls)


@pytest.mark.parametrize(
    ("endpoints", "options"),
    [
        ("", {}),
        (" , ", {}),
        ("ftp://a:1", {}),
        ("a:port", {}),
        ("http://user:secret@a:1", {}),
        ("http://a:1/path", {}),
        ("http://a,https://b", {}),
        ("http://a", {"ca_file": "ca.pem"}),
        ("a", {"cert_file": "cert.pem"}),
        ("a", {"user": "me"}),
        ("a", {"password": "secret"}),
        ("a", {"prefix": "x" * 33}),
        ("a", {"call_timeout_s": 0}),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(endpoints: str, options: dict[str, Any]) -> None:
    with pytest.raises(Invalid) as caught:
        EtcdConfig.parse(endpoints, **options)
    assert caught.value.reason == "ETCD_CONFIG_INVALID"
    assert "secret" not in caught.value.message


def test_a_file_that_is_missing_or_no_certificate_is_named(tmp_path: Path, authority: Authority) -> None:
    async def refused(**files: Any) -> str:
        with pytest.raises(Invalid) as caught:
            await EtcdStore.open(EtcdConfig.parse("127.0.0.1:1", **files))
        return caught.value.message

    async def scenario() -> None:
        junk = tmp_path / "junk.pem"
        junk.write_text("no certificate", encoding="utf-8")
        pair, other = authority.issue("one"), authority.issue("two")
        assert "missing.pem" in await refused(ca_file=tmp_path / "missing.pem")
        assert "junk.pem" in await refused(ca_file=junk)
        assert "junk.pem" in await refused(cert_file=junk, key_file=pair.key_file)
        assert "gone.key" in await refused(cert_file=pair.cert_file, key_file=tmp_path / "gone.key")
        assert "one.pem" in await refused(cert_file=pair.cert_file, key_file=other.key_file)

    run(scenario())


def test_the_password_is_not_shown() -> None:
    assert PASSWORD not in repr(EtcdConfig.parse("a", user="me", password=PASSWORD))
