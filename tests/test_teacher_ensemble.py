"""Several models that teach as one: their mean, who they are, and which don't go together."""

import json

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from kdpipe.cache import CacheReader
from kdpipe.caching import CachingConfig, cache_views
from kdpipe.errors import IdentityError, TeacherError
from kdpipe.models import weights_digest
from kdpipe.targets import TargetsConfig
from kdpipe.teacher import Teacher, TeacherConfig
from kdpipe.views import Erased, Normalize
from tests.stages.running import kdpipe, refused
from tests.tiny import CLASSES, SIZE, VIEWS, network, teacher

SAID = {"num_classes": CLASSES, "input_size": SIZE, "batch_size": 8, "threads": 1}
FEEDS = [((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)), ((0.4, 0.3, 0.2), (0.2, 0.5, 0.3))]
MEMBERS = [
    {"model": "tests.tiny:network", "model_kwargs": {"seed": seed, "width": 6 + seed}, "mean": mean, "std": std}
    for seed, (mean, std) in enumerate(FEEDS)
]


def config(**changes: object) -> TeacherConfig:
    return TeacherConfig.model_validate(SAID | {"members": MEMBERS} | changes)


@pytest.fixture
def relative(tmp_path, monkeypatch):
    """Members whose weights are named as seen from the present folder, and a way to leave it."""
    members = []
    for seed in (0, 1):
        save_file(network(seed=7 + seed).state_dict(), tmp_path / f"{seed}.safetensors")
        members.append({"model": "tests.tiny:network", "weights": f"{seed}.safetensors"})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    return members, lambda: monkeypatch.chdir(tmp_path / "elsewhere")


@pytest.mark.parametrize("combine", ["log-probs", "logits"])
@pytest.mark.parametrize("erasing", [False, True])
def test_the_answer_is_the_members_mean(combine, erasing):
    images = np.random.default_rng(0).integers(0, 256, (11, SIZE, SIZE, 3), dtype=np.uint8)
    boxes = np.tile(np.array([2, 3, 5, 9], np.int16), (11, 1, 1))
    erased = Erased(boxes, True) if erasing else None
    answers = []
    for seed, (mean, std) in enumerate(FEEDS):
        # The noise is the same for both, in the units that each one sees.
        x = Normalize(mean, std)(torch.from_numpy(images), erased)
        with torch.no_grad():
            logits = network(seed=seed, width=6 + seed)(x)
        answers.append(logits.log_softmax(1) if combine == "log-probs" else logits)
    said = Teacher(config(combine=combine))(images, erased).logits
    assert said.dtype == torch.float32
    torch.testing.assert_close(said, (answers[0] + answers[1]) / 2, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(said, answers[0], atol=0.1)


def test_a_single_teacher_is_who_it_was():
    assert teacher().identity() == {
        "model": "tests.tiny:network",
        "model_kwargs": {},
        "weights": weights_digest(network()),
        "num_classes": CLASSES,
        "input_size": SIZE,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
    }


def test_an_ensemble_is_its_members_in_their_order_and_how_they_are_combined():
    identity = Teacher(config()).identity()
    alone = [Teacher(TeacherConfig.model_validate(SAID | member)) for member in MEMBERS]
    assert identity["members"] == [one.identity() for one in alone]
    assert (identity["combine"], identity["num_classes"], identity["input_size"]) == ("log-probs", CLASSES, SIZE)
    assert identity["model"] == "tests.tiny:network + tests.tiny:network"
    assert identity["weights"] not in [one.weights for one in alone]
    assert json.loads(json.dumps(identity)) == identity
    turned = Teacher(config(members=MEMBERS[::-1])).identity()
    assert turned["members"] == identity["members"][::-1]
    assert turned["weights"] != identity["weights"]
    assert Teacher(config()).numerics() == alone[0].numerics()


def test_a_cache_of_an_ensemble_is_refused_to_another(world, tmp_path):
    def make(**changes):
        who = Teacher(config(**changes))
        few = CachingConfig(render_threads=1)
        return cache_views(str(tmp_path / "c"), world.index, VIEWS, who, TargetsConfig(k=4), ["center"], caching=few)[0]

    cache = make()
    assert CacheReader(str(tmp_path / "c"), world.index, VIEWS, num_classes=CLASSES).views == ["center"]
    assert cache.num_classes == CLASSES
    with pytest.raises(IdentityError, match=r"another teacher\.combine; found logits now; allowed: log-probs as"):
        make(combine="logits")
    with pytest.raises(IdentityError, match=r"another teacher\.members\[0\]\.mean\[0\] "):
        make(members=MEMBERS[::-1])
    with pytest.raises(IdentityError, match=r"another teacher\.members"):
        make(members=[*MEMBERS, MEMBERS[0]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "resnet18"}, r"^teacher\.model: a teacher has one model or members, not both; found resnet18"),
        ({"mean": (0.1, 0.1, 0.1)}, r"^teacher\.mean: a teacher has one model or members"),
        (
            {"num_classes": None, "members": [MEMBERS[0], {**MEMBERS[1], "num_classes": 9}]},
            r"^teacher\.members\[1\]: tests\.tiny:network: members have different numbers of classes; found 9; "
            rf"allowed: {CLASSES}",
        ),
        (
            {"members": [MEMBERS[0], {**MEMBERS[1], "input_size": 24}]},
            rf"members\[1\]: tests\.tiny:network: members see views of different sizes; found 24; allowed: {SIZE}\. "
            "Set teacher.input_size",
        ),
        ({"members": [MEMBERS[0], {"model": "resnet18"}]}, r"^teacher\.members\[1\]: resnet18: teacher has no weights"),
        ({"members": [{"weights": "nowhere.pth"}]}, r"^teacher\.members\[0\]: nowhere\.pth: weights not found"),
    ],
)
def test_what_does_not_go_together_is_one_line(changes, message):
    with pytest.raises(TeacherError, match=message):
        Teacher(config(**changes), CLASSES)


