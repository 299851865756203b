"""URLs with secrets: good for reading, and written and shown nowhere."""

import base64
import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdpipe._util.fingerprint import canonical_json, fingerprint
from kdpipe._util.redact import SHARD_URLS
from kdpipe.errors import IndexFileError, KdpipeError, ShardError
from kdpipe.loader import Loader, LoaderConfig
from kdpipe.shards import BlockReader, Index, build_index
from kdpipe.shards.sources import expand, name_of
from kdpipe.views import ViewsConfig
from kdpipe_stages.signals import resume
from tests.shards.making import write_shards
from tests.shards.serving import Server, serving
from tests.stages.running import kdpipe, refused

QUERY = "X-Amz-Credential=AKIA%2F2020%2Fs3&X-Amz-Signature=SIGNATURE%2B%3D*[{x"
SECRETS = ("SIGNATURE", "hunter2", "alice")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    write_shards(tmp_path / "set", 3, 8, size=16)
    with serving(tmp_path / "set") as server:
        yield server


def shards(server: Server) -> list[str]:
    return [f"{server.url}/shard-{i:04d}.tar?{QUERY}" for i in range(3)]


def require_no_secrets(folder: Path, *texts: object) -> None:
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "urls.txt":
            assert not any(secret.encode() in path.read_bytes() for secret in SECRETS), path
    for text in texts:
        assert not any(secret in str(text) for secret in SECRETS), text


@pytest.mark.parametrize("form", ["joined", "braces", "file", "one"])
def test_presigned_urls_are_read_and_kept_nowhere(form: str, server: Server, tmp_path: Path) -> None:
    server.query = QUERY
    (tmp_path / "urls.txt").write_text("# presigned\n\n" + "\n".join(shards(server)) + "\n")
    source = {
        "joined": "::".join(shards(server)),
        "braces": f"{server.url}/shard-{{0000..0002}}.tar?{QUERY}",
        "file": str(tmp_path / "urls.txt"),
        "one": shards(server)[1],
    }[form]
    assert {name_of(url) for url in expand(source)} <= {f"shard-{i:04d}.tar" for i in range(3)}
    index = build_index(source, tmp_path / "index", block_size=4)
    local = build_index(
        tmp_path / "set" / ("shard-0001.tar" if form == "one" else ""), tmp_path / "local", block_size=4
    )
    assert index.fingerprint == local.fingerprint
    assert [shard.url for shard in index.shards] == [f"{server.url}/{shard.name}" for shard in index.shards]
    theirs = BlockReader(local)
    for reader in (BlockReader(index), pickle.loads(pickle.dumps(BlockReader(index)))):
        for block in range(index.blocks):
            assert list(map(bytes, reader.read(block))) == list(map(bytes, theirs.read(block)))
    assert not any(query != QUERY for _, path, _ in server.requests for query in [path.partition("?")[2]])
    require_no_secrets(tmp_path, index, index.shards, repr(index.limit(5)))


