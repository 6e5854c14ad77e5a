"""Profiles: the sizes, seeds and data of a study, read from notebooks/profiles/*.yaml and validated."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from nml_kit.errors import InvalidInputError, unknown_name
from nml_kit.pretraining import ContrastiveRecipe, Recipe, ShardRecipe, TimmRecipe
from nml_kit.store import read_yaml

Objective = Literal["supervised", "contrastive"]
NoiseKind = Literal["uniform", "asymmetric", "confusion"]


def _fraction(ratio: float) -> float:
    if not 0 <= ratio <= 1:
        raise ValueError("expected a fraction from 0 to 1; 10 % is 0.1")
    return ratio


Ratio = Annotated[float, AfterValidator(_fraction)]


class PretrainingData(BaseModel):
    """The pre-training task and how much of it is used (None: all).

    `shards`, a brace pattern below $NML_DATASETS, are what contrastive networks are trained on, whole; the task then
    only tests them, zero-shot. None: they are trained on the task's captions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str = "icons-pretrain"
    classes: int | None = Field(None, ge=2)
    train_per_class: int | None = Field(None, ge=1)
    shards: str | None = None


class DownstreamData(BaseModel):
    """The downstream tasks; `ood` maps a task to the domains that are held out in turn (None: every one).

    `ood_from` maps a task to the domains that heads are trained on alone, in turn, and tested on each of the others.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: tuple[str, ...] = Field(min_length=1)
    ood: dict[str, tuple[str, ...] | None] = {}
    ood_from: dict[str, tuple[str, ...]] = {}
    train_per_class: int | None = Field(None, ge=1)

    @property
    def ood_tasks(self) -> tuple[str, ...]:
        """Names of the tasks with domains."""
        return tuple(dict.fromkeys((*self.ood, *self.ood_from)))

    @model_validator(mode="after")
    def _has_domains(self) -> Self:
        if not self.ood_tasks:
            raise ValueError("expected a task in `ood` or `ood_from`, to test heads out of distribution")
        return self


class Profile(BaseModel):
    """A study's settings. Only the profile differs between a laptop and a cluster; notebooks are the same.

    `ratios` are fractions of flipped labels, `noise` says into what (see `conditions.label_noise`). `seeds` seed noise,
    network, batches and heads alike. A `recipe` with a `procedure` is a `TimmRecipe`; with `pretraining.shards`,
    `contrastive` is a `ShardRecipe`.

    >>> load_profile("demo").ratios[0]
    0.0
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    description: str
    ratios: tuple[Ratio, ...] = Field(min_length=2)
    seeds: tuple[int, ...] = Field(min_length=1)
    noise: NoiseKind = "uniform"
    pretraining: PretrainingData = PretrainingData()
    recipe: Recipe | TimmRecipe = Recipe()
    contrastive: ContrastiveRecipe | ShardRecipe = ContrastiveRecipe()
    downstream: DownstreamData
    head_recipe: Literal["paper", "reference"] = "paper"
    head_epochs: int = Field(30, ge=1)

    def changed(self, **fields: Any) -> Self:
        """The profile with other fields, checked as in a file; InvalidInputError says what is wrong with them."""
        try:
            return type(self).model_validate({**dict(self), **fields})
        except ValidationError as error:
            raise InvalidInputError(f"Profile {self.name!r}, changed: expected its fields, got {error}") from error

    @model_validator(mode="before")
    @classmethod
    def _recipes_of_their_kinds(cls, fields: Any) -> Any:
        """Recipes read as the kind that is meant: a mistake in one is then told in its own terms."""
        if not isinstance(fields, dict):
            return fields
        recipe, data = fields.get("recipe"), fields.get("pretraining")
        shards = data.get("shards") if isinstance(data, dict) else getattr(data, "shards", None)
        kinds = {
            "recipe": TimmRecipe if isinstance(recipe, dict) and "procedure" in recipe else Recipe,
            "contrastive": ShardRecipe if shards else ContrastiveRecipe,
        }
        for name, kind in kinds.items():
            if isinstance(fields.get(name, {}), dict):
                fields = fields | {name: kind.model_validate(fields.get(name, {}))}
        return fields

    @model_validator(mode="after")
    def _shards_have_their_recipe(self) -> Self:
        if isinstance(self.contrastive, ShardRecipe) != (self.pretraining.shards is not None):
            raise ValueError("expected a ShardRecipe as `contrastive` with `pretraining.shards`, and only then")
        return self


def notebooks_dir() -> Path:
    """Directory of the notebooks: inside the installed package, else in the checkout."""
    package = Path(__file__).parents[1]
    packaged = package / "_shipped" / "notebooks"
    return packaged if packaged.is_dir() else package.parent / "notebooks"


def profiles_dir() -> Path:
    """Directory of the profiles, in that of the notebooks."""
    return notebooks_dir() / "profiles"


def profile_names() -> list[str]:
    """Names of the shipped profiles.

    >>> "demo" in profile_names()
    True
    """
    return sorted(path.stem for path in profiles_dir().glob("*.yaml"))


def load_profile(name: str) -> Profile:
    """The shipped profile `name`, or the one in a YAML file given by its path.

    Raises UnknownNameError for an unknown name, DataFileError if there is no such file, InvalidInputError if it is not
    a valid profile.

    >>> load_profile("small").seeds
    (0, 1, 2, 3, 4)
    """
    is_path = name.endswith((".yaml", ".yml"))
    if not is_path and name not in profile_names():
        raise unknown_name("profile", name, profile_names())
    path = Path(name) if is_path else profiles_dir() / f"{name}.yaml"
    try:
        return Profile.model_validate({"name": path.stem, **read_yaml(path)})
    except (TypeError, ValidationError) as error:
        raise InvalidInputError(f"Profile {path}: expected the fields of a profile, but got {error}") from error
