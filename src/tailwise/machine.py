"""What a machine is, for the record of what was measured on it."""

import os
import platform
import re
from pathlib import Path
from typing import Any


def hardware() -> dict[str, Any]:
    """Of this machine: its processor, how many of it, its system; nothing that names it."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        found = re.search(r"^model name\s*: (.*)$", cpuinfo.read_text(), flags=re.M)
        model = found[1] if found else model
    return {"cpu": model, "cores": os.cpu_count(), "system": platform.system()}
