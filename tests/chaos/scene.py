"""What is disturbed: every command that writes, on a world of a few dozen images, and what each leaves undisturbed."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from kdpipe.cache import Cache, Store
from kdpipe.trainer import files
from kdpipe.verification import check_integrity
from tests.chaos import child
from tests.chaos.moments import ERRORS, Fault
from tests.shards.making import shard_members
from tests.tiny import CLASSES, SIZE, World, make_world, tree

_SIZES = ("--num-classes", CLASSES, "--input-size", SIZE)
_RECIPE = (
    *("--set", "views.seed=3", "--set", "views.crop_pct=1.0", "--set", "views.auto_augment=rand-m9-mstd0.5-inc1"),
    *("--set", "views.re_prob=0.25", "--set", "views.mixup=0.8", "--set", "views.cutmix=1.0"),
)
TEACHER = (
    *("--teacher", "tests.chaos.network:network", *_SIZES, "--batch-size", 8, *_RECIPE),
    *("--set", "teacher.threads=1", "--set", "teacher.mean=[0.5,0.5,0.5]", "--set", "teacher.std=[0.25,0.25,0.25]"),
    *("--set", "teacher.device=cpu", "--set", "caching.render_threads=1", "--k", 4),
)
STUDENT = (
    *("--student", "tests.tiny:network", *_SIZES, "--batch-size", 16, *_RECIPE, "--epochs", 2),
    *("--set", "train.warmup_epochs=0", "--set", "train.device=cpu", "--set", "train.threads=1"),
    *("--set", "train.checkpoint_steps=2", "--set", "train.opt=adamw"),
)
# The networks of these tests, where a file names them.
TRUST = ("--trust", "tests.tiny", "--trust", "tests.chaos.network")
Files = dict[str, bytes]


@dataclass(frozen=True)
class Command:
    """One that writes to a folder.

    Attributes:
        argv: its words, given the folder.
        prepare: makes what has to be in the folder before.
        leaves: what of the folder must be that of an undisturbed run.
    """

    name: str
    argv: Callable[[Path], list[object]]
    prepare: Callable[[Path], object] = lambda _: None
    leaves: Callable[[Path], Files] = tree


class Scene:
    """A world with what commands need of it, made once in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.world: World = make_world(folder / "world")
        self.many = make_world(folder / "many", samples=(9, 8, 7, 8) * 4)
        self.cache, self.second = folder / "cache.zarr", folder / "second.zarr"
        self._undisturbed: dict[str, tuple[Files, int]] = {}
        self._do("cache", *self.caching(self.cache, "0:3"))
        self._do("second", *self.caching(self.second, "3:5"))
        self._do("run", *self.training(folder / "runs" / "student"))
        weights = folder / "runs" / "student" / "best.safetensors"
        scores = self._do("scores", "evaluate", weights, *TRUST, "--index", self.world.index_path, "--json").out
        (folder / "evaluations").mkdir()
        (folder / "evaluations" / "student.json").write_text(scores)
        self._images(folder / "images")
        self.commands = {command.name: command for command in self._commands()}
        self.printing: dict[str, list[object]] = {
            "evaluate": ["evaluate", weights, *TRUST, "--index", self.world.index_path, "--json"],
            "inspect": ["inspect", self.cache, "--json"],
            "verify": ["verify", self.cache, *TRUST, "--json"],
            "cache ls": ["cache", "ls", folder, "--json"],
            "losses": ["losses"],
        }

    def _do(self, name: str, *argv: object) -> child.Ended:
        ended = child.run(argv, self.folder / "notes" / name)
        assert ended.code == 0, ended
        return ended

    @staticmethod
    def _images(folder: Path) -> None:
        for number, (name, data) in enumerate(shard_members(12, size=24, classes=3)):
            if name.endswith(".jpg"):
                place = folder / f"class{number % 3}" / name
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(data)

    def caching(self, out: Path | str, views: str = "0:2", *more: object, many: bool = False) -> list[object]:
        world = self.many if many else self.world
        return ["cache-teacher", "--index", world.index_path, *TEACHER, "--views", views, "--out", out, *more]

    def training(self, out: Path, cache: Path | str | None = None, *more: object) -> list[object]:
        source = ("--loss", "kd", "--cache", cache or self.cache)
        shards = ("--index", self.world.index_path, "--val", self.world.index_path)
        return ["train-student", *shards, *STUDENT, *source, "--out", out, *more]

    def _commands(self) -> list[Command]:
        index, world = self.world.index_path, self.world.folder
        features = ("--pooled", "float16", "--feature-map", "int8", "--feature-map-rank", 3)

        def featured(out: Path) -> list[object]:
            return [*self.caching(out / "f.zarr", "0:2", *features), "--teacher", "tests.chaos.network:featured"]

        def recorded(out: Path) -> list[object]:
            return self.caching(out / "c.zarr", "0:2", "--manifest", out / "record.json")

        def drawn(out: Path) -> list[object]:
            words = ["erf", "test_resnet", "--index", index, "--input-size", 64, "--limit", 2]
            return [*words, "--set", "teacher.device=cpu", "--out", out / "erf.png"]

        def reported(out: Path) -> list[object]:
            scores = self.folder / "evaluations"
            return ["report", self.folder / "runs", "--evaluations", scores, "--out", out / "report.md"]

        def spoilt(out: Path) -> None:
            shutil.copytree(self.cache, out / "c.zarr")
            cache = Cache(Store(out / "c.zarr"))
            cache.store.remove(cache.segments[0].commit("shard-0001.tar"))
            (out / "c.zarr" / "commits" / "notes.txt").write_text("not of this cache")

        copied = lambda out: shutil.copytree(self.cache, out / "c.zarr")  # noqa: E731
        return [
            Command("index", lambda out: ["index", world / "shards", "--block-size", 16, "--out", out / "index"]),
            Command("prepare", lambda out: ["prepare", "folder", self.folder / "images", "--out", out / "shards"]),
            Command("cache-teacher", recorded, leaves=_cache_and_record),
            Command("cache-teacher, features", featured),
            Command("train-student", lambda out: self.training(out / "run"), leaves=_run),
            Command("cache pull", lambda out: ["cache", "pull", self.cache, out / "c.zarr"]),
            Command("cache push", lambda out: ["cache", "push", self.cache, out / "c.zarr", "--views", "0:2"]),
            Command("cache merge", lambda out: ["cache", "merge", out / "c.zarr", self.cache, self.second]),
            Command("cache gc", lambda out: ["cache", "gc", out / "c.zarr", "--yes"], spoilt),
            Command("cache drop-views", lambda out: _dropping(out / "c.zarr"), copied),
            Command("view", lambda out: ["view", index, "--input-size", 32, "--out", out / "sheet.png"]),
            Command(
                "erf",
                drawn,
            ),
            Command(
                "report",
                reported,
            ),
        ]

    def undisturbed(self, name: str) -> tuple[Files, int]:
        """What a command leaves, and how many moments it has. Twice, to know that it always leaves the same."""
        if name not in self._undisturbed:
            found = []
            for attempt in ("one", "two"):
                out = self.folder / "undisturbed" / name.replace(" ", "-") / attempt / "out"
                ended = self.run(name, out, Fault("nothing", 0, str(out)))
                assert ended.code == 0, ended
                found.append((self.commands[name].leaves(out), ended.moments))
            names = differing(found[0][0], found[1][0])
            assert not names, f"{name} does not leave the same bytes twice: {names}"
            assert found[0][0], name
            self._undisturbed[name] = found[0]
        return self._undisturbed[name]

    def run(self, name: str, out: Path, fault: Fault | None = None) -> child.Ended:
        """Run a command, for the first time there or again."""
        command = self.commands[name]
        if not out.exists():
            out.mkdir(parents=True)
            command.prepare(out)
        return child.run(command.argv(out), out.parent / "notes", fault)