@pytest.mark.filterwarnings("ignore")  # dask leaves sockets to the garbage collector
def test_workers_elsewhere_find_the_members_weights(relative):
    from distributed import Client, LocalCluster

    from kdpipe.caching.cluster import Cluster

    members, leave = relative
    asked = config(members=members, mean=None, std=None)
    here = Teacher(asked)
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        workers = Cluster(client, asked, None)
        leave()
        assert workers.describe().identity == here.identity()


def test_members_come_from_a_params_file(world, relative):
    members, leave = relative
    said = {"teacher": {**SAID, "members": members, "combine": "logits"}, "views": {"interpolation": "bilinear"}}
    with open("mine.yaml", "w") as file:
        yaml.safe_dump(said, file)
    shards = ("--index", world.index_path)
    cached = kdpipe("cache-teacher", *shards, "--config", "mine.yaml", "--out", "c.zarr", "--views", "center")
    assert cached.code == 0, cached.err
    assert "has one model or members" in refused(
        "cache-teacher", *shards, "--config", "mine.yaml", "--teacher", "resnet18", "--out", "d.zarr"
    )
    leave()
    checked = kdpipe("verify", "../c.zarr", "--teacher", "tests.tiny:network", "--samples", 40, "--json")
    assert checked.code == 0, checked.out
    assert json.loads(checked.out)["truth"]["ok"]
    scored = kdpipe("inspect", "../c.zarr", "--json", "--no-statistics")
    assert json.loads(scored.out)["identity"]["teacher"]["combine"] == "logits"


def test_a_member_is_set_like_a_teacher(world, tmp_path):
    line = refused(
        "cache-teacher", "--index", world.index_path, "--out", tmp_path, "--set", "teacher.members=[{wights: w}]"
    )
    assert line.startswith("error: --set: teacher.members.0.wights: unknown key; allowed: checkpoint_key, class_map,")


def test_evaluate_scores_an_ensemble_or_the_model_that_is_named(world, relative):
    members, _ = relative
    flags = ("--index", world.index_path, "--json", "--set", f"teacher.members={json.dumps(members)}")
    sets = [word for name, value in SAID.items() for word in ("--set", f"teacher.{name}={value}")]
    together = kdpipe("evaluate", *flags, *sets)
    alone = kdpipe("evaluate", "0.safetensors", "--model", "tests.tiny:network", *flags, *sets)
    assert (together.code, alone.code) == (0, 0)
    assert json.loads(together.out)["nll"] != json.loads(alone.out)["nll"]
