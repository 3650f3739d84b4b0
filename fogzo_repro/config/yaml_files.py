"""YAML files, read as the configuration reads them: 1e-9 is a number, a key twice is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fogzo_repro.config.rules import ConfigError, require


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a file of keys and values; what it refers to, as in ${recipe.lr}, is left as it stands.

    Raises:
        ConfigError: where it cannot be read, or is something else, in one line with the file.
    """
    try:
        node = OmegaConf.load(path)
    except Exception as error:  # the parser's exceptions are of several families
        raise ConfigError(f"{path} cannot be read: {error}") from None
    require(OmegaConf.is_dict(node), f"{path} is not a mapping of keys to values")
    return {str(key): value for key, value in OmegaConf.to_container(node).items()}  # type: ignore[union-attr]
