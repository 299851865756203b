"""Keys and names from others' files on a terminal."""

import logging

from kdpipe_stages.cli import _Remarks
from kdpipe_stages.inspect_tables import print_statistics


def test_keys_in_tables_are_neither_markup_nor_commands_to_the_terminal(capsys) -> None:
    said = {
        "shard": "[/red].tar",
        "key": "a\x1b[31m[bold]b",
        "label": 1,
        "predicted": 2,
        "p": 0.5,
        "p_label": 0.1,
        "views": 1,
    }
    view = {"segment": "s[/]", "view": 0, "views": 1, "labelled": None, "mixed": 0, "teacher_top1": None}
    view |= {"teacher_top5": None, "ece": None, "mean_confidence": 0.5, "mean_entropy": 0.5, "retained_mass": {}}
    view |= {"confidence": [1] * 20, "calibration": [[0, 0, 0]] * 20, "entropy": [1] * 20, "entropy_limit": 1.0}
    found = {"samples": 1, "of_samples": 1, "seed": None, "remark": None, "views": [view]}
    found |= {"classes": None, "confusions": []}
    print_statistics(found | {"contradictions": [said], "unmixed": 1})
    out = capsys.readouterr().out
    assert r"a\x1b[31m[bold]b" in out
    assert "[/red].tar" in out
    assert "\x1b" not in out


def test_remarks_of_the_library_have_no_secrets_and_no_controls(capsys) -> None:
    _Remarks().emit(logging.LogRecord("kdpipe", logging.INFO, "", 0, "read %s", ("http://u:p@h/a?b \x1b[31m",), None))
    assert capsys.readouterr().err == "read http://h/a \\x1b[31m\n"
