"""Names that are no factory, and factories that fail: one line with the reason."""

import sys

import pytest
from torch import nn

from kdpipe.errors import TeacherError
from kdpipe.models import ModelConfig
from kdpipe.models.build import build


def bad(num_classes: int) -> nn.Module:
    raise LookupError("no table\nof that name")


def none(**_: object) -> None:
    pass


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("os:path", "factory can't be imported: TypeError: path is not a function but a module"),
        (":f", "factory can't be imported: ValueError"),
        ("os:", "factory can't be imported: AttributeError"),
        ("tests.models.test_build:missing", "AttributeError: .*missing.*package.module:function"),
        ("tests.models.test_build:bad", "tests.models.test_build:bad: factory failed: LookupError: no table"),
        ("tests.models.test_build:none", "factory returned no model; found NoneType"),
        ("builtins:dict", "factory returned no model; found dict"),
        ("torch.nn:Linear", "factory refused its arguments: .*in_features.*--model-kwargs"),
    ],
)
def test_what_is_no_factory(name: str, message: str):
    with pytest.raises(TeacherError, match=message) as caught:
        build(ModelConfig(model=name, num_classes=3))
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_a_module_that_fails_when_imported(tmp_path, monkeypatch):
    (tmp_path / "their_model.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(TeacherError, match="factory can't be imported: ZeroDivisionError: division by zero"):
        build(ModelConfig(model="their_model:make"))
    assert "their_model" not in sys.modules
