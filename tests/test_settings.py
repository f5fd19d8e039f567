"""Every field that is shown is live, with the default that is used; mistakes get one line."""

import copy
import dataclasses
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

import generative.settings
from generative import spaces
from generative.objectives import OBJECTIVES
from generative.objectives.objective import Objective
from generative.run_settings import check
from generative.settings import TYPES, settings
from learning_demo import Config, main, train

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = {
    "data_type": "gaussian",
    "data_size": 50000,
    "batchsize": 512,
    "lr": 1e-4,
    "epochs": 1000,
    "beta": 0.05,
    "plot_interval": 200,
}
SMALL = {"data_size": 300, "epochs": 1, "show": False}


def run(*words):
    return subprocess.run(
        [sys.executable, "learning_demo.py", *words], cwd=ROOT, capture_output=True, text=True
    )


def lines(**changes):
    """What a user's Config says: the lines of ours, some changed, None: left out."""
    kept = {name: value for name, value in vars(Config).items() if name in vars(Config())}
    kept = {name: value for name, value in {**kept, **changes}.items() if value is not None}
    return settings(type("Config", (), kept))


def test_config_keeps_the_published_fields():
    config = Config()
    assert {name: getattr(config, name) for name in PUBLISHED} == PUBLISHED


@pytest.mark.parametrize(
    "choices",
    [
        *({"objective": name} for name in OBJECTIVES),
        *({"data_type": "digits", "objective": "ipot", "space": name} for name in spaces.NAMES),
        {"data_type": "digits", "objective": "assignment", "space": "pixels"},
    ],
)
def test_help_lists_every_field_with_its_default_and_its_comment(choices):
    words = [word for name, value in choices.items() for word in (f"--{name}", value)]
    text = " ".join(run(*words, "--help").stdout.replace("│", " ").split())
    flags = {word.strip("[],") for word in text.split() if word.startswith("--")}
    fields = dataclasses.fields(Config(**choices))
    named = {"--" + field.name.replace("_", "-") for field in fields}
    assert flags - {"--help"} == named | {flag for flag in flags if flag.startswith("--no-")}
    for field in fields:
        flag = "--" + field.name.replace("_", "-")
        entry = re.split(rf"{flag}(?:, --no-\S*)? ", text)[-1].split("(default: ")
        assert len(entry[0].split()) > 2, field.name  # it is explained
        default = choices.get(field.name, field.default)
        assert entry[1].startswith(str(default or "")), field.name


def test_what_only_others_read_is_no_field():
    def fields(cls):
        return {field.name for field in dataclasses.fields(cls)}

    everyones = {name for name in TYPES if name != "beta"}
    for objective, cls in OBJECTIVES.items():
        assert fields(Config(objective=objective)) == everyones | fields(cls.Settings)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_an_objective_reads_all_of_its_own_fields(objective):
    source = (
        "".join(
            Path(sys.modules[cls.__module__].__file__).read_text()
            for cls in OBJECTIVES[objective].__mro__
            if cls.__module__.startswith("generative")
        )
        + (ROOT / "generative" / "batches.py").read_text()
    )
    for field in dataclasses.fields(OBJECTIVES[objective].Settings):
        if field.name not in vars(Config()):
            assert f"config.{field.name}" in source


def test_own_defaults_and_what_goes_before_them(tmp_path, capsys):
    assert Config() == Config(objective="ipot")
    config = Config(objective="wgan")
    assert (config.lr, config.batchsize, config.n_critic) == (5e-5, 64, 5)
    assert Config(objective="wgan", batchsize=512).batchsize == 512  # though that is Config's own
    assert dataclasses.replace(config, lr=1e-4).objective == "wgan"
    train(Config(objective="wgan-gp", n_critic=1, output_dir=str(tmp_path), **SMALL))
    assert "wgan-gp takes batchsize 256" in capsys.readouterr().out


def test_settings_can_be_copied_and_kept():
    config = Config(objective="uotm", conjugate="chi2")
    for again in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert again == config and type(again) is type(config)
    assert eval(repr(config), {"Config": Config}) == config


def test_the_command_line_goes_before_own_defaults(tmp_path, monkeypatch, capsys):
    words = "learning_demo.py --objective=wgan --batchsize 512 --data-size 600 --epochs 1 --no-show"
    words += f" --g-dim 8 --c-dim 8 --n_critic 5 --output-dir {tmp_path}"
    monkeypatch.setattr(sys, "argv", words.split())
    main()
    assert "wgan takes lr 5e-05, " in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, message",
    [
        ("--clip 0.1", "clip: ipot has no such setting; it belongs to wgan"),
        ("--no-debiased --objective wgan", "debiased: wgan has no such setting; it belongs to"),
        ("--objective sinkhorn --beta=1", "beta: sinkhorn has no such setting; it belongs to ipot"),
        ("--epoch 5", "epoch: there is no such setting; did you mean epochs?"),
        ("--objective gan", "objective: got 'gan'; accepts auto, ipot, ipot-exact, sinkhorn"),
        ("mixture", "'mixture' on the command line belongs to no setting"),
        ("--resume nowhere", "resume: nowhere is not a run's folder"),
    ],
)
def test_flags_that_are_not_live_are_refused(words, message):
    found = run(*words.split())
    assert found.returncode == 1 and found.stderr.startswith(f"learning_demo.py: {message}")
    assert found.stderr.count("\n") == 1


