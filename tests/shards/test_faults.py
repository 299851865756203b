"""Remote shards that can't be had: one line with the true cause, soon."""

import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from kdpipe.errors import ShardError
from kdpipe.shards import BlockReader, Index, build_index, remote
from tests.shards.making import write_shards
from tests.shards.serving import Server, serving
from tests.stages.running import refused

DEAD = "127.0.0.1:9"  # nobody listens at the discard port


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    write_shards(tmp_path / "set", 2, 8, size=16)
    with serving(tmp_path / "set") as server:
        yield server


@pytest.fixture
def index(server: Server, tmp_path: Path) -> Index:
    return build_index(f"{server.url}/shard-{{0000..0001}}.tar", tmp_path / "index", block_size=4)


@pytest.mark.parametrize("form", ["/a-{0000..0099}.tar", "/a.tar", "/folder", "/*.tar", "/_info.json"])
@pytest.mark.parametrize(
    ("root", "cause"),
    [
        (f"http://{DEAD}", f"Cannot connect to host {DEAD}"),
        ("http://nowhere.invalid", "nowhere.invalid"),
    ],
)
def test_a_dead_endpoint_is_told(root: str, cause: str, form: str, tmp_path: Path) -> None:
    began = time.monotonic()
    line = refused("index", root + form, "--out", tmp_path / "index")
    assert time.monotonic() - began < 10
    assert root in line
    assert cause in line


@pytest.mark.parametrize("form", ["/a-{0..1}.tar", "/a.tar", "/*.tar"])
def test_s3_without_credentials_and_with_a_dead_endpoint(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3fs = pytest.importorskip("s3fs")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()
    line = refused("index", f"s3://bucket{form}", "--out", tmp_path / "index")
    assert "NoCredentialsError: Unable to locate credentials" in line
    assert "Give credentials in the environment" in line
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{DEAD}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    s3fs.S3FileSystem.clear_instance_cache()
    line = refused("index", f"s3://bucket{form}", "--out", tmp_path / "index")
    assert "Could not connect to the endpoint URL" in line
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize(
    ("fault", "cause"), [(403, "HTTP 403 Forbidden"), (500, "HTTP 500 Internal Server Error"), (401, "HTTP 401")]
)
@pytest.mark.parametrize("form", ["/shard-{0000..0001}.tar", "/shard-0000.tar", "", "/*.tar", "/_info.json"])
def test_a_refusal_is_not_called_missing(fault: int, cause: str, form: str, server: Server, tmp_path: Path) -> None:
    server.fault = fault
    with pytest.raises(ShardError, match=cause):
        build_index(server.url + form, tmp_path / "index")


def test_a_shard_that_cannot_be_fetched_is_not_skipped(server: Server, tmp_path: Path) -> None:
    """That says nothing of the shard: the next run may read it."""
    server.fault = "reset"
    line = refused("index", f"{server.url}/shard-0000.tar", "--out", tmp_path / "other", "--skip-bad")
    assert f"{server.url}/shard-0000.tar: the shard can't be fetched" in line
    assert "--skip-bad" not in line


def test_tls_is_checked_and_told(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"SSL|ssl"):
        build_index(server.url.replace("http:", "https:") + "/shard-0000.tar", tmp_path / "index")


def test_what_is_missing_is_called_missing(server: Server, index: Index, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="no such file or folder"):
        build_index(f"{server.url}/nowhere.tar", tmp_path / "other")
    with pytest.raises(ShardError, match=r"shard-0002.tar: a shard of the pattern is missing; found 2 of 3 shards"):
        build_index(f"{server.url}/shard-{{0000..0002}}.tar", tmp_path / "other")
    (tmp_path / "set" / "shard-0000.tar").unlink()
    with pytest.raises(ShardError, match="not where it was indexed"):
        BlockReader(index).read(1)


def test_folders_and_globs_of_a_server(server: Server, index: Index, tmp_path: Path) -> None:
    for form in ("", "/", "/*.tar", "/shard-*.tar"):
        again = build_index(server.url + form, tmp_path / "again", block_size=4, overwrite=True)
        assert again.identity() == index.identity()
    # To ask whether a shard is a folder, its bytes are not fetched.
    server.requests.clear()
    build_index(f"{server.url}/shard-0000.tar", tmp_path / "one")
    assert [method for method, _, _ in server.requests] == ["HEAD", "GET"]


def test_a_server_without_ranges_is_told_with_what_to_do(server: Server, index: Index) -> None:
    server.fault = "whole"
    reader = BlockReader(index)
    with pytest.raises(ShardError, match=r"the server ignores range requests\. Download the shards, or serve them"):
        reader.read(1)


def test_a_protocol_that_ignores_ranges_is_told(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fs = fsspec.filesystem("memory")
    for path in (tmp_path / "set").iterdir():
        fs.pipe_file(f"/faults-test/{path.name}", path.read_bytes())
    other = build_index("memory://faults-test", tmp_path / "memory", block_size=4)
    whole = type(fs).cat_file
    monkeypatch.setattr(type(fs), "cat_file", lambda self, path, start=None, end=None, **_: whole(self, path))
    with pytest.raises(ShardError, match="ignores range requests"):
        BlockReader(other).read(1)
    monkeypatch.setattr(type(fs), "cat_file", lambda self, path, start=None, end=None, **_: whole(self, path, 0, 7))
    with pytest.raises(ShardError, match="fewer bytes came than were requested; found 7 bytes"):
        BlockReader(other).read(1)


@pytest.mark.parametrize(
    ("fault", "cause"), [("short", "payload is not completed|Connection"), ("reset", "reset|payload")]
)
def test_broken_connections_are_not_called_changed_shards(
    fault: str, cause: str, server: Server, index: Index, tmp_path: Path
) -> None:
    server.fault = fault
    with pytest.raises(ShardError, match=rf"the shard can't be fetched .*({cause})"):
        BlockReader(index).read(1)
    with pytest.raises(ShardError, match=rf"the shard can't be fetched .*({cause})"):
        build_index(f"{server.url}/shard-0000.tar", tmp_path / "other")
    server.fault = None
    BlockReader(index).read(1)


def test_a_silent_server_is_not_waited_for_without_end(
    server: Server, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "READ_SECONDS", 0.5)
    server.fault = "stall"
    began = time.monotonic()
    with pytest.raises(ShardError, match=r"the shard can't be fetched .*no response in time"):
        BlockReader(index).read(1)
    assert time.monotonic() - began < 10


def test_the_first_failure_ends_the_looking(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fails(url: str) -> bool:
        asked.append(url)
        time.sleep(0.01)
        raise ShardError("no way", where=url)

    monkeypatch.setattr(remote, "exists", fails)
    with pytest.raises(ShardError, match="no way"):
        build_index(f"{server.url}/a-{{0000..9999}}.tar", tmp_path / "index")
    assert len(asked) < 1000
