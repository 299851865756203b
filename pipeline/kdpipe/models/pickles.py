"""What is inside of a torch.save, before PyTorch reads it: nothing but tensors, and no more than the file has room for.

`torch.load(weights_only=True)` runs no code of the file, but it calls what its own list allows with any arguments, a
bytearray of 100 GB included, and its errors advise to switch the safety off. Here the pickle's instructions are read
without executing them, against a shorter list, and every refusal has a reason of its own.
"""

import errno
import io
import mmap
import pickletools
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from kdpipe._util.tensors import mistaken

# What state dicts are made of, with what lies beside them in checkpoints of training scripts.
_CALLED = {
    "argparse.Namespace",
    "builtins.complex",
    "builtins.set",
    "collections.Counter",
    "collections.OrderedDict",
    "torch.Size",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
    "torch.device",
}
# Instances whose attributes a pickle may set.
_BUILT = {"argparse.Namespace", "collections.OrderedDict"}
# A tensor takes about 25 instructions and 200 bytes. Values in one tuple count those inside of it: tuples are keys, and
# hashing one visits them all.
_INSTRUCTIONS, _PICKLE_BYTES, _TUPLE_VALUES = 2_000_000, 2**26, 10_000
_ZIP, _TAR = b"PK\x03\x04", b"ustar"
# A file of before PyTorch 1.6: five pickles, the first of them a number, then the storages.
_LEGACY, _LEGACY_PICKLES = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", 5
_CHUNK = 2**20


class ForeignCode(ValueError):
    """A pickle that can only be read by running what it names."""


class _Value(NamedTuple):
    """What is known of a value on the pickle machine's stack.

    Attributes:
        kind: "mark", "global", "made" (by calling a global), "tuple" or "other".
        name: of the global.
        values: of a tuple, itself and all inside of it; else 1.
    """

    kind: str
    name: str = ""
    values: int = 1


_OTHER, _MARK = _Value("other"), _Value("mark")
_PLAIN = (
    *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1", "BINUNICODE"),
    *("SHORT_BINSTRING", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"),
)
# What instructions leave on the stack, and how many values they take from it.
_PUSHED = {**dict.fromkeys(_PLAIN, _OTHER), "EMPTY_TUPLE": _Value("tuple"), "MARK": _MARK}
_POPPED = {"APPEND": 1, "SETITEM": 2, "STOP": 1}


def check(path: Path) -> bool:
    """Refuse what torch.load shouldn't be given.

    Returns:
        Whether checksums show that the content is what was written.

    Raises:
        OSError: the file can't be read.
        ForeignCode: there is more in it than tensors and plain values; names it.
        ValueError: no torch.save, or a damaged one.
    """
    with path.open("rb") as file:
        start = file.read(512)
        instead = mistaken(start)
        if instead:
            raise ValueError(instead)
        if start.startswith(_ZIP):
            return _check_zip(path, file)
        if start[257:262] == _TAR:
            raise ValueError("a tar, as PyTorch wrote it before 2018: load and save it again with a PyTorch of then")
        if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
            raise ValueError("a safetensors file under another suffix: rename it to .safetensors")
        if not start.startswith(_LEGACY):
            pickled = start[:1] == b"\x80"
            raise ValueError("a pickle, but not one that torch.save wrote" if pickled else "not what torch.save writes")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            for _ in range(_LEGACY_PICKLES):
                _check_pickle(mapped)
        return False


def is_zip(path: Path) -> bool:
    """Whether it is a torch.save of PyTorch 1.6 or newer, which can be mapped."""
    with path.open("rb") as file:
        return file.read(len(_ZIP)) == _ZIP


def _check_zip(path: Path, file: BinaryIO) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            _check_entries(entries)
            checked = [_crc(archive, entry) for entry in entries if entry.file_size]
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, UnicodeError, OSError) as e:
        # An offset before the file's beginning ends as an invalid argument.
        if isinstance(e, OSError) and e.errno != errno.EINVAL:
            raise
        raise ValueError(f"a damaged or incomplete torch.save: {_short(e)}") from e
    try:
        # By PyTorch's own reader, so that what is checked is what it loads.
        data = torch._C.PyTorchFileReader(str(path)).get_record("data.pkl")
    except RuntimeError as e:
        raise ValueError("a damaged or incomplete torch.save: PyTorch can't find its data.pkl") from e
    if len(data) > _PICKLE_BYTES:
        raise ValueError(f"its pickle has {len(data)} bytes beside the tensors, at most {_PICKLE_BYTES} are read")
    _check_pickle(io.BytesIO(data))
    return all(checked)


