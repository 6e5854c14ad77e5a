from .captions import CaptionNoise as CaptionNoise
from .captions import inject_caption_noise as inject_caption_noise
from .captions import nested_prefix as nested_prefix
from .draws import changed_count as changed_count
from .draws import random_words as random_words
from .labels import LabelNoise as LabelNoise
from .labels import inject_label_noise as inject_label_noise
from .similarity import similarity_transition as similarity_transition
