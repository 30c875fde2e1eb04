"""The command group in which every error, wherever it comes from, ends as one clear line and an exit code."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from burnish.cli.answer import unread


class Commands(TyperGroup):
    """`burnish` itself."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        try:
            return super().make_context(info_name, args, parent, **extra)
        except BrokenPipeError:
            raise _unread() from None
        except Exception as error:
            _end_on_usage(error, info_name or "burnish")
            raise

    def invoke(self, ctx: Any) -> Any:
        from burnish.cli.errors import report

        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise
        except BrokenPipeError:
            raise _unread() from None
        except (Exception, KeyboardInterrupt) as error:
            _end_on_usage(error, f"{ctx.command_path} {ctx.invoked_subcommand}")
            raise typer.Exit(report(error)) from error


def _unread() -> typer.Exit:
    """How a command ends whose output is not read any more (`burnish … | head`)."""
    unread()
    return typer.Exit(0)


def _end_on_usage(error: BaseException, command: str) -> None:
    """End with a line on what is wrong with the command line, and with the help where it names no command; other errors pass.

    command: whose line it is, where typer's error does not say so.
    """
    if not type(error).__module__.startswith("typer.") or isinstance(error, typer.Exit | typer.Abort):
        return
    if type(error).__name__ == "NoArgsIsHelpError":
        raise error
    from burnish.cli.errors import report_usage

    raise typer.Exit(report_usage(error, command)) from error
