"""Commands whose help has sections and an example, and the options that many of them have."""

from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import click

F = TypeVar("F", bound=Callable[..., Any])

# The heading under which help lists a parameter.
_SECTIONS: WeakKeyDictionary[click.Parameter, str] = WeakKeyDictionary()


class Command(click.Command):
    """A command whose help lists options by section."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """A list of options for each section."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            # Arguments are described in the command's text.
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is not None:
                title = "Help" if "--help" in param.opts else _SECTIONS.get(param, "Options")
                sections.setdefault(title, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


def command(
    name: str, example: str, group: click.Group | None = None, cls: type[Command] = Command
) -> Callable[[Callable[..., Any]], click.Command]:
    """A command, of `kdpipe` or of a group, with one example command line; its docstring is its help."""
    attrs: dict[str, Any] = {"epilog": f"Example:\n\n\b\n{example}", "context_settings": {"show_default": True}}
    return (group.command if group else click.command)(name, cls=cls, **attrs)


def section(title: str, *options: Any) -> Callable[[F], F]:
    """Add options, decorators of click's, to a command, listed under a heading."""

    def add(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        for param in getattr(function, "__click_params__", ()):
            _SECTIONS.setdefault(param, title)
        return function

    return add


JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
INDEX = click.option(
    "--index", "index_path", metavar="PATH", required=True, help="Index of the shards, from kdpipe index."
)
LIMIT = click.option("--limit", type=int, help="Use the first N samples only.")
