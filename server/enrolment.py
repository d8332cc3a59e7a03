"""How a site becomes a member: invitation, token, certificate; later renewal, and who else takes part.

A gRPC service of four methods over TLS, with the bodies of ``common.enrolment_messages``. A site shows a
one-time token once; from then on it signs with the identity that it enrolled with, so that a site whose
certificate ended while it was away renews it by itself.

Guarantees:
    A token enrols one site with one set of keys, whatever is sent twice, lost or killed.
    A revoked site gets neither certificate nor directory.
    Nobody learns from a refusal more than its one line, and no line holds a token or a key.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network
from threading import Lock
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from common.canonical import labeled_digest
from common.certificates import (
    Authority,
    PublicKey,
    certificate_pem,
    csr_key,
    parse_certificate,
)
from common.enrolment_messages import (
    MOST_ANSWER_BYTES,
    MOST_REQUEST_BYTES,
    SERVICE,
    DirectoryAnswer,
    DirectoryRequest,
    EnrolAnswer,
    EnrolRequest,
    PackageAnswer,
    PackageRequest,
    RenewRequest,
    TimedRequest,
    from_body,
    join_address,
    to_body,
    verify,
)
from common.errors import (
    AuditBrokenError,
    BadCertificateError,
    BadFileError,
    BadMessageError,
    FederationError,
    ProtocolTooOldError,
    SettingsError,
    TokenExpiredError,
    TokenSiteError,
    TokenUnknownError,
    TokenUsedError,
    TooManyAttemptsError,
    UnsupportedSchemaError,
)
from common.ids import is_digest
from common.pki import read_identity
from common.versions import SPOKEN, negotiate
from server.home import CoordinatorHome, HomeSettings
from server.site_records import (
    active_site,
    add_certificate,
    add_site,
    require_new,
    site_identity,
    site_records,
)
from server.tokens import Tokens

logger = logging.getLogger(__name__)

REQUEST_LABEL = "consilium enrolment request v1"
# A person with a stale invitation tries a few times; a program that guesses does not stop.
BAD_TOKENS, BAD_TOKENS_S, ADDRESSES_KEPT = 10, 600.0, 1024
THREADS, MOST_CALLS = 8, 64
_V6_NETWORK = 64

Audit = Callable[[str, Mapping[str, str | int]], object]
"""Is told of every event: its name, and facts about it."""

_BAD_TOKEN = (TokenUnknownError, TokenSiteError, TokenUsedError, TokenExpiredError)
_STATUS: tuple[tuple[tuple[type[FederationError], ...], grpc.StatusCode], ...] = (
    ((TooManyAttemptsError,), grpc.StatusCode.RESOURCE_EXHAUSTED),
    ((BadMessageError, BadCertificateError, SettingsError), grpc.StatusCode.INVALID_ARGUMENT),
    ((ProtocolTooOldError, UnsupportedSchemaError), grpc.StatusCode.FAILED_PRECONDITION),
    ((BadFileError, AuditBrokenError), grpc.StatusCode.INTERNAL),
)


class Attempts:
    """Counts what an address did wrong; forgets after ``BAD_TOKENS_S``, and the oldest address when full."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._lock = clock, Lock()
        self._seen: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def require_few(self, address: str) -> None:
        """TooManyAttemptsError after ``BAD_TOKENS`` of them."""
        with self._lock:
            since, count = self._seen.get(address, (0.0, 0))
            if count >= BAD_TOKENS and self._clock() - since < BAD_TOKENS_S:
                raise TooManyAttemptsError(f"{address}: bad tokens", BAD_TOKENS)

    def add(self, address: str) -> None:
        """One more."""
        with self._lock:
            now = self._clock()
            since, count = self._seen.pop(address, (now, 0))
            self._seen[address] = (since, count + 1) if now - since < BAD_TOKENS_S else (now, 1)
            while len(self._seen) > ADDRESSES_KEPT:
                self._seen.popitem(last=False)


