"""Mutated zoos, given to predict.py, export.py, distill.py, forget.py and modelzoo.py --extend."""

import os
import random
from collections.abc import Sequence
from typing import Any

from records.manifest import MANIFEST, Manifest
from tests.fuzz.cases import Case, Files, Folder, Link
from tests.fuzz.configurations import VALUED, VALUES, odd_options
from tests.fuzz.files import mutated_file, other_member, other_tensors
from tests.fuzz.images import large_image
from tests.fuzz.inputs import image
from tests.fuzz.prepared import _CONTINUAL, SAVED, SAVED_WITH, fitted, manifest_of, saved
from tests.fuzz.values import OTHER_FILES, damaged, text_or_tree

PICTURES: Files = {"pictures/1.png": image(), "pictures/2.jpg": image("jpg", 16), "pictures/more/3.bmp": image("bmp")}
RULES = ("entropy", "confidence", "energy")


def mutated_run(rng: random.Random, name: str, *likely: str) -> tuple[Files, str]:
    """A saved run, with something wrong in a file whose path has one of `likely` in it."""
    files = saved(name)
    manifest = manifest_of(files)
    pick = rng.random()
    if pick < 0.06:
        numbers = [manifest.episode, manifest.members]
        numbers[rng.randrange(2)] += rng.choice([-1, 1, 2, 1000, 2**31, -99])
        episode, members = (max(0, number) for number in numbers)
        files[f"run/{MANIFEST}"] = Manifest(episode, members, 0.1, manifest.files).content()
        return files, f"{name}: manifest, {numbers}"
    if pick < 0.12:
        path = rng.choice(sorted(path for path in files if path.startswith("run/")))
        files[path] = rng.choice([Link("/dev/zero"), Link("missing"), Link("/dev/null"), Folder(), Link("../outside"),
                                  b""])  # fmt: skip
        files["outside"] = b"mine"
        return files, f"{name}, {path}: {files[path]!r:.40}"
    which = rng.choice([*likely, *likely, ""])
    chosen = sorted(path for path in files if path.startswith("run/") and which in path and "tfevents" not in path)
    if not chosen:
        return mutated_run(rng, name, "")
    path = rng.choice(chosen)
    how = rng.random()
    if path.endswith(".safetensors") and "state/" not in path and how < 0.6:
        files[path], told = other_tensors(files[path], rng)
    elif path.endswith(".json") and "members/" in path and how < 0.6:
        files[path], told = other_member(files[path], rng)
    else:
        files[path], told = mutated_file(path, files[path], rng)
    hostile = path != f"run/{MANIFEST}" and rng.random() < 0.9
    if hostile:
        files[f"run/{MANIFEST}"] = fitted(files, manifest)
    return files, f"{name}, {path}: {told}"


def combination(rng: random.Random) -> list[str]:
    """Options that members are combined by, mostly sound."""
    given = []
    if rng.random() < 0.4:
        given += ["--combine", rng.choice(["mean", "weighted", "stacked", "stacked"])]
    if rng.random() < 0.3:
        given += ["--temperature", rng.choice(["none", "task", "member"])]
    return given + (["--budget", rng.choice(["1", "2", "1000000"])] if rng.random() < 0.3 else [])


def odd_picture(rng: random.Random) -> tuple[Files, str]:
    """An image file, a folder or a name that is none, in `pictures`."""
    how = rng.choice(["damage", "damage", "large", "large", "other", "name", "place", "place"])
    path: Any = rng.choice(list(PICTURES))
    if how == "damage":
        suffix = rng.choice(["png", "jpg", "bmp", "gif", "webp", "tif", "ppm"])
        content, told = damaged(image(suffix, rng.choice([1, 8, 64]), "L" if suffix == "gif" else "RGB"), rng)
        return {path: content}, f"{suffix} {told}"
    if how == "large":
        content, told = large_image(rng)
        return {path: content}, told
    if how == "other":
        content = rng.choice(OTHER_FILES)
        return {path: content}, f"{content!r:.40}"
    if how == "name":
        odd = rng.choice([b"\xff.png", b"\xc3\xa9.png", b"a\nb.png", b"\x1b[31m.png", b"x" * 250 + b".png", b".png",
                          b"a.PNG", b"-.png", b"--task.png", b'a","b.png', b"=1+1.png"])  # fmt: skip
        content = rng.choice([image(), image(), b"no image"])
        return {b"pictures/" + odd: content}, f"name {odd!r:.30} {content!r:.10}"
    what = rng.choice(["/dev/zero", "/dev/null", "missing", "/dev", ".", "folder", "cycle", "/proc/self/mem", "run"])
    if what == "cycle":
        return {"pictures/loop": Link(".."), "pictures/itself.png": Link("itself.png")}, what
    return {path: Folder() if what == "folder" else Link(what)}, f"{path} {what}"


def predict_case(rng: random.Random) -> Case:
    """A damaged run, an odd image or an odd option for predict.py."""
    pick, name = rng.random(), rng.choice(SAVED)
    task = rng.choice(["1", "2", "3", "middle", "auto", "auto", "auto"]) if name != "forgotten" else "auto"
    files, told = {**saved(name), **PICTURES}, name
    arguments = ["run", "--task", task, "--device", "cpu", *combination(rng), "--routing", rng.choice(RULES)]
    arguments += ["--out", "p.csv"] * (rng.random() < 0.5)
    given = ["pictures"]
    if pick < 0.5:
        damaged_files, told = mutated_run(rng, name, "members/", "members/", ".json", "predictions/", "config")
        files |= damaged_files
    elif pick < 0.75:
        odd, told = odd_picture(rng)
        files |= odd
        if rng.random() < 0.5:
            given = [os.fsdecode(path) for path in odd]
    else:
        arguments, told = odd_options(rng, [*arguments, *given], [
            "--task", "--out", "--top", "--routing", "--combine", "--temperature", "--budget", "--device", "--threads",
        ])  # fmt: skip
        given = []
    return Case("", 0, [*arguments, *given], files, "predict", told, written(arguments, "--out"))


