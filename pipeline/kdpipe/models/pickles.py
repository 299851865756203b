"""What is inside of a torch.save, before PyTorch reads it: nothing but tensors, and no more than the file has room for.

`torch.load(weights_only=True)` runs no code of the file, but it calls what its own list allows with any arguments, a
bytearray of 100 GB included, and its errors advise to switch the safety off. Here the pickle's instructions are read
without executing them, against a shorter list, and every refusal has a reason of its own. Classes that aren't on the
list are named, so that `kdpipe.models.stubs` can stand in for them; they are never imported.
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
from torch._weights_only_unpickler import _get_allowed_globals

from kdpipe._util.tensors import mistaken

# What state dicts are made of: the only names that PyTorch calls for real.
_CALLED = {
    "_codecs.encode",
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
# Instances whose attributes a pickle may set; and those of stubs.
_BUILT = {"collections.OrderedDict"}
# Any other class is replaced by a stub. A file that names one of these holds no data but an attack; and PyTorch must
# not be given what it would call itself.
_REFUSED = {
    *("builtins", "ctypes", "importlib", "nt", "os", "posix"),
    *("pty", "runpy", "shutil", "socket", "subprocess", "sys"),
}
_TYPES = {
    f"builtins.{name}"
    for name in (
        "bool",
        "bytes",
        "dict",
        "float",
        "frozenset",
        "int",
        "list",
        "object",
        "range",
        "slice",
        "str",
        "tuple",
    )
}
# Uses of stubs and their names: PyTorch looks through all names at each use.
_STUBS, _STUB_USES = 200, 100_000
# A tensor takes about 25 instructions and 200 bytes. Values in one tuple count those inside of it: tuples are keys, and
# hashing one visits them all.
_INSTRUCTIONS, _PICKLE_BYTES, _TUPLE_VALUES = 2_000_000, 2**28, 10_000
_ZIP, _TAR = b"PK\x03\x04", b"ustar"
# A file of before PyTorch 1.6: five pickles, the first of them a number, then the storages.
_LEGACY, _LEGACY_PICKLES = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", 5
_CHUNK = 2**20
_SHORT = 20  # characters of texts that are looked at


class ForeignCode(ValueError):
    """A pickle that can only be read by running what it names."""


class _Value(NamedTuple):
    """What is known of a value on the pickle machine's stack.

    Attributes:
        kind: "mark", "global", "made" (by calling a global), "text", "tuple" or "other".
        name: of the global, or the text if it is short.
        values: of a tuple, itself and all inside of it; else 1.
        names: of the values in a short tuple.
    """

    kind: str
    name: str = ""
    values: int = 1
    names: tuple[str, ...] = ()


class Content(NamedTuple):
    """What is known of a torch.save before it is loaded.

    Attributes:
        checked: whether checksums show that the content is what was written.
        stubbed: the classes, by full name, that must be replaced by stubs, and what is done with their instances:
            "object", "list" (values are appended) or "dict" (items are set).
    """

    checked: bool
    stubbed: dict[str, str]


_OTHER, _MARK = _Value("other"), _Value("mark")
_PLAIN = (
    *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1"),
    *("EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"),
)
# What instructions leave on the stack, and how many values they take from it.
_PUSHED = {**dict.fromkeys(_PLAIN, _OTHER), "EMPTY_TUPLE": _Value("tuple"), "MARK": _MARK}
_POPPED = {"APPEND": 1, "SETITEM": 2, "STOP": 1}


def check(path: Path) -> Content:
    """Refuse what torch.load shouldn't be given, even with stubs in the place of unknown classes.

    Raises:
        OSError: the file can't be read.
        ForeignCode: it would have to be executed; names what is called.
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
            stubbed: dict[str, str] = {}
            for _ in range(_LEGACY_PICKLES):
                stubbed |= _check_pickle(mapped)
        return Content(False, stubbed)


def is_zip(path: Path) -> bool:
    """Whether it is a torch.save of PyTorch 1.6 or newer, which can be mapped."""
    with path.open("rb") as file:
        return file.read(len(_ZIP)) == _ZIP


def _check_zip(path: Path, file: BinaryIO) -> Content:
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
    return Content(all(checked), _check_pickle(io.BytesIO(data)))


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
    """Whether an entry has a checksum; PyTorch has a setting to write 0 instead.

    Raises:
        BadZipFile: it isn't that of the entry's bytes.
    """
    if entry.CRC == 0:
        return False
    with archive.open(entry) as part:
        while part.read(_CHUNK):  # zipfile compares at the end
            pass
    return True


def _check_pickle(file: Any) -> dict[str, str]:
    try:
        return _Simulation().run(file)
    except (IndexError, KeyError):
        raise ValueError("a damaged pickle: an instruction takes what isn't there") from None


