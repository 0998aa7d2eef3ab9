"""The sections and keys of a config file, with their types and ranges.

Every shipped config spells out every key. A key that a user's file leaves out takes the default below.
Units stand in the names. Loading from YAML, overrides and error messages live in `configfile.py`.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tfmusic.config.data import AirushData, AnyData, BalanceSection
from tfmusic.core.contract import Kind
from tfmusic.core.feature import EMBEDDING, POWER, Feature
from tfmusic.core.scale import ScaleName
from tfmusic.core.section import Count, CountOrZero, Fraction, Positive, PositiveOrZero, Section, Seed
from tfmusic.features.offline_augment import OfflineAugment
from tfmusic.scoring.aggregate import AggregatorName
from tfmusic.scoring.track_scorer import TrackScorer

TaskName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
MetadataField = Literal[
    "genres", "artists", "album", "title", "lyric", "country", "gender", "artist_type", "production", "agency",
    "album_year", "debut_year", "is_overseas", "is_live", "has_lyric",
]  # fmt: skip
PolicyName = Literal["none", "custom", "LB", "LD", "SM", "SS"]


class RecordSection(Section):
    """How tracks are cut and stored.

    `segments` says which of a track's segments: all, or `segments_per_track` of them: the first, some drawn by `seed`,
    or evenly spaced ones. What is left out is neither trained on nor scored.
    """

    segment_frames: Count = 313
    hop_frames: Count = 313
    segments: Literal["all", "first", "random", "even"] = "all"
    segments_per_track: Count = 1
    dtype: Literal["uint8", "float16", "float32"] = "uint8"
    scale: ScaleName = "db"
    num_shards: Count = 4
    shard_mib: Count = 128
    seed: Seed = 0

    @model_validator(mode="after")
    def _every_frame_is_stored(self) -> "RecordSection":
        if self.hop_frames > self.segment_frames:
            raise ValueError(
                f"hop_frames must be at most segment_frames={self.segment_frames}, or frames between"
                f" segments would be lost. Received: hop_frames={self.hop_frames}"
            )
        if self.scale == "identity" and self.dtype == "uint8":
            raise ValueError("dtype must be float16 or float32 for scale=identity. Received: dtype=uint8")
        return self


class InputSection(Section):
    """What the model sees: windows of `frames` frames, every `hop_frames` when a track is scored.

    `frontend: musicnn` turns them into the spectrogram that musicnn was trained on, `frontend: pcen` into per-channel
    energy normalisation, inside the model; `normalize` then does not apply.
    """

    frames: Count = 157
    hop_frames: Count = 78
    normalize: Literal["per_bin", "global", "none"] = "per_bin"
    frontend: Literal["none", "musicnn", "pcen"] = "none"
    shuffle_segments: Count = 4096


class AugmentSection(Section):
    """Distortions, SpecAugment (Park et al. 2019) and mixup (Zhang et al. 2018), in this order.

    `policy: custom` uses the six parameters of the paper as they stand here; LB LD SM SS take the paper's. `time_warp`
    is how the time is bent: rows gathered from the nearest frame, or TensorFlow Addons' spline over the image.
    """

    crop_pieces: Count = 1
    time_stretch: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0
    freq_stretch: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0
    freq_shift_bins: CountOrZero = 0
    gain_db: PositiveOrZero = 0.0
    equalizer_db: PositiveOrZero = 0.0
    policy: PolicyName = "custom"
    time_warp: Literal["gather", "addons/sparse_image_warp"] = "gather"
    time_warp_frames: CountOrZero = 0
    freq_mask_bins: CountOrZero = 16
    n_freq_masks: CountOrZero = 1
    time_mask_frames: CountOrZero = 20
    time_mask_fraction: Fraction = 1.0
    n_time_masks: CountOrZero = 1
    mixup_alpha: PositiveOrZero = 0.0


class ModelSection(Section):
    """Which network, and where its backbone comes from."""

    name: str = "resnet18"
    """`tfmusic models` lists them."""
    width: Count | None = None
    """Channels of the first block; null: the paper's."""
    hidden: Count | None = None
    """Units of the dense layer before the last; null: the paper's."""
    pooling: Literal["average", "max", "attention"] | None = None
    """How the backbone's output is pooled over time and bins; null: the paper's way."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.3
    """Share of the features that are dropped before the last layer."""
    stochastic_depth: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """Share of examples that skip the last residual block (Huang et al. 2016); earlier blocks less; null: none."""
    weights: Annotated[str, Field(min_length=1)] = "none"
    """Pretrained weights: none, imagenet, musicnn, or a file: a .keras file of this model, a .h5 file of Keras
    Applications, the musicnn wheel."""
    init_from: Annotated[str, Field(min_length=1)] = "none"
    """A run folder whose backbone to start from, or none."""

    @property
    def builder_options(self) -> dict[str, Any]:
        """The options for the model's builder that are set: all keys but those that name the model and its weights."""
        options = self.model_dump(exclude={"name", "weights", "init_from"})
        return {key: value for key, value in options.items() if value is not None}

    @property
    def is_pretrained(self) -> bool:
        """Whether the backbone begins with weights that were trained before."""
        return (self.weights, self.init_from) != ("none", "none")

    @property
    def origin(self) -> str:
        """The run or weights that the backbone begins with, as the config names them."""
        return self.init_from if self.init_from != "none" else self.weights

    @model_validator(mode="after")
    def _one_source(self) -> "ModelSection":
        if "none" not in (self.weights, self.init_from):
            raise ValueError(
                "weights and init_from must not both be given. Received:"
                f" weights={self.weights}, init_from={self.init_from}"
            )
        return self


