"""Config files: complete, validated, with errors that name file, line and key."""

import re
from pathlib import Path

import pytest
import yaml

from tfmusic.config.loading import config_from_text, find_config, load_config, to_yaml
from tfmusic.config.sections import Config
from tfmusic.errors import ConfigError

MINIMAL = "task: q2\ndata: {question: q2}\n"
SHIPPED = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configs_are_complete(path):
    """Every key is spelled out, in the order of the schema, and the file begins with a header."""
    config = load_config(path)
    assert yaml.safe_load(path.read_text(encoding="utf-8")) == config.model_dump(mode="json")
    assert list(yaml.safe_load(path.read_text(encoding="utf-8"))) == list(Config.model_fields)
    assert path.read_text(encoding="utf-8").startswith("#")


def test_yaml_round_trip():
    """What `config show` prints reads back as the same config."""
    config = config_from_text(MINIMAL, "x.yaml")
    assert config_from_text(to_yaml(config), "y.yaml") == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINIMAL + "trainig: {}\n", r"x.yaml:3: unknown key 'trainig'. Did you mean 'training'\?"),
        (
            MINIMAL + "training:\n  epoch: 3\n",
            r"x.yaml:4: unknown key 'training.epoch'. Did you mean 'training.epochs'",
        ),
        (MINIMAL + "training:\n  epochs: zwei\n", r"x.yaml:4: training.epochs: .*integer.*'zwei'"),
        (MINIMAL + "training: {epochs: 0}\n", r"x.yaml:3: training.epochs: .*greater than or equal to 1.*0"),
        (MINIMAL + "training: {epochs: true}\n", "training.epochs: .*True"),
        (MINIMAL + "training: {jit: no}\n", r"training.jit: .*'no' \(write true or false\)"),
        (MINIMAL + "training: {epochs: 012}\n", "x.yaml:3: not a valid config: 012 has a leading zero"),
        (MINIMAL + "training: {epochs: 12:30}\n", "training.epochs: .*'12:30'"),
        (MINIMAL + "task: q1\n", "x.yaml:3: not a valid config: key 'task' stands twice"),
        (MINIMAL + "model: &a {name: crnn}\nx: *a\n", "aliases are not allowed"),
        (MINIMAL + "training: {epochs: !!int ''}\n", "tag tag:yaml.org,2002:int is not allowed"),
        (MINIMAL + "x: !!timestamp x\n", "is not allowed"),
        (MINIMAL + "training: {seed: 5000000000}\n", "training.seed: .*less than 4294967296"),
        (MINIMAL + "training: {learning_rate: 1e999}\n", "training.learning_rate: .*finite"),
        (MINIMAL + "model: !!python/object:os.system {}\n", "not a valid config"),
        ("task: q2\n", "key 'data' is missing"),
        ("- 1\n", "must be a mapping"),
        ("task: [\n", "x.yaml:2: not a valid config"),
        (MINIMAL + "training: {fold: 5}\n", "training.fold must be 0 to 4"),
        (MINIMAL + "input: {frames: 400}\n", "input.frames must be at most record.segment_frames"),
        (MINIMAL + "record: {hop_frames: 400}\n", "hop_frames must be at most segment_frames=313"),
        (MINIMAL + "training: {precision: half}\n", "x.yaml:3: training.precision: .*'half'"),
    ],
)
def test_errors_name_file_line_and_key(text, message):
    """A wrong config gives one line with what must hold and what was received."""
    with pytest.raises(ConfigError, match=message) as caught:
        config_from_text(text, "x.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 1e-3), ("1E3", 1000.0), (".5", 0.5), ("5.", 5.0), ("3", 3.0), ("1e3", 1000.0)]
)
def test_numbers_are_numbers(text, value):
    """YAML 1.1 reads 1e-3 as text; here it is a number."""
    config = config_from_text(MINIMAL + f"training: {{learning_rate: {text}}}\n", "x.yaml")
    assert config.training.learning_rate == value


