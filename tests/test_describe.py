"""describe.py: languages in folders, which are read again; what is damaged is refused in one line."""

import json
import pickle
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import describe
from datasets import build_stream
from datasets.synthetic.language import ITEMS
from datasets.synthetic.saved_language import read_language
from records.invocation import configure
from tests.recalling import SMALL
from utils.errors import UserError

TASKS = ["recall", {"language": "recall", "ask": "value", "withheld": 0.25, "name": "the other way"}]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("d.yaml").write_text(yaml.safe_dump(
        {"dataset": "languages", "tasks": TASKS, "symbols": 20, "pairs": 4, "fewest_pairs": 2, **SMALL}))  # fmt: skip


@pytest.fixture
def folder(capsys):
    """The folder of the second task."""
    assert describe.main(["d.yaml", "--out", "out", "--seed", "3"]) == 0
    return Path("out/2-recall")


def stream(**options):
    config = configure(data_config="d.yaml", seed=3, **options).config
    return build_stream(config.data, 3, torch.device("cpu"))


def test_a_language_that_is_read_has_the_documents_of_a_run(folder):
    for task, name in zip(stream().tasks, ("1-recall", "2-recall"), strict=True):
        saved = read_language(folder.parent / name)
        assert saved.splits.keys() == task.splits.keys()
        for split, examples in saved.splits.items():
            own = task.splits[split]
            assert torch.equal(examples.store, own.store)
            assert torch.equal(examples.targets, own.targets)
            assert examples.schema.positions.keys() == set(ITEMS)
            for part in ("positions", "replacements", "known"):
                one, other = getattr(examples.schema, part), getattr(own.schema, part)
                assert one.keys() == other.keys()
                assert all(torch.equal(one[item], other[item]) for item in one)
            assert torch.equal(examples.schema.answers, own.schema.answers)
            assert torch.equal(examples.schema.probabilities, own.schema.probabilities)
        again = saved.language.draw(20, torch.Generator().manual_seed(0), withheld=False)
        assert torch.equal(again.tokens, task.train.language.draw(20, torch.Generator().manual_seed(0), False).tokens)


def test_the_description_needs_no_program(folder):
    found = json.loads((folder / "language.json").read_text())
    assert (found["language"], found["task"], found["seed"]) == ("recall", "the other way", 3)
    assert found["settings"] == {"symbols": 20, "pairs": 4, "fewest_pairs": 2, "ask": "value", "withheld": 0.25,
                                 "seed": 0}  # fmt: skip
    assert found["vocabulary"] == {"size": 26, "first_symbol": 6, "symbols": 20, "special":
                                   {"pad": 0, "bos": 1, "eos": 2, "parent": 3, "child": 4, "sibling": 5}}  # fmt: skip
    assert {split: said["documents"] for split, said in found["splits"].items()} == {
        "train": 64,
        "dev": 96,
        "test": 128,
    }
    withheld = load_file(folder / "arrays.safetensors")["withheld"]
    assert withheld.shape == (10, 10)
    assert found["facts"] == {"keys": 10, "values": 10, "withheld pairs": int(withheld.sum())}
    for split in ("train", "dev", "test"):
        part = load_file(folder / f"{split}.safetensors")
        at = {item: part["tokens"].gather(1, part[f"positions.{item}"][:, None])[:, 0]
              for item in ("query", "answer", "original_query", "target")}  # fmt: skip
        assert torch.equal(at["query"], at["original_query"])
        assert torch.equal(at["answer"], at["target"])
        assert torch.equal(at["answer"], part["answers"][:, 0])
        assert set(withheld[at["answer"] - 6, at["query"] - 16].tolist()) == {split == "test"}


