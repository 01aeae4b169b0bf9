"""Pictures that the page's script replaces by figures that answer: the name of the figure, and what it shows."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Twin:
    """``chart`` is what the script knows it by, "" where another figure shows it; ``caption`` stands below it."""

    chart: str
    caption: str


TWINS = {
    "model_map": Twin(
        "map",
        "Every mark is a model, every line a training run. Squared distance in the full space is the KL divergence in "
        "bits/byte, of which a plane shows a part. Rings: the five models that are nearest in the full space.",
    ),
    "training_paths": Twin("", "The map at the top shows it: colour by step, and move the slider."),
    "consecutive_kl": Twin(
        "consecutive_kl",
        "KL divergence of each checkpoint from the one saved before it. Bands: ± one standard error from the choice of "
        "texts. Filled marks are as far apart as most in their run; open marks are not, and cannot be compared with "
        "them. Runs of different spacing cannot be compared either.",
    ),
    "diffusion_exponents": Twin(
        "exponents_kl",
        "Slope of ln KL on ln(t − t0) over the checkpoints after t0. Neighbouring windows share most of them. "
        "c_q = 1, dashed, is ordinary diffusion, less is slower; the path has fractal dimension 2/c_q.",
    ),
    "kl_and_weight_exponents": Twin(
        "exponents_weights",
        "The same of the squared Euclidean distance of all parameters, of the same windows as c_q.",
    ),
    "kl_heatmap": Twin(
        "kl_heatmap",
        "KL divergence of pairs of models on a logarithmic scale of colours, by run and step, then by family and "
        "number of parameters. Below the scale all pairs have its darkest colour. Grey: a model was excluded.",
    ),
    "scale": Twin(
        "scale",
        "KL divergence of the pairs in each setting: every point is a pair, violins are densities in ln KL, bars are "
        "medians. Diamonds and bars in orange: published medians and ranges.",
    ),
}
