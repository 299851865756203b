"""Fixtures shared by all tests."""

import pytest

from kdpipe.views import ViewsConfig
from tests.tiny import POLICIES, World, make_cache, make_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Three small shards and their index; not to be changed."""
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session", params=list(POLICIES))
def policy(request: pytest.FixtureRequest) -> ViewsConfig:
    """Crop and flip alone; and the papers' recipe with all that mixes and erases."""
    return POLICIES[request.param]


@pytest.fixture(scope="session")
def policy_cache(world: World, policy: ViewsConfig, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A finished cache of three views of a policy and the center view; not to be changed."""
    path = tmp_path_factory.mktemp("cache") / "cache.zarr"
    make_cache(world, path, config=policy)
    return str(path)


@pytest.fixture(scope="session")
def cache_path(world: World, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A finished cache of three views and the center view; not to be changed."""
    path = tmp_path_factory.mktemp("cache") / "cache.zarr"
    make_cache(world, path)
    return str(path)
