"""What is checked before a training begins: the config by itself, then whether it and the records go together."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tfmusic.config.loading import find_config, load_config
from tfmusic.config.sections import Config, ModelSection
from tfmusic.core.addons import PREFIX, check_addons
from tfmusic.core.contract import Contract
from tfmusic.core.feature import EMBEDDING
from tfmusic.errors import ConfigError, RecordsError, did_you_mean
from tfmusic.features.filterbanks import filterbank_map, frames_for_each
from tfmusic.inputs.metadata import known_tokens
from tfmusic.models import BUILDERS, models_with
from tfmusic.models.frontends import Frontend, MusicnnFrontend, Pcen, smoothing
from tfmusic.models.musicnn import FEATURE, SCALE_FACTOR
from tfmusic.pretrained.sources import check_source
from tfmusic.records.format import copies_of
from tfmusic.records.manifest import Manifest
from tfmusic.training.optimizer import make_loss
from tfmusic.training.processes import joined


def find_frontend(name: str, contract: Contract) -> Frontend | None:
    """Returns the frontend to musicnn's spectrogram or to PCEN, or None where none is asked for.

    Raises:
        ConfigError: the input is no spectrogram, or one that cannot be mapped.
    """
    if name == "none":
        return None
    source = contract.feature
    if source.name != "mel":
        raise ConfigError(f"input.frontend={name} is for mel-spectrograms. Received: {source.name}")
    scale = contract.scale
    if name == "pcen":
        return Pcen(smoothing(contract.frames, contract.frames_per_s), scale)
    steps = frames_for_each(source, FEATURE)
    return MusicnnFrontend(filterbank_map(source, FEATURE), steps, SCALE_FACTOR, scale)


OWN = "own"  # the folder of the config's own model beside those of its partners
_RESERVED = re.compile(r"own|baseline|fold\d+|checkpoints|backup|evaluation.*|export|tb")


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
        what = "have splits of their own" if manifest.has_official_splits else "are assigned to folds"
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
        if stored.segments is None:
            raise RecordsError(
                f"{manifest.folder}: the contract must say which segments are stored (record.segments), which records"
                " of older versions do not; build the records again"
            )
        stored_count = manifest.settings["segments_per_track"]
        wanted["record.segments_per_track"] = (config.record.segments_per_track, stored_count)
    offline_augment = config.offline_augment.model_dump() if config.offline_augment.copies else None
    if not stored.is_embedding:
        wanted["offline_augment"] = (offline_augment, manifest.settings.get("perturb"))
    if manifest.has_official_splits:
        wanted["data.splits"] = ("folds" if config.data.makes_folds else "official", "official")
    # The embeddings of a file say themselves what they are; the config describes spectrograms.
    says_itself = stored.is_embedding and config.feature.name != EMBEDDING
    wanted |= (
        {}
        if says_itself
        else {
            "feature": (config.feature, stored.feature),
            "record.scale": (config.record.scale, stored.scale.name),
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
    if says_itself:
        return replace(stored, metadata=metadata)
    return replace(stored, frames=config.input.frames, hop_frames=config.input.hop_frames, metadata=metadata)


def _metadata(config: Config, manifest: Manifest, folds: Folds) -> tuple[str, ...]:
    section = config.metadata
    if not section.fields:
        return ()
    return known_tokens(manifest, folds.training, section.fields, section.min_count)


def check_config(config: Config, partners: Mapping[str, Config] | None = None) -> None:
    """Checks a config and those of its partners as far as that is possible without records.

    Rules between keys hold already since the config was loaded. This looks at what needs the code of models, installed
    packages or other files: the model and its options, TensorFlow Addons, pretrained weights, partners.

    Args:
        config: the config of a training.
        partners: the configs of `ensemble.partners` by name; None loads them.

    Raises:
        ConfigError, DataError, RunError: the first fault that is found.
    """
    if partners is None:
        partners = {name: load_config(find_config(name)) for name in config.ensemble.partners}
    check_partners(config, partners)
    for member in (config, *partners.values()):
        _check_member(member, contract=None)
        _check_labels(member, [data.label_kind for data in member.tasks.values()])


def check(config: Config, manifest: Manifest, *, resume: bool) -> tuple[Contract, Folds]:
    """Returns the contract and the folds of one training.

    Raises:
        ConfigError, DataError, RunError: as `check_config`, or settings that are not for the labels of the records.
        RecordsError: the records are not those that the config describes.
    """
    folds = choose_folds(manifest, config.training.fold)
    contract = model_contract(config, manifest, folds)
    if contract.is_embedding and contract.frames == 1 and config.model.name != "mlp":
        raise ConfigError(
            f"model.name must be mlp, as {manifest.folder} holds embeddings of which it sees one at a time."
            f" Received: {config.model.name}"
        )
    _check_member(config, contract=contract, resume=resume)
    find_frontend(config.input.frontend, contract)
    _check_heads(manifest, folds)
    _check_labels(config, [part.contract.kind for part in contract.parts().values()])
    if config.training.cache_frozen and joined().are_several:
        raise ConfigError("training.cache_frozen is for one process: its small head is trained in seconds")
    return contract, folds


def _check_member(config: Config, *, contract: Contract | None, resume: bool = False) -> None:
    check_model(config.model)
    _check_addons(config)
    if config.input.frontend == "musicnn" and contract is None:
        frames_for_each(config.feature, FEATURE)
    if not resume:  # a training that goes on has its backbone already
        check_source(config, contract)


def _check_addons(config: Config) -> None:
    """Raises ConfigError where TensorFlow Addons is missing, or other keys do not go with one of its optimizers."""
    training, optimizer = config.training, config.training.optimizer
    check_addons("training.optimizer", optimizer, "adamw, adam, sgd; ema_momentum averages weights")
    check_addons("augment.time_warp", config.augment.time_warp, "gather")
    if not optimizer.startswith(PREFIX):
        return
    wanted: dict[str, Any] = {"precision": "float32", "ema_momentum": 0.0}
    if training.schedule == "plateau":
        wanted["schedule"] = "cosine or constant"
    if config.model.is_pretrained:
        wanted["backbone_rate_factor"] = 1.0
    for key, value in wanted.items():
        if (received := getattr(training, key)) != value:
            raise ConfigError(
                f"training.{key} must be {value} with training.optimizer={optimizer}. Received: {received}"
            )


def check_model(section: ModelSection) -> None:
    """Raises ConfigError where there is no such model, or an option is set that its builder does not take."""
    if section.name not in BUILDERS:
        hint = did_you_mean(section.name, BUILDERS)
        raise ConfigError(f"model.name must be one of {', '.join(BUILDERS)}. Received: {section.name}.{hint}")
    for key, value in section.builder_options.items():
        if section.name not in (takers := models_with(key)):
            raise ConfigError(
                f"model.{key} must be left out for model.name={section.name}; models that take it:"
                f" {', '.join(takers)}. Received: {value}"
            )


def check_partners(config: Config, partners: Mapping[str, Config]) -> None:
    """Raises ConfigError where models could not be joined, or their folders would collide."""
    fold = config.training.fold
    for name, partner in partners.items():
        if partner.training.fold != fold or partner.ensemble.partners:
            raise ConfigError(
                f"ensemble.partners: {name} must have training.fold={fold} and no partners of its own. Received:"
                f" fold={partner.training.fold}, partners={partner.ensemble.partners}"
            )
    stems = [Path(name).stem for name in partners]
    if len({OWN, *stems}) <= len(stems) or any(_RESERVED.fullmatch(stem) for stem in stems):
        raise ConfigError(
            f"ensemble.partners: their file names must differ, and not be {OWN}, baseline, foldN or another name in a"
            f" run folder. Received: {', '.join(stems)}"
        )


def _check_labels(config: Config, kinds: Sequence[str]) -> None:
    """Raises ConfigError where a setting is not for these kinds of labels, `single` or `multi`, one for every task."""
    for kind in kinds:
        make_loss(config.training, kind)
    monitor = config.training.monitor
    fitting = {"accuracy": "single", "micro_f1": "multi"}.get(monitor or "")
    if fitting and set(kinds) != {fitting}:
        what = "one label" if fitting == "single" else "several tags"
        raise ConfigError(
            f"training.monitor={monitor} is for {what} a track: leave it out, or set macro_f1, roc_auc or pr_auc"
        )
    if config.training.target == "soft_top" and "multi" in kinds:
        raise ConfigError("training.target=soft_top is for one label a track; several tags are a target of their own")
    if config.training.class_weights == "balanced" and "multi" in kinds:
        raise ConfigError("training.class_weights=balanced is for one label a track; for several tags set loss=focal")


def _check_heads(manifest: Manifest, folds: Folds) -> None:
    """Checks that training and validation both have labels of every task."""
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
