"""Configs: checked, with errors that name file, line and key; complete and short; their reference."""

import hashlib
import inspect
import json
import re
from pathlib import Path

import pytest
import yaml

from tfmusic.cli import main
from tfmusic.config.loading import config_from_text, find_config, load_config, to_yaml
from tfmusic.config.reference import (
    allowed_values,
    json_schema,
    list_keys,
    section_meanings,
    to_commented_yaml,
    to_short_yaml,
)
from tfmusic.config.sections import Config, ModelSection
from tfmusic.core.feature import PRESETS
from tfmusic.errors import ConfigError
from tfmusic.models import BUILDERS, models_with

MINIMAL = "task: q2\ndata: {question: q2}\n"
SHIPPED = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


DEFAULTS_SHA256 = "f6e2bcdea9d48cfe430bb79e4211631a9716a6f5143f8b02146c63e29f2c49e8"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configs_state_what_differs_from_the_defaults(path):
    """A shipped config has a header, the keys that differ from the defaults in the order of the sections, no others."""
    text = path.read_text(encoding="utf-8")
    header = [line for line in text.splitlines() if line.startswith("# ")]
    assert header[0].startswith(f"# {path.stem}: ")
    assert {line.split(":")[0] for line in header} >= {"# Hardware", "# Score to expect"}
    given, needed = yaml.safe_load(text), yaml.safe_load(to_short_yaml(load_config(path)))
    assert given == needed
    assert [list(section) for section in given.values() if isinstance(section, dict)] == [
        list(section) for section in needed.values() if isinstance(section, dict)
    ]


def test_defaults_change_only_on_purpose():
    """Configs state only what differs, so a changed default changes the training of everybody who relies on it."""
    defaults = sorted([key.path, key.default, list(key.loaders)] for key in list_keys())
    sha256 = hashlib.sha256(json.dumps(defaults).encode()).hexdigest()
    assert sha256 == DEFAULTS_SHA256, (
        "The default of a key has changed, or a key came or went. If that is on purpose, set DEFAULTS_SHA256 ="
        f" {sha256!r}, check that no shipped config changed by it, and tell users in CHANGELOG or README"
    )


def test_every_key_and_section_has_a_meaning():
    """No key is without its line in `config keys`."""
    assert [key.path for key in list_keys() if not key.meaning.endswith(".")] == []
    assert set(section_meanings()) == set(Config.model_fields) - {"task"}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_yaml_round_trip(path):
    """The complete config, with comments and without, and the short one all read back as the same config."""
    config = load_config(path)
    for write in (to_yaml, to_commented_yaml, to_short_yaml):
        assert config_from_text(write(config), "y.yaml") == config


def test_short_yaml_of_features_that_are_no_power():
    """A config of log-mels reads back from its short text, which keeps the scale that they need."""
    text = "task: x\ndata: {loader: folder}\nfeature: {name: log-mel}\nrecord: {scale: identity, dtype: float16}\n"
    config = config_from_text(text, "x.yaml")
    assert config_from_text(to_short_yaml(config), "y.yaml") == config


@pytest.mark.parametrize(
    "text", ["1e-3", "012", "true", "null", "12:30", "no", "a: b", "# x", " x ", "없다", "~", "1."]
)
def test_text_that_looks_like_something_else_stays_text(text):
    """What YAML would read as a number, a boolean or a comment is written in quotes."""
    overridden = config_from_text(f"task: x\ndata:\n  loader: table\n  table: {json.dumps(text)}\n", "x.yaml")
    for write in (to_yaml, to_commented_yaml, to_short_yaml):
        assert config_from_text(write(overridden), "y.yaml").data.table == text


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "integer", "minimum": 1}, "integer from 1"),
        ({"type": "integer", "minimum": 0, "exclusiveMaximum": 1 << 32}, "integer 0 to below 4294967296"),
        ({"type": "number", "exclusiveMinimum": 0.0}, "number above 0.0"),
        ({"type": "number", "minimum": 0.5, "maximum": 2.0}, "number 0.5 to 2.0"),
        ({"anyOf": [{"enum": ["a", "b"]}, {"type": "null"}]}, "a | b | null"),
        ({"type": "array", "items": {"type": "string"}}, "list of text"),
    ],
)
def test_allowed_values_in_words(schema, words):
    """Types and ranges as a reader wants them."""
    assert allowed_values(schema) == words


def test_json_schema_refuses_unknown_keys_and_knows_presets():
    """An editor marks a misspelt key in every section, and completes the names of feature presets."""
    schema = json_schema()
    sections = [part for part in schema["$defs"].values() if "properties" in part]
    assert len(sections) >= len(Config.model_fields) - 1
    assert all(part["additionalProperties"] is False for part in [schema, *sections])
    assert {"enum": list(PRESETS)} in schema["properties"]["feature"]["anyOf"]