def test_what_is_printed(capsys):
    assert describe.main(["d.yaml", "--out", "out", "--set", "data.fewest_pairs=4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1. recall"
    assert lines[1].split() == ["train", "dev", "test"]
    assert lines[2].split() == ["documents", "64", "96", "128"]
    assert lines[3].split() == ["length", "8", "8", "8"]
    assert "2. the other way" in lines
    assert lines[-1] == "out"
    documents = [line.split() for line in lines if line.startswith("  bos")]
    tasks = stream(set={"data.fewest_pairs": 4}).tasks
    assert len(documents) == 6
    for place, words in enumerate(documents):
        tokens = tasks[place // 3].test.store[place % 3, :-1].tolist()
        named = {1: "bos", 2: "eos"}
        assert words == [named.get(token) or (f"k{token - 6}" if token < 16 else f"v{token - 16}") for token in tokens]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["d.yaml"], "the following arguments are required: --out"),
        (["none.yaml", "--out", "out"], "none.yaml does not exist; . has d.yaml, digits.yaml"),
        (["digits.yaml", "--out", "out"], "digits.yaml: dataset is 'digits'; describe.py describes languages"),
        (["d.yaml", "--out", "full"], "--out full exists; remove it, or name another folder"),
        (["d.yaml", "--out", "d.yaml"], "--out d.yaml exists; remove it, or name another folder"),
        (["d.yaml", "--out", "out", "--set", "hp.lr=1"], "--set hp.lr=1: only settings of the data matter here"),
        (["d.yaml", "--out", "out", "--set", "data.pairs=40"], "d.yaml: task 1: pairs is 40; 20 symbols have room for"),
        (["d.yaml", "--out", "out", "--set", "data.pears=4"], "--set: unknown key 'pears'; did you mean 'pairs'?"),
        (["d.yaml", "--out", "out", "--seed", "x"], "--seed is 'x'; it must be a whole number at least 0"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line_and_leaves_nothing(given, words, capsys):
    Path("digits.yaml").write_text("dataset: digits\ntasks: [[0, 1]]\n")
    Path("full").mkdir()
    Path("full/mine.txt").write_text("mine")
    before = sorted(map(str, Path().rglob("*")))
    assert describe.main(given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("describe.py: ")
    assert words in line
    assert sorted(map(str, Path().rglob("*"))) == before


def test_a_full_disk_leaves_nothing(monkeypatch, capsys):
    written = []

    def write(path, content):
        written.append(path)
        if len(written) == 5:
            raise OSError(28, "No space left on device", str(path))
        path.write_bytes(content)

    monkeypatch.setattr("utils.files.write_bytes", write)
    assert describe.main(["d.yaml", "--out", "out"]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert [path.name for path in Path().iterdir()] == ["d.yaml"]


def changed(folder, name, change):
    tensors = load_file(folder / name)
    save_file(change(tensors) or tensors, folder / name)


def edited(folder, **values):
    path = folder / "language.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


class Trap:
    def __reduce__(self):
        return Path.touch, (Path("trapped"),)


DAMAGE = {
    "no description": (lambda at: (at / "language.json").unlink(), "language.json is missing; describe.py writes such"),
    "cut off": (lambda at: (at / "language.json").write_text('{"format": 1, '), "language.json is damaged ("),
    "a list": (lambda at: (at / "language.json").write_text("[1]"), "language.json is damaged ("),
    "later format": (lambda at: edited(at, format=9), "language.json has format 9; this version reads 1"),
    "language": (lambda at: edited(at, language="recal"), "language.json: unknown language 'recal'; did you mean"),
    "no language": (lambda at: edited(at, language=["recall"]), "language.json: unknown language"),
    "setting": (lambda at: edited(at, settings={"pears": 1}), "language.json: settings: unknown key 'pears'"),
    "settings": (lambda at: edited(at, settings={"pairs": 99, "symbols": 20}), "settings: pairs is 99; 20 symbols"),
    "other pairs": (lambda at: edited(at, settings={"symbols": 20, "withheld": 0.5}), "arrays.safetensors is not what"),
    "split elsewhere": (lambda at: edited(at, splits={"../1-recall/test": {}}), "language.json is damaged ("),
    "no arrays": (lambda at: (at / "arrays.safetensors").unlink(), "arrays.safetensors is missing"),
    "no split": (lambda at: (at / "dev.safetensors").unlink(), "dev.safetensors is missing"),
    "pickled": (lambda at: (at / "test.safetensors").write_bytes(pickle.dumps(Trap())), "test.safetensors is damaged"),
    "half a file": (lambda at: (at / "dev.safetensors").write_bytes((at / "dev.safetensors").read_bytes()[:900]),
                    "dev.safetensors is damaged ("),
    "no tokens": (lambda at: changed(at, "dev.safetensors", lambda t: t.pop("tokens") is None or t),
                  "dev.safetensors is damaged ('tokens')"),
    "fewer": (lambda at: changed(at, "dev.safetensors", lambda t: {**t, "answers": t["answers"][:5].clone()}),
              "dev.safetensors is damaged ("),
    "foreign token": (lambda at: changed(at, "dev.safetensors", lambda t: t["tokens"].__setitem__((0, 1), 26)),
                      "dev.safetensors is damaged (tokens must be from 0 to 25)"),
    "no place": (lambda at: changed(at, "dev.safetensors", lambda t: t["positions.target"].__setitem__(0, 99)),
                 "dev.safetensors is damaged (positions must be from -1 to 12"),
    "no answer": (lambda at: changed(at, "dev.safetensors", lambda t: t["positions.answer"].__setitem__(0, -1)),
                  "dev.safetensors is damaged (positions must be from -1 to 12, and there must be an answer)"),
    "impossible": (lambda at: changed(at, "dev.safetensors", lambda t: t["probabilities"].fill_(float("nan")) is None),
                   "dev.safetensors is damaged (probabilities must be float32, from 0 to 1)"),
    "real tokens": (lambda at: changed(at, "dev.safetensors", lambda t: {**t, "tokens": t["tokens"].float()}),
                    "dev.safetensors is damaged (all but the probabilities must be int64"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_one_line(folder, name):
    damage, words = DAMAGE[name]
    damage(folder)
    with pytest.raises(UserError) as told:
        read_language(folder)
    assert str(told.value).startswith(f"{folder}/")
    assert words in str(told.value)
    assert "\n" not in str(told.value)
    assert not Path("trapped").exists()
