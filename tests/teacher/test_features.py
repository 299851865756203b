"""A teacher's features: of the forward that gives the logits, as maps have them, in every form it is run in."""

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from kdpipe.errors import TeacherError
from kdpipe.models import ModelSpec
from kdpipe.teacher import Teacher, TeacherConfig
from kdpipe.teacher.outputs import WithFeatures, as_map, channels_last
from tests.models.small import difference
from tests.teacher.networks import CLASSES, NETWORKS, network

BOTH = ("pooled", "map")
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "reg_tokens": 3}
MORE = {"vit": ("vit_tiny_patch16_224", VIT, 32)}


@pytest.fixture(params=[*NETWORKS, *MORE])
def built(request, monkeypatch) -> ModelSpec:
    for name, said in MORE.items():
        monkeypatch.setitem(NETWORKS, name, said)
    return network(request.param)


def settings(built: ModelSpec, folder, **changes: object) -> TeacherConfig:
    path = folder / "w.safetensors"
    save_file(built.module.state_dict(), path)
    said = {"model": built.name, "model_kwargs": built.kwargs, "weights": str(path), "num_classes": CLASSES}
    how = {"input_size": built.input_size, "batch_size": 4, "threads": 1, "device": "cpu"}
    return TeacherConfig.model_validate({**said, **how, **changes})


