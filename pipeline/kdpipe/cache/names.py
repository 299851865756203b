"""The names that files of a cache may have. Nothing else is ever made a path: see `Store.path`.

Names are relative, with forward slashes. Those of shards come from outside and are components of names of records; all
others are the layout's own, see `kdpipe.cache.layout`.
"""

import re

from kdpipe.errors import CorruptionError

LONGEST, LONGEST_COMPONENT = 1024, 255
# What a record's name and that of its unfinished write add to a shard's: .json, and .<32 digits>.partial
_LONGEST_SHARD = LONGEST_COMPONENT - len(".json") - 41

PART_PATTERN = "head|tail|calibration-[0-9a-f]{16}"
SEGMENT_PATTERN = r"[0-9]{3,6}-[a-z0-9+-]+"
_FIELD = "index|log_prob|label_log_prob|logits|pooled|pooled_scale|map|map_scale"
_FILES = (
    r"zarr\.json",
    r"provenance\.json",
    r"canaries/(zarr\.json|labels\.json|pixels/(zarr\.json|c(/0){4}))",
    rf"segments/(zarr\.json|{SEGMENT_PATTERN}/(zarr\.json|({_FIELD})/(zarr\.json|c/0/[0-9]+(/0){{1,4}})))",
    rf"commits/(store|{PART_PATTERN})\.json",
    rf"commits/{SEGMENT_PATTERN}/[^/]+\.json",
    rf"parts/({PART_PATTERN})\.safetensors",
    rf"locks/(adding|alone|tasks/{SEGMENT_PATTERN}/[^/]+)/[0-9]{{6}}(-beat)?\.json",
    r"locks/writing/[0-9a-f]{32}\.json",
)
_FOLDERS = (
    "canaries(/pixels)?",
    rf"segments(/{SEGMENT_PATTERN}(/({_FIELD}))?)?",
    rf"commits(/{SEGMENT_PATTERN})?",
    "parts",
    rf"locks(/(adding|alone|writing|tasks/{SEGMENT_PATTERN}/[^/]+))?",
)
_FILE, _FOLDER = (re.compile("|".join(f"({pattern})" for pattern in patterns)) for patterns in (_FILES, _FOLDERS))
# Of control characters also those that end lines in Unicode; and lone surrogates, which are no text.
_FORBIDDEN = re.compile("[\\\\\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def is_plain(name: str) -> bool:
    """Whether a name is relative, in one spelling, and stays below the root that it is put behind."""
    parts = name.split("/")
    return (
        not _FORBIDDEN.search(name)
        and len(name.encode()) <= LONGEST
        and all(part not in ("", ".", "..") and len(part.encode()) <= LONGEST_COMPONENT for part in parts)
    )


def is_file(name: str) -> bool:
    """Whether the layout has files of this name."""
    return is_plain(name) and _FILE.fullmatch(name) is not None


def is_folder(name: str) -> bool:
    """Whether the layout has folders of this name; the root is the empty name."""
    return name == "" or (is_plain(name) and _FOLDER.fullmatch(name) is not None)


def fits_shard(name: str) -> bool:
    """Whether a shard's name can be a component: of `commits/<segment>/<name>.json`, beside segment.json."""
    return is_plain(name) and "/" not in name and len(name.encode()) <= _LONGEST_SHARD and name != "segment"


def shown(name: object) -> str:
    """A name for a message, whatever is in it."""
    text = ascii(name)
    return text if len(text) <= 80 else f"{text[:76]}..."


def refusal(where: object, name: object) -> CorruptionError:
    """The error for a name that no file of a cache has."""
    return CorruptionError(
        "names a file as no cache does",
        where=where,
        found=shown(name),
        do="Don't use this cache: kdpipe has not written it. Or move the file away, if it is yours",
    )
