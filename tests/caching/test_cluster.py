"""Tasks on dask workers: the bytes of one process, whoever comes, fails or leaves."""

import re
import threading
from types import SimpleNamespace

import dask
import pytest
from distributed import Client, LocalCluster
from distributed.comm import CommClosedError
from distributed.scheduler import KilledWorker

import kdpipe.caching.backend as backend
from kdpipe.cache import Cache, Store
from kdpipe.caching import CachingConfig, cache_views
from kdpipe.caching.clients import local_client
from kdpipe.caching.cluster import Cluster
from kdpipe.caching.worker import TeacherPlugin
from kdpipe.errors import CacheError, IdentityError, ShardError, TeacherError
from kdpipe.targets import TargetsConfig
from kdpipe.teacher import TeacherConfig
from kdpipe.verification import check_integrity
from tests.caching.featured import TINY
from tests.tiny import RECIPE, SETTINGS, make_cache, tree

# dask leaves sockets to the garbage collector and has events of its own loop.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("quiet")]


@pytest.fixture(scope="module")
def quiet():
    import logging

    logging.getLogger("distributed").setLevel(logging.CRITICAL)


@pytest.fixture
def client():
    """Two workers that are threads of this process: everything but processes, and quick."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        yield client


def teacher(client: Client, **changes: object) -> Cluster:
    return Cluster(client, TeacherConfig.model_validate(SETTINGS | changes), None)


def cached(world, out, who, views=(0, 1, "center")):
    caching = CachingConfig(render_threads=1)
    return cache_views(str(out), world.index, RECIPE, who, TargetsConfig(k=4), views, caching=caching)


def test_workers_leave_the_bytes_of_one_process(world, client, tmp_path):
    seen = []
    cache, report = cache_views(
        str(tmp_path / "c"),
        world.index,
        RECIPE,
        teacher(client),
        TargetsConfig(k=4),
        (0, 1, "center"),
        on_progress=lambda p: seen.append((p.done, p.views, p.pending)),
    )
    make_cache(world, tmp_path / "alone", views=(0, 1, "center"), config=RECIPE)
    assert tree(tmp_path / "c") == tree(tmp_path / "alone")
    assert (report.tasks, report.skipped, report.failed) == (6, 0, [])
    assert seen[0] == (0, 0, 94 * 3)
    assert sum(views for _, views, _ in seen) == 94 * 3
    assert cache.views() == [0, 1, "center"]
    _, again = cached(world, tmp_path / "c", teacher(client))
    assert (again.tasks, again.skipped) == (0, 6)


def test_a_task_that_fails_does_not_stop_the_others(world, client, tmp_path, monkeypatch):
    do = backend.do

    def failing(job, task, *args):
        if task.shard.name == "shard-0001.tar":
            raise ShardError("image can't be decoded", where=task.shard.name)
        return do(job, task, *args)

    with monkeypatch.context() as m:
        m.setattr("kdpipe.caching.worker.do", failing)
        _, report = cached(world, tmp_path / "c", teacher(client))
    assert report.tasks == 4
    assert [o.task.shard.name for o in report.failed] == ["shard-0001.tar"] * 2
    assert all(isinstance(o.error, ShardError) for o in report.failed)
    assert "can't be decoded" in str(report.failed[0].error)
    _, report = cached(world, tmp_path / "c", teacher(client))
    assert (report.tasks, report.skipped) == (2, 4)
    make_cache(world, tmp_path / "alone", views=(0, 1, "center"), config=RECIPE)
    assert tree(tmp_path / "c") == tree(tmp_path / "alone")


def test_a_task_that_fails_now_and_then_is_tried_again(world, client, tmp_path, monkeypatch):
    do, failed, lock = backend.do, set(), threading.Lock()

    def flaky(job, task, *args):
        with lock:
            name = (task.segment.name, task.shard.name)
            first = name not in failed
            failed.add(name)
        if first:
            raise OSError("the network has gone for a walk")
        return do(job, task, *args)

    monkeypatch.setattr("kdpipe.caching.worker.do", flaky)
    _, report = cached(world, tmp_path / "c", teacher(client))
    assert (report.tasks, report.failed) == (6, [])


def test_workers_that_come_late_and_leave(world, tmp_path, monkeypatch):
    do, count = backend.do, iter(range(100))
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):

        def moving(*args):
            number = next(count)
            if number in (1, 3):
                client.sync(cluster.scale, 3 if number == 1 else 1)
            return do(*args)

        monkeypatch.setattr("kdpipe.caching.worker.do", moving)
        _, report = cached(world, tmp_path / "c", teacher(client))
    assert report.failed == []
    make_cache(world, tmp_path / "alone", views=(0, 1, "center"), config=RECIPE)
    assert tree(tmp_path / "c") == tree(tmp_path / "alone")


def test_two_clients_at_one_cache_at_once(world, tmp_path):
    results = []

    def run() -> None:
        with (
            LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
            Client(cluster, set_as_default=False) as client,
        ):
            results.append(cached(world, tmp_path / "c", teacher(client))[1])

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2
    assert 6 <= sum(r.tasks for r in results) <= 12
    make_cache(world, tmp_path / "alone", views=(0, 1, "center"), config=RECIPE)
    assert tree(tmp_path / "c") == tree(tmp_path / "alone")
    assert check_integrity(Store(tmp_path / "c"))[0] == []


def test_a_teacher_that_cannot_be_loaded_is_one_line(world, client, tmp_path):
    with pytest.raises(TeacherError, match=r"no such module|can't be|cannot|No module"):
        cached(world, tmp_path / "c", teacher(client, model="tests.nowhere:network"))
    assert not (tmp_path / "c").exists()


def test_a_worker_with_other_weights_is_refused(world, client, tmp_path, monkeypatch):
    """Before the run, and again at the first task of each: one that comes later was not there before the run."""
    who = teacher(client)
    described = who.describe()
    other = {**described.identity, "weights": "0" * 64}
    monkeypatch.setattr(who, "describe", lambda _: type(described)(other, described.numerics, described.config))
    with pytest.raises(IdentityError, match="another weights"):
        cached(world, tmp_path / "c", who, views=(0,))
    assert not (tmp_path / "c").exists()
    monkeypatch.setattr(who, "try_batch", lambda *_: None)
    _, report = cached(world, tmp_path / "c", who, views=(0,))
    assert report.tasks == 0
    assert all(isinstance(o.error, IdentityError) for o in report.failed)
    assert "another weights" in str(report.failed[0].error)


def test_one_worker_searches_and_all_apply_its_plan(world, client, tmp_path, monkeypatch):
    found = iter([{"mlp": "convolved"}, {"mlp": "plain, if there is a second search"}])
    monkeypatch.setattr("kdpipe.teacher.teacher._LEAST", 0.0)
    monkeypatch.setattr("kdpipe.teacher.runner.search", lambda *_, **__: next(found))
    who = teacher(client, model="tests.test_teacher_kernels:large")
    cache, report = cached(world, tmp_path / "c", who, views=(0, 1))
    assert (report.tasks, report.failed) == (3, [])
    assert [s.numerics["layers"] for s in cache.segments] == [{"mlp": "convolved"}]
    described = client.run(lambda dask_worker: dask_worker.plugins["kdpipe-teacher"].described())
    assert {str(d.numerics["layers"]) for d in described.values()} == {str({"mlp": "convolved"})}


def test_each_job_has_its_own_ways(world, client, tmp_path, monkeypatch):
    """Two runs at once on the same workers: a task is done as its own run's segment says."""
    ran = []

    def noting(job, task, teacher, cache):
        ran.append(teacher.layers == task.segment.numerics["layers"] == job.teacher.numerics["layers"])
        return backend.do(job, task, teacher, cache)

    monkeypatch.setattr("kdpipe.caching.worker.do", noting)
    model = {"model": "tests.test_teacher_kernels:large"}
    who = teacher(client, **model)
    for name, layers in (("a", {"mlp": "convolved"}), ("b", {}), ("a", {"mlp": "convolved"})):
        monkeypatch.setattr("kdpipe.caching.run.requested_layers", lambda _, layers=layers: layers)
        views = (0, 1) if (tmp_path / name).exists() else (0,)
        cache, _ = cached(world, tmp_path / name, who, views=views)
        assert {str(s.numerics["layers"]) for s in cache.segments} == {str(layers)}
    assert len(ran) == 9
    assert all(ran)


