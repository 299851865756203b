"""One task by itself."""

from kdpipe.cache import Cache, Store
from kdpipe.caching.backend import CachingJob, Task, TeacherSpec, do
from tests.tiny import VIEWS, make_cache, teacher, tree


def test_a_task_that_was_committed_meanwhile_is_not_done_again(world, tmp_path):
    """As where a leaving worker hands on what it is about to finish."""
    make_cache(world, tmp_path / "c", views=(0,))
    before = tree(tmp_path / "c")
    cache = Cache(Store(tmp_path / "c"))
    who, (segment,), shard = teacher(), cache.segments, world.index.shards[1]

    def silent(*_: object) -> None:
        raise AssertionError("asked again")

    job = CachingJob(
        str(tmp_path / "c"), cache.identity_digest, world.index, VIEWS, cache.size, None, 1, TeacherSpec.of(who)
    )
    record = do(job, Task(segment, 1, shard), silent, cache)
    assert record == cache.commits[segment.name, shard.name]
    assert tree(tmp_path / "c") == before
