"""Commands as programs in a terminal: one line for an error, any encoding, pipes that close, Ctrl-C."""

from __future__ import annotations

import codecs
import io
import select
import sys
import unicodedata
from typing import Any

import click

from engine.errors import EngineError

INTERRUPTED, PIPE_CLOSED = 130, 141  # 128 + SIGINT, 128 + SIGPIPE: what a shell reports of a program that these end
FALLBACK = "diffusevae.fallback"
ASCII = "diffusevae_ascii"  # under its own name click takes it for a mistake, and writes UTF-8
_ASCII = {"×": "x", "–": "-", "—": "-", "−": "-", "·": "*", "→": "->", "≤": "<=", "≥": ">=", "µ": "u", "’": "'"}


class Program(click.Command):
    """A command whose errors are a line each, and that no terminal, pipe or Ctrl-C makes a traceback of."""

    interrupted = "Interrupted."  # unless the KeyboardInterrupt says more

    def main(self, *arguments: Any, **options: Any) -> Any:
        """Run as a program; `| head` ends it quietly, with the code that the signal has."""
        stdout = sys.stdout
        for stream in (stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                ascii = codecs.lookup(stream.encoding).name == "ascii"
                stream.reconfigure(encoding=ASCII if ascii else stream.encoding, errors=FALLBACK)
        try:
            return super().main(*arguments, **options)
        except SystemExit:
            # click answers a broken pipe with code 1, whichever pipe it was, and wraps the streams for Python's exit.
            if sys.stdout is not stdout:
                if _reader_is_gone():
                    raise SystemExit(PIPE_CLOSED) from None
                click.echo("Error: the pipe to another process broke; run the command again.", err=True)
            raise

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; EngineError becomes its message and exit code 1, and so does memory that is not there."""
        try:
            return super().invoke(ctx)
        except MemoryError as error:  # also one that the Sampler has put in its own words, which name no options
            cause = error.__cause__ or error
            raise click.ClickException(
                f"found no memory for this ({str(cause) or type(cause).__name__}), expected room for it; ask for fewer "
                "images with a smaller -n, or for fewer at a time with a smaller --batch"
            ) from error
        except EngineError as error:
            raise click.ClickException(str(error)) from error
        except KeyboardInterrupt as stopped:
            click.echo(f"\nInterrupted; {stopped}" if str(stopped) else f"\n{self.interrupted}", err=True)
            ctx.exit(INTERRUPTED)


def shows_progress() -> bool:
    """Whether bars on stderr are seen by a person."""
    return sys.stderr is not None and sys.stderr.isatty()


def _reader_is_gone() -> bool:
    """Whether what stdout or stderr is piped into has closed it."""
    poller = select.poll()
    for stream in (sys.stdout, sys.stderr):
        try:
            poller.register(stream.fileno(), select.POLLOUT)
        except (OSError, ValueError, AttributeError):
            continue  # no file behind it
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poller.poll(0))


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """What stands for characters that a stream cannot encode: letters without accents, else an escape."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_ascii, error.object[error.start : error.end])), error.end


def _ascii(character: str) -> str:
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return _ASCII.get(character) or plain or character.encode("ascii", "backslashreplace").decode()


def _same_as_ascii(name: str) -> codecs.CodecInfo | None:
    found = codecs.lookup("ascii")
    return codecs.CodecInfo(*found, found.incrementalencoder, found.incrementaldecoder, ASCII) if name == ASCII else None


codecs.register_error(FALLBACK, _in_ascii)
codecs.register(_same_as_ascii)
