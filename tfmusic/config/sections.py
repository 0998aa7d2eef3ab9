"""The sections of a config: each key with its type, default and meaning.

The string below a key is its meaning, which `tfmusic config keys` and `config show` print. Units stand in names. `null`
leaves a value to the paper, or a limit unset; `none` is the choice to do without something.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tfmusic.core.contract import Kind
from tfmusic.core.feature import EMBEDDING, POWER, Feature
from tfmusic.core.scale import ScaleName
from tfmusic.core.section import Count, CountOrZero, Fraction, Positive, PositiveOrZero, Section, Seed
from tfmusic.core.windows import Choice, Segments
from tfmusic.datasets import AnyData, airush
from tfmusic.datasets.options import DataSection
from tfmusic.features.offline_augment import OfflineAugment
from tfmusic.scoring.aggregate import AggregatorName
from tfmusic.scoring.track_scorer import TrackScorer

TaskName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
MetadataField = Literal[
    "genres", "artists", "album", "title", "lyric", "country", "gender", "artist_type", "production", "agency",
    "album_year", "debut_year", "is_overseas", "is_live", "has_lyric",
]  # fmt: skip
PolicyName = Literal["none", "custom", "LB", "LD", "SM", "SS"]
_DESCRIPTORS = "descriptors"  # the model of the classical baseline
WITHOUT_BACKBONE = (_DESCRIPTORS, "mlp")  # models of which the head alone learns
_BASELINE_FRAMES = 640  # the longer a window, the more it says of rhythm, and the more memory it takes


class RecordSection(Section):
    """How tracks are cut into segments and stored. What is left out is neither trained on nor scored."""

    segment_frames: Count = 313
    """Length of a stored segment, frames."""
    hop_frames: Count = 313
    """Distance between the starts of two segments, frames."""
    segments: Literal["all"] | Choice = "all"
    """Which segments of a track are stored and scored: all, or segments_per_track of them: the first, random or evenly
    spaced. random depends on the seed and the length of the track."""
    segments_per_track: Count = 1
    """Number of segments for segments=first, random and even."""
    dtype: Literal["uint8", "float16", "float32"] = "uint8"
    """Type of the stored codes."""
    scale: ScaleName = "db"
    """From power to codes: dB, log10(1 + 10 p), log10(1 + 10000 p), or as it is (float dtypes)."""
    max_clipped: Fraction = 0.2
    """Largest share of tracks with most codes at the ends of the scale db, in silence or beyond it, that is stored."""
    num_shards: Count = 4
    """Least number of shards of each fold or split."""
    shard_mib: Count = 128
    """Largest shard, MiB; more data makes more shards."""
    seed: Seed = 0
    """Seed of the random segments and of the order of records."""

    @property
    def chosen(self) -> Segments | None:
        """Which segments are stored where not all are."""
        if self.segments == "all":
            return None
        sizes = {"frames": self.segment_frames, "hop_frames": self.hop_frames}
        return Segments(self.segments, self.segments_per_track, **sizes, seed=self.seed)

    @model_validator(mode="after")
    def _every_frame_is_stored(self) -> "RecordSection":
        if self.hop_frames > self.segment_frames:
            raise ValueError(
                f"record.hop_frames must be at most record.segment_frames={self.segment_frames}, or frames between"
                f" segments would be lost. Received: {self.hop_frames}"
            )
        if self.scale == "identity" and self.dtype == "uint8":
            raise ValueError("record.dtype must be float16 or float32 for record.scale=identity. Received: uint8")
        return self


class InputSection(Section):
    """The window that the model sees, and the first layers that prepare it."""

    frames: Count = 157
    """Length of a window, frames; in training cut from a segment at a random place."""
    hop_frames: Count = 78
    """Distance between the starts of two windows when a whole track is scored, frames."""
    normalize: Literal["per_bin", "global", "none"] = "per_bin"
    """Subtract the mean of the training codes and divide by their deviation; without effect behind a frontend."""
    frontend: Literal["none", "musicnn", "pcen"] = "none"
    """Layers that turn a mel-spectrogram into that of musicnn, or into per-channel energy normalisation."""


class AugmentSection(Section):
    """Changes of training windows: crops and distortions, SpecAugment (Park et al. 2019), mixup (Zhang et al. 2018)."""

    n_crops: Count = 1
    """Pieces of the segment that a window is put together from."""
    time_stretch: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0
    """Change the tempo by a factor of 1 - s to 1 + s."""
    freq_stretch: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0
    """Stretch the bins by a factor of 1 - s to 1 + s."""
    freq_shift_bins: CountOrZero = 0
    """Move the bins by up to this many, up or down."""
    gain_db: PositiveOrZero = 0.0
    """Change the level by up to this much, dB."""
    equalizer_db: PositiveOrZero = 0.0
    """Add a random smooth curve over the bins of up to this height, dB."""
    policy: PolicyName = "custom"
    """SpecAugment: none, the policies LB, LD, SM, SS of the paper, or custom: the six keys from time_warp_frames on."""
    time_warp: Literal["gather", "addons/sparse_image_warp"] = "gather"
    """How the time is warped: rows from the nearest frame, or the spline of TensorFlow Addons."""
    time_warp_frames: CountOrZero = 0
    """W of the paper: move a random frame by up to this many."""
    freq_mask_bins: CountOrZero = 16
    """F of the paper: a mask covers 0 to F - 1 bins."""
    n_freq_masks: CountOrZero = 1
    """Number of masks over bins."""
    time_mask_frames: CountOrZero = 20
    """T of the paper: a mask covers 0 to T - 1 frames."""
    time_mask_fraction: Fraction = 1.0
    """p of the paper: a mask covers at most this share of the window."""
    n_time_masks: CountOrZero = 1
    """Number of masks over frames."""
    mixup_alpha: PositiveOrZero = 0.0
    """Parameter of the beta distribution of mixup; 0 for no mixup."""


class ModelSection(Section):
    """Which network, and where its backbone comes from."""

    name: str = "resnet18"
    """Architecture; `tfmusic models` lists them."""
    width: Count | None = None
    """Channels of the first block; null: the paper's."""
    hidden: CountOrZero | None = None
    """Units of the dense layer before the last; 0: no such layer; null: the paper's."""
    pooling: Literal["average", "max", "attention"] | None = None
    """How the backbone's output is pooled over time and bins; null: the paper's way."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.3
    """Share of the features that are dropped before the last layer."""
    stochastic_depth: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """Share of examples that skip the last residual block (Huang et al. 2016), earlier blocks less; null: none."""
    squeeze: Count | None = None
    """Squeeze-and-excitation in residual blocks (Hu et al. 2018), with this reduction of the channels; null: none."""
    downsampling: Literal["strides", "pools"] | None = None
    """Strides in the convolutions, or the max-pools of an AI Rush finalist; null: strides."""
    reset_after: bool | None = None
    """Whether a GRU resets after its matrix product, as the fast kernel for GPUs does; null: where there is a GPU. The
    paper's number of parameters needs false."""
    weights: Annotated[str, Field(min_length=1)] = "none"
    """Pretrained weights: none, imagenet (which Keras fetches over the network unless ~/.keras has them), musicnn, or a
    file: a .keras file of this model, a .h5 file of Keras Applications, a .safetensors file of torchvision, the musicnn
    wheel."""
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
                f"model.weights and model.init_from must not both be set. Received: {self.weights} and {self.init_from}"
            )
        return self


