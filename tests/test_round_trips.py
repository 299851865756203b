"""What is written is read back the same, for any content: sealed records, encodings, labels, JSON from outside."""

import json
import mmap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpipe._util.untrusted import load_json, load_yaml
from kdpipe.cache.sealed import seal, unseal
from kdpipe.errors import CorruptionError, ShardError
from kdpipe.shards.labels import MAX_LABEL, Rules
from kdpipe.shards.samples import examine
from kdpipe.shards.tar import Member
from kdpipe.targets import Encoding
from kdpipe.targets.features import Feature
from tests.shards.making import encode

SEEDED = settings(derandomize=True, deadline=None, max_examples=150, database=None)
SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
TREES = st.recursive(
    SCALARS | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
CONTENTS = st.dictionaries(st.text(max_size=6).filter(lambda key: key != "digest"), TREES, max_size=5)


@SEEDED
@given(CONTENTS)
def test_sealed_records(content):
    assert unseal(seal(content), "here") == content


@SEEDED
@given(CONTENTS, st.data())
def test_a_changed_byte_of_a_sealed_record_is_seen(content, data):
    sealed = bytearray(seal(content))
    at = data.draw(st.integers(0, len(sealed) - 1))
    sealed[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(CorruptionError):
        unseal(bytes(sealed), "here")


@SEEDED
@given(TREES)
def test_json_from_outside(tree):
    assert load_json(json.dumps(tree)) == tree


@SEEDED
@given(st.dictionaries(st.sampled_from("abcdef"), st.lists(st.integers() | st.booleans() | st.none(), max_size=4)))
def test_yaml_from_outside(tree):
    assert load_yaml(json.dumps(tree)) == tree


FEATURES = st.builds(
    lambda name, shape, dtype: Feature(name, (shape[-1],) if name == "pooled" else shape, dtype, None),
    st.sampled_from(["pooled", "map"]),
    st.tuples(*[st.integers(1, 64)] * 3),
    st.sampled_from(["float16", "float32", "int8"]),
)


@SEEDED
@given(
    st.sampled_from(["topk", "dense", "none"]),
    st.integers(2, 70_000),
    st.sampled_from(["float16", "float32"]),
    st.lists(FEATURES, max_size=2, unique_by=lambda feature: feature.name),
)
def test_encodings(kind, classes, dtype, features):
    k = {"dense": classes, "none": 0}.get(kind, min(5, classes))
    encoding = Encoding(kind, k, dtype, classes, **{feature.name: feature for feature in features})
    assert Encoding.parse(json.loads(json.dumps(encoding.json()))) == encoding


@SEEDED
@given(st.integers(-5, MAX_LABEL + 5), st.sampled_from(["{}", " {}\n", "{}\n"]))
def test_labels(label, form):
    image, text = encode(np.zeros((2, 2, 3), np.uint8), "png"), form.format(label).encode()
    memory = mmap.mmap(-1, len(image) + len(text))
    memory[:] = image + text
    group = [
        Member("k", "png", 0, 0, len(image), len(image)),
        Member("k", "cls", 0, len(image), len(text), len(memory)),
    ]
    if -1 <= label <= MAX_LABEL:
        assert examine(group, memory, "x.tar", Rules(check="header")).label == label
    else:
        with pytest.raises(ShardError, match="label out of range"):
            examine(group, memory, "x.tar", Rules(check="header"))
