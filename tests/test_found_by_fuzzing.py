"""Inputs that tests/fuzz has found, which once ended in a traceback, hung or were taken: refused in one line."""

import hashlib
import json
import pickle
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load, save

import modelzoo
from tests.fuzz import attempts
from tests.fuzz.attempts import attempt
from tests.fuzz.cases import Case, Folder, Link, write
from tests.fuzz.files import joined_safetensors, split_safetensors
from tests.fuzz.images import png_claiming
from tests.fuzz.inputs import CONTINUAL, GRID, METHODS, STORE_GRID, TINY, YAML, cifar_batch, image_files
from tests.fuzz.prepared import SAVED_WITH, fitted, keep, manifest_of, names_in_store, prepare, prepared, saved
from tests.fuzz.saved import PICTURES
from tests.test_bad_input import CIFAR, FOLDER, HOSTILE

RUNS = ("finished", "isolated", "interrupted", "interrupted er", "interrupted joint", "saved zoo", "saved isolated")
NESTED = b"[" * 10**5
FOUND = Path(__file__).parent / "found"
ZOO, ISOLATED = (f"run/{names_in_store()[label]}" for label in ("zoo", "isolated"))
ZOOS, BOTH = {"run": "saved zoo"}, {"run": "saved zoo", "alone": "saved isolated"}
EXTEND = "--extend run --data_config more.yaml --run_dir made --device cpu --quiet"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patched:
        for name in RUNS:
            folder = tmp_path_factory.mktemp("prepared")
            patched.chdir(folder)
            prepare(name)
            keep(name, folder / "run")


@dataclass(frozen=True)
class Found:
    """A command, the runs it finds, and what is done to their files."""

    name: str
    program: str
    arguments: tuple[str, ...]
    words: tuple[str, ...] = ()  # of the message; none: it is accepted
    runs: dict[str, str] = field(default_factory=dict)  # folder -> one of RUNS
    files: dict = field(default_factory=dict)  # path, or how it begins -> content, or a function of the old content
    checksums: bool = True  # fit what was changed
    writes: tuple[str, ...] | None = None


def files_of(found):
    """All files of the case."""
    files = {**TINY, "d.yaml": YAML["digits"], "m.yaml": METHODS["er"]}
    for folder, name in found.runs.items():
        made = (saved if name in SAVED_WITH else prepared)(name)
        files |= {re.sub("^run/", f"{folder}/", path): content for path, content in made.items()}
    manifests = {folder: manifest_of(files, folder) for folder in found.runs}
    for start, content in found.files.items():
        path = next((path for path in files if path.startswith(start)), start)
        files[path] = content(files[path]) if callable(content) else content
        if "/state/" in path:  # its name has a part of its sum
            new = re.sub("[0-9a-f]{16}(?=.safetensors)", hashlib.sha256(files[path]).hexdigest()[:16], path)
            files[new] = files.pop(path)
            manifests["run"].files[new.removeprefix("run/")] = manifests["run"].files.pop(path.removeprefix("run/"))
    for folder, manifest in manifests.items() if found.checksums else ():
        files[f"{folder}/manifest.json"] = fitted(files, manifest, folder)
    return files


def in_json(**values):
    """A change of a JSON file; None removes the key."""

    def change(content):
        facts = json.loads(content) | values
        removed = {key for key, value in values.items() if value is None}
        return json.dumps({key: value for key, value in facts.items() if key not in removed}).encode()

    return change


def in_yaml(**values):
    return lambda content: yaml.safe_dump(yaml.safe_load(content) | values).encode()


def in_net(**values):
    return lambda content: yaml.safe_dump((old := yaml.safe_load(content)) | {"net": old["net"] | values}).encode()


def all_bytes(byte):
    """Every number of a safetensors file."""
    return lambda content: joined_safetensors((parts := split_safetensors(content))[0], byte * len(parts[1]))


def longer_header(content):
    return joined_safetensors(*split_safetensors(content), len(content) - 8)


def no_rows(content):
    return content.splitlines(keepends=True)[0]


def resumed(name, run, files, *words, checksums=True):
    return Found(name, "modelzoo", ("--resume", "--run_dir", "run"), words, {"run": run}, files, checksums)


def image(name, content, *words):
    path = f"{FOLDER}/train/dog/1.png"
    files = {"d.yaml": YAML["images"], **image_files(), path: content}
    return Found(name, "modelzoo", (*CONTINUAL, "--samples", "1"), words and (path, *words), files=files)


