"""Four figures for a front page, from what several programs wrote."""

from functools import partial

from .lib.tables import Tables, load, markdown
from .trial.tables import verdicts

HEADLINES = {
    "en": (
        "what for",
        "what was measured",
        "a posterior",
        "by `sgld` a held-out log-likelihood {nuts:+.3f} ± {error:.3f} nats beside NUTS, with"
        " {passes:.0%} of its gradients",
        "little extra cost",
        "{step:.1%} of a training step of a small CNN on a CPU; {update:.0%} of the time of"
        " `optax.noisy_sgd` for ResNet-18; small batches through dense layers cost more",
        "16 bits that neither lose nor heat",
        "variance over the exact one {kept:.2f}; rounded to nearest {lost:.2f}, at random"
        " {heated:.0f}",
        "six claims on a fair trial",
        "noise on the iterate: {article_holds} hold, {article_open} are open, {article_fails} fail;"
        " the best method here: {best_holds}, {best_open}, {best_fails}",
    ),
    "zh": (
        "用途",
        "实测",
        "后验",
        "`sgld` 在留出数据上的对数似然与 NUTS 相差 {nuts:+.3f} ± {error:.3f} nat，"
        "梯度计算量为其 {passes:.0%}",
        "额外开销小",
        "占 CPU 上小型卷积网络训练一步的 {step:.1%}；"
        "ResNet-18 的更新用时为 `optax.noisy_sgd` 的 {update:.0%}；"
        "小批量经过全连接层时开销更大",
        "16 位参数，不丢失也不升温",
        "方差与精确值之比为 {kept:.2f}；就近舍入为 {lost:.2f}，普通随机舍入为 {heated:.0f}",
        "六个论断的公平检验",
        "对参数加噪声：{article_holds} 个成立，{article_open} 个未定，{article_fails} 个不成立；"
        "本库最佳方法：{best_holds}、{best_open}、{best_fails}",
    ),
}


def tables() -> Tables:
    """The headline in each language."""
    return {"headline": partial(headline, "en"), "headline_zh": partial(headline, "zh")}


def headline(language: str) -> str:
    """Four figures for a front page."""
    sgld, nuts = (
        load("posterior_against_nuts.json")["diabetes"][name] for name in ("sgld", "NUTS")
    )
    ns = {
        row["optimizer"]: row["ns_per_parameter"]
        for row in load("step_cost_py313.json")["rows"]
        if row["tree"] == "resnet18"
    }
    tried = [f"{summary.column}_{summary.verdict}" for summary in verdicts()]
    law = next(law for law in load("bfloat16.json")["laws"] if law["size"] == 1 / 128)
    figures = {
        "nuts": sgld["minus_nuts"],
        "error": sgld["minus_nuts_error"],
        "passes": sgld["passes"] / nuts["passes"],
        "step": load("train_cost.json")["diffusion_overhead"] - 1,
        "update": ns["diffopt.sgld gaussian"] / ns["optax.noisy_sgd"],
        "kept": law["low_precision"],
        "lost": law["nearest"],
        "heated": law["stochastic"],
        **{
            f"{column}_{verdict}": tried.count(f"{column}_{verdict}")
            for column in ("article", "best")
            for verdict in ("holds", "open", "fails")
        },
    }
    cells = [text.format(**figures) for text in HEADLINES[language]]
    head, *rows = zip(cells[::2], cells[1::2], strict=True)
    return markdown(head, rows, left=2)
