"""CURVE keys of a job's store, derived from the job key: whoever holds that can serve and connect.

Clients pin the server by its public key, the server admits one client key and no other. Both are
known to members alone, and neither is ever sent in the clear.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import zmq
from zmq.utils import z85

from ..identity import read_key_text

__all__ = ["CurveKeys", "curve_keys"]


@dataclass(frozen=True, kw_only=True)
class CurveKeys:
    """Key pairs in Z85. ZeroMQ takes them as text, which Python cannot wipe."""

    key_id: str
    """Of the job key; public."""
    server_public: bytes
    server_secret: bytes = field(repr=False)
    client_public: bytes
    client_secret: bytes = field(repr=False)


def curve_keys(key_file: str) -> CurveKeys:
    """Return the keys of the job's store. Raises ConfigError when the key file is unusable."""
    from .._core import JobKey

    text = read_key_text(key_file)
    try:
        job_key = JobKey(text)
    except ValueError as error:
        from ..errors import ConfigError

        raise ConfigError(f"key file {key_file}: {error}") from None
    secrets = {}
    for role in ("server", "client"):
        secret = job_key.store_secret(role)
        secrets[role] = z85.encode(bytes(secret))
        secret[:] = bytes(len(secret))
    return CurveKeys(
        key_id=job_key.key_id,
        server_public=zmq.curve_public(secrets["server"]),
        server_secret=secrets["server"],
        client_public=zmq.curve_public(secrets["client"]),
        client_secret=secrets["client"],
    )
