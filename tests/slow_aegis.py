"""AEGIS-256X2 as RFC 10032 writes it down, one byte at a time: an oracle for the native kernels."""

from __future__ import annotations

Block = tuple[int, ...]
State = list[Block]


def _substitutions() -> list[int]:
    """FIPS 197, section 5.1.1."""
    powers = [1]
    for _ in range(254):
        powers.append(_times_three(powers[-1]))
    table = [0x63] * 256
    for exponent, value in enumerate(powers):
        inverse = powers[-exponent % 255]
        doubled = inverse << 8 | inverse
        table[value] = 0x63
        for turn in range(5):
            table[value] ^= doubled >> (8 - turn) & 0xFF
    return table


def _double(x: int) -> int:
    return (x << 1 ^ (0x11B if x & 0x80 else 0)) & 0xFF


def _times_three(x: int) -> int:
    return _double(x) ^ x


_SUBSTITUTIONS = _substitutions()
_DOUBLES = [_double(x) for x in range(256)]
_C0 = tuple(bytes.fromhex("000101020305080d1522375990e97962"))
_C1 = tuple(bytes.fromhex("db3d18556dc22ff12011314273b528dd"))


def _xor(*blocks: Block) -> Block:
    result = [0] * 16
    for block in blocks:
        result = [a ^ b for a, b in zip(result, block, strict=True)]
    return tuple(result)


def _round(block: Block, key: Block) -> Block:
    mixed = []
    for column in range(4):
        a = [_SUBSTITUTIONS[block[(4 * (column + row) + row) % 16]] for row in range(4)]
        for row in range(4):
            b, c, d = a[(row + 1) % 4], a[(row + 2) % 4], a[(row + 3) % 4]
            mixed.append(_DOUBLES[a[row]] ^ _DOUBLES[b] ^ b ^ c ^ d)
    return _xor(tuple(mixed), key)


def _update(state: State, message: Block) -> None:
    first = _round(state[5], _xor(state[0], message))
    state[:] = [first, *(_round(state[i - 1], state[i]) for i in range(1, 6))]


def _halves(data: bytes) -> tuple[Block, Block]:
    return tuple(data[:16]), tuple(data[16:32])


def _padded(data: bytes) -> list[tuple[Block, Block]]:
    data += bytes(-len(data) % 32)
    return [_halves(data[at : at + 32]) for at in range(0, len(data), 32)]


def _start(key: bytes, nonce: bytes) -> list[State]:
    (k0, k1), (n0, n1) = _halves(key), _halves(nonce)
    states = []
    for lane in range(2):
        context = (lane, 1, *(0,) * 14)
        state = [_xor(k0, n0), _xor(k1, n1), _C1, _C0, _xor(k0, _C0), _xor(k1, _C1)]
        for word in (k0, k1, _xor(k0, n0), _xor(k1, n1)) * 4:
            state[3] = _xor(state[3], context)
            state[5] = _xor(state[5], context)
            _update(state, word)
        states.append(state)
    return states


def _absorb(states: list[State], blocks: tuple[Block, Block]) -> None:
    for state, block in zip(states, blocks, strict=True):
        _update(state, block)


def _stream(states: list[State]) -> bytes:
    stream = b""
    for s in states:
        both = tuple(a & b for a, b in zip(s[2], s[3], strict=True))
        stream += bytes(_xor(s[1], s[4], s[5], both))
    return stream


def _tag(states: list[State], aad_bytes: int, data_bytes: int) -> bytes:
    lengths = tuple((8 * aad_bytes).to_bytes(8, "little") + (8 * data_bytes).to_bytes(8, "little"))
    words = [_xor(state[3], lengths) for state in states]
    for _ in range(7):
        _absorb(states, (words[0], words[1]))
    return bytes(_xor(*states[0], *states[1]))


def seal(key: bytes, nonce: bytes, aad: bytes, data: bytes) -> bytes:
    """Return the ciphertext and a tag of 16 bytes."""
    states = _start(key, nonce)
    for blocks in _padded(aad):
        _absorb(states, blocks)
    sealed = b""
    for blocks in _padded(data):
        stream = _stream(states)
        _absorb(states, blocks)
        sealed += bytes(a ^ b for a, b in zip(blocks[0] + blocks[1], stream, strict=True))
    return sealed[: len(data)] + _tag(states, len(aad), len(data))


class Aegis256X2:
    """In the shape of cryptography's AEADs."""

    def __init__(self, key: bytes) -> None:
        self.key = key

    def encrypt(self, nonce: bytes, data: bytes, aad: bytes) -> bytes:
        return seal(self.key, nonce, aad, data)

    def decrypt(self, nonce: bytes, sealed: bytes, aad: bytes) -> bytes:
        states = _start(self.key, nonce)
        for blocks in _padded(aad):
            _absorb(states, blocks)
        ciphertext, data = sealed[:-16], b""
        for at in range(0, len(ciphertext), 32):
            chunk = ciphertext[at : at + 32]
            opened = bytes(a ^ b for a, b in zip(chunk, _stream(states), strict=False))
            _absorb(states, _padded(opened)[0])
            data += opened
        if _tag(states, len(aad), len(data)) != sealed[-16:]:
            raise ValueError("the tag does not verify")
        return data
