"""predict.py: files to answers."""

import csv
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import predict
from tests.standins import pipe
from tests.test_saved import images_of, runs  # noqa: F401
from tests.test_scenarios import streamed
from utils.errors import UserError
from zoo import Zoo
from zoo.inputs import find_images

PROJECT = Path(__file__).parent.parent


@pytest.fixture
def pictures(runs, tmp_path, monkeypatch):  # noqa: F811
    """run/, and pictures/ with ten test images of task 2 as PNG files, a folder deeper some of them."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(runs("zoo", "--hold_out", "0.3"), "run")
    images = images_of(streamed("run")[1])[:10]
    Path("pictures/more").mkdir(parents=True)
    for i, image in enumerate(images):
        folder = "pictures/more" if i > 6 else "pictures"
        Image.fromarray(image[0].numpy()).save(f"{folder}/{i}.png")
    return images


def read(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


def test_a_row_for_each_image(pictures, capsys):
    assert predict.main(["run", "--task", "middle", "pictures", "--out", "p.csv"]) == 0
    header, *rows = read("p.csv")
    assert header == ["file", "task", "class", "probability", "p(2)", "p(3)", "p(4)"]
    names = [f"pictures/{i}.png" for i in range(7)] + [f"pictures/more/{i}.png" for i in range(7, 10)]
    assert [row[0] for row in rows] == names
    found = Zoo.load("run").predict(pictures, "middle")
    np.testing.assert_allclose(np.array([row[4:] for row in rows], float), found.probabilities, atol=1e-5)
    assert [row[2] for row in rows] == found.labels
    assert all(float(row[3]) == max(map(float, row[4:])) and row[1] == "middle" for row in rows)
    assert capsys.readouterr().out == "10 images of 10 files: p.csv\n"


def test_images_in_an_array(pictures):
    np.savez("a.npz", X=pictures.numpy())
    assert predict.main(["run", "--task", "middle", "--data", "a.npz", "--out", "p.csv"]) == 0
    found = Zoo.load("run").predict(pictures, "middle").probabilities
    np.testing.assert_allclose(np.array([row[4:] for row in read("p.csv")[1:]], float), found, atol=1e-5)


def test_lines_without_a_file(pictures, capsys):
    assert predict.main(["run", "--task", "2", "pictures/more", "pictures/0.png", "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = Zoo.load("run").predict(pictures[[7, 8, 9, 0]], 2)
    for line, name, p in zip(lines, ["more/7", "more/8", "more/9", "0"], found.probabilities.numpy(), strict=True):
        first, second = np.argsort(-p)[:2]
        assert line == f"pictures/{name}.png: 2 middle: {first + 2} {p[first]:.4f}, {second + 2} {p[second]:.4f}"


def test_without_the_task(pictures, capsys):
    assert predict.main(["run", "--task", "auto", "pictures", "--out", "p.csv", "--routing", "energy"]) == 0
    header, *rows = read("p.csv")
    assert header[4:] == [f"p({name})" for name in ("1 0/1: 0", "1 0/1: 1", "2 middle: 2", "2 middle: 3", "2 middle: 4",
                                                    "3 5/6: 5", "3 5/6: 6")]  # fmt: skip
    found = Zoo.load("run").predict(pictures, "auto", "energy")
    expected = [(f"{t.number} {t.name}", c) for t, c in zip(found.tasks, found.labels, strict=True)]
    assert [(row[1], row[2]) for row in rows] == expected
    np.testing.assert_allclose(np.array([row[4:] for row in rows], float), found.probabilities, atol=1e-5)


@pytest.mark.parametrize("options", [["--combine", "stacked"], ["--temperature", "task", "--budget", "1"]])
def test_members_are_combined_as_asked(options, pictures):
    assert predict.main(["run", "--task", "2", "pictures", "--out", "p.csv", *options]) == 0
    how = dict(zip([option[2:] for option in options[::2]], options[1::2], strict=True))
    if "budget" in how:
        how["budget"] = int(how["budget"])
    expected = Zoo.load("run").combined(**how).predict(pictures, 2).probabilities
    np.testing.assert_allclose(np.array([row[4:] for row in read("p.csv")[1:]], float), expected, atol=1e-5)


def test_what_cannot_be_read_is_listed_and_skipped(pictures, capsys):
    Path("pictures/bad.png").write_bytes(b"no image")
    Path("pictures/empty.jpg").write_bytes(b"")
    Path("pictures/notes.txt").write_text("no image by its name")
    Path("pictures/._0.png").write_text("of macOS")
    Path("pictures/.thumbnails").mkdir()
    assert predict.main(["run", "--task", "2", "pictures", "--out", "p.csv"]) == 1
    out, err = capsys.readouterr()
    assert out == "10 images of 12 files: p.csv\n"
    assert re.fullmatch(
        r"predict.py: not looked at: 2 hidden, 1 without the suffix of an image\n"
        r"predict.py: pictures/bad.png cannot be read as an image .*\npredict.py: pictures/empty.jpg cannot .*\n"
        r"predict.py: 2 of 12 files were skipped\n", err
    )  # fmt: skip
    assert len(read("p.csv")) == 11
    assert predict.main(["run", "--task", "2", "pictures/bad.png"]) == 1
    with pipe(Path("pipe.png")):
        assert predict.main(["run", "--task", "2", "pipe.png"]) == 1
    assert "pipe.png cannot be read as an image (neither a file nor a folder)" in capsys.readouterr().err


def test_images_of_any_size_and_colour_are_fitted(pictures):
    """Enlarged by whole pixels, or with a margin on the longer sides: close to the image itself."""
    image = Image.fromarray(pictures[3, 0].numpy())
    Path("sizes").mkdir()
    image.save("sizes/0.png")
    image.resize((64, 64), Image.Resampling.BOX).save("sizes/1.png")
    image.convert("RGB").save("sizes/2.png")
    wide = Image.new("L", (20, 8))
    wide.paste(image, (6, 0))
    wide.save("sizes/3.png")
    assert predict.main(["run", "--task", "2", "sizes", "--out", "p.csv"]) == 0
    p = np.array([row[4:] for row in read("p.csv")[1:]], float)
    np.testing.assert_allclose(p[[2, 3]], p[[0, 0]], atol=1e-6)
    np.testing.assert_allclose(p[1], p[0], atol=0.15)


def test_the_zoo_reads_files_and_pictures_as_the_program_does(pictures):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(256, size=(30, 41, 3), dtype=np.uint8)).save("wide.png")
    assert predict.main(["run", "--task", "2", "wide.png", "pictures/3.png", "--out", "p.csv"]) == 0
    p, zoo = np.array([row[4:] for row in read("p.csv")[1:]], float), Zoo.load("run")
    files = ["wide.png", Path("pictures/3.png")]
    for given in (files, [Image.open(file) for file in files], [files[0], Image.open(files[1])]):
        np.testing.assert_allclose(zoo.predict(given, 2).probabilities, p, atol=1e-5)
    for given in (files[1], Image.open(files[1])):
        np.testing.assert_allclose(zoo.predict(given, 2).probabilities, p[1:], atol=1e-5)
    found, skipped = find_images(Path("pictures"))
    assert predict.main(["run", "--task", "2", "pictures", "--out", "folder.csv"]) == 0
    rows = read("folder.csv")[1:]
    assert [str(file) for file in found] == [row[0] for row in rows]
    assert zoo.predict(found, 2).labels == [row[2] for row in rows]
    assert not skipped.total()
    assert zoo.predict([], 2).labels == []
    with pytest.raises(UserError, match=r"none\.png cannot be read as an image"):
        zoo.predict("none.png", 2)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["run", "pictures"], "arguments are required: --task"),
        (["nowhere", "--task", "2", "pictures"], "nowhere is not the directory of a run"),
        (["pictures", "--task", "2", "pictures"], "pictures is not the directory of a run"),
        (["run", "--task", "midle", "pictures"], "unknown task 'midle'; did you mean 'middle'?"),
        (["run", "--task", "7", "pictures"], "unknown task '7'"),
        (["run", "--task", "2", "nothing.png"], "nothing.png does not exist"),
        (["run", "--task", "2", "run/members"], "run/members has no images (.apng, .bmp"),
        (["run", "--task", "2", "pictures", "--top", "none"], "--top is 'none'; it must be a whole number at least 1"),
        (["run", "--task", "2", "pictures", "--budget", "0"], "--budget is 0; it must be"),
        (["run", "--task", "2", "pictures", "--combine", "vote"], "--combine: unknown way to combine 'vote'"),
        (["run", "--task", "2", "pictures", "--temperature", "hot"], "--temperature: unknown temperature 'hot'"),
        (["run", "--task", "auto", "pictures", "--routing", "luck"], "--routing: unknown rule 'luck'"),
        (["run", "--task", "2", "pictures", "--out", "run/metrics.csv"], "--out run/metrics.csv exists"),
        (["run", "--task", "2", "pictures", "--out", "no/p.csv"], "--out no/p.csv cannot be written"),
        (["run", "--task", "2", "pictures", "--devise", "cpu"], "unknown option --devise; did you mean --device?"),
        (["run", "--task", "2", "pictures", "--device", "tpu"], "unknown device 'tpu'"),
        (["run", "--task", "2"], "required: IMAGE_OR_FOLDER"),
    ],
)
def test_wrong_input_is_one_line(given, words, pictures, capsys):
    before = sorted(map(str, Path().rglob("*")))
    assert predict.main(given) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.startswith("predict.py: ")
    assert err.count("\n") == 1
    assert sorted(map(str, Path().rglob("*"))) == before


def test_an_interrupted_table_is_not_left_behind(pictures, monkeypatch, capsys):
    def stopped(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(Zoo, "predict", stopped)
    assert predict.main(["run", "--task", "2", "pictures", "--out", "p.csv"]) == 130
    assert capsys.readouterr().err == "predict.py: interrupted; nothing was written\n"
    assert not list(Path().glob("p.csv*"))


def test_more_images_than_a_chunk(pictures, monkeypatch):
    monkeypatch.setattr(predict, "_CHUNK_IMAGES", 3)
    assert predict.main(["run", "--task", "2", "pictures", "--out", "p.csv"]) == 0
    rows = read("p.csv")[1:]
    assert [Path(row[0]).stem for row in rows] == [str(i) for i in range(10)]
    expected = Zoo.load("run").predict(pictures, 2).probabilities
    np.testing.assert_allclose(np.array([row[4:] for row in rows], float), expected, atol=1e-5)


def test_a_bar_on_a_terminal(pictures, monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    assert predict.main(["run", "--task", "2", "pictures", "--out", "p.csv"]) == 0
    assert "10/10" in sys.stderr.getvalue()


def test_the_command(pictures):
    done = subprocess.run(
        [sys.executable, str(PROJECT / "predict.py"), "run", "--task", "middle", "pictures/0.png"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("pictures/0.png: 2 middle: ")
