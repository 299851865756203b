"""Losses by name, and what a config of them means."""

import subprocess
import sys

import pytest
import torch

from kdpipe.losses import Context, LossConfig, StudentOutput, build_loss
from kdpipe.targets import Labels
from kdpipe_stages.losses import cheapest


def test_a_schedule_of_one_step_counts_for_one_loss_too():
    output, labels = StudentOutput(torch.eye(4)), Labels(torch.arange(4))
    context = Context(rows=4, labelled=4)
    plain, half = (
        float(build_loss(LossConfig(name="ce", none={"schedule": schedule}))(output, labels, None, context)["loss"])
        for schedule in ([[0, 1]], [[0, 0.5]])
    )
    assert half == pytest.approx(plain / 2)


def test_numbered_modules_are_names():
    assert LossConfig(student_layers=[0, "layer4"]).student_layers == ("0", "layer4")


def test_the_cheapest_dense_logits_are_the_narrower_of_the_two():
    needs = LossConfig(name="dist").requirements
    assert cheapest(needs, classes=1000, width=998)[1] == "--targets none --pooled float16"
    assert cheapest(needs, classes=1000, width=1536)[1] == "--targets dense"


def test_configs_and_requirements_of_all_losses_need_no_torch():
    code = (
        "import sys\n"
        "from kdpipe.losses import LOSSES, LossConfig\n"
        "assert LossConfig(name='kd+fd').requirements.map\n"
        "assert all(one.Config().requirements for one in LOSSES.values())\n"
        "assert not {'torch', 'timm', 'dask'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
