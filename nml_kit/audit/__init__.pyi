from .inputs import features_from_files as features_from_files
from .practical import judge_models as judge_models
from .practical import practical_tasks as practical_tasks
from .practical import run_practical as run_practical
from .report import head_differences as head_differences