def differing(ours: Files, theirs: Files) -> list[str]:
    """Names of files that only one has, or that differ."""
    return sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))


def _dropping(cache: Path) -> list[object]:
    # What is left of a repetition whose views are gone already: nothing to do.
    return ["cache", "drop-views", cache, "--views", "1", "--yes"]


def _cache_and_record(folder: Path) -> Files:
    """A cache and the record of it, which names its place."""
    files = tree(folder)
    if "record.json" not in files:
        return files
    record = {key: value for key, value in json.loads(files["record.json"]).items() if key != "cache"}
    return {**files, "record.json": json.dumps(record).encode()}


def _run(folder: Path) -> Files:
    """A run's weights and metrics without what the clock said; and the names of all its files."""
    out: Files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        if path.name in (files.LAST, files.BEST):
            out[name] = path.read_bytes()
        elif path.name == files.METRICS:
            lines = (json.loads(line) for line in path.read_text().splitlines())
            said = [{key: value for key, value in line.items() if key != "timing"} for line in lines]
            out[name] = json.dumps(said).encode()
        else:
            out[name] = b""
    return out


def half_written(folder: Path) -> list[str]:
    """What a command that refused in order left that is neither whole nor on the way to it."""
    found = []
    for path in folder.rglob("*"):
        if ".partial" in path.name:
            found.append(f"{path.name} is left over")
        elif path.suffix == ".safetensors":
            try:
                with safe_open(path, framework="pt") as file:
                    file.keys()
            except Exception as e:
                found.append(f"{path.name} can't be read: {e}")
    for record in folder.glob("*.zarr/commits/store.json"):
        problems, _ = check_integrity(Store(record.parents[1]))
        found += [f"{p['where']}: {p['what']}" for p in problems if not p["what"].startswith("unexpected")]
    for name in ("index", "shards"):
        if (folder / name).is_dir() and not any((folder / name).iterdir()):
            found.append(f"{name} is empty")
    for path in (p for p in folder.glob("*.png") if not p.read_bytes().endswith(b"IEND\xaeB`\x82")):
        found.append(f"{path.name} is not whole")
    for path in folder.glob("*.json"):
        try:
            json.loads(path.read_text())
        except ValueError:
            found.append(f"{path.name} is not whole")
    return found


def wrong_end(ended: child.Ended, fault: str) -> str | None:
    """What is wrong with how a command ended that a disk failed."""
    why = os.strerror(ERRORS[fault])
    if "Traceback" in ended.err:
        return "a traceback: " + ended.err.strip().splitlines()[-1]
    if ended.code == 0:
        return None
    if ended.code == 2 and why in ended.error:
        return None
    if ended.code == 1 and why in ended.err and "tasks failed" in ended.err:
        return None
    return f"exit code {ended.code}: {ended.err.strip().splitlines()[-1:]}"
