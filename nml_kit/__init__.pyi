"""The public names of nml_kit; `__init__.py` reads this file and imports each name on first use."""

from ._version import __version__ as __version__
from .backbones import Backbone as Backbone
from .backbones import load_backbone as load_backbone
from .datasets import Task as Task
from .datasets import load_task as load_task
from .errors import NMLError as NMLError
from .features import Features as Features
from .features import extract_features as extract_features
from .heads import LinearProbe as LinearProbe
from .heads import MLPTune as MLPTune
from .heads import NMTune as NMTune
from .heads import fit_heads as fit_heads
from .noise import CaptionNoise as CaptionNoise
from .noise import LabelNoise as LabelNoise
from .noise import inject_caption_noise as inject_caption_noise
from .noise import inject_label_noise as inject_label_noise
from .pretrain import pretrain as pretrain
from .profiles import load_profile as load_profile
from .recipes import Recipe as Recipe
from .regularizers import nmtune_terms as nmtune_terms
from .spectrum import largest_singular_value_ratio as largest_singular_value_ratio
from .spectrum import singular_value_entropy as singular_value_entropy
from .spectrum import singular_values as singular_values
from .store import Store as Store
from .study import run_study as run_study
