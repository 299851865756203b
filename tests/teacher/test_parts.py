"""Tails and heads: taken out, loaded, tried; what is damaged, swapped or can't be taken out is refused."""

import copy
import gc
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from kdpipe.errors import CacheError, IdentityError, TeacherError
from kdpipe.models import ModelConfig
from kdpipe.models.build import build
from kdpipe.teacher import head_parts, load_head, load_tail, tail_parts
from tests.teacher.networks import CLASSES, images, network, parts_of, tail_of

LAYOUT = {  # stage, norm behind it, channels last
    "convnext": ("stages.3", None, False),
    "slak": ("stages.3", None, False),
    "unireplknet": ("stages.3", None, False),
    "replknet": ("stages.3", "norm_pre", False),
    "swin": ("layers.3", "norm", True),
    "swinv2": ("layers.3", "norm", True),
    "resnet": ("layer4", None, False),
}


@pytest.mark.parametrize("name", LAYOUT)
def test_tail_makes_the_final_map_of_the_stages_input(name, tmp_path):
    built = network(name)
    tensors, about = parts_of(built)
    assert (about["stage"], about["norm"], about["channels_last"]) == LAYOUT[name]
    # As a cache keeps them.
    save_file(tensors, tmp_path / "tail.safetensors")
    tail = load_tail(load_file(tmp_path / "tail.safetensors"), json.loads(json.dumps(about)), "cache/tail")

    given: list[torch.Tensor] = []
    stage = built.module.get_submodule(about["stage"])
    stage.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    with torch.no_grad():
        final = built.module.forward_features(images(built, 3, seed=9))
    x = given[0]
    if about["channels_last"]:
        x, final = x.permute(0, 3, 1, 2), final.permute(0, 3, 1, 2)
    assert tail.in_shape == tuple(x.shape[1:])
    assert tail.out_shape == tuple(final.shape[1:])
    torch.testing.assert_close(tail(x), final, rtol=1e-5, atol=1e-5)


def test_tail_is_frozen_and_in_no_checkpoint():
    tail = tail_of(network("resnet"))
    holder = nn.ModuleDict({"tail": tail, "own": nn.Linear(2, 2)})
    assert set(holder.state_dict()) == {"own.weight", "own.bias"}
    holder.load_state_dict(holder.state_dict())
    assert len(list(holder.parameters())) == 2
    assert not list(tail.buffers())
    holder.train()
    x = torch.randn(5, *tail.in_shape, requires_grad=True)
    first = tail(x)
    torch.testing.assert_close(tail(x), first)  # batch statistics are neither used nor moved
    first.sum().backward()
    assert x.grad.abs().sum() > 0
    baseline = copy.deepcopy(holder).to(torch.float64)["tail"]
    assert baseline(x.double()).dtype == torch.float64
    assert tail(x).dtype == torch.float32


def test_no_trunk_stays_in_memory():
    def alive() -> int:
        gc.collect()
        tensors = {id(o): o for o in gc.get_objects() if type(o) in (torch.Tensor, nn.Parameter)}
        return sum(t.numel() for t in tensors.values())

    built = network("swin")
    whole = sum(p.numel() for p in built.module.parameters())
    stage = sum(t.numel() for m in ("layers.3", "norm") for t in built.module.get_submodule(m).state_dict().values())
    tensors, about = parts_of(built)
    del built
    before = alive()
    tail = load_tail(tensors, about, "cache/tail")
    grown = alive() - before
    assert grown == tail.resident
    # What is computed rather than loaded, such as the positions of a window, comes on top.
    assert stage <= tail.resident < 1.01 * stage < 0.9 * whole


def test_loading_draws_no_random_numbers():
    tensors, about = parts_of(network("slak"))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_tail(tensors, about, "cache/tail")
    assert torch.equal(torch.rand(3), expected)


def test_swapped_and_damaged_tails_are_refused():
    tensors, about = parts_of(network("swin"))
    others, _ = parts_of(network("swin", seed=1))
    probes = {k: tensors[k] for k in ("probe_inputs", "probe_outputs")}
    with pytest.raises(IdentityError, match=r"cache/tail: the tail isn't the one that was stored.*0.0001"):
        load_tail(others | probes, about, "cache/tail")
    with pytest.raises(IdentityError, match=r"another teacher's; found .*; allowed: ours"):
        load_tail(tensors, about, "cache/tail", teacher="ours")
    load_tail(tensors, about, "cache/tail", teacher=about["teacher"])
    # A single number that moved.
    key = "tail.stage.downsample.reduction.weight"
    bent = tensors[key].clone()
    bent[0, 0] += 1
    for weight in (bent, bent * torch.nan):
        with pytest.raises(IdentityError, match="its outputs for the probes differ"):
            load_tail(tensors | {key: weight}, about, "cache/tail")


