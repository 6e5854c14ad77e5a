"""Where features come from, for both objectives: noise nested in the ratio, the baseline at its start."""

import numpy as np
import pandas as pd
import pytest
import torch

from nml_kit.backbones import ImageTransform, load_backbone
from nml_kit.errors import UnknownNameError
from nml_kit.store import Store
from nml_kit.study import (
    RESULT_COLUMNS,
    Origin,
    is_origin_stored,
    pretrained_backbone,
    pretraining_task,
    run_study,
)
from nml_kit.study.conditions import RANDOM_BASELINE, caption_noise


def test_who_exchanges_captions_is_nested_in_the_ratio(profile):
    task = pretraining_task(profile)
    low, high = (caption_noise(task, ratio, seed=0) for ratio in (0.1, 0.3))
    assert high.mask[low.mask].all()
    assert high.mask.sum() == int(0.3 * len(high.clean) + 0.5)
    assert (low.clean == task.select(split="train").captions).all()


def test_the_baseline_is_the_untrained_image_network_with_the_transform_of_training(profile):
    task = pretraining_task(profile)
    baseline = pretrained_backbone(profile, task, Origin(RANDOM_BASELINE, 3, "contrastive"))
    images = task.images[:4]
    pixels = np.asarray(task.select(split="train").images) / 255
    mean, std = (getattr(pixels, name)((0, 1, 2)).round(4).tolist() for name in ("mean", "std"))
    start = load_backbone("clip-compact:8", seed=3, transform=ImageTransform(tuple(mean), tuple(std)))
    torch.testing.assert_close(baseline(images), start(images), rtol=0, atol=0)
    assert baseline(images).shape == (4, 64)


def test_unknown_objective_names_the_nearest(profile, store):
    with pytest.raises(UnknownNameError, match="Unknown objective 'contrast': did you mean 'contrastive'"):
        run_study(profile, objective="contrast", store=store, progress=False)


def test_a_contrastive_study_has_the_tables_of_a_supervised_one(profile, home, tmp_path):
    asked = {"methods": ["LP"], "seeds": [0], "progress": False}
    study = run_study(profile, objective="contrastive", **asked, store=home, jobs=2)
    supervised = run_study(profile, **asked, store=home, jobs=2)
    assert tuple(study.rows.columns) == RESULT_COLUMNS
    assert set(study.rows["objective"]) == set(study.samples["objective"]) == {"contrastive"}
    assert set(supervised.rows["objective"]) == {"supervised"}
    same = ["task", "protocol", "test_domain", "method", "metric", "ratio", "seed", "n"]
    pd.testing.assert_frame_equal(study.rows[same], supervised.rows[same])
    assert not np.isclose(study.rows["value"], supervised.rows["value"]).all()
    origin = Origin(0.3, 0, "contrastive")
    assert is_origin_stored(profile, pretraining_task(profile), origin, store=home)
    assert not is_origin_stored(profile, pretraining_task(profile), Origin(0.2, 0, "contrastive"), store=home)
    alone = run_study(profile, objective="contrastive", **asked, store=Store(tmp_path / "alone"), jobs=1)
    pd.testing.assert_frame_equal(alone.rows, study.rows)
