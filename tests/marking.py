"""Files that somebody else wrote, and code that leaves a mark when it is imported or called."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from kdpipe.models import METADATA_KEY

_CODE = """
from pathlib import Path
from tests.tiny import network
with Path({mark!r}).open("a") as file:
    file.write("imported ")
def made(num_classes=7, **kwargs):
    with Path({mark!r}).open("a") as file:
        file.write("called ")
    return network(num_classes=num_classes)
"""


@dataclass(frozen=True)
class Code:
    """A module that can be imported, and whether it was."""

    name: str
    mark: Path

    @property
    def ran(self) -> bool:
        return self.mark.exists()


def code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Code:
    """A module on sys.path whose factory `made` returns the tests' tiny network."""
    name, mark = "marking", folder / "mark.txt"
    (folder / "marking").mkdir()
    (folder / "marking" / "__init__.py").write_text("")
    (folder / "marking" / "inner.py").write_text(_CODE.format(mark=str(mark)))
    monkeypatch.syspath_prepend(folder)
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    return Code(f"{name}.inner:made", mark)


def weights(path: Path, header: Any, tensors: dict[str, torch.Tensor] | None = None) -> Path:
    """A safetensors file with what would be kdpipe's header."""
    save_file(tensors or {"weight": torch.zeros(2)}, path, {METADATA_KEY: json.dumps(header)})
    return path
