"""Small tables for every figure, with ratios out of order and texts that a page might take for markup."""

import math

import numpy as np
import pandas as pd
import plotly.graph_objects as go

NAN = math.nan
RATIOS = [0.3, NAN, 0.0, 0.1]  # out of order on purpose
TRAINED = [0.0, 0.1, 0.3]
LABELS = ["0 %", "10 %", "30 %", "random init"]
PANEL = ("protocol", "task")
# What forest plots take from their tables.
DIFFERENCES = {"panel": "comparison", "row": PANEL, "series": "ratio"}
VARIANTS = {"panel": "group", "row": "method", "series": "protocol"}
CHANGES = {"panel": "quantity", "row": "panel", "series": "variant"}
CHOICES = {"panel": "metric", "row": "choice", "series": "ratio"}
COSTS = {"panel": "step", "row": "task", "series": "method"}
HOSTILE = "<img src=x onerror=alert(1)>"


def product(**columns) -> pd.DataFrame:
    return pd.MultiIndex.from_product(columns.values(), names=list(columns)).to_frame(index=False)


def with_bands(frame: pd.DataFrame) -> pd.DataFrame:
    mean = 1.0 + np.arange(len(frame))
    return frame.assign(mean=mean, low=mean - 0.5, high=mean + 0.5)


def spectra() -> pd.DataFrame:
    frames = []
    for ratio in RATIOS:
        share = np.arange(1.0, 9.0) ** -(1 + (0 if math.isnan(ratio) else ratio))
        share /= share.sum()
        energy = np.cumsum(share**2) / np.sum(share**2)
        frame = {"ratio": ratio, "index": np.arange(1, 9), "share": share, "cumulative_energy": energy}
        frames.append(pd.DataFrame({**frame, "low": 0.9 * share, "high": 1.1 * share}))
    return pd.concat(frames)


def points() -> pd.DataFrame:
    rows = [
        (task, protocol, ratio, base - 0.1 * np.nan_to_num(ratio, nan=3.0), 4.9 + np.nan_to_num(ratio))
        for task, protocol, base in [("icons", "ID", 0.9), ("emoji", "ID", 0.9), ("icons", "OOD", 0.8)]
        for ratio in RATIOS
    ]
    return pd.DataFrame(rows, columns=["task", "protocol", "ratio", "accuracy", "sve"])


def summary(random_accuracy: float = 0.2) -> pd.DataFrame:
    rows = []
    for task, protocol in [("icons", "ID"), ("emoji", "ID"), ("icons", "OOD")]:
        for step, method in enumerate(["NMTune", "LP", "MLP"]):
            for ratio in RATIOS:
                mean = random_accuracy if math.isnan(ratio) else 0.8 + 0.01 * step - 0.1 * ratio
                rows.append((task, protocol, method, ratio, mean, mean - 0.01, mean + 0.01))
    return pd.DataFrame(rows, columns=["task", "protocol", "method", "ratio", "mean", "low", "high"])


def differences() -> pd.DataFrame:
    frame = summary()
    frame = frame[frame["ratio"].notna() & (frame["method"] != "NMTune")]
    return frame.assign(comparison="NMTune − " + frame["method"])


def by_share() -> pd.DataFrame:
    keys = {"task": ["icons"], "protocol": ["ID", "OOD"], "ratio": [0.0, 0.3, NAN], "method": ["LP", "NMTune"]}
    return with_bands(product(**keys, fraction=[0.1, 1.0]))


def effects() -> pd.DataFrame:
    rows = [("ID · a", "ridge", "ID", 0.1), ("OOD · b", HOSTILE, "OOD", -0.1), ("OOD · b", "ridge", "OOD", 0.2)]
    table = pd.DataFrame(rows, columns=["group", "method", "protocol", "mean"])
    return table.assign(low=table["mean"] - 0.1, high=table["mean"] + 0.1)


def selections() -> pd.DataFrame:
    chosen = [True, False, False, True, True, False]
    return pd.DataFrame({"method": HOSTILE, "candidate": ["kNN 1", "kNN 5"] * 3, "chosen": chosen})


def values() -> pd.DataFrame:
    frame = product(metric=["sve", "lsvr", HOSTILE], ratio=TRAINED, seed=[0, 1])
    return frame.assign(value=np.arange(len(frame)) / 7)


def choices() -> pd.DataFrame:
    return with_bands(product(metric=["sve", "lsvr"], choice=["test", HOSTILE], ratio=TRAINED))


def sizes() -> pd.DataFrame:
    return with_bands(product(metric=["sve", HOSTILE], ratio=TRAINED, n=[400, 100, 200]))


def atlas() -> pd.DataFrame:
    frame = product(panel=["ID · icons", HOSTILE], ratio=TRAINED, index=np.arange(1, 6))
    return frame.assign(share=1 / frame["index"] ** 2)


def changes() -> pd.DataFrame:
    return with_bands(
        product(quantity=["SVE (nats)", "accuracy"], panel=["ID · icons", HOSTILE], variant=["a", HOSTILE])
    )


def probabilities() -> pd.DataFrame:
    frame = product(task=["icons", HOSTILE], protocol=["ID", "OOD"], ratio=TRAINED)
    return frame.assign(probability=np.tile([0.2, 0.5, 0.3], 4))


def costs() -> pd.DataFrame:
    return with_bands(product(task=["icons", HOSTILE], method=["LP", "NMTune"], step=["fit", "predict"]))


def curves(epochs: int = 4) -> pd.DataFrame:
    frame = product(variant=["as the profile", HOSTILE], ratio=[0.0, 0.3], seed=[0, 1], epoch=range(1, epochs + 1))
    memorised = np.where(frame["ratio"] > 0, 0.2 + 0.1 * frame["seed"], np.nan)
    return frame.assign(memorised=memorised, test_accuracy=0.5, loss=1.0)


def series_results() -> pd.DataFrame:
    rows = [(task, ratio, "top 1", mean, mean - 0.1, mean + 0.1, 0.25)
            for task in ("a", HOSTILE) for ratio, mean in ((0.0, 0.6), (0.3, 0.5), (NAN, 0.2))]  # fmt: skip
    return pd.DataFrame(rows, columns=["task", "ratio", "series", "mean", "low", "high", "chance"])


def drawn(figure: go.Figure, mode: str) -> list[go.Scatter]:
    """The traces of a mode that hold points; bands are not among them."""
    scatters = [trace for trace in figure.data if trace.type == "scatter" and trace.mode == mode]
    return [trace for trace in scatters if trace.fill is None and len(trace.x)]


def in_legend(figure: go.Figure) -> list[str]:
    return [trace.name for trace in figure.data if trace.showlegend]


def panel_names(figure: go.Figure) -> list[str]:
    return [note.text for note in figure.layout.annotations]
