"""A few executions of every target in each run of the tests; `make fuzz` does millions."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdpipe.errors import KdpipeError
from tests.fuzz.engine import folder
from tests.fuzz.guard import Finding, Guard, guarded
from tests.fuzz.report import report
from tests.fuzz.target import NAMES, Changed, Target, case, make
from tests.reliability import draw

# Those that open a cache, or build a network, take tens of milliseconds each.
SLOW = {
    "cache_files": 25,
    "records_resealed": 25,
    "chunks": 25,
    "cache_record": 40,
    "weights_header": 25,
    "checkpoint_resealed": 15,
}
SLOW |= {"index": 100, "index_resealed": 100}
SEED = 1


@pytest.fixture(scope="module", params=NAMES)
def named(request: pytest.FixtureRequest) -> Iterator[tuple[str, Target]]:
    with folder() as place, guarded():
        yield request.param, make(request.param, Path(place))


def test_no_finding_in_seeded_executions(named):
    name, target = named
    guard, findings = Guard(target), {}
    for number in range(len(target.seeds), len(target.seeds) + SLOW.get(name, 300)):
        outcome = guard.execute(case(target, name, SEED, number))
        if isinstance(outcome, Finding):
            findings.setdefault(outcome.signature, f"--seed {SEED} --only {number}: {outcome.detail}")
    assert findings == {}


def test_seeds_are_accepted_and_an_input_is_a_function_of_its_number(named):
    name, target = named
    guard = Guard(target)
    for seed in target.seeds[:: max(1, len(target.seeds) // 8)]:
        assert guard.execute(seed) is True, seed[:100]
    number = len(target.seeds) + 7
    assert case(target, name, 3, number) == case(target, name, 3, number)
    assert case(target, name, 3, number) != case(target, name, 4, number)


class TestGuard:
    """The harness sees what it is there for."""

    @pytest.fixture(autouse=True)
    def _guarded(self) -> Iterator[None]:
        with guarded():
            yield

    def found(self, run, **limits) -> bool | Finding:
        return Guard(Target(run, [b""], 1), **limits).execute(b"")

    def kind(self, run, **limits) -> str:
        outcome = self.found(run, **limits)
        assert isinstance(outcome, Finding)
        return outcome.kind

    def test_refusals_and_acceptance(self):
        def refused(data: bytes) -> None:
            raise KdpipeError("no")

        assert self.found(refused) is False
        assert self.found(lambda data: None) is True

    def test_an_exception_that_is_no_refusal(self):
        def fails(data: bytes) -> None:
            raise ValueError("a plain one")

        assert self.kind(fails) == "ValueError"

    def test_a_change_of_meaning(self):
        def changed(data: bytes) -> None:
            raise Changed("other")

        assert self.kind(changed) == "Changed"

    def test_no_end(self):
        def endless(data: bytes) -> None:
            while True:
                pass

        assert self.kind(endless, seconds=0.1) == "TooLong"
        assert self.kind(lambda data: time.sleep(60), clock=0.1) == "TooLong"

    def test_too_long_in_what_the_alarm_waits_for(self):
        assert self.kind(lambda data: pow(7, 700_000) and None, seconds=0.001) in {"TooLong", "too long"}

    def test_too_much_memory(self):
        assert self.kind(lambda data: bytearray(b"x" * 2**26) and None, growth=2**24) == "too much memory"

    def test_more_memory_than_there_is(self):
        assert self.kind(lambda data: bytearray(2**40) and None) == "MemoryError"

    def test_code_that_is_named(self):
        assert self.kind(lambda data: __import__("tests.fuzz.bait") and None) == "import of what input names"

    def test_a_message_of_several_lines(self):
        class Long(KdpipeError):
            def __str__(self) -> str:
                return "a\nb"

        def fails(data: bytes) -> None:
            raise Long("x")

        assert self.kind(fails) == "a message of several lines"


def test_findings_are_drawn_with_what_shows_them_again():
    finding = {"kind": "KeyError", "place": "pipeline/x.py:1 f", "detail": "'a'", "number": 12, "count": 3}
    result = {"executions": 20, "guided": 5, "accepted": 2, "seconds": 1.0, "findings": {"KeyError": finding}}
    found = report({"tar": result, "json": {**result, "findings": {}}}, 7, "make fuzz")
    text = draw({"fuzz": json.loads(json.dumps(found))}, "reliability.json")
    assert "| all | 40 | 10 | 4 | 1 |" in text
    again = report({"json": {**result, "executions": 30, "findings": {}}}, 7, "python -m tests.fuzz json", found)
    assert [row[:2] for row in again["rows"]] == [["tar", 20], ["json", 30], ["all", 50]]
    assert (again["command"], again["findings"]) == ("make fuzz", found["findings"])
    assert "python -m tests.fuzz tar --seed 7 --only 12" in text