def stream(name, which, files, *words):
    return Found(name, "modelzoo", (*CONTINUAL, "--samples", "1"), words, files={"d.yaml": YAML[which], **files})


def benchmark(name, files, *words, runs=()):
    """The tables are made again."""
    arguments = ("collect", "--config", "g.yaml", "--store", "run")
    return Found(
        name,
        "benchmark",
        arguments,
        words,
        dict(runs),
        {**({} if runs else {"run": Folder()}), "g.yaml": STORE_GRID, **files},
    )


def store(name, path, content, *words):
    """The run of the zoo, of two, has another file."""
    both = {ZOO: "finished", ISOLATED: "isolated"}
    return benchmark(name, {f"{ZOO}/{path}": content}, *words, runs=both)


def report(name, files, *words):
    return Found(name, "report", ("run",), words, {"run": "finished"}, files)


def using(program, name, runs, arguments, files, *words, checksums=True):
    return Found(f"{program}: {name}", program, tuple(arguments.split()), words, runs, files, checksums, ("made",))


BATCH = pickle.dumps(cifar_batch(), protocol=2)
BATCHES = {f"{CIFAR}/{name}": BATCH for name in ("test_batch", *(f"data_batch_{i}" for i in range(1, 6)))}
LONG = "x" * 5000
ZERO = Link("/dev/zero")

CASES = [
    stream("a null character in a name of a pickle", "cifar", {
        **BATCHES, f"{CIFAR}/data_batch_3": BATCH.replace(b"core.multiarray", b"core\0multiarray"),
    }, "data_batch_3", "wants to run", "it was not run"),
    image("an image that Pillow warns of", (FOUND / "warned.tif").read_bytes()),
    image("a TIFF file without its end", (FOUND / "cut.tif").read_bytes(), "not an image"),
    image("a TIFF file of 131 samples a pixel", (FOUND / "samples.tif").read_bytes(), "not an image"),
    image("a PNG file 100,000,000 pixels high", png_claiming(1, 10**8, b""), "too many"),
    image("a grey PNG file 100,000,000 pixels high", png_claiming(1, 10**8, b"", 1, 0), "too many"),
    # command lines
    Found("a directory whose name is no text", "modelzoo", (*CONTINUAL, "--run_dir", "\udc80x"), ("is no text",)),
    Found("a null character in --run_dir", "modelzoo", (*CONTINUAL, "--run_dir=d.yaml\0"),
          ("--run_dir d.yaml", "null")),
    Found("two dashes for a value", "modelzoo", (*CONTINUAL, "--run_dir=--"), ("--run_dir: expected one argument",)),
    using("predict", "two dashes for a value", ZOOS, "run --task auto --top=-- pictures", PICTURES, "--top"),
    using("predict", "a long --out", ZOOS, f"run --task auto --out {LONG} pictures", PICTURES, "--out xxx"),
    using("distill", "--data_dir is no text", ZOOS, "run --run_dir made --data_dir=\udcff", {}, "--data_dir"),
    using("forget", "a null character in --run_dir", ZOOS, "run --task 3 --run_dir a\0b", {}, "--run_dir a"),
    # runs
    resumed("a random state of ones", "interrupted er", {"run/state/training-m": all_bytes(b"\xff")}, "continue"),
    resumed("a random state of 127s", "interrupted joint", {"run/state/training-m": all_bytes(b"\x7f")}, "continue"),
    resumed("a pickle for a state", "interrupted er", {"run/state/method-": HOSTILE}, "run"),
    resumed("a manifest without metrics.csv", "interrupted", {"run/metrics.csv": Link("missing")}, "run"),
    resumed("an endless manifest", "interrupted", {"run/manifest.json": ZERO}, "manifest.json", checksums=False),
    resumed("an odd lock", "interrupted", {"run/.lock": NESTED[:4000]}),
    Found("a link that leads nowhere", "modelzoo", (*CONTINUAL, "--samples", "4", "--overwrite"), ("--run_dir run",),
          files={"run": Link("missing")}),
    using("modelzoo", "a cell of 131,073 characters", ZOOS, EXTEND,
          {"run/episodes.csv": lambda old: old + b"x" * 131_073}, "episodes.csv"),
    # benchmarks
    benchmark("a tag in a grid", {"run": Folder(), "g.yaml": GRID.replace(b"[d.yaml]", b"[!!bool maybe]")},
              "g.yaml is not valid YAML"),
    benchmark("a number for a key of a grid", {"g.yaml": GRID.replace(b"samples:", b"4294967296:")}, "'4294967296'"),
    benchmark("a number for a key that varies", {"g.yaml": GRID + b"vary: {7: [1]}\n"}, "g.yaml: vary", "'7'"),
    store("a nested summary", "summary.json", NESTED, ZOO),
    store("a text for a figure", "summary.json", in_json(members_per_prediction="inf")),
    store("no column of the ledger", "summary.json", in_json(stored_bytes=None), "run"),
    store("no forgetting", "summary.json", in_json(forgetting_chaudhry=None)),
    store("an endless configuration", "config.yaml", ZERO, "run"),
    store("a null character in a method", "config.yaml", in_yaml(method="a\0b")),
    store("a key that is no text", "config.yaml", lambda old: old.replace(b"augment:", b"null:", 1)),
    store("no stream", "config.yaml", lambda old: old.replace(b"stream:", b"streem:", 1), "run"),
    # reports
    report("episodes.csv without a row", {"run/episodes.csv": no_rows}, "run"),
    report("a nested member", {"run/members/member_000.json": NESTED}, "run"),
    report("no stream", {"run/config.yaml": lambda old: old.replace(b"stream:", b"streem:", 1)}, "run"),
    report("a list for a number, which is shown as it is", {"run/config.yaml": in_net(dropout=[[0]])}),
    report("targets out of range", {"run/predictions/targets.": all_bytes(b"\x7f")}, "run"),
    # zoos
    using("distill", "a list for the number of a task", BOTH, "run --run_dir made --isolated alone",
          {"alone/summary.json": in_json(task_numbers=[1, [3, 7], 3])}, "alone/summary.json is damaged"),
    using("distill", "more numbers than figures", BOTH, "run --run_dir made --isolated alone",
          {"alone/summary.json": in_json(task_numbers=[1, 2, 3, 3])}, "alone/summary.json is damaged"),
    using("distill", "a list for how inputs are made", ZOOS, "run --run_dir made",
          {"run/config.yaml": in_yaml(preprocess=["ImagePreprocess"])}, "inputs made by"),
    resumed("a figure without the others of its kind", "finished",
            {"run/summary.json": in_json(routed_domain_acc=34)}, "run/summary.json is damaged"),
    using("distill", "an isolated network that is damaged", BOTH, "run --run_dir made --isolated alone",
          {"alone/members/member_002.safetensors": lambda old: old.replace(b'"F32"', b'" "  ', 1)}, "alone"),
    using("forget", "a folder for predictions", ZOOS, "run --task 2 --run_dir made",
          {"run/predictions/member_002.safetensors": Folder()}, "member_002.safetensors", checksums=False),
    using("forget", "a longer header", {"run": "saved isolated"}, "run --task 2 --run_dir made",
          {"run/members/member_001.safetensors": longer_header}, "member_001.safetensors is damaged"),
    using("forget", "a program for a member", ZOOS, "run --task middle --run_dir made --retrain",
          {"run/members/member_001.safetensors": b"\x7fELF" + bytes(200)}, "member_001.safetensors is damaged"),
]  # fmt: skip


