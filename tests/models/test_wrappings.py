"""Checkpoints as training scripts write them: equal logits, or one true line."""

import argparse
import pathlib
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from datetime import UTC, datetime
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from kdpipe.errors import TeacherError
from kdpipe.models import ModelConfig
from kdpipe.models.build import build
from tests.models.small import shuffled

State = dict[str, torch.Tensor]
KWARGS = {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8)}
CLASSES = 7


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return shuffled(timm.create_model("resnet18", num_classes=CLASSES, **KWARGS))


def loaded(path: pathlib.Path, **changes: Any) -> nn.Module:
    config = {"model": "resnet18", "model_kwargs": KWARGS, "weights": str(path)} | changes
    return build(ModelConfig(**config)).module.eval()


def require_equal(found: nn.Module, expected: nn.Module, tolerance: float = 0) -> None:
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(found(x), expected(x), rtol=tolerance, atol=tolerance)


def refusal(path: pathlib.Path, **changes: Any) -> str:
    with pytest.raises(TeacherError) as caught:
        loaded(path, **changes)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text


def prefixed(*names: str) -> Callable[[State], State]:
    return lambda state: {f"{''.join(names)}{key}": value for key, value in state.items()}


def split(backbone: str, head: str) -> Callable[[State], State]:
    """A backbone without a classifier, and a linear layer beside it."""
    return lambda s: {
        (f"{head}{k.removeprefix('fc.')}" if k.startswith("fc.") else f"{backbone}{k}"): v for k, v in s.items()
    }


def foreign(name: str, base: type = object) -> type:
    """A class of a package that isn't there when the file is read."""
    module, _, short = name.rpartition(".")
    made = type(short, (base,), {"__module__": module})
    sys.modules.setdefault(module, ModuleType(module))
    setattr(sys.modules[module], short, made)
    return made


def beside(value: Callable[[], Any]) -> Callable[[State], Any]:
    return lambda state: {"state_dict": state, "meta": value()}


def with_attributes(kind: type, **attributes: Any) -> Any:
    made = kind()
    made.__dict__.update(attributes)
    return made


def omega() -> Any:
    node = foreign("omegaconf_gone.AnyNode")
    config = foreign("omegaconf_gone.DictConfig")
    return with_attributes(config, _content={"lr": with_attributes(node, _val=0.1)}, _parent=None)


def yacs() -> Any:
    made = foreign("yacs_gone.CfgNode", dict)(lr=0.1)
    made.__dict__["__immutable__"] = False
    return made


def trained(state: State) -> Any:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.zeros(2, 3)).sum().backward()
    optimizer.step()
    scaler = {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 0}
    return {"model": state, "optimizer": optimizer.state_dict(), "scaler": scaler, "best_acc1": np.float64(71.5)}


def lightning(state: State) -> Any:
    return {
        "epoch": 3,
        "global_step": 100,
        "pytorch-lightning_version": "2.1.0",
        "state_dict": prefixed("model.")(state) | {"criterion.weight": torch.ones(CLASSES)},
        "callbacks": {"ModelCheckpoint": {"best_model_path": pathlib.PurePosixPath("a/b.ckpt")}},
        "hyper_parameters": argparse.Namespace(lr=0.1, out=pathlib.PurePosixPath("x")),
    }


def arrays(state: State) -> Any:
    return {key: value.numpy() for key, value in state.items()}


def with_thop(state: State) -> Any:
    counted = {"total_ops", "total_params", "conv1.total_ops", "layer1.0.conv1.total_params"}
    return state | {key: torch.zeros(1, dtype=torch.float64) for key in counted}


def without_counters(state: State) -> Any:
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


def averaged(state: State) -> Any:
    return prefixed("module.")(state) | {"n_averaged": torch.tensor(5)}


def inner_wrappers(state: State) -> Any:
    return {key.replace("layer1.", "layer1._orig_mod."): value for key, value in state.items()}


