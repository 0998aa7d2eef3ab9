"""musicnn's networks as models that answer at once: runs with the authors' tags, made of the stored weights.

A track is cut into windows of 3 s as by the authors' extractor; another one ends with the track, so that its end counts
too; the scores of the windows are the authors' taggram, their mean those of the track (Pons & Serra 2019, arXiv
1909.06654). The prediction has the three tags of the highest scores, as the authors print.
"""

from pathlib import Path

from tfmusic import __version__
from tfmusic.config.loading import config_from_text, to_yaml
from tfmusic.core.contract import Contract
from tfmusic.core.feature import Feature
from tfmusic.core.files import replacing_folder, write_json, write_text
from tfmusic.core.rundir import RunDir
from tfmusic.core.scale import Scale
from tfmusic.errors import RunError
from tfmusic.pretrained.musicnn import musicnn_weights, stored_musicnn, weights_store
from tfmusic.scoring.track_scorer import TrackScorer, save_scorers

TAGGERS = {"musicnn": "MSD_musicnn", "musicnn-mtt": "MTT_musicnn"}  # the networks, by the name that stands for MODEL
N_TAGS = 3

# The tags of the networks' outputs, in their order.
_TAGS = {
    "MSD_musicnn": """rock, pop, alternative, indie, electronic, female vocalists, dance, 00s, alternative rock, jazz,
        beautiful, metal, chillout, male vocalists, classic rock, soul, indie rock, Mellow, electronica, 80s, folk, 90s,
        chill, instrumental, punk, oldies, blues, hard rock, ambient, acoustic, experimental, female vocalist, guitar,
        Hip-Hop, 70s, party, country, easy listening, sexy, catchy, funk, electro, heavy metal, Progressive rock, 60s,
        rnb, indie pop, sad, House, happy""",
    "MTT_musicnn": """guitar, classical, slow, techno, strings, drums, electronic, rock, fast, piano, ambient, beat,
        violin, vocal, synth, female, indian, opera, male, singing, vocals, no vocals, harpsichord, loud, quiet, flute,
        woman, male vocal, no vocal, pop, soft, sitar, solo, man, classic, choir, voice, new age, dance, male voice,
        female vocal, beats, harp, cello, no voice, weird, country, metal, female voice, choral""",
}


def find_model(model: str | Path) -> Path:
    """Returns the folder of a model, which is the path itself unless it is the name of a tagger.

    The run of a tagger is made when it is first asked for, beside the weights.

    Raises:
        RunError: the weights of musicnn have not been stored.
    """
    path = Path(model)
    if str(model) not in TAGGERS or path.exists():
        return path
    folder = weights_store() / "models" / __version__ / f"{model}-{_keras_version()}"
    if not RunDir(folder).calibration.is_file():
        write_tagger(folder, str(model), stored_musicnn())
    return folder


def write_tagger(folder: Path, name: str, weights: Path) -> None:
    """Writes the run of one of musicnn's networks.

    Args:
        folder: of the run.
        name: a key of `TAGGERS`.
        weights: the folder or the wheel that has its checkpoint.

    Raises:
        RunError: there is no such checkpoint, or it is damaged.
    """
    from tfmusic.core.runtime import start_tensorflow

    start_tensorflow()
    from tfmusic.models import build_model
    from tfmusic.models.musicnn import FRAMES
    from tfmusic.models.surgery import save
    from tfmusic.pretrained.transplant import transplant

    network, task = TAGGERS[name], name.replace("-", "_")
    tags = tuple(tag.strip() for tag in _TAGS[network].replace("\n", " ").split(","))
    contract = Contract(
        task=task, kind="multi", labels=tags, feature=Feature.model_validate("musicnn"),
        scale=Scale("log10_1p10000", 0.0, 10.0), dtype="float32", frames=FRAMES, hop_frames=FRAMES,
    )  # fmt: skip
    model = build_model("musicnn", frames=FRAMES, n_bins=contract.n_bins, n_outputs=len(tags), dtype=contract.dtype)
    if skipped := transplant(model, musicnn_weights(weights, network), with_head=True).skipped:
        raise RunError(f"{weights}: must have every layer of {network}. Received: none for {', '.join(skipped)}")
    sizes = f"{{frames: {FRAMES}, hop_frames: {FRAMES}}}"
    config = config_from_text(
        f"task: {task}\ndata: {{loader: table, kind: multi}}\nfeature: musicnn\nmodel: {{name: musicnn}}\n"
        f"record: {{segment_frames: {FRAMES}, hop_frames: {FRAMES}, dtype: float32, scale: log10_1p10000}}\n"
        f"input: {sizes}\nevaluation: {{min_tags: {N_TAGS}, max_tags: {N_TAGS}}}\n",
        name,
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing_folder(folder) as partial:
        run = RunDir(partial)
        run.checkpoint("best").parent.mkdir()
        save(model, run.checkpoint("best"))
        contract.save(run.contract)
        write_text(run.config, to_yaml(config))
        no_tracks: dict[str, list[str]] = {"training": [], "validation": [], "training_tracks": []}
        write_json(run.records, {"folder": network.partition("_")[0], "tracks_sha256": ""} | no_tracks)
        save_scorers({task: TrackScorer(kind="multi", min_tags=N_TAGS, max_tags=N_TAGS)}, run.calibration)
        run.seal()


def _keras_version() -> str:
    """Returns the stack's Keras, 2 or 3: neither reads the other's files."""
    from importlib.metadata import version

    return f"keras{version('keras').partition('.')[0]}"