class MetadataSection(Section):
    """What a model reads beside the spectrogram; no fields, no metadata.

    A value that fewer than `min_count` training tracks have counts as a rare one of its field. In training every field
    is hidden from an example with probability `dropout`, so that a track without metadata is answered as well.
    """

    fields: list[MetadataField] = Field(default_factory=list)
    min_count: Count = 3
    width: Count = 32
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5


class TrainingSection(Section):
    """How long, on which folds and with which optimizer.

    `fold` is the one that validates: a number, `none` to train on all tracks, or `all` for cross-validation, where
    every fold validates a model of its own and the run is their mean. Records with official splits have `official`,
    which trains on `train` and validates on `validation`, and `none`, which trains on both; `test` is left to
    `evaluate --split test`. `select` says which epoch's weights are kept: the best of the validation fold, or the
    last, which leaves the fold's score honest.

    A pretrained backbone stays frozen for the first `freeze_epochs`; after that its layers learn at
    `backbone_rate_factor` times the learning rate. Both stages have a warm-up and a schedule of their own.
    `cache_frozen` computes the output of a frozen backbone once for every window and trains on that: fast, but
    without crops, distortions and masks.

    `loss: auto` is cross-entropy for one label a track, binary cross-entropy for several tags. `target: soft_top` is
    for one label a track with others behind it: .75 for the label, .25 shared by the others. `devices` of this machine
    share every batch, which keeps its size.
    """

    fold: CountOrZero | Literal["none", "all", "official"] = 0
    select: Literal["best", "last"] = "best"
    epochs: Count = 60
    freeze_epochs: CountOrZero = 0
    cache_frozen: bool = False
    backbone_rate_factor: Positive = 0.1
    batch_size: Count = 32
    seed: Seed = 0
    loss: Literal["auto", "cross_entropy", "binary_cross_entropy", "focal", "asymmetric", "soft_f1"] = "auto"
    target: Literal["labels", "soft_top"] = "labels"
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    class_weights: Literal["none", "balanced"] = "none"
    optimizer: Literal[
        "adamw", "adam", "sgd", "addons/lookahead_radam", "addons/lamb", "addons/novograd", "addons/swa"
    ] = "adamw"
    learning_rate: Positive = 1e-3
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_epochs: PositiveOrZero = 2.0
    weight_decay: PositiveOrZero = 1e-2
    momentum: Fraction = 0.9
    ema_momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    early_stopping_epochs: CountOrZero = 0
    precision: Literal["float32", "mixed_float16", "mixed_bfloat16"] = "float32"
    jit: bool = False
    devices: Count | Literal["all"] = 1
    tensorboard: bool = True

    @model_validator(mode="after")
    def _cache_goes_with_the_rest(self) -> "TrainingSection":
        """A cached backbone has one output for every window, computed on one device, without weights of examples."""
        wanted = {"class_weights": "none", "target": "labels", "devices": 1} if self.cache_frozen else {}
        for key, value in wanted.items():
            if (received := getattr(self, key)) != value:
                raise ValueError(
                    f"training.cache_frozen=true does not go with training.{key}={received}: set it to {value}"
                )
        return self


