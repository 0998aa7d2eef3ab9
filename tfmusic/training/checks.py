"""What is checked before a training begins: do config and records go together."""

from dataclasses import dataclass, replace
from typing import Any

from tfmusic.config.sections import Config
from tfmusic.core.addons import PREFIX, check_addons
from tfmusic.core.contract import Contract
from tfmusic.errors import ConfigError, RecordsError, did_you_mean
from tfmusic.features.embeddings import NAME as EMBEDDING
from tfmusic.inputs.metadata import known_tokens
from tfmusic.models import BUILDERS, RESIDUAL, WITH_HIDDEN
from tfmusic.pretrained.sources import check_source
from tfmusic.records.format import copies_of
from tfmusic.records.manifest import Manifest
from tfmusic.training.distribution import joined
from tfmusic.training.frontend import find_frontend
from tfmusic.training.optimizer import make_loss


@dataclass(frozen=True)
class Folds:
    """Which splits train and which validate; no validation where every fold trains."""

    training: tuple[str, ...]
    validation: tuple[str, ...]


def choose_folds(manifest: Manifest, fold: int | str) -> Folds:
    """Returns the splits of a fold: it validates, all others train; `none` trains on all.

    Of official splits `train` trains and `validation` validates, with `none` both train; `test` does neither.

    Raises:
        RecordsError: the records lack that fold.
    """
    fitting = ("official", "none") if manifest.has_official_splits else ("a number", "all", "none")
    if (fold == "official") != manifest.has_official_splits and fold != "none":
        what = "have splits of their own" if manifest.has_official_splits else "are dealt into folds"
        raise RecordsError(
            f"{manifest.folder}: training.fold must be {' or '.join(fitting)}, as the records {what}. Received: {fold}"
        )
    names = tuple(name for name in manifest.splits if name != "test")
    if fold == "none":
        return Folds(names, ())
    held_out = "validation" if fold == "official" else f"fold{fold}"
    manifest.split(held_out)
    # The copies of the tracks that validate must not train either.
    return Folds(tuple(name for name in names if name not in (held_out, copies_of(held_out))), (held_out,))


def model_contract(config: Config, manifest: Manifest, folds: Folds) -> Contract:
    """Returns the contract of the model to be trained; the metadata it knows is that of the training folds.

    Raises:
        RecordsError: the records were built for another task, feature, scale or segment than the config says.
    """
    stored = manifest.contract
    wanted: dict[str, tuple[Any, Any]] = {
        "task": (config.task_name, stored.task),
        "data.folds": (config.data.folds, manifest.settings.get("folds")),
        "data.seed": (config.data.seed, manifest.settings.get("split_seed")),
    }
    wanted["record.segments"] = (config.record.segments, manifest.settings.get("segments", "all"))
    if not manifest.has_whole_tracks:
        stored_count = manifest.settings["segments_per_track"]
        wanted["record.segments_per_track"] = (config.record.segments_per_track, stored_count)
    perturb = config.offline_augment.model_dump() if config.offline_augment.copies else None
    if not is_embedding(stored):
        wanted["offline_augment"] = (perturb, manifest.settings.get("perturb"))
    if manifest.has_official_splits:
        wanted["data.splits"] = ("folds" if config.data.deals_folds else "official", "official")
    # Embeddings say themselves what they are; the config describes spectrograms.
    wanted |= (
        {}
        if is_embedding(stored)
        else {
            "feature": (config.feature.model_dump(), dict(stored.feature)),
            "record.scale": (config.record.scale, stored.scale["name"]),
            "record.dtype": (config.record.dtype, stored.dtype),
            "record.segment_frames": (config.record.segment_frames, stored.frames),
            "record.hop_frames": (config.record.hop_frames, stored.hop_frames),
        }
    )
    for key, (asked, found) in wanted.items():
        if asked != found:
            raise RecordsError(
                f"{manifest.folder}: {key} must be {asked} as the config says. Received: {found};"
                f" build the records again or change {key}"
            )
    metadata = _metadata(config, manifest, folds)
    if is_embedding(stored):
        return replace(stored, metadata=metadata)
    return replace(stored, frames=config.input.frames, hop_frames=config.input.hop_frames, metadata=metadata)


def _metadata(config: Config, manifest: Manifest, folds: Folds) -> tuple[str, ...]:
    section = config.metadata
    if not section.fields:
        return ()
    return known_tokens(manifest, folds.training, section.fields, section.min_count)


def is_embedding(contract: Contract) -> bool:
    """Returns whether the input is embeddings rather than spectrograms."""
    return bool(contract.feature["name"] == EMBEDDING)


