"""The model card of an export: its labels, input, evaluation, intended use and limits.

After Mitchell et al. 2019, Model Cards for Model Reporting (arXiv 1810.03993).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tfmusic import __version__
from tfmusic.config.loading import load_config
from tfmusic.config.sections import Config
from tfmusic.core.contract import Contract
from tfmusic.core.feature import Feature
from tfmusic.core.rundir import RunDir, is_run, reading
from tfmusic.inference.predictor import Predictor, WindowPredictor
from tfmusic.reports.page import render, without_paths
from tfmusic.scoring.track_scorer import TrackScorer

CARD_JSON, CARD_MARKDOWN = "model_card.json", "README.md"  # the latter is what Hugging Face shows of a folder
CARD_VERSION = 1

_HUB_METRICS = {
    "micro-F1": "f1",
    "macro-F1": "f1",
    "macro recall": "recall",
    "ROC-AUC": "roc_auc",
    "micro ROC-AUC": "roc_auc",
    "PR-AUC": "average_precision",
    "micro PR-AUC": "average_precision",
}  # others have the hub's own names


def model_card(run: RunDir, predictor: WindowPredictor) -> dict[str, Any]:
    """Returns the card of a run for JSON; it names no folder of this machine.

    Args:
        run: the run, evaluated or not.
        predictor: its model for the task that the card is for.
    """
    contract = predictor.contract
    config = load_config(run.config)
    path = run.report_folder(contract.task) / "report.json"
    report = run.read_json(path) if path.is_file() else None
    report = report if report and "interval" in report else None  # those of an older tfmusic say less
    with reading(path):
        scored, limitations = report and _evaluation(report), _limits(contract, predictor.scorer, report)
    return {
        "card_version": CARD_VERSION,
        "task": contract.task,
        "kind": contract.kind,
        "labels": list(contract.labels),
        "input": _input(contract),
        "prediction": _prediction(predictor.scorer),
        "model": _model(run, config, predictor.model.count_params()),
        "data": _data(run, config),
        "evaluation": scored,
        "intended_use": _intended_use(contract),
        "limits": limitations,
        "versions": _versions(run),
    }


def read_card(folder: Path, predictor: Predictor) -> dict[str, Any]:
    """Returns the card of a run, or the one in the folder of an export, which may lack it."""
    if isinstance(predictor, WindowPredictor) and is_run(folder):
        return model_card(RunDir(folder), predictor)
    if (folder / CARD_JSON).is_file():
        return RunDir(folder).read_json(folder / CARD_JSON)
    return {"task": predictor.contract.task, "labels": list(predictor.contract.labels)}


def card_markdown(card: dict[str, Any]) -> str:
    """Returns the card for readers, with the front matter of the Hugging Face Hub: the folder can be uploaded."""
    front = yaml.safe_dump(_front_matter(card), sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n{render('card.md', card=card)}"


def _front_matter(card: dict[str, Any]) -> dict[str, Any]:
    """Returns the metadata of the card; the licence is for the owner of the model to fill in."""
    front: dict[str, Any] = {
        "license": "unknown",
        "library_name": "keras",
        "pipeline_tag": "audio-classification",
        "tags": ["music", "tfmusic", card["task"]],
    }
    evaluation = card["evaluation"]
    if not evaluation:
        return front
    metrics = [
        {"name": name, "type": _HUB_METRICS.get(name, name), "value": round(value, 4)}
        for name, (value, *_) in evaluation["metrics"].items()
    ]
    dataset = {"name": card["data"]["records"], "type": card["data"]["loader"]}
    result = {"task": {"type": "audio-classification"}, "dataset": dataset, "metrics": metrics}
    model = {"name": f"{card['task']} {card['model']['architecture']}", "results": [result]}
    return front | {"metrics": sorted({one["type"] for one in metrics}), "model-index": [model]}


def _input(contract: Contract) -> dict[str, Any]:
    fields = sorted({token.partition("=")[0] for token in contract.metadata})
    return {
        "feature": contract.feature.model_dump(),
        "scale": contract.scale.to_dict(),
        "dtype": contract.dtype,
        "window_frames": contract.frames,
        "window_s": round(contract.frames / contract.frames_per_s, 3),
        "hop_frames": contract.hop_frames,
        "hop_s": round(contract.hop_frames / contract.frames_per_s, 3),
        "scored": _scored(contract),
        "metadata_fields": fields,
        "computed_as": _computed_as(contract.feature),
    }


def _computed_as(feature: Feature) -> str:
    """Returns what the feature is exactly, and a call that computes it elsewhere."""
    rate_hz, n_fft, hop = feature.sample_rate_hz, feature.n_fft, feature.hop_length
    stft = f"y, n_fft={n_fft}, hop_length={hop}"
    mels = (
        f"librosa.feature.melspectrogram(y=y, sr={rate_hz}, n_fft={n_fft}, hop_length={hop}, n_mels={feature.n_bins})"
    )
    bank = (
        f"power |STFT|^2 of mono sound at {rate_hz} Hz, full scale 1, under a periodic Hann window, frames centred on"
        f" their samples with zeros beyond both ends; mel filters of Slaney's formula from 0 to {rate_hz / 2:g} Hz, all"
        " of area 1 (norm slaney)"
    )
    texts = {
        "mel": f"{bank}; y, a waveform: {mels} of librosa 0.11 gives the same numbers",
        "log-mel": f"{bank}, in dB, at least -100; librosa.power_to_db({mels}, top_db=None) of librosa 0.11",
        "stft": f"power |STFT|^2; abs(librosa.stft({stft}))**2 of librosa 0.11 gives the same numbers",
    }
    return texts.get(feature.name, f"tfmusic.mel(FILE, feature={feature.model_dump()}) computes it")


def _scored(contract: Contract) -> str:
    """Returns which part of a track the model scores."""
    segments = contract.segments
    if segments is None:
        return "the whole track"
    which = {"first": "the first", "random": "random", "even": "evenly spaced"}[segments.choice]
    seconds = segments.frames / contract.frames_per_s
    return f"{which} {segments.count} segments of {segments.frames} frames ({seconds:.1f} s) of a track"


def _prediction(scorer: TrackScorer) -> dict[str, Any]:
    """Returns how the windows of a track become its prediction."""
    steps: dict[str, Any] = {"aggregator": scorer.aggregator}
    if scorer.aggregator == "top_k_mean":
        steps["top_k"] = scorer.top_k
    if scorer.kind == "multi":
        steps |= {"threshold": 0.5, "min_tags": scorer.min_tags, "max_tags": scorer.max_tags}
    return steps


def _model(run: RunDir, config: Config, n_parameters: int) -> dict[str, Any]:
    members = len(run.members()) or 1
    return {
        "architecture": config.model.name,
        "parameters": n_parameters,
        "members": members,
        "starts_from": Path(config.model.origin).name if config.model.is_pretrained else None,
        "epochs": config.training.epochs,
        "seed": config.training.seed,
    }


def _data(run: RunDir, config: Config) -> dict[str, Any]:
    used = run.read_json(run.records)
    return {
        "records": Path(used["folder"]).name,
        "loader": config.data.loader,
        "training_tracks": len(used["training_tracks"]),
        "training_splits": used["training"],
        "validation_splits": used["validation"],
        "tracks_sha256": used["tracks_sha256"],
        "tracks_behind_the_backbone": len(used.get("backbone_tracks", ())),
    }


def _evaluation(report: dict[str, Any]) -> dict[str, Any]:
    keys = (
        "metric", "value", "interval", "metrics", "tracks", "splits", "folds", "window_value", "audit",
        "baseline_value", "classical_baseline",
    )  # fmt: skip
    evaluation = {"metrics": {report["metric"]: [report["value"], *report["interval"]]}}
    evaluation |= {name: report[name] for name in keys if name in report}
    note = without_paths(report.get("note", "")).removeprefix("note: ")
    return evaluation | {"note": note, "labels": report["labels"]}


def _intended_use(contract: Contract) -> str:
    what = "one of its labels" if contract.kind == "single" else "some of its tags"
    return (
        f"Predicts {what} for whole music tracks, as a suggestion for people who sort, search or program music. Use it"
        " on music similar to the training data, with spectrograms computed as described under Input."
    )


def _limits(contract: Contract, scorer: TrackScorer, report: dict[str, Any] | None) -> list[str]:
    limits = [
        "It knows no other labels: music of another kind, speech and noise are given these labels too.",
        "Predictions for spectrograms of another sample rate, FFT size, hop, filterbank or scale are meaningless.",
        "Labels are opinions of the annotators. Labels that are rare in the training data are rarely predicted.",
    ]
    if scorer.window_shift or any(scorer.track_shifts.values()):
        limits.append("Scores are shifted so that .5 is the best threshold: they rank tags and are no probabilities.")
    if contract.metadata:
        limits.append("It uses metadata too; without metadata, predictions are based on the spectrogram alone.")
    if report is None:
        limits.append("It has not been evaluated: its accuracy is unknown.")
        return limits
    weak = [name for name, entry in report["labels"].items() if entry["support"] and not entry["f1"]]
    if weak:
        limits.append(f"Never predicted correctly in the evaluation: {_listed(weak)}.")
    return limits


def _listed(names: Sequence[str], max_names: int = 12) -> str:
    more = f" and {len(names) - max_names} more" if len(names) > max_names else ""
    return ", ".join(names[:max_names]) + more


def _versions(run: RunDir) -> dict[str, Any]:
    trained = run.read_json(run.environment) if run.environment.is_file() else {}
    return {"trained_with": trained, "exported_with": {"tfmusic": __version__}}
