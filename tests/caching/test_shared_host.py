"""On a machine that others use: what listens, who gets in, and a cluster of one's own with TLS."""

import contextlib
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dask
import psutil
import pytest
from distributed import Client, Security

from kdpipe.caching.clients import local_client, user_client
from kdpipe.caching.cluster import Cluster
from kdpipe.errors import CacheError, ConfigError
from kdpipe.teacher import TeacherConfig
from kdpipe.trainer import train
from tests.caching.test_cluster import cached
from tests.stages.running import kdpipe, refused
from tests.stages.test_mistakes import TEACHER
from tests.tiny import RECIPE, SETTINGS, make_cache, tree
from tests.trainer import tiny

# dask leaves sockets to the garbage collector and has events of its own loop.
pytestmark = pytest.mark.filterwarnings("ignore")
ROOT = Path(__file__).parents[2]


def listening() -> set[tuple[str, int]]:
    """Where this process and all below it take connections."""
    me = psutil.Process()
    sockets = [c for p in (me, *me.children(recursive=True)) for c in p.net_connections("inet")]
    return {(c.laddr.ip, c.laddr.port) for c in sockets if c.status == psutil.CONN_LISTEN}


def answer(port: int, words: bytes, context: ssl.SSLContext | None = None) -> bytes:
    """What comes back when something is said to a port; nothing where the connection is cut."""
    with (
        contextlib.suppress(OSError),
        socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
        context.wrap_socket(plain) if context else contextlib.nullcontext(plain) as talk,
    ):
        talk.sendall(words)
        return talk.recv(1000)
    return b""


