"""ScaleKD and CAP+DFM: what they add up to, that every adapter learns, and from teachers of two kinds that it falls."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from kdpipe.errors import TargetsError, TrainingError
from kdpipe.losses.config import CapDfmConfig, ScaleKdConfig
from kdpipe.losses.dfm import frequency, spatial
from kdpipe.losses.inputs import Context, FeatureShapes, StudentOutput, TeacherInfo
from kdpipe.losses.scalekd import CapDfm, ScaleKd
from kdpipe.targets import Labels, Targets
from kdpipe.teacher import Tail, load_tail
from tests.losses.logits import mean_ce, softmax
from tests.teacher.networks import CLASSES, images, network, parts_of

ROWS = 8
FEATURES = ("spat_tail", "freq_tail", "spat", "freq")


class Small(nn.Module):
    """A student whose maps are of other widths and sides than any teacher's."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(3, 16, 6, stride=6), nn.BatchNorm2d(16), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(16, 24, 3, padding=1, stride=2), nn.BatchNorm2d(24), nn.ReLU())
        self.fc = nn.Linear(24, CLASSES)

    def forward(self, x: torch.Tensor) -> StudentOutput:
        s3 = self.one(x)
        s4 = self.two(s3)
        return StudentOutput(self.fc(s4.mean(dim=(2, 3))), None, (s3, s4))


class World:
    """A teacher with its tail, what it says of a few images, and an untrained student."""

    def __init__(self, name: str) -> None:
        built = network(name)
        tensors, about = parts_of(built, ROWS)
        self.tail: Tail = load_tail(tensors, about, "cache/tail")
        self.images = images(built, ROWS)
        with torch.no_grad():
            logits = built.module(self.images)
        final = tensors["probe_outputs"]  # the probes are these images
        self.targets = Targets(torch.log_softmax(logits, dim=1), dense=True, map=final)
        self.labels = Labels(torch.arange(ROWS) % CLASSES)
        torch.manual_seed(0)
        self.net = Small().train()
        self.sizes = FeatureShapes(CLASSES, 24, tuple(tuple(m.shape[1:]) for m in self.net(self.images).maps))
        self.info = TeacherInfo(CLASSES, map=tuple(final.shape[1:]), tail=self.tail)

    def scalekd(self, **config) -> ScaleKd:
        torch.manual_seed(1)
        return ScaleKd(ScaleKdConfig(**config), self.sizes, self.info).train()

    def __call__(self, loss, output: StudentOutput | None = None, **changes) -> dict[str, torch.Tensor]:
        output = self.net(self.images) if output is None else output
        told = {"labels": self.labels, "targets": self.targets, "context": Context(ROWS, ROWS)} | changes
        return loss(output, **told)


@pytest.fixture(scope="module")
def swin() -> World:
    return World("swin")


def fall(world: World, steps: int = 200, lr: float = 2e-3) -> int:
    """Train; the step after which each feature term is below two thirds of what it was."""
    loss = world.scalekd()
    optimizer = torch.optim.AdamW([*world.net.parameters(), *loss.parameters()], lr=lr)
    first: dict[str, float] = {}
    for step in range(steps + 1):
        parts = world(loss)
        now = {name: parts[name].item() for name in FEATURES}
        first = first or now
        if all(now[name] <= 2 / 3 * first[name] for name in FEATURES):
            return step
        optimizer.zero_grad()
        parts["loss"].backward()
        optimizer.step()
    raise AssertionError(f"from {first} to {now}")


@pytest.mark.parametrize("name", ["swin", "slak"])
def test_all_feature_terms_fall_by_a_third(name):
    assert fall(World(name)) <= 100


def test_all_feature_terms_fall_with_499_and_998_channels():
    world = World("slak-wide")
    assert (world.tail.in_shape[0], world.tail.out_shape[0]) == (499, 998)
    assert fall(world) <= 100


