"""The teacher's classifier belongs to pooled features: a cache that lost it is not whole."""

from kdpipe.cache import Cache
from kdpipe.cache.layout import part_file, part_record
from kdpipe.targets import TargetsConfig
from kdpipe.verification import check_integrity
from kdpipe.verification.modules import check_parts
from tests.caching.featured import TINY
from tests.tiny import make_cache, teacher, tree

POOLED = TargetsConfig(kind="none", pooled="float16")


def test_it_is_missed_where_pooled_features_are_kept(world, tmp_path):
    cache = make_cache(world, tmp_path / "c", views=(0,), targets=POOLED, **TINY)
    whole = tree(tmp_path / "c")
    for file in (part_record("head"), part_file("head")):
        cache.store.remove(file)
    [problem] = check_integrity(cache.store)[0]
    assert problem["where"] == part_record("head")
    assert problem["what"].startswith("missing: a segment keeps pooled features")
    found = check_parts(Cache(cache.store), teacher(**TINY))
    assert not found["head"]["ok"]
    assert found["head"]["what"].startswith("missing: ")
    # As the report advises.
    make_cache(world, tmp_path / "c", views=(0,), targets=POOLED, **TINY)
    assert tree(tmp_path / "c") == whole
    assert check_integrity(cache.store)[0] == []


def test_it_is_not_missed_where_none_are(world, tmp_path):
    cache = make_cache(world, tmp_path / "c", views=(0,), targets=TargetsConfig(k=3, map="int8"), **TINY)
    assert "head" not in cache.parts
    assert check_integrity(cache.store)[0] == []
    assert check_parts(cache, teacher(**TINY)) == {}
