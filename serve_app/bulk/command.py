"""``switchyard batch``: a bulk run on the command line."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from serve_app.bulk.attempt import Retries
from serve_app.bulk.run import BulkRun
from serve_app.bulk.tally import Tally
from serve_app.errors import NoRoute


def run(*, retry_for_s: float, **options: Any) -> int:  # noqa: ANN401 - the attributes of BulkRun
    """Do it, showing how far it is; 0 when every row has an answer, else 1.

    Raises:
        ConfigError: it could not be started.
        KeyboardInterrupt: after Ctrl-C; what was answered is in the output.
    """
    tally = Tally(sys.stderr)
    work = BulkRun(**options, retries=Retries(retry_for_s))
    try:
        asyncio.run(work.run(tally))
    except NoRoute as error:
        sys.stderr.write(f"{error}\n")
    finally:
        tally.end()
    return 0 if tally.answered == tally.rows else 1
