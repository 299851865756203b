"""What index.json may contain: read with bounds, checked against a schema and against itself.

Its digest finds damage; it doesn't prove who wrote it. So whatever the other modules rely on is checked here: an index
names no file that its URL doesn't name, no negative size, and no row or block that isn't there.
"""

from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from kdpipe._util.files import read_bounded
from kdpipe._util.redact import bare_url
from kdpipe._util.untrusted import load_json
from kdpipe.config import Config, first_problem
from kdpipe.errors import IndexFileError
from kdpipe.shards.classes import MAX_CLASSES, ClassName
from kdpipe.shards.remote import refuse_chain
from kdpipe.shards.sources import is_name, is_name_of

# Of index.json: some 200,000 shards, or as many samples that were left out.
MAX_BYTES = 2**26
DTYPES = {
    "labels": "<i4",  # (samples,), -1 for none
    "image_start": "<i8",  # (samples,), bytes from the shard's start
    "image_size": "<i8",  # (samples,)
    "keys": "|u1",  # UTF-8 of all keys, one after the other
    "key_stop": "<i8",  # (samples,), where each key ends in `keys`
    "block_first": "<i8",  # (blocks + 1,), first sample of each block; the last entry is the count of samples
    "block_shard": "<i4",  # (blocks,)
    "block_start": "<i8",  # (blocks,), bytes from the shard's start
    "block_stop": "<i8",  # (blocks,)
    "block_digest": "|u1",  # (blocks, 32), sha256 of that byte range
    "block_content": "|u1",  # (blocks, 32), sha256 over keys and images alone
}


Count = Annotated[int, Field(ge=0, lt=2**62)]
Positive = Annotated[int, Field(ge=1, lt=2**62)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Strict(Config):
    model_config = ConfigDict(strict=True)


class _Shard(_Strict):
    name: str
    url: str
    size: Positive
    sha256: Digest
    first: Count
    samples: Count
    first_block: Count
    blocks: Count


class _Skipped(_Strict):
    shard: str
    key: str
    offset: Count
    reason: str


class _Array(_Strict):
    dtype: str
    shape: Annotated[list[Count], Field(max_length=2)]
    sha256: Digest


class _Document(_Strict):
    format: str
    version: int
    block_size: Annotated[int, Field(ge=1, lt=2**31)]
    num_classes: Annotated[int, Field(ge=1, le=MAX_CLASSES)] | None
    shards: Annotated[list[_Shard], Field(min_length=1)]
    skipped: list[_Skipped]
    arrays: dict[Literal[tuple(DTYPES)], _Array]  # type: ignore[valid-type]
    digest: str
    # Each is left out where there is nothing of it, so that an index that doesn't need it is as it was before.
    classes: Annotated[list[ClassName], Field(min_length=1, max_length=MAX_CLASSES)] | None = None
    left_out: Count = 0  # samples, by timm's alt_label
    unused: Annotated[dict[str, Count], Field(max_length=64)] = Field(default_factory=dict)


def read(file: Path) -> Any:
    """The JSON value in a file.

    Raises:
        OSError: it can't be read, or is larger than any index.
        ValueError: it isn't JSON.
    """
    return load_json(read_bounded(file, MAX_BYTES))


def check(document: dict[str, Any], file: Path, do: str) -> None:
    """Is this a document that `layout.save` could have written?

    Raises:
        IndexFileError: naming the first field that is impossible.
    """

    def refuse(field: str, why: str) -> IndexFileError:
        return IndexFileError(f"the index is damaged: {field}: {why}", where=file, do=do)

    try:
        content = _Document.model_validate(document)
    except ValidationError as error:
        raise refuse(*first_problem(error)[:2]) from None
    for entry in content.shards:
        if bare_url(entry.url) != entry.url:
            what = "the index holds a URL with a user, a password or a query"
            raise IndexFileError(what, where=file, found=entry.url, do="Make it again by `kdpipe index --overwrite`")
        if not is_name(entry.name) or not is_name_of(entry.name, entry.url) or "\0" in entry.url:
            raise refuse("shards", f"{entry.name!r} is not the file name of {entry.url}")
        refuse_chain(entry.url)
    if len({entry.name for entry in content.shards}) != len(content.shards):
        raise refuse("shards", "two have one name")
    if content.classes is not None and (len(set(content.classes)), content.num_classes) != (len(content.classes),) * 2:
        raise refuse("classes", "two of one name, or not as many as num_classes")
    samples, blocks = sum(s.samples for s in content.shards), sum(s.blocks for s in content.shards)
    if [s.first for s in content.shards] != list(accumulate((s.samples for s in content.shards[:-1]), initial=0)):
        raise refuse("shards", "their first samples are not those that follow from their counts")
    if [s.first_block for s in content.shards] != list(accumulate((s.blocks for s in content.shards[:-1]), initial=0)):
        raise refuse("shards", "their first blocks are not those that follow from their counts")
    shapes = _shapes(samples, blocks)
    for name, dtype in DTYPES.items():
        if name not in content.arrays:
            raise refuse("arrays", f"{name} is missing")
        found = content.arrays[name]
        if found.dtype != dtype or (name in shapes and tuple(found.shape) != shapes[name]) or len(found.shape) < 1:
            raise refuse(f"arrays.{name}", f"{found.dtype} {tuple(found.shape)} of {samples} samples, {blocks} blocks")


def _shapes(samples: int, blocks: int) -> dict[str, tuple[int, ...]]:
    """Of every array but the text of the keys."""
    by_row = dict.fromkeys(("labels", "image_start", "image_size", "key_stop"), (samples,))
    by_block = dict.fromkeys(("block_shard", "block_start", "block_stop"), (blocks,))
    return {
        **by_row,
        **by_block,
        "block_first": (blocks + 1,),
        "block_digest": (blocks, 32),
        "block_content": (blocks, 32),
    }
