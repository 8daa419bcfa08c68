"""results.json -> the table in docs/SPEED.md and the plot docs/speed.svg.

    python benchmarks/report.py benchmarks/results.json

The table stands between two comment lines of that page and names the machine; the plot needs matplotlib.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from bench import PRECISIONS, ceiling

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- made by benchmarks/report.py -->", "<!-- end -->"


def best_by_library(rows: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """precision -> library -> milliseconds, the best of its modes."""
    found: dict[str, dict[str, float]] = {precision: {} for precision in PRECISIONS}
    for name, row in rows.items():
        precision = next(p for p in PRECISIONS if p in name)
        library = name.split(f" {precision}")[0].replace("torch.compile", "transformers")
        best = found[precision].get(library, float("inf"))
        found[precision][library] = min(best, row["ms_per_item"])
    return found


def share(record: dict, precision: str, row: dict[str, float]) -> str:
    most = ceiling(record["ceilings"], precision)
    return f" ({100 * row['gflops'] / most:.0f} %)" if most else ""


def table(record: dict) -> str:
    works = list(record["work"])
    found = {work: best_by_library(record["work"][work]) for work in works}
    names = sorted({(p, lib) for w in works for p in PRECISIONS for lib in found[w][p]},
                   key=lambda n: (PRECISIONS.index(n[0]), n[1] != "beyondvl", n[1]))  # fmt: skip
    lines = ["| milliseconds an item | " + " | ".join(w.replace(" image", "<br>image,").replace(" text", "<br>text,")
                                                      for w in works) + " |",
             "|---|" + "---|" * len(works)]  # fmt: skip
    for precision, library in names:
        cells = []
        for work in works:
            ms = found[work][precision].get(library)
            text = f"{ms:.2f}" if ms else "-"
            if library == "beyondvl":
                modes = [row for name, row in record["work"][work].items() if name.startswith(f"beyondvl {precision}")]
                text = f"**{text}**" + share(record, precision, min(modes, key=lambda row: row["ms_per_item"]))
            cells.append(text)
        lines.append(f"| {library} {precision} | " + " | ".join(cells) + " |")
    for precision in PRECISIONS:
        ratios = []
        for work in works:
            rows = found[work][precision]
            peers = [ms for library, ms in rows.items() if library != "beyondvl"]
            ratios.append(f"{min(peers) / rows['beyondvl']:.2f}" if peers else "-")
        lines.append(f"| fastest {precision} peer / beyondvl {precision} | " + " | ".join(ratios) + " |")
    pipeline = [
        f"\n| from files, ViT-B/32 | {' | '.join(('beyondvl', 'fastest peer', 'ratio'))} |",
        "|---|---|---|---|",
    ]
    for title, rows in record.get("pipeline", {}).items():
        mine_name, mine = next(iter(rows.items()))
        peer_name, peer = min(((n, ms) for n, ms in rows.items() if not n.startswith("beyondvl")), key=lambda r: r[1])
        pipeline.append(f"| {title} | {mine:.2f} ms ({mine_name}) | {peer:.2f} ms ({peer_name}) | {peer / mine:.2f} |")
    captions = [
        "\n| BLIP-base, 384 px, milliseconds | beyondvl int8 | bfloat16 | float32 | transformers bfloat16 | float32 |",
        "|---|---|---|---|---|---|",
    ]
    names = ("beyondvl int8", "beyondvl bfloat16", "beyondvl float32", "transformers bfloat16", "transformers float32")
    for title, rows in record.get("captions", {}).items():
        captions.append(f"| {title} | {' | '.join(f'{rows[name]:.0f}' for name in names)} |")
    first = [
        "\n| first picture's embedding, ViT-B/32 | after | with flushed files | peak memory |",
        "|---|---|---|---|",
    ]
    for name, row in record.get("footprint", {}).get("first_embedding", {}).items():
        first.append(f"| {name} | {row['ms']:.0f} ms | {row['flushed_ms']:.0f} ms | {row['peak_mb']:.0f} MB |")
    pipeline = [line for part in (pipeline, captions, first) if len(part) > 2 for line in part]
    ceilings = ", ".join(
        f"{n.replace('_', ' ')} {rate:.0f}" for n, rate in record["ceilings"].items() if rate and n != "memory"
    )
    machine = (
        f"{record['cpu']}, {record['threads']} threads, instruction set `{record['isa']}`; ceilings of register-only loops "
        f"in GFLOP/s: {ceilings}. In brackets the share of the ceiling, by the operations of the whole tower; the 7 % of "
        "them that no embedding needs are left out."
    )
    return "\n".join([machine, "", *lines, *pipeline])


def plot(record: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    works = list(record["work"])
    fig, axes = plt.subplots(1, len(works), figsize=(3.2 * len(works), 4.2), squeeze=False)
    colors = dict(zip(PRECISIONS, ("#4c72b0", "#55a868", "#c44e52"), strict=True))
    for ax, work in zip(axes[0], works, strict=True):
        found = best_by_library(record["work"][work])
        bars = sorted(((ms, f"{lib} {p}", colors[p]) for p in PRECISIONS for lib, ms in found[p].items()), reverse=True)
        ax.barh([b[1] for b in bars], [b[0] for b in bars], color=[b[2] for b in bars])
        for label in ax.get_yticklabels():
            label.set_fontweight("bold" if label.get_text().startswith("beyondvl") else "normal")
        ax.set_title(work, fontsize=9)
        ax.tick_params(labelsize=7)
        ax.set_xlabel("ms an item", fontsize=8)
    fig.suptitle(f"{record['cpu']}, {record['threads']} threads", fontsize=9)
    fig.tight_layout()
    fig.savefig(path, metadata={"Date": None})


def main() -> None:
    record = json.loads(Path(sys.argv[1]).read_text())
    page = ROOT / "docs" / "SPEED.md"
    text = page.read_text()
    block = f"{BEGIN}\n{table(record)}\n{END}"
    if BEGIN not in text:
        raise SystemExit(f"{page} lacks the line {BEGIN}")
    page.write_text(re.sub(re.escape(BEGIN) + ".*?" + re.escape(END), lambda _: block, text, flags=re.S))
    plot(record, ROOT / "docs" / "speed.svg")


if __name__ == "__main__":
    main()
