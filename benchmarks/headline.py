"""What diffopt is for, a figure each, from what several programs wrote."""

from functools import partial
from statistics import mean

from .lib.tables import Tables, load, markdown
from .trial.protocol import panel
from .trial.tables import verdicts

HEADLINES = {
    "en": (
        "task",
        "what was measured",
        "[posteriors]({docs}results/posterior.md)",
        "held-out log-likelihood minus that of NUTS: {nuts:+.3f} ± {error:.3f} nats, for"
        " {passes:.0%} of its gradients",
        "[few data, wrong labels]({docs}guides/training_noise.md)",
        "2,000 images in 100 classes: test error {noise:.1f}% with `weight_noise`, {adamw:.1f}%"
        " with AdamW, both tuned",
        "[16-bit weights]({docs}tutorials/bfloat16.md)",
        "SGD with small steps: accuracy {bfloat16:.1%} in bfloat16, {low_precision:.1%} in bfloat16"
        " with `low_precision`, {float32:.1%} in float32",
        "[learning coefficients]({docs}tutorials/learning_coefficient.md)",
        "standard error {ours:.1f}, against {theirs:.1f} by devinterp, with as many gradients",
    ),
    "zh": (
        "用途",
        "实测",
        "[后验采样]({docs}results/posterior.md)",
        "留出数据上的对数似然与 NUTS 相差 {nuts:+.3f} ± {error:.3f} nat，梯度计算量只有其"
        " {passes:.0%}",
        "[数据少、标签有错]({docs}guides/training_noise.md)",
        "100 类、2,000 张图像：`weight_noise` 的测试误差为 {noise:.1f}%，AdamW 为 {adamw:.1f}%，"
        "两者都调过参",
        "[16 位权重]({docs}tutorials/bfloat16.md)",
        "小步长的 SGD：bfloat16 准确率 {bfloat16:.1%}，bfloat16 加 `low_precision` 为"
        " {low_precision:.1%}，float32 为 {float32:.1%}",
        "[学习系数]({docs}tutorials/learning_coefficient.md)",
        "在梯度计算次数相同时，标准误为 {ours:.1f}，devinterp 为 {theirs:.1f}",
    ),
}
ORIGIN = {
    "en": (
        "The project began as a test of a Chinese article that recommends diffusions as optimizers."
        " Its claims on [a fair trial]({docs}results/claims.md):"
    ),
    "zh": (
        "项目起因是检验一篇把扩散当作优化器的中文文章。"
        "该文论断的[公平检验]({docs}results/claims.md)结果："
    ),
}
CLAIMS = {
    "en": panel.TITLES,
    "zh": {
        "escapes": "能逃离极小点",
        "stable": "保持学习能力",
        "overfits": "减轻过拟合",
        "tuning": "少调参",
        "cost": "开销小",
    },
}
VERDICTS = {
    "en": {"holds": "holds", "open": "open", "fails": "fails"},
    "zh": {"holds": "成立", "open": "未定", "fails": "不成立"},
}
PLACES = {"readme": "docs/", "index": "", "zh_readme": "docs/", "zh_index": "../"}


def tables() -> Tables:
    """The headline in each place where it stands."""
    return {
        f"headline_{place}": partial(headline, "zh" if place.startswith("zh") else "en", docs)
        for place, docs in PLACES.items()
    }


def headline(language: str, docs: str) -> str:
    """A figure for each use, and the verdict on each of the article's claims."""
    sgld, nuts = (
        load("posterior_against_nuts.json")["diabetes"][name] for name in ("sgld", "NUTS")
    )
    error = {
        row["method"]: mean(row["error"])
        for row in load("training_noise.json")["rows"]
        if row["task"] == "pairs"
    }
    accuracy = {
        row["precision"]: mean(run["accuracy"] for run in row["runs"])
        for row in load("bfloat16.json")["training"]
        if row["optimizer"] == "sgd"
    }
    learning = load("llc_against_devinterp.json")["results"]
    figures = {
        "nuts": sgld["minus_nuts"],
        "error": sgld["minus_nuts_error"],
        "passes": sgld["passes"] / nuts["passes"],
        "noise": error["weight noise"],
        "adamw": error["adamw"],
        "ours": learning["diffopt"]["standard_error"],
        "theirs": learning["devinterp"]["standard_error"],
        **accuracy,
    }
    cells = [text.format(docs=docs, **figures) for text in HEADLINES[language]]
    head, *rows = zip(cells[::2], cells[1::2], strict=True)
    uses = markdown(head, rows, left=2)
    return f"{uses}\n\n{ORIGIN[language].format(docs=docs)}\n\n{claims(language)}"


def claims(language: str) -> str:
    """The article's claims, and the verdict on each."""
    tried = verdicts()
    titles = [CLAIMS[language][summary.claim] for summary in tried]
    return markdown(
        titles, [[VERDICTS[language][summary.verdict] for summary in tried]], left=len(titles)
    )
