"""A Zarr store that reads and writes the names of a cache and no others."""

from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Any, Self

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore

from pipeline.cache.names import refusal


class Guarded(WrapperStore[Store]):
    """Only some names of another store.

    Args:
        store: the other one.
        allowed: whether a name is one of them; may raise. Others are not there to be read, and can't be written.
    """

    def __init__(self, store: Store, allowed: Callable[[str], bool]) -> None:
        super().__init__(store)
        self._allowed = allowed

    def _with_store(self, store: Store) -> Self:
        return type(self)(store, self._allowed)

    def _require(self, key: str) -> None:
        if not self._allowed(key):
            raise refusal(self, key)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Bytes of a name."""
        return await super().get(key, prototype, byte_range) if self._allowed(key) else None

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Parts of the bytes of names."""
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def _get_many(
        self, requests: Iterable[tuple[str, BufferPrototype, ByteRequest | None]]
    ) -> AsyncGenerator[tuple[str, Buffer | None], None]:
        for key, prototype, byte_range in requests:
            yield key, await self.get(key, prototype, byte_range)

    async def exists(self, key: str) -> bool:
        """Whether a name is there."""
        return self._allowed(key) and await super().exists(key)

    async def set(self, key: str, value: Buffer) -> None:
        """Write a name."""
        self._require(key)
        await super().set(key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write a name that isn't there."""
        self._require(key)
        await super().set_if_not_exists(key, value)

    async def _set_many(self, values: Iterable[tuple[str, Buffer]]) -> None:
        for key, value in values:
            await self.set(key, value)

    async def delete(self, key: str) -> None:
        """Delete a name."""
        self._require(key)
        await super().delete(key)

    async def delete_dir(self, prefix: str) -> None:
        """Zarr would delete a folder so to make it anew; the cache's own code decides what goes."""
        raise NotImplementedError(f"a cache's folders are not deleted by Zarr: {prefix}")

    async def clear(self) -> Any:
        """As `delete_dir`, of all."""
        raise NotImplementedError("a cache is not deleted by Zarr")