EXACT: dict[str, Callable[[State], Any]] = {
    "bare": lambda s: s,
    "OrderedDict": OrderedDict,
    **{f"under {name}": (lambda s, name=name: {name: s, "epoch": 3}) for name in (
        *("state_dict", "model", "model_state_dict", "net", "ema", "params", "weights", "my_network"),
    )},
    "state_dict in model": lambda s: {"model": {"state_dict": s}},
    **{f"{name} before all": prefixed(name) for name in (
        *("module.", "model.", "_orig_mod.", "_orig_mod.module.", "module.module.", "module._orig_mod.model."),
        *("backbone.", "net.", "student.", "ema.", "model.backbone.", "architecture.backbone.", "anything.of.mine."),
    )},
    "backbone and head": split("backbone.", "head."),
    "architecture": split("architecture.backbone.", "architecture.head.fc."),
    "backbone and classifier under module": split("module.backbone.", "module.classifier."),
    "wrappers inside": inner_wrappers,
    "averaged": averaged,
    "lightning": lightning,
    "a whole training": trained,
    "numpy scalars": beside(lambda: [np.float64(0.3), np.int64(7), np.array([1.0, 2.0])]),
    "Path": beside(lambda: pathlib.PurePosixPath("runs/a")),
    "datetime": beside(lambda: datetime(2024, 1, 2, tzinfo=UTC)),
    "defaultdict": beside(lambda: defaultdict(list, loss=[0.1])),
    "deque": beside(lambda: deque([0.1, 0.2], maxlen=3)),
    "Namespace": beside(lambda: argparse.Namespace(lr=0.1, mean=(0.5, 0.5, 0.5))),
    "yacs": beside(yacs),
    "OmegaConf": beside(omega),
    "defaultdict of weights": lambda s: {"model": defaultdict(dict, s)},
    "without num_batches_tracked": without_counters,
    "with thop's counters": with_thop,
    "Parameters": lambda s: {k: nn.Parameter(v) if v.is_floating_point() else v for k, v in s.items()},
    "numpy arrays": arrays,
    "double": lambda s: {k: v.double() if v.is_floating_point() else v for k, v in s.items()},
}  # fmt: skip


@pytest.mark.parametrize("name", EXACT)
def test_equal_logits(teacher: nn.Module, tmp_path: pathlib.Path, name: str, monkeypatch):
    torch.save(EXACT[name](teacher.state_dict()), tmp_path / "w.pth")
    for module in [module for module in sys.modules if "_gone" in module]:
        monkeypatch.delitem(sys.modules, module)
    require_equal(loaded(tmp_path / "w.pth"), teacher)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(teacher: nn.Module, tmp_path: pathlib.Path, dtype: torch.dtype):
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in teacher.state_dict().items()}
    torch.save(state, tmp_path / "w.pth")
    rounded = timm.create_model("resnet18", num_classes=CLASSES, **KWARGS).eval()
    rounded.load_state_dict(state)
    require_equal(loaded(tmp_path / "w.pth"), rounded)


def test_the_prefix_and_what_is_left_out_are_named(teacher: nn.Module, tmp_path: pathlib.Path, caplog):
    torch.save(lightning(teacher.state_dict()), tmp_path / "w.pth")
    loaded(tmp_path / "w.pth")
    expected = "the weights' names are taken without 'model.'; 1 others are left out: criterion.weight"
    assert [r.getMessage() for r in caplog.records] == [f"{tmp_path / 'w.pth'}: {expected}"]


@pytest.mark.parametrize(
    ("wrap", "remark"),
    [
        (without_counters, "13 counters num_batches_tracked are missing, and taken as 0"),
        (with_thop, "4 counters of operations or averages are left out"),
        (lambda s: {"model": s, "net": s}, "weights under 'model' are taken; --checkpoint-key takes net"),
        (split("backbone.", "head."), "names are taken without 'backbone.'; classifier from 'head.'"),
    ],
)
def test_what_was_done_is_said(teacher: nn.Module, tmp_path: pathlib.Path, caplog, wrap, remark: str):
    torch.save(wrap(teacher.state_dict()), tmp_path / "w.pth")
    loaded(tmp_path / "w.pth")
    assert len(caplog.records) == 1
    assert remark in caplog.records[0].getMessage()


def both(state: State) -> Any:
    other = {key: torch.zeros_like(value) for key, value in state.items()}
    return prefixed("student.")(state) | prefixed("teacher.")(other)