def test_lines_without_annotations_work_like_the_others(monkeypatch, tmp_path):
    """As in the README of the published script, `epochs = 10`."""
    source = (ROOT / "learning_demo.py").read_text()
    body = source.split("class Config:")[1].split("class Generator")[0]
    plain = body
    for name in ("epochs", "lr", "data_type", "show", "batchsize"):
        head, _, rest = plain.partition(f"    {name}: ")
        plain = f"{head}    {name} = {rest.partition(' = ')[2]}"
    plain = plain.replace("lr = 1e-4", "lr = 1").replace("epochs = 1000", "epochs = 1")
    edited = tmp_path / "learning_demo.py"
    edited.write_text(source.replace(body, plain))
    (tmp_path / "generative").symlink_to(ROOT / "generative")
    for package in ("exactot", "ipot.py"):
        (tmp_path / package).symlink_to(ROOT / package)

    def script(*words):
        return subprocess.run(
            [sys.executable, "learning_demo.py", *words], cwd=tmp_path, capture_output=True,
            text=True,
        )  # fmt: skip

    assert "--lr FLOAT learning rate at the end" in " ".join(script("--help").stdout.split())
    found = script("--data-size", "300", "--lr", "0.5")
    assert found.returncode == 0 and (tmp_path / "outputs" / "gaussian" / "metrics.json").exists()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"epochs": "10"}, r"epochs: got '10'; accepts .*; write `epochs: int = 10`"),
        ({"epochs": float("inf")}, r"epochs: got inf; .*write `epochs: int = ` with one of these"),
        ({"epochs": 10.5}, r"epochs: got 10\.5; .*write `epochs: int = ` with one of these"),
        ({"epochs": 10.0}, r"epochs: got 10\.0; .*; write `epochs: int = 10`"),
        ({"lr": "fast"}, r"lr: got 'fast'; accepts .*; write `lr: float = ` with one of these"),
        ({"show": "no"}, r"show: got 'no'; accepts True or False"),
        ({"beta": None}, r"Config has no beta; write a line `beta: float = ` with numbers above"),
        ({"epochs": None, "epoch": 10}, r"a line for epoch, which is no setting; did you mean epo"),
    ],
)
def test_lines_that_do_not_fit_get_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        lines(**changes)()
    assert "\n" not in str(error.value)


def test_settings_stay_those_of_their_objective():
    config = Config()
    with pytest.raises(ValueError, match=r"write Config\(objective='wgan'\)"):
        dataclasses.replace(config, objective="wgan")
    with pytest.raises(ValueError, match=r"write Config\(objective='wgan'\)"):
        config.objective = "wgan"
    with pytest.raises(ValueError, match=r"epoch: there is no such setting; did you mean epochs\?"):
        config.epoch = 5
    config.epochs = 5
    assert dataclasses.replace(config, lr=1.0).epochs == 5


def test_a_class_that_extends_config_is_one():
    class Mine(Config):
        epochs = 10

    config = Mine(objective="wgan")
    assert (config.epochs, config.lr, config.clip) == (10, 5e-5, 0.01)
    assert isinstance(config, Mine) and pickle.loads(pickle.dumps(Config(epochs=3))).epochs == 3


def test_own_fields_of_a_new_objective(monkeypatch):
    class Simple(Objective):
        @dataclasses.dataclass(kw_only=True)
        class Settings(Objective.Settings):
            momentum: float = 0.9  # of a kind without a rule

    monkeypatch.setitem(OBJECTIVES, "simple", Simple)
    assert Config(objective="simple").momentum == 0.9
    with pytest.raises(ValueError, match="momentum: got 'a'; accepts numbers"):
        check(Config(objective="simple", momentum="a"))
    Simple.Settings.decay = 0.5
    monkeypatch.setitem(OBJECTIVES, "other", type("Other", (Simple,), {}))
    with pytest.raises(ValueError, match=r"Settings: write `decay: float = 0\.5`"):
        generative.settings._kind.cache_clear()
        Config(objective="other")


def test_a_run_is_resumed_from_python(tmp_path):
    first = train(Config(**SMALL | {"epochs": 2}, g_dim=8, output_dir=str(tmp_path)))
    again = train(Config(resume=str(tmp_path / "gaussian"), epochs=4, show=False))
    assert (first["steps"], again["steps"]) == (2, 4)


def test_numbers_of_a_kind_that_fits_are_taken():
    config = lines(lr=1, beta=2)()
    assert (config.lr, config.beta) == (1, 2)
