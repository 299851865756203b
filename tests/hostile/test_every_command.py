"""Every command x every hostile file that it can open: refused in one line, nothing run, nothing written elsewhere."""

import os
import re
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.guard import CLOCK, alarmed, guarded
from tests.fuzz.mutate import CODE, ESCAPED
from tests.hostile.kinds import MARKER, Kind
from tests.hostile.table import KINDS, TABLE, TEXTS, commands, line, takes_text
from tests.hostile.world import World, make, snapshot
from tests.stages.running import kdpipe

_BAIT = CODE.partition(":")[0]
_SECONDS, _BYTES = 10.0, 2**30
# What a terminal would take as more than text.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
COMMANDS = dict(commands())


def cases() -> Iterator[Any]:
    """Every pair. Of each option's files, one in twelve runs with the fast tests, another one for each option."""
    turn = 0
    for name, entry in TABLE.items():
        for param, categories in entry.opens.items():
            for category in categories:
                turn += 1
                for number, kind in enumerate(KINDS[category]):
                    marks = () if number % 12 == turn % 12 else (pytest.mark.slow,)
                    words = f"{name} {param} {category} {kind.name}"
                    yield pytest.param(name, param, category, kind, id=words.replace(" ", "-"), marks=marks)


@pytest.fixture(scope="module")
def hostile_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = make(tmp_path_factory.mktemp("hostile") / "world")
    with guarded():
        yield world


def test_every_command_is_in_the_table():
    assert set(TABLE) == set(COMMANDS)


def test_every_option_is_in_the_table():
    for name, command in COMMANDS.items():
        entry = TABLE[name]
        asked = {str(param.name) for param in command.params if takes_text(param)}
        assert asked - {*entry.opens, *entry.texts, *TEXTS} == set(), name
        assert set(entry.opens) <= asked, f"{name} has no {set(entry.opens) - asked}"
        assert not set(entry.opens) & entry.texts
        assert set(entry.sound) <= {param.name for param in command.params}


def test_kinds_are_distinguished():
    for category, kinds in KINDS.items():
        names = [kind.name for kind in kinds]
        assert len(set(names)) == len(names), category
        for kind in kinds:
            assert kind.refused_by is None or kind.refused_by <= set(TABLE), kind.name


@pytest.mark.parametrize(("name", "param", "category", "kind"), [*cases()])
def test_hostile_file(hostile_world: World, name: str, param: str, category: str, kind: Kind):
    world = hostile_world
    case = world.folder / "inside" / f"case-{os.urandom(4).hex()}"
    (case / "in").mkdir(parents=True)
    (case / "out" / "x").mkdir(parents=True)
    path, out = kind.make(world, case / "in"), case / "out" / "x" / "y"
    places = {**world.places, "out": str(out)}
    words = line(name, COMMANDS[name], places, param, str(path), category)
    sys.modules.pop(_BAIT, None)
    before, peak, began = snapshot(world.folder, path, out), _peak(), time.process_time()
    with alarmed(_SECONDS, 2 * CLOCK):
        result = kdpipe(*words)
    seconds, grown = time.process_time() - began, _peak() - peak
    assert not (case / "in" / MARKER).exists(), "a shell command of the file ran"
    assert _BAIT not in sys.modules, "the file's code was imported"
    assert not os.path.lexists(ESCAPED)
    assert snapshot(world.folder, path, out) == before
    shown = result.out + result.err
    assert "Traceback" not in shown
    assert not _CONTROL.search(shown), "control characters of the file were printed"
    errors = [text for text in result.err.splitlines() if text.startswith("error: ")]
    if result.code == 2:
        assert len(errors) == 1, result.err
        assert result.err.splitlines()[-1] == errors[0]
        assert len(errors[0]) < 4096, f"a line of {len(errors[0])} characters"
    else:
        assert not errors
        # verify lists what fails, and cache-teacher what tasks fail.
        assert result.code == 0 or (result.code == 1 and name in {"verify", "cache-teacher"}), result
        required = kind.refused_by is None or name in kind.refused_by
        assert result.code == 1 or TABLE[name].lists or not required, f"taken as sound:\n{shown}"
    assert seconds < _SECONDS
    assert grown < _BYTES


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# What can't be sound there: a copy onto itself or onto a cache of other tasks, and a cluster that nobody has.
NOT_SOUND = {("cache push", "url"), ("cache pull", "out"), ("cache merge", "out"), ("cache-teacher", "tls_ca")}
NOT_SOUND |= {("cache-teacher", "tls_cert"), ("cache-teacher", "tls_key"), ("cache-teacher", "calibration_from")}


@pytest.mark.parametrize(
    ("name", "param", "category"),
    [
        pytest.param(name, param, category, id=f"{name} {param} {category}".replace(" ", "-"))
        for name, entry in TABLE.items()
        for param, categories in entry.opens.items()
        for category in categories
        if (name, param) not in NOT_SOUND
    ],
)
def test_sound_file(hostile_world: World, tmp_path: Path, name: str, param: str, category: str):
    """What the hostile ones differ from: else every refusal would be of something else."""
    sound = category.replace(" ", "_")
    source = Path(hostile_world.places[sound])
    path = tmp_path / "in" / source.name
    path.parent.mkdir()
    if category == "manifest":  # what it names lies beside it
        path = source
    elif source.is_dir():
        shutil.copytree(source, path)
    else:
        shutil.copy(source, path)
    places = {**hostile_world.places, "out": str(tmp_path / "out")}
    result = kdpipe(*line(name, COMMANDS[name], places, param, str(path), category))
    assert result.code == 0, result
