"""A UDP proxy between the ranks of a job on this host: the weather of a network, without root.

    rank 0, socket 1 ──► proxy's port for (rank 1, socket 0) ──► rank 1, socket 0
         bound in                                                     bound in
    SECUREFABRIC_PORTS      SECUREFABRIC_ADVERTISE            SECUREFABRIC_PORTS

Each rank binds ports that the proxy chose and advertises the proxy's in their place, as behind a
port forwarding. So every datagram of the job passes here, and whose it is follows from the port it
came from and the port it came to. What happens to it on its way is the `Weather` of its route,
drawn from one seeded generator; `tamper` can do anything else with it. `attack` sends what nobody
of the job has sent.

One thread runs it. Calls from others change single references, which Python makes atomic.
"""

from __future__ import annotations

import heapq
import itertools
import random
import selectors
import socket
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

__all__ = ["ChaosProxy", "Datagram", "Place", "Weather", "read_capture"]

HOST = "127.0.0.1"
# Below the range from which the kernel gives ports to those who ask for any.
PORT_FIRST, PORT_LAST = 18_000, 32_000
DATAGRAM_BYTES_MAX = 65_535
TURN_MAX = 64  # datagrams taken from one socket before the others have their turn
HISTORY_DATAGRAMS = 4096
BUFFER_BYTES = 8 << 20
SO_RCVBUFFORCE = 33

PCAP_MAGIC, PCAP_RAW_IP = 0xA1B2C3D4, 101


@dataclass(frozen=True)
class Place:
    """One socket of one rank."""

    rank: int
    socket: int


@dataclass(frozen=True)
class Datagram:
    """What a rank sent, and where it goes."""

    source: Place
    destination: Place
    payload: bytes

    def with_payload(self, payload: bytes) -> Datagram:
        """Return the same journey with other bytes."""
        return Datagram(self.source, self.destination, payload)


@dataclass(frozen=True, kw_only=True)
class Weather:
    """What happens to the datagrams of a route: shares of one, seconds and bytes."""

    loss: float = 0.0
    """Share that vanishes; 1.0 is a black hole."""
    bytes_max: int = DATAGRAM_BYTES_MAX
    """Larger ones vanish: a path whose MTU nobody announced."""
    duplicate: float = 0.0
    """Share that arrives twice."""
    corrupt: float = 0.0
    """Share with one bit turned, anywhere."""
    trim: float = 0.0
    """Share that is cut to a random length, as by switches that trim instead of dropping."""
    replay: float = 0.0
    """Share that is followed by an old datagram of any route, sent again to where it went."""
    splice: float = 0.0
    """Share that also goes to another place than it was sent to."""
    reflect: float = 0.0
    """Share that also comes back to its sender."""
    delay_s: float = 0.0
    """Time on the way."""
    jitter_s: float = 0.0
    """Up to so much more, drawn anew for each, which also reorders."""
    reorder: float = 0.0
    """Share that is held back for reorder_s."""
    reorder_s: float = 0.005
    """How long those are held back."""


Route = tuple[Place | int | None, Place | int | None]
Tamper = Callable[[Datagram, random.Random], Iterable[Datagram]]