@pytest.mark.parametrize("found", CASES, ids=lambda found: found.name)
def test_what_the_fuzzer_found_is_refused_in_one_line(found, runs, tmp_path, monkeypatch, recwarn):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(attempts, "SECONDS", 60)  # on a busy machine
    arguments, files = list(found.arguments), files_of(found)
    answer = attempt(Case("found", 0, arguments, files, found.program, writes=found.writes), tmp_path / "case")
    assert not answer.wrong  # one line, nothing run, nothing written elsewhere
    assert not recwarn.list
    assert answer.code in ((2,) if found.words else (0, "accepted")), answer.line
    assert [word for word in found.words if word not in answer.line] == [], answer.line


@pytest.mark.parametrize("change", ["shape", "missing"])
def test_decoded_images_that_were_changed_are_decoded_again(change, tmp_path, monkeypatch, capsys):
    """The file that keeps them still has the fingerprint of the folder."""
    monkeypatch.chdir(tmp_path)
    write({**TINY, "d.yaml": YAML["images"], **image_files()})
    arguments = [*CONTINUAL, "--samples", "1", "--quiet", "--overwrite"]
    assert modelzoo.main(arguments) == 0
    expected = Path("run/metrics.csv").read_bytes()
    (path,) = Path("data/cache").iterdir()
    tensors = load(path.read_bytes())
    if change == "missing":
        del tensors["pixels"]
    else:
        tensors["pixels"] = tensors["pixels"].flatten(2)
    path.write_bytes(save(tensors))
    assert modelzoo.main(arguments) == 0
    assert Path("run/metrics.csv").read_bytes() == expected
