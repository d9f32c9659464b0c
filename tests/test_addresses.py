"""The ports a rank binds and the addresses it names to others, as settings and in a job."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from ranks import join, run_ranks

from securefabric._addresses import (
    PortRange,
    advertised_addresses,
    parse_advertised,
    parse_ports,
)
from securefabric.errors import ConfigError
from securefabric.options import Options

pytestmark = pytest.mark.usefixtures("clean_environment")


def test_parse_ports__range_single_and_any() -> None:
    assert parse_ports("6000-6007") == PortRange(first=6000, last=6007)
    assert parse_ports("65535") == PortRange(first=65535, last=65535)
    assert parse_ports("") == PortRange()


@pytest.mark.parametrize("text", ["-", "1-", "-1", "6000-6007-6009", "+1", "\u0661", "65536"])
def test_parse_ports__refuses_anything_else(text: str) -> None:
    with pytest.raises(ValueError, match="no port"):
        parse_ports(text)


def test_parse_advertised__each_form() -> None:
    text = "203.0.113.5, 203.0.113.6:70,2001:db8::1,[2001:db8::2]:71"
    items = parse_advertised(text, has_ports=True)
    assert [(str(item.ip), item.port) for item in items] == [
        ("203.0.113.5", None),
        ("203.0.113.6", 70),
        ("2001:db8::1", None),
        ("2001:db8::2", 71),
    ]


@pytest.mark.parametrize("text", [",", "1.2.3.4:", "[::1]", "::1]:5", "1.2.3:5", "1.2.3.4:99999"])
def test_parse_advertised__refuses_anything_else(text: str) -> None:
    with pytest.raises(ValueError, match=r"no IP address|no port"):
        parse_advertised(text, has_ports=True)


@pytest.mark.parametrize(
    ("bound", "options", "named"),
    [
        (["10.0.0.1:9", "10.0.0.1:8"], {}, ["10.0.0.1:9", "10.0.0.1:8"]),
        (
            ["10.0.0.1:9", "10.0.0.1:8"],
            {"advertise": "203.0.113.5"},
            ["203.0.113.5:9", "203.0.113.5:8"],
        ),
        # The third and fourth rank of a host: they found later ports of the range free.
        (
            ["10.0.0.1:6004", "10.0.0.1:6005"],
            {"advertise": "203.0.113.5:7000", "ports": "6000-6007"},
            ["203.0.113.5:7004", "203.0.113.5:7005"],
        ),
        (
            ["10.0.0.1:60", "10.0.0.1:61", "[fd00::1]:60", "[fd00::1]:61"],
            {"advertise": "203.0.113.5:70,2001:db8::1", "ports": "60-61"},
            ["203.0.113.5:70", "203.0.113.5:71", "[2001:db8::1]:60", "[2001:db8::1]:61"],
        ),
    ],
)
def test_advertised_addresses__by_interface(
    bound: list[str], options: dict[str, str], named: list[str]
) -> None:
    chosen = Options(sockets_per_interface=2, **options)  # type: ignore[arg-type]
    assert advertised_addresses([bound], chosen) == [named]


@pytest.mark.parametrize(
    ("bound", "advertise", "hint"),
    [
        (["10.0.0.1:60", "10.0.0.1:61"], "1.2.3.4,1.2.3.5", "has 2 addresses.*on 1 interfaces"),
        (["10.0.0.1:60", "10.0.0.1:61"], "::1", "both must be IPv4"),
        (["10.0.0.1:60", "10.0.0.1:61"], "1.2.3.4:65535", "begin lower"),
        (["10.0.0.1:60", "10.0.0.1:61", "10.0.1.1:60", "10.0.1.1:61"], "1.2.3.4,1.2.3.4", "two"),
    ],
)
def test_advertised_addresses__refuses_what_does_not_fit(
    bound: list[str], advertise: str, hint: str
) -> None:
    with pytest.raises(ConfigError, match=hint):
        advertised_addresses(
            [bound], Options(advertise=advertise, ports="60-61", sockets_per_interface=2)
        )


def test_advertised_addresses__of_several_engines() -> None:
    bound = [["10.0.0.1:60", "10.0.0.1:61"], ["10.0.0.1:62", "10.0.0.1:63"]]
    options = Options(advertise="1.2.3.4:70", ports="60-63", sockets_per_interface=2)
    named = [["1.2.3.4:70", "1.2.3.4:71"], ["1.2.3.4:72", "1.2.3.4:73"]]
    assert advertised_addresses(bound, options) == named
    bound = [["10.0.0.1:60", "10.0.1.1:61"], ["10.0.0.1:61", "10.0.1.1:60"]]
    options = Options(advertise="1.2.3.4,1.2.3.4", sockets_per_interface=1)
    with pytest.raises(ConfigError, match="two"):
        advertised_addresses(bound, options)


def _ports_of_this_rank(_rank: int) -> list[int]:
    join()
    tensor = torch.ones(4)
    dist.all_reduce(tensor)
    from securefabric._fabric import current_fabric

    fabric = current_fabric()
    assert fabric is not None
    bound = [address for *_, addresses in fabric.native.engines for address in addresses]
    ports = [int(address.rpartition(":")[2]) for address in bound]
    dist.destroy_process_group()
    return ports


def test_ports__are_shared_by_the_ranks_of_a_host_and_may_run_out(key_file: str) -> None:
    """Two ranks have six sockets; a range of one port is too small for one rank."""
    first = 28_400
    outcomes = run_ranks(
        _ports_of_this_rank,
        2,
        key_file=key_file,
        environment={"SECUREFABRIC_PORTS": f"{first}-{first + 99}"},
    )
    assert [outcome.error for outcome in outcomes] == [None, None], outcomes
    ports = [port for outcome in outcomes for port in outcome.value]
    assert len(set(ports)) == 6
    assert all(first <= port < first + 100 for port in ports)

    outcomes = run_ranks(
        _ports_of_this_rank,
        1,
        key_file=key_file,
        environment={"SECUREFABRIC_PORTS": str(first)},
    )
    assert outcomes[0].error is not None
    assert "ConfigError" in outcomes[0].error
    assert "SECUREFABRIC_PORTS" in outcomes[0].error
