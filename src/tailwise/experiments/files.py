"""Files and folders that appear when they are complete, and JSON that is read with care."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tailwise import checks, ranks

PARTIAL = ".partial"


def partial(path: Path) -> Path:
    """What a seed's folder, or a file of lines, is called until it is complete."""
    return path.with_name(f"{path.name}{PARTIAL}")


@contextmanager
def unfinished_folder(path: Path) -> Iterator[Path]:
    """`path` with ".partial" behind it, which becomes `path` when the block ends well.

    When it does not, what was saved stays, to be gone on from; where nothing was, the folder goes.

    Raises:
        InputError: the folder cannot be written.
    """
    written = partial(path)
    try:
        written.mkdir(parents=True, exist_ok=True)
        leftovers = [child for child in written.rglob(".*") if child.name.startswith(".")]  # of a killed write
        for leftover in leftovers if ranks.is_main() else ():
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        ranks.wait()
    except OSError as error:
        raise checks.InputError(f"{path}: cannot make the folder ({error.strerror})") from error
    try:
        yield written
        ranks.wait()
        if ranks.is_main():
            os.replace(written, path)
        ranks.wait()
    except OSError as error:
        raise checks.InputError(f"{path}: cannot write ({error.strerror})") from error
    except BaseException:
        if not any(written.rglob("*.safetensors")):
            shutil.rmtree(written, ignore_errors=True)
        raise


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write atomically: the old file or the new one, never a part.

    Raises:
        InputError: the file cannot be written.
    """
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, content: str) -> None:
    """Write atomically, as `write_json`; "?" stands for what is no text in the name of a file."""
    write_bytes(path, content.encode(errors="replace"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write atomically, as `write_json`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise checks.InputError(f"{path}: cannot write ({error.strerror})") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write lines as they come to `path` with ".partial" behind it, which becomes `path` behind the last of them.

    The name of a file that is no text is written as the bytes that it is.

    Raises:
        InputError: the file cannot be written.
    """
    written = partial(path)
    try:
        with written.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            file.writelines(lines)
        written.replace(path)
    except OSError as error:
        raise checks.InputError(f"{path}: cannot write ({error.strerror})") from error


def check_place(path: Path) -> None:
    """Refuse a file that cannot be written, before minutes of work.

    Raises:
        InputError: no folder for it, or a folder in its place.
    """
    if not path.parent.is_dir() or path.is_dir():
        why = "a folder is there" if path.is_dir() else f"no folder {path.parent}"
        raise checks.InputError(f"{path}: cannot write ({why})")


def read_json(path: Path) -> dict[str, Any]:
    """Raises InputError for a file that is absent or no JSON object."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise checks.InputError(f"{path}: not a readable JSON file ({error})") from error
    if not isinstance(content, dict):
        raise checks.InputError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content
