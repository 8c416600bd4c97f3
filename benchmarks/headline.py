"""What diffopt is for, a figure each, from what several programs wrote."""

from functools import partial
from statistics import mean

from .lib.tables import Tables, load, markdown
from .trial.committed import left_out
from .trial.protocol import panel
from .trial.protocol.pairs import Entry, gain
from .trial.protocol.verdicts import COLUMNS
from .trial.tables import verdicts, won

HEADLINES = {
    "en": (
        "task",
        "what was measured",
        "[posteriors]({docs}results/posterior.md)",
        "held-out log-likelihood minus that of NUTS: {nuts:+.3f} ± {error:.3f} nats, for"
        " {passes:.0%} of its gradients",
        "[few data, many classes]({docs}guides/training_noise.md)",
        "2,000 images in 100 classes: test error {ivon:.1f}% with `ivon`, {momentum:.1f}% with"
        " momentum, {adamw:.1f}% with AdamW, all tuned",
        "[few images]({docs}results/claims.md#on-cifar-10)",
        "2,000 of CIFAR-10, shown 128 times: test error {posterior:.1f}% with an `sghmc` posterior,"
        " {ensemble:.1f}% with an ensemble of four AdamW, at equal gradients",
        "[large batches]({docs}results/claims.md#less-overfitting)",
        "800 images in 100 classes, batches of 400: test error {noisy:.1f}% with `weight_noise`,"
        " {rival:.1f}% with {name}, the best of seven tuned rivals",
        "[16-bit weights]({docs}tutorials/bfloat16.md)",
        "AdamW at 3e-4 on a small transformer: loss {float32:.2f} in float32, {ours16:.2f} in two"
        " thirds of its bytes with `low_precision`, {nearest:.2f} in plain bfloat16",
        "[learning coefficients]({docs}tutorials/learning_coefficient.md)",
        "standard error {ours:.1f}, against {theirs:.1f} by devinterp, with as many gradients",
    ),
    "zh": (
        "用途",
        "实测",
        "[后验采样]({docs}results/posterior.md)",
        "留出数据上的对数似然与 NUTS 相差 {nuts:+.3f} ± {error:.3f} nat，梯度计算量只有其"
        " {passes:.0%}",
        "[数据少、类别多]({docs}guides/training_noise.md)",
        "100 类、2,000 张图像：`ivon` 的测试误差为 {ivon:.1f}%，动量法为 {momentum:.1f}%，"
        "AdamW 为 {adamw:.1f}%，都调过参",
        "[图像少]({docs}results/claims.md#on-cifar-10)",
        "CIFAR-10 的 2,000 张图像，各看 128 次：`sghmc` 后验的测试误差为 {posterior:.1f}%，"
        "梯度次数相同的四个 AdamW 的集成为 {ensemble:.1f}%",
        "[大批量]({docs}results/claims.md#less-overfitting)",
        "100 类、800 张图像，每批 400 张：`weight_noise` 的测试误差为 {noisy:.1f}%，"
        "七个调过参的对手中最好的（{name}）为 {rival:.1f}%",
        "[16 位权重]({docs}tutorials/bfloat16.md)",
        "小型 Transformer，AdamW 学习率 3e-4：float32 的损失为 {float32:.2f}，`low_precision`"
        " 只用其三分之二的字节，损失为 {ours16:.2f}，直接用 bfloat16 则为 {nearest:.2f}",
        "[学习系数]({docs}tutorials/learning_coefficient.md)",
        "在梯度计算次数相同时，标准误为 {ours:.1f}，devinterp 为 {theirs:.1f}",
    ),
}
ORIGIN = {
    "en": (
        "The project began as a test of a Chinese article that recommends diffusions as optimizers."
        " Its claims have these verdicts on [a fair trial]({docs}results/claims.md). Beside them"
        " stands in how many of all settings noise beats every rival, even one that was made for"
        " the problem:"
    ),
    "zh": (
        "项目起因是检验一篇把扩散当作优化器的中文文章。"
        "该文论断的[公平检验]({docs}results/claims.md)结果如下，旁边是全部设置中噪声胜过所有对手（包括专为该问题设计的方法）的个数："
    ),
}
CLAIMS = {
    "en": panel.TITLES,
    "zh": {
        "converges": "收敛更快",
        "stable": "更稳定",
        "overfits": "减轻过拟合",
        "tuning": "少调参",
        "cost": "开销小",
        "escapes": "能逃离极小点",
    },
}
BY = {"en": COLUMNS, "zh": {"article": "文章的方法", "best": "diffopt 的最佳方法"}}
VERDICTS = {
    "en": {"holds": "holds", "open": "open", "fails": "fails"},
    "zh": {"holds": "成立", "open": "未定", "fails": "不成立"},
}
COUNTS = {"en": "{verdict}, {won} of {tried}", "zh": "{verdict}，{won}/{tried}"}
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
    error = {row["method"]: mean(row["error"]) for row in load("training_noise_pairs.json")["rows"]}
    loss = {
        row["method"]: mean(row["all_losses"]["0.0003"])
        for row in load("adamw_in_16_bits.json")["rows"]
        if row["problem"] == "transformer"
    }
    learning = load("llc_against_devinterp.json")["results"]
    large = strongest("best", "pairs of digits, batches of 400, 100 classes: error")
    few = strongest("article", "CIFAR-10, 2,000 images, long training: error")
    figures = {
        "nuts": sgld["minus_nuts"],
        "error": sgld["minus_nuts_error"],
        "passes": sgld["passes"] / nuts["passes"],
        "ivon": error["ivon"],
        "momentum": error["momentum"],
        "adamw": error["adamw"],
        "posterior": mean(few["diffusion_values"]),
        "ensemble": mean(few["rival_values"]),
        "noisy": mean(large["diffusion_values"]),
        "rival": mean(large["rival_values"]),
        "name": large["rival"].partition(",")[0],
        "ours": learning["diffopt"]["standard_error"],
        "theirs": learning["devinterp"]["standard_error"],
        "float32": loss["float32"],
        "ours16": loss["`low_precision`, `state_dtype`"],
        "nearest": loss["to nearest"],
    }
    cells = [text.format(docs=docs, **figures) for text in HEADLINES[language]]
    head, *rows = zip(cells[::2], cells[1::2], strict=True)
    uses = markdown(head, rows, left=2)
    return f"{uses}\n\n{ORIGIN[language].format(docs=docs)}\n\n{claims(language)}"


def strongest(column: str, setting: str) -> Entry:
    """The entry of a column beside the strongest rival in a setting that the default leaves out."""
    of = (column, setting)
    return min((each for each in left_out([]) if (each["column"], each["setting"]) == of), key=gain)


def claims(language: str) -> str:
    """The verdict on each claim of the article, and in how many settings it beats all rivals."""
    tried, counts = panel.by_claim(verdicts()), won()

    def cell(claim: str, column: str) -> str:
        beaten, of = counts[claim, column]
        verdict = VERDICTS[language][tried[claim][column].verdict]
        return COUNTS[language].format(verdict=verdict, won=beaten, tried=of)

    head = ["", *(CLAIMS[language][claim] for claim in tried)]
    rows = [
        [title, *(cell(claim, column) for claim in tried)] for column, title in BY[language].items()
    ]
    return markdown(head, rows, left=len(head))
