"""What all commands do alike: a warning is one line, numbers lie in their range, a user's files are left alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import click
from click.core import ParameterSource

from lirpa_lip.errors import ConfigError, UnknownMethodError
from lirpa_lip.methods import Door, current_name, names_at
from lirpa_lip.ranges import Range, plain_number


class Number(click.ParamType):
    """A number of a range, for flags; help shows the range, and what lies outside it is refused."""

    def __init__(self, kind: type[int] | type[float], allowed: Range) -> None:
        self.kind, self.allowed = kind, allowed
        self.name = "integer" if kind is int else "float"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        shown = self.allowed.shown
        return self.name.upper() + (f" ({shown})" if shown else "")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | float:
        try:
            number = plain_number(value, self.kind) if isinstance(value, str) else self.kind(value)
        except (TypeError, ValueError, OverflowError):
            article = "a whole number" if self.kind is int else "a number"
            self.fail(f"{value!r} is not {article}.", param, ctx)
        if not self.allowed.holds(number):
            self.fail(f"it {self.allowed.demand_of(number)}; got {value}.", param, ctx)
        return number


class MethodName(click.ParamType):
    """A method at a door; names of the release before are taken with a warning, and not listed."""

    name = "method"

    def __init__(self, door: Door) -> None:
        self.door: Door = door

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return f"[{'|'.join(names_at(self.door))}]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return current_name(str(value), self.door)
        except UnknownMethodError as error:
            self.fail(str(error), param, ctx)


class NewPath(click.Path):
    """A file or folder to write: empty text, as of a shell variable that is not set, is none (and not the folder one
    stands in)."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value).strip():
            self.fail("it is empty; name a path.", param, ctx)
        return super().convert(value, param, ctx)


def names_in(text: str, flag: str) -> list[str]:
    """Names separated by commas, each once.

    Raises:
        click.BadParameter: there is none.
    """
    found = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not found:
        raise click.BadParameter("no name is given.", param_hint=flag)
    return found


def option(flag: str, kind: type[int] | type[float], allowed: Range, **settings: Any) -> Callable[[Any], Any]:
    """A `click.option` for a number of a range."""
    return click.option(flag, type=Number(kind, allowed), show_default=settings.get("default") is not None, **settings)


def refuse_unread(names: Iterable[str], why: str) -> None:
    """
    Raises:
        click.UsageError: one of these flags was given, and nothing would read it.
    """
    ctx = click.get_current_context()
    for name in names:
        if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise click.UsageError(f"--{name.replace('_', '-')} is not read {why}; leave it out.")


@contextmanager
def warnings_in_a_line() -> Iterator[None]:
    """Warnings of this package go to the terminal as one line, each once."""
    told: set[str] = set()
    with warnings.catch_warnings():
        warnings.filterwarnings("always", module="lirpa_lip")
        usual = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if "lirpa_lip" not in Path(filename).parts:
                usual(message, category, filename, lineno, file, line)
            elif str(message) not in told:
                told.add(str(message))
                click.echo(f"warning: {message}", err=True)

        warnings.showwarning = show
        yield


def refuse_foreign(paths: Iterable[Path], is_ours: Callable[[Path], bool], force: bool) -> None:
    """
    Raises:
        ConfigError: one of the files is there, is not ours, and ``force`` does not say to overwrite it.
    """
    if force:
        return
    for path in paths:
        if path.exists() and not (path.is_file() and is_ours(path)):
            raise ConfigError(f"{path} is there already; choose another --out, or overwrite it with --force.")


def refuse_results_of_others(folder: Path, mark: str, names: Iterable[str], force: bool) -> None:
    """
    Raises:
        ConfigError: a folder that none of our runs claimed, with its file ``mark``, holds files of the names we write.
    """
    if not (folder / mark).is_file():
        refuse_foreign([folder / name for name in names], lambda path: False, force)


def begins_with(mark: str) -> Callable[[Path], bool]:
    """Whether a file begins with a line that we write."""
    return lambda path: path.read_bytes()[: len(mark.encode())] == mark.encode()
