import subprocess

import pytest

from cmcore.commands.use import use
from cmcore.config import ConfigError


@pytest.fixture
def repository(tmp_path):
    (tmp_path / "workloads").mkdir()
    for name in ("small", "large"):
        (tmp_path / "workloads" / f"{name}.yaml").write_text(f"workload: {name}\n")
    return tmp_path


def commit(folder) -> None:
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "a"]):
        subprocess.run([*git, *words], check=True)


def test_switching_between_workloads(repository):
    for name in ("small", "large", "small"):
        assert f"workloads/{name}.yaml" in use(name, repository)[0]
        assert (repository / "params.yaml").read_text() == f"workload: {name}\n"


def test_edits_are_not_lost(repository):
    use("small", repository)
    (repository / "params.yaml").write_text("workload: small  # edited\n")
    with pytest.raises(ConfigError, match="neither committed nor in workloads/"):
        use("large", repository)
    assert (repository / "params.yaml").read_text() == "workload: small  # edited\n"


def test_a_workload_that_was_edited_after_its_copy_is_copied_again(repository):
    use("small", repository)
    (repository / "workloads/small.yaml").write_text("workload: small  # edited\n")
    use("small", repository)
    assert (repository / "params.yaml").read_text() == "workload: small  # edited\n"
    (repository / "workloads/small.yaml").unlink()
    (repository / "workloads/large.yaml").write_text("workload: large  # edited\n")
    use("large", repository)
    assert (repository / "params.yaml").read_text() == "workload: large  # edited\n"


def test_committed_edits_may_be_replaced(repository):
    (repository / "params.yaml").write_text("workload: small  # edited\n")
    commit(repository)
    use("large", repository)
    assert (repository / "params.yaml").read_text() == "workload: large\n"


@pytest.mark.parametrize("name", ["", "medium", "../params"])
def test_unknown_workloads_are_refused_with_the_known_ones(repository, name):
    with pytest.raises(ConfigError, match="expected one of large, small"):
        use(name, repository)
