"""Puts the project's folder on the path of a script that was started as a file.

Python looks for modules beside the script alone, and the package need not be installed: a clone, or
a copy on another machine, is enough. Each script that is started by its path imports this first.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fogzo_repro.project import begin_command

begin_command()
