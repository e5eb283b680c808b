"""Where the data sets lie that a user has a copy of."""

import os
from pathlib import Path

from tailwise import checks


def local_folder(data_dir: Path | None, name: str) -> Path:
    """The folder given, else the one that the environment variable TAILWISE_DATA names.

    Raises:
        InputError: neither; `name` says for which data.
    """
    found = data_dir or os.environ.get("TAILWISE_DATA")
    if not found:
        raise checks.InputError(f"data-dir: {name} needs a local copy; give --data-dir or set TAILWISE_DATA")
    return Path(found)
