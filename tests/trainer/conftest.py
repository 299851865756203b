from pathlib import Path

import pytest

from kdpipe.shards import Index
from tests.threads import one_thread
from tests.trainer import tiny


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def index(data: Path) -> Index:
    return tiny.make_index(data)


@pytest.fixture(scope="session")
def validation(data: Path) -> Index:
    return tiny.make_index(data, "val", seed=1, samples=10)


@pytest.fixture(scope="session")
def cache(data: Path, index: Index) -> str:
    return tiny.make_cache(data, index)
