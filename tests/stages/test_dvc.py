"""dvc.yaml does what docs/dvc.md says, with a DVC of its own on a pipeline cut short."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from kdpipe_stages.cli import COMMANDS
from tests.imports import ROOT, closure

TEXT = (ROOT / "dvc.yaml").read_text()
STAGES = yaml.safe_load(TEXT)["stages"]
PRESETS = "pipeline/kdpipe/presets"
RUNNING = re.compile(r"Running stage '([^']+)'")


@pytest.mark.parametrize("name", STAGES)
def test_the_code_that_a_stage_imports_is_among_its_dependencies(name):
    commands = [STAGES[name]["cmd"]] if isinstance(STAGES[name]["cmd"], str) else STAGES[name]["cmd"]
    words = [command.split()[:2] for command in commands]
    needed = closure(COMMANDS[word][0].partition(":")[0] for program, word in words if program == "kdpipe")
    # cli.py only finds the command.
    files = needed - {Path("stages/kdpipe_stages/cli.py")}
    deps = {Path(dep) for dep in STAGES[name]["deps"]}
    assert files
    assert [f for f in sorted(files) if not deps & {f, *f.parents}] == []
    assert [dep for dep in sorted(deps) if dep.parts[0] in {"pipeline", "stages"} and not (ROOT / dep).exists()] == []


class Project:
    """A repository with the code, and its dvc.yaml and presets cut to seconds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("pipeline", "stages", ".dvc"):
            ignored = shutil.ignore_patterns("__pycache__", "tmp", "cache" if name == ".dvc" else "")
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        for name in (".dvcignore", ".gitignore"):
            shutil.copy(ROOT / name, folder / name)
        text = TEXT.replace("[test_byobnet, test_resnet]", "[test_byobnet]").replace("--views 0:8", "--views 0:2")
        text = text.replace("[kd, soft-ce]", "[kd]").replace("[kd, soft-ce, none]", "[kd, none]")
        text = re.sub("^.*(test_byobnet-soft-ce|test_resnet).*\n", "", text, flags=re.MULTILINE)
        text = text.replace("--epochs 46 --set train.eval_every=46", "--epochs 2")
        text = re.sub(r"(index runs/dvc/digits/train\S* .*)", r"\1 --limit 800", text)
        (folder / "dvc.yaml").write_text(text)
        self.put("digits", "train", epochs=3)
        self.put("digits-teacher", "train", epochs=2)
        binaries = str(Path(sys.executable).parent)
        person = {f"GIT_{who}_{what}": "a@b.invalid" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        self.env = {
            **os.environ,
            **person,
            "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(str(folder / name) for name in ("pipeline", "stages")),
            "OMP_NUM_THREADS": "1",
            "DVC_NO_ANALYTICS": "1",
            "HOME": str(folder),
        }
        for command in (["git", "init", "-q"], ["git", "add", "-A"], ["git", "commit", "-qm", "begin"]):
            subprocess.run(command, cwd=folder, env=self.env, check=True, capture_output=True)

    def put(self, preset: str, section: str, **values: object) -> None:
        path = self.folder / PRESETS / f"{preset}.yaml"
        tree = yaml.safe_load(path.read_text())
        tree[section].update(values)
        path.write_text(yaml.safe_dump(tree))

    def dvc(self, *words: str) -> str:
        command = [sys.executable, "-m", "dvc", *words]
        done = subprocess.run(command, cwd=self.folder, env=self.env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def repro(self, *words: str) -> list[str]:
        """The stages that ran."""
        return RUNNING.findall(self.dvc("repro", *words))

    def killed_when(self, path: str, *words: str) -> None:
        """`dvc repro`, killed with all its children once a file is there."""
        command = [sys.executable, "-m", "dvc", "repro", *words]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        child = subprocess.Popen(command, cwd=self.folder, env=self.env, start_new_session=True, **quiet)
        end = time.monotonic() + 180
        while not list(self.folder.glob(path)) and child.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        assert child.poll() is None, "it was over before it could be killed"
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()

    def stores(self) -> set[str]:
        return {path.name for path in (self.folder / "caches").iterdir()}

    def text(self, path: str) -> str:
        return (self.folder / path).read_text()


@pytest.mark.slow
def test_repro(tmp_path):
    project = Project(tmp_path)
    student, follow = "train_student@test_byobnet-kd", {"evaluate@test_byobnet-kd", "report"}

    # Killed in the cache and in a run: both go on, and what was finished is not done again.
    project.killed_when("caches/*/commits/*/train-0000.tar.json")
    said = project.dvc("repro", "cache_teacher")
    assert RUNNING.findall(said) == ["cache_teacher"]
    assert re.search(r"[1-9] tasks done, [1-9] were there", said)
    project.killed_when("runs/dvc/begun/test_byobnet-kd/last.safetensors", student)
    said = project.dvc("repro", student)
    assert RUNNING.findall(said) == [student]
    assert "resuming at epoch" in said
    assert follow <= set(project.repro())
    assert project.repro() == []
    first = project.text("runs/dvc/report.json"), project.text("runs/dvc/cache.json")
    stores = project.stores()
    assert len(stores) == 2

    # A loss weight, as an experiment: students and what follows them.
    said = project.dvc("exp", "run", "--set-param", f"{PRESETS}/digits.yaml:loss.kd.alpha=0.7")
    assert set(RUNNING.findall(said)) == {student, *follow}
    assert "alpha: 0.7" in project.text(f"{PRESETS}/digits.yaml")
    assert "0.7" in project.dvc("exp", "show", "--csv")
    assert project.stores() == stores

    # Another teacher: another store beside the first. Back: nothing runs.
    project.put("digits-teacher", "train", epochs=3)
    ran = project.repro()
    assert {"train_teacher", "cache_teacher", student} <= set(ran)
    assert not {"prepare", "train_baseline@test_byobnet"} & set(ran)
    assert project.stores() > stores
    project.put("digits", "loss", kd={"alpha": 0.9})
    project.put("digits-teacher", "train", epochs=2)
    assert project.repro() == []
    assert (project.text("runs/dvc/report.json"), project.text("runs/dvc/cache.json")) == first

    assert "agreement_top1" in project.dvc("metrics", "show")
    assert project.dvc("plots", "show").strip().endswith("index.html")