def test_overrides(tmp_path):
    """`key.path=value` changes a key, in sections that the file has and in those it lacks."""
    path = tmp_path / "x.yaml"
    path.write_text(MINIMAL)
    config = load_config(path, ["training.fold=none", "model.name=crnn", "training.learning_rate=1e-4"])
    assert (config.training.fold, config.model.name, config.training.learning_rate) == ("none", "crnn", 1e-4)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epoch=3", "unknown key 'training.epoch'.*Did you mean 'training.epochs'"),
        ("epochs=3", "unknown key 'epochs'.*Did you mean 'training.epochs'"),
        ("training.epochs", "must be key.path=value"),
        ("training.epochs=x", "^override 'training.epochs=x': training.epochs: .*'x'"),
        ("training=3", "^override 'training=3': training: .*valid dictionary"),
    ],
)
def test_bad_overrides(tmp_path, override, message):
    """A wrong override names the key and the nearest valid one."""
    path = tmp_path / "x.yaml"
    path.write_text(MINIMAL)
    with pytest.raises(ConfigError, match=message):
        load_config(path, [override])


def test_find_config_prefers_the_working_folder(tmp_path, monkeypatch):
    """./configs comes first, then the shipped copy; an unknown name lists what there is."""
    monkeypatch.chdir(tmp_path)
    assert find_config("q2").parent.name in ("configs", "shipped_configs")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "q2.yaml").write_text(MINIMAL)
    assert find_config("q2") == Path("configs/q2.yaml")
    with pytest.raises(
        ConfigError,
        match=r"no config named 'q9'. Found: demo, .*, gtzan, jamendo_mood, q1, q1-best, .*q3-best",
    ):
        find_config("q9")
    with pytest.raises(ConfigError, match="no such config file"):
        find_config("missing.yaml")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.name=resnet"], r"model.name must be one of .*Received: resnet.*Did you mean"),
        (["model.name=crnn", "model.hidden=16"], "model.hidden .* model.name=crnn.* musicnn_mlp.*16"),
        (["model.name=crnn", "model.stochastic_depth=0.1"], "model.stochastic_depth .*resnet18, resnet34"),
        (
            ["training.optimizer=addons/lamb", "training.ema_momentum=0.0"],
            "training.optimizer=addons/lamb .*TensorFlow Addons",
        ),
        (["model.weights=missing.keras"], "missing.keras: no such file"),
        (["model.weights=imagenet"], "ImageNet weights exist for .*resnet18"),
        (["model.init_from=missing"], "missing"),
        (["ensemble.partners=[q9]"], "no config named 'q9'"),
        (["ensemble.partners=[q3]", "training.fold=0"], "ensemble.partners: q3 must have training.fold=0"),
        (["ensemble.partners=[own.yaml]"], "own.yaml"),
        (["input.frontend=musicnn", "feature.hop_length=500"], "hop_length that is a multiple of 256"),
    ],
)
def test_validate_finds_what_fit_would_refuse(tmp_path, capsys, overrides, message):
    """`config validate` checks models, installed packages, weights and partners, without any records."""
    from tfmusic.cli import main

    assert main(["config", "validate", "q2", *overrides]) == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.cache_frozen=true", "training.class_weights=balanced"], "cache_frozen.*class_weights=balanced"),
        (["training.cache_frozen=true", "training.devices=2"], "cache_frozen.*devices=2"),
        (["training.cache_frozen=true", "training.target=soft_top"], "cache_frozen.*target=soft_top"),
        (["training.cache_frozen=true", "balance.common_segments=1"], "cache_frozen.*balance"),
        (
            ["input.frontend=pcen", "feature.name=log-mel", "record.scale=identity", "record.dtype=float16"],
            "frontend=pcen",
        ),
    ],
)
def test_keys_that_do_not_go_together(tmp_path, overrides, message):
    """Rules between keys hold when the config is loaded, before data, records or models are looked at."""
    path = tmp_path / "x.yaml"
    path.write_text(MINIMAL)
    with pytest.raises(ConfigError, match=message):
        load_config(path, overrides)
