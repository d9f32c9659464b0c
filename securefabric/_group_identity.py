"""What a group is called: a text that is equal on its members; a store has a say in a nonce alone.

The native core counts the groups of one identity and hashes both (PROTOCOL.md §7.1), so a process
has no two groups with one digest, and ranks whose digests differ do not meet.
"""

from __future__ import annotations

__all__ = ["identity_of_group", "identity_of_world", "prefix_of"]


def identity_of_world(*, prefix: str, name: str, ranks: list[int], nonce: str) -> str:
    """Return the identity of torch's group of all ranks."""
    return _joined("world", prefix, name, _listed(ranks), nonce)


def identity_of_group(*, world: str, prefix: str, name: str, ranks: list[int]) -> str:
    """Return the identity of any other group.

    world is the digest of the world's group while that is one of ours, else empty.
    """
    return _joined("group", world, prefix, name, _listed(ranks))


def prefix_of(store: object) -> str:
    """Return what all prefixes of a store together put before its keys.

    Programs tell groups apart by it, and each rank chooses it by itself. Empty for a store that is
    not c10d's, or has none.
    """
    from torch._C._distributed_c10d import Store

    from . import _C

    return _C.store_prefix(store) if isinstance(store, Store) else ""


def _listed(ranks: list[int]) -> str:
    return ",".join(map(str, ranks))


def _joined(*parts: str) -> str:
    """Return parts of any content, each behind its length in bytes: different parts, other text."""
    return "".join(f"{len(part.encode())}:{part}," for part in parts)
