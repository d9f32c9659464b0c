"""CURVE keys of a job's store, derived from the job key: whoever holds that can serve and connect.

Clients pin the server by its public key, the server admits one client key and no other. Both are
known to members alone, and neither is ever sent in the clear. The server's secret is taken from the
core's locked memory only where a server is started, is handed over, and dropped.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from zmq.utils import z85

from ..identity import read_key_text

__all__ = ["CurveKeys", "curve_keys"]


@dataclass(frozen=True, kw_only=True)
class CurveKeys:
    """Key pairs in Z85. ZeroMQ takes them as text, which Python cannot wipe."""

    key_id: str
    """Of the job key; public."""
    server_public: bytes
    client_public: bytes
    client_secret: bytes = field(repr=False)
    server_secret: bytes = field(default=b"", repr=False)
    """Only where the server is started, and only until it has been."""

    def without_server(self) -> CurveKeys:
        """Return what a client needs."""
        return replace(self, server_secret=b"")


def curve_keys(key_file: str, *, serve: bool = False) -> CurveKeys:
    """Return the keys of the job's store, the server's secret only for who is to serve it.

    Raises ConfigError when the key file is unusable.
    """
    from .._core import JobKey

    text = read_key_text(key_file)
    try:
        job_key = JobKey(text)
    except ValueError as error:
        from ..errors import ConfigError

        raise ConfigError(f"key file {key_file}: {error}") from None
    return CurveKeys(
        key_id=job_key.key_id,
        server_public=z85.encode(job_key.store_public("server")),
        client_public=z85.encode(job_key.store_public("client")),
        client_secret=_z85(job_key.store_secret("client")),
        server_secret=_z85(job_key.store_secret("server")) if serve else b"",
    )


def _z85(secret: bytearray) -> bytes:
    """Return a secret as ZeroMQ wants it, and wipe it."""
    text: bytes = z85.encode(secret)
    secret[:] = bytes(len(secret))
    return text
