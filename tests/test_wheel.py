"""The wheel: what is in it, and that it works beside a user's own folders of the source roots' names."""

import os
import subprocess
import sys
import zipfile

import pytest

from tests.imports import ROOT


def run(*words, **more):
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, check=False, **more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet"]
    run(sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", folder, ROOT)
    (found,) = folder.glob("*.whl")
    return found


def test_it_holds_the_library_and_the_commands_alone(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"kdpipe", "kdpipe_stages"}
    assert {"kdpipe/py.typed", "kdpipe/presets/cifar10.yaml"} <= set(names)
    assert not [name for name in names if "bench" in name or "tests" in name]
    library = {str(p.relative_to(ROOT / "pipeline")) for p in (ROOT / "pipeline" / "kdpipe").rglob("*.py")}
    assert library <= set(names)


def test_it_runs_beside_folders_named_like_the_source_roots(wheel, tmp_path):
    """A fresh environment, which borrows the dependencies of this one, but not the checkout."""
    environment, place = tmp_path / "environment", tmp_path / "place"
    run(sys.executable, "-m", "venv", "--without-pip", environment)
    python = environment / "bin" / "python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    options = ["--no-deps", "--no-index", "--disable-pip-version-check", "--quiet"]
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, wheel)
    # addsitedir would run the .pth files there, and one of them leads to the checkout.
    borrowed = run(sys.executable, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    with open(os.path.join(site, "borrowed.pth"), "w") as file:
        file.write(borrowed + "\n")
    for folder in ("pipeline", "stages", "benchmarks"):
        (place / folder).mkdir(parents=True)
        (place / folder / "__init__.py").write_text("raise ImportError('the user\\'s own')\n")
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONPATH": "."}
    about = run(python, "-c", "import kdpipe; print(kdpipe.__file__, kdpipe.__version__)", cwd=place, env=env)
    assert about.startswith(site)
    assert about.split()[1] in wheel.name
    assert "cache-teacher" in run(environment / "bin" / "kdpipe", "--help", cwd=place, env=env)
