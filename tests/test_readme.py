"""README.md and docs say what is so: their Python runs, their commands have live flags, their links
lead somewhere.

The ```python blocks of a file run in order, in one namespace, in an empty folder, in a process of
their own. Comment lines directly after a `print` are what was printed last; floats are compared to
1 %. A comment in front of a block, which no reader sees, may give it what it needs, or keep it from
running:

    <!-- with: noise, data = torch.randn(2, 50, 2) -->
    <!-- not run: takes half an hour -->
"""

import ast
import contextlib
import dataclasses
import importlib
import io
import itertools
import json
import math
import os
import re
import shlex
import subprocess
import sys
import textwrap
import traceback
import types
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]

COMMENT = r"<!--(?:(?!-->).)*-->"
BLOCK = re.compile(
    rf"^(?P<before>(?:[ ]*{COMMENT}\s*)*)"
    r"^(?P<indent>[ ]*)```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^(?P=indent)```[ ]*$",
    re.M | re.S,
)
FLOAT = re.compile(r"[-+]?(?:\d+\.\d*(?:e[-+]?\d+)?|\.?\d+e[-+]?\d+|\.\d+)", re.I)


class Block(NamedTuple):
    """A fenced block of a Markdown file."""

    language: str
    code: str
    line: int  # of its first line of code
    given: list[str]  # statements to run before it
    reason: str  # why it is not run, or ""


def blocks(text):
    found = []
    for match in BLOCK.finditer(text):
        comments = [comment[4:-3] for comment in re.findall(COMMENT, match["before"], re.S)]
        notes = [comment.strip().partition(":") for comment in comments]
        given = [textwrap.dedent(note).strip() for name, _, note in notes if name == "with"]
        reason = " ".join(note.strip() for name, _, note in notes if name == "not run")
        line = text.count("\n", 0, match.start("code")) + 1
        code = textwrap.dedent(match["code"])
        found.append(Block(match["language"], code, line, given, reason))
    return found


def without_blocks(text):
    """The text with an empty line for each line of a block."""
    return BLOCK.sub(lambda match: "\n" * match[0].count("\n"), text)


# ------------------------------------------------------------------------------------------ Python


def shown_after(statement, lines):
    """The comment lines that stand directly after the prints of a statement."""
    shown = []
    for node in ast.walk(statement):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            if getattr(node.value.func, "id", "") == "print":
                number = node.end_lineno
                while number < len(lines) and lines[number].lstrip().startswith("#"):
                    shown.append((number, lines[number].lstrip()[1:].removeprefix(" ").rstrip()))
                    number += 1
    return [text for _, text in sorted(shown)]


def same_output(expected, got):
    """Whether lines are the same, floats to 1 % and runs of spaces as one."""
    return len(expected) == len(got) and all(map(_same_line, expected, got))


def _same_line(expected, got):
    texts = [" ".join(FLOAT.sub(" # ", line).split()) for line in (expected, got)]
    numbers = [map(float, FLOAT.findall(line)) for line in (expected, got)]
    close = (math.isclose(x, y, rel_tol=1e-2, abs_tol=1e-12) for x, y in zip(*numbers))
    return texts[0] == texts[1] and all(close)


def run_statements(code, namespace, name, line):
    """Run code that stands at a line of a file; AssertionError for output that is not as shown."""
    tree = ast.parse(code)
    lines, got = code.splitlines(), []  # since the last that were shown
    for statement in tree.body:
        shown = shown_after(statement, lines)
        ast.increment_lineno(statement, line - 1)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(ast.Module([statement], []), name, "exec"), namespace)
        own = [text.rstrip() for text in printed.getvalue().splitlines()]
        got += own
        if not shown:
            continue
        got = got[-max(len(shown), len(own)) :]
        if not same_output(shown, got):
            place = f"{name}, line {statement.lineno}"
            raise AssertionError("\n".join([place, "expected:", *shown, "got:", *got]))
        got = []


def run_file(path):
    """Run the Python blocks of a Markdown file; the number of those that failed."""
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    failed = 0
    for block in blocks(Path(path).read_text(encoding="utf-8")):
        if block.language != "python" or block.reason:
            continue
        try:
            for statements in block.given:
                run_statements(statements, vars(module), "<with>", 1)
            run_statements(block.code, vars(module), path, block.line)
        except Exception:
            failed += 1
            traceback.print_exc()
    return failed


@pytest.mark.parametrize("name", FILES)
def test_python_runs_and_prints_what_is_shown(name, tmp_path):
    command = [sys.executable, "-P", __file__, str(ROOT / name)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}
    found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


# ---------------------------------------------------------------------------------------- commands


