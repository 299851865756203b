"""The documents are correct: their code runs, their commands parse, their links resolve."""

import doctest
import json
import re
import shlex
import shutil
from pathlib import Path

import click
import pytest
from safetensors.torch import save_file

from kdpipe.caching import cache_views
from kdpipe.models import METADATA_KEY, ModelConfig
from kdpipe.models.build import build
from kdpipe.targets import TargetsConfig
from kdpipe_stages import settings as params
from kdpipe_stages.cli import COMMANDS, main
from tests.tiny import CLASSES, make_world, teacher

ROOT = Path(__file__).parent.parent
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)(?:#[^)]*)?\)")
TARGET = re.compile(r"^([a-z][a-z-]*):", re.MULTILINE)


def blocks(path: Path, *languages: str) -> list[str]:
    return [text for language, text in FENCE.findall(path.read_text()) if language in languages]


def command_lines(path: Path) -> list[list[str]]:
    """The words of every kdpipe command in a shell block, without what stands before it and after a > or |."""
    found = []
    for block in blocks(path, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if "kdpipe" in words:
                words = words[words.index("kdpipe") + 1 :]
                end = next((i for i, word in enumerate(words) if word in {">", "|", "&&"}), len(words))
                found.append(words[:end])
    return found


def resolve(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that words begin with, through groups, and the rest of the words."""
    command: click.Command = main
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(click.Context(command), words[0])
        assert found is not None, f"no command {words[0]}; there are {command.list_commands(click.Context(command))}"
        command, words = found, words[1:]
    return command, words


def parse(words: list[str]) -> None:
    """Parse as the command line does, without running: unknown options and impossible values fail."""
    command, rest = resolve(words)
    try:
        context = command.make_context("kdpipe", list(rest))
    except click.exceptions.Exit:  # --help, --version
        return
    settings = context.params
    if "sets" in settings:
        params.load(settings["config_file"], settings["sets"])


COMMAND_LINES = [(path, words) for path in DOCUMENTS for words in command_lines(path)]
ids = {"ids": lambda value: str(value.relative_to(ROOT)) if isinstance(value, Path) else " ".join(value)}


@pytest.mark.parametrize(("path", "words"), COMMAND_LINES, **ids)
def test_commands_parse(path, words, capsys):
    parse(words)


# The changelog mentions removed commands, too.
@pytest.mark.parametrize("path", [path for path in DOCUMENTS if path.name != "CHANGELOG.md"], **ids)
def test_mentioned_commands_options_and_targets_exist(path):
    text = FENCE.sub("", path.read_text())
    targets = set(TARGET.findall((ROOT / "Makefile").read_text()))
    for span in SPAN.findall(text):
        first, *words = span.split()
        if first == "kdpipe":
            command, rest = resolve(words)
            known = {"--help", "--version"}.union(*(p.opts for p in command.params))
            assert {w for w in rest if w.startswith("-")} <= known, span
        if first == "make" and words:
            assert words[0] in targets, span
    for block in blocks(path, "sh"):
        for line in block.splitlines():
            if line.startswith("make "):
                assert line.split()[1] in targets, line


@pytest.mark.parametrize("path", DOCUMENTS, **ids)
def test_links_resolve(path):
    missing = [link for link in LINK.findall(path.read_text()) if not (path.parent / link).exists()]
    assert missing == []


def test_the_documents_show_every_command():
    shown = {words[0] for words in command_lines(ROOT / "docs" / "commands.md") if words}
    assert set(COMMANDS) <= shown


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_loads_and_has_help(name):
    command, _ = resolve([name])
    assert command.help
    assert COMMANDS[name][1].endswith(".")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the documents' paths exist: a small index, a cache of it."""
    folder = tmp_path_factory.mktemp("readme")
    world = make_world(folder / "world")
    (folder / "runs").mkdir()
    shutil.move(world.index_path, folder / "runs" / "train.index")
    index = type(world.index).open(folder / "runs" / "train.index")
    views = params.load("preset:cifar10").views
    cache_views(str(folder / "runs" / "cache.zarr"), index, views, teacher(), TargetsConfig(k=4), [0, 1])
    # README.md begins with shards and a teacher's weights.
    start = folder / "README.md"
    (start / "runs" / "teacher").mkdir(parents=True)
    (start / "data").mkdir()
    (start / "data" / "train").symlink_to(folder / "world" / "shards")
    spec = build(ModelConfig(model="resnet10t", num_classes=CLASSES, input_size=32))
    header = {METADATA_KEY: json.dumps(spec.metadata())}
    save_file(spec.module.state_dict(), start / "runs" / "teacher" / "best.safetensors", header)
    return folder


@pytest.mark.parametrize("path", [p for p in DOCUMENTS if any(">>>" in b for b in blocks(p, "python"))], **ids)
def test_python_in_the_documents_runs(path, place, monkeypatch):
    monkeypatch.chdir(place / path.name if (place / path.name).is_dir() else place)
    text = "\n".join(blocks(path, "python"))
    test = doctest.DocTestParser().get_doctest(text, {}, path.name, str(path), 0)
    output: list[str] = []
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=output.append)
    assert result.attempted
    assert not result.failed, "".join(output)
