"""Documents made to hurt: refused quickly, with a ValueError."""

import time

import pytest

from kdpipe._util.untrusted import YAML_BYTES, load_json, load_yaml

BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {p: 1, q: 2}\n" + "".join(
    f"{name}: &{name} {{<<: [{','.join([f'*{before}'] * 10)}]}}\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BOMB, "aliases"),
        (MERGES, "aliases"),
        ("a: &a [*a]", "part of"),
        ("[" * 100_000, "deep"),
        ("- " * 5_000 + "x", "deep"),
        ("x" * (YAML_BYTES + 1), "characters"),
        ("a: !!python/object/apply:os.system [echo]", "could not determine a constructor"),
        ("a: 2020-99-99", "month"),
        ("{[1]: 2}", "unhashable"),
        ("a: b: c", "not allowed"),
        ("a: " + "9" * 5_000, "digits"),
        (r'{"\ud800": 1}', "surrogate"),
        (r'a: ["x\udfffy"]', "surrogate"),
    ],
)
def test_yaml_refused(text, reason):
    began = time.monotonic()
    with pytest.raises(ValueError, match=reason):
        load_yaml(text)
    assert time.monotonic() - began < 5


def test_yaml_with_harmless_aliases():
    assert load_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: *a") == {"a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": {"x": 1}}
    assert load_yaml("") is None


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 100_000, "NaN", "[Infinity]", "-1e999", "9" * 5_000, b"\xff", "{", '"\x00'],
    ids=lambda text: repr(text[:12]),
)
def test_json_refused(text):
    with pytest.raises(ValueError):  # noqa: PT011
        load_json(text)


@pytest.mark.parametrize(
    "text", [r'"\ud800"', r'{"\uDFFF": 1}', r'[["a\ud83d"]]', '"\ud800"', rb'{"a": "\udc00\ud83d"}']
)
def test_halves_of_surrogate_pairs_are_no_json_text(text):
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        load_json(text)


def test_whole_surrogate_pairs_are_characters():
    assert load_json(rb'{"\ud83d\ude00": "\\ud800"}') == {"\U0001f600": r"\ud800"}
