"""An index that is being replaced: killed at any rename, the old or the new one can be had."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from kdpipe.errors import IndexFileError
from kdpipe.shards import Index, build_index, layout
from tests.children import dying_at, run
from tests.shards.making import write_shards


def _replace(folder: Path, call: int, after: bool) -> None:
    Path.rename = dying_at(Path.rename, call, after=after)  # type: ignore[method-assign]
    build_index(folder / "s", folder / "my index", block_size=2, overwrite=True)


@pytest.mark.parametrize("repeat", [False, True])
def test_killed_between_the_renames(tmp_path, repeat):
    write_shards(tmp_path / "s", 1, 4, size=8)
    before = build_index(tmp_path / "s", tmp_path / "my index", block_size=4).digest
    assert run(_replace, tmp_path, 1, True) == -9
    with pytest.raises(
        IndexFileError, match=r"being replaced when that was stopped. Bring back the old one: mv "
    ) as caught:
        Index.open(tmp_path / "my index")
    if repeat:  # the same command again makes the new one, and leaves no other
        assert build_index(tmp_path / "s", tmp_path / "my index", block_size=2, overwrite=True).block_size == 2
        assert not list(tmp_path.glob(".*.old"))
    else:
        subprocess.run(shlex.split(str(caught.value).split(": ")[-1]), check=True)
        assert Index.open(tmp_path / "my index").digest == before


def test_something_else_with_such_a_name(tmp_path):
    (tmp_path / ".i.1.old").mkdir()
    with pytest.raises(IndexFileError, match=r"no index there. Make it by `kdpipe index`, and name the folder"):
        Index.open(tmp_path / "i")
    assert not layout._set_aside(tmp_path / "i")
    shutil.rmtree(tmp_path / ".i.1.old")
