"""Seeded faults: `python -m tests.chaos --seeds 40`. Exit code 1 if a run ended wrongly."""

import contextlib
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from tests import reliability
from tests.chaos import page
from tests.chaos.kinds import Kind, kinds
from tests.chaos.verdict import Finding, Skipped


def one(kind: str, do: Kind, seed: int, folder: Path) -> dict[str, Any]:
    """One run, as a row."""
    began = time.monotonic()
    row: dict[str, Any] = {"seed": seed, "kind": kind}
    try:
        run = do(folder, random.Random(f"{seed} {kind}"))
        row |= {"outcome": "same bytes", "what": run.what, "ended": run.ended, "error": _placeless(run.error, folder)}
    except Skipped as e:
        row |= {"outcome": "not available", "what": str(e), "ended": ""}
    except (Finding, AssertionError) as e:
        row |= {"outcome": "finding", "what": _placeless(str(e), folder), "ended": ""}
    row["seconds"] = round(time.monotonic() - began, 1)
    return row


def _placeless(text: str, folder: Path) -> str:
    return text.replace(str(folder), "RUN").replace(str(folder.parent), "WORLD")


@click.command()
@click.option("--seeds", default=40, show_default=True, help="Runs; kinds take turns.")
@click.option("--first", default=0, show_default=True, help="The first seed.")
@click.option("--only", help="Only kinds with this in their name.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Document to draw the report into, from the JSON beside it."
)
def main(seeds: int, first: int, only: str | None, out: Path | None) -> None:
    """Disturb kdpipe's commands, a seed a run, and see that repeating them leaves the undisturbed bytes."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="kdpipe-chaos-") as temporary, kinds(Path(temporary)) as found:
        chosen = [(name, do) for name, do in found.items() if only is None or only in name]
        if not chosen:
            raise click.BadParameter(f"no such kind; there are: {', '.join(found)}", param_hint="--only")
        for seed in range(first, first + seeds):
            name, do = chosen[seed % len(chosen)]
            place = Path(temporary) / f"run-{seed}"
            place.mkdir()
            rows.append(row := one(name, do, seed, place))
            click.echo(f"{seed} {name}: {row['what']}: {row['outcome']}, {row['ended']}, {row['seconds']} s")
            with contextlib.suppress(OSError):
                shutil.rmtree(place)
    bad = sum(row["outcome"] == "finding" for row in rows)
    click.echo(f"{len(rows)} runs, {bad} findings")
    if out is not None:
        command = (
            f"make chaos SEEDS={seeds}" + (f" FIRST={first}" if first else "") + (f" ONLY='{only}'" if only else "")
        )
        before = reliability.kept("chaos", out) if first and not only else None
        reliability.keep("chaos", page.report(rows, command, before), out)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
