"""Mutated run directories, given to modelzoo.py, benchmark.py and report.py."""

import hashlib
import json
import random
from dataclasses import replace
from pathlib import Path

from records.manifest import MANIFEST, Manifest
from tests.fuzz.cases import Case, Folder, Link
from tests.fuzz.files import mutated_file
from tests.fuzz.inputs import CONTINUAL, METHODS, STORE_GRID, STREAM
from tests.fuzz.prepared import MADE_WITH, PREPARED, fitted, manifest_of, names_in_store, prepared
from tests.fuzz.values import HUGE, REAL, changed, shown


def used(name: str, rng: random.Random) -> list[str]:
    """A command for a run that is there."""
    if name == "isolated" and rng.random() < 0.6:
        return [*CONTINUAL[:-1], "--run_dir", "other", "--continual", "--samples", "4", "--isolated", "run"]
    pick = rng.random()
    if pick < 0.65:
        return ["--resume", "--run_dir", "run"] if rng.random() < 0.7 else [*MADE_WITH[name], "--resume"]
    return ["--verify", "run"] if pick < 0.9 else [*MADE_WITH[name], "--overwrite"]


def run_files(rng: random.Random, which: str = "", hostile: bool = False) -> Case:
    """One file of a run, of those whose path has `which` in it; `hostile`: with the checksums to fit."""
    name = rng.choice([name for name in MADE_WITH if any(which in path for path in PREPARED[name])])
    files = prepared(name)
    paths = sorted(path for path in files if path.startswith("run/") and which in path)
    kinds: dict[str, list[str]] = {}
    for path in paths:  # so that one config.yaml is drawn as often as many tensors
        kinds.setdefault(
            Path(path).suffix + Path(path).parent.name + ("training" if "training" in path else ""), []
        ).append(path)
    path = rng.choice(kinds[rng.choice(sorted(kinds))])
    manifest = manifest_of(files)
    files[path], told = mutated_file(path, files[path], rng)
    if hostile and path != f"run/{MANIFEST}":
        if "state/" in path:  # the name has a part of the sum
            new = (
                path[: -len("0123456789abcdef.safetensors")]
                + hashlib.sha256(files[path]).hexdigest()[:16]
                + ".safetensors"
            )
            files[new] = files.pop(path)
            entries = dict(manifest.files)
            entries[new.removeprefix("run/")] = entries.pop(path.removeprefix("run/"))
            manifest = Manifest(manifest.episode, manifest.members, manifest.seconds, entries)
        files[f"run/{MANIFEST}"] = fitted(files, manifest)
    return Case("", 0, used(name, rng), files, told=f"{name}, {path}: {told}")


def state_file(rng: random.Random) -> Case:
    return run_files(rng, "state/", hostile=rng.random() < 0.8)


def member_file(rng: random.Random) -> Case:
    return run_files(rng, rng.choice(["members/", "predictions/"]), hostile=rng.random() < 0.7)


def run_directory(rng: random.Random) -> Case:
    return run_files(rng)


def hostile_run(rng: random.Random) -> Case:
    return run_files(rng, rng.choice(["config.yaml", "config.yaml", ".csv", "summary", ""]), hostile=True)


