"""`kdpipe cache`: look after caches. List them, make room, merge them, move them."""

import json
import sys
from collections.abc import Callable
from typing import Any

import click

from kdpipe._util.redact import redact, showable
from kdpipe.cache import Cache
from kdpipe.cache.layout import describe
from kdpipe.cache.tools.ls import find_caches, summarise
from kdpipe.cache.tools.merge import merge as run_merge
from kdpipe.cache.tools.transfer import transfer
from kdpipe_stages.cache_gc import drop_views, gc
from kdpipe_stages.cache_shared import json_option, log
from kdpipe_stages.progress import showing


@click.group()
def cache() -> None:
    """Look after caches: list them, make room, merge them, move them."""


cache.add_command(gc)
cache.add_command(drop_views)


def _part(function: Callable[..., None]) -> Callable[..., None]:
    function = click.option("--shards-matching", "shards", metavar="GLOB", help="Only shards with such names.")(
        function
    )
    return click.option("--views", help="Only these: 0:4, 7, center, or 0:4,center [default: all].")(function)


@cache.command()
@click.argument("folder")
@json_option
def ls(folder: str, as_json: bool) -> None:
    """List the caches at or below FOLDER, which may be a URL."""
    found = [summarise(url) for url in find_caches(folder)]
    if as_json:
        click.echo(redact(json.dumps({"folder": folder, "caches": found})))
    elif not found:
        click.echo(redact(f"no caches below {folder}"))
    else:
        _table(found)


def _table(found: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    # In a log nothing is cut off for lack of columns.
    console = Console(width=None if sys.stdout.isatty() else 240, markup=False)
    names = ("cache", "identity", "teacher", "policy", "views", "tasks", "bytes", "root", "last run")
    table = Table(*names, box=None)
    for c in showable(found):
        if c["problem"]:
            table.add_row(c["cache"], f"can't be opened: {c['problem']}")
            continue
        policy = ", ".join(f"{name} {value}" for name, value in c["policy"].items() if name != "version")
        table.add_row(
            c["cache"],
            c["identity"][:12],
            f"{c['teacher']} {c['weights'][:8]}",
            f"v{c['policy']['version']} {policy}"[:60],
            f"{c['views'] or 'none'} {'+'.join(c['encodings'])}",
            f"{c['tasks_done']}/{c['tasks']}",
            str(c["bytes"]),
            c["root"][:12],
            (c["last_run"] or "")[:16],
        )
    console.print(table)


@cache.command()
@click.argument("out")
@click.argument("sources", nargs=-1, required=True)
@json_option
def merge(out: str, sources: tuple[str, ...], as_json: bool) -> None:
    """Make one cache OUT of SOURCES that differ in their shards, views or encodings, and in nothing else.

    Repeat it after an interruption. The sources stay as they are.
    """
    with showing("tasks", "merging") as on_task:
        merged, report = run_merge(out, sources, on_task)
    _copied(merged, vars(report), as_json)


@cache.command()
@click.argument("url")
@click.argument("out")
@_part
@json_option
def pull(url: str, out: str, views: str | None, shards: str | None, as_json: bool) -> None:
    """Copy the cache at URL, or the views and shards of it that are wanted, to OUT. Repeat it to resume."""
    _transfer(url, out, views, shards, as_json)


@cache.command()
@click.argument("cache")
@click.argument("url")
@_part
@json_option
def push(cache: str, url: str, views: str | None, shards: str | None, as_json: bool) -> None:
    """Copy CACHE, or the views and shards of it that are wanted, to URL. Repeat it to resume."""
    _transfer(cache, url, views, shards, as_json)


def _transfer(source: str, target: str, views: str | None, shards: str | None, as_json: bool) -> None:
    from kdpipe_stages.caching_options import parse_views

    with showing("tasks", "copying") as on_task:
        copied, report = transfer(source, target, None if views is None else parse_views(views), shards, on_task)
    _copied(copied, vars(report), as_json)


def _copied(cache: Cache, counts: dict[str, int], as_json: bool) -> None:
    report = {
        "cache": cache.store.url,
        **counts,
        "shards": len(cache.shards),
        "segments": {s.name: len(cache.committed(s)) for s in cache.segments},
        "views": describe(cache.views()),
        "root": cache.root_digest(),
    }
    absent = f", {counts['absent']} not finished at the source" if counts.get("absent") else ""
    text = (
        f"{report['cache']}: {counts['tasks']} tasks copied, {counts['bytes']} bytes; "
        f"{counts['skipped']} were there{absent}\n"
        f"complete for all {report['shards']} shards: views {report['views'] or 'none'}"
    )
    log(report, text, as_json)
