from __future__ import annotations

import pytest
from torch._C._distributed_c10d import HashStore, PrefixStore

from securefabric._group_identity import identity_of_group, identity_of_world, prefix_of


@pytest.mark.parametrize("prefixes", [[], ["a"], ["a", "b/"], ["", "\u00e9", "c"]])
def test_prefix_of__is_what_stands_before_a_key(prefixes: list[str]) -> None:
    inner = HashStore()
    store: HashStore | PrefixStore = inner
    for prefix in prefixes:
        store = PrefixStore(prefix, store)
    store.set("key", "value")
    assert inner.check([prefix_of(store) + "key"])


def test_prefix_of__a_store_that_is_not_torchs_has_none() -> None:
    assert prefix_of(object()) == ""


def test_identity__different_parts_make_different_texts() -> None:
    parts = ["", "1", "1:", "1:0,", "0:,", "a,b", "\u00e9"]
    seen = {
        identity_of_group(world=world, prefix=prefix, name=name, ranks=ranks)
        for world in parts
        for prefix in parts
        for name in parts
        for ranks in ([0, 1], [1, 0], [10], [1])
    }
    seen |= {
        identity_of_world(prefix=prefix, name=name, ranks=[0, 1], nonce=nonce)
        for prefix in parts
        for name in parts
        for nonce in parts
    }
    assert len(seen) == 4 * 7**3 + 7**3


def test_identity__is_as_the_page_has_it() -> None:
    group = identity_of_group(world="", prefix="p/", name="\u00e9", ranks=[2, 10])
    assert group == "5:group,0:,2:p/,2:\u00e9,4:2,10,"
