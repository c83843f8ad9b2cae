"""`oasis`, and `python -m oasis_lib`: the command line; nothing heavy is imported before it is needed."""

from __future__ import annotations

import sys

import click

from oasis_lib.commands import oasis
from oasis_lib.kernel import StageFailed


def main(arguments: list[str] | None = None) -> int:
    try:
        return oasis.main(arguments, prog_name="oasis", standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (ValueError, FileNotFoundError, FloatingPointError, StageFailed) as error:  # their words suffice
        click.ClickException(str(error)).show()
        return 1
    except click.Abort as stopped:
        print(f"\n{stopped.__cause__ or 'stopped; the same command goes on from here'}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
