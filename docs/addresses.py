"""A hook of mkdocs: the address that a page had before it moved leads to where it is."""

import posixpath
from pathlib import Path
from typing import Any

FOLDERS = {
    "tutorials": "cnn sampling devices bfloat16 learning_coefficient",
    "guides": "checkpoints from_optimizers temperature annealing"
    " where_the_noise_pays training_noise"
    " diagnostics frameworks frozen constraints loaders loops coming_from",
    "theory": "derivations",
}
MOVED = {name: f"{folder}/{name}" for folder, names in FOLDERS.items() for name in names.split()}
MOVED |= {
    "samplers": "guides/choosing_a_sampler",
    "which_sampler": "results/equal_gradients",
    "results_claims": "results/claims",
    "results_costs": "results/costs",
    "results_posterior": "results/posterior",
    "results_scaling": "results/costs",
    "numpyro": "guides/constraints",
    "faq": "guides/questions",
    "recipes": "guides/from_optimizers",
    "peers": "guides/coming_from",
    "preemption": "guides/checkpoints",
    "logging": "guides/checkpoints",
    "hosts": "tutorials/devices",
    "serialization": "guides/checkpoints",
    "chains": "guides/loops",
    "transformer": "tutorials/bfloat16",
}
PAGE = (
    '<!doctype html><meta charset="utf-8"><title>Moved</title>'
    '<meta http-equiv="refresh" content="0; url={to}"><a href="{to}">{to}</a>\n'
)


def on_post_build(config: Any, **kwargs: Any) -> None:
    """Write a page that leads on at every old address."""
    site = Path(config["site_dir"])
    for old, new in MOVED.items():
        if not (site / new / "index.html").exists():
            raise FileNotFoundError(f"docs/addresses.py leads {old} to {new}, which is no page")
        (site / old).mkdir(parents=True, exist_ok=True)
        (site / old / "index.html").write_text(PAGE.format(to=posixpath.relpath(new, old) + "/"))
