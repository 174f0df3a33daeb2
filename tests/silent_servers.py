"""Servers that never answer, or not in the protocol of the client."""

from __future__ import annotations

import datetime
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def silent_server() -> Iterator[int]:
    """Yield a port that accepts connections and never answers, as behind some firewalls."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listening:  # the kernel accepts for it
        yield int(listening.getsockname()[1])


@contextmanager
def plain_server(answer: bytes) -> Iterator[int]:
    """Yield a port that sends ``answer`` for whatever it receives, such as a TLS handshake, and waits for more."""
    with _serving(lambda connection: _answer(connection, answer)) as port:
        yield port


@contextmanager
def tls_server(folder: Path) -> Iterator[int]:
    """Yield a port that speaks TLS and answers nothing; it closes a connection that does not begin with TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate("localhost", folder))

    def wait(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as wrapped:
            while wrapped.recv(4096):
                pass

    with _serving(wait) as port:
        yield port


def _answer(connection: socket.socket, answer: bytes) -> None:
    with connection:
        while connection.recv(4096):
            connection.sendall(answer)


@contextmanager
def _serving(handle) -> Iterator[int]:
    def one(connection: socket.socket) -> None:
        with suppress(OSError):
            handle(connection)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=one, args=(listening.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0), backlog=100) as listening:
        threading.Thread(target=accept, daemon=True).start()
        yield int(listening.getsockname()[1])


def certificate(name: str, folder: Path) -> tuple[Path, Path]:
    """Make a certificate for a host, signed by itself, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    who = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now, day = datetime.datetime.now(datetime.timezone.utc), datetime.timedelta(days=1)
    made = (
        x509.CertificateBuilder(who, who, key.public_key(), x509.random_serial_number(), now - day, now + day)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )  # fmt: skip
    return folder / "cert.pem", folder / "key.pem"
