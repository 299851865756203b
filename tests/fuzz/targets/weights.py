"""safetensors files as weights."""

from pathlib import Path

from kdpipe.models.state import read_state
from kdpipe.models.weights import read_metadata
from tests.fuzz.target import Changed, Target
from tests.fuzz.tensors import has_digest, mutate_safetensors, plain, weights_file


def make(folder: Path) -> Target:
    path = weights_file(folder / "run")
    sound = path.read_bytes()
    meant = read_metadata(path), plain(read_state(path))
    digested = has_digest(sound)

    def run(data: bytes) -> None:
        path.write_bytes(data)
        found = read_metadata(path), plain(read_state(path))
        if not isinstance(found[0], dict):
            raise Changed(f"a description that is no object: {str(found[0])[:80]}")
        # A header without a digest is of another program's file, and taken as it is.
        if digested and has_digest(data) and found != meant:
            raise Changed("other weights were taken than were written")

    return Target(run, [sound], 60_000, mutate=mutate_safetensors)
