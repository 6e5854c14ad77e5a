"""Pre-training recipes: named, validated settings, light to import."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from nml_kit.errors import unknown_name


class Recipe(BaseModel):
    """How a network is pre-trained: SGD with Nesterov momentum, linear warm-up, then a cosine schedule to zero.

    `max_shift` moves each image by up to that many pixels each way; 0 means no augmentation.

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


# How much noise a network memorises depends on epochs and augmentation; the study varies both together.
RECIPES = {"light": Recipe(), "memorise": Recipe(epochs=24, max_shift=0)}


def resolve_recipe(recipe: str | Recipe) -> Recipe:
    """The named recipe, or the given one; UnknownNameError for an unknown name.

    >>> resolve_recipe("memorise").epochs
    24
    """
    if isinstance(recipe, Recipe):
        return recipe
    if recipe not in RECIPES:
        raise unknown_name("pre-training recipe", recipe, RECIPES)
    return RECIPES[recipe]