FEATURED = TargetsConfig(k=4, pooled="float16", map="int8", map_rank=3)


def test_workers_give_features_and_store_the_parts(world, client, tmp_path):
    caching = CachingConfig(render_threads=1)
    args = (world.index, RECIPE, teacher(client, **TINY), FEATURED, (0, 1, "center"))
    cache, report = cache_views(str(tmp_path / "c"), *args, caching=caching)
    assert report.failed == []
    assert [name.partition("-")[0] for name in cache.parts] == ["calibration", "head"]
    make_cache(world, tmp_path / "alone", views=(0, 1, "center"), config=RECIPE, targets=FEATURED, **TINY)
    assert tree(tmp_path / "c") == tree(tmp_path / "alone")
    assert report.encoding == cache.segments[0].encoding


def test_each_job_has_its_own_features(world, client, tmp_path):
    """Also on a worker that comes with none."""
    who, caching = teacher(client, **TINY), CachingConfig(render_threads=1)
    for number, targets in enumerate([FEATURED, TargetsConfig(k=2), FEATURED]):
        where = str(tmp_path / ("a" if targets == FEATURED else "b"))
        cache, report = cache_views(where, world.index, RECIPE, who, targets, range(number + 1), caching=caching)
        assert report.failed == []
        assert {s.encoding.groups for s in cache.segments} == {report.encoding.groups}
    assert len(Cache(Store(tmp_path / "a")).segments) == 2


