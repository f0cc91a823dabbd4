"""Hostile files of every kind: nothing in them is executed, and each is refused early, in one line."""

import json
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from attacks import WITNESS, Attack, attacks, images, pickles

ROOT = Path(__file__).parents[2]
SECONDS, MIB = 5.0, 256  # of processor time, and of memory above what the reader's process had before
READERS = ("foreign", "image", "archive", "array", "extractor", "yaml")
Outcome = tuple[Attack, dict[str, Any]]


def outcomes(folder: Path, given: list[Attack]) -> list[Outcome]:
    """What a process did with the files, one after the other."""
    lines = []
    for index, attack in enumerate(given):
        place = folder / str(index) / attack.name
        place.parent.mkdir()
        place.write_bytes(attack.content)
        lines.append(json.dumps([attack.reader, str(place)]))
    runner = [sys.executable, str(ROOT / "tests/support/attack_runner.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        runner, input="\n".join(lines), capture_output=True, text=True, cwd=folder, env=environment, timeout=3600
    )
    assert ran.returncode == 0, f"{ran.stdout.splitlines()[-1:]}\n{ran.stderr[-2000:]}"
    said = [json.loads(line) for line in ran.stdout.splitlines()]
    assert len(said) == 2 * len(given)
    return list(zip(given, said[1::2], strict=True))


def wrong(attack: Attack, outcome: dict[str, Any]) -> list[str]:
    """What an outcome should not have been."""
    kind, message = outcome["kind"], outcome["message"]
    faults = {
        "was read": not kind and not attack.harmless,
        "failed as no error in the user's data": bool(kind) and not {"DataError", "ConfigError"} & set(kind.split("|")),
        "took long": outcome["seconds"] > SECONDS,
        "took memory": outcome["mib"] > MIB,
        "said more than a line": not (message.isprintable() and len(message) < 1200),
        "showed an address": "object at 0x" in message,
    }
    return [fault for fault, found in faults.items() if found]


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    folder = tmp_path_factory.mktemp("attacks")
    found = outcomes(folder, attacks(quick=True))
    assert not (folder / WITNESS).exists()
    return found


@pytest.mark.parametrize("reader", READERS)
def test_hostile_files_are_refused_early_and_in_one_line(quick: list[Outcome], reader: str):
    own = [(attack, outcome) for attack, outcome in quick if attack.reader == reader]
    assert len(own) >= 14
    assert not {attack.name: (found, outcome) for attack, outcome in own if (found := wrong(attack, outcome))}


def test_the_attacks_are_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Python's own reader runs them."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickles()["system 2"])
    assert (tmp_path / WITNESS).exists()


def test_the_look_at_data_takes_no_memory_for_what_a_header_claims(tmp_path: Path):
    bomb = [Attack("survey", f"{name}.png", images()[f"{name}.png"]) for name in ("clear", "bomb", "huge")]
    done = outcomes(tmp_path, bomb)
    assert not {attack.name: (found, outcome) for attack, outcome in done if (found := wrong(attack, outcome))}


@pytest.mark.slow
def test_all_hostile_files_and_many_mutations(tmp_path: Path):
    every = attacks(quick=False)
    assert len(every) > 1000
    count = min(len(every), int(os.environ.get("HOSTILE", len(every))))
    found = outcomes(tmp_path, random.Random(1).sample(every, count))
    assert not (tmp_path / WITNESS).exists()
    assert not {attack.name: (faults, outcome) for attack, outcome in found if (faults := wrong(attack, outcome))}
    refused = sum(bool(outcome["kind"]) for _, outcome in found)
    seconds, mib = (max(outcome[key] for _, outcome in found) for key in ("seconds", "mib"))
    readers = len({attack.reader for attack, _ in found})
    print(  # noqa: T201 - for benchmarks/faults.py
        f"\ncounted: {count} hostile and damaged files for {readers} readers, {refused} of them refused in a line; "
        f"none executed anything, or took more than {seconds:.1f} s of processor time or {mib} MiB"
    )
