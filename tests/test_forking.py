"""The fork server has loaded what the processes of tests need. It says nothing when it has not: they are slow then."""

from pathlib import Path

from tests import forking

FOLDER = Path(__file__).parent


def test_a_process_finds_everything_loaded() -> None:
    process = forking.CONTEXT.Process(target=forking.exit_with_number_missing)
    process.start()
    process.join(100)
    assert process.exitcode == 0, f"{process.exitcode} are missing; it looks for tests/ where pytest was started"


def test_nobody_gives_the_fork_server_another_list() -> None:
    setters = [path.name for path in FOLDER.rglob("*.py") if "set_forkserver_preload(" in path.read_text()]
    assert sorted(setters) == ["forking.py", "test_forking.py"]