def commands(text):
    """The commands of a file, each with its line: of its blocks, and in text from python on.

    Those in text that stand for others, by dots or by names in capitals, are left out.
    """
    for block in blocks(text):
        if block.language == "bash":
            lines = re.sub(r"\\\n", "", block.code).splitlines()
            for line in lines:
                yield from ((block.line, words) for words in separate(line, comments=True))
    text = without_blocks(text)
    for match in re.finditer(r"`((?:\w+=\S+ )*(?:python|torchrun(?=[^`]*\.py)) [^`]+)`", text):
        if not re.search(r"\.\.\.|…|\b[A-Z]{2,}\b", match[1]):
            line = text.count("\n", 0, match.start()) + 1
            yield from ((line, words) for words in separate(match[1], comments=False))


def separate(line, comments):
    """The commands of a line, which `&&`, `;` or `|` divide, without settings of variables."""
    words = [[]]
    for word in shlex.split(line, comments=comments):
        if word in ("&&", ";", "|"):
            words.append([])
        elif words[-1] or not re.match(r"\w+=", word):
            words[-1].append(word)
    return [command for command in words if command]


def make_what_a_reader_has(words):
    """The files that a command's flags name, in the current folder."""
    import numpy as np
    from PIL import Image

    from learning_demo import Config

    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (100, 32, 32, 3), dtype=np.uint8)
    for flag, value in itertools.pairwise(words):
        path = Path(value)
        if flag == "--data-path" and path.suffix == ".npy":
            np.save(path, rng.normal(size=(200, 2)))
        elif flag == "--data-path" and path.suffix == ".npz":
            np.savez(path, images=pictures)
        elif flag == "--data-dir" and "folder" in words:
            path.mkdir()
            for number, picture in enumerate(pictures):
                Image.fromarray(picture).save(path / f"{number}.png")
        elif flag == "--resume":
            path.mkdir(parents=True)
            (path / "config.json").write_text(json.dumps(dataclasses.asdict(Config())))


def check_learning(words, monkeypatch):
    """The settings are read as the script reads them, and checked unless that needs more than there
    is: a download, another device, or a run."""
    import learning_demo
    from generative.run_settings import from_command_line, settled

    make_what_a_reader_has(words)
    monkeypatch.setattr(sys, "argv", ["learning_demo.py", *words])
    config = from_command_line(learning_demo.Config, description=learning_demo.__doc__)
    config.device = "auto"
    if not config.resume and not getattr(config, "download", False):
        settled(config)


def check_command(words, monkeypatch):
    """SystemExit or another error for a script, module or flag that there is not."""
    match words:
        case ["torchrun", *rest]:
            from torch.distributed.run import parse_args

            given = parse_args(rest)
            check_command(
                ["python", given.training_script, *given.training_script_args], monkeypatch
            )
        case ["python", "learning_demo.py", *rest]:
            check_learning(rest, monkeypatch)
        case ["python", script, *rest] if script.endswith(".py"):
            assert (ROOT / script).exists(), f"there is no {script}"
            parse(importlib.import_module(script.removesuffix(".py")), rest)
        case ["python", "-m", module, *rest] if module.startswith("benchmarks"):
            parse(importlib.import_module(module), rest)


def parse(module, words):
    import tyro

    config = tyro.cli(module.Config, args=words)
    if hasattr(module, "check"):
        module.check(config)


@pytest.mark.parametrize("name", FILES)
def test_commands_have_live_flags(name, tmp_path, monkeypatch, capsys):
    failed = []
    for number, (line, words) in enumerate(commands((ROOT / name).read_text(encoding="utf-8"))):
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            with monkeypatch.context() as patch:
                patch.chdir(folder)
                check_command(words, patch)
        except SystemExit as end:
            if end.code:
                failed.append(f"line {line}: {shlex.join(words)}\n{capsys.readouterr().err}")
        except Exception as error:
            failed.append(f"line {line}: {shlex.join(words)}\n{type(error).__name__}: {error}")
    assert not failed, "\n".join(failed)


# ------------------------------------------------------------------------------------------- links


def anchors(text):
    """The names that GitHub gives to headings."""
    found = {}
    for heading in re.findall(r"^#{1,6} +(.+?)(?: +#+)? *$", without_blocks(text), re.M):
        heading = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        found[name] = found.get(name, -1) + 1
        if found[name]:
            found[f"{name}-{found[name]}"] = 0
    names = set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text))
    return names | set(found)