class MetadataSection(Section):
    """Metadata that the model reads beside the spectrogram."""

    fields: list[MetadataField] = Field(default_factory=list)
    """Fields of the metadata to read; an empty list for none."""
    min_count: Count = 3
    """A value that fewer training tracks have counts as a rare value of its field."""
    width: Count = 32
    """Size of the embedding of a track's values."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    """Share of training examples that a field is hidden from, so that tracks without metadata work as well."""


class BalanceSection(Section):
    """How often the segments of a track come in an epoch. A track is as rare as the rarest of its labels."""

    rare_share: Fraction = 0.5
    """A label is rare if it has fewer training tracks than this share of the mean label."""
    common: list[str] = Field(default_factory=list)
    """Labels that are common; all others are rare, and rare_share is not used. None named: rare_share decides."""
    common_segments: Count | Literal["all"] = "all"
    """Segments of a track in an epoch, drawn anew for every epoch."""
    rare_segments: Count | Literal["all"] = "all"
    """The same for tracks with a rare label."""
    oversample: Fraction = 0.0
    """Repeat the segments of a label until it has this share of those of the most common label; 0 repeats none."""

    @property
    def is_on(self) -> bool:
        """Whether an epoch is anything but every stored segment once."""
        return bool(self.oversample) or (self.common_segments, self.rare_segments) != ("all", "all")


class TrainingSection(Section):
    """Folds, epochs, loss and optimizer."""

    fold: CountOrZero | Literal["none", "all", "official"] = 0
    """The fold that validates; none: train on all tracks; all: cross-validation, a model for each fold and their mean;
    official: the splits that the data set comes with, of which test is for `evaluate --split test`."""
    select: Literal["best", "last"] = "best"
    """The epoch whose weights are kept: the best on the validation fold, or the last, whose score there is unbiased."""
    monitor: Literal["accuracy", "micro_f1", "macro_f1", "roc_auc", "pr_auc"] | None = None
    """What is watched on the validation fold, for select=best, early stopping and plateaus; areas are the mean over
    labels; null: accuracy for one label a track, micro_f1 for several tags."""
    epochs: Count = 60
    """Number of epochs."""
    freeze_epochs: CountOrZero = 0
    """First epochs, with a pretrained backbone frozen; the others have a warm-up and schedule of their own."""
    cache_frozen: bool = False
    """Compute the output of the frozen backbone once for every window: fast, without crops and masks."""
    backbone_rate_factor: Positive = 0.1
    """Learning rate of a pretrained backbone, times that of the head."""
    batch_size: Count = 32
    """Windows in a batch; several devices share it."""
    seed: Seed = 0
    """Seed of initial weights, order and augmentation."""
    loss: Literal["auto", "cross_entropy", "binary_cross_entropy", "focal", "asymmetric", "soft_f1"] = "auto"
    """auto: cross_entropy for one label a track, binary_cross_entropy for several tags; the last three are for tags."""
    target: Literal["labels", "soft_top"] = "labels"
    """soft_top: .75 for the track's first label, .25 shared by the others behind it."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the target that is spread over all labels."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: weigh the loss of a class by the inverse of its frequency."""
    optimizer: Literal[
        "adamw", "adam", "sgd", "lbfgs", "addons/lookahead_radam", "addons/lamb", "addons/novograd", "addons/swa"
    ] = "adamw"
    """Optimizer; those of TensorFlow Addons need the addons stack. lbfgs solves a linear head on a frozen backbone."""
    learning_rate: Positive = 1e-3
    """Highest learning rate, after the warm-up."""
    schedule: Literal["cosine", "constant", "plateau"] = "cosine"
    """Learning rate: a warm-up and half a cosine down to 0, constant, or constant until the validation score, or
    without validation the loss, is no better for a while; then it falls."""
    warmup_epochs: PositiveOrZero = 2.0
    """Epochs over which the learning rate rises from 0, for schedule=cosine."""
    plateau_epochs: Count = 5
    """Epochs without anything better after which the learning rate falls, for schedule=plateau."""
    plateau_factor: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    """What the learning rate is multiplied by then."""
    weight_decay: PositiveOrZero = 1e-2
    """Decay of the weights, biases and normalisation excepted."""
    momentum: Fraction = 0.9
    """Momentum of sgd and addons/swa."""
    ema_momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Momentum of the moving average of the weights, which validates and is kept; 0 for none."""
    early_stopping_epochs: CountOrZero = 0
    """Stop after this many epochs without a better validation score; 0 for never."""
    precision: Literal["float32", "mixed_float16", "mixed_bfloat16"] = "float32"
    """Precision of the layers."""
    jit: bool = False
    """Compile the training step with XLA."""
    devices: Count | Literal["all"] = 1
    """Devices of this machine that share every batch."""
    tensorboard: bool = True
    """Write TensorBoard logs to the run folder."""

    @model_validator(mode="after")
    def _solver_goes_with_the_rest(self) -> "TrainingSection":
        """A head that is solved has one epoch, on the outputs of a backbone that does not learn."""
        wanted: dict[str, Any] = {"cache_frozen": True, "freeze_epochs": 1, "epochs": 1, "loss": "auto"}
        wanted |= {"label_smoothing": 0.0, "ema_momentum": 0.0, "precision": "float32"}
        for key, value in wanted.items() if self.optimizer == "lbfgs" else ():
            if (received := getattr(self, key)) != value:
                raise ValueError(
                    f"training.optimizer=lbfgs does not go with training.{key}={received}: set it to"
                    f" {str(value).lower()}"
                )
        return self

    @model_validator(mode="after")
    def _cache_goes_with_the_rest(self) -> "TrainingSection":
        """A cached backbone has one output for every window, computed on one device, without weights of examples."""
        wanted = {"class_weights": "none", "target": "labels", "devices": 1} if self.cache_frozen else {}
        for key, value in wanted.items():
            if (received := getattr(self, key)) != value:
                raise ValueError(
                    f"training.cache_frozen=true does not go with training.{key}={received}: set it to {value}"
                )
        if self.cache_frozen and not self.freeze_epochs:
            raise ValueError("training.cache_frozen=true needs training.freeze_epochs of 1 or more. Received: 0")
        return self


class EnsembleSection(Section):
    """Other models that are trained on the same records and joined with this one."""

    partners: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    """Configs of the other models, by name or path."""
    weights: Literal["fitted", "equal"] = "fitted"
    """Weights of the models' logits: fitted on the tracks that all hold out, or equal."""


