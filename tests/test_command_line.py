"""python -m pyrevgrad: its commands, and what a wrong one is told."""

import pytest

import pyrevgrad
from pyrevgrad import __main__, demonstration


def test_info_prints_the_configuration(capsys):
    assert __main__.main(["info"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("pyrevgrad ") and "cpu tensors" in printed


def test_demo_gets_what_follows_it(monkeypatch):
    given = []
    monkeypatch.setattr(demonstration, "main", lambda arguments: given.append(arguments) or 7)
    assert __main__.main(["demo", "--seeds", "3", "--quick", "--help"]) == 7
    assert given == [["--seeds", "3", "--quick", "--help"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explian"], "invalid choice: 'explian'"),
        (["info", "--loud"], "info takes no options, got --loud"),
        ([], "name a COMMAND"),
        ([], "(demo --help)"),
    ],
)
def test_wrong_command_line_is_a_usage_error(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        __main__.main(arguments)
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("usage: python -m pyrevgrad") and message in printed


def test_help_names_the_commands(capsys):
    with pytest.raises(SystemExit) as stopped:
        __main__.main(["--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("info", "demo", "train", "explain", "bench"))


def test_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as stopped:
        __main__.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"pyrevgrad {pyrevgrad.__version__}\n"
    assert pyrevgrad.__version__ == "0.1.0"
