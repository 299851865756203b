"""`kdpipe report`: teacher, students and baselines in one table."""

import json
from pathlib import Path

import click

from kdpipe._util.files import atomic_write
from kdpipe.errors import ConfigError


@click.command()
@click.argument("runs")
@click.option("--evaluations", required=True, help="Folder of NAME.json, the output of kdpipe evaluate --json.")
@click.option("--cache", help="Manifest of the cache that students were trained from: its bytes and losses.")
@click.option("--teacher", help="Manifest of a cache of the evaluated views: the teacher's score there.")
@click.option("--out", required=True, type=click.Path(), help="The table, a Markdown file.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def report(runs: str, evaluations: str, cache: str | None, teacher: str | None, out: str, as_json: bool) -> None:
    """Compare the runs in the folder RUNS: a table of accuracy, agreement with the teacher, gain and bytes.

    A baseline is a run of the same model without a teacher (--loss none). A student's gain is over its baseline.
    """
    from kdpipe.report import build, markdown

    document = build(Path(runs), Path(evaluations), cache, teacher)
    text = markdown(document)
    try:
        with atomic_write(Path(out).absolute()) as partial:
            partial.write_text(text)
    except OSError as e:
        raise ConfigError(f"can't be written: {e.strerror}", where=out, do="Choose another --out") from e
    click.echo(json.dumps(document) if as_json else text, nl=as_json)
