"""Pre-training recipes: named, validated settings, light to import."""

from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from nml_kit.errors import InvalidInputError, unknown_name

AnyRecipe = TypeVar("AnyRecipe", "Recipe", "ContrastiveRecipe")
Beta = Annotated[float, Field(ge=0, lt=1)]


class Recipe(BaseModel):
    """How a network is pre-trained: SGD with Nesterov momentum, linear warm-up, then a cosine schedule to zero.

    `max_shift` moves each image by up to that many pixels each way; 0 means no augmentation.
    `batch_size` is that of a whole step, whatever the number of processes; `accumulate` divides a step into that many
    passes to save memory. Batch normalisation then sees one pass at a time; everything else stays as it is.

    >>> Recipe(epochs=3).batch_size
    128
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: str = "compact-resnet"
    epochs: int = Field(12, ge=1)
    batch_size: int = Field(128, ge=2)
    learning_rate: float = Field(0.1, gt=0)
    momentum: float = Field(0.9, gt=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    warmup_epochs: float = Field(1.0, ge=0)
    max_shift: int = Field(2, ge=0)
    precision: Literal["float32", "bfloat16"] = "float32"
    accumulate: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _passes_of_two_or_more(self) -> Self:
        if self.batch_size < 2 * self.accumulate:
            raise ValueError(
                f"expected at least 2 samples a pass, for batch normalisation, but got batch_size={self.batch_size} in "
                f"accumulate={self.accumulate} passes; lower `accumulate`"
            )
        return self

    @model_serializer(mode="wrap")
    def _as_before_accumulate(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave `accumulate` out at its default: networks stored before it existed are still found."""
        content = handler(self)
        if self.accumulate == 1:
            content.pop("accumulate", None)
        return content


class ContrastiveRecipe(BaseModel):
    """How image-text pairs are trained on: AdamW, linear warm-up, then a cosine schedule to zero.

    `betas` and `eps` are those of CLIP's ResNets (Radford et al., 2021, appendix F); gains, biases and the logit scale
    are spared from weight decay as there. `max_shift` is as in `Recipe`. A batch that is not whole is left out: the
    loss depends on the number of pairs it compares, and all samples still have their turn, in another order each epoch.

    >>> ContrastiveRecipe(epochs=3).architecture
    'clip-compact'
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: str = "clip-compact"
    epochs: int = Field(16, ge=1)
    batch_size: int = Field(128, ge=2)
    learning_rate: float = Field(1e-3, gt=0)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.2, ge=0)
    warmup_epochs: float = Field(1.0, ge=0)
    max_shift: int = Field(2, ge=0)
    precision: Literal["float32", "bfloat16"] = "float32"


# How much noise a network memorises depends on epochs and augmentation; the study varies both together.
RECIPES = {"light": Recipe(), "memorise": Recipe(epochs=24, max_shift=0)}
CONTRASTIVE_RECIPES = {"light": ContrastiveRecipe(), "memorise": ContrastiveRecipe(epochs=40, max_shift=0)}


def resolve_recipe(recipe: str | BaseModel) -> Recipe:
    """The named recipe of supervised pre-training, or the given one.

    Raises UnknownNameError for an unknown name, InvalidInputError for a recipe of contrastive pre-training.

    >>> resolve_recipe("memorise").epochs
    24
    """
    return _resolved(recipe, Recipe, RECIPES, "label noise, for supervised pre-training")


def resolve_contrastive_recipe(recipe: str | BaseModel) -> ContrastiveRecipe:
    """The same for contrastive pre-training.

    >>> resolve_contrastive_recipe("memorise").max_shift
    0
    """
    return _resolved(recipe, ContrastiveRecipe, CONTRASTIVE_RECIPES, "caption noise, for contrastive pre-training")


def _resolved(recipe: object, kind: type[AnyRecipe], known: dict[str, AnyRecipe], purpose: str) -> AnyRecipe:
    if isinstance(recipe, kind):
        return recipe
    if not isinstance(recipe, str):
        raise InvalidInputError(f"Expected a {kind.__name__} with {purpose}, got a {type(recipe).__name__}.")
    if recipe not in known:
        raise unknown_name("pre-training recipe", recipe, known)
    return known[recipe]
