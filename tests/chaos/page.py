"""The report of disturbed runs, as docs/reliability.md draws it."""

from collections import Counter
from typing import Any

from tests.reliability import circumstances, revision

_TEXT = (
    "A run draws a command that writes and a moment of it from its seed, has a fault happen then, repeats the command "
    "undisturbed, and compares every byte that is left with what the command leaves that nothing has disturbed: all "
    "files of a cache but its provenance, an index, shards, pictures; of training the weights and the metrics without "
    "times. A disk that fails must end the command with one line, exit code 2 and nothing half-written; so must a "
    "standard output that goes to a full disk.",
    "Kinds of one process are those of any command: a moment is an operation on a file, a batch of the teacher's, a "
    "block being rendered or a step of training. The disk fails by a seccomp filter: the kernel refuses every write "
    "from then on. The commands on dask run on clusters of two workers; those on S3 on a server on this machine that "
    "disturbs a drawn range of requests.",
    "One run again: `make chaos ONLY='KIND' FIRST=SEED SEEDS=1`.",
)


def report(rows: list[dict[str, Any]], command: str, before: dict[str, Any] | None = None) -> dict[str, Any]:
    """What `tests.reliability.keep` takes: a row a kind; beside it all runs, each with its command and moment.

    Args:
        rows: of the runs.
        command: that made them.
        before: an earlier report, in which the runs of the same seeds are replaced.
    """
    rows, commit, again = [{**row, "commit": revision()} for row in rows], revision(), ""
    if before is not None:
        new = {row["seed"]: row for row in rows}
        rows = [new.get(row["seed"], row) for row in before["runs"]]
        command, commit = before["command"], before["commit"]
        later = {row["seed"]: row["commit"] for row in rows if row.get("commit", commit) != commit}
        if later:
            again = " Run again since: " + ", ".join(f"seed {seed} on {at}" for seed, at in later.items()) + "."
    count = Counter(row["outcome"] for row in rows)
    summary = f"{len(rows)} runs: {count['same bytes']} ended with the undisturbed bytes, {count['finding']} did not"
    missing = f"; {count['not available']} faults are not to be had on this system" if count["not available"] else ""
    table = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        of = [row for row in rows if row["kind"] == kind]
        same = [row for row in of if row["outcome"] == "same bytes"]
        whole = sum(row["ended"] in ("exit code 0", "not reached") for row in same)
        seeds = ", ".join(str(row["seed"]) for row in of)
        table.append([kind, len(of), len(same), whole, len(same) - whole, seeds])
    return {
        **circumstances(command),
        "commit": commit,
        "text": [*_TEXT, f"On commit {commit}. {summary}{missing}.{again}"],
        "columns": ["fault", "runs", "same bytes", "of these ended whole", "refused or killed, then repeated", "seeds"],
        "rows": table,
        "findings": [
            f"seed {row['seed']}, {row['kind']}: {row['what'][:300]}" for row in rows if row["outcome"] == "finding"
        ],
        "runs": rows,
    }
