"""Pre-training recipes: named, validated settings, light to import."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nml_kit.errors import InvalidInputError, unknown_name

Share = Annotated[float, Field(ge=0, lt=1)]
Precision = Literal["float32", "bfloat16"]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Recipe(_Settings):
    """How a network is pre-trained: SGD with Nesterov momentum, linear warm-up, then a cosine schedule to zero.

    `max_shift` moves each image by up to that many pixels each way; 0 means no augmentation. `batch_size` is that of a
    step of all processes; `accumulate` divides it into that many passes, each batch-normalised by itself.

    >>> Recipe(epochs=3).batch_size
    128
    """

    architecture: str = "compact-resnet"
    epochs: int = Field(12, ge=1)
    batch_size: int = Field(128, ge=2)
    learning_rate: float = Field(0.1, gt=0)
    momentum: float = Field(0.9, gt=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    warmup_epochs: float = Field(1.0, ge=0)
    max_shift: int = Field(2, ge=0)
    precision: Precision = "float32"
    accumulate: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _passes_of_two_or_more(self) -> Self:
        if self.batch_size < 2 * self.accumulate:
            raise ValueError(
                f"expected at least 2 samples a pass, for batch normalisation, but got batch_size={self.batch_size} in "
                f"accumulate={self.accumulate} passes; lower `accumulate`"
            )
        return self


class ContrastiveRecipe(_Settings):
    """How image-text pairs are trained on: AdamW, linear warm-up, then a cosine schedule to zero.

    `betas` and `eps` are those of CLIP's ResNets (Radford et al., 2021, appendix F); gains, biases and the logit scale
    are spared from weight decay as there. `max_shift` is as in `Recipe`. A batch that is not full is left out, for the
    loss depends on the number of pairs it compares.

    >>> ContrastiveRecipe(epochs=3).architecture
    'clip-compact'
    """

    architecture: str = "clip-compact"
    epochs: int = Field(16, ge=1)
    batch_size: int = Field(128, ge=2)
    learning_rate: float = Field(1e-3, gt=0)
    betas: tuple[Share, Share] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.2, ge=0)
    warmup_epochs: float = Field(1.0, ge=0)
    max_shift: int = Field(2, ge=0)
    precision: Precision = "float32"


_STRIKES_BACK: dict[str, Any] = {
    "architecture": "timm:resnet50", "optimizer": "lamb", "batch_size": 2048, "warmup_epochs": 5, "train_size": 224,
    "randaugment": "rand-m7-mstd0.5-inc1", "mixup": 0.1, "cutmix": 1.0, "loss": "bce", "bce_threshold": 0.2,
    "drop_path": 0.05, "repeats": 3, "test_crop": 0.95, "weight_decay": 0.02, "learning_rate": 5e-3,
}  # fmt: skip
PROCEDURES: dict[str, dict[str, Any]] = {
    "A1": _STRIKES_BACK | {"epochs": 600, "weight_decay": 0.01, "smoothing": 0.1, "mixup": 0.2, "bce_threshold": None},
    "A2": _STRIKES_BACK | {"epochs": 300},
    "A3": _STRIKES_BACK | {"epochs": 100, "learning_rate": 8e-3, "train_size": 160, "drop_path": 0.0, "repeats": 1,
                           "randaugment": "rand-m6-mstd0.5-inc1"},
    "DeiT": {"architecture": "timm:vit_base_patch16_224", "optimizer": "adamw", "epochs": 300, "batch_size": 1024,
             "learning_rate": 1e-3, "weight_decay": 0.05, "warmup_epochs": 5, "randaugment": "rand-m9-mstd0.5-inc1",
             "mixup": 0.8, "cutmix": 1.0, "erasing": 0.25, "smoothing": 0.1, "drop_path": 0.1, "repeats": 3,
             "loss": "cross-entropy", "test_crop": 0.875},
}  # fmt: skip


class TimmRecipe(_Settings):
    """How a timm network is trained on images of any size: as a published procedure says, unless set otherwise.

    "A1", "A2" and "A3" are those of Wightman et al. (2021, "ResNet strikes back", table 2) for ResNet-50, "DeiT" that
    of Touvron et al. (2021, table 9) for ViT-B/16. Where they are silent, the settings are those of timm's own scripts:
    `warmup_from` and `floor` (the learning rates at the start and the end), `bce_threshold` (a class counts as present
    if mixing leaves it more than that; None: its share is the target). `batch_size` and `accumulate` are as in
    `Recipe`; each pass is mixed by itself too. `train_size` and `test_size` are pixels, `test_crop` is the share of the
    resized side that a test image keeps, `drop_path` is stochastic depth, `repeats` how often an image is in an epoch,
    which stays as long as it was (repeated augmentation).

    >>> recipe = TimmRecipe(procedure="A3", batch_size=256)
    >>> recipe.epochs, recipe.train_size, recipe.batch_size
    (100, 160, 256)
    """

    procedure: Literal["A1", "A2", "A3", "DeiT"]
    architecture: str = Field(pattern="^timm:.+")
    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=2)
    accumulate: int = Field(1, ge=1)
    optimizer: Literal["lamb", "adamw", "sgd"]
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    warmup_epochs: int = Field(ge=0)
    warmup_from: float = Field(1e-4, ge=0)
    floor: float = Field(1e-6, ge=0)
    train_size: int = Field(224, ge=8)
    test_size: int = Field(224, ge=8)
    test_crop: float = Field(gt=0, le=1)
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    randaugment: str | None
    erasing: Share = 0.0
    repeats: int = Field(ge=1)
    mixup: float = Field(ge=0)
    cutmix: float = Field(ge=0)
    smoothing: Share = 0.0
    loss: Literal["bce", "cross-entropy"]
    bce_threshold: Share | None = None
    drop_path: Share
    precision: Precision = "bfloat16"

    @model_validator(mode="before")
    @classmethod
    def _as_published(cls, settings: Any) -> Any:
        """What is not set is as in the procedure."""
        known = isinstance(settings, dict) and settings.get("procedure") in PROCEDURES
        return PROCEDURES[settings["procedure"]] | settings if known else settings

    @model_validator(mode="after")
    def _passes_of_pairs(self) -> Self:
        if self.batch_size % (2 * self.accumulate):
            raise ValueError(
                f"expected a batch of whole passes of pairs of images, which are mixed, but got batch_size="
                f"{self.batch_size} in accumulate={self.accumulate} passes; choose a multiple of {2 * self.accumulate}"
            )
        return self


class ShardRecipe(_Settings):
    """How a CLIP model of open_clip is trained on shards of images and captions: AdamW, warm-up, cosine to zero.

    The defaults are those that open_clip's README documents for RN50 on YFCC15M, on eight GPUs of 128 pairs, with its
    `betas` and `eps` for ResNets (for a ViT it has 0.98 and 1e-6). `architecture` is "open_clip:NAME", or
    "clip-compact". `streams`: into that many the shards of an epoch are dealt, each with its own order and share of
    every batch, so that batches do not depend on the number of processes and workers, which share the streams. It must
    divide `batch_size`, and be divided by the number of processes. `shuffle` is how many samples of a stream are held
    to draw the next from.

    >>> ShardRecipe().architecture, ShardRecipe().batch_size
    ('open_clip:RN50', 1024)
    """

    architecture: str = "open_clip:RN50"
    epochs: int = Field(32, ge=1)
    batch_size: int = Field(1024, ge=2)
    learning_rate: float = Field(5e-4, gt=0)
    betas: tuple[Share, Share] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    warmup_steps: int = Field(10_000, ge=0)
    streams: int = Field(32, ge=1)
    shuffle: int = Field(256, ge=1)
    precision: Precision = "bfloat16"

    @model_validator(mode="after")
    def _streams_share_a_batch(self) -> Self:
        if self.batch_size % self.streams:
            raise ValueError(
                f"expected streams that share a batch evenly, but got {self.streams} of batch_size={self.batch_size}"
            )
        return self


AnyRecipe = Recipe | TimmRecipe | ContrastiveRecipe
# How much noise a network memorises depends on epochs and augmentation; the study varies both together.
RECIPES = {"light": Recipe(), "memorise": Recipe(epochs=24, max_shift=0)}
CONTRASTIVE_RECIPES = {"light": ContrastiveRecipe(), "memorise": ContrastiveRecipe(epochs=40, max_shift=0)}


def resolve_recipe(recipe: str | AnyRecipe, *, contrastive: bool) -> AnyRecipe:
    """The recipe of that name ("light", "memorise"), or a recipe of the objective as it is.

    Raises UnknownNameError for an unknown name, InvalidInputError for a recipe of the other objective.

    >>> resolve_recipe("memorise", contrastive=False).epochs
    24
    """
    known: Mapping[str, AnyRecipe] = CONTRASTIVE_RECIPES if contrastive else RECIPES
    if isinstance(recipe, str):
        if recipe not in known:
            raise unknown_name("pre-training recipe", recipe, known)
        return known[recipe]
    if not isinstance(recipe, ContrastiveRecipe if contrastive else (Recipe, TimmRecipe)):
        supervised = "Recipe with label noise, for supervised"
        expected = "ContrastiveRecipe with caption noise, for contrastive" if contrastive else supervised
        raise InvalidInputError(f"Expected a {expected} pre-training, got a {type(recipe).__name__}.")
    return recipe
