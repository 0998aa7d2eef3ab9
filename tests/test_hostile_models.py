"""Untrusted models and answers: code in them does not run, paths in them lead nowhere, formulas stay text."""

import io
import json
import os
import re
import shutil
import zipfile

import h5py
import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tests.kill import SMALL
from tfmusic.cli import main
from tfmusic.core.contract import Contract
from tfmusic.core.feature import Feature
from tfmusic.core.files import CHECKSUMS_NAME, text_cell, write_checksums
from tfmusic.core.keras_file import check_keras_file
from tfmusic.core.scale import Scale
from tfmusic.errors import RunError
from tfmusic.export.savedmodel import TrackModel, signatures
from tfmusic.inference.graphs import check_litert, check_onnx
from tfmusic.inference.model_folder import check_model, load_predict_fn
from tfmusic.inference.predict import predictions_table
from tfmusic.models import build_model
from tfmusic.models.ensemble import build_ensemble
from tfmusic.models.frontends import Pcen, smoothing
from tfmusic.models.surgery import load_saved
from tfmusic.pretrained.applications import imagenet_weights
from tfmusic.scoring.track_scorer import TrackScorer


@pytest.fixture(scope="module")
def keras_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "a.keras"
    inputs = keras.Input((4,))
    keras.Model(inputs, keras.layers.Dense(2)(inputs)).save(path)
    return path