def links(text):
    """What links and pictures of a file lead to, but for other sites."""
    text = re.sub(r"`[^`]*`", "", re.sub(COMMENT, "", without_blocks(text), flags=re.S))
    found = re.findall(r"\]\(\s*<?([^)\s>]+)", text) + re.findall(
        r"^\[[^\]]+\]: *(\S+)", text, re.M
    )
    found += re.findall(r"(?:src|href|srcset)=\"([^\"]+)\"", text)
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def broken_links(text, folder):
    """Those of a text in this folder that lead to no file, or to no heading of one."""
    broken = []
    for link in links(text):
        place, _, anchor = link.partition("#")
        target = (ROOT if place.startswith("/") else folder) / place.lstrip("/")
        if place and not target.exists():
            broken.append(link)
        elif anchor and (not place or target.suffix == ".md"):
            there = target.read_text(encoding="utf-8") if place else text
            if anchor not in anchors(there):
                broken.append(link)
    return broken


@pytest.mark.parametrize("name", FILES)
def test_links_lead_to_files_and_headings(name):
    path = ROOT / name
    assert broken_links(path.read_text(encoding="utf-8"), path.parent) == []


# ---------------------------------------------------------------------------------- the conventions

EXAMPLE = """
# A `title`: of *two* words

<!-- with:
numbers = [1.0, 2.0]
-->

```python
print(
    numbers[0] / 3, len(numbers)
)
# 0.3334 2
for n in numbers:
    print("no output is shown", n)
x = 1
```

<!-- not run: it would fail -->
```python
1 / 0
```

```bash
A=1 python learning_demo.py --epochs 3 && cd x  # a comment
torchrun --nproc-per-node 2 learning_demo.py \\
    --batchsize 64
```

`python NAME.py`, `torchrun --max-restarts 1`, `python -m benchmarks.fit --jobs 1`
"""


def test_blocks_are_found_with_what_stands_before_them():
    given, skipped, bash = blocks(EXAMPLE)
    assert given.given == ["numbers = [1.0, 2.0]"] and not given.reason
    assert EXAMPLE.splitlines()[given.line - 1] == "print("
    assert skipped.reason == "it would fail" and bash.language == "bash"
    assert [words for _, words in commands(EXAMPLE)] == [
        ["python", "learning_demo.py", "--epochs", "3"],
        ["cd", "x"],
        ["torchrun", "--nproc-per-node", "2", "learning_demo.py", "--batchsize", "64"],
        ["python", "-m", "benchmarks.fit", "--jobs", "1"],
    ]


def test_links_that_lead_nowhere_are_found():
    assert anchors(EXAMPLE) == {"a-title-of-two-words"}
    text = "[![a](no.png)](README.md#citation) [b](README.md#no) [c](#no) [d](#yes) `[e](f)`\n# Yes"
    assert broken_links(text, ROOT) == ["no.png", "README.md#no", "#no"]


def test_output_is_compared_with_the_comments_after_a_print():
    block, *_ = blocks(EXAMPLE)
    run_statements(block.code, {"numbers": [1.0, 2.0]}, "example", block.line)
    with pytest.raises(AssertionError, match=r"line 9\nexpected:\n0.3334 2\ngot:\n0.33333\d* 3$"):
        run_statements(block.code, {"numbers": [1.0, 2.0, 3.0]}, "example", block.line)
    run_statements("print(1)\nprint(2)\nprint(3)\n# 2\n# 3\nprint(4)\n# 4", {}, "example", 1)
    with pytest.raises(AssertionError, match="line 2"):
        run_statements("print(1)\nprint(2)\n# 1\n# 3", {}, "example", 1)
    assert same_output(["1.00 <= W, off by 0e+00"], ["1.004 <= W, off by 2e-16"])
    assert not same_output(["3 points"], ["4 points"])
    assert not same_output(["a 1.0"], ["b 1.0"])
    assert not same_output(["1.0"], ["1.0", "2.0"])


@pytest.mark.parametrize(
    "command",
    [
        "python learning_demo.py --no-such-flag 1",
        "python learning_demo.py --n-critic 3",
        "python learning_demo.py --batchsize 1",
        "python ipot_demo.py --no-such-flag 1",
        "python no_such_script.py",
        "python -m benchmarks.no_such_module",
        "python -m benchmarks.fit --no-such-flag 1",
        "torchrun --no-such-flag 1 learning_demo.py",
        "torchrun learning_demo.py --no-such-flag 1",
    ],
)
def test_a_flag_that_is_not_live_is_found(command, monkeypatch, capsys):
    with pytest.raises((SystemExit, ValueError, AssertionError, ImportError)):
        check_command(shlex.split(command), monkeypatch)


if __name__ == "__main__":
    sys.exit(bool(run_file(sys.argv[1])))
