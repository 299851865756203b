"""Checkpoints of ours, as a resumed run reads them."""

from pathlib import Path

from kdpipe.trainer.files import CHECKPOINT, RunFolder
from tests.fuzz.target import Changed, Target
from tests.fuzz.tensors import has_digest, make_run, mutate_safetensors, plain


def make(folder: Path) -> Target:
    make_run(folder)
    path = folder / "run" / CHECKPOINT
    run_folder, sound = RunFolder(path.parent), path.read_bytes()
    tensors, state = run_folder.read_checkpoint()
    meant, digested = (plain(tensors), state), has_digest(sound)

    def run(data: bytes) -> None:
        path.write_bytes(data)
        tensors, state = run_folder.read_checkpoint()
        if not isinstance(state, dict):
            raise Changed(f"a state that is no object: {str(state)[:80]}")
        if digested and has_digest(data) and (plain(tensors), state) != meant:
            raise Changed("another checkpoint was taken than was written")

    return Target(run, [sound], 60_000, mutate=mutate_safetensors)
