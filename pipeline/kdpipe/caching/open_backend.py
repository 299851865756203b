"""Where a run's tasks are done: in this process, on this machine's devices, or on the user's cluster."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kdpipe._util.machine import cores
from kdpipe.caching.backend import Backend
from kdpipe.errors import ConfigError
from kdpipe.teacher import Teacher, TeacherConfig, devices_here


@contextmanager
def open_backend(
    config: TeacherConfig,
    num_classes: int | None,
    workers: int | None,
    scheduler: str | None,
    tls: tuple[str | None, str | None, str | None] = (None, None, None),
    log: Callable[[str], None] = lambda text: None,
) -> Iterator[Teacher | Backend]:
    """Who does the tasks: this process, a local cluster of one process a device, or the user's own cluster.

    Args:
        config: the teacher.
        num_classes: where neither the config nor the weights have them.
        workers: processes on this machine; by default one a GPU.
        scheduler: address of the user's cluster; None for this machine.
        tls: files of the certificates' authority, the client's certificate and its key, for a tls:// scheduler.
        log: gets remarks, one line each.

    Raises:
        ConfigError: options that exclude each other.
        CacheError, TeacherError: the cluster can't be reached, or the teacher can't be built.
    """
    if scheduler is not None and workers is not None:
        raise ConfigError("a cluster has its own workers", where="--workers", found=workers, do="Leave it out")
    if scheduler is None and any(tls):
        raise ConfigError(
            "certificates without a cluster", where="--tls-ca, --tls-cert, --tls-key", do="Give --scheduler"
        )
    if scheduler is None and workers is None and (len(devices_here()) == 1 or config.device != "auto"):
        yield Teacher(config, num_classes)
        return
    # dask.distributed takes a second to import, and most runs need none of it.
    from kdpipe.caching.clients import authenticated, local_client, user_client
    from kdpipe.caching.cluster import Cluster

    if scheduler is not None:
        if not authenticated(scheduler):
            log(
                f"remark: {scheduler} takes commands from anyone who reaches it, and so do its workers; "
                "on a network that others use, run it with TLS (docs/cluster.md)"
            )
        with user_client(scheduler, *tls) as client:
            log(f"workers: {len(client.nthreads())} now; dashboard: {client.dashboard_link}")
            yield Cluster(client, config, num_classes)
        return
    devices = devices_here() if config.device == "auto" else [config.device]
    count = len(devices) if workers is None else workers
    if devices == ["cpu"] and config.threads is None:
        threads = max(1, cores() // count)
        config = config.model_copy(update={"threads": threads})
    with local_client(count) as client:
        log(f"workers: {count} processes on this machine")
        yield Cluster(client, config, num_classes, devices, beside=count)