def test_show_prints_values_meanings_and_overrides(capsys):
    """`config show` prints every key with the value that an override gives it; `fit --print-config` prints the same."""
    assert main(["config", "show", "q2", "training.epochs=7"]) == 0
    shown = capsys.readouterr().out
    assert "  epochs: 7  # Number of epochs. [integer from 1]" in shown
    assert config_from_text(shown, "x.yaml") == load_config(find_config("q2"), ["training.epochs=7"])
    assert main(["fit", "q2", "training.epochs=7", "--print-config"]) == 0
    assert capsys.readouterr().out == shown


def test_keys_can_be_searched(capsys):
    """`config keys WORD` prints the keys whose name or meaning contains the word, those of all loaders included."""
    assert main(["config", "keys", "mask"]) == 0
    assert "augment.n_freq_masks: integer from 0 (default 1)" in capsys.readouterr().out
    assert main(["config", "keys", "data.genres"]) == 0
    assert "for data.loader=fma" in capsys.readouterr().out
    assert main(["config", "keys", "zzz"]) == 2
    assert "zzz" in capsys.readouterr().err


def test_schema_is_json(capsys):
    """`config schema` prints what an editor reads."""
    assert main(["config", "schema"]) == 0
    assert json.loads(capsys.readouterr().out)["properties"]["training"]


def test_a_new_config_begins_from_another(tmp_path, monkeypatch, capsys):
    """`config new` writes what differs in the source, as a new task, and replaces a file with --overwrite alone."""
    monkeypatch.chdir(tmp_path)
    assert main(["config", "new", "birds", "--from", "folder", "training.epochs=7"]) == 0
    assert "birds.yaml" in capsys.readouterr().out
    assert load_config(Path("birds.yaml")) == load_config(find_config("folder"), ["training.epochs=7", "task=birds"])
    text = Path("birds.yaml").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 40
    assert main(["config", "new", "birds", "--from", "q2"]) == 2
    assert "birds.yaml: exists already" in capsys.readouterr().err
    assert Path("birds.yaml").read_text(encoding="utf-8") == text
    assert main(["config", "new", "birds", "--from", "q1_q2", "--overwrite"]) == 0
    assert load_config(Path("birds.yaml")).task == ["q1", "q2"]
    assert main(["config", "new", "Birds!"]) == 2
    assert "task" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["show"], ["show", "q1", "q2"], ["validate"], ["new"]])
def test_an_action_says_how_many_names_it_needs(words, capsys):
    """No name, or too many, is one line."""
    assert main(["config", *words]) == 2
    assert f"config {words[0]} needs the name" in capsys.readouterr().err


def test_validate_takes_several_configs(capsys):
    """All shipped configs but those that need stored weights are valid."""
    names = ["demo", "folder", "gtzan", "q1_musicnn", "q1_q2", "q3"]
    assert main(["config", "validate", *names]) == 0
    assert capsys.readouterr().out.count(": valid") == len(names)


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
        (MINIMAL + "task: q1\n", "x.yaml:3: not a valid config: key 'task' appears twice"),
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
        (MINIMAL + "record: {hop_frames: 400}\n", "record.hop_frames must be at most record.segment_frames=313"),
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
        match=r"no config named 'q9'. Found: demo, .*, gtzan, .*jamendo_mood, .*q1, q1-baseline, .*q3-best, .*",
    ):
        find_config("q9")
    with pytest.raises(ConfigError, match="no such config file"):
        find_config("missing.yaml")


def test_options_of_builders_are_keys_of_the_section():
    """Every option of a builder is a key of `model`, and every key that is given to builders is an option of some."""
    keys = set(ModelSection.model_fields) - {"name", "weights", "init_from"}
    options = {key for build in BUILDERS.values() for key in inspect.signature(build).parameters} - {"x", "n_outputs"}
    assert options == keys
    assert all(models_with(key) == list(BUILDERS) for key in ("width", "dropout"))
    assert models_with("pooling") == [name for name in BUILDERS if name != "descriptors"]
    assert models_with("hidden") == ["musicnn_mlp", "mlp"]


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
        (["training.loss=cross_entropy"], "training.loss must be auto or binary_cross_entropy .*cross_entropy"),
        (["training.class_weights=balanced"], "class_weights=balanced is for one label a track"),
        (["training.target=soft_top"], "target=soft_top is for one label a track"),
        (["input.frontend=musicnn", "feature.hop_length=500"], "hop_length that is a multiple of 256"),
    ],
)
def test_validate_finds_what_fit_would_refuse(tmp_path, capsys, overrides, message):
    """`config validate` checks models, installed packages, weights and partners, without any records."""
    assert main(["config", "validate", "q2", *overrides]) == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.cache_frozen=true", "training.class_weights=balanced"], "cache_frozen.*class_weights=balanced"),
        (["training.cache_frozen=true", "training.devices=2"], "cache_frozen.*devices=2"),
        (["training.cache_frozen=true", "training.target=soft_top"], "cache_frozen.*target=soft_top"),
        (["training.cache_frozen=true", "training.freeze_epochs=0"], "cache_frozen.*freeze_epochs.*0"),
        (
            ["training.cache_frozen=true", "training.freeze_epochs=1", "balance.common_segments=1"],
            "cache_frozen.*balance",
        ),
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
