"""Mends the ROS wheels' exported CMake targets: they name include folders of the machine that built them.

Run by the virtual environment's own Python, after installing; running it again changes nothing.
"""

import re
import sys
import sysconfig
from pathlib import Path

import numpy

# Where the wheels were built, as in /opt/python/cp311-cp311/include/python3.11.
BUILD_MACHINE = {
    re.compile(r"/opt/python/[^/;\"]+/include/python[\d.]+t?"): sysconfig.get_path("include"),
    re.compile(r"/opt/python/[^;\"]+/site-packages/numpy/_?core/include"): numpy.get_include(),
}


def mend(prefix: Path) -> int:
    """Rewrites the files under `prefix`; returns how many changed."""
    changed = 0
    for path in sorted(prefix.glob("share/*/cmake/*Export.cmake")):
        text = mended = path.read_text()
        for pattern, folder in BUILD_MACHINE.items():
            mended = pattern.sub(folder.replace("\\", r"\\"), mended)
        if mended != text:
            path.write_text(mended)
            changed += 1
    return changed


if __name__ == "__main__":
    print(f"mended {mend(Path(sys.prefix))} CMake exports of the ROS wheels")
