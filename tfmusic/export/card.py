"""The model card of an export: its labels, input, evaluation, intended use and limits.

After Mitchell et al. 2019, Model Cards for Model Reporting (arXiv 1810.03993).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tfmusic import __version__
from tfmusic.config.loading import load_config
from tfmusic.config.sections import Config
from tfmusic.core.contract import Contract
from tfmusic.core.rundir import RunDir, is_run, reading
from tfmusic.inference.predictor import Predictor, WindowPredictor
from tfmusic.reports.page import render, without_paths
from tfmusic.scoring.track_scorer import TrackScorer

CARD_JSON, CARD_MARKDOWN = "model_card.json", "MODEL_CARD.md"
CARD_VERSION = 1


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
        scored, limitations = report and _evaluation(report), _limits(contract, report)
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
    """Returns the card for readers."""
    return render("card.md", card=card)


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
        "metadata_fields": fields,
    }


def _prediction(scorer: TrackScorer) -> dict[str, Any]:
    """Returns how the windows of a track become its prediction."""
    steps: dict[str, Any] = {"aggregator": scorer.aggregator}
    if scorer.aggregator == "top_k_mean":
        steps["top_k"] = scorer.top_k
    if scorer.kind == "multi":
        steps |= {"threshold": 0.5, "min_tags": scorer.min_tags, "max_tags": scorer.max_tags}
    return steps


def _model(run: RunDir, config: Config, n_parameters: int) -> dict[str, Any]:
    members = len(run.read_json(run.ensemble)["members"]) if run.ensemble.is_file() else 1
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
    keys = ("metric", "value", "interval", "metrics", "tracks", "splits", "folds", "window_value", "audit")
    evaluation = {"metrics": {report["metric"]: [report["value"], *report["interval"]]}}
    evaluation |= {name: report[name] for name in keys if name in report}
    baseline = {"baseline_value": report["baseline_value"]} if "baseline_value" in report else {}
    note = without_paths(report.get("note", "")).removeprefix("note: ")
    return evaluation | baseline | {"note": note, "labels": report["labels"]}


def _intended_use(contract: Contract) -> str:
    what = "one of its labels" if contract.kind == "single" else "some of its tags"
    return (
        f"Predicts {what} for whole music tracks, as a suggestion for people who sort, search or program music. Use it"
        " on music similar to the training data, with spectrograms computed as described under Input."
    )


def _limits(contract: Contract, report: dict[str, Any] | None) -> list[str]:
    limits = [
        "It knows no other labels: music of another kind, speech and noise are given these labels too.",
        "Predictions for spectrograms of another sample rate, FFT size, hop, filterbank or scale are meaningless.",
        "Labels are opinions of the annotators. Labels that are rare in the training data are rarely predicted.",
    ]
    if contract.kind == "multi":
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