class EnsembleSection(Section):
    """Configs, by name or path, whose models are trained on the same records as well and joined with this one.

    `weights: fitted` finds their shares on the tracks that all hold out.
    """

    partners: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    weights: Literal["fitted", "equal"] = "fitted"


class EvaluationSection(Section):
    """How segment scores become the answer of a track: at least `min_tags` and at most `max_tags` of several tags."""

    aggregator: AggregatorName = "mean"
    top_k: Count = 3
    calibrate: bool = True
    min_tags: CountOrZero = 0
    max_tags: Count | Literal["none"] = "none"
    batch_size: Count = 64

    def scorer(self, kind: Kind) -> TrackScorer:
        """Returns the scorer of a task, not calibrated yet."""
        most = None if self.max_tags == "none" else self.max_tags
        return TrackScorer(
            kind=kind, aggregator=self.aggregator, top_k=self.top_k, min_tags=self.min_tags, max_tags=most
        )


class Config(Section):
    """One complete description of a task, from data to answer; or of several tasks that share a backbone."""

    task: TaskName | Annotated[list[TaskName], Field(min_length=2)]
    data: AnyData
    feature: Feature = Feature()
    offline_augment: OfflineAugment = OfflineAugment()
    record: RecordSection = RecordSection()
    input: InputSection = InputSection()
    augment: AugmentSection = AugmentSection()
    model: ModelSection = ModelSection()
    metadata: MetadataSection = MetadataSection()
    balance: BalanceSection = BalanceSection()
    training: TrainingSection = TrainingSection()
    evaluation: EvaluationSection = EvaluationSection()
    ensemble: EnsembleSection = EnsembleSection()

    @property
    def tasks(self) -> dict[str, dict[str, Any]]:
        """What the loader is given for every task; one, unless several share a backbone."""
        options = self.data.options()
        if isinstance(self.task, str):
            return {self.task: options}
        assert isinstance(self.data, AirushData)  # checked below
        return {task: options | {"question": ask} for task, ask in zip(self.task, self.data.question, strict=True)}

    @property
    def task_name(self) -> str:
        """The task's name, or those of several joined: what folders are called."""
        return "_".join(self.tasks)

    @model_validator(mode="after")
    def _a_question_each(self) -> "Config":
        if not isinstance(self.data, AirushData):
            if isinstance(self.task, list):
                raise ValueError(f"several tasks are for data.loader=airush. Received: {self.data.loader}")
            return self
        names, questions = ([value] if isinstance(value, str) else value for value in (self.task, self.data.question))
        is_list = {isinstance(value, list) for value in (self.task, self.data.question)}
        repeated = len(set(names)) != len(names) or len(set(questions)) != len(questions)
        if len(is_list) == 2 or repeated or len(names) != len(questions):
            raise ValueError(
                "task and data.question must be one name each, or lists of the same length without repeats."
                f" Received: task={self.task}, data.question={self.data.question}"
            )
        return self

    @model_validator(mode="after")
    def _scale_suits_the_feature(self) -> "Config":
        name, record = self.feature.name, self.record
        if name == EMBEDDING:
            raise ValueError(
                "feature.name must be a spectrogram's; embeddings are read from a file: build-records --embeddings."
                f" Received: {name}"
            )
        if name not in POWER and record.scale != "identity":
            raise ValueError(
                f"record.scale must be identity for {name}, with record.dtype float16 or float32: its values are no"
                f" power. Received: {record.scale}"
            )
        if name in POWER and record.scale == "identity" and record.dtype != "float32":
            raise ValueError(
                f"record.dtype must be float32 for record.scale=identity and {name}: its power is beyond float16."
                f" Received: {record.dtype}"
            )
        if record.scale == "identity" and (self.augment.gain_db or self.augment.equalizer_db):
            raise ValueError(
                "augment.gain_db and equalizer_db must be 0 for record.scale=identity. Received:"
                f" {self.augment.gain_db:g} and {self.augment.equalizer_db:g}"
            )
        moved = ("time_stretch", "freq_stretch", "freq_shift_bins")
        if name == "raw" and any(getattr(self.augment, key) for key in moved):
            raise ValueError(f"augment.{', '.join(moved)} must be 0 for raw, whose frames are neighbouring samples")
        return self

    @model_validator(mode="after")
    def _training_suits_the_tasks(self) -> "Config":
        training, are_several = self.training, isinstance(self.task, list)
        if are_several and (training.loss, training.class_weights) != ("auto", "none"):
            raise ValueError(
                "several tasks want training.loss=auto and training.class_weights=none. Received:"
                f" loss={training.loss}, class_weights={training.class_weights}"
            )
        if are_several and training.cache_frozen:
            raise ValueError("training.cache_frozen is for one task: set it to false for several")
        if are_several and self.balance.is_on:
            raise ValueError("balance is for one task: several tasks share the segments of a track")
        if training.cache_frozen and self.balance.is_on:
            raise ValueError("training.cache_frozen needs every segment once: set it to false, or leave balance out")
        return self

    @model_validator(mode="after")
    def _frontend_suits_the_feature(self) -> "Config":
        frontend = self.input.frontend
        if frontend != "none" and self.feature.name != "mel":
            raise ValueError(f"input.frontend={frontend} is for mel-spectrograms. Received: {self.feature.name}")
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> "Config":
        if self.input.frames > self.record.segment_frames:
            raise ValueError(
                "input.frames must be at most record.segment_frames, or no stored segment could fill the"
                f" input. Received: input.frames={self.input.frames},"
                f" record.segment_frames={self.record.segment_frames}"
            )
        if self.input.hop_frames > self.input.frames:
            raise ValueError(
                "input.hop_frames must be at most input.frames, or frames of a track would never be scored."
                f" Received: input.hop_frames={self.input.hop_frames}, input.frames={self.input.frames}"
            )
        if self.training.freeze_epochs and not self.model.is_pretrained:
            raise ValueError(
                "training.freeze_epochs is for a pretrained backbone: set model.weights or model.init_from, or"
                f" freeze_epochs=0. Received: {self.training.freeze_epochs}"
            )
        if self.metadata.fields and isinstance(self.task, list):
            raise ValueError(f"metadata.fields is for one task. Received: task={self.task}")
        most = self.evaluation.max_tags
        if most != "none" and most < self.evaluation.min_tags:
            raise ValueError(
                f"evaluation.max_tags must be at least min_tags={self.evaluation.min_tags}. Received: {most}"
            )
        fold = self.training.fold
        if self.ensemble.partners and fold == "none":
            raise ValueError("ensemble.partners needs tracks that all hold out: set training.fold to a number or all")
        if isinstance(fold, int) and fold >= self.data.folds:
            raise ValueError(
                f"training.fold must be 0 to {self.data.folds - 1} (data.folds={self.data.folds}), none, all or"
                f" official. Received: {fold}"
            )
        return self
