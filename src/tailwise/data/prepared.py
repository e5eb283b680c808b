"""What `tailwise data prepare` found: what was compared, which files are missing or broken, what is still needed."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tailwise.data.benchmarks import Needed


@dataclass(frozen=True)
class Check:
    """One thing that was compared with what is published."""

    what: str
    expected: str
    found: str

    @property
    def ok(self) -> bool:
        return self.expected == self.found


@dataclass(frozen=True)
class Prepared:
    """The state of a data set on disk.

    name: of the data. checks: what was compared. needs: what is still to be downloaded. missing: files that are listed
    but not there. unreadable: a line for each that is there and will not do. skipped: what was left out because it was
    asked for. passed_over: files that are no images by their ending, or in no class's folder: how many of each ending.
    root: what holds the images. images: how many each part has. wrote: where the splits are; None where
    there are none to write, or the data cannot be used yet.
    """

    name: str
    checks: tuple[Check, ...] = ()
    needs: tuple[Needed, ...] = ()
    missing: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    passed_over: Mapping[str, int] = field(default_factory=dict)
    root: Path | None = None
    images: Mapping[str, int] | None = None
    wrote: Path | None = None

    @property
    def ready(self) -> bool:
        """Whether it can be trained on: nothing is needed, missing or broken, and every check agrees."""
        bad = len(self.missing) + len(self.unreadable) > len(self.skipped)
        return not self.needs and not bad and all(check.ok for check in self.checks)

    def record(self) -> dict[str, Any]:
        """All of it as plain JSON."""
        content = asdict(self) | {"ready": self.ready}
        content["checks"] = [asdict(check) | {"ok": check.ok} for check in self.checks]
        return content | {key: None if content[key] is None else str(content[key]) for key in ("root", "wrote")}