class EvaluationSection(Section):
    """How the scores of windows become the prediction of a track."""

    aggregator: AggregatorName = "mean"
    """From the scores of windows to that of the track."""
    top_k: Count = 3
    """Number of windows for top_k_mean."""
    calibrate: bool = True
    """Several tags: shift the logits on held-out tracks so that .5 is the best threshold."""
    min_tags: CountOrZero = 0
    """Several tags: predict at least this many, the highest scores."""
    max_tags: Count | None = None
    """Several tags: predict at most this many; null: no limit."""
    batch_size: Count = 64
    """Windows in a batch of evaluation."""
    baseline: bool = True
    """Of training.fold=all: first train a linear layer on descriptors of the spectrogram, so that `evaluate` says how
    far the model is ahead of it."""

    def scorer(self, kind: Kind) -> TrackScorer:
        """Returns the scorer of a task, not calibrated yet."""
        return TrackScorer(
            kind=kind,
            aggregator=self.aggregator,
            top_k=self.top_k,
            min_tags=self.min_tags,
            max_tags=self.max_tags,
        )


class Config(Section):
    """The complete description of a task, from data to prediction, or of several tasks that share a backbone."""

    task: TaskName | Annotated[list[TaskName], Field(min_length=2)]
    """Name of the task, or of several tasks that share a backbone: what folders are called."""
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
    def tasks(self) -> dict[str, DataSection]:
        """The section `data` of every task; one, unless several share a backbone."""
        if isinstance(self.task, str):
            return {self.task: self.data}
        assert isinstance(self.data, airush.Options)  # checked below
        questions = dict(zip(self.task, self.data.question, strict=True))
        return {task: self.data.model_copy(update={"question": question}) for task, question in questions.items()}

    @property
    def task_name(self) -> str:
        """The task's name, or those of several joined: what folders are called."""
        return "_".join(self.tasks)

    def baseline(self) -> "Config | None":
        """Returns the config of the classical baseline of a cross-validation; None where there is none to train.

        It has none for several tasks, for embeddings and raw samples, and where the model itself is one of descriptors.
        """
        is_spectrogram = self.feature.name not in ("raw", EMBEDDING)
        is_wanted = self.evaluation.baseline and self.training.fold == "all" and isinstance(self.task, str)
        if not is_wanted or not is_spectrogram or self.model.name == _DESCRIPTORS:
            return None
        frames = min(self.record.segment_frames, _BASELINE_FRAMES)
        sections: dict[str, Section] = {
            "input": InputSection(frames=frames, hop_frames=(frames + 1) // 2, normalize="none"),
            "augment": AugmentSection(),
            "model": ModelSection(name=_DESCRIPTORS, dropout=0.0),
            "metadata": MetadataSection(),
            "balance": BalanceSection(),
            "training": TrainingSection(
                fold="all",
                select="last",
                epochs=1,
                freeze_epochs=1,
                cache_frozen=True,
                optimizer="lbfgs",
                seed=self.training.seed,
                tensorboard=False,
            ),
            "evaluation": self.evaluation.model_copy(update={"baseline": False}),
            "ensemble": EnsembleSection(),
        }
        return self.model_copy(update=sections)

    @model_validator(mode="after")
    def _a_question_each(self) -> "Config":
        if not isinstance(self.data, airush.Options):
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
        if are_several and training.target != "labels":
            raise ValueError(f"training.target={training.target} is for one task: set it to labels for several")
        if are_several and training.cache_frozen:
            raise ValueError("training.cache_frozen is for one task: set it to false for several")
        if are_several and self.balance.is_on:
            raise ValueError("balance is for one task: several tasks share the segments of a track")
        if training.optimizer == "lbfgs" and (self.metadata.fields or self.augment.mixup_alpha):
            raise ValueError("training.optimizer=lbfgs needs metadata.fields=[] and augment.mixup_alpha=0")
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
        if self.training.freeze_epochs and not self.model.is_pretrained and self.model.name not in WITHOUT_BACKBONE:
            raise ValueError(
                "training.freeze_epochs is for a pretrained backbone: set model.weights or model.init_from, or"
                f" freeze_epochs=0. Received: {self.training.freeze_epochs}"
            )
        if self.metadata.fields and isinstance(self.task, list):
            raise ValueError(f"metadata.fields is for one task. Received: task={self.task}")
        most = self.evaluation.max_tags
        if most is not None and most < self.evaluation.min_tags:
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