def views(built: ModelSpec, count: int = 6) -> np.ndarray:
    shape = (count, built.input_size, built.input_size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def expected(built: ModelSpec, images: np.ndarray) -> dict[str, torch.Tensor]:
    """By timm's own methods, on the network as it was trained."""
    mean, std = (torch.tensor(x)[:, None, None] for x in (built.mean, built.std))
    x = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.no_grad():
        final = built.module.forward_features(x)
        pooled = built.module.forward_head(final, pre_logits=True)
        logits = built.module(x)
        if final.ndim == 3:
            tokens = final[:, getattr(built.module, "num_prefix_tokens", 0) :].transpose(1, 2)
            final = tokens.unflatten(2, (int(tokens.shape[2] ** 0.5), -1))
        elif "swin" in built.name:
            final = final.permute(0, 3, 1, 2)
    return {"logits": logits, "pooled": pooled, "map": final}


@pytest.mark.parametrize("form", ["eager", "merged"])
def test_features_are_those_of_timms_methods(built, tmp_path, form):
    teacher, images = Teacher(settings(built, tmp_path, form=form)), views(built)
    alone = teacher(images)
    assert (alone.pooled, alone.map) == (None, None)
    teacher.set_features(BOTH)
    said, wanted = teacher(images), expected(built, images)
    assert torch.equal(said.logits, alone.logits)
    for name, x in said.parts().items():
        assert x.dtype == torch.float32
        assert x.is_contiguous()
        assert x.shape == wanted[name].shape
        assert difference(x, wanted[name]) < 1e-5
    with torch.no_grad():
        assert difference(built.module.get_classifier()(said.pooled), said.logits) < 1e-5


def test_shapes_are_those_of_tokens(built, tmp_path):
    teacher = Teacher(settings(built, tmp_path))
    said = expected(built, views(built, 1))
    d, h, w = said["map"].shape[1:]
    assert teacher.shapes(BOTH) == {"pooled": (said["pooled"].shape[1],), "map": (h, w, d)}
    assert teacher.shapes(("map",)) == {"map": (h, w, d)}
    assert teacher.features == ()


@pytest.fixture
def slak() -> ModelSpec:
    return network("slak")


def test_one_feature_alone_and_none_again(slak, tmp_path):
    teacher, images = Teacher(settings(slak, tmp_path)), views(slak)
    teacher.set_features(["map"])
    assert [name for name, x in teacher(images)._asdict().items() if x is not None] == ["logits", "map"]
    teacher.set_features(["map", "pooled"])
    assert teacher.features == BOTH
    teacher.set_features(())
    assert list(teacher(images).parts()) == ["logits"]


def test_the_features_of_a_view_do_not_depend_on_its_neighbours(slak, tmp_path):
    teacher, images = Teacher(settings(slak, tmp_path)), views(slak, 9)
    teacher.set_features(BOTH)
    whole = teacher(images)
    for rows in (slice(0, 4), slice(8, 9)):
        part = teacher(images[rows])
        assert torch.equal(part.map, whole.map[rows])
        assert torch.equal(part.pooled, whole.pooled[rows])


def test_under_autocast_they_are_float32(slak, tmp_path):
    teacher = Teacher(settings(slak, tmp_path, amp_dtype="bfloat16"))
    teacher.set_features(BOTH)
    said = teacher(views(slak))
    assert {x.dtype for x in said.parts().values()} == {torch.float32}
    assert 1e-5 < difference(said.map, expected(slak, views(slak))["map"]) < 0.1


LAYERS = {"stages.0.blocks.0.mlp.fc1": "convolved", "stages.3.blocks.0.mlp.fc2": "convolved"}


@pytest.mark.parametrize("first", ["features", "layers"])
def test_in_other_ways_they_are_the_same(slak, tmp_path, first):
    teacher, images = Teacher(settings(slak, tmp_path)), views(slak)
    if first == "features":
        teacher.set_features(BOTH)
        teacher.apply_plan(LAYERS)
    else:
        teacher.apply_plan(LAYERS)
        teacher.set_features(BOTH)
    assert (teacher.layers, teacher.features) == (LAYERS, BOTH)
    for name, x in teacher(images).parts().items():
        assert difference(x, expected(slak, images)[name]) < 1e-5
    teacher.apply_plan({})
    assert teacher.features == BOTH


@pytest.mark.slow
def test_compiled_they_are_the_same(slak, tmp_path):
    built = slak
    teacher, images = Teacher(settings(built, tmp_path, layers={"": "compiled"})), views(built)
    teacher.set_features(BOTH)
    assert teacher.layers == {"": "compiled"}
    for part, x in teacher(images).parts().items():
        assert x.is_contiguous()
        assert difference(x, expected(built, images)[part]) < 1e-5


def users_teacher(kind: str, **changes: object) -> Teacher:
    said = {"model": "tests.teacher.users:users", "model_kwargs": {"kind": kind}, "num_classes": CLASSES}
    how = {"input_size": 16, "batch_size": 4, "threads": 1, "device": "cpu", "form": "eager"}
    return Teacher(TeacherConfig.model_validate({**said, **how, **changes}))


LEAVE_MAP, LEAVE_BOTH = r"Leave out targets\.map", r"Leave out targets\.pooled and targets\.map"
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("lies", rf"with its features, the model's output differs.*found .* of the largest logit.*{LEAVE_BOTH}"),
        ("raises", rf"the model can't give its features: RuntimeError: not today\. {LEAVE_BOTH}"),
        ("tokens", rf"the model's tokens make no square map; found 15 tokens\. {LEAVE_MAP}"),
        ("class token", rf"they are no map; found 1 tokens, num_prefix_tokens 0\. {LEAVE_MAP}"),
        ("several", rf"the model's final features are no map; found tuple\. {LEAVE_MAP}"),
        ("pooled", r"what its classifier sees is no vector; found \(5, 1\)\. Leave out targets\.pooled"),
        (
            "silent",
            r"whether its final map has its channels first or last; found a map of 5 x 4 x 4, num_features None, "
            r"no output_fmt\. Set output_fmt on the network \(NCHW or NHWC\), or num_features, the channels of the map",
        ),
        ("silent last", r"found a map of 4 x 4 x 5, num_features None, no output_fmt\. Set output_fmt .*"),
        ("in place", r"forward_head writes into what it is given.*not relu_\), or leave out targets\.map"),
        (
            "a view in place",
            r"forward_head writes into what it is given.*or leave out targets\.map and targets\.pooled",
        ),
    ],
)
def test_networks_that_cannot_give_them_are_named(kind, message):
    teacher = users_teacher(kind)
    before = teacher(IMAGES)
    with pytest.raises(TeacherError, match=rf"^tests\.teacher\.users:users: .*{message}$"):
        teacher.set_features(BOTH)
    assert teacher.features == ()
    assert torch.equal(teacher(IMAGES).logits, before.logits)


@pytest.mark.parametrize("kind", ["class token", "in place", "silent"])
def test_without_its_map_such_a_network_serves(kind):
    teacher = users_teacher(kind)
    teacher.set_features(["pooled"])
    assert teacher(IMAGES).pooled.shape == (3, 5)


def test_a_head_that_writes_would_have_altered_the_map():
    """What is refused: the map with its negative values gone."""
    teacher = users_teacher("in place")
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        said = WithFeatures(teacher.built.module, BOTH)(x)
        assert (teacher.built.module.forward_features(x) < 0).any()
    assert (said.map >= 0).all()


