"""The fuzz section of docs/reliability.md, from the results of a run."""

import shlex
from typing import Any

from tests.reliability import circumstances, revision

_TEXT = (
    "Sound input of each parser, made by kdpipe's own writers, is changed at random and parsed. It must be refused by"
    " an error of kdpipe's, of one line, or mean what was written where a digest protects it; within 5 seconds of the"
    " processor, within 1 GiB of memory, and without importing what it names. An input is a function of target, seed"
    " and number: `python -m tests.fuzz TARGET --seed S --only N` executes one again.",
    "Executions are by our own mutations (seed {seed}) and, where the parser is Python of ours, by atheris, which is"
    " guided by the code that an input reaches. `resealed` targets get digests that fit the changed content, so that"
    " what lies behind the digest is tested. Accepted counts those of our own mutations. A target that is run again"
    " by itself replaces its row: what it was run on is the commit.",
)


def report(results: dict[str, Any], seed: int, command: str, before: dict[str, Any] | None = None) -> dict[str, Any]:
    """What `tests.reliability.keep` takes.

    Args:
        results: by target.
        seed: of our own mutations.
        command: that made them.
        before: an earlier report, of whose targets those that aren't in `results` are kept.
    """
    results = {name: {**r, "commit": revision()} for name, r in results.items()}
    if before is not None and before["seed"] == seed:
        results, command = {**before["results"], **results}, before["command"]
    rows = [
        [name, r["executions"], r["guided"], r["accepted"], len(r["findings"]), r["commit"]]
        for name, r in results.items()
    ]
    total = ["all", *(sum(row[i] for row in rows) for i in range(1, 5)), ""]
    return {
        **circumstances(command),
        "seed": seed,
        "text": [text.format(seed=seed) for text in _TEXT],
        "columns": ["target", "executions by mutation", "by atheris", "accepted", "findings", "commit"],
        "rows": [*rows, total],
        "findings": [_told(name, seed, f) for name, r in results.items() for f in r["findings"].values()],
        "results": results,
    }


def _told(name: str, seed: int, finding: dict[str, Any]) -> str:
    again = f"python -m tests.fuzz {name} --seed {seed} --only {finding['number']}"
    if "input" in finding:
        again = f"python -m tests.fuzz {name} --input {shlex.quote(finding['input'])}"
    place = f" at `{finding['place']}`" if finding["place"] else ""
    detail = f": {finding['detail']}" if finding["detail"] else ""
    return f"{name}, {finding['count']} times: {finding['kind']}{place}{detail} (`{again}`)"
