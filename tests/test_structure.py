"""The shape of the code itself: which way imports go, how long files are, what they must not name."""

import subprocess
from pathlib import Path

import pytest

from tests.imports import ROOT, imports

# The way of the data: a module imports from those to its left, and from its own package.
ORDER = (
    *("_util", "errors", "config", "presets", "results"),
    *("shards", "views", "models", "teacher", "targets", "cache", "caching", "verification", "estimate"),
    *("loader", "losses", "evaluation", "erf", "trainer", "fidelity", "report", "opening", "cached_loader", "api"),
)
LIBRARY = ROOT / "pipeline" / "kdpipe"
FOREIGN = {"click", "dvc", "kdpipe_stages", "benchmarks", "tests"}
LONGEST = 400
# Put together here, so that this file does not name them either.
FORBIDDEN = [*(f"/{folder}/" for folder in ("work", "root")), "../" + "shared"]


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def tracked() -> list[Path]:
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no git here to say which files are the project's")
    return [path for path in (ROOT / name for name in listed.stdout.split("\0") if name) if path.is_file()]


def test_every_module_has_its_place_in_the_order():
    found = {p.stem if p.is_file() else p.name for p in LIBRARY.iterdir()}
    assert found - {"__init__", "__pycache__", "py"} == set(ORDER)


@pytest.mark.parametrize("path", sources("pipeline/kdpipe"), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path):
    room = path.relative_to(LIBRARY).parts[0].removesuffix(".py")
    # The package itself names, lazily, what is at the end of the way.
    allowed = {*ORDER} if room == "__init__" else {*ORDER[: ORDER.index(room) + 1]} if room in ORDER else set()
    for name in imports(path):
        package, *rest = name.split(".")
        assert package not in FOREIGN, f"{path.relative_to(ROOT)} imports {name}"
        if package == "kdpipe":
            assert rest, f"{path.relative_to(ROOT)} imports all of kdpipe"
            assert rest[0] in allowed, f"{path.relative_to(ROOT)} imports {name}, which is to its right"


def test_the_reader_of_imports_sees_them_all(tmp_path):
    path = tmp_path / "x.py"
    path.write_text("import a.b\nfrom c import d\ndef f():\n    from e.f import g, h\n    import i as j\n")
    assert imports(path) == {"a.b", "c.d", "e.f.g", "e.f.h", "i"}


@pytest.mark.parametrize("folder", ["pipeline", "stages", "benchmarks", "tests"])
def test_no_file_is_long(folder):
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in sources(folder)}
    assert {name: n for name, n in lengths.items() if n > LONGEST} == {}


def test_nothing_names_a_machine():
    found = []
    for path in tracked():
        text = path.read_bytes().decode("utf-8", "replace")
        found += [f"{path.relative_to(ROOT)} names {word}" for word in FORBIDDEN if word in text]
    assert found == []
