"""How tests call the command and open the runs of `tests/conftest.py`."""

import pytest

from tailwise.cli import main
from tailwise.experiments import measure
from tailwise.experiments.runs import open_run
from tailwise.figures import Source


def call(*arguments):
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    assert not stopped.value.code


def run(capsys, *arguments):
    """(exit code, standard output, standard error) of the command, in this process."""
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return stopped.value.code or 0, out, err


def source_of(folder):
    return Source(open_run(folder), lambda seed: measure.open_trained(seed, None))