def rewritten(source, target, change, **more):
    """Writes a .keras file again with another config and more members."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, json.dumps(change(json.loads(data))) if name == "config.json" else data)
        for name, data in more.items():
            new.writestr(name, data)
    return target


def with_layer(layer):
    def change(config):
        config["config"]["layers"][1] |= layer
        return config

    return change


@pytest.mark.parametrize(
    "layer",
    [
        {"module": "os", "class_name": "mkdir", "config": {"path": "EVIL"}},
        {"module": "builtins", "class_name": "exec", "config": {"object": "import os; os.mkdir('EVIL')"}},
        {"module": "subprocess", "class_name": "Popen", "config": {"args": ["mkdir", "EVIL"]}},
        {"module": "shutil", "class_name": "copy", "config": {"src": "/etc/hostname", "dst": "EVIL"}},
        {"module": "keras.layers", "class_name": "Lambda", "config": {"name": "l", "function": {
            "class_name": "__lambda__", "config": {"code": "4wEAAAA=", "defaults": None, "closure": None}}}},
        {"module": "keras.utils", "class_name": "get_file", "config": {"fname": "EVIL", "origin": "file:///etc/hostname"}},
        {"module": "numpy", "class_name": "save", "config": {"file": "EVIL", "arr": [1]}},
    ],
    ids=lambda layer: layer["class_name"],
)  # fmt: skip
def test_code_in_models_is_refused(keras_file, tmp_path, monkeypatch, layer):
    """Layers of other modules, functions in place of layers, and Lambda: refused before anything of them runs."""
    monkeypatch.chdir(tmp_path)
    path = rewritten(keras_file, tmp_path / "b.keras", with_layer(layer))
    with pytest.raises(RunError, match=r"b\.keras: must be a Keras model of tfmusic"):
        load_saved(path)
    assert [one.name for one in tmp_path.iterdir()] == ["b.keras"]


def test_lambda_layers_that_keras_wrote_are_refused(tmp_path):
    """A real Lambda, with its byte code."""
    inputs = keras.Input((4,))
    keras.Model(inputs, keras.layers.Lambda(lambda x: x * 2)(inputs)).save(tmp_path / "l.keras")
    with pytest.raises(RunError, match=r"l\.keras: must be a Keras model of tfmusic"):
        load_saved(tmp_path / "l.keras")


@pytest.mark.parametrize("name", ["../evil", "/tmp/tfmusic-evil", "assets/../../evil", "assets/x/../../../evil"])
def test_archives_stay_inside(keras_file, tmp_path, name):
    """Members whose names lead out of the archive are written nowhere."""
    (tmp_path / "in" / "side").mkdir(parents=True)
    path = rewritten(keras_file, tmp_path / "in" / "side" / "z.keras", lambda config: config, **{name: b"evil"})
    try:
        load_saved(path)
    except RunError as error:
        assert "z.keras" in str(error)
    left = [one for one in tmp_path.rglob("*") if one.is_file()]
    assert left == [path]


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    """A model of tfmusic, with an activation, an initializer, a nested model and an operation of Keras in it."""
    scale = Scale("db", -60.0, 30.0)
    pcen = Pcen(smoothing(32, 10.0), scale)
    sizes = {"frames": 32, "n_bins": 16, "n_outputs": 2, "width": 2}
    members = [build_model("cnn1d", frontend=pcen, **sizes), build_model("convgru1d", **sizes)]
    path = tmp_path_factory.mktemp("model") / "a.keras"
    build_ensemble(members, [0.5, 0.5]).save(path)
    load_saved(path)  # is not refused
    return path


def layers_of(config):
    """Every layer of a config, nested ones too, each after those that it is made of."""
    for layer in config["config"].get("layers", ()):
        yield from layers_of(layer)
        yield layer


def first(config, kind):
    return next(layer for layer in layers_of(config) if layer["class_name"] == kind)


SYSTEM = {"class_name": "function", "module": "os", "config": "system", "registered_name": "system"}
TEXTS = {"module": "keras.layers", "class_name": "StringLookup", "config": {"vocabulary": "/etc/hostname"}}
CONSTANT = {"class_name": "__tensor__", "config": {"value": ["touch EVIL"], "dtype": "string"}}


def put_lambda(config):
    first(config, "Dense").update(class_name="Lambda", config={"name": "dense", "function": SYSTEM, "arguments": {}})


def put_call(config):
    operation = {"name": "x", "trainable": True, "dtype": "float32", "function": "io.write_file"}
    first(config, "Dense").update(class_name="TFOpLambda", module="keras.src.layers.core.tf_op_layer", config=operation)


def put_constant(config):
    layer = first(config, "Dense")
    is_keras_3 = isinstance(layer["inbound_nodes"][0], dict)
    layer["inbound_nodes"] = (
        [{"args": [CONSTANT], "kwargs": {}}] if is_keras_3 else [[["_CONSTANT_VALUE", -1, "touch EVIL", {}]]]
    )


def put_argument(config):
    node = first(config, "Dense")["inbound_nodes"][0]
    (node["kwargs"] if isinstance(node, dict) else node[0][3]).update(path="/etc/hostname")


CHANGES = {
    "lambda": put_lambda,
    "operation": put_call,
    "constant input": put_constant,
    "argument": put_argument,
    "file of words": lambda config: first(config, "Dense").update(TEXTS),
    "function as activation": lambda config: first(config, "Dense")["config"].update(activation=SYSTEM),
    "unknown activation": lambda config: first(config, "Dense")["config"].update(activation="deserialize"),
    "initializer": lambda config: first(config, "Dense")["config"].update(kernel_initializer=SYSTEM),
    "regularizer": lambda config: first(config, "Dense")["config"].update(kernel_regularizer=SYSTEM),
    "constraint": lambda config: first(config, "Dense")["config"].update(kernel_constraint="max_norm"),
    "policy": lambda config: first(config, "Dense")["config"].update(dtype=SYSTEM),
    "object in a name": lambda config: first(config, "Dense")["config"].update(name=TEXTS),
    "quantization": lambda config: first(config, "Dense")["config"].update(quantization_config={"a": SYSTEM}),
    "registered": lambda config: first(config, "Dense").update(registered_name="Addons>Dense"),
    "module": lambda config: first(config, "Dense").update(module="os"),
    "module of Keras": lambda config: first(config, "Dense").update(module="keras.src.utils.file_utils"),
    "module of another kind": lambda config: first(config, "Dense").update(module=["os"]),
    "inner compilation": lambda config: first(config, "Functional").update(compile_config={"loss": SYSTEM}),
    "shapes": lambda config: first(config, "Dense").update(build_config={"input_shape": SYSTEM}),
    "another model": lambda config: config.update(class_name="Sequential"),
    "model of others": lambda config: config.update(module="os", registered_name="system"),
    "huge layer": lambda config: first(config, "Dense")["config"].update(units=1 << 19),
    "huge size": lambda config: first(config, "Cropping1D")["config"].update(cropping=[1 << 40, 0])
    if any(layer["class_name"] == "Cropping1D" for layer in layers_of(config))
    else first(config, "Dense")["config"].update(units=1 << 40),
    "no config": lambda config: first(config, "Dense").pop("config"),
    "nothing": lambda config: config.clear(),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_only_layers_of_tfmusic(model_file, tmp_path, monkeypatch, change):
    """Everything else in a config is refused before Keras sees it, at any depth; it makes and reads no file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(keras.saving, "load_model", lambda *args, **options: pytest.fail("Keras saw it"))

    def changed(config):
        change(config)
        return config

    path = rewritten(model_file, tmp_path / "b.keras", changed)
    with pytest.raises(RunError, match=r"b\.keras: must be a Keras model of tfmusic"):
        load_saved(path)
    assert [one.name for one in tmp_path.iterdir()] == ["b.keras"]