class Enrolment:
    """Answers sites; each method raises what it refuses with."""

    def __init__(
        self,
        home: CoordinatorHome,
        settings: HomeSettings,
        audit: Audit,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._home, self._settings, self._audit, self._clock = home, settings, audit, clock
        self._authority = Authority.open(home.authority)
        self._coordinator = read_identity(home.identity_file).public()
        self._tokens = Tokens(home.tokens_file)
        self._attempts = Attempts(clock)

    def enrol(self, request: EnrolRequest, address: str) -> EnrolAnswer:
        """A certificate for a site with a token."""
        self._attempts.require_few(address)
        self._require_consortium(request.consortium)
        request.verify()
        protocol = negotiate(SPOKEN, request.protocol)
        csr = request.csr.encode()
        key = csr_key(csr)
        # Its keys, not its bytes: who asks again may sign again, and ECDSA signatures differ each time.
        digest = labeled_digest(
            REQUEST_LABEL, bytes.fromhex(request.identity), request.node_key.encode(), _key_bytes(key)
        )

        def sign() -> str:
            require_new(self._home, request.site)
            signed = self._authority.sign_site(csr, request.site, self._settings.certificate_days)
            return certificate_pem(signed).decode()

        try:
            pem = self._tokens.redeem(request.token, request.site, digest.hex(), sign, self._now())
        except _BAD_TOKEN:
            self._attempts.add(address)
            raise
        certificate = parse_certificate(pem.encode(), "certificate")
        record = add_site(
            self._home,
            request.public(),
            node_key=request.node_key,
            certificate=certificate,
            protocol=protocol,
        )
        self._audit("site_enrolled", {"site": request.site, "identity": record.identity, "address": address})
        return self._answer(certificate, protocol)

    def renew(self, request: RenewRequest, address: str) -> EnrolAnswer:
        """A new certificate for a site that takes part."""
        self._require_signed(request)
        protocol = negotiate(SPOKEN, request.protocol)
        certificate = add_certificate(
            self._home,
            self._authority,
            request.site,
            request.csr.encode(),
            days=self._settings.certificate_days,
            protocol=protocol,
        )
        self._audit("site_renewed", {"site": request.site, "address": address})
        return self._answer(certificate, protocol)

    def directory(self, request: DirectoryRequest, address: str) -> DirectoryAnswer:
        """The other sites that take part, and the plans on offer."""
        self._require_signed(request)
        others = [record.site for record in site_records(self._home) if record.revoked is None]
        identities = {
            str(site): site_identity(self._home, site).key.hex() for site in others if site != request.site
        }
        digests = sorted(path.stem for path in self._home.packages.glob("*.json") if is_digest(path.stem))
        return DirectoryAnswer(identities=identities, packages=tuple(digests))

    def package(self, request: PackageRequest, address: str) -> PackageAnswer:
        """A plan on offer."""
        self._require_signed(request)
        path = self._home.packages / f"{request.digest}.json"
        if not path.is_file():
            raise BadMessageError(f"no plan {request.digest} is on offer")
        return PackageAnswer(package=path.read_text(encoding="utf-8"))

    def refused(self, what: str, reason: FederationError, address: str) -> None:
        """Write a refusal down."""
        logger.warning("%s from %s refused: %s", what, address, reason)
        try:
            self._audit("enrolment_refused", {"what": what, "reason": str(reason), "address": address})
        except (AuditBrokenError, OSError) as error:
            logger.error("not written down: %s", error)

    def _require_signed(self, request: TimedRequest) -> None:
        self._require_consortium(request.consortium)
        active_site(self._home, request.site)
        verify(request, site_identity(self._home, request.site), self._clock())

    def _require_consortium(self, got: str) -> None:
        if got != self._settings.consortium:
            raise BadMessageError(f"expected consortium {self._settings.consortium}, got {got}")

    def _answer(self, certificate: x509.Certificate, protocol: int) -> EnrolAnswer:
        return EnrolAnswer(
            certificate=certificate_pem(certificate).decode(),
            authority=certificate_pem(self._authority.certificate).decode(),
            coordinator=self._coordinator.key.hex(),
            protocol=protocol,
        )

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)