def check(config: Config, manifest: Manifest, *, resume: bool) -> tuple[Contract, Folds]:
    """Returns contract and folds of a training to come; one to be resumed has its backbone already.

    Raises:
        ConfigError: no such model, or a loss or weights that are not for this kind of labels.
        RecordsError: the records are not those that the config describes.
    """
    folds = choose_folds(manifest, config.training.fold)
    contract = model_contract(config, manifest, folds)
    if config.model.name not in BUILDERS:
        hint = did_you_mean(config.model.name, BUILDERS)
        raise ConfigError(f"model.name must be one of {', '.join(BUILDERS)}. Received: {config.model.name}.{hint}")
    if is_embedding(contract) and config.model.name != "mlp":
        raise ConfigError(
            f"model.name must be mlp, as {manifest.folder} holds embeddings. Received: {config.model.name}"
        )
    _check_heads(config, manifest, folds)
    make_losses(config, contract)
    _check_addons(config)
    _check_shards(manifest, folds)
    if not resume:
        check_source(config, contract)
    find_frontend(config.input.frontend, contract)
    for key, names in (("stochastic_depth", RESIDUAL), ("hidden", WITH_HIDDEN)):
        value = getattr(config.model, key)
        if value not in (0.0, "default") and config.model.name not in names:
            raise ConfigError(
                f"model.{key} is for {', '.join(names)}. Received: {value} for model.name={config.model.name}"
            )
    if config.training.cache_frozen and contract.heads:
        raise ConfigError("training.cache_frozen is for one task: set it to false for several")
    if config.training.cache_frozen and config.training.class_weights != "none":
        raise ConfigError("training.cache_frozen does not go with training.class_weights=balanced: set one of them off")
    if (config.training.devices != 1 or joined().are_several) and config.training.cache_frozen:
        raise ConfigError(
            "training.devices must be 1, and one process, with training.cache_frozen, whose small head is soon trained."
            f" Received: {config.training.devices}"
        )
    if config.training.cache_frozen and (config.balance.is_on or config.training.target != "labels"):
        raise ConfigError(
            "training.cache_frozen wants every segment once and training.target=labels: set it to false, or leave the"
            " section balance and the target as they are"
        )
    if config.balance.is_on and contract.heads:
        raise ConfigError("balance is for one task: several tasks share the segments of a track")
    if config.training.target == "soft_top" and contract.kind != "single":
        raise ConfigError("training.target=soft_top is for one label a track; several tags are a target of their own")
    if config.training.class_weights == "balanced" and contract.kind != "single":
        raise ConfigError("training.class_weights: balanced is for one label a track; several tags want loss: focal")
    return contract, folds


def _check_addons(config: Config) -> None:
    """Checks that TensorFlow Addons is there where it is asked for, and is asked for what it can do."""
    training, optimizer = config.training, config.training.optimizer
    check_addons("training.optimizer", optimizer, "adamw, adam, sgd; ema_momentum averages weights")
    check_addons("augment.time_warp", config.augment.time_warp, "gather")
    if not optimizer.startswith(PREFIX):
        return
    wanted = {"ema_momentum": 0.0} | ({"backbone_rate_factor": 1.0} if config.model.is_pretrained else {})
    for key, value in wanted.items():
        if (found := getattr(training, key)) != value:
            raise ConfigError(f"training.{key} must be {value} with training.optimizer={optimizer}. Received: {found}")


def _check_shards(manifest: Manifest, folds: Folds) -> None:
    """Checks that every process has shards of its own to train on."""
    n_shards, count = sum(len(manifest.split(name).shards) for name in folds.training), joined().count
    if n_shards < count:
        raise RecordsError(
            f"{manifest.folder}: must have a training shard for every process at least. Received: {n_shards} for"
            f" {count} processes; build the records with a higher --num-shards"
        )


def _check_heads(config: Config, manifest: Manifest, folds: Folds) -> None:
    """Checks what several tasks need: settings that are for every kind, and labels of each in both parts."""
    if not manifest.contract.heads:
        return
    training = config.training
    if training.loss != "auto" or training.class_weights != "none":
        raise ConfigError(
            "several tasks want training.loss=auto and training.class_weights=none. Received:"
            f" loss={training.loss}, class_weights={training.class_weights}"
        )
    for splits in (folds.training, folds.validation):
        labels = manifest.count_labels(splits)
        for head in manifest.contract.heads:
            if splits and not any(label.startswith(f"{head.task}:") for label in labels):
                raise RecordsError(
                    f"{manifest.folder}: {', '.join(splits)} must have tracks with labels of {head.task}. Received:"
                    " none; choose another training.fold, or build with fewer data.folds"
                )


def make_losses(config: Config, contract: Contract) -> Any:
    """Returns the loss, or that of every task where there are several; raises ConfigError as `make_loss`."""
    losses = {task: make_loss(config.training, part.contract.kind) for task, part in contract.parts().items()}
    return losses if contract.heads else losses[contract.task]
