from pathlib import Path

import pytest
import torch

from pipeline.shards import Index
from tests.trainer import tiny


@pytest.fixture(autouse=True)
def _one_thread():
    """Tiny tensors: threads cost more than they save, and children of a test should round as it does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
