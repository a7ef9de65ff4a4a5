"""Start a broker whose data directory holds only what was flushed before it was last killed.

    python powercut.py DATA DISK LIBRARY PROGRAM ARGUMENT…

DISK is what ``powercut.c`` (LIBRARY) saw reach the disk. Whatever else the last broker wrote to DATA is gone.
"""

import os
import shutil
import sys
from pathlib import Path


def main() -> None:
    data, disk = Path(sys.argv[1]), Path(sys.argv[2])
    library, command = sys.argv[3], sys.argv[4:]
    disk.mkdir(exist_ok=True)
    data.mkdir(exist_ok=True)
    for path in data.glob("tidings.db*"):
        path.unlink()
    for path in disk.glob("tidings.db*"):
        shutil.copyfile(path, data / path.name)
    os.environ |= {"LD_PRELOAD": library, "TAP_DATA": str(data), "TAP_DISK": str(disk)}
    os.execv(command[0], command)


main()