def test_a_worker_without_such_a_part_is_an_error(world, client, tmp_path):
    targets = TargetsConfig(k=4, map="int8", tail=True)
    with pytest.raises(TeacherError, match="no last stage"):
        cache_views(str(tmp_path / "c"), world.index, RECIPE, teacher(client, **TINY), targets, [0])
    assert not (tmp_path / "c").exists()


class TestDeath:
    """What dask says of workers that die becomes a line that says what they were about, and what to do."""

    HELP = r"too little memory.*teacher\.batch_size.*repeat the command: finished tasks are kept$"

    @pytest.mark.parametrize(
        ("method", "doing"),
        [
            ("resolve_plan", "finding how the teacher is run fastest"),
            ("try_extracting", "trying to take the teacher's parts out"),
            ("try_batch", "trying the teacher on the first batch"),
            ("extract", "taking the teacher's parts out"),
            ("calibrate", "fitting the map's calibration"),
            ("do", r"shard-0000\.tar of \S+"),
        ],
    )
    def test_in_a_call_to_one_worker(self, world, client, tmp_path, monkeypatch, method, doing):
        def killed(*_):
            raise KilledWorker("call-1", SimpleNamespace(address="tcp://10.0.0.7:1"), 3)

        monkeypatch.setattr(TeacherPlugin, method, killed)
        message = rf"^tcp://10\.0\.0\.7:1: 4 workers died one after the other; found {doing}\. .*{self.HELP}"
        if method == "do":
            _, report = cached(world, tmp_path / "c", teacher(client))
            assert any(re.search(message, str(outcome.error)) for outcome in report.failed)
            return
        targets = TargetsConfig(k=4, pooled="float16", map="float16")
        with pytest.raises(CacheError, match=message):
            cache_views(str(tmp_path / "c"), world.index, RECIPE, teacher(client, **TINY), targets, [0])

    @pytest.mark.parametrize(
        ("answers", "error", "message"),
        [
            ([CommClosedError("in <TCP>: Stream is closed")], CacheError, rf"^tcp://1: a worker died; .*{HELP}"),
            ([OSError("Timed out trying to connect")], CacheError, rf"^tcp://1: a worker died; .*{HELP}"),
            ([], CacheError, rf"^a worker died; .*{HELP}"),
            ([OSError(28, "No space left")], TeacherError, r"a worker can't load the teacher: \[Errno 28\]"),
            (CommClosedError("gone"), CacheError, r"^the scheduler is gone\. Repeat the command"),
        ],
    )
    def test_in_a_call_to_all_workers(self, client, monkeypatch, answers, error, message):
        def run(*_, **__):
            if isinstance(answers, Exception):
                raise answers
            return {f"tcp://{number}": answer for number, answer in enumerate(answers, start=1)}

        who = teacher(client)
        monkeypatch.setattr(client, "run", run)
        with pytest.raises(error, match=message):
            who.describe()

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("when", "message"),
        [
            ("built", "a worker died; found loading the teacher"),
            ("asked", "2 workers died .* the teacher on the first batch"),
        ],
    )
    def test_of_processes(self, world, tmp_path, when, message):
        model = {"model": "tests.caching.faulty:dying", "model_kwargs": {"when": when}}
        with dask.config.set({"distributed.scheduler.allowed-failures": 1}), local_client(1) as client:
            who = teacher(client, **TINY | model)
            with pytest.raises(CacheError, match=rf"{message}.*{self.HELP}"):
                cache_views(str(tmp_path / "c"), world.index, RECIPE, who, TargetsConfig(k=4, map="float32"), [0])


def test_a_cluster_that_is_lost_at_the_start_is_one_line():
    class Lost:
        def register_plugin(self, plugin: object) -> None:
            raise CommClosedError("in <TLS (closed)>: Stream is closed")

    with pytest.raises(CacheError, match=r"gone before its workers have the teacher\. Repeat the command"):
        Cluster(Lost(), TeacherConfig(model="resnet10t"), 7)  # type: ignore[arg-type]


def test_a_lost_scheduler_prints_how_to_resume(world, tmp_path, monkeypatch):
    do, count = backend.do, iter(range(100))
    cluster = LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None)
    client = Client(cluster)

    def dying(*args):
        if next(count) == 2:
            threading.Thread(target=client.close).start()
        return do(*args)

    monkeypatch.setattr("kdpipe.caching.worker.do", dying)
    with pytest.raises(CacheError, match=r"scheduler is gone.*Repeat the command"):
        cached(world, tmp_path / "c", teacher(client))
    cluster.close()
    make_cache(world, tmp_path / "c", views=(0, 1, "center"), config=RECIPE)
    make_cache(world, tmp_path / "alone", views=(0, 1, "center"), config=RECIPE)
    assert tree(tmp_path / "c") == tree(tmp_path / "alone")