def test_a_single_token_is_no_map_and_a_single_place_is():
    """PiT gives its class token alone; a network of small images may have one place left, or a state with one."""
    pit = timm.create_model("pit_ti_224", depth=(1, 1, 1)).eval()
    one = torch.zeros(2, 1, 6)
    with torch.no_grad():
        final = pit.forward_features(torch.zeros(1, 3, 224, 224))
    users = users_teacher("right").built.module
    for model, x in ((pit, final), (users, one), (users, one[:, :0])):
        with pytest.raises(TeacherError, match="class's token alone"):
            as_map(model, x)
    assert as_map(users, torch.zeros(2, 5, 1, 1)).shape == (2, 5, 1, 1)


@pytest.mark.parametrize("said", ["NHWC", "Format.NHWC", "nhwc"])
def test_what_a_network_says_of_its_layout_comes_first(said):
    """Also where the sides are alike, or its num_features is another layer's."""
    model = nn.Module()
    model.num_features, model.output_fmt = 4, said
    assert channels_last(model, torch.zeros(1, 4, 4, 5))
    model.output_fmt = "NCHW"
    assert not channels_last(model, torch.zeros(1, 4, 4, 4))
    model.output_fmt = None
    for shape in ((1, 4, 4, 4), (1, 5, 4, 5)):
        with pytest.raises(TeacherError, match=r"^net: the model doesn't declare"):
            channels_last(model, torch.zeros(shape), "net")


@pytest.mark.parametrize("kind", ["right", "last", "silent stated", "silent last stated"])
def test_a_users_own_network_gives_them(kind):
    teacher = users_teacher(kind)
    teacher.set_features(BOTH)
    said = teacher(IMAGES)
    assert said.map.shape == (3, 5, 4, 4)
    torch.testing.assert_close(said.pooled, said.map.mean((2, 3)))


@pytest.mark.parametrize("late", [False, True])
def test_a_merge_that_changes_features_is_refused(late):
    """Its logits are the same; asked for features only after the first batch, it is compared again."""
    teacher = users_teacher("moves", form="merged")
    assert teacher.numerics()["form"] == "merged"
    if late:
        teacher(IMAGES)
    teacher.set_features(BOTH)
    with pytest.raises(TeacherError, match=r"merged, the model's output differs.*of the largest pooled feature"):
        teacher(IMAGES)


def test_factories_without_them_and_ensembles_are_refused():
    said = {"num_classes": 7, "input_size": 16, "batch_size": 4, "threads": 1}
    alone = {"model": "tests.tiny:network"}
    with pytest.raises(
        TeacherError, match=r"tiny:network: the model has no forward_features.*Give it forward_features"
    ):
        Teacher(TeacherConfig.model_validate(said | alone)).set_features(["pooled"])
    several = Teacher(TeacherConfig.model_validate(said | {"members": [alone, alone]}))
    with pytest.raises(
        TeacherError, match=r"several models as one have no features.*found map. Leave out targets.map$"
    ):
        several.set_features(["map"])
    with pytest.raises(TeacherError, match=r"several models as one have no last stage.*\. Leave out targets\.tail$"):
        several.original()
    several.set_features(())
    with pytest.raises(TeacherError, match=r"no such feature; found logits; allowed: pooled, map"):
        several.set_features(["logits"])


def test_the_plain_network_is_as_it_was_loaded(slak, tmp_path):
    teacher = Teacher(settings(slak, tmp_path))
    for _ in range(2):  # the one that the merged form waits to be compared with; built again
        plain = teacher.original()
        state = slak.module.state_dict()
        assert plain.state_dict().keys() == state.keys()
        assert all(torch.equal(tensor, state[key]) for key, tensor in plain.state_dict().items())
        teacher(views(slak))


def test_weights_that_nobody_keeps_are_not_the_plain_networks():
    teacher = Teacher(TeacherConfig(model="torch.nn:Identity", num_classes=3, input_size=4, batch_size=1, device="cpu"))
    assert isinstance(teacher.original(), nn.Identity)
    teacher = users_teacher("right", model="tests.teacher.users:other_every_time")
    with pytest.raises(TeacherError, match="built once more, the model has other weights"):
        teacher.original()
