"""The command `kdpipe`: one subcommand a stage, errors in one line."""

import copy
import importlib
import logging
import os
import sys
from typing import Any

import click

from kdpipe._util.redact import SHARD_URLS, showable
from kdpipe._util.suggest import did_you_mean
from kdpipe.errors import ConfigError, KdpipeError
from kdpipe_stages.signals import Stopped, stopping

# Where each command lives and what it does. They are imported when called: torch and timm take seconds to
# import, and `kdpipe --help` should not. In the order in which one runs them.
COMMANDS = {
    "prepare": ("kdpipe_stages.prepare:prepare", "Make shards from an image folder or the digits."),
    "index": ("kdpipe_stages.index:index", "Index a set of shards."),
    "view": ("kdpipe_stages.view:view", "Draw a sheet of samples' views."),
    "plan": ("kdpipe_stages.plan:plan", "Forecast a cache's bytes and hours, and what it saves."),
    "fidelity": ("kdpipe_stages.fidelity:fidelity", "Measure what each encoding costs the losses you mean to use."),
    "cache-teacher": ("kdpipe_stages.cache_teacher:cache_teacher", "Run a teacher and store its outputs in a cache."),
    "verify": ("kdpipe_stages.verify:verify", "Check a cache: every byte, and a sample of views run again."),
    "inspect": ("kdpipe_stages.inspect:inspect", "Print what a cache holds."),
    "cache": ("kdpipe_stages.cache:cache", "Look after caches: list, make room, merge, move."),
    "losses": ("kdpipe_stages.losses:losses", "List losses, and what each needs in a cache."),
    "train-student": ("kdpipe_stages.train_student:train_student", "Train a model, from a cache or from labels alone."),
    "evaluate": ("kdpipe_stages.evaluate:evaluate", "Score a model."),
    "erf": ("kdpipe_stages.erf:erf", "Draw and measure models' effective receptive fields."),
    "report": ("kdpipe_stages.report:report", "Compare teacher, students and baselines in one table."),
    "demo": ("kdpipe_stages.demo:demo", "All of it on scikit-learn's digits, in minutes."),
}
# Names that work and that help doesn't list.
HIDDEN = {"objectives": "losses"}
# Others load both when they run.
_WITHOUT_TORCH = {"prepare", "index", "inspect", "cache", "losses", "report"}


class _Remarks(logging.Handler):
    """What the library logs, as plain lines on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(showable(record.getMessage()), err=True)


class ErrorGroup(click.Group):
    """A click group whose commands end with one line on stderr: exit code 2 for a user's mistake."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, with a suggestion for an unknown command."""
        if not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            hint = did_you_mean(args[0], self.list_commands(ctx))
            ctx.fail(f"No such command '{args[0]}'. {hint or 'See --help'}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run, turning a user's mistake, or a signal, into one line on stderr."""
        logger, handler = logging.getLogger("kdpipe"), _Remarks()
        logger.addHandler(handler)
        try:
            with stopping():
                result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except Stopped as e:
            click.echo(str(e), err=True)
            ctx.exit(e.code)
        except KdpipeError as e:
            click.echo(f"error: {e}", err=True)
            ctx.exit(2)
        except BrokenPipeError:
            # The reader of our output has gone (`| head`): nothing to log, and no reader of a message.
            sys.stdout = None
            ctx.exit(1)
        except OSError as e:
            if not _of_output(e):
                raise
            # Python would try to write the rest when it ends.
            sys.stdout = None
            refusal = ConfigError(
                f"the result can't be written: {e.strerror}",
                where="standard output",
                do="Make room where it goes, then repeat the command: finished work is kept",
            )
            click.echo(f"error: {refusal}", err=True)
            ctx.exit(2)
        finally:
            logger.removeHandler(handler)


def _of_output(error: OSError) -> bool:
    """Whether it is the output that refused, by the module that wrote to it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals["__name__"] in ("click.utils", "rich.console", __name__)


class Stages(ErrorGroup):
    """Commands that are imported on demand."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which one runs them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a stage."""
        cmd_name = HIDDEN.get(cmd_name, cmd_name)
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command if cmd_name in _WITHOUT_TORCH else _announced(command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in `kdpipe --help`, without importing a stage."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


def _announced(command: click.Command) -> click.Command:
    """The command, which prints on a terminal that it loads torch and timm before it does, for seconds, in silence."""
    announced, run = copy.copy(command), command.callback
    assert run is not None

    def callback(*args: Any, **kwargs: Any) -> Any:
        if sys.stderr.isatty() and "torch" not in sys.modules:
            click.echo("loading torch and timm ...", err=True)
        return run(*args, **kwargs)

    announced.callback = callback
    return announced


@click.group(cls=Stages, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="kdpipe")
@click.option(
    "--shard-urls",
    metavar="SOURCE",
    envvar=SHARD_URLS,
    help="Where indexed shards are now, matched by file name: anything that `kdpipe index` takes, such as a .txt file "
    f"of presigned URLs. Also as {SHARD_URLS}. Kept in no file.",
)
@click.pass_context
def main(ctx: click.Context, shard_urls: str | None) -> None:
    """Distil vision models from a cache of the teacher's outputs on exactly the same pixels.

    The order of work: index your shards, cache-teacher once, verify, train-student as often as you like.
    """
    if shard_urls:
        # So that processes which this one starts have it too.
        before = os.environ.get(SHARD_URLS)
        os.environ[SHARD_URLS] = shard_urls
        ctx.call_on_close(lambda: _put_back(before))


def _put_back(before: str | None) -> None:
    os.environ.pop(SHARD_URLS, None)
    if before is not None:
        os.environ[SHARD_URLS] = before