class _Simulation:
    """Follows a pickle's instructions on values of which only the kind is kept."""

    def __init__(self) -> None:
        self.stack: list[_Value] = []
        self.stubbed: dict[str, str] = {}
        self.uses = 0

    def run(self, file: Any) -> dict[str, str]:
        """The unknown classes, as `Content` has them."""
        stack, memo = self.stack, dict[int, _Value]()
        for name, argument in _instructions(file):
            if name in _PUSHED:
                stack.append(_PUSHED[name])
            elif name in ("BINUNICODE", "SHORT_BINSTRING"):
                stack.append(_Value("text", argument) if len(argument) <= _SHORT else _OTHER)
            elif name in _POPPED:
                for _ in range(_POPPED[name]):
                    _pop(stack)
                self._filled(name)
            elif name in ("APPENDS", "SETITEMS"):
                _pop_mark(stack)
                self._filled(name)
            elif name in ("BINPUT", "LONG_BINPUT"):
                memo[argument] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif name.startswith("TUPLE"):
                taken = _pop_mark(stack) if name == "TUPLE" else [_pop(stack) for _ in range(int(name[-1]))]
                stack.append(_tuple(taken[::-1]))
            elif name == "PROTO":
                if argument != 2:
                    raise ValueError(f"a pickle of protocol {argument}, and torch.save writes protocol 2")
            else:
                self._use_global(name, argument)
        return self.stubbed

    def _use_global(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name == "GLOBAL":
            full, known = _allowed(argument)
            if not known:
                self.stubbed.setdefault(full, "object")
                self._count()
            stack.append(_Value("global", full))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, called = _pop(stack), _pop(stack)
            callable_ = called.kind == "global" and (called.name in _CALLED or called.name in self.stubbed)
            if not callable_ or arguments.kind != "tuple":
                raise ForeignCode(f"its pickle calls {called.name or 'a value'}")
            # Python's pickles of bytes. Other codecs are modules, which would be imported.
            if called.name == "_codecs.encode" and arguments.names[1:] != ("latin1",):
                raise ForeignCode("its pickle calls _codecs.encode for something else than bytes")
            self._count(called.name)
            stack.append(_Value("made", called.name))
        elif name == "BUILD":
            _pop(stack)
            if stack[-1].kind != "made" or not (stack[-1].name in _BUILT or stack[-1].name in self.stubbed):
                raise ForeignCode(f"its pickle sets attributes of {stack[-1].name or 'a value'}")
            self._count(stack[-1].name)
        elif name == "BINPERSID":
            names = _pop(stack).names
            if names[:1] == ("module",):
                raise ForeignCode(f"it holds a whole model, of the class {names[1]}")
            stack.append(_OTHER)
        else:
            raise ForeignCode(f"its pickle has the instruction {name}, which torch.save doesn't write")

    def _filled(self, name: str) -> None:
        """Record of an unknown class whether its instances are lists or mappings."""
        if name == "STOP" or self.stack[-1].name not in self.stubbed or self.stack[-1].kind != "made":
            return
        kind = "list" if name in ("APPEND", "APPENDS") else "dict"
        made = self.stack[-1].name
        if self.stubbed[made] not in ("object", kind):
            raise ForeignCode(f"its pickle fills {made} as a list and as a mapping")
        self.stubbed[made] = kind

    def _count(self, name: str | None = None) -> None:
        if name is None or name in self.stubbed:
            self.uses += 1
        if self.uses > _STUB_USES or len(self.stubbed) > _STUBS:
            first = next(iter(self.stubbed))
            raise ForeignCode(f"its pickle has more than {_STUBS} classes or {_STUB_USES} objects, such as {first}")


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


def _allowed(argument: str) -> tuple[str, bool]:
    """Full name of a global that a checkpoint may refer to, and whether it is kept rather than replaced by a stub."""
    module, _, name = argument.partition(" ")
    # The names of Python 2, as PyTorch writes and reads them.
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    full = f"{module}.{name}"
    plain = module == "torch" and name.isidentifier() and not name.startswith("_")
    storage = full == "torch.storage.UntypedStorage" or (plain and name.endswith("Storage"))
    if full in _CALLED or storage or (plain and isinstance(getattr(torch, name, None), torch.dtype)):
        return full, True
    refused = module == "torch" or (module.partition(".")[0] in _REFUSED and full not in _TYPES)
    well_formed = len(full) <= 300 and all(part.isidentifier() for part in full.split("."))
    if refused or not well_formed or full in _get_allowed_globals():
        raise ForeignCode(f"its pickle refers to {full[:100]}")
    return full, False


def _tuple(inside: list[_Value]) -> _Value:
    values = 1 + sum(value.values for value in inside)
    if values > _TUPLE_VALUES:
        raise ValueError(f"a tuple of more than {_TUPLE_VALUES} values")
    return _Value("tuple", values=values, names=tuple(value.name for value in inside) if len(inside) <= 8 else ())


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