def test_a_cluster_that_dask_cannot_close_is_ended_by_force(tmp_path):
    """In a process of its own: what is left of dask's loop ends with it."""
    script = """
import asyncio, os, time
from distributed import SpecCluster
from kdpipe.caching import clients
if __name__ == "__main__":
    clients._CLOSING = 0.5
    with clients.local_client(1) as client:
        [pid] = client.run(os.getpid).values()
        SpecCluster._close = lambda self: asyncio.sleep(3600)
        began = time.monotonic()
    print(pid, time.monotonic() - began, flush=True)
    os._exit(0)
"""
    (tmp_path / "script.py").write_text(script)
    command = [sys.executable, tmp_path / "script.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    pid, seconds = done.stdout.split()
    assert float(seconds) < 20
    assert not psutil.pid_exists(int(pid)) or psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE


class TestLocalCluster:
    @pytest.fixture(scope="class")
    def started(self) -> Iterator[tuple[Client, set[tuple[str, int]]]]:
        before = listening()
        with local_client(2) as client:
            client.wait_for_workers(2)
            yield client, listening() - before

    def test_takes_connections_from_this_machine_only(self, started):
        client, places = started
        # The scheduler, two workers and the nanny of each.
        assert len(places) == 5
        assert {host for host, _ in places} == {"127.0.0.1"}
        assert client.scheduler.address.startswith("tls://127.0.0.1:")

    def test_refuses_clients_without_its_key(self, started):
        nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        nobody.check_hostname, nobody.verify_mode = False, ssl.CERT_NONE
        for _, port in started[1]:
            for words in (b"GET /info/main/workers.html HTTP/1.0\r\n\r\n", bytes(8)):
                assert answer(port, words) == b"", port
                assert answer(port, words, nobody) == b"", port

    def test_takes_no_task_from_a_client_with_another_key(self, started):
        client, _ = started
        assert client.submit(int, "7").result() == 7
        for address in (client.scheduler.address, *client.scheduler_info()["workers"]):
            with pytest.raises(OSError, match=r"SSL|TLS|[Cc]losed|Timed out"):
                Client(address, security=Security.temporary(), timeout=2)
            with pytest.raises(OSError, match=r"TCP|[Cc]losed|Timed out"):
                Client(address.replace("tls://", "tcp://"), timeout=2)

    def test_leaves_the_bytes_of_one_process(self, started, world, tmp_path):
        cached(world, tmp_path / "c", Cluster(started[0], TeacherConfig.model_validate(SETTINGS), None))
        make_cache(world, tmp_path / "alone", views=(0, 1, "center"), config=RECIPE)
        assert tree(tmp_path / "c") == tree(tmp_path / "alone")


def test_training_takes_no_connections(tmp_path):
    job = tiny.make_job(tiny.make_index(tmp_path), epochs=1, loader={"workers": 2})
    before, seen = listening(), []
    train(job, tmp_path / "run", log=lambda _: None, on_step=lambda _: seen.append(listening()))
    assert seen == [before] * 3


class TestUserCluster:
    @pytest.fixture(scope="class")
    def keys(self, tmp_path_factory) -> dict[str, Path]:
        """One self-signed certificate for all, as docs/cluster.md makes it."""
        folder, made = tmp_path_factory.mktemp("keys"), Security.temporary()
        files = {"ca": folder / "cert.pem", "cert": folder / "cert.pem", "key": folder / "key.pem"}
        files["cert"].write_text(made.tls_client_cert)
        files["key"].write_text(made.tls_client_key)
        return files

    @pytest.fixture(scope="class")
    def address(self, keys) -> Iterator[str]:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            address = f"tls://127.0.0.1:{s.getsockname()[1]}"
        tls = [word for name, file in keys.items() for word in (f"--tls-{name}" + "-file" * (name == "ca"), str(file))]
        dask_ = [sys.executable, "-m", "dask"]
        port = address.rpartition(":")[2]
        words = (
            ["scheduler", "--protocol", "tls", "--host", "127.0.0.1", "--port", port, "--no-dashboard"],
            ["worker", address, "--host", "127.0.0.1", "--nthreads", "1", "--no-nanny", "--no-dashboard"],
        )
        with contextlib.ExitStack() as stack:
            for each in words:
                child = subprocess.Popen([*dask_, *each, *tls], stderr=subprocess.DEVNULL, cwd=ROOT)
                stack.enter_context(child)
                stack.callback(child.kill)
            yield address

    @staticmethod
    def flags(keys: dict[str, Path]) -> list[object]:
        return [word for name, file in keys.items() for word in (f"--tls-{name}", file)]

    @staticmethod
    def command(world, out: Path, *more: object) -> list[object]:
        return ["cache-teacher", "--index", world.index_path, *TEACHER, "--k", 4, "--out", out, *more]

    def test_caches_the_bytes_of_one_process(self, world, address, keys, tmp_path):
        done = kdpipe(*self.command(world, tmp_path / "c", "--scheduler", address, *self.flags(keys)))
        assert done.code == 0, done.err
        assert "tls" not in done.err.lower()
        make_cache(world, tmp_path / "alone", views=(0,))
        assert tree(tmp_path / "c") == tree(tmp_path / "alone")

    def test_certificates_may_stand_in_dasks_configuration(self, address, keys):
        ca, cert, key = map(str, keys.values())
        own = {"ca-file": ca, "client.cert": cert, "client.key": key}
        config = {f"distributed.comm.tls.{name}": file for name, file in own.items()}
        with dask.config.set(config), user_client(address) as client:
            assert client.submit(int, "7").result() == 7

    def test_a_client_without_certificates_or_with_others(self, world, address, tmp_path, monkeypatch):
        line = refused(*self.command(world, tmp_path / "c", "--scheduler", address))
        assert f"{address}: a tls:// scheduler needs certificates. Give --tls-ca, --tls-cert and --tls-key" in line
        other = Security.temporary()
        (tmp_path / "cert").write_text(other.tls_client_cert)
        (tmp_path / "key").write_text(other.tls_client_key)
        with (
            dask.config.set({"distributed.comm.timeouts.connect": "2s"}),
            pytest.raises(CacheError, match=r"no dask scheduler responds.*or the certificates"),
            user_client(address, *(str(tmp_path / n) for n in ("cert", "cert", "key"))),
        ):
            pass
        assert not (tmp_path / "c").exists()

    def test_an_address_that_dasks_configuration_forbids(self):
        required = dask.config.set({"distributed.comm.require-encryption": True})
        message = r"no dask scheduler responds: encryption required by Dask configuration"
        with required, pytest.raises(CacheError, match=message), user_client("tcp://127.0.0.1:1"):
            pass

    def test_flags_that_do_not_fit(self, world, keys, tmp_path):
        ca, cert, key = map(str, keys.values())
        tls = "tls://127.0.0.1:1"
        line = refused(*self.command(world, tmp_path / "c", *self.flags(keys)))
        assert "--tls-ca, --tls-cert, --tls-key: certificates without a cluster. Give --scheduler" in line
        for address, files, message in (
            ("tcp://127.0.0.1:1", (ca, cert, key), "--tls-ca is for a tls:// scheduler; found tcp://127.0.0.1:1"),
            (tls, (ca, cert, None), "--tls-key: TLS needs all three files"),
            (tls, (ca, "nowhere.pem", key), "--tls-cert: no such file; found nowhere.pem"),
            (tls, (key, cert, key), "no usable certificates"),
        ):
            with pytest.raises(ConfigError, match=message), user_client(address, *files):
                pass

    def test_a_cluster_without_tls_is_remarked_on(self, world, tmp_path):
        with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
            done = kdpipe(*self.command(world, tmp_path / "c", "--scheduler", "tcp://127.0.0.1:1"))
        assert done.code == 2
        assert done.err.count("remark: tcp://127.0.0.1:1 takes commands from anyone who reaches it") == 1
