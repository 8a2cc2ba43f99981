"""Engines run the jobs of studies on this machine, on a Ray cluster and through Slurm, for which stand-ins are here."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from records.lock import LOCK, locked
from studies.engines import ENGINES
from studies.engines.base import Ended, Engine, Job, Resources
from studies.engines.local import cores
from studies.engines.slurm import SlurmEngine, cancel_slurm
from studies.engines.supervise import order_of, supervise
from studies.schedule import TRIES, run_jobs
from studies.study_file import failed_jobs, note_failure
from tests.test_benchmark import finish, write_grid
from utils.errors import UserError

PROJECT = Path(__file__).parent.parent
# Says how it was begun, works for so many seconds, and saves its state when it is asked to end.
WORK = """
import os, signal, sys, time
def end(number, frame):
    print("saved", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
print(f"{os.getpid()} {os.environ['OMP_NUM_THREADS']} {os.environ.get('CUDA_VISIBLE_DEVICES')}", flush=True)
time.sleep(float(sys.argv[1]))
print("done", flush=True)
"""


def python(store, name, code, *words, runs=()):
    (store / "logs").mkdir(exist_ok=True)
    command = [sys.executable, "-S", "-c", code, *map(str, words)]
    return Job(name, command, {}, store / "logs" / f"{name}.log", runs)


def work(store, name, seconds):
    return python(store, name, WORK, seconds)


def log(store, name):
    path = store / "logs" / f"{name}.log"
    return path.read_text().split("\n")[:-1] if path.exists() else []


def wait_for(condition):
    """Up to a minute: the machine may be busy."""
    end = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def endings(engine, count):
    """How the next so many jobs end, by their names."""
    found = {}
    wait_for(lambda: found.update({end.name: end for end in engine.poll()}) or len(found) >= count)
    return found


def alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return "State:\tZ" not in Path(f"/proc/{process}/status").read_text()


# What is handed over, and when.


class Pretended(Engine):
    """Ends each job at once, as the function `ending` says, on this machine and one at a time."""

    on_this_machine = True

    def __init__(self, ending):
        self.ending, self.submitted, self.running = ending, [], []

    def room(self):
        return 1 - len(self.running)

    def submit(self, job):
        assert len(self.submitted) < 9
        self.submitted.append(job.name)
        self.running.append(job)

    def poll(self):
        ended, self.running = self.running, []
        return [Ended(job.name, 0.0, *self.ending(job)) for job in ended]

    def cancel(self):
        self.running = []


@pytest.fixture
def planned(here, monkeypatch):
    """Two jobs of a study; what other processes do is looked at in each round."""
    monkeypatch.setattr("studies.schedule.LOOK", 0.0)
    Path("store/logs").mkdir(parents=True)
    return write_grid(methods=["isolated"]).jobs


def handed_over(planned, engine, **show):
    return {end.name: end for end in run_jobs(planned, engine, Path("store"), Path("modelzoo.py"), **show)}


def test_what_a_killed_study_has_left_behind_counts_from_the_start(planned):
    """Its second job still runs here: the first one waits for it, as there is room for one."""
    first, second = (job.runs[0] for job in planned)

    def done(job):
        assert second.finished
        assert failed_jobs(Path("store")) == set()
        finish(first)
        return ("",)

    def show(names):
        assert (list(names), engine.submitted) == ([second.name], [])
        finish(second, "elsewhere")
        for path in Path("elsewhere", second.name).iterdir():
            path.rename(second.directory / path.name)
        lock.close()

    engine = Pretended(done)
    note_failure(Path("store"), first.name, "of an earlier try")
    with ExitStack() as lock:
        lock.enter_context(locked(second.directory))
        ended = handed_over(planned, engine, show=show)
    assert list(ended) == [second.name, first.name]
    assert engine.submitted == [first.name]
    assert {end.failure for end in ended.values()} == {""}


@pytest.mark.parametrize("held", [False, True])
def test_a_job_that_loses_its_worker_each_time_has_failed(planned, held):
    """Also where its process is saving its state, and holds the run, when the loss is seen."""
    lock = planned[0].runs[0].directory / LOCK
    lock.parent.mkdir(parents=True)

    def lost(job):
        if held:
            lock.write_text('{"host": "elsewhere", "process": 1}')
        return "lost", True

    class Engine(Pretended):
        def poll(self):
            lock.unlink(missing_ok=True)
            return super().poll()

    engine = Engine(lost)
    assert handed_over(planned[:1], engine)[planned[0].name].failure == "lost"
    assert len(engine.submitted) == TRIES


def test_a_job_that_another_process_was_faster_to_begin_is_waited_for(planned):
    """It is refused more often than a job may be lost, and then finished by the other process."""
    run, refused = planned[0].runs[0], []
    lock = run.directory / LOCK
    lock.parent.mkdir(parents=True)

    def refuse(job):
        refused.append(job)
        lock.write_text('{"host": "elsewhere", "process": 1}')
        return ("exit code 2: it is in use",)

    class Engine(Pretended):
        def poll(self):
            lock.unlink(missing_ok=True)
            if len(refused) > TRIES:
                run.directory.rmdir()
                finish(run)
                refused.clear()
            return super().poll()

    engine = Engine(refuse)
    assert handed_over(planned[:1], engine)[run.name].failure == ""
    assert len(engine.submitted) == TRIES + 1


# This machine.


def test_jobs_share_cores_and_gpus(tmp_path):
    engine = ENGINES["local"](Resources(tmp_path, gpus=[2, 5], jobs_per_gpu=2))
    assert engine.room() == 4
    for name in "abcd":
        engine.submit(work(tmp_path, name, 60))
    assert engine.room() == 0
    wait_for(lambda: all(log(tmp_path, name) for name in "abcd"))
    engine.cancel()
    begun = [log(tmp_path, name)[0].split() for name in "abcd"]
    assert [gpu for _, _, gpu in begun] == ["2", "5", "2", "5"]
    assert {threads for _, threads, _ in begun} == {str(max(1, cores() // 4))}
    assert all(log(tmp_path, name)[1:] == ["saved"] for name in "abcd")
    assert not any(alive(int(process)) for process, _, _ in begun)


def test_a_slot_that_is_free_is_used_again(tmp_path):
    engine = ENGINES["local"](Resources(tmp_path, jobs=2, gpus=[0, 1], cpus=3))
    engine.submit(work(tmp_path, "long", 60))
    for name in ("first", "second"):
        engine.submit(work(tmp_path, name, 0))
        assert endings(engine, 1)[name].failure == ""
        assert log(tmp_path, name)[0].split()[1:] == ["3", "1"]
    engine.cancel()


def test_how_a_job_of_this_machine_ends(tmp_path):
    engine = ENGINES["local"](Resources(tmp_path, jobs=3))
    engine.submit(python(tmp_path, "fails", "import sys; print('all\\nis lost\\n'); sys.exit(4)"))
    engine.submit(python(tmp_path, "killed", "import os; print('text', flush=True); os.kill(os.getpid(), 9)"))
    engine.submit(python(tmp_path, "asked", "import os; os.kill(os.getpid(), 15)"))
    found = endings(engine, 3)
    assert {name: (end.failure, end.lost) for name, end in found.items()} == {
        "fails": ("exit code 4: is lost", False),
        "killed": ("ended by signal 9", True),
        "asked": ("ended by signal 15", False),
    }
    engine.submit(python(tmp_path, "killed", "print('again')"))
    assert endings(engine, 1)["killed"].failure == ""
    assert log(tmp_path, "killed") == ["text", "again"]


def test_a_job_that_does_not_end_when_it_is_asked_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr("studies.engines.local.SECONDS_TO_END", 0.1)
    engine = ENGINES["local"](Resources(tmp_path))
    deaf = (
        "import signal, time; signal.signal(15, signal.SIG_IGN); print('here', flush=True); time.sleep(9); print('end')"
    )
    engine.submit(python(tmp_path, "deaf", deaf))
    wait_for(lambda: log(tmp_path, "deaf"))
    engine.cancel()
    assert log(tmp_path, "deaf") == ["here"]


def test_a_job_of_this_machine_outlives_its_parent(tmp_path):
    (tmp_path / "logs").mkdir()
    parent = f"""
import os
from pathlib import Path
from studies.engines.base import Job, Resources
from studies.engines.local import LocalEngine
store = Path({str(tmp_path)!r})
LocalEngine(Resources(store)).submit(Job("a", ["sh", "-c", "sleep .2; echo done"], {{}}, store / "logs/a.log"))
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", parent], cwd=PROJECT, check=False).returncode == -9
    wait_for(lambda: log(tmp_path, "a") == ["done"])


# What other machines do.


def test_a_supervised_command_is_asked_to_end_when_its_parent_is_killed(tmp_path):
    parent = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(PROJECT)!r})
