"""The processes of a local Ray, for which others of the same names stand: none outlives what started them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cmcore.closure import ROOT

pytestmark = pytest.mark.skipif(not Path("/bin/bash").exists(), reason="a process is given a name by bash")
PROGRAM = """
import socket, subprocess, sys, time
from cmcore.edge.ray_family import children, end_family, family
from cmcore.pipeline.signals import stop_on_signals
stop_on_signals(lambda: "cmlab x: stopped; the same command continues from here")
before = children()
names = ["gcs_server", "raylet", "DashboardAgent"]
for name in names:  # of the last the parent dies, as of Ray's helpers
    subprocess.Popen(["bash", "-c", f"bash -c 'exec -a {name} sleep 600' & exec -a {name} sleep 600"])
while sum(one.cmdline()[:1] == [name] for one in children() - before for name in names) < 6:
    time.sleep(0.05)
door = socket.create_server(("127.0.0.1", 0))
with family(before, f"127.0.0.1:{door.getsockname()[1]}"):
    print("there", flush=True)
    if sys.argv[1:] == ["closes"]:
        door.close()
    time.sleep(600)
"""


@pytest.mark.parametrize(
    ("victim", "code", "said"),
    [
        ("raylet", 1, "a process of Ray died (killed, or out of memory?); the same command continues from here\n"),
        ("gcs_server", 1, "a process of Ray died (killed, or out of memory?); the same command continues from here\n"),
        ("", -signal.SIGKILL, ""),
    ],
)
def test_where_a_part_of_ray_or_its_driver_is_killed_all_end(victim: str, code: int, said: str):
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    own = psutil.Process(process.pid)
    others = own.children(recursive=True)
    killed = next((one for one in own.children() if one.cmdline()[0] == victim), own)
    start = time.monotonic()
    os.kill(killed.pid, signal.SIGKILL)
    _, told = process.communicate(timeout=60)
    _, alive = psutil.wait_procs(others, timeout=30)
    seconds = time.monotonic() - start
    for one in alive:
        one.kill()
    assert (process.returncode, told, alive) == (code, said, [])
    assert seconds < 15


def test_a_ray_that_listens_no_more_is_lost_though_its_processes_live():
    """Of a SIGTERM to its GCS Ray's driver notices nothing for a minute."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "closes"], cwd=ROOT, text=True, capture_output=True, timeout=60, check=False
    )
    said = "Ray listens no more (a process of it was stopped?); the same command continues from here\n"
    assert (done.returncode, done.stderr) == (1, said)


BESIDE = """
import socket, subprocess, time
import psutil
from cmcore.edge import ray_family
from cmcore.edge.ray_family import children, end_family, family
before, said = children(), []
ray_family.LOOK = 0.05
starts = "read _; sleep 600 & echo $!; wait"
ray = subprocess.Popen(["bash", "-c", f"exec -a raylet bash -c '{starts}'"], stdin=-1, stdout=-1, text=True)
while psutil.Process(ray.pid).cmdline()[:1] != ["raylet"]:  # it has none while it becomes another program
    time.sleep(0.05)
door = socket.create_server(("127.0.0.1", 0))
with family(before, f"127.0.0.1:{door.getsockname()[1]}"):
    own = subprocess.Popen(["sleep", "600"])
    ray.stdin.write("now\\n")
    ray.stdin.flush()
    helper = int(ray.stdout.readline())
    while helper not in {one.pid for one in tuple(ray_family._members)}:
        time.sleep(0.05)
    ray.kill()
    ray.wait()
    time.sleep(1)
end_family()
print(own.poll(), helper, flush=True)
own.kill()
"""


def test_what_a_program_has_started_beside_ray_lives_on_and_what_ray_has_started_does_not():
    """In a notebook; there the death of Ray is a line and does not end the kernel."""
    done = subprocess.run(
        [sys.executable, "-c", BESIDE], cwd=ROOT, text=True, capture_output=True, timeout=60, check=True
    )
    state, helper = done.stdout.split()
    assert (state, done.stderr) == ("None", "a process of Ray died (killed, or out of memory?)\n")
    assert not psutil.pid_exists(int(helper)) or psutil.Process(int(helper)).status() == psutil.STATUS_ZOMBIE
