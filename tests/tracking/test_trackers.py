import pickle
from pathlib import Path

from cmcore.tracking.base import Null, Said, Sender, Tee, Tracker


class Recorder:
    def __init__(self, log: list, name: str = "") -> None:
        self.log, self.name = log, name

    def params(self, values):
        self.log.append((self.name, "params", dict(values)))

    def metrics(self, values, images):
        self.log.append((self.name, "metrics", dict(values), images))

    def artifact(self, path, folder=""):
        self.log.append((self.name, "artifact", path, folder))

    def close(self, failed=False):
        self.log.append((self.name, "close", failed))


def say_everything(tracker: Tracker) -> None:
    tracker.params({"lr": 0.1})
    tracker.metrics({"loss": 2.0}, 128)
    tracker.artifact(Path("a.png"), "grids")
    tracker.close(failed=True)


def test_tee_keeps_the_order_of_its_trackers():
    log = []
    say_everything(Tee([Recorder(log, "first"), Null(), Recorder(log, "second")]))
    assert [name for name, *_ in log] == ["first", "second"] * 4
    assert log[2] == ("first", "metrics", {"loss": 2.0}, 128)
    assert log[-1] == ("second", "close", True)


def test_what_a_sender_says_survives_the_journey_and_leaves_the_run_open():
    log, letters = [], []
    say_everything(Sender(lambda said: letters.append(pickle.dumps(said))))
    for letter in letters:
        pickle.loads(letter).to(Recorder(log))
    assert log == [
        ("", "params", {"lr": 0.1}),
        ("", "metrics", {"loss": 2.0}, 128),
        ("", "artifact", Path("a.png"), "grids"),
    ]
    assert isinstance(pickle.loads(letters[0]), Said)
