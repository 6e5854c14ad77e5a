"""Profiles: the sizes, seeds and data of a study, read from notebooks/profiles/*.yaml and validated."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nml_kit._yaml import read_yaml
from nml_kit.errors import InvalidInputError, unknown_name
from nml_kit.recipes import ContrastiveRecipe, Recipe

Objective = Literal["supervised", "contrastive"]
Ratio = Annotated[float, Field(ge=0, le=1)]


class PretrainingData(BaseModel):
    """The pre-training task and how much of it is used (None: all)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str = "icons-pretrain"
    classes: int | None = Field(None, ge=2)
    train_per_class: int | None = Field(None, ge=1)


class DownstreamData(BaseModel):
    """The downstream tasks; `ood` maps a task to the domains that are held out in turn (None: every one)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: tuple[str, ...] = Field(min_length=1)
    ood: dict[str, tuple[str, ...] | None] = Field(min_length=1)
    train_per_class: int | None = Field(None, ge=1)


class Profile(BaseModel):
    """A study's settings. Only the profile differs between a laptop and a cluster; notebooks are the same.

    `ratios` are fractions of flipped labels, `noise` says into what (`origins.label_noise`). `seeds` seed noise,
    network, batches and heads alike.

    >>> load_profile("demo").ratios[0]
    0.0
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    description: str
    ratios: tuple[Ratio, ...] = Field(min_length=2)
    seeds: tuple[int, ...] = Field(min_length=1)
    noise: Literal["uniform", "asymmetric", "confusion"] = "uniform"
    pretraining: PretrainingData = PretrainingData()
    recipe: Recipe = Recipe()
    contrastive: ContrastiveRecipe = ContrastiveRecipe()
    downstream: DownstreamData
    head_recipe: Literal["paper", "reference"] = "paper"
    head_epochs: int = Field(30, ge=1)


def notebooks_dir() -> Path:
    """Directory of the notebooks: inside the installed package, else in the checkout."""
    package = Path(__file__).parent
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
