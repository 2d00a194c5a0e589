"""What the terminal shows: help of every command, usage errors, completion.

`tests/golden/help` holds the help at 80 columns, as it reads with the versions it was written
with. Only its words are compared, since typer changes frames and names of types between versions.
When a change is meant: `GOLDEN=write pytest tests/app/test_surface.py`.
"""

import os
import pkgutil
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import typer
from paths import TESTS
from typer.testing import CliRunner

from guyot import report
from guyot.app.cli import commands
from guyot.app.cli.commands import app

GOLDEN = TESTS / "golden" / "help"
COMMANDS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
TYPES = r"<[^>]+>|\b(?:TEXT|INTEGER|FLOAT|PATH|BOOLEAN)\b"


def run(*arguments: str) -> Any:
    environment = {"COLUMNS": "80", "TERMINAL_WIDTH": "80", "NO_COLOR": "1", "TERM": "dumb"}
    return CliRunner(env=environment).invoke(app, arguments, prog_name="guyot")


def words(text: str) -> list[str]:
    """Letters, digits and dashes, line by line run together; no frames, no types."""
    return re.findall(r"[^\s─-╿*]+", re.sub(TYPES, "", text))


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_as_it_was(command: str):
    result = run(*command.split(), "--help")
    assert result.exit_code == 0
    lines = [line.rstrip() for line in result.output.splitlines()]
    assert max(map(len, lines)) <= 80
    file, text = GOLDEN / f"{command or 'guyot'}.txt", "\n".join(lines).strip("\n") + "\n"
    if os.environ.get("GOLDEN") == "write":
        file.write_text(text, encoding="utf-8")
    assert file.exists(), f"no {file.name}: GOLDEN=write pytest tests/app/test_surface.py"
    assert words(text) == words(file.read_text(encoding="utf-8")), (
        f"the help of guyot {command} changed; if that is meant: "
        "GOLDEN=write pytest tests/app/test_surface.py"
    )


def test_no_help_is_left_over():
    assert sorted(file.stem for file in GOLDEN.iterdir()) == sorted(["guyot", *COMMANDS])


def test_a_command_is_a_file():
    assert sorted(file.name for file in pkgutil.iter_modules(commands.__path__)) == COMMANDS


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_the_short_way_to_ask_for_help(command: str):
    assert run(*command.split(), "-h").output == run(*command.split(), "--help").output


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_can_be_quiet_and_gives_json(command: str):
    program: Any = typer.main.get_command(app)
    names = {name for option in program.commands[command].params for name in option.opts}
    assert names >= {"--json", "--quiet", "-q"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], r"No such command 'trian'\. Did you mean 'train'\? See guyot --help"),
        (["--loud"], r"No such option: --loud; see guyot --help"),
        (
            ["train", "--epoch", "3"],
            r"No such option: --epoch, did you mean --epochs\? See guyot t.*",
        ),
        (["train", "--epochs", "few"], "--epochs='few': give a whole number"),
        (["train", "--estimator", "fischer"], ".*choose .*taylor, did you mean fisher\\?"),
        (["train", "--cost", "latenzy"], ".*macs=1,latency=3, did you mean latency\\?"),
        (["export", "run", "--format", "onx"], ".*state-dict, did you mean onnx\\?"),
        (["train", "--decay", "linar"], ".*choose cosine or linear, did you mean linear\\?"),
        (
            ["profile", "digits", "--batch", "few"],
            "Invalid value for '--batch': .*t profile --help",
        ),
        (["train", "more"], r"unexpected extra argument.*more.*; see guyot train --help"),
        (["report"], r"Missing argument 'RUN.*'; see guyot report --help"),
    ],
)
def test_usage_errors_are_one_line(arguments: list[str], message: str):
    result = run(*arguments)
    assert result.exit_code == 2 and result.stdout == ""
    assert re.fullmatch(f"error: .*{message}\n", result.stderr), result.stderr


