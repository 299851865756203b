"""Fidelity: gradients of encoded targets against exact ones, and the document drawn from their errors."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from benchmarks.fidelity.advice import advice
from benchmarks.fidelity.scene import Scene, make_scene
from benchmarks.fidelity.student import Probe, Trained
from benchmarks.fidelity.uses import uses
from benchmarks.fidelity.ways import renormalised, ways
from safetensors.torch import save_file

from benchmarks.fidelity import command, live, numbers, page
from benchmarks.fidelity.run import Size, fidelity
from kdpipe.losses import LOSSES
from kdpipe.shards import Index, build_index
from kdpipe.targets import Targets
from kdpipe.teacher import Teacher, TeacherConfig
from kdpipe.views import ViewsConfig
from tests.benchmarks.running import benchmark, refused
from tests.shards.making import write_shards
from tests.threads import one_thread

SIZE, CLASSES = 32, 24
VIEWS = ViewsConfig(seed=5, scale=(0.5, 1.0), crop_pct=1.0, interpolation="bilinear")
# Its map has 2 x 2 positions: of a single one it makes no difference how it lies in memory.
TEACHER = {"depths": [1, 1, 1, 1], "dims": [8, 12, 16, 24], "patch_size": 2, "output_stride": 16, "kernel_sizes": 3}
QUICK = Size(steps=4, batches=1, rows=16, parity_steps=2)
HERE = {"date": "2026-03-02", "machine": "Abacus, 7 beads", "versions": {"python": "3.11.7"}}
KS, PARITY = (1, 5, 10, 16), {"kd", "rkd", "cap-dfm", "scalekd"}


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder / "shards", 2, 24, size=40, classes=CLASSES, seed=1, kind="png", name="train")
    return build_index(str(folder / "shards"), folder / "train.index", block_size=16)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher that knows nothing, but says it clearly."""
    torch.manual_seed(0)
    model = timm.create_model("convnext_atto", num_classes=CLASSES, **TEACHER)
    with torch.no_grad():
        model.head.fc.weight.mul_(20)
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_file(model.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def scene(index: Index, weights: Path) -> Scene:
    config = TeacherConfig(
        model="convnext_atto",
        model_kwargs=TEACHER,
        weights=str(weights),
        num_classes=CLASSES,
        input_size=SIZE,
        batch_size=16,
        device="cpu",
        form="merged",
    )
    return make_scene(index, VIEWS, Teacher(config))


@pytest.fixture(scope="module")
def report(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    differences = live.differences
    with one_thread(), pytest.MonkeyPatch.context() as patch:
        # Parity of all of them is tested with the trainer.
        some = [use for use in uses() if use.name in PARITY]
        patch.setattr(live, "differences", lambda scene, student, _, *more: differences(scene, student, some, *more))
        found = fidelity(scene, tmp_path_factory.mktemp("fidelity"), QUICK)
    # As a file gives it back.
    return json.loads(json.dumps({"bench": "fidelity", **found, "command": "python -m benchmarks fidelity", **HERE}))


def error(report: dict[str, Any], loss: str, way: str) -> float:
    return report["errors"][loss][way]["student"]["median"]


def test_every_loss_that_has_a_teacher_is_measured(report):
    assert {*report["errors"]} == {*LOSSES, "kd, T 4", "dkd, T 4"} - {"none"}
    assert report["absent"] == {}


def test_exact_targets_have_the_exact_gradient(report):
    exact = [way for way in report["bytes"] if way.endswith("float32") and not way.startswith("top")]
    assert exact == ["dense-float32", "pooled-float32", "map-float32"]
    found = {
        (name, way): error(report, name, way) for way in exact for name, ways in report["errors"].items() if way in ways
    }
    assert len(found) > len(report["errors"])
    assert max(found.values()) <= 1e-6


@pytest.mark.parametrize("loss", ["kd", "soft-ce", "nkd", "dkd", "scalekd", "kd, T 4", "dist"])
def test_errors_fall_with_k(report, loss):
    errors = [error(report, loss, f"top{k}-float16") for k in KS]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] > error(report, loss, "dense-float16") > 0


def test_a_bucket_is_exact_for_what_it_is_and_as_kd_no_better_than_an_even_tail(report):
    for k in KS:
        assert error(report, "bucket-kd", f"top{k}-float16") < 1e-3
        assert error(report, "kd", f"top{k}-float16") < 2 * report["bucket"][f"top{k}-float16"]["median"]


def test_the_peer_makes_the_top_k_sum_to_one_and_pays_for_it(report):
    for loss in ("kd", "nkd", "dkd"):
        for k in KS:
            figure = report["errors"][loss][f"top{k}-float16"]
            assert figure["ratio"] == pytest.approx(figure["peer"]["median"] / figure["student"]["median"])
            assert figure["ratio"] > 1.5


def test_a_map_from_the_cache_lies_as_a_live_one(scene):
    [shown] = scene.batches(1, 16, epoch=9)
    for way in ways(scene):
        kept = way.targets(scene, shown).map
        assert kept is not None
        assert kept.stride() == shown.exact.map.stride()


def test_renormalising():
    log_probs = torch.tensor([[0.5, 0.2, 0.15, 0.15]]).log()
    made = renormalised(Targets(log_probs, index=torch.tensor([[1, 0]])))
    assert made.log_probs is not None
    torch.testing.assert_close(made.log_probs.exp(), torch.tensor([[5 / 7, 2 / 7, 0, 0]]))


def test_float16_loses_less_than_int8_and_a_basis_more(report):
    for name in ("srrl", "rkd", "simkd"):
        assert error(report, name, "pooled-float16") < error(report, name, "pooled-int8") < 0.05
    for name in ("fd", "fitnets", "mgd", "norm", "cap-dfm", "scalekd"):
        assert error(report, name, "map-float16") < error(report, name, "map-int8") < 0.05
        ranks = [error(report, name, f"map-float16-r{rank}") for rank in (3, 6, 12)]
        assert ranks == sorted(ranks, reverse=True)
        assert ranks[-1] > error(report, name, "map-int8")


def test_what_kdpipe_refuses_is_marked(report):
    refused = {n for n, ways in report["errors"].items() if any(figure.get("refused") for figure in ways.values())}
    assert refused == {"dist", "kd, T 4", "dkd, T 4"}
    assert error(report, "kd, T 4", "top16-float16") > 5 * error(report, "kd", "top16-float16")


def test_bytes_are_those_of_a_cache(report):
    sizes = report["bytes"]
    assert sizes["map-int8"]["plain"] == 4 * (24 + 2)
    assert sizes["top16-float16"]["plain"] == 16 * (1 + 2) + 2
    assert all(size["stored"] > 0 for size in sizes.values())
    assert sizes["map-int8"]["stored"] < sizes["map-float16"]["stored"] < sizes["map-float32"]["stored"]


def test_losses_from_an_exact_cache_are_those_beside_the_teacher(report):
    assert {*report["parity"]} == PARITY
    assert report["max_parity"] == max(report["parity"].values()) <= 1e-6


@pytest.mark.parametrize("name", ["dist", "fd", "norm"])
def test_what_labels_teach_is_left_out(scene, name):
    use = next(use for use in uses() if use.name == name)
    probe = Probe(Trained(scene, 2, 16).distillation(use.config), use)
    [shown] = scene.batches(1, 16, epoch=9)
    others = replace(shown, batch=replace(shown.batch, labels=shown.batch.labels.roll(1)))
    ours, theirs = (probe.gradient(one, one.exact)["student"] for one in (shown, others))
    assert ours.norm() > 0
    assert torch.equal(ours, theirs)


def test_a_teacher_without_features_is_measured_as_far_as_it_goes(index, tmp_path, monkeypatch):
    lacking = TeacherConfig(model="tests.trainer.tiny:teacher_model", num_classes=CLASSES, input_size=16, device="cpu")
    scene = make_scene(index, VIEWS, Teacher(lacking))
    assert {*scene.lacks} == {"pooled", "map", "head", "tail"}
    assert {way.kind for way in ways(scene)} == {"logits"}
    monkeypatch.setattr("benchmarks.fidelity.run.uses", lambda: [u for u in uses() if u.name in {"kd", "rkd"}])
    found = fidelity(scene, tmp_path, QUICK)
    assert {*found["errors"]} == {*found["parity"]} == {"kd"}
    assert "pooled" in found["absent"]["rkd"] or "forward" in found["absent"]["rkd"]
    text = page.draw(
        {"plain": {"bench": "fidelity", **found, "command": "python -m benchmarks fidelity", **HERE}}, "f.json"
    )
    assert "rkd: " in text
    assert "Final maps" not in text


def test_the_document(report):
    text = page.draw({"few": report}, "fidelity.json")
    assert "[fidelity.json](fidelity.json)" in text
    assert "\n## few\n\n    python -m benchmarks fidelity\n" in text
    assert "2026-03-02, Abacus, 7 beads; python 3.11.7" in " ".join(text.split())
    top = f"{error(report, 'kd', 'top16-float16'):.2g}"
    row = next(line for line in text.splitlines() if line.startswith("| top16-float16 |"))
    assert row.split(" | ")[2] == top
    hot = f"({error(report, 'kd, T 4', 'top16-float16'):.2g})"
    assert hot in row
    assert "| map-int8 |" in text
    assert "float32 |" not in text
    assert max(map(len, (line for line in text.splitlines() if not line.startswith("|")))) <= 120


def test_advice_is_made_of_the_figures(report):
    text = "\n".join(advice({"few": report}))
    smallest = next(k for k in KS if error(report, "kd", f"top{k}-float16") <= 0.05)
    assert f"kd {smallest} ({error(report, 'kd', f'top{smallest}-float16'):.2g}" in text
    assert "`--pooled int8`" in text
    assert "Of few classes" not in text  # there is nothing to compare with
    many = json.loads(json.dumps(report))
    many["teacher"]["classes"] = 1000
    for figure in many["errors"]["rkd"].values():
        figure["student"]["median"] = 0.2
    text = "\n".join(advice({"few": report, "many": many}))
    assert "**Of few classes keep all of them.** With 24" in text
    assert "Of 1,000 classes the smallest k" in text
    assert "Pooled features: int8 costs something" in text
    assert advice({}) == []


def test_the_command(index, weights, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.fidelity.run.uses", lambda: [u for u in uses() if u.name == "kd"])
    settings = tmp_path / "settings.yaml"
    views = "views: {scale: [0.5, 1.0], crop_pct: 1.0, interpolation: bilinear}"
    model = json.dumps({"model": "convnext_atto", "model_kwargs": TEACHER, "num_classes": CLASSES, "input_size": SIZE})
    settings.write_text(f"{views}\nteacher: {model}\n")
    out = tmp_path / "fidelity.md"
    quick = ["--steps", 3, "--batches", 1, "--rows", 16]
    data = ["--index", index.path, "--weights", weights, "--config", settings]
    made = benchmark("fidelity", *data, *quick, "--out", out, "--json")
    assert made.code == 0, made.err
    report = json.loads(made.out)
    assert {*report["errors"]} == {"kd"}
    assert report["command"].startswith("python -m benchmarks fidelity --index ")
    assert json.loads((tmp_path / "fidelity.json").read_text()) == {"train": report}
    assert "\n## train\n" in out.read_text()
    assert "parity" in made.err
    # Another teacher's figures come beside them, and the document is drawn from both.
    monkeypatch.setattr("benchmarks.fidelity.command.fidelity", lambda *_: report)
    again = benchmark("fidelity", *data, *quick, "--out", out, "--name", "second")
    assert again.code == 0, again.err
    assert "top16-float16" in again.out
    assert {*json.loads((tmp_path / "fidelity.json").read_text())} == {"train", "second"}
    assert out.read_text().index("## train") < out.read_text().index("## second")


def test_refusals(index, weights, tmp_path):
    assert "--weights" in refused("fidelity", "--index", index.path)
    assert "--config" in refused("fidelity", "--config", tmp_path / "x.yaml")
    assert "NAME.md" in refused("fidelity", "--index", index.path, "--weights", weights, "--out", "x.txt")
    assert "no index" in refused("fidelity", "--index", tmp_path / "no", "--weights", weights)
    mixed = tmp_path / "mixed.yaml"
    model = json.dumps({"model": "convnext_atto", "model_kwargs": TEACHER, "num_classes": CLASSES, "input_size": SIZE})
    mixed.write_text(f"views: {{mixup: 0.8, mix: targets}}\nteacher: {model}\n")
    words = ("--index", index.path, "--weights", weights, "--config", mixed)
    assert "views.mix" in refused("fidelity", *words)


def test_the_teacher_of_the_numbers_is_kept(tmp_path, monkeypatch):
    """And taken the next time."""
    made = []

    def trained(folder: Path, *_: object) -> str:
        made.append(folder)
        (folder / "best.safetensors").write_text("weights")
        return str(folder / "best.safetensors")

    class Indexes(dict):
        def limit(self, _: object) -> None:
            return None

    indexes = {"train": Indexes()}
    monkeypatch.setattr(command, "numbers_index", lambda _: indexes)
    monkeypatch.setattr(command, "train_numbers_teacher", trained)
    kept = tmp_path / "runs" / "teacher.safetensors"
    for _ in range(2):
        _, _, config = command._numbers(tmp_path, None, str(kept))
        assert config.weights == str(kept)
        assert kept.read_text() == "weights"
    assert len(made) == 1


def test_the_teacher_of_the_numbers(tmp_path, monkeypatch):
    """It is trained from rows of the classifier that share what numbers share; a glance at it, not its skill."""
    real = numbers.prepare_numbers
    monkeypatch.setattr(numbers, "prepare_numbers", lambda out: real(out, train=256, val=64))
    indexes = numbers.numbers_index(tmp_path)
    assert [len(indexes[name]) for name in ("train", "val")] == [256, 64]
    weights = numbers.train_numbers_teacher(tmp_path, indexes, lambda _: None, epochs=1)
    scene = make_scene(indexes["val"], numbers.VIEWS, Teacher(TeacherConfig(weights=weights, form="merged")))
    assert scene.info.num_classes == 1000
    assert scene.info.map is not None
    assert scene.info.map[1:] == (2, 2)
    assert scene.lacks == {}
    assert [way.encoding.k for way in ways(scene) if way.top][:7] == [1, 5, 10, 16, 32, 64, 100]
