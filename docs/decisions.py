"""Draw which part of diffopt answers which question.

python docs/decisions.py    # writes docs/images/decisions.svg and its Chinese twin
"""

from pathlib import Path

QUESTIONS = {
    "": [
        ("Do you need intervals", "or a posterior?", "full batch: baoab", "minibatch: sghmc"),
        ("Are your weights", "in 16 bits?", "low_precision", "around the rest"),
        ("Few data, or", "wrong labels?", "weight_noise", "label_noise"),
        ("Do you end in", "a poor minimum?", "annealed langevin", "replica_exchange"),
        ("How complex", "is a minimum?", "local_learning_", "coefficient, wbic"),
        ("Which examples", "made a prediction?", "influence", ""),
    ],
    ".zh": [
        ("需要区间", "或后验？", "精确梯度：baoab", "小批量：sghmc"),
        ("权重是 16 位的？", "", "low_precision", "套在优化器外面"),
        ("数据少，", "或标签有错？", "weight_noise", "label_noise"),
        ("优化器停在", "不好的极小点？", "langevin，降温到 0", "replica_exchange"),
        ("要比较极小点", "的复杂度？", "local_learning_", "coefficient、wbic"),
        ("哪些样本造成了", "某个预测？", "influence", ""),
    ],
}
WORDS = {"": ("yes", "no", "Keep your optimizer."), ".zh": ("是", "否", "沿用现有的优化器")}
STEP, WIDTH = 92, 358  # of the column on a phone


def box(x: int, y: int, width: int, lines: list[str], fill: str, edge: str) -> str:
    """A rounded box of one line or two."""
    lines = [line for line in lines if line]
    shape = (
        f'<rect x="{x}" y="{y}" width="{width}" height="58" rx="8" fill="{fill}" stroke="{edge}"/>'
    )
    first = y + 34 if len(lines) == 1 else y + 24
    return shape + "".join(
        f'<text x="{x + width / 2:g}" y="{first + 21 * i}" text-anchor="middle">{line}</text>'
        for i, line in enumerate(lines)
    )


def draw(language: str) -> str:
    """The questions from top to bottom, each with its answer on the right."""
    yes, no, end = WORDS[language]
    parts = []
    for i, (*question, first, second) in enumerate(QUESTIONS[language]):
        y = 6 + i * STEP
        parts.append(box(2, y, 162, question, "#eef1fb", "#5b6fd6"))
        parts.append(box(208, y, 148, [first, second], "#e9f6ec", "#3f8f4f"))
        parts.append(f'<path d="M164 {y + 29}h38" marker-end="url(#tip)"/>')
        parts.append(f'<text x="183" y="{y + 22}" text-anchor="middle">{yes}</text>')
        parts.append(f'<path d="M83 {y + 58}v28" marker-end="url(#tip)"/>')
        parts.append(f'<text x="93" y="{y + 78}">{no}</text>')
    height = 6 + len(QUESTIONS[language]) * STEP
    parts.append(box(2, height, 162, [end], "#f3f3f3", "#777"))
    tall = height + 66
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {tall}" width="{WIDTH}"'
        f' height="{tall}" font-family="Helvetica, Arial, Noto Sans CJK SC, sans-serif"'
        ' font-size="16" fill="#222"><defs><marker id="tip" viewBox="0 0 8 8" refX="6" refY="4"'
        ' markerWidth="8" markerHeight="8" orient="auto"><path d="M0 0L8 4L0 8z" stroke="none"'
        ' fill="#555"/></marker></defs><style>path{stroke:#555;fill:none}rect{stroke-width:1.5}'
        f"</style>{''.join(parts)}</svg>\n"
    )


if __name__ == "__main__":
    for language in QUESTIONS:
        path = Path(__file__).parent / "images" / f"decisions{language}.svg"
        path.write_text(draw(language), "utf-8")