from studies.engines.supervise import Order, supervise
command = [sys.executable, "-S", "-c", {WORK!r}, "60"]
supervise([Order(command, {{"OMP_NUM_THREADS": "1"}}, Path("/"), Path("a.log"), [])])
"""
    (tmp_path / "logs").mkdir()
    with subprocess.Popen([sys.executable, "-c", parent], cwd=tmp_path / "logs") as process:
        wait_for(lambda: log(tmp_path, "a"))
        process.kill()
    wait_for(lambda: log(tmp_path, "a")[1:] == ["saved"])


def test_runs_that_are_in_use_are_waited_for(tmp_path, monkeypatch):
    job = python(tmp_path, "a", "print('here')", runs=[tmp_path / "run"])
    monkeypatch.setattr("studies.engines.supervise.SECONDS_FOR_LEASES", 0.1)
    with locked(tmp_path / "run"):
        (outcome,) = supervise([order_of(job, 1)])
        assert outcome.lost
        assert "is in use on" in outcome.failure
        assert log(tmp_path, "a") == []
    (outcome,) = supervise([order_of(job, 1)])
    assert (outcome.failure, outcome.lost) == ("", False)
    assert log(tmp_path, "a") == ["here"]


@pytest.mark.parametrize(("name", "package"), [("ray", "Ray"), ("slurm", "submitit")])
def test_a_missing_package_is_named(tmp_path, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package.lower(), None)
    with pytest.raises(UserError, match=f"{package}: pip install -r requirements-optional.txt"):
        ENGINES[name](Resources(tmp_path))


# Ray.


def test_a_job_of_a_lost_machine_runs_again_on_another(tmp_path, monkeypatch):
    """Two machines of one core, of which one dies in the middle of a job."""
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    own = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_log_monitor": False}
    handler = signal.getsignal(signal.SIGTERM)
    cluster = Cluster(initialize_head=True, head_node_args={**own, "include_dashboard": False})
    try:
        doomed = cluster.add_node(**own)
        with pytest.raises(UserError, match="no machine of the Ray cluster has 2 cores"):
            ENGINES["ray"](Resources(tmp_path, address=cluster.address, cpus=2))
        engine = ENGINES["ray"](Resources(tmp_path, address=cluster.address, jobs=2))
        for name in "ab":
            engine.submit(work(tmp_path, name, 60))
        assert engine.room() == 0
        wait_for(lambda: all(log(tmp_path, name) for name in "ab"))
        raylet = doomed.all_processes["raylet"][0].process
        raylet.kill()
        raylet.wait()
        (lost,) = endings(engine, 1).values()
        assert lost.lost
        assert engine.room() == 1
        wait_for(lambda: log(tmp_path, lost.name)[1:] == ["saved"])
        (other,) = {"a", "b"} - {lost.name}
        os.kill(int(log(tmp_path, other)[0].split()[0]), signal.SIGKILL)
        assert endings(engine, 1)[other].lost
        engine.submit(work(tmp_path, lost.name, 0))
        assert endings(engine, 1)[lost.name].failure == ""
        assert log(tmp_path, lost.name)[-1] == "done"
        engine.submit(python(tmp_path, "fails", "import sys; sys.exit('wrong')"))
        assert endings(engine, 1)["fails"].failure == "exit code 1: wrong"
        engine.submit(work(tmp_path, "asked", 60))
        wait_for(lambda: log(tmp_path, "asked"))
        engine.cancel()
        assert log(tmp_path, "asked")[1:] == ["saved"]
    finally:
        cluster.shutdown()
        signal.signal(signal.SIGTERM, handler)


def test_nothing_at_the_address_of_a_cluster(tmp_path):
    pytest.importorskip("ray")
    with pytest.raises(UserError, match="no Ray cluster answers at --address 127"):
        ENGINES["ray"](Resources(tmp_path, address="127.0.0.1:1"))


# Slurm: stand-ins keep a file per job with its state, and another one with the group of its processes while it lives.
STAND_INS = {
    "sbatch": """