def hostile_manifest(rng: random.Random) -> Case:
    """manifest.json whose own checksum is right."""
    name = rng.choice(list(MADE_WITH))
    files = prepared(name)
    content = json.loads(files[f"run/{MANIFEST}"])
    del content["sha256"]
    how = rng.choice(["tree", "tree", "numbers", "names", "names", "names", "missing"])
    told = how
    if how == "tree":
        content, told = changed(content, rng)
    elif how == "numbers":
        key = rng.choice(["episode", "members", "seconds"])
        content[key] = rng.choice([*HUGE, *REAL, True, None, "1", 2, 3, 1000])
        told = f"{key} {shown(content[key])}"
    elif how == "names":
        old = rng.choice(sorted(content["files"]))
        odd = [
            "../outside", "/etc/passwd", "members/../../outside", "state/../config.yaml", "members//x", "a\nb", "", ".",
            "..", "members", "state", "members/..", "x/y", "a\0b", "x" * 300, "state/.lock", ".lock", "summary.json",
            "events.out.tfevents.9", MANIFEST, "state/training-member_0-0123456789abcdef.safetensors", "é",
            "config.yaml ", "state/method-0123456789abcdef.safetensors", "state/task_1_test-0.safetensors",
            "METRICS.csv",
        ]  # fmt: skip
        new = rng.choice(odd)
        entry = content["files"].pop(old) if rng.random() < 0.5 else content["files"][old]
        content["files"][new] = entry
        plain = not {"/", "\0"} & set(new) and 0 < len(new) < 256
        if rng.random() < 0.5 and plain and new not in (".", "..", "members", "state", MANIFEST):
            files[f"run/{new}"] = files[f"run/{old}"]
        told = f"{old} -> {new!r:.40}"
    elif how == "missing":
        old = rng.choice(sorted(content["files"]))
        del content["files"][old]
        told = f"without {old}"
    files["outside"] = b"mine"
    try:
        if isinstance(content, dict):
            content["sha256"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        files[f"run/{MANIFEST}"] = json.dumps(content).encode()
    except (RecursionError, ValueError, TypeError):
        files[f"run/{MANIFEST}"] = b"[" * 10**5
    return Case("", 0, used(name, rng), files, told=f"{name}, manifest: {told}")


def links(rng: random.Random) -> Case:
    """Links, folders and strange files in a run directory."""
    name = rng.choice(list(MADE_WITH))
    files = prepared(name)
    files |= {"outside/precious": b"mine", "outside/member_000.safetensors": b"mine", "outside/x.partial": b"mine",
              "outside/config.yaml": b"mine"}  # fmt: skip
    pick = rng.choice(["folder", "folder", "file", "file", "whole", "into", "lock", "partial", "extra"])
    target = rng.choice(["../outside", "../outside/precious", "/dev/zero", "missing", "/dev/null", "."])
    told = f"{pick} {target}"
    if pick == "folder":
        folder = rng.choice(["members", "predictions", "state"])
        moved = rng.random() < 0.5
        for path in [path for path in files if path.startswith(f"run/{folder}/")]:
            content = files.pop(path)
            if moved:
                files[f"outside/{Path(path).name}"] = content
        files[f"run/{folder}"] = rng.choice([Link("../outside"), Link("../outside"), Link(target), b"a file"])
        told += f" {folder}, moved {moved}"
    elif pick == "file":
        path = rng.choice(sorted(path for path in files if path.startswith("run/")))
        if rng.random() < 0.5 and target != ".":
            files["outside/moved"] = files[path]
            target = "../" * path.count("/") + "outside/moved"
        files[path] = Folder() if rng.random() < 0.2 else Link(target)
        told += f" {path}"
    elif pick == "whole":
        files = {path.replace("run/", "real/"): content for path, content in files.items()}
        files["run"] = Link(rng.choice(["real", "outside", "missing", "run", "/dev/null"]))
    elif pick == "lock":
        files["run/.lock"] = rng.choice([
            Link("../outside/precious"), Link("missing"), Folder(), b"", b"[" * 4000, b"{}", b"\xff", b'{"host": 1}',
            b'{"host": "x", "process": {"a": [1]}, "since": "a\\nb\\u001b[31m"}', b'{"host": null}', b'"host"',
            b"9" * 5000,            b'{"host": "\\ud800"}', b'{"host": ' + b"9" * 4000 + b"}",
        ])  # fmt: skip
        told += f" {files['run/.lock']!r:.50}"
    elif pick == "partial":
        path = rng.choice(sorted(path for path in files if path.startswith("run/"))) + ".partial"
        files[path] = rng.choice([Link("../outside/precious"), Link("../../outside/precious"), Folder(), b"x"])
        told += f" {path}"
    elif pick == "into":
        files["run/members/link"] = Link(target)
        files["run/state/training-x.safetensors"] = Link(target)
        files["run/events.out.tfevents.1"] = Link(target)
    else:
        odd = rng.choice(
            [b"\xff", b"a\nb", b"\x1b[31m", "é".encode(), b"x" * 250, b".partial", b"summary.json.partial"]
        )
        files[b"run/" + odd] = b"x"
        told += f" {odd!r:.40}"
    return Case("", 0, used(name, rng), files, told=f"{name}: {told}")


def store(rng: random.Random) -> Case:
    """A benchmark's run directory, of which the tables are made again."""
    files = {**STREAM, "m.yaml": METHODS["er"]}
    files["g.yaml"], names = STORE_GRID, names_in_store()
    for name, label in (("finished", "zoo"), ("isolated", "isolated")):
        files |= {path.replace("run/", f"run/{names[label]}/"): content
                  for path, content in PREPARED[name].items() if path.startswith("run/")}  # fmt: skip
    folder = f"run/{rng.choice([names['zoo'], names['isolated']])}"
    path = f"{folder}/" + rng.choice(["summary.json", "summary.json", "config.yaml", "config.yaml", MANIFEST])
    manifest = manifest_of(files, folder)
    files[path], told = mutated_file(path, files[path], rng)
    if rng.random() < 0.8 and not path.endswith(MANIFEST):
        files[f"{folder}/{MANIFEST}"] = fitted(files, manifest, folder)
    if rng.random() < 0.1:
        files[path] = rng.choice([Link("/dev/zero"), Link("missing"), Folder()])  # type: ignore[assignment]
        told = repr(files[path])
    arguments = ["collect", "--config", "g.yaml", "--store", "run"]
    return Case("", 0, arguments, files, "benchmark", f"{path}: {told}")


def report_of_run(rng: random.Random) -> Case:
    """A damaged run that the report is to be made of."""
    made = run_files(rng, rng.choice(["", "members/", "predictions/", ".csv", "config", "summary"]), rng.random() < 0.8)
    more = rng.choice([[], [], ["--format", "csv"], ["--format", "tex"], ["--out", "run/elsewhere"]])
    return replace(made, arguments=["run", *more], program="report")
