"""Clients of dask clusters: one that runs on this machine for as long as a command does, or one that the user runs.

Whoever reaches a dask scheduler or worker can run code as its user. A local cluster therefore takes connections only
with keys that exist in the memory of its own processes, and serves nothing over HTTP.
"""

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import dask
from distributed import Client, Nanny, Security, SpecCluster
from distributed.utils import silence_logging_cmgr

from kdpipe._util.silent import SilentScheduler, SilentWorker
from kdpipe.errors import CacheError, ConfigError

_CLOSING = 30.0  # seconds


@contextmanager
def local_client(workers: int) -> Iterator[Client]:
    """A client of a cluster of single-threaded processes on this machine, which ends with the context.

    Its processes listen on 127.0.0.1 with TLS; their key is made here, and another user of the machine lacks it.
    """
    security = Security.temporary()
    common = {"host": "127.0.0.1", "protocol": "tls://", "security": security}
    worker = {
        **common,
        "worker_class": SilentWorker,
        "nthreads": 1,
        # The teacher's memory is the user's affair; dask would kill a worker that comes near its share.
        "memory_limit": 0,
        # A task that fails is reported by the client, in one line.
        "silence_logs": logging.CRITICAL,
    }
    # dask looks at what its workers execute a hundred times a second, for a page that isn't served here.
    with (
        dask.config.set({"distributed.worker.profile.enabled": False}),
        _closing(
            SpecCluster(
                workers={number: {"cls": Nanny, "options": worker} for number in range(workers)},
                scheduler={"cls": SilentScheduler, "options": {**common, "port": 0, "dashboard": False}},
                security=security,
                silence_logs=logging.CRITICAL,
            )
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@contextmanager
def _closing(cluster: SpecCluster) -> Iterator[SpecCluster]:
    """A cluster that ends with the context, by force if need be: dask waits for ever for a worker that it is
    restarting at that moment, and all results are committed by then.
    """
    try:
        yield cluster
    finally:
        try:
            cluster.close(timeout=_CLOSING)
        except TimeoutError:
            for pid in (nanny.pid for nanny in cluster.workers.values() if nanny.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


@contextmanager
def user_client(
    address: str, ca: str | None = None, cert: str | None = None, key: str | None = None
) -> Iterator[Client]:
    """A client of a cluster that the user runs.

    Args:
        address: of its scheduler.
        ca: file of the authority that signed the cluster's certificates; all three files or none, and with none what
            dask's own configuration.
        cert: file of this client's certificate.
        key: file of its private key.

    Raises:
        ConfigError: only some of the files are given, one is missing, or the address takes none.
        CacheError: no scheduler responds there, or it has other certificates.
    """
    security = _security(address, {"--tls-ca": ca, "--tls-cert": cert, "--tls-key": key})
    try:
        client = Client(address, security=security)
    except TypeError as e:  # dask's error for missing certificates
        raise ConfigError(
            "a tls:// scheduler needs certificates",
            where=address,
            do="Give --tls-ca, --tls-cert and --tls-key, or set distributed.comm.tls in dask's configuration",
        ) from e
    except (OSError, ValueError, RuntimeError) as e:  # dask raises each, with its own message
        raise CacheError(
            f"no dask scheduler responds: {e}",
            where=address,
            do="Start one with dask scheduler, or correct the address"
            + (" or the certificates" if authenticated(address) else ""),
        ) from e
    # What dask logs about a scheduler that it can't find again, with tracebacks; the caller gets an error.
    with silence_logging_cmgr(logging.CRITICAL), client:
        yield client


def authenticated(address: str) -> bool:
    """Whether the scheduler at an address takes only clients with a certificate that it trusts."""
    return address.startswith("tls://")


def _security(address: str, files: dict[str, str | None]) -> Security | None:
    given = {flag: file for flag, file in files.items() if file is not None}
    if not given:
        return None
    if not authenticated(address):
        raise ConfigError(
            f"{next(iter(given))} is for a tls:// scheduler", where="--scheduler", found=address, allowed="tls://..."
        )
    for flag, file in files.items():
        if file is None:
            raise ConfigError("TLS needs all three files", where=flag, found="nothing", do=f"Give {flag} too")
        if not Path(file).is_file():
            raise ConfigError("no such file", where=flag, found=file)
    ca, cert, key = given.values()
    security = Security(tls_ca_file=ca, tls_client_cert=cert, tls_client_key=key, require_encryption=True)
    try:
        security.get_connection_args("client")
    except OSError as e:  # ssl.SSLError is one
        raise ConfigError(f"no usable certificates: {e}", where="--tls-ca, --tls-cert, --tls-key") from e
    return security