[ -e refused ] && { echo "sbatch: error: Invalid partition" >&2; exit 1; }
cp "$1" "$QUEUE/script-$(ls "$QUEUE" | grep -c script)"
number=$((100 + $(ls "$QUEUE" | grep -c script)))
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$1")
one() {
    echo PENDING > "$QUEUE/$1.state"; touch "$QUEUE/$1.live"
    ( while [ -e "$QUEUE/hold" ] && [ -e "$QUEUE/$1.live" ]; do sleep 0.05; done
      [ -e "$QUEUE/$1.live" ] || exit
      echo RUNNING > "$QUEUE/$1.state"
      setsid bash "$2" < /dev/null > /dev/null 2>&1 &
      group=$!; echo $group > "$QUEUE/$1.live"
      wait $group && state=COMPLETED || state=FAILED
      while kill -0 -- -$group 2> /dev/null; do sleep 0.05; done
      grep -q CANCELLED "$QUEUE/$1.state" || echo $state > "$QUEUE/$1.state"
      rm -f "$QUEUE/$1.live" ) > /dev/null 2>&1 &
}
export SLURM_JOB_ID=$number
if [ -n "$last" ]; then
    export SLURM_ARRAY_JOB_ID=$number
    for index in $(seq 0 "$last"); do export SLURM_ARRAY_TASK_ID=$index; one "${number}_$index" "$1"; done
