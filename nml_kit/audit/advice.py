"""What an audit says: the spectrum beside known ones, the differences between heads, and whether to bother."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from nml_kit.features import Features
from nml_kit.inference import change_in_words, judge_claims, paired_differences
from nml_kit.spectrum import singular_values, spectrum_metrics
from nml_kit.study import Study, StudyResults


def spectral_card(features: Features, *, draws: int = 20) -> pd.DataFrame:
    """Every spectral metric of the test split, not centred: metric, value, and low and high over random halves.

    The range is that of `draws` halves without replacement: it shows how much a number depends on which samples, and on
    how many, were taken; halves of few samples have fewer directions.
    """
    values = features.values[features.splits == "test"]
    of_all, generator = spectrum_metrics(singular_values(values)), np.random.default_rng(0)
    halves = [generator.permutation(len(values))[: max(2, len(values) // 2)] for _ in range(draws)]
    of_halves = pd.DataFrame([spectrum_metrics(singular_values(values[np.sort(rows)])) for rows in halves])
    table = pd.DataFrame({"value": of_all, "low": of_halves.min(), "high": of_halves.max()}).loc[list(of_all)]
    return table.rename_axis("metric").reset_index().assign(n=len(values))


def stretched(shares: Float[np.ndarray, " r"]) -> pd.DataFrame:
    """A spectrum σ_i/Σσ (r,), whatever its length: position (i − ½)/r and height r·σ_i/Σσ, 1 for a flat one.

    >>> stretched(np.array([0.75, 0.25])).to_dict("list")
    {'position': [0.25, 0.75], 'height': [1.5, 0.5]}
    """
    count = len(shares)
    return pd.DataFrame({"position": (np.arange(count) + 0.5) / count, "height": count * np.asarray(shares)})


def tested_spectrum(features: Features) -> Float[np.ndarray, " r"]:
    """The singular values of the test split, not centred, as shares of their sum (fractions)."""
    values = singular_values(features.values[features.splits == "test"])
    return values / values.sum()


def known_spectra(results: StudyResults) -> pd.DataFrame:
    """Spectra of raw features of supervised networks whose noise is known, stretched: ratio, position, height.

    Means over seeds on the ID test split of "icons". Only the shape compares: other networks and data differ from ours
    by more than noise makes ours differ.
    """
    spectra = results.spectra.query(
        "objective == 'supervised' and protocol == 'ID' and task == 'icons' and method == 'LP' and ratio == ratio"
    )
    means = spectra.groupby(["ratio", "index"])["share"].mean()
    parts = [stretched(part.to_numpy(np.float64)).assign(ratio=ratio) for ratio, part in means.groupby("ratio")]
    return pd.concat(parts, ignore_index=True)


def head_differences(samples: pd.DataFrame, by: Sequence[str] = ("protocol",)) -> pd.DataFrame:
    """Paired differences in accuracy between heads for each group: by…, contrast, mean, low, high (fractions)."""
    tables = []
    for head, baseline in (("MLP", "LP"), ("NMTune", "LP"), ("NMTune", "MLP")):
        pair = samples[samples["method"].isin([head, baseline])]
        differences = paired_differences(pair, "method", baseline, list(by))
        tables.append(differences.assign(contrast=f"{head} − {baseline}").drop(columns="method"))
    return pd.concat(tables, ignore_index=True)


def recommendation(differences: pd.DataFrame) -> list[str]:
    """What to do, a sentence for each protocol of `head_differences`.

    The rule, stated before any result: a head is worth its cost if its 95 % interval against LP lies above zero;
    NMTune rather than MLP if its interval against MLP does too. Otherwise a linear probe is enough.

    >>> row = {"protocol": "ID", "contrast": "NMTune − LP", "mean": 0.0, "low": -0.01, "high": 0.01}
    >>> rows = [row, row | {"contrast": "MLP − LP"}, row | {"contrast": "NMTune − MLP"}]
    >>> recommendation(pd.DataFrame(rows))[0].split(":")[0]
    'ID, do not bother'
    """
    sentences = []
    for protocol, part in differences.groupby("protocol"):
        columns = (part[name] for name in ("mean", "low", "high"))
        words = dict(zip(part["contrast"], map(change_in_words, *columns), strict=True))
        head = advised_head(differences, str(protocol))
        if head == "LP":
            advice = f"do not bother: with NMTune accuracy {words['NMTune − LP']} against a linear probe"
        else:
            gain, beyond_mlp = words[f"{head} − LP"], words["NMTune − MLP"]
            advice = f"use {head}: accuracy {gain} against a linear probe; from MLP to NMTune it {beyond_mlp}"
        sentences.append(f"{protocol}, {advice}.")
    return sentences


def advised_head(differences: pd.DataFrame, protocol: str = "ID") -> str:
    """The head that the rule of `recommendation` advises for a protocol: "NMTune", "MLP" or "LP"."""
    low = differences[differences["protocol"] == protocol].set_index("contrast")["low"]
    if low["NMTune − LP"] > 0 and (low["NMTune − MLP"] > 0 or low["MLP − LP"] <= 0):
        return "NMTune"
    return "MLP" if low["MLP − LP"] > 0 else "LP"


def judge_models(study: Study) -> pd.DataFrame:
    """The verdicts of claim C5 for each backbone, by the registered rule (`judge_claims`), in its columns and backbone.

    A real model has one level of noise, which nobody knows: it stands where the rule has the ratios, of which it takes
    the mean. With fewer than three seeds every verdict is "inconclusive".
    """
    one_level = [table.assign(objective=table["backbone"], ratio=0.0) for table in (study.rows, study.samples)]
    verdicts = judge_claims(*one_level).query("claim == 'C5'")
    return verdicts.assign(backbone=verdicts["objective"]).reset_index(drop=True)
