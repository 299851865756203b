"""Names of classes: from the index into caches, weights and tables, and compared wherever both sides know them."""

import shutil
from pathlib import Path

import pytest

from kdpipe.cache import CacheReader
from kdpipe.errors import IdentityError
from kdpipe.models import read_header
from kdpipe.shards import Index, build_index
from kdpipe.shards.classes import ClassMap
from kdpipe.trainer import train
from tests.stages.running import kdpipe, refused
from tests.trainer import tiny

NAMES, OTHER = ["ant", "bee", "c t", "d\N{LATIN SMALL LETTER E WITH ACUTE}"], ["ant", "wasp", "c t", "eel"]


def named(index: Index, folder: Path, names: list[str] | None) -> Index:
    numbers = None if names is None else ClassMap.of({name: i for i, name in enumerate(names)})
    out = folder / f"named-{'-'.join(names or ['not'])}"
    return build_index(str(Path(index.shards[0].url).parent), out, block_size=8, class_map=numbers)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Index, str]:
    """An index with names and a cache of it."""
    folder = tmp_path_factory.mktemp("names")
    index = named(tiny.make_index(folder), folder, NAMES)
    return folder, index, tiny.make_cache(folder, index)


def test_a_cache_keeps_them_and_refuses_others(made: tuple[Path, Index, str]) -> None:
    folder, index, url = made
    assert CacheReader(url, index, tiny.VIEWS).cache.identity["classes"] == NAMES
    message = r"the classes of the index and of the cache have other names; found 1 is 'wasp' and 'bee', 3 is 'eel' and"
    with pytest.raises(IdentityError, match=message):
        CacheReader(url, named(index, folder, OTHER), tiny.VIEWS)
    with pytest.raises(IdentityError, match=message):
        tiny.make_cache(folder, named(index, folder, OTHER), views=(0, 1, 2))


def test_names_may_be_unknown_on_either_side(made: tuple[Path, Index, str], tmp_path: Path) -> None:
    folder, index, url = made
    plain, copy = named(index, folder, None), tmp_path / "cache.zarr"
    assert CacheReader(url, plain, tiny.VIEWS).views == [0, 1]
    shutil.copytree(url, copy)
    tiny.make_cache(tmp_path, plain, views=(2,))  # appended to
    assert CacheReader(str(copy), index, tiny.VIEWS).views == [0, 1, 2]
    said: list[str] = []
    train(tiny.make_job(plain, cache=url, epochs=1), tmp_path / "run", log=said.append)
    assert "class names are unknown in the index: their order isn't compared" in said
    assert read_header(tmp_path / "run" / "best.safetensors").classes is None


def test_a_cache_without_names_takes_an_index_with_them(made: tuple[Path, Index, str], tmp_path: Path) -> None:
    folder, index, _ = made
    tiny.make_cache(tmp_path, named(index, folder, None))
    url = tiny.make_cache(tmp_path, index, views=(0, 1, 2))
    assert CacheReader(url, index, tiny.VIEWS).views == [0, 1, 2]
    assert CacheReader(url, index, tiny.VIEWS).cache.classes is None


def test_weights_keep_them(made: tuple[Path, Index, str], tmp_path: Path) -> None:
    folder, index, url = made
    with pytest.raises(IdentityError, match="of the index and of the validation index have other names; found 1 is"):
        train(tiny.make_job(index, named(index, folder, OTHER)), tmp_path / "no", log=lambda _: None)
    train(tiny.make_job(index, index, cache=url, epochs=1), tmp_path / "run", log=lambda _: None)
    weights = tmp_path / "run" / "best.safetensors"
    assert read_header(weights).classes == NAMES
    words = (weights, "--trust", "tests.trainer", "--set", "teacher.device=cpu", "--index")
    line = refused("evaluate", *words, named(index, folder, OTHER).path)
    assert "best.safetensors: the classes of the index and of the weights have other names; found 1 is 'wasp'" in line
    unknown = kdpipe("evaluate", *words, named(index, folder, None).path)
    assert (unknown.code, "class names are unknown in the index" in unknown.err) == (0, True)
    assert kdpipe("evaluate", *words, index.path).code == 0


def test_tables_show_them(made: tuple[Path, Index, str], tmp_path: Path) -> None:
    _, index, _ = made
    url = tiny.make_cache(tmp_path, index, views=("center",))  # the others are mixed
    shown = kdpipe("inspect", url, "--index", index.path).out
    assert any(f"{i} {name}" in shown for i, name in enumerate(NAMES))
    assert (
        "4 classes (ant, bee, c t, ...)"
        in kdpipe(*("index", Path(index.shards[0].url).parent, "--class-map", index.path, "--out", tmp_path / "i")).out
    )
