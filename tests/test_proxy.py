"""The chaos proxy by itself: each kind of weather does what it says, and nothing else does."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from testbed.proxy import HOST, ChaosProxy, Datagram, Place, Weather, read_capture
from testbed.stages import wait_until

HERE, THERE = Place(0, 0), Place(1, 1)
COUNT = 100  # twice as many fit into a receive buffer of the kernel's default size


class Ends:
    """Two ranks' sockets, as they would bind them."""

    def __init__(self, proxy: ChaosProxy, stack: ExitStack) -> None:
        self.proxy = proxy
        self.sockets = {place: stack.enter_context(self._bind(place)) for place in (HERE, THERE)}

    def _bind(self, place: Place) -> socket.socket:
        one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        one.bind(self.proxy.real_address_of(place))
        return one

    def send(self, payloads: list[bytes], source: Place = HERE, destination: Place = THERE) -> None:
        count = self.proxy.counters["received"] + len(payloads)
        for payload in payloads:
            self.sockets[source].sendto(payload, self.proxy.address_of(destination))
        wait_until(lambda: self.proxy.counters["received"] >= count, "the proxy")

    def exchange(
        self, payloads: list[bytes], source: Place = HERE, destination: Place = THERE
    ) -> list[bytes]:
        """Send and return what arrives until nothing does any more."""
        self.send(payloads, source, destination)
        return self.receive(destination)

    def receive(self, place: Place, quiet_s: float = 0.1) -> list[bytes]:
        arrived = []
        while select.select([self.sockets[place]], [], [], quiet_s)[0]:
            arrived.append(self.sockets[place].recv(65536))
        return arrived


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    with ExitStack() as stack:
        proxy = stack.enter_context(ChaosProxy(2, seed=7, capture=tmp_path / "all.pcap"))
        yield Ends(proxy, stack)


def numbered(size: int = 40) -> list[bytes]:
    return [number.to_bytes(4, "big") + bytes(size - 4) for number in range(COUNT)]


def test_fair_weather__delivers_in_order_and_captures(ends: Ends, tmp_path: Path) -> None:
    assert ends.exchange(numbered()) == numbered()
    assert ends.proxy.counters == {"received": COUNT, "delivered": COUNT}
    ends.proxy.close()
    captured = read_capture(tmp_path / "all.pcap")
    route = (ends.proxy.real_address_of(HERE)[1], ends.proxy.real_address_of(THERE)[1])
    assert [(source, to, payload) for source, to, payload in captured] == [
        (*route, payload) for payload in numbered()
    ]


def test_loss__takes_its_share_on_its_route_only(ends: Ends) -> None:
    ends.proxy.set_weather(Weather(loss=0.25), source=0, destination=THERE)
    arrived = ends.exchange(numbered())
    assert 0.6 * COUNT < len(arrived) < 0.9 * COUNT
    assert ends.proxy.counters["lost"] == COUNT - len(arrived)
    assert ends.exchange(numbered(), THERE, HERE) == numbered()
    ends.proxy.set_weather(Weather(), source=HERE)  # more exact than the rank's
    assert ends.exchange(numbered()) == numbered()
    ends.proxy.set_weather(Weather(loss=1.0))
    ends.proxy.set_weather(Weather(loss=1.0), source=HERE)
    assert ends.exchange(numbered()) == []


def test_large_ones_vanish__where_bytes_max_says(ends: Ends) -> None:
    ends.proxy.set_weather(Weather(bytes_max=100))
    assert ends.exchange([bytes(100), bytes(101)]) == [bytes(100)]


def test_duplicate_and_replay__add_copies(ends: Ends) -> None:
    ends.proxy.set_weather(Weather(duplicate=0.5))
    arrived = ends.exchange(numbered())
    assert len(arrived) == COUNT + ends.proxy.counters["duplicated"] > 1.3 * COUNT
    assert sorted(set(arrived)) == numbered()
    ends.proxy.set_weather(Weather(replay=1.0))
    assert len(ends.exchange(numbered())) == 2 * COUNT


def test_corrupt_and_trim__damage_and_nothing_more(ends: Ends) -> None:
    ends.proxy.set_weather(Weather(corrupt=1.0))
    for sent, arrived in zip(numbered(), ends.exchange(numbered()), strict=True):
        turned = int.from_bytes(sent, "big") ^ int.from_bytes(arrived, "big")
        assert turned.bit_count() == 1
    ends.proxy.set_weather(Weather(trim=1.0))
    for sent, arrived in zip(numbered(), ends.exchange(numbered()), strict=True):
        assert len(arrived) < len(sent)
        assert sent.startswith(arrived)


def test_splice_and_reflect__go_elsewhere(ends: Ends) -> None:
    ends.proxy.set_weather(Weather(splice=1.0, reflect=1.0))
    assert ends.exchange(numbered()) == numbered()
    assert ends.receive(HERE)[:1] == numbered()[:1]
    assert ends.proxy.counters["spliced"] == ends.proxy.counters["reflected"] == COUNT


def test_delay_jitter_and_reorder__change_time_and_order_but_lose_nothing(ends: Ends) -> None:
    ends.proxy.set_weather(Weather(delay_s=0.2))
    started = time.monotonic()
    ends.send([b"late"])
    wait_until(lambda: ends.proxy.counters["delivered"] == 1, "the proxy")
    assert ends.receive(THERE) == [b"late"]
    assert time.monotonic() - started >= 0.2
    ends.proxy.set_weather(Weather(jitter_s=0.02, reorder=0.1))
    arrived = ends.exchange(numbered())
    assert arrived != numbered()
    assert sorted(arrived) == numbered()


def test_script__changes_the_weather_by_itself(ends: Ends) -> None:
    ends.proxy.play([(0.0, Weather(loss=1.0)), (0.3, Weather())])
    assert ends.exchange([b"early"]) == []
    wait_until(lambda: ends.exchange([b"again"]) == [b"again"], "fair weather")


def test_tamper_and_attack__do_anything(ends: Ends) -> None:
    ends.proxy.tamper = lambda datagram, _: [datagram.with_payload(datagram.payload[::-1])]
    assert ends.exchange([b"abc"]) == [b"cba"]
    ends.proxy.attack(Datagram(HERE, THERE, b"forged"))
    assert ends.receive(THERE) == [b"forged"]


def test_strangers__are_counted_and_not_forwarded(ends: Ends) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.bind((HOST, 0))
        stranger.sendto(b"hello", ends.proxy.address_of(THERE))
        wait_until(lambda: ends.proxy.counters["strange"] == 1, "the proxy")
    assert ends.receive(THERE) == []


def test_equal_seeds__draw_equally() -> None:
    lost = []
    for _ in range(2):
        with ExitStack() as stack:
            pair = Ends(stack.enter_context(ChaosProxy(2, seed=3)), stack)
            pair.proxy.set_weather(Weather(loss=0.5))
            lost.append(pair.exchange(numbered()))
    assert lost[0] == lost[1]