def test_fresh_urls_are_given_to_later_commands(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls, index = tmp_path / "urls.txt", tmp_path / "index"
    urls.write_text("\n".join(shards(server)))
    assert kdpipe("index", urls, "--out", index).code == 0
    server.query = QUERY
    view = ("view", index, "--views", "0:1", "--out", tmp_path / "sheet.png")
    line = refused(*view)
    assert "shard-0000.tar" in line
    assert "HTTP 403" in line
    assert "kdpipe --shard-urls" in line
    assert kdpipe("--shard-urls", urls, *view).code == 0
    assert SHARD_URLS not in os.environ
    assert "nowhere.txt: no such file" in refused("--shard-urls", tmp_path / "nowhere.txt", *view)
    monkeypatch.setenv(SHARD_URLS, str(urls))
    assert kdpipe(*view).code == 0
    # Matched by name, whatever else is listed; shards that aren't listed are read where they were indexed.
    urls.write_text(f"{shards(server)[0]}\n{server.url}/other.tar\n")
    assert Index.open(index).url(Index.open(index).shards[1]) == f"{server.url}/shard-0001.tar"
    require_no_secrets(tmp_path, line)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_student_is_fed_from_presigned_urls_in_worker_processes(server: Server, tmp_path: Path) -> None:
    server.query = QUERY
    index = build_index("::".join(shards(server)), tmp_path / "index", block_size=4)
    batches = Loader(index, ViewsConfig(), 16, 6, loader=LoaderConfig(workers=1))
    assert sum(len(batch) for batch in batches.epoch(0)) == 24
    batches.close()


def test_shards_that_moved_are_found_without_indexing_again(server: Server, tmp_path: Path) -> None:
    made = build_index(tmp_path / "set", tmp_path / "index")
    first = bytes(BlockReader(made).read(0)[0])
    (tmp_path / "set").rename(tmp_path / "moved")
    with pytest.raises(ShardError, match=r"not where it was indexed\. .*kdpipe --shard-urls"):
        BlockReader(Index.open(made.path)).read(0)
    moved = {f"shard-{i:04d}.tar": str(tmp_path / "moved" / f"shard-{i:04d}.tar") for i in range(3)}
    assert bytes(BlockReader(Index.open(made.path, moved)).read(0)[0]) == first


def test_basic_credentials_are_used_and_kept_nowhere(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.user = "Basic " + base64.b64encode(b"alice:hunter2").decode()
    source = server.url.replace("://", "://alice:hunter2@") + "/shard-{0000..0002}.tar"
    index = build_index(source, tmp_path / "index", block_size=4)
    BlockReader(index).read(5)
    with pytest.raises(ShardError, match=r"HTTP 401.*netrc") as caught:
        BlockReader(Index.open(tmp_path / "index")).read(5)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "netrc").write_text("machine 127.0.0.1 login alice password hunter2\n")
    (tmp_path / "home" / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))
    BlockReader(Index.open(tmp_path / "index")).read(5)
    (tmp_path / "home" / "netrc").unlink()
    require_no_secrets(tmp_path, caught.value, repr(caught.value), index.shards)


@pytest.mark.parametrize("fault", [None, 403, 404, 500, "short", "reset"])
@pytest.mark.parametrize("tail", ["/shard-{0000..0007}.tar", "/shard-0000.tar", "", "/*.tar", "/_info.json"])
def test_no_failure_shows_a_secret(fault: int | str | None, tail: str, server: Server, tmp_path: Path) -> None:
    server.fault, server.query = fault, None if fault else "other"
    source = server.url.replace("://", "://alice:hunter2@") + tail
    line = refused("index", source + (f"?{QUERY}" if tail.endswith(".tar") else ""), "--out", tmp_path / "index")
    assert server.url in line
    require_no_secrets(tmp_path, line)


def test_an_index_with_secrets_is_refused(server: Server, tmp_path: Path) -> None:
    build_index(tmp_path / "set", tmp_path / "index")
    file = tmp_path / "index" / "index.json"
    document = json.loads(file.read_text())
    document.pop("digest")
    document["shards"][0]["url"] = "https://alice:hunter2@host/shard-0000.tar"
    file.write_bytes(canonical_json(document | {"digest": fingerprint(document)}))
    with pytest.raises(IndexFileError, match=r"found https://host/shard-0000.tar. Make it again") as caught:
        Index.open(tmp_path / "index")
    assert not any(secret in str(caught.value) for secret in SECRETS)


def test_the_command_to_repeat_has_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["kdpipe", "index", f"https://alice:hunter2@h/a.tar?{QUERY}", "--out", "x"])
    assert resume() == "kdpipe index https://h/a.tar --out x"


def test_a_question_mark_is_a_glob_everywhere_but_in_http(tmp_path: Path) -> None:
    write_shards(tmp_path, 3, 1)
    assert len(expand(f"{tmp_path}/shard-000?.tar")) == 3
    with pytest.raises(KdpipeError, match="presigned URLs can't be listed by a glob"):
        expand("https://host/*.tar?a=b")


@pytest.mark.parametrize("source", ["reference::https://h/a.json", "zip://x.tar::https://h/a.zip", "tar::/a/b.tar"])
def test_no_chain_of_protocols_is_followed(source: str, tmp_path: Path) -> None:
    with pytest.raises(ShardError):
        build_index(source, tmp_path / "index")
    build_index(write_shards(tmp_path / "set", 1, 2)[0], tmp_path / "index")
    file = tmp_path / "index" / "index.json"
    document = json.loads(file.read_text())
    document.pop("digest")
    document["shards"][0] |= {"url": source, "name": name_of(source)}
    file.write_bytes(canonical_json(document | {"digest": fingerprint(document)}))
    with pytest.raises(ShardError, match="a chain of protocols"):
        Index.open(tmp_path / "index")