def test_train_says_something_before_it_loads_anything():
    """What takes seconds comes after the first line, whatever the machine."""
    program = (
        "import builtins, os, sys\n"
        "real = builtins.__import__\n"
        "def watched(name, *more, **options):\n"
        "    if name.partition('.')[0] == 'torch': os._exit(3)\n"
        "    return real(name, *more, **options)\n"
        "builtins.__import__ = watched\n"
        "from guyot.app.cli.commands import app\n"
        "app(['train', '--data', 'digits'], prog_name='guyot')\n"
    )
    done = subprocess.run(
        [sys.executable, "-u", "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 3, done.stderr
    assert done.stdout == "loading PyTorch, data and network ...\n"


def test_every_mistake_is_a_line():
    arguments = ["--epochs", "few", "--lr", "0", "--target", "0.5", "--nu", "1", "--seed", "-1"]
    result = run("train", *arguments)
    assert result.exit_code == 2
    assert [line.partition("=")[0] for line in result.stderr.splitlines()] == [
        "error: --epochs",
        "error: --lr",
        "error: --seed",
    ]
    result = run("train", *arguments[2:])
    assert re.search(r"^error: --nu=1.0 and --target=0.5: give one", result.stderr, re.MULTILINE)
    assert len(result.stderr.splitlines()) == 3


@pytest.mark.parametrize(
    "arguments", [["--version"], ["--help"], *([name, "--help"] for name in COMMANDS)]
)
def test_help_and_version_need_no_torch(arguments: list[str]):
    program = (
        "import sys; from guyot.app.cli import main\n"
        "try: main()\n"
        "finally: print([name for name in ('torch', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_nothing_asked_gives_help():
    result = run()
    assert "report" in result.output and "Usage" in result.output


def complete(*typed: str, shell: str = "bash") -> list[str]:
    """What the shell offers: the script it has installed asks through its environment."""
    line = " ".join(typed)
    asked = {"COMP_WORDS": line, "COMP_CWORD": str(len(typed) - 1), "_TYPER_COMPLETE_ARGS": line}
    asked |= {"_TYPER_COMPLETE_FISH_ACTION": "get-args"} if shell == "fish" else {}
    asked |= {"_TYPER_COMPLETE_WORD_TO_COMPLETE": typed[-1]} if shell == "powershell" else {}
    environment = asked | {"_GUYOT_COMPLETE": f"complete_{shell}"}
    result = CliRunner(env=environment).invoke(app, [], prog_name="guyot")
    return re.findall(r"[\w-]+", result.output)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell"])
def test_the_shell_completes_commands_options_and_values(shell: str):
    assert "train" in complete("guyot", "tr", shell=shell)
    assert "report" not in complete("guyot", "tr", shell=shell)
    assert "--output" in complete("guyot", "report", "--out", shell=shell)
    assert "digits" in complete("guyot", "train", "--data", "di", shell=shell)
    assert "onnx" in complete("guyot", "export", "run", "--format", "on", shell=shell)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_completed(command: str):
    program: Any = typer.main.get_command(app)
    options = [p for p in program.commands[command].params if p.param_type_name == "option"]
    for name in (name for option in options for name in (*option.opts, *option.secondary_opts)):
        if name.startswith("--"):
            assert name in complete("guyot", command, name)


def test_the_installed_program_answers_the_shell():
    program = "import sys; sys.argv[0] = 'guyot'; from guyot.app.cli import main; main()"
    asked = {"COMP_WORDS": "guyot tr", "COMP_CWORD": "1", "_GUYOT_COMPLETE": "complete_bash"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | asked,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["train"]


def narrow(*arguments: str) -> list[str]:
    """Lines in a terminal of 60 columns."""
    environment = {"COLUMNS": "60", "NO_COLOR": "1", "TERM": "dumb"}
    done = CliRunner(env=environment).invoke(app, arguments, prog_name="guyot")
    assert done.exit_code == 0, done.output
    return done.output.splitlines()


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_a_narrow_terminal(command: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", None)  # read from the environment once
    assert max(map(len, narrow(*command.split(), "--help"))) <= 60


def test_results_fit_a_narrow_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("guyot.costs.timing.measure", partial(report.measure, seconds=0.0))
    monkeypatch.chdir(tmp_path)
    train = "train --data digits --epochs 3 --batch-size 32 --no-bf16 --threads 1 --round-to 4"
    found = narrow(*train.split(), "--out", "a", "--nu", "0.5")
    assert {line for line in found if len(line) > 60} == set()
    assert "  epoch    loss   train   valid    MACs  phase       left" in found
    assert any(re.fullmatch(r"  .+ => .+, \d\.\d\d", line) for line in found)
    for command in ("compare a", "evaluate a", "inspect digits", "cache"):
        assert {line for line in narrow(*command.split()) if len(line) > 60} == set(), command
