"""Reads a head that nml_kit exported: it needs numpy and safetensors, not nml_kit."""

import json
from collections.abc import Callable

import numpy as np
from safetensors import safe_open


def load_head(path: str) -> tuple[list[str], Callable[[np.ndarray], np.ndarray]]:
    """The names of the classes, and a function from frozen features (N, D) to their logits (N, K)."""
    with safe_open(path, "np") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        classes = json.loads(file.metadata()["nml_kit"])["classes"]
    layers = sum(name.startswith("tuner.") for name in weights) // 2

    def logits(features: np.ndarray) -> np.ndarray:
        tuned = features
        for layer in range(layers):
            tuned = (np.maximum(tuned, 0) if layer else tuned) @ weights[f"tuner.{layer}.weight"].T
            tuned = tuned + weights[f"tuner.{layer}.bias"]
        tuned = features + weights["scale"] * tuned if "scale" in weights else tuned
        return tuned @ weights["classifier.weight"].T + weights["classifier.bias"]

    return classes, logits