def written(arguments: Sequence[str], option: str, *without: str) -> tuple[str, ...]:
    """Values of an option that names what is written, and where it is written without."""
    found = [value for one, value in zip(arguments, [*arguments[1:], ""], strict=True) if one == option]
    found += [one.partition("=")[2] for one in arguments if one.startswith(f"{option}=")]
    return tuple(value for value in found if value not in ("", ".")) or without


def export_case(rng: random.Random) -> Case:
    """A damaged run or an odd option for export.py."""
    name = rng.choice(SAVED)
    arguments = ["run", "--out", "made", "--format", "torch" if rng.random() < 0.97 else "both", *combination(rng)]
    arguments += ["--task", rng.choice(["1", "2", "middle"])] * (rng.random() < 0.5)
    files, told = saved(name), name
    if rng.random() < 0.8:
        files, told = mutated_run(rng, name, "members/", ".json", "predictions/", "config", "metrics")
    else:
        arguments, told = odd_options(rng, arguments, [
            "--task", "--out", "--format", "--combine", "--temperature", "--budget",
        ])  # fmt: skip
        files |= rng.choice(
            [
                {},
                {"made": Folder()},
                {"made": b"mine"},
                {"made/precious": b"mine"},
                {"made": Link("elsewhere"), "elsewhere/precious": b"mine"},
                {"made": Link("/dev/zero")},
            ]
        )
    return Case("", 0, arguments, files, "export", told, written(arguments, "--out"))


def distill_case(rng: random.Random) -> Case:
    """A damaged run or an odd option for distill.py."""
    name = rng.choice([name for name in SAVED if name != "student"])
    arguments = ["run", "--run_dir", "made", "--epochs", "1", "--device", "cpu", *combination(rng)]
    arguments += ["--quiet"] * (rng.random() < 0.5)
    files, told = saved(name), name
    pick = rng.random()
    if pick < 0.6:
        files, told = mutated_run(rng, name, "members/", ".json", "predictions/", "config", "config", "summary")
    elif pick < 0.8:
        other, told = mutated_run(rng, "saved isolated", "members/", ".json", "summary", "predictions/", "config")
        files |= {path.replace("run/", "alone/", 1): content for path, content in other.items()}
        files |= saved("saved zoo")
        arguments += ["--isolated", "alone"]
        told = f"--isolated, {told}"
    else:
        arguments, told = odd_options(rng, arguments, [
            "--run_dir", "--epochs", "--data_dir", "--combine", "--temperature", "--budget", "--isolated", "--seed",
            "--device", "--threads",
        ])  # fmt: skip
        files |= {"made/config.yaml": b"mine"} if rng.random() < 0.2 else {}
    return Case("", 0, arguments, files, "distill", told, written(arguments, "--run_dir", "run-student"))


def forget_case(rng: random.Random) -> Case:
    """A damaged run or an odd option for forget.py."""
    name = rng.choice([*SAVED, "saved zoo", "saved zoo of few", "saved isolated", "forgotten"])
    task = rng.choice(["2", "3", "3", "middle"] if name == "forgotten" else ["1", "2", "3", "3", "middle"])
    arguments = ["run", "--task", task, "--run_dir", "made", "--device", "cpu"]
    arguments += ["--retrain"] * (rng.random() < 0.6) + ["--quiet"] * (rng.random() < 0.5)
    files, told = saved(name), name
    if rng.random() < 0.8:
        files, told = mutated_run(rng, name, "members/", ".json", "predictions/", "targets", "config", "summary")
    else:
        arguments, told = odd_options(rng, arguments, ["--task", "--run_dir", "--device", "--threads"])
        files |= rng.choice([{}, {"made/config.yaml": b"mine"}, {"made": b"mine"}, {"made": Link("run")}])
    return Case("", 0, arguments, files, "forget", told,
                written(arguments, "--run_dir", *(f"run-without-{n}" for n in (1, 2, 3))))  # fmt: skip


def extend_case(rng: random.Random) -> Case:
    """A damaged run, tasks that do not fit or odd options for --extend; also odd values of --hold_out."""
    name = rng.choice([*SAVED_WITH, "extended", "forgotten"])
    files, told, pick = saved(name), name, rng.random()
    arguments = ["--extend", "run", "--data_config", "more.yaml", "--run_dir", "made", "--device", "cpu", "--quiet"]
    if pick < 0.55:
        likely = ("state/", "state/", "members/", "predictions/", "config", "config", ".csv", "summary")
        files, told = mutated_run(rng, name, *likely)
    elif pick < 0.8:
        files["more.yaml"], told = text_or_tree(files["more.yaml"], rng)
    elif pick < 0.9:
        arguments, told = odd_options(rng, arguments, [*VALUED, "--extend", "--hold_out"])
        arguments = [one for one in arguments if not one.startswith("--data_dir")]
    else:
        value = rng.choice([*VALUES, "0.1", "0.9", "0.91", "1e-9", "0.5", "-0.0"])
        arguments = [*_CONTINUAL[:-3], "--hold_out", value, "--continual", "--run_dir", "made"]
        told = f"--hold_out {value!r:.30}"
    return Case("", 0, arguments, files, told=told, writes=written(arguments, "--run_dir", "run-extended", "runs"))