class TestByHand:
    def test_two_networks_are_a_question(self, teacher: nn.Module, tmp_path: pathlib.Path):
        torch.save(both(teacher.state_dict()), tmp_path / "w.pth")
        text = refusal(tmp_path / "w.pth")
        assert "the network's weights several times; found student., teacher.. Choose with --key-prefix" in text

    @pytest.mark.parametrize("prefix", ["student", "student."])
    def test_the_prefix_answers_it(self, teacher: nn.Module, tmp_path: pathlib.Path, prefix: str):
        torch.save(both(teacher.state_dict()), tmp_path / "w.pth")
        require_equal(loaded(tmp_path / "w.pth", key_prefix=prefix), teacher)

    def test_another_prefix(self, teacher: nn.Module, tmp_path: pathlib.Path):
        torch.save(both(teacher.state_dict()), tmp_path / "w.pth")
        text = refusal(tmp_path / "w.pth", key_prefix="model")
        assert "no weights have this prefix; found model; allowed: student., teacher." in text

    def test_several_dictionaries(self, teacher: nn.Module, tmp_path: pathlib.Path):
        state = teacher.state_dict()
        torch.save({"first": state, "second": state, "epoch": 3}, tmp_path / "w.pth")
        assert "Pass --checkpoint-key: first, second" in refusal(tmp_path / "w.pth")
        require_equal(loaded(tmp_path / "w.pth", checkpoint_key="second"), teacher)


class TestRefused:
    def test_a_whole_module(self, tmp_path: pathlib.Path, teacher: nn.Module):
        torch.save(teacher, tmp_path / "w.pth")
        assert "an object of the class timm.models.resnet.ResNet, such as a whole model" in refusal(tmp_path / "w.pth")

    def test_a_whole_module_under_model(self, tmp_path: pathlib.Path, teacher: nn.Module):
        torch.save({"model": teacher, "ema_weights": teacher.state_dict()}, tmp_path / "w.pth")
        text = refusal(tmp_path / "w.pth")
        assert "class timm.models.resnet.ResNet" in text
        assert "Pass --checkpoint-key: ema_weights" in text

    @pytest.mark.filterwarnings("ignore::UserWarning")
    def test_a_whole_module_in_the_old_format(self, tmp_path: pathlib.Path, teacher: nn.Module):
        torch.save(teacher, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
        assert "it holds a whole model, of the class timm.models.resnet.ResNet" in refusal(tmp_path / "w.pth")

    def test_weights_of_another_network_under_a_prefix(self, tmp_path: pathlib.Path, teacher: nn.Module):
        state = {k: v for k, v in teacher.state_dict().items() if not k.startswith("layer4.")}
        torch.save(prefixed("model.")(state), tmp_path / "w.pth")
        text = refusal(tmp_path / "w.pth")
        assert "missing (first: layer4.0" in text
        assert "unexpected" not in text

    def test_two_layers_that_may_be_the_classifier(self, tmp_path: pathlib.Path, teacher: nn.Module):
        state = split("backbone.", "head.")(teacher.state_dict())
        torch.save(state | {"aux.weight": state["head.weight"], "aux.bias": state["head.bias"]}, tmp_path / "w.pth")
        assert "2 missing (first: fc.bias) (next: fc.weight)" in refusal(tmp_path / "w.pth")

    @pytest.mark.parametrize("name", ["os.system", "builtins.eval", "subprocess.Popen", "shutil.rmtree"])
    def test_names_of_code(self, tmp_path: pathlib.Path, name: str):
        module, _, function = name.rpartition(".")

        class Runs:
            def __reduce__(self) -> Any:
                return getattr(__import__(module), function), ("/nowhere",)

        torch.save({"model": {"a": torch.zeros(2)}, "x": Runs()}, tmp_path / "w.pth")
        assert "its pickle refers to " in refusal(tmp_path / "w.pth")


def test_a_foreign_class_is_never_imported(tmp_path: pathlib.Path, teacher: nn.Module, monkeypatch):
    (tmp_path / "bait_gone.py").write_text("import pathlib\npathlib.Path(__file__).with_suffix('.ran').touch()\n")
    torch.save({"model": teacher.state_dict(), "x": foreign("bait_gone.Thing")()}, tmp_path / "w.pth")
    monkeypatch.delitem(sys.modules, "bait_gone")
    monkeypatch.syspath_prepend(tmp_path)
    require_equal(loaded(tmp_path / "w.pth"), teacher)
    assert not (tmp_path / "bait_gone.ran").exists()


def test_the_number_of_classes_is_the_weights(tmp_path: pathlib.Path, teacher: nn.Module):
    """Whatever the index has; --num-classes that differs is refused."""
    torch.save(prefixed("model.")(teacher.state_dict()), tmp_path / "w.pth")
    config = ModelConfig(model="resnet18", model_kwargs=KWARGS, weights=str(tmp_path / "w.pth"))
    assert build(config, num_classes=3).num_classes == CLASSES
    assert build(config).num_classes == CLASSES
    assert "They are of 7 classes" in refusal(tmp_path / "w.pth", num_classes=3)
