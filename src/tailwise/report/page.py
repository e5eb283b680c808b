"""The interactive report as one HTML file, and result tables in a notebook: everything that comes in leaves escaped.

The page's own script and style are allowed by their hashes, everything else is refused by its security policy: it can
load nothing, and a name that were to become a script could not run.
"""

import base64
import hashlib
import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from numpy.typing import NDArray
from rich.console import Console

from tailwise.report.table import print_record, table_of

SCRIPTS = ("numbers.js", "charts.js", "page.js")
Panels = Sequence[tuple[str, bytes]]


@dataclass(frozen=True)
class Results:
    """The result rows of runs: a table where it is printed, and in a notebook.

    record: of `report.summary`.
    """

    record: dict[str, Any]

    def __str__(self) -> str:
        console = Console(width=200, no_color=True)
        with console.capture() as captured:
            print_record(console, self.record)
        return captured.get()

    def _repr_html_(self) -> str:
        module: Any = _templates().get_template("table.html").module
        return str(module.result_table(table_of(self.record)))


def render_page(record: dict[str, Any], panels: Panels = ()) -> str:
    """The page of a record of `figures.report`.

    Args:
        record: what it shows.
        panels: figures as (title, PNG).
    """
    folder = files("tailwise.report") / "explorer"
    style = (folder / "style.css").read_text(encoding="utf-8")
    parts = [(folder / name).read_text(encoding="utf-8") for name in SCRIPTS]
    script = '(() => {\n"use strict";\n' + "\n".join(parts) + "})();\n"
    return (
        _templates()
        .get_template("page.html")
        .render(
            title=record["title"],
            caption=record["caption"],
            table=table_of(record["summary"]),
            provenance=record["provenance"],
            command=record["command"],
            version=record["version"],
            no_panels=record["no_panels"],
            panels=[{"title": title, "source": data_uri(content)} for title, content in panels],
            data=embedded_json({"runs": record["runs"]}),
            style=style,
            script=script,
            style_hash=_hash(style),
            script_hash=_hash(script),
        )
    )


def embedded_json(content: Any) -> str:
    """JSON that is safe between script tags: no character in it can end the element, or a line of JavaScript.

    >>> embedded_json({"name": "</script>\\u2028"})
    '{"name":"\\\\u003c/script\\\\u003e\\\\u2028"}'
    """
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def packed(values: NDArray[Any], kind: str) -> str:
    """An array as base64 of its little-endian numbers, which a typed array of JavaScript reads.

    >>> packed(np.array([1, 258]), "u2")
    'AQACAQ=='
    """
    return base64.b64encode(np.ascontiguousarray(values, dtype=f"<{kind}").tobytes()).decode("ascii")


def data_uri(png: bytes) -> str:
    """A PNG as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def png(image: NDArray[np.uint8]) -> bytes:
    """An image [1 or 3, H, W] as PNG.

    >>> png(np.zeros((3, 2, 2), dtype=np.uint8))[:8]
    b'\\x89PNG\\r\\n\\x1a\\n'
    """
    channels, height, width = image.shape
    rows = np.ascontiguousarray(image.transpose(1, 2, 0)).reshape(height, -1)
    unfiltered = np.concatenate((np.zeros((height, 1), dtype=np.uint8), rows), axis=1).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, {1: 0, 3: 2}[channels], 0, 0, 0)

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(unfiltered, 9))
        + chunk(b"IEND", b"")
    )


def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("tailwise.report", "explorer"),
        autoescape=True,
        trim_blocks=False,
        keep_trailing_newline=True,
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