def test_parts_that_lack_something_are_refused():
    tensors, about = parts_of(network("slak"))
    lacking = {k: v for k, v in tensors.items() if k != "tail.stage.blocks.0.gamma"}
    with pytest.raises(TeacherError, match=r"cache/tail: .*aren't those of slak_nano's stages.3: .*Missing key"):
        load_tail(lacking, about, "cache/tail")
    with pytest.raises(TeacherError, match=r"aren't those of slak_nano's stages.9"):
        load_tail(tensors, about | {"stage": "stages.9"}, "cache/tail")
    with pytest.raises(CacheError, match="cache/tail: the part lacks probe_inputs"):
        load_tail({k: v for k, v in tensors.items() if k != "probe_inputs"}, about, "cache/tail")


@pytest.mark.parametrize(
    ("model", "kwargs", "size", "message"),
    [
        ("vit_tiny_patch16_224", {"img_size": 32, "depth": 1}, 32, "doesn't take one map and give one; found blocks.0"),
        ("efficientnet_b0", {}, 32, "the final map isn't the last stage's, nor a norm of it; found blocks.6"),
        ("densenet121", {"block_config": (1, 1)}, 32, "no last stage that can be taken out; found DenseNet"),
        ("tests.tiny:network", {}, 16, "no last stage that can be taken out; found Sequential"),
    ],
)
def test_networks_without_a_tail_are_named(model, kwargs, size, message):
    built = build(ModelConfig(model=model, model_kwargs=kwargs, num_classes=7, input_size=size))
    built.module.eval()
    with pytest.raises(TeacherError, match=rf"^{model}: .*{message}.*cap-dfm does without"):
        tail_parts(built.module, built, images(built, 2), "digest")


def test_a_map_that_may_lie_either_way_gives_no_tail():
    built = network("resnet")
    built.module.num_features = None
    with pytest.raises(TeacherError, match=r"^resnet10t: the model doesn't declare whether.*Set output_fmt"):
        parts_of(built)
    built.module.output_fmt = "NCHW"
    assert parts_of(built)[1]["channels_last"] is False


@pytest.mark.parametrize("name", LAYOUT)
def test_head_is_the_classifier(name):
    built = network(name)
    head = load_head(head_parts(built.module, built, images(built, 6)), "cache/head")
    x = images(built, 3, seed=9)
    with torch.no_grad():
        pooled = built.module.forward_head(built.module.forward_features(x), pre_logits=True)
        torch.testing.assert_close(head(pooled), built.module(x))
    assert not any(p.requires_grad for p in head.parameters())


def test_heads_that_are_not_linear_are_refused():
    built = network("convnext")
    linear = built.module.head.fc
    x = images(built, 4)

    class Cosine(nn.Linear):
        def forward(self, x):
            return nn.functional.normalize(x) @ nn.functional.normalize(self.weight).T

    built.module.head.fc = Cosine(linear.in_features, CLASSES)
    with pytest.raises(TeacherError, match=r"convnext_atto: logits aren't a linear function.*--targets dense"):
        head_parts(built.module, built, x)
    built.module.head.fc = nn.Sequential(linear, nn.ReLU())
    with pytest.raises(TeacherError, match=r"convnext_atto: the classifier isn't linear; found Sequential.*dense"):
        head_parts(built.module, built, x)
    tiny = build(ModelConfig(model="tests.tiny:network", num_classes=7, input_size=16))
    with pytest.raises(TeacherError, match=r"no classifier can be taken out.*--targets dense"):
        head_parts(tiny.module, tiny, images(tiny, 2))


def test_a_linear_head_without_bias_has_one_of_zeros():
    built = network("convnext")
    built.module.head.fc = nn.Linear(32, CLASSES, bias=False)
    tensors = head_parts(built.module, built, images(built, 4))
    assert not tensors["bias"].any()
    load_head(tensors, "cache/head")


def test_swapped_heads_are_refused():
    ours, theirs = (head_parts(b.module, b, images(b, 4)) for b in (network("slak"), network("slak", seed=1)))
    with pytest.raises(IdentityError, match="cache/head: the head isn't the one that was stored"):
        load_head(ours | {"weight": theirs["weight"]}, "cache/head")
    with pytest.raises(CacheError, match="the part lacks weight"):
        load_head({k: v for k, v in ours.items() if k != "weight"}, "cache/head")
