"""Parsing text from untrusted files: bounded size, depth and references, one kind of error.

Nothing here depends on what a document means. A reader of a file bounds how much of it is read, parses it here, and
validates what comes out by a schema of its own.
"""

import json
import math
import re
from typing import Any, NoReturn

import yaml

# Far beyond any settings file, and read by PyYAML in seconds.
YAML_BYTES, YAML_NODES, YAML_DEPTH = 2**20, 50_000, 64
# Surrogates, as they are and as JSON escapes them.
_ESCAPE, _ESCAPE_BYTES = re.compile(r"[\ud800-\udfff]|\\u[dD][89a-fA-F]"), re.compile(rb"\\u[dD][89a-fA-F]")


def load_json(data: bytes | str) -> Any:
    """A JSON document.

    Raises:
        ValueError: it isn't JSON: NaN and infinity, nesting beyond the interpreter's stack and integers of more digits
            than Python converts included, and halves of surrogate pairs, which no UTF-8 file can hold again.
    """
    try:
        document = json.loads(data, parse_constant=_refuse_constant, parse_float=_finite)
        if (_ESCAPE if isinstance(data, str) else _ESCAPE_BYTES).search(data):  # type: ignore[arg-type]
            _require_text(json.dumps(document, ensure_ascii=False))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return document


def load_yaml(text: str) -> Any:
    """A YAML document of plain values.

    Aliases are allowed while the document stays small with every one of them written out, so that a few lines
    can't stand for billions of values.

    Raises:
        ValueError: not YAML, larger than the limits above, or with an alias inside of what it refers to.
    """
    if len(text) > YAML_BYTES:
        raise ValueError(f"{len(text)} characters of YAML, at most {YAML_BYTES} are read")
    try:
        loader = yaml.SafeLoader(text)  # which looks for characters that are none
    except yaml.YAMLError as e:
        raise ValueError(" ".join(str(e).split())[:200]) from e
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _expanded(node, {}, 0)
        return loader.construct_document(node)
    except (yaml.YAMLError, TypeError, OverflowError) as e:
        raise ValueError(" ".join(str(e).split())[:200]) from e
    except RecursionError:
        raise ValueError("nested too deeply") from None
    finally:
        loader.dispose()


def _expanded(node: yaml.Node, known: dict[int, int | None], depth: int) -> int:
    """Values of a node with its aliases written out."""
    if depth > YAML_DEPTH:
        raise ValueError("nested too deeply")
    if id(node) in known:
        count = known[id(node)]
        if count is None:
            raise ValueError("an alias refers to what it is part of")
        return count
    known[id(node)] = None
    children: list[yaml.Node] = []
    if isinstance(node, yaml.ScalarNode):
        _require_text(node.value)
    if isinstance(node, yaml.SequenceNode):
        children = node.value
    elif isinstance(node, yaml.MappingNode):
        children = [part for pair in node.value for part in pair]
    count = 1 + sum(_expanded(child, known, depth + 1) for child in children)
    if count > YAML_NODES:
        raise ValueError(f"more than {YAML_NODES} values with its aliases written out")
    known[id(node)] = count
    return count


def _require_text(text: str) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as e:
            raise ValueError(f"half of a surrogate pair, {text[e.start]!a}, is not text") from None


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is beyond the range of numbers")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
