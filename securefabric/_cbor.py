"""Canonical CBOR (RFC 7049 §3.9): one encoding of each value, and a decoder that takes no other."""

from __future__ import annotations

import cbor2

__all__ = ["decode", "encode"]


def encode(value: object) -> bytes:
    """Return the canonical encoding."""
    return cbor2.dumps(value, canonical=True)


def decode(encoded: bytes) -> object:
    """Decode bytes that anybody may have written, whose length the caller has bounded.

    Raises ValueError for what is not CBOR, and for what does not encode to the same bytes again.
    """
    try:
        value: object = cbor2.loads(
            encoded,
            max_depth=4,  # a body, its engines, one of them, its addresses
            allow_indefinite=False,
            allow_duplicate_keys=False,
            strict_hashable_types=True,
        )
        is_canonical = encode(value) == encoded
    except Exception as error:  # what decoders of semantic tags raise is not bounded by cbor2
        raise ValueError(f"not CBOR ({type(error).__name__})") from None
    if not is_canonical:
        raise ValueError("not canonical CBOR")
    return value