class ChaosProxy:
    """The proxy of one job; a context manager. Equal seeds draw equally, datagram by datagram."""

    def __init__(
        self,
        world_size: int,
        *,
        sockets_per_rank: int = 2,
        seed: int = 1,
        capture: Path | None = None,
    ) -> None:
        self.world_size = world_size
        self.sockets_per_rank = sockets_per_rank
        self.counters: Counter[str] = Counter()
        """Datagrams by what happened to them; "strange" came from no socket of the job."""
        self.history: deque[Datagram] = deque(maxlen=HISTORY_DATAGRAMS)
        """The newest datagrams that nobody tampered with, as they were sent, oldest first."""
        self.tamper: Tamper | None = None
        """Called in the proxy's thread with each datagram before the weather; what it returns goes
        on in its place."""
        self._seed = seed
        self._random = random.Random(seed)
        self._weather: dict[Route, Weather] = {}
        self._fair = Weather()
        self._script: deque[tuple[float, Route, Weather]] = deque()
        self._waiting: list[tuple[float, int, Datagram]] = []
        self._order = itertools.count()
        self._is_over = False
        self._wake, self._woken = socket.socketpair()
        count = world_size * sockets_per_rank
        places = [Place(i // sockets_per_rank, i % sockets_per_rank) for i in range(count)]
        inside = _free_sockets(count)
        outside = _free_sockets(count)
        self._inside = {place: one.getsockname() for place, one in zip(places, inside, strict=True)}
        self._place_at = {address: place for place, address in self._inside.items()}
        self._sockets = dict(zip(places, outside, strict=True))
        for one in inside:
            one.close()  # the rank binds it
        self._capture = _Capture(capture) if capture is not None else None
        self._thread = threading.Thread(target=self._run, name="chaos proxy", daemon=True)

    def __enter__(self) -> ChaosProxy:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        if kind is not None:
            print(f"chaos proxy: seed {self._seed}, {dict(self.counters)}")

    def close(self) -> None:
        """End the thread and finish the capture; again does nothing."""
        if self._is_over:
            return
        self._is_over = True
        self._wake.send(b"!")
        self._thread.join()
        for one in (*self._sockets.values(), self._wake, self._woken):
            one.close()
        if self._capture is not None:
            self._capture.close()

    # What a job needs to know

    def environment(self, rank: int) -> Mapping[str, str]:
        """Return the settings with which a rank sends and receives through the proxy."""
        first = self._inside[Place(rank, 0)][1]
        reached_at = self.address_of(Place(rank, 0))[1]
        return {
            "SECUREFABRIC_PORTS": f"{first}-{first + self.sockets_per_rank - 1}",
            "SECUREFABRIC_ADVERTISE": f"{HOST}:{reached_at}",
            "SECUREFABRIC_SOCKETS_PER_INTERFACE": str(self.sockets_per_rank),
        }

    def address_of(self, place: Place) -> tuple[str, int]:
        """Return where others reach a socket: the proxy's address for it."""
        host, port = self._sockets[place].getsockname()
        return host, port

    def real_address_of(self, place: Place) -> tuple[str, int]:
        """Return where a socket really is, for those who attack it directly."""
        host, port = self._inside[place]
        return host, port

    # Weather

    def set_weather(
        self,
        weather: Weather,
        *,
        source: Place | int | None = None,
        destination: Place | int | None = None,
    ) -> None:
        """Change what happens between two sockets, two ranks, or (None) anybody.

        What was set for one socket counts before what was set for its rank, and that before None.
        """
        self._weather = {**self._weather, (source, destination): weather}

    def clear_weather(self) -> None:
        """Let everything through again, at once."""
        self._weather = {}
        self.tamper = None

    def play(self, script: Iterable[tuple[float, Weather]], route: Route = (None, None)) -> None:
        """Change a route's weather by itself: (seconds from now, weather), in order of time."""
        now = time.monotonic()
        self._script = deque((now + after, route, weather) for after, weather in script)
        self._wake.send(b"!")

    def _weather_of(self, datagram: Datagram) -> Weather:
        weather = self._weather
        if not weather:
            return self._fair
        source, destination = datagram.source, datagram.destination
        for start in (source, source.rank, None):
            for end in (destination, destination.rank, None):
                if (start, end) in weather:
                    return weather[start, end]
        return self._fair

    # Attacks

    def attack(self, datagram: Datagram) -> None:
        """Send this now, as if the proxy had just received it; no weather, no tampering."""
        self.counters["attacked"] += 1
        self._deliver(datagram)

    # The thread

    def _run(self) -> None:
        selector = selectors.DefaultSelector()
        selector.register(self._woken, selectors.EVENT_READ, None)
        for place, one in self._sockets.items():
            selector.register(one, selectors.EVENT_READ, place)
        while not self._is_over:
            ready = selector.select(self._pause_s())
            self._serve_timers()
            for key, _ in ready:
                if key.data is None:
                    self._woken.recv(64)
                else:
                    self._receive(key.data)
        selector.close()

    def _pause_s(self) -> float | None:
        due = [self._waiting[0][0]] if self._waiting else []
        due += [self._script[0][0]] if self._script else []
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _serve_timers(self) -> None:
        now = time.monotonic()
        while self._script and self._script[0][0] <= now:
            _, route, weather = self._script.popleft()
            self._weather = {**self._weather, route: weather}
        while self._waiting and self._waiting[0][0] <= now:
            self._deliver(heapq.heappop(self._waiting)[2])

    def _receive(self, destination: Place) -> None:
        one = self._sockets[destination]
        for _ in range(TURN_MAX):
            try:
                payload, address = one.recvfrom(DATAGRAM_BYTES_MAX)
            except BlockingIOError:
                return
            except OSError:  # a port behind us is closed: the rank has ended
                continue
            source = self._place_at.get(address)
            if source is None:
                self.counters["strange"] += 1
                continue
            self.counters["received"] += 1
            datagram = Datagram(source, destination, payload)
            if self._capture is not None:
                self._capture.write(self._inside[source], self._inside[destination], payload)
            tamper = self.tamper
            going_on = tamper(datagram, self._random) if tamper else [datagram]
            if datagram in going_on:
                self.history.append(datagram)
            for passed in going_on:
                self._travel(passed)

    def _travel(self, datagram: Datagram) -> None:
        weather = self._weather_of(datagram)
        if weather is self._fair:
            self._deliver(datagram)
            return
        draw = self._random.random
        count = self.counters
        if len(datagram.payload) > weather.bytes_max:
            count["too_large"] += 1
            return
        if draw() < weather.loss:
            count["lost"] += 1
            return
        self._add_company(datagram, weather)
        if draw() < weather.corrupt:
            count["corrupted"] += 1
            datagram = datagram.with_payload(flip_bit(datagram.payload, self._random))
        if draw() < weather.trim:
            count["trimmed"] += 1
            cut = self._random.randrange(len(datagram.payload))
            datagram = datagram.with_payload(datagram.payload[:cut])
        wait_s = weather.delay_s + draw() * weather.jitter_s
        if draw() < weather.reorder:
            count["reordered"] += 1
            wait_s += weather.reorder_s
        self._send_after(wait_s, datagram)
        if draw() < weather.duplicate:
            count["duplicated"] += 1
            self._send_after(wait_s, datagram)

    # What else arrives because this datagram was sent.
    def _add_company(self, datagram: Datagram, weather: Weather) -> None:
        draw = self._random.random
        if draw() < weather.replay:
            self.counters["replayed"] += 1
            self._deliver(self._random.choice(self.history))
        if draw() < weather.splice:
            self.counters["spliced"] += 1
            wrong = self._random.choice([p for p in self._sockets if p != datagram.destination])
            self._deliver(Datagram(datagram.source, wrong, datagram.payload))
        if draw() < weather.reflect:
            self.counters["reflected"] += 1
            self._deliver(Datagram(datagram.destination, datagram.source, datagram.payload))

    def _send_after(self, wait_s: float, datagram: Datagram) -> None:
        if wait_s <= 0.0:
            self._deliver(datagram)
        else:
            at = time.monotonic() + wait_s
            heapq.heappush(self._waiting, (at, next(self._order), datagram))

    def _deliver(self, datagram: Datagram) -> None:
        # From the port that stands for its sender, as a translator would.
        try:
            one = self._sockets[datagram.source]
            one.sendto(datagram.payload, self._inside[datagram.destination])
            self.counters["delivered"] += 1
        except OSError:  # a full buffer, or nobody there: lost like on any network
            self.counters["refused"] += 1


def flip_bit(payload: bytes, draw: random.Random) -> bytes:
    """Return the payload with one bit turned."""
    if not payload:
        return payload
    at = draw.randrange(len(payload) * 8)
    turned = bytearray(payload)
    turned[at // 8] ^= 1 << at % 8
    return bytes(turned)


def _free_sockets(count: int) -> list[socket.socket]:
    """Return sockets bound to so many neighbouring ports, starting at a random place."""
    for _ in range(1000):
        first = random.SystemRandom().randrange(PORT_FIRST, PORT_LAST - count)
        bound: list[socket.socket] = []
        try:
            for port in range(first, first + count):
                bound.append(_socket_at(port))
            return bound
        except OSError:
            for one in bound:
                one.close()
    raise AssertionError(f"no {count} neighbouring UDP ports are free on {HOST}")


def _socket_at(port: int) -> socket.socket:
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        one.bind((HOST, port))
    except OSError:
        one.close()
        raise
    one.setblocking(False)
    for option in (SO_RCVBUFFORCE, socket.SO_RCVBUF):
        try:
            one.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
            break
        except PermissionError:
            continue
    return one


class _Capture:
    """Writes what was sent as a pcap file, which tcpdump and Wireshark read."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._file.write(struct.pack("=IHHiIII", PCAP_MAGIC, 2, 4, 0, 0, 1 << 17, PCAP_RAW_IP))

    def write(self, source: tuple[str, int], destination: tuple[str, int], payload: bytes) -> None:
        udp = struct.pack("!HHHH", source[1], destination[1], 8 + len(payload), 0)
        total = 20 + len(udp) + len(payload)
        addresses = socket.inet_aton(source[0]) + socket.inet_aton(destination[0])
        ip = struct.pack("!BBHHHBBH", 0x45, 0, min(total, 0xFFFF), 0, 0, 64, 17, 0) + addresses
        nanoseconds = time.time_ns()
        seconds, micros = nanoseconds // 10**9, nanoseconds % 10**9 // 1000
        self._file.write(struct.pack("=IIII", seconds, micros, total, total) + ip + udp + payload)

    def close(self) -> None:
        self._file.close()


def read_capture(path: Path) -> list[tuple[int, int, bytes]]:
    """Return (source port, destination port, payload) of every datagram in a capture."""
    data = path.read_bytes()
    found = []
    at = 24
    while at < len(data):
        (size,) = struct.unpack_from("=I", data, at + 8)
        packet = data[at + 16 : at + 16 + size]
        source, destination = struct.unpack_from("!HH", packet, 20)
        found.append((source, destination, packet[28:]))
        at += 16 + size
    return found