def _check_entries(entries: list[zipfile.ZipInfo]) -> None:
    names = {entry.filename.rpartition("/")[2] for entry in entries}
    if "constants.pkl" in names:
        raise ForeignCode("a TorchScript archive, which is a program")
    if "data.pkl" not in names:
        raise ValueError("a zip, but not one that torch.save wrote: it has no data.pkl")
    # Readers differ in which of two they take, and in whether case counts.
    if len({entry.filename.casefold() for entry in entries}) < len(entries):
        raise ValueError("a zip with two entries of one name, which torch.save doesn't write")
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
        raise ValueError("a zip with compressed or encrypted entries, which torch.save doesn't write")


def _crc(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bool:
    """Whether an entry has a checksum; PyTorch can be told to write 0 instead.

    Raises:
        BadZipFile: it isn't that of the entry's bytes.
    """
    if entry.CRC == 0:
        return False
    with archive.open(entry) as part:
        while part.read(_CHUNK):  # zipfile compares at the end
            pass
    return True


def _check_pickle(file: Any) -> None:
    try:
        _simulate(file)
    except (IndexError, KeyError):
        raise ValueError("a damaged pickle: an instruction takes what isn't there") from None


def _simulate(file: Any) -> None:
    """Follow the pickle's instructions on values of which only the kind is kept."""
    stack: list[_Value] = []
    memo: dict[int, _Value] = {}
    for name, argument in _instructions(file):
        if name in _PUSHED:
            stack.append(_PUSHED[name])
        elif name in _POPPED:
            for _ in range(_POPPED[name]):
                _pop(stack)
        elif name in ("APPENDS", "SETITEMS"):
            _pop_mark(stack)
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(_tuple([_pop(stack) for _ in range(int(name[-1]))]))
        elif name == "TUPLE":
            stack.append(_tuple(_pop_mark(stack)))
        elif name == "PROTO":
            if argument != 2:
                raise ValueError(f"a pickle of protocol {argument}, and torch.save writes protocol 2")
        else:
            _use_global(name, argument, stack)


def _use_global(name: str, argument: Any, stack: list[_Value]) -> None:
    if name == "GLOBAL":
        stack.append(_Value("global", _allowed(argument)))
    elif name in ("REDUCE", "NEWOBJ"):
        arguments, called = _pop(stack), _pop(stack)
        if called.kind != "global" or called.name not in _CALLED or arguments.kind != "tuple":
            raise ForeignCode(f"its pickle calls {called.name or 'a value'}")
        stack.append(_Value("made", called.name))
    elif name == "BUILD":
        _pop(stack)
        if stack[-1].kind != "made" or stack[-1].name not in _BUILT:
            raise ForeignCode(f"its pickle sets attributes of {stack[-1].name or 'a value'}")
    elif name == "BINPERSID":
        _pop(stack)
        stack.append(_OTHER)
    else:
        raise ForeignCode(f"its pickle has the instruction {name}, which torch.save doesn't write")


def _instructions(file: Any) -> Iterator[tuple[str, Any]]:
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if count > _INSTRUCTIONS:
                raise ValueError(f"more than {_INSTRUCTIONS} instructions")
            yield opcode.name, argument
    except ForeignCode:
        raise
    except (ValueError, OverflowError) as e:
        raise ValueError(f"a damaged or incomplete pickle: {_short(e)}") from e


def _allowed(argument: str) -> str:
    """Full name of a global, if a state dict may refer to it."""
    module, _, name = argument.partition(" ")
    # The names of Python 2, as PyTorch writes and reads them.
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    full = f"{module}.{name}"
    plain = module == "torch" and name.isidentifier() and not name.startswith("_")
    storage = full == "torch.storage.UntypedStorage" or (plain and name.endswith("Storage"))
    if full in _CALLED or storage or (plain and isinstance(getattr(torch, name, None), torch.dtype)):
        return full
    raise ForeignCode(f"its pickle refers to {full[:100]}")


def _tuple(inside: list[_Value]) -> _Value:
    values = 1 + sum(value.values for value in inside)
    if values > _TUPLE_VALUES:
        raise ValueError(f"a tuple of more than {_TUPLE_VALUES} values")
    return _Value("tuple", values=values)


def _pop(stack: list[_Value]) -> _Value:
    value = stack.pop()
    if value is _MARK:
        raise IndexError
    return value


def _pop_mark(stack: list[_Value]) -> list[_Value]:
    found = []
    while (value := stack.pop()) is not _MARK:
        found.append(value)
    return found


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:150] or type(error).__name__
