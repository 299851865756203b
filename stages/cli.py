"""The command `kdpipe`: one subcommand a stage, errors in one line."""

import importlib
import sys
from typing import Any

import click

from pipeline.errors import KdpipeError

# Loaded when called: torch and timm take seconds to import, and `kdpipe --help` should not.
COMMANDS = {
    "prepare": "stages.prepare:prepare",
    "index": "stages.index:index",
    "cache-teacher": "stages.cache_teacher:cache_teacher",
    "verify": "stages.verify:verify",
    "inspect": "stages.inspect:inspect",
    "train-student": "stages.train_student:train_student",
    "evaluate": "stages.evaluate:evaluate",
    "demo": "stages.demo:demo",
    "bench": "stages.bench:bench",
}


class Stages(click.Group):
    """A click group whose commands are imported on demand and whose errors are one line, exit code 2."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which one runs them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a stage."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        return getattr(importlib.import_module(module), attribute)

    def invoke(self, ctx: click.Context) -> Any:
        """Run, turning a user's mistake into one line on stderr."""
        try:
            return super().invoke(ctx)
        except KdpipeError as e:
            click.echo(f"error: {e}", err=True)
            ctx.exit(2)
        except BrokenPipeError:
            # The reader of our output has gone (`| head`): nothing to say, nobody to say it to.
            sys.stdout = None
            ctx.exit(1)


@click.group(cls=Stages, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="kdpipe")
def main() -> None:
    """Distil vision models from a cache of what the teacher said about exactly these pixels.

    The order of work: index your shards, cache-teacher once, verify, train-student as often as you like.
    """
