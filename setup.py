"""Maps what stands at the top level into the package, see fogzo_repro/project.py.

All else about the build stands in pyproject.toml.
"""

from setuptools import find_packages, setup

MAPPED = {  # folder: its files that are no modules
    "configs": ["*/*.yaml", "*.yaml", "classes/*.txt"],
    "results": ["paper/*.csv", "records/bench/*.json"],
    "scripts": [],
}

setup(
    packages=[
        *find_packages(include=["fogzo_repro*"]),
        *(f"fogzo_repro.{name}" for name in MAPPED),
    ],
    package_dir={f"fogzo_repro.{name}": name for name in MAPPED},
    package_data={f"fogzo_repro.{name}": files for name, files in MAPPED.items()},
)
