"""Mutations of bytes and of JSON trees, each drawn from a `random.Random`: the same draws give the same result."""

import json
import re
from random import Random
from typing import Any

NUMBERS = [0, 1, -1, 2, 7, 8, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32]
NUMBERS += [2**40, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**31), -(2**63), -(2**63) - 1, 10**30]
# What a file must not be able to name: its import, or its call, is noticed (see `tests.fuzz.bait`).
CODE = "tests.fuzz.bait:sprung"
# Outside of any folder of a test, and noticed when it appears.
ESCAPED = "/dev/shm/kdpipe-fuzz-escaped"
WORDS = ["", " ", "x", "../x", "../../escaped", ESCAPED, "a/../b", "a\\b", "\0", "\n", "\r\n", "%s", "{0}", "\ud800"]
WORDS += ["é", "٣", "x" * 300, CODE, f"hf-hub:{CODE}", "local-dir:/", "file:///x", "memory://x/y", "nosuch://u:p@x/y"]
WORDS += ["NaN", "inf", "True", "null", "1", "-1", "1.5", "0x1", "1_000", "+1", "9" * 400, "9" * 5000, ".", ".."]
WORDS += ["~", "$HOME", "*", "a?b"]
_TOKENS = [w.encode("utf-8", "surrogatepass") for w in WORDS]
_TOKENS += [b'"', b"'", b"{", b"}", b"[", b"]", b":", b",", b"{}", b"[]", b"[" * 2000, b'{"a":' * 2000, b"1e999"]
_TOKENS += [b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\x00" * 16, b"\xff" * 8, b"//", b"#", b"-", b"- ", b"\t"]
_TOKENS += [b"&a ", b"*a", b"<<: *a", b"!!python/name:", b"!!binary ", b"? ", b"---\n", b"...\n", b"|\n", b"2020-99-99"]
_DIGITS = re.compile(rb"-?[0-9]+")


def mutate_bytes(rng: Random, data: bytes, others: list[bytes]) -> bytes:
    """One to eight changes of bytes, few more often than many."""
    out = bytearray(data)
    for _ in range(1 << rng.choice((0, 0, 0, 1, 2, 3))):
        rng.choice(_BYTE_CHANGES)(rng, out, others)
    return bytes(out)


def _place(rng: Random, data: bytearray) -> int:
    """Half of the time near one of the ends, where headers and indexes lie."""
    n = len(data)
    if n > 64 and rng.random() < 0.5:
        at = rng.randrange(64)
        return at if rng.random() < 0.6 else n - 1 - at
    return rng.randrange(n) if n else 0


def _flip(rng: Random, data: bytearray, _: list[bytes]) -> None:
    if data:
        data[_place(rng, data)] ^= 1 << rng.randrange(8)


def _set(rng: Random, data: bytearray, _: list[bytes]) -> None:
    if data:
        data[_place(rng, data)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _number(rng: Random, data: bytearray, _: list[bytes]) -> None:
    width, at = rng.choice((1, 2, 4, 8)), _place(rng, data)
    value = (rng.choice(NUMBERS) + rng.choice((0, 0, 1, -1))) % (1 << 8 * width)
    data[at : at + width] = value.to_bytes(width, rng.choice(("little", "big")))


def _text_number(rng: Random, data: bytearray, _: list[bytes]) -> None:
    found = list(_DIGITS.finditer(data[: 1 << 16]))
    if found:
        one = rng.choice(found)
        data[one.start() : one.end()] = rng.choice(
            (str(rng.choice(NUMBERS)).encode(), b"1.5", b"1e400", b"NaN", b"9" * 5000)
        )


def _insert(rng: Random, data: bytearray, _: list[bytes]) -> None:
    at = _place(rng, data)
    data[at:at] = rng.randbytes(rng.choice((1, 2, 4, 16)))


def _token(rng: Random, data: bytearray, _: list[bytes]) -> None:
    at, token = _place(rng, data), rng.choice(_TOKENS)
    data[at : at + rng.choice((0, len(token)))] = token


def _delete(rng: Random, data: bytearray, _: list[bytes]) -> None:
    at = _place(rng, data)
    del data[at : at + rng.choice((1, 2, 4, 8, 64, 512))]


def _cut(rng: Random, data: bytearray, _: list[bytes]) -> None:
    del data[_place(rng, data) :]


def _double(rng: Random, data: bytearray, _: list[bytes]) -> None:
    at, length = _place(rng, data), rng.choice((1, 4, 16, 64, 512))
    to = _place(rng, data)
    data[to:to] = data[at : at + length]


def _move(rng: Random, data: bytearray, _: list[bytes]) -> None:
    at, length, to = _place(rng, data), rng.choice((1, 4, 16, 64, 512)), _place(rng, data)
    part = data[at : at + length]
    data[to : to + len(part)] = part


def _splice(rng: Random, data: bytearray, others: list[bytes]) -> None:
    other = rng.choice(others)
    if other:
        at, length = rng.randrange(len(other)), rng.choice((4, 16, 64, 512, len(other)))
        to = _place(rng, data)
        data[to : to + rng.choice((0, length))] = other[at : at + length]


_BYTE_CHANGES = (
    *(_flip, _flip, _set, _number, _number, _text_number, _insert, _token, _token),
    *(_delete, _cut, _double, _move, _splice),
)


def mutate_tree(rng: Random, tree: Any, *, nan: bool = False) -> Any:
    """One to four changes of a JSON value, which is left as it is: values, keys, their number and their places."""
    tree = json.loads(json.dumps(tree))
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        tree = _change(rng, tree, nan)
    return tree


def strange(rng: Random, nan: bool = False) -> Any:
    """A value that a schema may not expect."""
    kind = rng.randrange(12)
    if kind < 4:
        return rng.choice(NUMBERS)
    if kind < 8:
        return rng.choice(WORDS)
    if kind == 8:
        return rng.choice((0.0, -0.5, 1.5, 1e308, 5e-324, 1e-9, *((float("nan"), float("-inf")) if nan else ())))
    if kind == 9:
        return deep(rng.choice((1, 3, 60, 400)))
    return rng.choice((None, True, False, [], {}, [[]], [None], {"": None}, [0] * 1000, {"model": CODE}))


def deep(levels: int) -> Any:
    """Lists in lists."""
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


def _places(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Every (container, key or position) below a value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in pairs:
        found.append((value, key))
        if isinstance(child, dict | list):
            _places(child, found)
    return found


def _change(rng: Random, tree: Any, nan: bool) -> Any:
    places = _places(tree, [])
    if not places or rng.random() < 0.01:
        return strange(rng, nan)
    inside, key = rng.choice(places)
    kind = rng.randrange(10)
    if kind < 3:
        inside[key] = strange(rng, nan)
    elif kind == 3:
        inside[key] = _near(rng, inside[key])
    elif kind == 4:
        del inside[key]
    elif kind == 5:  # a value of another place
        other, name = rng.choice(places)
        if name in other if isinstance(other, dict) else name < len(other):
            inside[key] = json.loads(json.dumps(other[name]))
    elif kind == 6:
        inside[key] = rng.choice((lambda v: [v], lambda v: {"x": v}, lambda v: [v, v], str))(inside[key])
    elif kind == 7 and isinstance(inside, dict):
        inside[rng.choice((str(rng.choice(WORDS)), key + "x", key.upper()))] = inside.pop(key)
    elif kind == 8 and isinstance(inside, dict):
        inside[rng.choice(WORDS)] = strange(rng, nan)
    elif isinstance(inside, list):
        change = rng.choice(("append", "double", "reverse", "empty"))
        if change == "append":
            inside.append(strange(rng, nan))
        elif change == "double":
            inside.extend(json.loads(json.dumps(inside[:64])))
        elif change == "reverse":
            inside.reverse()
        else:
            inside.clear()
    return tree


def _near(rng: Random, value: Any) -> Any:
    """A value of the same kind, nearly the same."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return rng.choice((value + 1, value - 1, -value, value * 2, float(value) if abs(value) < 2**60 else 0.5))
    if isinstance(value, str) and value:
        at = rng.randrange(len(value))
        return value[:at] + rng.choice(("", "x", "/", "\0", "0", value)) + value[at + 1 :]
    return [] if isinstance(value, dict) else {} if isinstance(value, list) else 0