else
    one "$number" "$1"
fi
echo "Submitted batch job $number"
""",
    "srun": """
while [ "${1#-}" != "$1" ]; do
    case "$1" in --output) out=$2; shift;; --error) err=$2; shift;; esac
    shift
done
fill() { echo "$1" | sed "s/%A/$SLURM_ARRAY_JOB_ID/; s/%a/$SLURM_ARRAY_TASK_ID/; s/%j/$SLURM_JOB_ID/; s/%t/0/"; }
exec "$@" >> "$(fill "$out")" 2>> "$(fill "$err")"
""",
    "squeue": 'cd "$QUEUE"; ls | sed -n "s/\\.live$//p"',
    "sacct": """
cd "$QUEUE"; echo "JobID|State|NodeList"
for file in *.state; do echo "${file%.state}|$(cat "$file")|node1"; done
""",
    "scancel": """
for job in "$@"; do
    echo "CANCELLED by 0" > "$QUEUE/$job.state"; group=$(cat "$QUEUE/$job.live")
    if [ -n "$group" ]; then kill -TERM -- "-$group"; else rm "$QUEUE/$job.live"; fi
done
""",
}


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """The folder of the queue of stand-ins for Slurm."""
    pytest.importorskip("submitit")
    programs, jobs = tmp_path / "programs", tmp_path / "queue"
    programs.mkdir()
    jobs.mkdir()
    for name, text in STAND_INS.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    monkeypatch.setenv("QUEUE", str(jobs))
    monkeypatch.chdir(tmp_path)
    yield jobs
    subprocess.run(["scancel", *subprocess.check_output(["squeue"], text=True).split()], check=False)
    wait_for(lambda: not subprocess.check_output(["squeue"]))


def slurm(tmp_path, **resources):
    return SlurmEngine(Resources(tmp_path / "store", **resources), seconds_between=0.2)


def test_jobs_in_a_queue(tmp_path, queue):
    """Four jobs, two on a GPU; the driver ends and another adopts them; one fails, one is preempted and goes on."""
    store = tmp_path / "store"
    store.mkdir()
    jobs = [
        python(store, "good", "print('good')"),
        python(store, "fails", "import sys; sys.exit('wrong')"),
        work(store, "preempted", 60),
    ]
    options = {"cpus": 3, "jobs_per_gpu": 2, "slurm": {"partition": "tiny", "time": "2:00:00"}}
    engine = slurm(tmp_path, **options)
    (queue / "hold").touch()
    for job in jobs:
        engine.submit(job)
    assert engine.poll() == []
    script = (queue / "script-0").read_text()
    for line in ("partition=tiny", "time=2:00:00", "gpus-per-node=1", "cpus-per-task=6", "array=0-1%2", "no-requeue"):
        assert f"#SBATCH --{line}\n" in script
    assert {path.name for path in queue.glob("*.live")} == {"101_0.live", "101_1.live"}
    del engine
    engine = slurm(tmp_path, **options)
    for job in jobs:
        engine.submit(job)
    (queue / "hold").unlink()
    found = endings(engine, 2)
    assert (found["good"].failure, found["fails"].failure) == ("", "exit code 1: wrong")
    assert not found["fails"].lost
    wait_for(lambda: log(store, "preempted"))
    assert log(store, "preempted")[0].split()[1] == "3"
    jobs[2].command[-1] = "0"  # it will have less to do
    os.killpg(int((queue / "101_1.live").read_text()), signal.SIGUSR2)
    assert endings(engine, 1)["preempted"].failure == ""
    assert log(store, "preempted")[1] == "saved"
    assert log(store, "preempted")[-1] == "done"
    assert sum(path.name.startswith("script") for path in queue.iterdir()) == 2
    assert list((store / "slurm").glob("*.json")) == []


def test_jobs_in_a_queue_are_cancelled(tmp_path, queue):
    """By the process that has queued them, by another one, and by hand; and a machine is lost."""
    store = tmp_path / "store"
    store.mkdir()
    engine = slurm(tmp_path)
    for name in ("by_hand", "lost"):
        engine.submit(work(store, name, 60))
    engine.poll()
    wait_for(lambda: log(store, "by_hand") and log(store, "lost"))
    by_hand, lost = (json.loads((store / f"slurm/{name}.json").read_text())["id"] for name in ("by_hand", "lost"))
    subprocess.run(["scancel", by_hand], check=True)
    os.killpg(int((queue / f"{lost}.live").read_text()), signal.SIGKILL)
    wait_for(lambda: not (queue / f"{lost}.live").exists())
    (queue / f"{lost}.state").write_text("NODE_FAIL")
    found = endings(engine, 2)
    assert (found["by_hand"].failure, found["by_hand"].lost) == ("CANCELLED in Slurm", False)
    assert (found["lost"].failure, found["lost"].lost) == ("NODE_FAIL in Slurm", True)
    assert log(store, "by_hand")[1:] == log(store, "lost")[1:] == ["saved"]
    (queue / "hold").touch()
    engine.submit(work(store, "waiting", 60))
    engine.poll()
    engine.cancel()
    assert list(queue.glob("*.live")) == list((store / "slurm").glob("*.json")) == []
    engine.submit(work(store, "waiting", 60))
    engine.poll()
    assert cancel_slurm(store) == 1
    assert "CANCELLED" in endings(engine, 1)["waiting"].failure
    assert cancel_slurm(store) == 0
    (tmp_path / "refused").touch()
    engine.submit(work(store, "waiting", 60))
    with pytest.raises(UserError, match="sbatch refuses a job: sbatch: error: Invalid partition"):
        engine.poll()
