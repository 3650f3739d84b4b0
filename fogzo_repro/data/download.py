"""Downloads: by one process, while the others wait, and whole or not at all."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from fogzo_repro.config import UserError
from fogzo_repro.files import locked, make_folder
from fogzo_repro.terminal import first_line

PREFIX = ".download-"  # of the folders in which downloads are made


def download(
    name: str,
    data_dir: Path,
    is_there: Callable[[], bool],
    fetch: Callable[[Path], object],
    instead: str = "",
) -> None:
    """Download a dataset into `data_dir` where it is not there.

    The processes of a run and other runs may call this at the same time: one downloads. A file
    appears under its name when it is whole.

    Args:
        name: of the dataset, for messages.
        data_dir: made where it is missing.
        is_there: whether there is nothing to do.
        fetch: downloads into an empty folder, laid out as `data_dir` is.
        instead: what else the user can do, for the error's end.

    Raises:
        UserError: where it cannot be downloaded, with the remedy.
    """
    if is_there():
        return
    make_folder(data_dir, f"data_dir={data_dir}")
    with locked(data_dir / ".download.lock", str(data_dir), wait=math.inf) as has_locks:
        if is_there():  # another process has been faster
            return
        if has_locks:
            for left in data_dir.glob(f"{PREFIX}*"):  # by a process that was killed
                shutil.rmtree(left, ignore_errors=True)
        print(f"{name} is not under data_dir={data_dir}: downloading it", flush=True)
        with tempfile.TemporaryDirectory(prefix=PREFIX, dir=data_dir) as folder:
            try:
                fetch(Path(folder))
            except Exception as error:  # network, archive and server errors have no common type
                raise UserError(
                    f"{name} is not under data_dir={data_dir} and cannot be downloaded "
                    f"({first_line(error)}); give data_dir=<the folder that holds it>{instead}"
                ) from None
            for path in (p for p in Path(folder).rglob("*") if p.is_file()):
                target = data_dir / path.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, target)