OBJECTS = (
    SYSTEM, TEXTS, CONSTANT, {"class_name": "__lambda__", "config": {"code": "4wEAAAA="}},
    {"class_name": "slice", "module": "builtins", "config": {}},
    {"class_name": "TFSMLayer", "module": "keras.layers", "config": {"filepath": "/tmp"}, "registered_name": None},
)  # fmt: skip


def places(value):
    """Every list and object in a value, each with a key or index of it."""
    for key in range(len(value)) if isinstance(value, list) else list(value):
        yield value, key
        if isinstance(value[key], list | dict):
            yield from places(value[key])


@pytest.mark.filterwarnings("ignore")
def test_no_object_of_others_anywhere(model_file, tmp_path):
    """Wherever in a config such an object is put, it is refused; what is not read at all aside."""
    with zipfile.ZipFile(model_file) as archive:
        config, weights = json.loads(archive.read("config.json")), archive.read("model.weights.h5")
    spots = [(holder, key) for holder, key in places(config) if key != "compile_config"]
    for number, (holder, key) in enumerate(spots[:: max(len(spots) // 150, 1)]):
        whole, holder[key] = holder[key], OBJECTS[number % len(OBJECTS)]
        with zipfile.ZipFile(tmp_path / "b.keras", "w") as archive:
            archive.writestr("config.json", json.dumps(config))
            archive.writestr("model.weights.h5", weights)
        with pytest.raises(ValueError, match=r"config|units|must|tfmusic"):
            check_keras_file(tmp_path / "b.keras")
        holder[key] = whole


def external(file, folder):
    (folder / "secret").write_bytes(bytes(64))
    file.create_dataset("x", (16,), "f4", external=[(str(folder / "secret"), 0, 64)])


def virtual(file, folder):
    with h5py.File(folder / "secret", "w") as other:
        other["x"] = np.zeros(16, "f4")
    layout = h5py.VirtualLayout((16,), "f4")
    layout[:] = h5py.VirtualSource(folder / "secret", "x", (16,))
    file.create_virtual_dataset("x", layout)


HDF5 = {
    "external storage": external,
    "virtual": virtual,
    "external link": lambda file, folder: file.update(x=h5py.ExternalLink("/etc/hostname", "/")),
    "soft link": lambda file, folder: file.update(x=h5py.SoftLink("/layers")),
    "type": lambda file, folder: file.update(x=np.dtype("f8")),
    "bomb": lambda file, folder: file.create_dataset("x", (1 << 30,), "f4", chunks=(1 << 20,)),
    "reference": lambda file, folder: file.create_dataset("x", (1,), h5py.ref_dtype),
}


@pytest.mark.parametrize("place", ["", "deep/er"])
@pytest.mark.parametrize("spoil", HDF5.values(), ids=HDF5)
def test_weights_are_in_the_file_itself(model_file, tmp_path, spoil, place):
    """HDF5 that reads other files, or claims what it does not hold, is refused: in .keras files and alone."""
    with zipfile.ZipFile(model_file) as archive:
        content = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(content, "r+") as file:
        spoil(file.require_group(place) if place else file, tmp_path)
    with zipfile.ZipFile(model_file) as old, zipfile.ZipFile(tmp_path / "b.keras", "w") as new:
        for name in old.namelist():
            new.writestr(name, content.getvalue() if name.endswith(".h5") else old.read(name))
    with pytest.raises(RunError, match=r"b\.keras: must be a Keras model of tfmusic.*weights"):
        load_saved(tmp_path / "b.keras")
    (tmp_path / "w.h5").write_bytes(content.getvalue())
    with pytest.raises(RunError, match=r"w\.h5: must be a weights file of Keras Applications.*weights"):
        imagenet_weights("vgg16", tmp_path / "w.h5")


@pytest.mark.parametrize("kind", ["compressed", "twice", "more", "hdf5", "pipe"])
def test_archives_of_others(model_file, tmp_path, kind):
    """Archives that grow when they are read, hold a member twice or others, and what is no archive, are refused."""
    path = tmp_path / "b.keras"
    with zipfile.ZipFile(model_file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if kind == "compressed" else zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        if kind == "twice":
            with pytest.warns(UserWarning, match="Duplicate"):
                archive.writestr("config.json", members["config.json"])
        if kind == "more":
            archive.writestr("model.weights.npz", b"")
    if kind == "hdf5":  # Keras 2.15 reads models from it
        path.write_bytes(members["model.weights.h5"])
    if kind == "pipe":
        path.unlink()
        os.mkfifo(path)
    with pytest.raises(RunError, match=r"b\.keras: "):
        load_saved(path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A SavedModel as an export has it, which is not refused."""
    folder = tmp_path_factory.mktemp("saved")
    contract = Contract("t", "single", ("a", "b"), Feature(n_bins=16), Scale("db", -60.0, 30.0), "uint8", 32, 16)
    model = build_model("cnn1d", frames=32, n_bins=16, n_outputs=2, width=2)
    module = TrackModel(model, contract, TrackScorer(kind="single"))
    tf.saved_model.save(module, str(folder), signatures=signatures(module, contract))
    check_model(folder)
    return folder


class Hostile(tf.Module):
    """Writes a file whenever it predicts, in a function that a function calls."""

    def __init__(self, path, how):
        super().__init__()
        self.path, self.how = str(path), how

    @tf.function(input_signature=[tf.TensorSpec([16, None], name="mel")])
    def __call__(self, mel):  # noqa: D102
        run = {
            "write": lambda: tf.io.write_file(self.path, "evil"),
            "read": lambda: tf.io.read_file("/etc/hostname"),
            "print": lambda: tf.print("evil", output_stream=f"file://{self.path}"),
            "save": lambda: tf.raw_ops.SaveV2(
                prefix=self.path, tensor_names=["x"], shape_and_slices=[""], tensors=[tf.zeros([1])]
            ),
            "python": lambda: tf.py_function(lambda: tf.zeros([]), [], tf.float32),
            "list": lambda: tf.io.matching_files("/etc/*"),
        }[self.how]  # fmt: skip

        @tf.function
        def inner():
            run()

        inner()
        return {"track_scores": tf.reduce_mean(mel, 1)[:2]}


OPERATION = {
    "write": "WriteFile", "read": "ReadFile", "print": "StringFormat", "save": "SaveV2", "python": "EagerPyFunc",
    "list": "MatchingFiles",
}  # fmt: skip


@pytest.mark.parametrize("how", OPERATION)
def test_graphs_reach_no_files(tmp_path, how):
    """A SavedModel with an operation on files, or of Python, at any depth, is refused by its name; nothing runs."""
    tf.saved_model.save(Hostile(tmp_path / "evil", how), str(tmp_path / "m"))
    with pytest.raises(RunError, match=rf"saved_model\.pb: .*such an operation: {OPERATION[how]}"):
        load_predict_fn(tmp_path / "m")
    assert not (tmp_path / "evil").exists()


def with_asset(module, folder):
    (folder / "words").write_text("a\nb\n")
    rows = tf.lookup.TextFileInitializer(
        str(folder / "words"), tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64,
        tf.lookup.TextFileIndex.LINE_NUMBER,
    )  # fmt: skip
    module.table = tf.lookup.StaticHashTable(rows, -1)


def test_graphs_without_assets(tmp_path):
    """A table that is read from a file when the model is loaded is refused; so are files beside the graph."""
    module = tf.Module()
    with_asset(module, tmp_path)
    tf.saved_model.save(module, str(tmp_path / "m"))
    with pytest.raises(RunError, match="assets"):
        check_model(tmp_path / "m")


@pytest.mark.parametrize("change", ["call", "signature", "restore", "object", "version 1", "other format"])
def test_savers_are_not_called(saved, tmp_path, change):
    """The functions that write and read checkpoints are part of every export; no other part may call them."""
    folder = tmp_path / "m"
    shutil.copytree(saved, folder)
    graphs = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    (graph,) = graphs.meta_graphs
    save_name = graph.saver_def.save_tensor_name.partition(":")[0]
    save = next(node for node in graph.graph_def.node if node.name == save_name)
    if change == "call":
        body = next(f for f in graph.graph_def.library.function if "traced_save" not in f.signature.name)
        body.node_def.add().CopyFrom(save)
    elif change == "signature":
        graph.signature_def["serving_default"].outputs["x"].name = f"{save_name}:0"
    elif change == "restore":
        graph.saver_def.restore_op_name = save_name
    elif change == "object":
        graph.object_graph_def.concrete_functions[save.attr["f"].func.name].bound_inputs.append(0)
    elif change == "version 1":
        graph.object_graph_def.Clear()
    else:
        (folder / "saved_model.cpb").write_bytes(b"")
    (folder / "saved_model.pb").write_bytes(graphs.SerializeToString())
    with pytest.raises(RunError, match=r"saved_model\.pb: must be a model as tfmusic exports it"):
        check_model(folder)


@pytest.mark.parametrize("change", ["external", "domain", "inner", "function", "cut"])
def test_onnx_is_in_one_file(tmp_path, change):
    """Weights in other files, operations of other domains, at any depth, functions and damage: one line."""
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    weights = helper.make_tensor("w", onnx.TensorProto.FLOAT, [1], [1.0])
    inner = helper.make_node("Constant", [], ["c"], value=weights)
    graph = helper.make_graph([inner], "g", [], [helper.make_tensor_value_info("c", onnx.TensorProto.FLOAT, [1])])
    node = helper.make_node("If", ["x"], ["y"], then_branch=graph, else_branch=graph)
    outputs = [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])]
    inputs = [helper.make_tensor_value_info("x", onnx.TensorProto.BOOL, [1])]
    model = helper.make_model(helper.make_graph([node], "m", inputs, outputs))
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    check_onnx(path)
    then = model.graph.node[0].attribute[0].g.node[0]
    if change == "external":
        then.attribute[0].t.external_data.add(key="location", value="/etc/hostname")
    elif change == "domain":
        model.graph.node[0].domain = "com.microsoft"
    elif change == "inner":
        then.domain = "evil"
    elif change == "function":
        model.functions.add(name="f", domain="evil")
    path.write_bytes(model.SerializeToString()[: -3 if change == "cut" else None])
    with pytest.raises(ValueError, match=r"hold no|damaged"):
        check_onnx(path)


def test_litert_runs_its_own_operations(tmp_path):
    """Operations of TensorFlow and custom ones are refused by name."""
    check_litert(["CONV_2D", "DELEGATE", "BATCH_MATMUL"])
    for name in ("FlexWriteFile", "TFLite_Detection_PostProcess", "evil op"):
        with pytest.raises(ValueError, match=name):
            check_litert(["CONV_2D", name])


def test_weights_that_claim_much(keras_file, tmp_path):
    """Weights of another shape than the config says are refused."""

    def widen(config):
        config["config"]["layers"][1]["config"]["units"] = 3
        return config

    with pytest.raises(RunError, match=r"w\.keras: must be a Keras model of tfmusic"):
        load_saved(rewritten(keras_file, tmp_path / "w.keras", widen))


@pytest.mark.slow
def test_saved_models_from_elsewhere(tmp_path, capsys):
    """A SavedModel without a contract is not loaded: what its input must be is not known."""
    import tensorflow as tf

    tf.saved_model.save(tf.Module(), str(tmp_path / "other"))
    np.save(tmp_path / "a.npy", np.ones((1, 128, 40), np.float32))
    assert main(["predict", str(tmp_path / "other"), str(tmp_path / "a.npy")]) == 2
    assert "contract.json: must be the contract of a tfmusic model" in capsys.readouterr().err


FORMULAS = ("=1+1", "+1", "-1", "@SUM(A1)", "＝1", "'=1", ' "=1', "x;=1+1", 'x; "-1', "x|@SUM(A1)")


@pytest.mark.parametrize("text", FORMULAS)
def test_formulas_stay_text(text):
    """What a spreadsheet would run has a quote before it in predictions.csv, names of files too, in all cells."""
    table = predictions_table([text], [text], np.array([[0.5, 0.5]]), [text, "b"], [[text]])
    read = pd.read_csv(io.StringIO(table.to_csv(index=False)), dtype=str)
    cells = [part for cell in [*read.columns, *read.iloc[0]] for part in re.split("[;|]", cell)]
    assert not any(re.match(r'[\s"]*[=+@＝-]', cell) for cell in cells)
    assert len(text_cell(text)) == len(text) + 1
    assert text_cell("plain = text - more; x, -y") == "plain = text - more; x, -y"
    assert text_cell("x\t=1\r\n=1") == r"x\t=1\r\n=1"


@pytest.mark.slow
def test_same_answer_alone_and_in_a_batch(records, music, tmp_path):
    """A track has one answer, whichever others are asked for with it, and in whatever order."""
    run = tmp_path / "run"
    assert main(["fit", "q2", "--records", str(records), "--out", str(run), *SMALL, "training.epochs=1"]) == 0
    files = sorted((music / "q2/test/test_data/mel_spectrogram").glob("*.npy"))[:5]

    def answers(name, some):
        out = tmp_path / name
        assert main(["predict", str(run), *map(str, some), "--out", str(out)]) == 0
        return pd.read_csv(out, dtype=str).set_index("track_id")

    together, backwards = answers("all.csv", files), answers("back.csv", files[::-1])
    alone = pd.concat([answers(f"{file.stem}.csv", [file]) for file in files])
    pd.testing.assert_frame_equal(together, alone)
    pd.testing.assert_frame_equal(together, backwards.loc[together.index])
    shutil.rmtree(run)


SPOILED = ("[]", "3", "{}", '{"folder": 3, "answer": [], "members": 3, "interval": 3}')


@pytest.mark.slow
def test_json_of_another_shape(trained, records, music, tmp_path):
    """JSON files of a run and of its export that hold other values, their checksums right: one line, or no matter."""
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    assert main(["evaluate", str(run), "--records", str(records)]) == 0
    assert main(["export", str(run), "--overwrite"]) == 0
    mel = str(min((music / "q2/test/test_data/mel_spectrogram").glob("*.npy")))
    out = str(tmp_path / "out")
    of_run = [
        ["report", str(run), "--out", f"{out}.html"], ["evaluate", str(run), "--out", out], ["predict", str(run), mel],
        ["verify", str(run)],
    ]  # fmt: skip
    of_export = [["explain", str(run / "export"), mel], ["verify", str(run / "export")]]
    for folder, names, commands in (
        (run, ("environment.json", "records.json", "metrics.jsonl", "evaluation/report.json"), of_run),
        (run / "export", ("model_card.json",), of_export),
    ):
        for name in names:
            whole = (folder / name).read_bytes()
            for text in SPOILED:
                (folder / name).write_text(text)
                sealed_again(folder)
                codes = [main(command) for command in commands]  # a trace would come out here
                assert set(codes) <= {0, 2}, (name, text, codes)
                shutil.rmtree(out, ignore_errors=True)
            (folder / name).write_bytes(whole)
            sealed_again(folder)


def sealed_again(folder):
    """Makes the checksums of a folder anew, as its maker could."""
    path = folder / CHECKSUMS_NAME
    names = json.loads(path.read_text())["files"]
    path.unlink()
    write_checksums(folder, [name for name in names if (folder / name).is_file()])
