"""What a checkpoint holds beside its tensors: types and bounds, so that a wrong one is refused before it is used."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from kdpipe._util.untrusted import load_json
from kdpipe.config import Config, first_problem
from kdpipe.errors import CheckpointError

FORMAT = 1
_DO = "Choose another --out, or delete the folder to start again"
Count = Annotated[int, Field(ge=0, le=2**53, strict=True)]
Number = Annotated[float, Field(strict=True)]
Seconds = Annotated[float, Field(ge=0, strict=True)]
Scores = dict[str, Number | int | None] | None


class _Best(Config):
    epoch: Count
    validation: Scores


class _Line(Config):
    """The last line of the metrics, clock apart."""

    epoch: Count
    steps: Count
    lr: Number
    train: dict[str, Number]
    validation: Scores


class _Losses(Config):
    sums: dict[str, Number]
    steps: Count


class _Timing(Config):
    seconds: Seconds
    training: Seconds
    images: Count


class _Optimizer(Config):
    """See `kdpipe.trainer.state.pack`."""

    state: JsonValue
    groups: JsonValue
    scaler: dict[str, Number]


class _Cache(BaseModel):
    """Of a cache's identity what is used before the identities are compared."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)
    encodings: JsonValue
    views: list[Annotated[int, Field(strict=True)] | str]


class _Identity(BaseModel):
    """The job's identity; all of it is compared with the resumed job's."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)
    caches: list[_Cache] = []


class _State(Config):
    format: Literal[1]
    config: _Identity
    epoch: Count
    step: Count
    number: Count
    losses: _Losses
    best: _Best | None
    line: dict[str, JsonValue]
    metrics_bytes: Count
    timing: _Timing
    optimizer: _Optimizer
    versions: dict[str, str]


def check_position(state: dict[str, Any], epochs: int, steps: int, where: object) -> None:
    """Refuse a state that no run of so many epochs and steps an epoch is ever in.

    Raises:
        CheckpointError: naming the field.
    """
    epoch, step, best = state["epoch"], state["step"], state["best"]
    scores = best and best["validation"]
    wrong = {
        f"epoch {epoch} step {step}": epoch > epochs or step >= (1 if epoch == epochs else steps),
        f"number {state['number']}": state["number"] != epoch * steps + step,
        "no line of an epoch": epoch > 0 and not state["line"],
        # Another epoch's score is compared with it.
        "a best epoch without a score": best is not None and epoch < epochs and (scores or {}).get("top1") is None,
    }
    for found, is_wrong in wrong.items():
        if is_wrong:
            raise CheckpointError(
                "the checkpoint is of no point of this run",
                where=where,
                found=found,
                allowed=f"{epochs} epochs of {steps} steps",
                do=_DO,
            )


def read_line(line: bytes) -> dict[str, Any]:
    """A line of metrics.jsonl.

    Raises:
        ValueError: it isn't one.
    """
    found = load_json(line)
    if not isinstance(found, dict):
        raise ValueError(f"a JSON {type(found).__name__} instead of an object")
    _Line.model_validate({name: value for name, value in found.items() if name != "timing"})
    return found


def check_state(state: dict[str, Any] | None, where: object) -> dict[str, Any]:
    """The state as it is, if it is one that this version wrote or can read.

    Raises:
        CheckpointError: of another format, or with a field that is missing, unknown, of another type or out of bounds.
    """
    if state is None or "format" not in state:
        raise CheckpointError(
            "checkpoint can't be read: it isn't one of kdpipe", where=where, do="Choose another --out"
        )
    found = state["format"]
    if found != FORMAT:
        raise CheckpointError(
            "checkpoint of another format",
            where=where,
            found=str(found)[:100],
            allowed=FORMAT,
            do="Choose another --out",
        )
    try:
        if _State.model_validate(state).line:  # empty before the first epoch has ended
            _Line.model_validate(state["line"])
    except ValidationError as e:
        key, why, _ = first_problem(e)
        raise CheckpointError(f"checkpoint can't be read: {key[:100]}: {why[:200]}", where=where, do=_DO) from e
    return state
