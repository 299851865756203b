"""`kdpipe cache gc` and `kdpipe cache drop-views`: free space, after a confirmation."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import click

from kdpipe._util.redact import redact
from kdpipe.cache import Cache, Store
from kdpipe.cache.layout import describe
from kdpipe.cache.locks import alone
from kdpipe.cache.tools.drop_views import drop_views as run_drop
from kdpipe.cache.tools.drop_views import plan_drop
from kdpipe.cache.tools.gc import orphans, remove_cache, remove_orphans, wanted
from kdpipe.cache.tools.ls import find_caches
from kdpipe.errors import CacheError, ConfigError
from kdpipe_stages.cache_shared import json_option, log
from kdpipe_stages.progress import showing


def _deleting(function: Callable[..., None]) -> Callable[..., None]:
    function = click.option("--yes", is_flag=True, help="Delete without asking.")(function)
    return click.option("--dry-run", is_flag=True, help="Log what would be deleted; delete nothing.")(function)


@click.command()
@click.argument("caches", nargs=-1)
@click.option("--folder", help="Delete whole caches below this folder that no --keep names.")
@click.option(
    "--keep",
    multiple=True,
    metavar="CACHE|FILE.json",
    help="A cache, or a file that names one by `cache` or `root`, as kdpipe inspect --json prints; globs; repeatable.",
)
@_deleting
@json_option
def gc(caches: tuple[str, ...], folder: str | None, keep: tuple[str, ...], **flags: bool) -> None:
    """Delete files that no record of CACHES names, and with --folder whole caches that nothing refers to.

    A cache that is being written is left alone. Make sure that no process writes to a store without conditional puts.
    """
    if not caches and folder is None:
        raise ConfigError("nothing to do", where="kdpipe cache gc", allowed="caches, or --folder with --keep")
    if (folder is None) != (not keep):
        raise ConfigError("--folder and --keep go together", where="kdpipe cache gc", do="Name what is still wanted")
    left: list[str] = []
    plan: list[dict[str, Any]] = []
    for url in caches:
        opened = Cache(Store(url))
        with _unless_busy(opened.store, left) as free:
            found = orphans(Cache(opened.store)) if free else {}
        if found:
            plan.append({"cache": url, "files": found, "bytes": sum(found.values()), "whole": False})
    if folder is not None:
        plan += _unwanted(folder, keep, left)
    lines = [
        f"{p['cache']}: {'the whole cache' if p['whole'] else str(len(p['files'])) + ' files'}, {p['bytes']} bytes"
        + "".join(f"\n  {name}" for name in ([] if p["whole"] else p["files"]))
        for p in plan
    ]

    def delete() -> None:
        for p in plan:
            store = Store(p["cache"])
            with _unless_busy(store, left) as free:
                if free and p["whole"]:
                    remove_cache(store)
                elif free:
                    remove_orphans(store, p["files"])

    deleted = _delete(lines, delete, **flags)
    total = sum(p["bytes"] for p in plan if p["cache"] not in left)
    report = {"deleted": deleted, "bytes": total, "caches": plan, "left_alone": left}
    log(report, f"{total} bytes {'freed' if deleted else 'would be freed'}", flags["as_json"])


def _unwanted(folder: str, keep: Sequence[str], left: list[str]) -> list[dict[str, Any]]:
    """Caches below a folder that nothing refers to. What can't be read is left alone."""
    references, plan = wanted(keep), []
    for url in find_caches(folder):
        store = Store(url)
        with _unless_busy(store, left) as free:
            if not free:
                continue
            try:
                if references.has(store):
                    continue
            except CacheError as e:
                left.append(url)
                click.echo(f"left alone: {e}", err=True)
                continue
            size = sum(store.size(name) or 0 for name in store.files())
            plan.append({"cache": url, "files": {}, "bytes": size, "whole": True})
    return plan


@click.command("drop-views")
@click.argument("cache")
@click.option("--views", required=True, help="0:4, 7, center, five-crop, or 0:4,center.")
@click.option("--encoding", help="Only where they are kept like this, for example top16-float16 [default: all].")
@_deleting
@json_option
def drop_views(cache: str, views: str, encoding: str | None, **flags: bool) -> None:
    """Delete views from CACHE. Other views of the same segments move to new segments, unchanged."""
    from kdpipe_stages.caching_options import parse_views

    unwanted = parse_views(views)
    store = Cache(Store(cache)).store
    with alone(store):
        plan = plan_drop(Cache(store), unwanted, encoding)
    lines = [f"{cache}: segment {s.name}" for s in plan.gone]
    lines += [f"{cache}: of these, views {describe(list(new.views))} move to {new.name}" for _, new in plan.kept]
    lines += [f"{cache}: {name}, which no record names" for name in plan.leftovers]

    def drop() -> None:
        with showing("tasks", "moving") as on_task:
            run_drop(store, unwanted, encoding, on_task)

    deleted = _delete(lines, drop, **flags)
    now = Cache(store)
    report = {
        "cache": cache,
        "deleted": deleted,
        "segments": [s.name for s in plan.gone],
        "moved": {new.name: old.name for old, new in plan.kept},
        "views": describe(now.views()),
        "root": now.root_digest(),
    }
    log(report, f"{cache}: complete views {report['views'] or 'none'}", flags["as_json"])


def _delete(lines: Sequence[str], delete: Callable[[], None], *, dry_run: bool, yes: bool, as_json: bool) -> bool:
    """Log what goes and delete it, if that is wanted; whether it was."""
    for line in lines:
        click.echo(redact(line), err=as_json)
    if not lines:
        click.echo("nothing to delete", err=as_json)
    if dry_run or not lines:
        return False
    if not yes:
        if _nobody_to_ask():
            raise ConfigError("nothing was deleted: no terminal to confirm on", do="Add --yes, or --dry-run to look")
        click.confirm("Delete this?", abort=True, err=True)
    delete()
    return True


def _nobody_to_ask() -> bool:
    return not sys.stdin.isatty()


@contextmanager
def _unless_busy(store: Store, left: list[str]) -> Iterator[bool]:
    """Hold a cache's lock; False, and a line, if another process does."""
    with ExitStack() as held:
        try:
            held.enter_context(alone(store))
        except CacheError as e:
            left.append(store.url)
            click.echo(f"left alone: {e}", err=True)
            free = False
        else:
            free = True
        yield free