def serve(
    home: CoordinatorHome, settings: HomeSettings, audit: Audit, *, port: int | None = None
) -> tuple[grpc.Server, int]:
    """The running service, with gRPC's health service beside it, and its port.

    Args:
        home: Set up with ``make_coordinator``.
        settings: Where to listen, and how long certificates live.
        audit: Is told of every event.
        port: Instead of that of the settings; 0 takes a free one.

    Raises:
        BadFileError: The home was not set up.
        FederationError: The port is taken.
    """
    service = Enrolment(home, settings, audit)
    server = grpc.server(
        ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="enrolment"),
        handlers=[_methods(service)],
        maximum_concurrent_rpcs=MOST_CALLS,
        options=[
            ("grpc.max_receive_message_length", MOST_REQUEST_BYTES),
            ("grpc.max_send_message_length", MOST_ANSWER_BYTES),
            # A second process on the same port would take half of the calls.
            ("grpc.so_reuseport", 0),
        ],
    )
    told = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(told, server)
    wanted = settings.enrolment_port if port is None else port
    try:
        bound = server.add_secure_port(join_address(settings.bind, wanted), _credentials(home))
    except RuntimeError as error:
        raise FederationError(f"{settings.bind}:{wanted}: enrolment cannot listen there") from error
    server.start()
    told.set("", health_pb2.HealthCheckResponse.SERVING)
    told.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
    return server, bound


def _methods(service: Enrolment) -> grpc.GenericRpcHandler:
    def method(schema: type[Any], answer: Callable[[Any, str], Any]) -> grpc.RpcMethodHandler:
        def handle(body: bytes, context: grpc.ServicerContext) -> bytes:
            address = address_of(context.peer())
            try:
                return to_body(answer(from_body(schema, body), address))
            except FederationError as error:
                service.refused(schema.__name__, error, address)
                code, text = _status(error), str(error)
            except Exception as error:
                logger.error("%s failed (%s)", schema.__name__, type(error).__name__, exc_info=error)
                code, text = grpc.StatusCode.INTERNAL, ""
            # A file of the coordinator's is nobody else's business, nor are the words of a library.
            hidden = code is grpc.StatusCode.INTERNAL
            context.abort(code, "failed; see the coordinator's log" if hidden else text)
            raise AssertionError("abort raises")

        return grpc.unary_unary_rpc_method_handler(handle)

    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            "Enrol": method(EnrolRequest, service.enrol),
            "Renew": method(RenewRequest, service.renew),
            "Directory": method(DirectoryRequest, service.directory),
            "Package": method(PackageRequest, service.package),
        },
    )


def address_of(peer: str) -> str:
    """A caller's address without its port; of IPv6 the network, which one machine may have all of."""
    host = peer.partition(":")[2].rpartition(":")[0].replace("%5B", "").replace("%5D", "").strip("[]")
    try:
        found = ip_address(host)
    except ValueError:
        return "unknown"
    return str(found if found.version == 4 else ip_network((found, _V6_NETWORK), strict=False))


def _status(error: FederationError) -> grpc.StatusCode:
    for classes, code in _STATUS:
        if isinstance(error, classes):
            return code
    return grpc.StatusCode.PERMISSION_DENIED


def _credentials(home: CoordinatorHome) -> grpc.ServerCredentials:
    """Key and certificate of the server, read again when the certificate was made anew."""
    seen = home.server_certificate.stat().st_mtime_ns

    def read() -> grpc.ServerCertificateConfiguration:
        pair = (home.server_key.read_bytes(), home.server_certificate.read_bytes())
        return grpc.ssl_server_certificate_configuration([pair])

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal seen
        found = home.server_certificate.stat().st_mtime_ns
        if found == seen:
            return None
        seen = found
        return read()

    return grpc.dynamic_ssl_server_credentials(read(), fetch)


def _key_bytes(key: PublicKey) -> bytes:
    return bytes(
        key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