def test_its_total_in_numpy(swin):
    config = {"temperature": 2.0, "ce": 0.4, "kd": 0.3, "spat_tail": 0.2, "freq_tail": 0.5, "spat": 0.7, "freq": 0.9}
    loss = swin.scalekd(**config).eval()
    with torch.no_grad():
        output = swin.net(swin.images)
        found = swin(loss, output)
        s3, s4 = output.maps
        q, other = (swin.tail(cap(s3)) for cap in (loss.cap3_spat, loss.cap3_freq))
        t4 = swin.targets.map
        features = {
            "spat_tail": spatial(q, t4).mean(),
            "freq_tail": frequency(other, t4).mean(),
            "spat": spatial(loss.cap4_spat(s4, q), t4).mean(),
            "freq": frequency(loss.cap4_freq(s4, other), t4).mean(),
        }
    logits, teacher = (x.double().numpy() for x in (output.logits, swin.targets.log_probs))
    soft = -np.mean(np.sum(softmax(teacher / 2) * np.log(softmax(logits / 2)), axis=1)) * 4
    expected = {name: float(value) for name, value in features.items()}
    expected |= {"ce": mean_ce(logits, swin.labels.hard.numpy()), "kd": soft}
    expected["loss"] = sum(config[name] * value for name, value in expected.items())
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, rel=1e-6)
    assert all(value.dtype == torch.float32 and value.shape == () for value in found.values())


@pytest.mark.parametrize("name", ["ce", "kd", *FEATURES])
def test_removing_a_term_changes_the_loss_by_its_own_value(swin, name):
    with torch.no_grad():
        output = swin.net(swin.images)
        whole, without = (swin(swin.scalekd(**config), output) for config in ({}, {name: 0.0}))
    weight = getattr(ScaleKdConfig(), name)
    torch.testing.assert_close(whole["loss"] - without["loss"], weight * whole[name], rtol=0, atol=1e-6)


def test_every_adapter_gets_a_gradient_and_the_tail_none(swin):
    loss = swin.scalekd()
    swin(loss)["loss"].backward()
    for name, parameter in loss.named_parameters():
        # A key's bias moves every score of a query alike, which a softmax doesn't see.
        if not name.endswith(".k.bias"):
            assert parameter.grad.abs().max() > 0, name
    assert not any(name.startswith("tail") for name in loss.state_dict())
    # Gradients of what is behind the tail pass it.
    loss.zero_grad()
    swin(loss)["spat_tail"].backward()
    assert loss.cap3_spat.queries.grad.abs().max() > 0
    loss.zero_grad()
    swin(loss)["spat"].backward()
    assert loss.cap3_spat.queries.grad.abs().max() > 0  # queries aren't detached


def test_checkpoint_has_the_adapters_only(swin):
    loss = swin.scalekd()
    kept = loss.state_dict()
    other = swin.scalekd()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(kept)
    output = swin.net(swin.images)
    assert torch.equal(swin(loss.eval(), output)["loss"], swin(other.eval(), output)["loss"])
    assert sum(v.numel() for v in kept.values()) < sum(p.numel() for p in other.parameters()) + 1000


@pytest.mark.parametrize("name", ["swin", "slak"])
def test_half_precision_costs_little(name):
    world = World(name)
    output, loss = world.net(world.images), world.scalekd()
    full = world(loss, output)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = world(loss, output)
    assert all(value.dtype == torch.float32 for value in half.values())
    torch.testing.assert_close(half["loss"], full["loss"], rtol=1e-3, atol=0)
    # Adapters and tail are networks under autocast; of untrained ones L_freq sees nothing but what positions differ in.
    for part, value in full.items():
        torch.testing.assert_close(half[part], value, rtol=1e-2, atol=0)


@pytest.mark.parametrize("kind", ["scalekd", "cap-dfm"])
def test_ranks_add_up_to_the_batch(swin, kind):
    loss = swin.scalekd() if kind == "scalekd" else CapDfm(CapDfmConfig(), swin.sizes, swin.info)
    loss.eval()  # batch statistics are each rank's own
    output = swin.net(swin.images)
    whole = swin(loss, output)

    def part(rows: slice) -> dict[str, torch.Tensor]:
        own = StudentOutput(output.logits[rows], None, tuple(m[rows] for m in output.maps))
        targets = Targets(swin.targets.log_probs[rows], dense=True, map=swin.targets.map[rows])
        return loss(own, Labels(swin.labels.hard[rows]), targets, Context(ROWS, ROWS, 3))

    parts = [part(rows) for rows in (slice(0, 5), slice(5, 5), slice(5, None))]
    for name, value in whole.items():
        torch.testing.assert_close(sum(p[name] for p in parts) / 3, value, rtol=1e-5, atol=1e-6)


