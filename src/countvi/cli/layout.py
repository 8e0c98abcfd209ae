"""How help looks: plain, as the tables of rich cut names where a terminal is narrow."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup


class Commands(TyperGroup):
    """A group whose help says of each command what it does, in lines that are never cut."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.help) for name, command in self.commands.items()])


class Listed(TyperCommand):
    """A command whose help lists its options under headings, in lines that are never cut."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            look: Any = parameter
            heading = look.rich_help_panel or ("Files" if "Files" in groups else "Options")  # --help has none
            groups.setdefault(heading, []).append((look.metavar or look.opts[0], look.help))
        for heading, rows in groups.items():
            with formatter.section(heading):
                formatter.write_dl(rows)
