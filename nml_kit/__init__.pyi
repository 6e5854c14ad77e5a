"""The public names of nml_kit; `__init__.py` reads this file and imports each name on first use."""

from .backbones import Backbone as Backbone
from .backbones import load_backbone as load_backbone
from .data import Task as Task
from .data import inject_caption_noise_into_shards as inject_caption_noise_into_shards
from .data import load_task as load_task
from .data import task_from_arrays as task_from_arrays
from .errors import NMLError as NMLError
from .features import Features as Features
from .features import extract_features as extract_features
from .heads import ExactLinearProbe as ExactLinearProbe
from .heads import LinearProbe as LinearProbe
from .heads import MLPTune as MLPTune
from .heads import NMTune as NMTune
from .heads import fit_heads as fit_heads
from .heads import fuse_head as fuse_head
from .heads import nmtune_terms as nmtune_terms
from .heads import regularisation_path as regularisation_path
from .noise import CaptionNoise as CaptionNoise
from .noise import LabelNoise as LabelNoise
from .noise import inject_caption_noise as inject_caption_noise
from .noise import inject_label_noise as inject_label_noise
from .pages import save_figure as save_figure
from .pretraining import ContrastiveRecipe as ContrastiveRecipe
from .pretraining import Recipe as Recipe
from .pretraining import ShardRecipe as ShardRecipe
from .pretraining import TimmRecipe as TimmRecipe
from .pretraining import pretrain as pretrain
from .pretraining import pretrain_on_shards as pretrain_on_shards
from .spectrum import SpectrumAccumulator as SpectrumAccumulator
from .spectrum import grouped_singular_values as grouped_singular_values
from .spectrum import largest_singular_value_ratio as largest_singular_value_ratio
from .spectrum import singular_value_entropy as singular_value_entropy
from .spectrum import singular_values as singular_values
from .spectrum import spectra_of_subsets as spectra_of_subsets
from .store import Store as Store
from .study import load_profile as load_profile
from .study import retrieval_recall as retrieval_recall
from .study import run_study as run_study
from .study import zero_shot_predictions as zero_shot_predictions
from .tuning import Tuning as Tuning
from .tuning import fine_tune as fine_tune

__version__: str
