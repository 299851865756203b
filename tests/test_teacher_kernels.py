"""Other ways to compute a layer: the same numbers, chosen by timing, obeyed by whoever goes on."""

import json
from copy import deepcopy

import numpy as np
import pytest
import timm
import torch
from torch import nn

from kdpipe.cache import Cache, Store
from kdpipe.caching import CachingConfig, cache_views
from kdpipe.errors import IdentityError, TeacherError
from kdpipe.models import Cropped, croppable
from kdpipe.models.crop import crop
from kdpipe.targets import TargetsConfig
from kdpipe.teacher import Teacher, TeacherConfig
from kdpipe.teacher import teacher as teachers
from kdpipe.teacher.tune import search
from kdpipe.teacher.tune.kernels import WAYS, Kernel, ways_of
from kdpipe.teacher.tune.plan import apply
from kdpipe.teacher.tune.search import Kind, interleaved, kinds
from tests.stages.running import kdpipe
from tests.tiny import CLASSES, SIZE, VIEWS, teacher

FORMATS = [torch.contiguous_format, torch.channels_last]


def depthwise(sides: tuple[int, int], channels: int = 6, bias: bool = True) -> nn.Conv2d:
    padding = (sides[0] // 2, sides[1] // 2)
    return nn.Conv2d(channels, channels, sides, padding=padding, groups=channels, bias=bias).eval()


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def large(num_classes: int = CLASSES) -> nn.Module:
    """One layer of each kind that has several ways, for images of 16 pixels; the same weights everywhere."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Large(num_classes)


class Large(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.upright, self.level, self.square = (depthwise(s, 8) for s in ((13, 3), (3, 13), (11, 11)))
        self.mlp, self.head = nn.Linear(8, 8), nn.Linear(8, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.square(self.upright(x) + self.level(x))
        x = torch.relu(self.mlp(x.permute(0, 2, 3, 1)))
        return self.head(x.mean((1, 2)))


class Awkward(nn.Module):
    def __init__(self, kind: str, num_classes: int) -> None:
        super().__init__()
        self.kind, self.stem, self.head = kind, nn.Conv2d(3, 8, 4, stride=4), nn.Linear(8, num_classes)
        self.conv = depthwise((13, 3), 8)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) if kind == "encoder" else None
        self.wide = nn.Linear(8, 8).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        if self.kind == "twice":
            return self.head(self.conv(x).mean((2, 3)) + self.conv(x[..., ::2, ::2]).mean((2, 3)))
        tokens = x.flatten(2).transpose(1, 2)
        tokens = self.encoder(tokens) if self.encoder else self.wide(tokens.double()).float()
        return self.head(tokens.mean(1))


def awkward(kind: str, num_classes: int = CLASSES) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Awkward(kind, num_classes)


EVERY = {"upright": "banded", "level": "contiguous", "square": "banded", "mlp": "convolved"}


def planned(**changes: object) -> Teacher:
    return teacher(model="tests.test_teacher_kernels:large", **changes)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sides", [(13, 3), (3, 13), (11, 9), (51, 5), (27, 27), (9, 1)])
@pytest.mark.parametrize("way", ["contiguous", "channels_last", "turned", "banded"])
@torch.inference_mode()
def test_a_depthwise_convolution_in_every_way(way, sides, bias):
    torch.manual_seed(0)
    conv = depthwise(sides, bias=bias)
    for layout in FORMATS:
        # Maps smaller than the kernel, and not square.
        x = torch.randn(3, 6, 7, 10).contiguous(memory_format=layout)
        y = WAYS[way](conv, tuple(x.shape))(x)
        same(y, conv(x))
        assert y.is_contiguous(memory_format=layout)


@torch.inference_mode()
def test_banded_under_autocast_answers_in_its_type():
    conv = depthwise((13, 3))
    with torch.autocast("cpu", torch.bfloat16):
        assert WAYS["banded"](conv, (2, 6, 8, 8))(torch.randn(2, 6, 8, 8)).dtype == torch.bfloat16


@pytest.mark.parametrize("shape", [(2, 5, 7, 12), (2, 9, 12)])
@torch.inference_mode()
def test_a_linear_layer_as_a_convolution(shape):
    torch.manual_seed(0)
    linear, x = nn.Linear(12, 5), torch.randn(shape)
    way = WAYS["convolved"](linear, shape)
    same(way(x), linear(x))
    assert way.original.weight.data_ptr() == linear.weight.data_ptr()


def test_which_layers_have_which_ways():
    assert ways_of(depthwise((13, 3)), (2, 6, 16, 16), True) == ("contiguous", "banded")
    assert ways_of(depthwise((13, 3)), (2, 6, 16, 16), False) == ("channels_last", "banded")
    assert ways_of(depthwise((3, 13)), (2, 6, 16, 16), True) == ("contiguous", "turned", "banded")
    # A matrix from every pixel to every other would be too large here.
    assert ways_of(depthwise((31, 31)), (2, 6, 56, 56), True) == ("contiguous",)
    assert ways_of(nn.Linear(4, 4), (2, 3, 4), True) == ("convolved",)
    none: list[tuple[nn.Module, tuple[int, ...]]] = [
        (depthwise((7, 7)), (2, 6, 16, 16)),
        (nn.Conv2d(6, 6, 13, padding=6), (2, 6, 16, 16)),
        (nn.Conv2d(6, 6, 13, padding=6, groups=6, stride=2), (2, 6, 16, 16)),
        (nn.Conv2d(6, 6, 13, groups=6), (2, 6, 16, 16)),
        (nn.Linear(4, 4), (2, 4)),
        (nn.ReLU(), (2, 6, 16, 16)),
    ]
    for module, shape in none:
        assert ways_of(module, shape, True) == ()


def test_a_matrix_is_for_maps_of_one_size():
    conv = depthwise((13, 3))
    with pytest.raises(ValueError, match="made for maps"):
        WAYS["banded"](conv, (2, 6, 16, 16))(torch.zeros(2, 6, 15, 16))


class TestCropping:
    @torch.inference_mode()
    def test_taps_that_no_map_reaches_are_cut(self):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), depthwise((51, 5), 4), nn.MaxPool2d(8), nn.Conv2d(4, 5, 3, padding=1)
        )
        x = torch.randn(2, 3, 8, 8)
        cut = deepcopy(model)
        crop(cut, croppable(cut, x))
        assert [m.kernel_size for m in cut if isinstance(m, nn.Conv2d)] == [(3, 3), (15, 5), (1, 1)]
        assert [type(m) for m in (cut[0], cut[1])] == [nn.Conv2d, Cropped]
        same(cut(x), model(x))
        # Smaller maps need even fewer; a larger one would need what is gone.
        same(cut[1](cut[0](x[..., :6])), model[1](model[0](x[..., :6])))
        with pytest.raises(ValueError, match="cropped"):
            cut[1](torch.zeros(1, 4, 9, 8))

    def test_a_layer_run_on_a_map_and_its_transpose_is_cut_for_neither(self):
        class Turning(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = depthwise((25, 25), 3)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.conv(x).mean() + self.conv(x.transpose(2, 3)).mean()

        assert croppable(Turning(), torch.zeros(1, 3, 4, 13)) == {}
        assert list(croppable(Turning(), torch.zeros(1, 3, 4, 12))) == ["conv"]

    def test_a_layer_run_at_two_sizes_is_cut_for_the_larger(self):
        conv = depthwise((13, 13), 3)

        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = conv

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.conv(x).mean() + self.conv(x[..., ::2, ::2]).mean()

        assert croppable(Twice(), torch.zeros(1, 3, 7, 7)) == {}
        assert list(croppable(Twice(), torch.zeros(1, 3, 5, 5))) == ["conv"]

    def test_a_teacher_of_small_maps_is_cropped_and_says_the_same(self):
        images = np.random.default_rng(0).integers(0, 256, (9, SIZE, SIZE, 3), dtype=np.uint8)
        eager, merged = planned(form="eager"), planned(form="merged")
        same(merged(images).logits, eager(images).logits)


class TestPlans:
    IMAGES = np.random.default_rng(0).integers(0, 256, (9, SIZE, SIZE, 3), dtype=np.uint8)

    def test_a_planned_teacher_says_the_same_and_says_how(self):
        plain, other = planned(), planned(layers=EVERY)
        same(other(self.IMAGES).logits, plain(self.IMAGES).logits)
        assert (plain.layers, other.layers) == ({}, EVERY)
        assert other.numerics()["layers"] == EVERY
        assert other.identity() == plain.identity()
        assert sum(isinstance(m, Kernel) for m in other.built.module.modules()) == 4

    def test_another_plan_replaces_it(self):
        one = planned(layers=EVERY)
        one.apply_plan({"upright": "contiguous"})
        assert one.layers == {"upright": "contiguous"}
        assert [type(m).__name__ for m in one.built.module.modules() if isinstance(m, Kernel)] == ["Contiguous"]
        one.apply_plan({})
        assert not any(isinstance(m, Kernel) for m in one.built.module.modules())
        assert torch.equal(one(self.IMAGES).logits, planned()(self.IMAGES).logits)

    @pytest.mark.parametrize("layers", [{"nothing": "banded"}, {"stem": "banded"}, {"mlp": "banded"}, {"mlp": "typo"}])
    def test_a_plan_that_does_not_fit(self, layers):
        with pytest.raises(TeacherError, match=r"teacher\.layers"):
            planned(layers=layers)

    def test_a_way_that_says_something_else_is_refused(self, monkeypatch):
        class Wrong(Kernel):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.original(x) * 1.001

        monkeypatch.setitem(WAYS, "convolved", Wrong)
        with pytest.raises(TeacherError, match="output differs"):
            planned(layers={"mlp": "convolved"})

    def test_members_have_their_own(self):
        member = {"model": "tests.test_teacher_kernels:large", "mean": (0.5,) * 3, "std": (0.25,) * 3}
        said = {"num_classes": CLASSES, "input_size": SIZE, "batch_size": 8, "threads": 1, "members": [member, member]}
        both = Teacher(TeacherConfig.model_validate({**said, "layers": {"1.mlp": "convolved"}}))
        assert both.layers == {"1.mlp": "convolved"}
        same(both(self.IMAGES).logits.exp(), planned()(self.IMAGES).logits.softmax(1))
        with pytest.raises(TeacherError, match="no member"):
            both.apply_plan({"2.mlp": "convolved"})

    def test_what_is_refused_is_run_plainly(self, monkeypatch):
        class Wrong(Kernel):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.original(x) * 1.001

        one = planned(layers={"upright": "banded"})
        monkeypatch.setitem(WAYS, "convolved", Wrong)
        with pytest.raises(TeacherError, match="output differs"):
            one.apply_plan({"mlp": "convolved"})
        assert one.layers == {}
        assert torch.equal(one(self.IMAGES).logits, planned()(self.IMAGES).logits)

    def test_a_network_may_look_at_the_layers_that_were_replaced(self):
        one = planned(layers=EVERY)
        mlp = one.built.module.mlp
        assert (type(mlp).__name__, mlp.in_features, mlp.weight.shape) == ("PointwiseKernel", 8, (8, 8))
        with pytest.raises(AttributeError, match="nothing"):
            _ = mlp.nothing

    def test_only_compiling_is_for_the_whole(self):
        with pytest.raises(TeacherError, match=r"no such way for a whole network.* found convolved; allowed: compiled"):
            planned(layers={"": "convolved"})

    @pytest.mark.slow
    def test_a_compiled_network_says_the_same(self):
        one = planned(layers={**EVERY, "": "compiled"})
        same(one(self.IMAGES).logits, planned()(self.IMAGES).logits)
        assert one.numerics()["layers"][""] == "compiled"
        one.apply_plan({})
        assert torch.equal(one(self.IMAGES).logits, planned()(self.IMAGES).logits)


class TestSearch:
    def test_the_least_of_several_runs_decides(self, monkeypatch):
        clock = {
            "a": iter([9.0, 2.0, 2.0, 2.0, 2.0, 2.0]),
            "b": iter([9.0, 2.5, 1.0, 3.0, 3.0, 3.0]),
            "c": iter([9.0, 4.0]),
        }
        monkeypatch.setattr(search, "timed", lambda run, device: next(clock[run()]))
        runs = {name: lambda name=name: name for name in clock}
        # c was hopeless after its first: its iterator would end.
        assert interleaved(runs, torch.device("cpu"), repeats=5) == {"a": 2.0, "b": 1.0, "c": 4.0}

    def test_what_cant_run_is_no_candidate(self):
        def fails() -> None:
            raise RuntimeError("out of memory")

        assert list(interleaved({"plain": lambda: None, "way": fails}, torch.device("cpu"))) == ["plain"]

    @pytest.mark.parametrize(("faster", "expected"), [(1.5, "convolved"), (1.01, None), (0.5, None)])
    def test_a_layer_changes_its_way_for_a_gain(self, monkeypatch, faster, expected):
        monkeypatch.setattr(search, "interleaved", lambda runs, *_: {"plain": 1.0, "convolved": 1.0 / faster})
        kind = Kind(["mlp"], nn.Linear(4, 4), (2, 3, 4), torch.float32, ("convolved",))
        assert search.fastest(kind, torch.zeros(1), 0.0, channels_last=True) == expected

    def test_layers_that_cost_the_same_are_timed_once(self):
        model = timm.create_model("slak_nano").eval()
        found = kinds(model, torch.zeros(1, 3, 32, 32), channels_last=True)
        names = [name for kind in found for name in kind.names]
        assert len(names) == len(set(names))
        assert any(len(kind.names) > 1 for kind in found)
        assert "head.fc" not in names

    def test_a_long_run_searches_and_a_short_one_does_not(self, monkeypatch):
        monkeypatch.setattr("kdpipe.teacher.runner.search", lambda *_, **__: {"mlp": "convolved"})
        one = planned()
        one(TestPlans.IMAGES)
        one.search(3)
        assert one.layers == {}
        one.search(10**7, at_most=30)
        assert one.layers == {"mlp": "convolved"}

    @pytest.mark.parametrize("changes", [{"form": "merged"}, {"form": "eager"}, {"layers": {}}])
    def test_who_says_how_gets_that(self, monkeypatch, changes):
        monkeypatch.setattr("kdpipe.teacher.runner.search", lambda *_, **__: {"mlp": "convolved"})
        one = planned(**changes)
        one.search(10**7, at_most=30)
        assert one.layers == {}

    @pytest.mark.parametrize("kind", ["twice", "double", "encoder"])
    def test_networks_that_are_not_for_it_run_as_they_did(self, monkeypatch, kind):
        """Every way is as fast as can be; but a layer may run at two sizes, in float64, or be read by its owner."""
        monkeypatch.setattr(search, "_GAIN", -1e9)
        one = teacher(model="tests.test_teacher_kernels:awkward", model_kwargs={"kind": kind})
        before = one(TestPlans.IMAGES).logits
        one.search(10**7, at_most=5)
        same(one(TestPlans.IMAGES).logits, before)
        again = one.layers
        one.search(10**7, at_most=5)
        assert one.layers == again

    def test_a_search_that_fails_leaves_a_plain_teacher(self, monkeypatch):
        def fails(*_: object, **__: object) -> None:
            raise MemoryError

        monkeypatch.setattr("kdpipe.teacher.runner.search", fails)
        one = planned(layers=None)
        one(TestPlans.IMAGES)
        one.search(10**7, at_most=5)
        assert one.layers == {}

    def test_found_for_real(self):
        one = planned()
        one(TestPlans.IMAGES)
        one.search(10**5, at_most=30)
        same(one(TestPlans.IMAGES).logits, planned()(TestPlans.IMAGES).logits)


class TestCaches:
    @pytest.fixture
    def searching(self, monkeypatch):
        """Every search, however short, finds this; what was found is written down."""
        found = [{"mlp": "convolved"}]
        monkeypatch.setattr(teachers, "_LEAST", 0.0)
        monkeypatch.setattr("kdpipe.teacher.runner.search", lambda *_, **__: dict(found[0]))
        return found

    def cached(self, folder, world, views, **changes):
        return cache_views(
            str(folder),
            world.index,
            VIEWS,
            planned(**changes),
            TargetsConfig(k=3),
            views,
            caching=CachingConfig(render_threads=1),
        )[0]

    def test_what_was_begun_in_one_way_goes_on_in_it(self, tmp_path, world, searching):
        cache = self.cached(tmp_path / "c", world, [0])
        assert [s.numerics["layers"] for s in cache.segments] == [{"mlp": "convolved"}]
        searching[0] = {"upright": "contiguous"}
        # Views that are added, too: only a new cache is searched for.
        cache = self.cached(tmp_path / "c", world, [0, 1])
        assert [s.numerics["layers"] for s in cache.segments] == 2 * [{"mlp": "convolved"}]
        other = self.cached(tmp_path / "d", world, [0])
        assert [s.numerics["layers"] for s in other.segments] == [{"upright": "contiguous"}]

    def test_who_insists_on_another_way_is_refused(self, tmp_path, world, searching):
        cache = self.cached(tmp_path / "c", world, [0])
        name = next(n for n in Store(str(tmp_path / "c")).files("commits") if ".tar" in n)
        Store(str(tmp_path / "c")).remove(name)
        with pytest.raises(IdentityError, match="layers"):
            self.cached(tmp_path / "c", world, [0], layers={})
        again = self.cached(tmp_path / "c", world, [0])
        assert again.root_digest() == cache.root_digest()

    def test_verify_runs_the_teacher_as_it_was_run(self, tmp_path, world, searching):
        self.cached(tmp_path / "c", world, [0])
        report = json.loads(kdpipe("verify", tmp_path / "c", "--trust", "tests", "--samples", 64, "--json").out)
        assert report["truth"]["ok"]
        assert report["truth"]["difference"] == 0
        assert Cache(Store(str(tmp_path / "c"))).segments[0].numerics["layers"] == {"mlp": "convolved"}


def test_apply_needs_a_layer_that_runs():
    model = large().eval()
    model.unused = nn.Linear(3, 3)
    with pytest.raises(TeacherError, match="no such layer"):
        apply(model, {"unused": "convolved"}, torch.zeros(1, 3, SIZE, SIZE), "m", channels_last=True)