def test_cap_dfm_is_its_two_terms_and_falls(swin):
    torch.manual_seed(2)
    loss = CapDfm(CapDfmConfig(), swin.sizes, TeacherInfo(CLASSES, map=swin.info.map)).train()
    output = swin.net(swin.images)
    with torch.no_grad():
        maps = loss.cap_spat(output.maps[-1]), loss.cap_freq(output.maps[-1])
    found = swin(loss, output)
    assert found["spat"].item() == pytest.approx(spatial(maps[0], swin.targets.map).mean().item(), rel=1e-6)
    assert found["freq"].item() == pytest.approx(frequency(maps[1], swin.targets.map).mean().item(), rel=1e-6)
    expected = 0.08 * found["spat"].item() + 0.06 * found["freq"].item()
    assert found["loss"].item() == pytest.approx(expected, rel=1e-6)
    assert not CapDfmConfig.trains_classifier
    optimizer = torch.optim.AdamW(loss.parameters(), lr=2e-3)
    maps = StudentOutput(output.logits.detach(), None, tuple(m.detach() for m in output.maps))
    for _ in range(40):
        optimizer.zero_grad()
        now = swin(loss, maps)
        now["loss"].backward()
        assert all(p.grad is not None for p in loss.parameters())
        optimizer.step()
    assert all(now[name] < 2 / 3 * found[name] for name in ("spat", "freq"))


def test_needs():
    needs = ScaleKdConfig().requirements
    assert (needs.labels, needs.logits, needs.dense, needs.map, needs.tail, needs.maps) == (
        True,
        True,
        False,
        True,
        True,
        2,
    )
    assert ScaleKdConfig(temperature=4.0).requirements.dense
    assert not ScaleKdConfig(ce=0.0).requirements.labels
    assert not ScaleKdConfig(kd=0.0, temperature=4.0).requirements.dense
    needs = CapDfmConfig().requirements
    assert (needs.labels, needs.logits, needs.map, needs.tail, needs.maps) == (False, False, True, False, 1)


def test_what_does_not_go_together_is_refused(swin):
    config, tail, final = ScaleKdConfig(), swin.tail, swin.info.map
    with pytest.raises(TargetsError, match=r"scalekd: .*map feature.*--feature-map"):
        ScaleKd(config, swin.sizes, TeacherInfo(CLASSES, tail=tail))
    with pytest.raises(TargetsError, match=r"cap-dfm: .*map feature.*--feature-map"):
        CapDfm(CapDfmConfig(), swin.sizes, None)
    with pytest.raises(TargetsError, match=r"scalekd: .*last stage.*cache-teacher --last-stage.*kd\+cap-dfm"):
        ScaleKd(config, swin.sizes, TeacherInfo(CLASSES, map=final))
    with pytest.raises(TrainingError, match=r"other maps than were cached; found \(192, 2, 2\); allowed: \(64, 2, 2\)"):
        ScaleKd(config, swin.sizes, TeacherInfo(CLASSES, map=(64, 2, 2), tail=tail))
    with pytest.raises(TrainingError, match="last two stages; found 1"):
        ScaleKd(config, FeatureShapes(CLASSES, 24, swin.sizes.maps[-1:]), swin.info)
    with pytest.raises(TargetsError, match="scalekd: this loss needs the teacher's map feature"):
        swin(swin.scalekd(), targets=Targets(swin.targets.log_probs, dense=True))
    with pytest.raises(TargetsError, match="scalekd: this loss needs every class"):
        swin(swin.scalekd(temperature=2.0), targets=Targets(swin.targets.log_probs, map=swin.targets.map))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"ce": 0, "kd": 0}, "leaves the classifier untrained; use kd"),
        ({"head_widths": (0, 64)}, "at least 1, found"),
        ({"spat": -1}, "greater than or equal to 0"),
        ({"temperature": 0}, "greater than 0"),
    ],
)
def test_impossible_configs_are_refused(config, message):
    with pytest.raises(ValidationError, match=message):
        ScaleKdConfig(**config)
