"""Every command, what its text options name, and a line of sound ones to put a hostile file into.

A new command, or a new option that takes text, fails `test_every_option_is_in_the_table` until it has an entry here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import click

from kdpipe_stages.cli import main
from tests.hostile.kinds import Kind
from tests.hostile.small_files import (
    CERTIFICATES,
    CLASS_MAPS,
    CLASS_NAMES,
    EVALUATIONS,
    FINISHED,
    IMAGES,
    MANIFESTS,
    PARAMS,
    RECORDS,
    RUNS,
    SHARDS,
    WEIGHTS,
)
from tests.hostile.stores import CACHES, INDEXES

KINDS: dict[str, Sequence[Kind]] = {
    "cache": CACHES,
    "index": INDEXES,
    "weights": WEIGHTS,
    "run": RUNS,
    "params": PARAMS,
    "shards": SHARDS,
    "manifest": MANIFESTS,
    "class map": CLASS_MAPS,
    "class names": CLASS_NAMES,
    "record": RECORDS,
    "evaluations": EVALUATIONS,
    "runs": FINISHED,
    "images": IMAGES,
    "certificate": CERTIFICATES,
}


@dataclass(frozen=True)
class Line:
    """A command line.

    Attributes:
        sound: values by parameter; {names} are the sound world's places, {out} where it may write.
        opens: parameters that name files, and what those are.
        texts: parameters that name no file to be read.
        lists: the command ends with 0 and says of a hostile file that it can't be opened.
        words: further words.
    """

    sound: dict[str, str | list[str]]
    opens: dict[str, tuple[str, ...]] = field(default_factory=dict)
    texts: frozenset[str] = frozenset()
    lists: bool = False
    words: tuple[str, ...] = ()


def _texts(names: str) -> frozenset[str]:
    return frozenset(names.split())


_SET = ("--set", "teacher.device=cpu", "--set", "teacher.threads=1", "--set", "caching.render_threads=1")
_TEACHER = {"index_path": "{index}", "weights": "{weights}", "batch_size": "4", "out": "{out}"}
_CACHING = _texts("teacher checkpoint_key key_prefix model_kwargs views sets")
_KWARGS = "channels=[8,8,8,8]"
_STUDENT = {"student": "resnet10t", "model_kwargs": _KWARGS, "num_classes": "3", "input_size": "32"}
_TRAIN = {"index_path": "{index}", **_STUDENT, "epochs": "1", "batch_size": "4", "out": "{out}"}
_WARMUP = ("--set", "train.warmup_epochs=0", "--set", "train.device=cpu")
_TLS = ("tls_ca", "tls_cert", "tls_key")

TABLE = {
    "prepare digits": Line({"out": "{out}"}, {}, _texts("out")),
    "prepare folder": Line(
        {"source": "{images}", "out": "{out}"},
        {"source": ("images",), "classes": ("class names",)},
        _texts("out name"),
    ),
    "index": Line(
        {"source": "{shards}", "out": "{out}"},
        {"source": ("shards", "manifest"), "class_map": ("class names",), "labels": ("class names",)},
        _texts("out label_key image_key split"),
    ),
    "view": Line(
        {"index_path": "{index}", "views": "0:2", "input_size": "16", "out": "{out}.png"},
        {"index_path": ("index",), "cache": ("cache",), "config_file": ("params",)},
        _texts("keys views out sets"),
    ),
    "plan": Line(
        {"index_path": "{index}", "weights": "{weights}", "batch_size": "4", "seconds": "1"},
        {"index_path": ("index",), "weights": ("weights",), "class_map": ("class map",), "config_file": ("params",)},
        _texts("teacher checkpoint_key key_prefix model_kwargs views student machines sets"),
        words=_SET,
    ),
    "fidelity": Line(
        {"index_path": "{index}", "weights": "{weights}", "steps": "1", "batches": "1", "rows": "2"},
        {"index_path": ("index",), "weights": ("weights",), "class_map": ("class map",), "config_file": ("params",)},
        _texts("teacher checkpoint_key key_prefix model_kwargs losses sets"),
        words=(*_SET, "--loss", "kd"),
    ),
    "cache-teacher": Line(
        {**_TEACHER, "pooled": "float16", "feature_map": "int8"},
        {
            "index_path": ("index",),
            "weights": ("weights",),
            "class_map": ("class map",),
            "config_file": ("params",),
            "out": ("cache",),
            "calibration_from": ("cache",),
            **dict.fromkeys(_TLS, ("certificate",)),
        },
        _CACHING | _texts("scheduler manifest"),
        words=(*_SET, "--feature-map-rank", "4"),
    ),
    "verify": Line(
        {"cache": "{cache}", "samples": "4", "device": "cpu"},
        {"cache": ("cache",), "index_path": ("index",), "weights": ("weights",)},
        _texts("device named"),
    ),
    "inspect": Line({"cache": "{cache}"}, {"cache": ("cache",), "index_path": ("index",)}),
    "cache drop-views": Line(
        {"cache": "{cache}", "views": "0"}, {"cache": ("cache",)}, _texts("views encoding"), words=("--yes",)
    ),
    "cache gc": Line(
        {},
        {"caches": ("cache",), "folder": ("cache",), "keep": ("record", "cache")},
        lists=True,
        words=("--yes",),
    ),
    "cache ls": Line({"folder": "{cache}"}, {"folder": ("cache",)}, lists=True),
    "cache merge": Line({"out": "{out}", "sources": ["{cache}"]}, {"sources": ("cache",), "out": ("cache",)}),
    "cache pull": Line(
        {"url": "{cache}", "out": "{out}"}, {"url": ("cache",), "out": ("cache",)}, _texts("views shards")
    ),
    "cache push": Line(
        {"cache": "{cache}", "url": "{out}"}, {"cache": ("cache",), "url": ("cache",)}, _texts("views shards")
    ),
    "losses": Line({}, {}, _texts("name")),
    "train-student": Line(
        {**_TRAIN, "loss": "none"},
        {
            "index_path": ("index",),
            "val": ("index",),
            "caches": ("cache", "record"),
            "weights": ("weights",),
            "config_file": ("params",),
            "out": ("run",),
        },
        _texts("student model_kwargs loss opt sets"),
        words=_WARMUP,
    ),
    "evaluate": Line(
        {"file": "{weights}", "index_path": "{index}"},
        {
            "file": ("weights",),
            "index_path": ("index",),
            "cache": ("cache", "record"),
            "weights": ("weights",),
            "config_file": ("params",),
        },
        _texts("model model_kwargs sets"),
        words=_SET[:4],
    ),
    "erf": Line(
        {"models": ["{weights}"], "index_path": "{index}", "limit": "2", "input_size": "32", "out": "{out}.png"},
        {"models": ("weights",), "index_path": ("index",), "config_file": ("params",)},
        _texts("out sets"),
        words=_SET[:4],
    ),
    "report": Line(
        {"runs": "{runs}", "evaluations": "{evaluations}", "out": "{out}.md"},
        {"runs": ("runs",), "evaluations": ("evaluations",), "cache": ("record",), "teacher": ("record",)},
        _texts("out"),
    ),
    "demo": Line({"out": "{out}"}, {}, _texts("out")),
}
# Of whatever command: names of code, by the user.
TEXTS = frozenset({"trust"})
# With these, what is read of a cache is all that can be.
CACHED = {("train-student", "cache"): {"loss": "scalekd"}, ("train-student", "record"): {"loss": "kd"}}


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command of kdpipe, groups' own left out."""
    waiting: list[tuple[str, click.Command]] = [("", main)]
    while waiting:
        name, command = waiting.pop()
        if not isinstance(command, click.Group):
            yield name, command
            continue
        context = click.Context(command)
        for inner in command.list_commands(context):
            found = command.get_command(context, inner)
            assert found is not None
            waiting.append((f"{name} {inner}".strip(), found))


def takes_text(param: click.Parameter) -> bool:
    """Whether a parameter's value may name a file."""
    return isinstance(param.type, click.Path | click.types.StringParamType)


def line(name: str, command: click.Command, places: dict[str, str], param: str, value: str, category: str) -> list[str]:
    """The words of a command with a hostile value of one parameter."""
    table = TABLE[name]
    values = {**table.sound, **CACHED.get((name, category), {}), param: value}
    if param == "weights" and name == "evaluate":
        values |= {"model": "resnet10t", "model_kwargs": _KWARGS}
        values.pop("file")
    if name == "cache gc" and param == "keep":
        values["folder"] = places["empty"]
    if name == "cache gc" and param == "folder":
        values["keep"] = places["cache"]
    if param in _TLS:  # all three, for a cluster that nobody has
        values |= {"scheduler": "tls://127.0.0.1:9", **{one: values.get(one, value) for one in _TLS}}
    words: list[str] = []
    for one in command.params:
        if one.name in values:
            given = values[one.name]
            for text in given if isinstance(given, list) else [given]:
                filled = text if text == value else text.format_map(places)
                words += [filled] if isinstance(one, click.Argument) else [one.opts[0], filled]
    return [*name.split(), *words, *table.words]
